//! The kernel's traffic control and routing: dumps, and requests that are answered one by one.

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use super::netlink::{ACK, Conversation, ERROR, RECEIVE_BYTES, REQUEST, messages, write};
pub(super) use super::netlink::{CREATE, EXCLUSIVE, Fault};

pub(super) struct Rtnetlink(Conversation);

impl Rtnetlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, Fault> {
        let conversation = Conversation::open(NETLINK_ROUTE)?;
        conversation.socket.set_ext_ack(true)?;
        // Dumps of routes look at the table that is asked for, and at no other. Kernel 4.20.
        conversation.socket.set_netlink_get_strict_chk(true)?;
        // Without the right to a larger one, dumps come in more parts.
        setsockopt(&conversation.socket, RcvBufForce, &RECEIVE_BYTES).ok();
        Ok(Self(conversation))
    }

    /// The bodies of all that the kernel has of a kind.
    pub(super) fn dump(&mut self, kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        self.0.dump(kind, body)
    }

    /// Has one thing changed.
    pub(super) fn change(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Fault> {
        let sequence = self.0.next();
        let mut request = Vec::new();
        write(&mut request, kind, REQUEST | ACK | flags, sequence, body);
        self.0.socket.send(&request, 0)?;
        let mut buffer = Vec::new();
        loop {
            self.0.receive(&mut buffer)?;
            if let Some(answer) = messages(&buffer).find(|m| m.sequence == sequence && m.kind == ERROR) {
                return answer.refusal();
            }
        }
    }
}
