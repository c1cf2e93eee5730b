//! The tc variant on kernels without TCX links (before 6.6): a classic filter on the interface's clsact qdisc.
//!
//! A filter cannot be pinned as a link is, but it stays when its maker ends. Ours is known again by its place and its
//! name, and a new program takes that place in one step.

use std::io;
use std::mem::ManuallyDrop;

use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Before every other filter: what is dropped should cost nobody else anything.
const PRIORITY: u16 = 1;
/// Of ours among the filters of that priority.
const HANDLE: TcHandle = TcHandle::new(0, 0xf7a9);
/// The program's name in the object, and so the filter's.
const NAME: &str = "ftagent_tc";

const NEW_FILTER: u16 = 44;
const GET_FILTER: u16 = 46;
const ERROR: u16 = 2;
/// `TC_H_CLSACT` with the minor number of its ingress hook.
const INGRESS: u32 = 0xffff_fff2;
const ETH_P_ALL: u16 = 3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
const HEADER: usize = 16;
/// `struct tcmsg`.
const MESSAGE: usize = 20;

/// The program behind our filter on an interface, if there is such a filter.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn attached(interface: u32) -> io::Result<Option<u32>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(interface), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    parse(&answer)
}

/// Attaches `program`, in the place of one of ours if `replace`.
///
/// # Errors
/// In the kernel's words.
pub fn attach(program: &mut SchedClassifier, interface: &str, replace: bool) -> Result<(), ProgramError> {
    let id = if replace {
        let there = SchedClassifierLink::attached(interface, TcAttachType::Ingress, PRIORITY, HANDLE, None);
        program.attach_to_link(there.map_err(TcError::IoError)?)?
    } else {
        // A qdisc that is there already is as good, and stays when we go.
        match tc::qdisc_add_clsact(interface) {
            Ok(()) | Err(TcError::AlreadyAttached) => {}
            Err(error) => {
                tracing::debug!(interface, %error, "clsact is there already, or the filter will say more");
            }
        }
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        program.attach_with_options(interface, TcAttachType::Ingress, TcAttachOptions::Netlink(options))?
    };
    // Dropping the link would remove the filter: it must outlive us.
    program.take_link(id).map(ManuallyDrop::new).map(drop)
}

/// Removes our filter from an interface; one that is not there is success.
///
/// # Errors
/// In the kernel's words.
pub fn detach(interface: &str) -> io::Result<()> {
    match tc::qdisc_detach_program(interface, TcAttachType::Ingress, NAME) {
        Ok(()) => Ok(()),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// `RTM_GETTFILTER` for the place of ours.
fn request(interface: u32) -> Vec<u8> {
    const REQUEST: u16 = 1;
    let kind = b"bpf\0";
    let attribute = 4 + kind.len();
    let mut bytes = Vec::with_capacity(HEADER + MESSAGE + attribute);
    bytes.extend(((HEADER + MESSAGE + attribute) as u32).to_ne_bytes());
    bytes.extend(GET_FILTER.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([0; 4]);
    bytes.extend(interface.to_ne_bytes());
    bytes.extend(u32::from(HANDLE).to_ne_bytes());
    bytes.extend(INGRESS.to_ne_bytes());
    bytes.extend((u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be())).to_ne_bytes());
    bytes.extend((attribute as u16).to_ne_bytes());
    bytes.extend(TCA_KIND.to_ne_bytes());
    bytes.extend(kind);
    bytes
}

/// The program's number from the answer, if the filter is ours.
fn parse(answer: &[u8]) -> io::Result<Option<u32>> {
    let cut = || io::Error::other("tc: an answer without its end");
    let kind = u16::from_ne_bytes(answer.get(4..6).ok_or_else(cut)?.try_into().map_err(|_| cut())?);
    match kind {
        ERROR => {
            let code = i32::from_ne_bytes(answer.get(16..20).ok_or_else(cut)?.try_into().map_err(|_| cut())?);
            match -code {
                // No such filter, no clsact, or no such kind of qdisc.
                0 | libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP => Ok(None),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
        NEW_FILTER => {
            let attributes = answer.get(HEADER + MESSAGE..).ok_or_else(cut)?;
            let options = attribute(attributes, TCA_OPTIONS).unwrap_or_default();
            let name = attribute(options, TCA_BPF_NAME).unwrap_or_default();
            // What others put into our place is theirs.
            if name.strip_suffix(&[0]) != Some(NAME.as_bytes()) {
                return Ok(None);
            }
            let id = attribute(options, TCA_BPF_ID).and_then(|id| id.try_into().ok()).ok_or_else(cut)?;
            Ok(Some(u32::from_ne_bytes(id)))
        }
        other => Err(io::Error::other(format!("tc: an answer of kind {other}"))),
    }
}

/// The value of an attribute among others.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// `NLA_F_NESTED | NLA_F_NET_BYTEORDER`.
    const FLAGS: u16 = 0xc000;
    while let [a, b, c, d, ..] = *bytes {
        let (len, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = bytes.get(4..len)?;
        if kind & !FLAGS == wanted {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn filter(name: &[u8]) -> Vec<u8> {
        let options = [attr(TCA_BPF_NAME, name), attr(TCA_BPF_ID, &77u32.to_ne_bytes())].concat();
        let attributes = [attr(TCA_KIND, b"bpf\0"), attr(TCA_OPTIONS, &options)].concat();
        let mut bytes = ((HEADER + MESSAGE + attributes.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(NEW_FILTER.to_ne_bytes());
        bytes.resize(HEADER + MESSAGE, 0);
        bytes.extend(attributes);
        bytes
    }

    fn error(code: i32) -> Vec<u8> {
        let mut bytes = 36u32.to_ne_bytes().to_vec();
        bytes.extend(ERROR.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend((-code).to_ne_bytes());
        bytes
    }

    #[test]
    fn our_filter_is_known_by_its_name() {
        assert_eq!(parse(&filter(b"ftagent_tc\0")).expect("parsed"), Some(77));
        assert_eq!(parse(&filter(b"another\0")).expect("parsed"), None);
        assert_eq!(parse(&error(libc::ENOENT)).expect("parsed"), None);
        assert_eq!(parse(&error(libc::EPERM)).expect_err("refused").raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn cut_answers_are_errors_and_never_panics() {
        let whole = filter(b"ftagent_tc\0");
        for len in 0..whole.len() {
            assert!(!matches!(parse(&whole[..len]), Ok(Some(_))), "{len} bytes");
        }
    }
}
