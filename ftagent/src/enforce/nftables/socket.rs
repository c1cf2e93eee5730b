//! One conversation with nf_tables: dumps, and batches that are applied whole or not at all.

use std::io;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout, SndBufForce};
use nix::sys::time::TimeVal;

use super::wire::Attributes;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
pub(super) const CREATE: u16 = 0x400;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const APPEND: u16 = 0x800;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const INTERRUPTED: u16 = 0x10;

const HEADER: usize = 16;
/// Header and `nfgenmsg`.
const PREAMBLE: usize = HEADER + 4;
/// The kernel answers at once; this is for the day it does not.
const PATIENCE_SECS: i64 = 5;
/// Of the kernel's receive buffer: errors of a batch arrive together.
const RECEIVE_BYTES: usize = 4 << 20;

/// One message of a batch.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) kind: u16,
    /// Beyond `NLM_F_REQUEST`.
    pub(super) flags: u16,
    pub(super) attributes: Attributes,
}

/// Which message of a batch the kernel refused, or none if the batch as such.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) index: Option<usize>,
    pub(super) error: io::Error,
}

/// Why a batch was not applied; none of it was.
#[derive(Debug)]
pub(super) enum BatchError {
    Socket(io::Error),
    Refused(Vec<Refused>),
}

impl From<io::Error> for BatchError {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

pub(super) struct Nfnetlink {
    socket: Socket,
    sequence: u32,
    /// Of the tables that are asked for and changed.
    family: u8,
}

impl Nfnetlink {
    /// Opens a socket in the network namespace of the calling thread, for tables of `family`.
    pub(super) fn open(family: u8) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        // Errors without the message they belong to: the number says which.
        socket.set_cap_ack(true)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_SECS, 0))?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BYTES)?;
        Ok(Self { socket, sequence: 1, family })
    }

    /// The attributes of every object that matches `filter`.
    pub(super) fn dump(&mut self, kind: u16, filter: &Attributes) -> io::Result<Vec<Vec<u8>>> {
        // A dump that another transaction interrupted shows neither the old state nor the new one.
        for _ in 0..10 {
            if let Some(objects) = self.dump_once(kind, filter)? {
                return Ok(objects);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the ruleset changes faster than it can be read"))
    }

    fn dump_once(&mut self, kind: u16, filter: &Attributes) -> io::Result<Option<Vec<Vec<u8>>>> {
        self.sequence += 1;
        let mut request = Vec::new();
        write(&mut request, kind, REQUEST | DUMP, self.sequence, self.family, 0, filter);
        self.socket.send(&request, 0)?;
        let mut objects = Vec::new();
        let mut interrupted = false;
        let mut buffer = Vec::with_capacity(64 << 10);
        loop {
            self.receive(&mut buffer)?;
            for message in messages(&buffer) {
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & INTERRUPTED != 0;
                match message.kind {
                    DONE => return Ok((!interrupted).then_some(objects)),
                    ERROR => return Err(message.error().unwrap_or_else(|| io::Error::other("an empty answer"))),
                    _ => objects.extend(message.payload.get(4..).map(<[u8]>::to_vec)),
                }
            }
        }
    }

    /// Applies all of `requests` in one transaction.
    pub(super) fn apply(&mut self, requests: &[Request]) -> Result<(), BatchError> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let first = self.sequence + 1;
        let mut batch = Vec::new();
        write(&mut batch, BATCH_BEGIN, REQUEST, first, 0, NFTABLES, &Attributes::default());
        let mut sequence = first;
        for (index, request) in requests.iter().enumerate() {
            sequence += 1;
            // Refusals come unasked; one answer that always comes says that there will be no more of them.
            let ack = if index == last { ACK } else { 0 };
            let flags = REQUEST | ack | request.flags;
            write(&mut batch, request.kind, flags, sequence, self.family, 0, &request.attributes);
        }
        let final_answer = sequence;
        self.sequence = sequence + 1;
        write(&mut batch, BATCH_END, REQUEST, self.sequence, 0, NFTABLES, &Attributes::default());

        let size = batch.len() + (64 << 10);
        setsockopt(&self.socket, SndBufForce, &size).map_err(io::Error::from)?;
        self.socket.send(&batch, 0)?;
        let mut refused = Vec::new();
        let mut buffer = Vec::with_capacity(64 << 10);
        loop {
            self.receive(&mut buffer)?;
            for message in messages(&buffer).filter(|m| m.kind == ERROR && m.sequence >= first) {
                let index = usize::try_from(message.sequence - first).ok().and_then(|n| n.checked_sub(1));
                let whole_batch = index.is_none();
                refused.extend(message.error().map(|error| Refused { index, error }));
                if message.sequence == final_answer || whole_batch {
                    return if refused.is_empty() { Ok(()) } else { Err(BatchError::Refused(refused)) };
                }
            }
        }
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        buffer.reserve(64 << 10);
        self.socket.recv(buffer, 0).map(|_| ())
    }
}

fn write(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attributes: &Attributes) {
    let len = u32::try_from(PREAMBLE + attributes.bytes.len()).expect("a message is below 64 KiB");
    out.extend(len.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([family, 0]);
    out.extend(resource.to_be_bytes());
    out.extend(&attributes.bytes);
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Message<'_> {
    /// The error in an answer; nothing if it says that all is well.
    fn error(&self) -> Option<io::Error> {
        let code = i32::from_ne_bytes(self.payload.get(..4)?.try_into().ok()?);
        (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
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
            payload: bytes.get(HEADER..len)?,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
