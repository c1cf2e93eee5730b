//! Established connections to this machine's web servers, with what came and went over each: `sock_diag`(7).
//!
//! The sum of all TCP sockets in `/proc/net/sockstat` is read first: on a calm machine nothing else is.

use std::io;

use netlink_packet_sock_diag::inet::InetResponse;
use netlink_packet_sock_diag::inet::nlas::Nla;

use crate::engine::web::{Connection, ConnectionReading};
use crate::sockets::{Sockets, Wanted, bare};

/// Connections that one look takes.
const MAX_CONNECTIONS: usize = 65_536;
/// Sockets that one look goes through, connections of other ports included.
const MAX_SOCKETS: usize = 1_000_000;

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
    let mut sockets = Sockets::open()?;
    let mut reading = ConnectionReading::default();
    let mut listening = sockets.listening()?;
    listening.retain(|port| ports.contains(port));
    if listening.is_empty() {
        return Ok(Some(reading));
    }
    let mut seen = 0;
    sockets.established(Wanted { info: true, ..Wanted::default() }, |response| {
        seen += 1;
        if reading.connections.len() >= MAX_CONNECTIONS || seen > MAX_SOCKETS {
            reading.truncated = true;
            return false;
        }
        if listening.contains(&response.header.socket_id.source_port) {
            reading.connections.extend(connection(response));
        }
        true
    })?;
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

/// What is asked of a socket; nothing where the kernel is too old to say it (before 4.1).
fn connection(response: &InetResponse) -> Option<Connection> {
    let id = &response.header.socket_id;
    let info = response.nlas.iter().find_map(|nla| match nla {
        Nla::TcpInfo(bytes) => Some(bytes),
        _ => None,
    })?;
    let number = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
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
