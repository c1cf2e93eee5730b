//! One conversation with the kernel's traffic control and routing: dumps, and requests that are answered one by one.
//! Who calls may have to wait for the kernel.

use std::io;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::time::TimeVal;

use super::nftables::wire::find;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
pub(super) const CREATE: u16 = 0x400;
pub(super) const EXCLUSIVE: u16 = 0x200;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The dump is of no one moment.
const INTERRUPTED: u16 = 0x10;
/// Words follow the error.
const HAS_WORDS: u16 = 0x200;
const WORDS: u16 = 1;

const HEADER: usize = 16;
/// The kernel answers at once; this is for the day it does not.
const PATIENCE_SECS: i64 = 5;
const RECEIVE_BYTES: usize = 4 << 20;
const ATTEMPTS: usize = 10;

/// Why the kernel could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    #[error("{}{}{}", words, if words.is_empty() { "" } else { ": " }, io::Error::from_raw_os_error(*code))]
    Refused { code: i32, words: String },
}

impl Fault {
    /// Whether the kernel refused with this error.
    pub(super) fn is(&self, wanted: i32) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }
}

pub(super) struct Rtnetlink {
    socket: Socket,
    sequence: u32,
}

impl Rtnetlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, Fault> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // Dumps of routes look at the table that is asked for, and at no other. Kernel 4.20.
        socket.set_netlink_get_strict_chk(true)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_SECS, 0)).map_err(io::Error::from)?;
        // Without the right to a larger one, dumps come in more parts.
        setsockopt(&socket, RcvBufForce, &RECEIVE_BYTES).ok();
        Ok(Self { socket, sequence: 1 })
    }

    /// The bodies of all that the kernel has of a kind.
    pub(super) fn dump(&mut self, kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        for _ in 0..ATTEMPTS {
            if let Some(all) = self.dump_once(kind, body)? {
                return Ok(all);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "it changes faster than it can be read").into())
    }

    fn dump_once(&mut self, kind: u16, body: &[u8]) -> Result<Option<Vec<Vec<u8>>>, Fault> {
        self.send(kind, DUMP, body)?;
        let mut all = Vec::new();
        let mut interrupted = false;
        let mut buffer = Vec::new();
        loop {
            self.receive(&mut buffer)?;
            for message in messages(&buffer).filter(|message| message.sequence == self.sequence) {
                interrupted |= message.flags & INTERRUPTED != 0;
                match message.kind {
                    DONE => {
                        // The last word of a dump may be an error, as of a table that there is none of.
                        message.refusal()?;
                        return Ok((!interrupted).then_some(all));
                    }
                    ERROR => return message.refusal().map(|()| Some(all)),
                    _ => all.push(message.body.to_vec()),
                }
            }
        }
    }

    /// Has one thing changed.
    pub(super) fn change(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Fault> {
        self.send(kind, flags | ACK, body)?;
        let mut buffer = Vec::new();
        loop {
            self.receive(&mut buffer)?;
            let answer = messages(&buffer).find(|m| m.sequence == self.sequence && m.kind == ERROR);
            if let Some(answer) = answer {
                return answer.refusal();
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        let len = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        bytes.extend(len.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((REQUEST | flags).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        self.socket.send(&bytes, 0).map(drop)
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        buffer.reserve(64 << 10);
        self.socket.recv(buffer, 0).map(drop)
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    fn refusal(&self) -> Result<(), Fault> {
        let code = self.body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
        if code == 0 {
            return Ok(());
        }
        // Behind the error stands the header of what was asked, but for a dump's.
        let words = if self.kind == ERROR { self.body.get(4 + HEADER..) } else { self.body.get(4..) };
        let words = words.filter(|_| self.flags & HAS_WORDS != 0).and_then(|attributes| find(attributes, WORDS));
        let words = words.map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
        Err(Fault::Refused { code: code.saturating_neg(), words: words.unwrap_or_default() })
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let len = usize::try_from(u32::from_ne_bytes(header[..4].try_into().ok()?)).ok()?;
        let message = Message {
            kind: u16::from_ne_bytes(header[4..6].try_into().ok()?),
            flags: u16::from_ne_bytes(header[6..8].try_into().ok()?),
            sequence: u32::from_ne_bytes(header[8..12].try_into().ok()?),
            body: bytes.get(HEADER..len)?,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(words: Option<&str>) -> Vec<u8> {
        let mut body = (-libc::ENOENT).to_ne_bytes().to_vec();
        body.resize(4 + HEADER, 0);
        if let Some(words) = words {
            body.extend((words.len() as u16 + 5).to_ne_bytes());
            body.extend(WORDS.to_ne_bytes());
            body.extend(words.as_bytes());
            body.push(0);
        }
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(ERROR.to_ne_bytes());
        bytes.extend((if words.is_some() { HAS_WORDS } else { 0 }).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_refusal_has_the_kernels_words() {
        let said = |words| messages(&refused(words)).next().expect("one").refusal().expect_err("refused").to_string();
        let plain = io::Error::from_raw_os_error(libc::ENOENT).to_string();
        assert_eq!(said(None), plain);
        assert_eq!(said(Some("TC classifier not found")), format!("TC classifier not found: {plain}"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).take(100).filter(|m| m.refusal().is_ok()).count() <= 100);
        }
    }
}
