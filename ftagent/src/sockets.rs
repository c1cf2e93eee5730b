//! TCP sockets of the calling thread's network namespace, asked of the kernel: `sock_diag`(7).

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::TimeVal;

/// The kernel answers at once; this is for the day it does not.
const PATIENCE_SECS: i64 = 2;
/// Larger than any single message of a dump.
const RECEIVE_BYTES: usize = 64 << 10;

/// Which established connections are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    /// The port at this end; 0: any. The kernel itself leaves out the others.
    pub(crate) local_port: u16,
    /// The port at the other end; 0: any.
    pub(crate) remote_port: u16,
    /// With what came and went (`struct tcp_info`).
    pub(crate) info: bool,
}

/// A way to ask.
pub(crate) struct Sockets(Socket);

impl Sockets {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_SECS, 0))?;
        Ok(Self(socket))
    }

    /// The ports that somebody listens on.
    pub(crate) fn listening(&mut self) -> io::Result<HashSet<u16>> {
        let mut ports = HashSet::new();
        for family in [AF_INET, AF_INET6] {
            let states = StateFlags::from_bits_truncate(1 << TCP_LISTEN);
            self.dump(family, states, Wanted::default(), &mut |response| {
                ports.insert(response.header.socket_id.source_port);
                true
            })?;
        }
        Ok(ports)
    }

    /// Shows each established connection, until `each` wants no more.
    pub(crate) fn established(
        &mut self,
        wanted: Wanted,
        mut each: impl FnMut(&InetResponse) -> bool,
    ) -> io::Result<()> {
        let mut goes_on = true;
        for family in [AF_INET, AF_INET6] {
            if goes_on {
                self.dump(family, StateFlags::ESTABLISHED, wanted, &mut |response| {
                    goes_on = each(response);
                    goes_on
                })?;
            }
        }
        Ok(())
    }

    fn dump(
        &mut self,
        family: u8,
        states: StateFlags,
        wanted: Wanted,
        each: &mut dyn FnMut(&InetResponse) -> bool,
    ) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        (socket_id.source_port, socket_id.destination_port) = (wanted.local_port, wanted.remote_port);
        let extensions = if wanted.info { ExtensionFlags::INFO } else { ExtensionFlags::empty() };
        let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.0.send(&buffer, 0)?;
        let mut received = Vec::with_capacity(RECEIVE_BYTES);
        loop {
            received.clear();
            self.0.recv(&mut received, 0)?;
            let mut rest = received.as_slice();
            while rest.len() >= 16 {
                let len = u32::from_ne_bytes(rest[..4].try_into().expect("four bytes")) as usize;
                if len < 16 || len > rest.len() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of sock_diag that is cut short"));
                }
                // What one message says may be unknown to us; the others are read.
                if let Ok(message) = NetlinkMessage::<SockDiagMessage>::deserialize(&rest[..len]) {
                    match message.payload {
                        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) if !each(&response) => {
                            // The rest of the dump would answer the next question: this socket is done.
                            *self = Self::open()?;
                            return Ok(());
                        }
                        NetlinkPayload::Done(_) => return Ok(()),
                        NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                        _ => {}
                    }
                }
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// An IPv4 address as such, also where a socket of both families has it.
pub(crate) fn bare(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        v4 => v4,
    }
}
