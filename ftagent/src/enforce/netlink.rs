//! One conversation with the kernel over netlink: dumps that are whole, and answers. Who calls may have to wait for the
//! kernel.

use std::io;

use netlink_sys::Socket;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::TimeVal;

use super::nftables::wire::find;

pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
pub(super) const CREATE: u16 = 0x400;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const APPEND: u16 = 0x800;
pub(super) const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The dump is of no one moment.
const INTERRUPTED: u16 = 0x10;
/// Words follow the error.
const HAS_WORDS: u16 = 0x200;
const WORDS: u16 = 1;

pub(super) const HEADER: usize = 16;
/// The kernel answers at once; this is for the day it does not.
const PATIENCE_SECS: i64 = 5;
/// Of the kernel's receive buffer: errors of a batch arrive together.
pub(super) const RECEIVE_BYTES: usize = 4 << 20;
/// A dump that another change interrupted shows neither the old state nor the new one.
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

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Socket(error) => error,
            Fault::Refused { code, .. } => Self::from_raw_os_error(code),
        }
    }
}

pub(super) struct Conversation {
    pub(super) socket: Socket,
    sequence: u32,
}

impl Conversation {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        // Errors without the message they belong to: the number says which.
        socket.set_cap_ack(true)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_SECS, 0))?;
        Ok(Self { socket, sequence: 1 })
    }

    /// The number of the next message.
    pub(super) fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// The bodies of all that the kernel has of a kind.
    pub(super) fn dump(&mut self, kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        for _ in 0..ATTEMPTS {
            let sequence = self.next();
            let mut request = Vec::new();
            write(&mut request, kind, REQUEST | DUMP, sequence, body);
            self.socket.send(&request, 0)?;
            let mut dump = Dump::default();
            let mut buffer = Vec::new();
            while !dump.is_over {
                self.receive(&mut buffer)?;
                dump.take(&buffer, sequence)?;
            }
            if !dump.is_interrupted {
                return Ok(dump.all);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "it changes faster than it can be read").into())
    }

    pub(super) fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        loop {
            buffer.clear();
            buffer.reserve(64 << 10);
            match self.socket.recv(buffer, 0) {
                // With a timeout the kernel does not begin anew after a signal.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(drop),
            }
        }
    }
}

/// What has come of a dump.
#[derive(Default)]
struct Dump {
    all: Vec<Vec<u8>>,
    is_interrupted: bool,
    is_over: bool,
}

impl Dump {
    fn take(&mut self, bytes: &[u8], sequence: u32) -> Result<(), Fault> {
        for message in messages(bytes).filter(|message| message.sequence == sequence) {
            self.is_interrupted |= message.flags & INTERRUPTED != 0;
            match message.kind {
                // The last word of a dump may be an error, as of a table that there is none of.
                DONE | ERROR => {
                    message.refusal()?;
                    self.is_over = true;
                    break;
                }
                _ => self.all.push(message.body.to_vec()),
            }
        }
        Ok(())
    }
}

/// Appends a message.
pub(super) fn write(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, body: &[u8]) {
    let len = u32::try_from(HEADER + body.len()).expect("a message is below 4 GiB");
    out.extend(len.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend(body);
}

pub(super) struct Message<'a> {
    pub(super) kind: u16,
    flags: u16,
    pub(super) sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// The error in an answer, or in the last word of a dump.
    pub(super) fn refusal(&self) -> Result<(), Fault> {
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

pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
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
    use netlink_sys::protocols::NETLINK_ROUTE;
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
        let mut bytes = Vec::new();
        write(&mut bytes, ERROR, if words.is_some() { HAS_WORDS } else { 0 }, 0, &body);
        bytes
    }

    #[test]
    fn a_refusal_has_the_kernels_words() {
        let said = |words| messages(&refused(words)).next().expect("one").refusal().expect_err("refused").to_string();
        let plain = io::Error::from_raw_os_error(libc::ENOENT).to_string();
        assert_eq!(said(None), plain);
        assert_eq!(said(Some("TC classifier not found")), format!("TC classifier not found: {plain}"));
    }

    #[test]
    fn a_dump_that_ends_in_an_error_is_none() {
        let dump = |flags, code: i32| {
            let mut bytes = Vec::new();
            write(&mut bytes, 20, flags, 7, &[1; 4]);
            write(&mut bytes, 20, 0, 6, &[2; 4]);
            write(&mut bytes, DONE, 0, 7, &code.to_ne_bytes());
            let mut dump = Dump::default();
            dump.take(&bytes, 7).map(|()| (dump.all.len(), dump.is_interrupted, dump.is_over))
        };
        assert_eq!(dump(0, 0).expect("whole"), (1, false, true), "what is of another is left out");
        assert_eq!(dump(INTERRUPTED, 0).expect("to be asked again"), (1, true, true));
        assert!(dump(0, -libc::ENOMEM).is_err_and(|fault| fault.is(libc::ENOMEM)));
    }

    #[test]
    fn a_signal_does_not_end_the_wait_for_an_answer() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let kind = tokio::signal::unix::SignalKind::user_defined2();
        let _handled = runtime.block_on(async { tokio::signal::unix::signal(kind) }).expect("a handler");
        let conversation = std::sync::Arc::new(Conversation::open(NETLINK_ROUTE).expect("a socket"));
        let other = std::sync::Arc::clone(&conversation);
        let (sender, thread) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            sender.send(nix::unistd::gettid()).expect("somebody listens");
            other.receive(&mut Vec::new()).map_err(|error| error.to_string())
        });
        let thread = thread.recv().expect("a thread");
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            // It takes the signal itself unless it blocks it.
            nix::sys::signal::kill(thread, nix::sys::signal::SIGUSR2).expect("it lives");
        }
        // Nobody knows such a message: an error is an answer too.
        let mut request = Vec::new();
        write(&mut request, 0xfff0, REQUEST | ACK, 9, &[]);
        conversation.socket.send(&request, 0).expect("sent");
        assert_eq!(waiting.join().expect("no panic"), Ok(()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).take(100).filter(|m| m.refusal().is_ok()).count() <= 100);
        }
    }
}
