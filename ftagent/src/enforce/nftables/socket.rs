//! One conversation with nf_tables: dumps, and batches that are applied whole or not at all.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce};

use super::wire::Attributes;
use crate::enforce::netlink::{self, ACK, Conversation, ERROR, RECEIVE_BYTES, REQUEST, messages};
pub(super) use crate::enforce::netlink::{APPEND, CREATE, EXCLUSIVE};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;

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
    conversation: Conversation,
    /// Of the tables that are asked for and changed.
    family: u8,
}

impl Nfnetlink {
    /// Opens a socket in the network namespace of the calling thread, for tables of `family`.
    pub(super) fn open(family: u8) -> io::Result<Self> {
        let conversation = Conversation::open(NETLINK_NETFILTER)?;
        setsockopt(&conversation.socket, RcvBufForce, &RECEIVE_BYTES)?;
        Ok(Self { conversation, family })
    }

    /// The attributes of every object that matches `filter`.
    pub(super) fn dump(&mut self, kind: u16, filter: &Attributes) -> io::Result<Vec<Vec<u8>>> {
        let all = self.conversation.dump(kind, &body(self.family, 0, filter))?;
        Ok(all.iter().filter_map(|body| body.get(4..)).map(<[u8]>::to_vec).collect())
    }

    /// Applies all of `requests` in one transaction.
    pub(super) fn apply(&mut self, requests: &[Request]) -> Result<(), BatchError> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let first = self.conversation.next();
        let mut batch = Vec::new();
        let frame = body(0, NFTABLES, &Attributes::default());
        netlink::write(&mut batch, BATCH_BEGIN, REQUEST, first, &frame);
        let mut final_answer = first;
        for (index, request) in requests.iter().enumerate() {
            final_answer = self.conversation.next();
            // Refusals come unasked; one answer that always comes says that there will be no more of them.
            let ack = if index == last { ACK } else { 0 };
            let flags = REQUEST | ack | request.flags;
            netlink::write(&mut batch, request.kind, flags, final_answer, &body(self.family, 0, &request.attributes));
        }
        netlink::write(&mut batch, BATCH_END, REQUEST, self.conversation.next(), &frame);

        let size = batch.len() + (64 << 10);
        setsockopt(&self.conversation.socket, SndBufForce, &size).map_err(io::Error::from)?;
        self.conversation.socket.send(&batch, 0)?;
        let mut refused = Vec::new();
        let mut buffer = Vec::new();
        loop {
            self.conversation.receive(&mut buffer)?;
            for message in messages(&buffer).filter(|m| m.kind == ERROR && m.sequence >= first) {
                let index = usize::try_from(message.sequence - first).ok().and_then(|n| n.checked_sub(1));
                let whole_batch = index.is_none();
                refused.extend(message.refusal().err().map(|fault| Refused { index, error: fault.into() }));
                if message.sequence == final_answer || whole_batch {
                    return if refused.is_empty() { Ok(()) } else { Err(BatchError::Refused(refused)) };
                }
            }
        }
    }
}

/// `nfgenmsg` and what follows.
fn body(family: u8, resource: u16, attributes: &Attributes) -> Vec<u8> {
    let mut body = vec![family, 0];
    body.extend(resource.to_be_bytes());
    body.extend(&attributes.bytes);
    body
}
