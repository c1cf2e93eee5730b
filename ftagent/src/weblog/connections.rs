//! Established connections to this machine's web servers, with what came and went over each: `sock_diag`(7).
//!
//! The sum of all TCP sockets in `/proc/net/sockstat` is read first: on a calm machine nothing else is.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::TimeVal;

use crate::engine::web::{Connection, ConnectionReading};

/// Connections that one look takes.
const MAX_CONNECTIONS: usize = 65_536;
/// Sockets that one look goes through, connections of other ports included.
const MAX_SOCKETS: usize = 1_000_000;
/// The kernel answers at once; this is for the day it does not.
const PATIENCE_SECS: i64 = 2;
/// Larger than any single message of a dump.
const RECEIVE_BYTES: usize = 64 << 10;

/// Places in the kernel's `struct tcp_info`, which only ever grows at its end.
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;

/// Looks at connections to listening sockets on `ports`, unless the machine has fewer TCP sockets than `least`: then
/// the answer is `None`. The network namespace is that of the calling thread.
///
/// # Errors
/// The kernel's, such as a lack of `sock_diag`.
pub fn look(ports: &[u16], least: u64) -> io::Result<Option<ConnectionReading>> {
    if tcp_sockets()? < least {
        return Ok(None);
    }
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_SECS, 0))?;
    let mut reading = ConnectionReading::default();
    let mut listening = HashSet::new();
    for family in [AF_INET, AF_INET6] {
        let states = 1 << TCP_LISTEN;
        dump(&mut socket, family, StateFlags::from_bits_truncate(states), |response| {
            listening.insert(response.header.socket_id.source_port);
            true
        })?;
    }
    listening.retain(|port| ports.contains(port));
    if listening.is_empty() {
        return Ok(Some(reading));
    }
    for family in [AF_INET, AF_INET6] {
        let mut sockets = 0;
        dump(&mut socket, family, StateFlags::ESTABLISHED, |response| {
            sockets += 1;
            if reading.connections.len() >= MAX_CONNECTIONS || sockets > MAX_SOCKETS {
                reading.truncated = true;
                return false;
            }
            if listening.contains(&response.header.socket_id.source_port) {
                reading.connections.extend(connection(response));
            }
            true
        })?;
        if reading.truncated {
            break;
        }
    }
    Ok(Some(reading))
}

/// TCP sockets of this network namespace that are in use.
fn tcp_sockets() -> io::Result<u64> {
    let mut sum = 0;
    for (path, prefix) in
        [("/proc/thread-self/net/sockstat", "TCP: inuse "), ("/proc/thread-self/net/sockstat6", "TCP6: inuse ")]
    {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && prefix.starts_with("TCP6") => continue,
            Err(error) => return Err(error),
        };
        let line = text.lines().find_map(|line| line.strip_prefix(prefix));
        sum += line.and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

/// Asks for all TCP sockets of `family` in `states`; `each` says whether it wants more.
fn dump(
    socket: &mut Socket,
    family: u8,
    states: StateFlags,
    mut each: impl FnMut(&InetResponse) -> bool,
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::INFO, states, socket_id };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    socket.send(&buffer, 0)?;
    let mut received = Vec::with_capacity(RECEIVE_BYTES);
    loop {
        received.clear();
        socket.recv(&mut received, 0)?;
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
                        return renew(socket);
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

fn renew(socket: &mut Socket) -> io::Result<()> {
    *socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(setsockopt(socket, ReceiveTimeout, &TimeVal::new(PATIENCE_SECS, 0))?)
}

/// What is asked of a socket; nothing where the kernel is too old to say it (before 4.1).
fn connection(response: &InetResponse) -> Option<Connection> {
    let id = &response.header.socket_id;
    let info = response.nlas.iter().find_map(|nla| match nla {
        Nla::TcpInfo(bytes) => Some(bytes),
        _ => None,
    })?;
    let number = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    let bare = |ip: IpAddr| match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        v4 => v4,
    };
    Some(Connection {
        cookie: u64::from_ne_bytes(id.cookie),
        target: bare(id.source_address),
        port: id.source_port,
        source: bare(id.destination_address),
        received: number(BYTES_RECEIVED)?,
        acked: number(BYTES_ACKED)?,
        unsent: response.header.send_queue,
    })
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
