//! What reflectors and the TCP gate are told, and how much was learnt.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ftagent_common::abi::{FlowSet, GateSettings, GatedTarget, has_port};
use ftagent_common::packet::Ip;
use ftagent_common::services;

use super::table::{Table, TableError, TrieKey};

const SEC: u64 = 1_000_000_000;
/// After so long every question that still has a right to its answer was learnt.
const QUERIES_WHOLE_NS: u64 = 30 * SEC;

/// The gate's own maps.
pub struct GateMaps {
    pub settings: Table<u32, GateSettings>,
    pub gated: Table<TrieKey<Ip>, GatedTarget>,
    flows: Table<u32, FlowSet>,
    queries: Table<u32, FlowSet>,
}

/// Flows that have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Learnt {
    pub connections: u64,
    pub queries: u64,
}

impl GateMaps {
    /// Opens the maps pinned in `dir`.
    ///
    /// # Errors
    /// When one is missing or has another layout.
    pub fn open(dir: &Path) -> Result<Self, TableError> {
        Ok(Self {
            settings: Table::open(dir, "GATE", 1)?,
            gated: Table::open(dir, "GATED", 1)?,
            flows: Table::open(dir, "FLOWS", 1)?,
            queries: Table::open(dir, "QUERIES", 1)?,
        })
    }

    /// Counts what was learnt. Reads 3 MiB: not for every tick.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn learnt(&self, now_mono_ns: u64) -> Result<Learnt, TableError> {
        let count = |table: &Table<u32, FlowSet>| -> Result<u64, TableError> {
            let mut alive = 0;
            table.for_each(|_, sets| alive += sets[0].alive(now_mono_ns) as u64)?;
            Ok(alive)
        };
        Ok(Learnt { connections: count(&self.flows)?, queries: count(&self.queries)? })
    }
}

/// What the operator wants of reflectors and the gate, as far as the kernel must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// UDP source ports of reflectors besides the well-known ones.
    pub reflector_ports: Vec<u16>,
    /// UDP ports that are served here or behind this node, besides those that a socket is bound to.
    pub served_ports: Vec<u16>,
    /// How long is learnt before a TCP segment of no known flow may be dropped.
    pub warmup_ns: u64,
}

/// Brings `there` to what is wanted at `now_mono_ns`.
///
/// What was drawn or begun stays: the secret, and the time that learning started. `bound` are the UDP ports that a
/// socket of this node is bound to; of them those count that reflectors answer from, since no other source port is
/// ever judged. `secret` is asked for only once in the life of the tables.
pub fn settings(
    there: &GateSettings,
    wanted: &Wanted,
    bound: &[u16],
    is_learning: bool,
    now_mono_ns: u64,
    secret: impl FnOnce() -> [u64; 2],
) -> GateSettings {
    let mut next = GateSettings { reflectors: [0; _], served: [0; _], ..*there };
    if next.secret[0] == 0 {
        // 0 stands for "not drawn yet".
        next.secret = secret().map(|word| word | 1);
    }
    let known = (1..=u16::MAX).filter(|port| services::is_reflector_port(*port));
    known.chain(wanted.reflector_ports.iter().copied()).for_each(|port| set_port(&mut next.reflectors, port));
    for port in bound.iter().filter(|port| has_port(&next.reflectors, **port)).chain(&wanted.served_ports) {
        set_port(&mut next.served, *port);
    }
    if !is_learning {
        (next.flows_from_ns, next.queries_from_ns) = (0, 0);
    } else if next.queries_from_ns == 0 {
        next.flows_from_ns = now_mono_ns + wanted.warmup_ns;
        next.queries_from_ns = now_mono_ns + QUERIES_WHOLE_NS;
    }
    next
}

fn set_port(bitmap: &mut [u64], port: u16) {
    bitmap[usize::from(port >> 6)] |= 1 << (port & 63);
}

/// UDP ports that sockets of this network namespace are bound to on an address that strangers can reach.
pub fn bound_udp_ports() -> Vec<u16> {
    let mut ports: Vec<u16> = ["/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| bound(&text))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The local ports in `/proc/net/udp` or `udp6`, but those of loopback addresses and of connected sockets.
fn bound(text: &str) -> Vec<u16> {
    let line = |line: &str| -> Option<u16> {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote) = (words.next()?, words.next()?);
        let (address, port) = local.split_once(':')?;
        let is_connected = remote.split_once(':')?.1 != "0000";
        (!is_connected && !is_loopback(address)).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Addresses are printed as words in the machine's order.
fn is_loopback(hex: &str) -> bool {
    let word = |at: usize| hex.get(at..at + 8).and_then(|w| u32::from_str_radix(w, 16).ok()).map(u32::to_ne_bytes);
    if hex.len() == 8 {
        return word(0).is_some_and(|octets| Ipv4Addr::from(octets).is_loopback());
    }
    let octets: Option<Vec<[u8; 4]>> = (0..4).map(|i| word(i * 8)).collect();
    let octets: Option<[u8; 16]> = octets.and_then(|words| words.concat().try_into().ok());
    octets.is_some_and(|octets| Ipv6Addr::from(octets).is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted { reflector_ports: vec![4_242], served_ports: vec![123], warmup_ns: 300 * SEC }
    }

    #[test]
    fn what_was_drawn_and_begun_stays() {
        let first = settings(&GateSettings::default(), &wanted(), &[53, 8_080], true, 7 * SEC, || [2, 4]);
        assert_eq!(first.secret, [3, 5]);
        assert_eq!((first.flows_from_ns, first.queries_from_ns), (307 * SEC, 37 * SEC));
        assert!(has_port(&first.reflectors, 53) && has_port(&first.reflectors, 4_242));
        assert!(!has_port(&first.reflectors, 443));
        assert!(has_port(&first.served, 53) && has_port(&first.served, 123));
        assert!(!has_port(&first.served, 8_080), "no reflector answers from there");
        let second = settings(&first, &wanted(), &[], true, 9_999 * SEC, || unreachable!("drawn already"));
        assert_eq!((second.secret, second.flows_from_ns), (first.secret, first.flows_from_ns));
        assert!(!has_port(&second.served, 53), "who no longer serves is protected again");
    }

    #[test]
    fn learning_that_stopped_begins_anew() {
        let first = settings(&GateSettings::default(), &wanted(), &[], true, SEC, || [2, 4]);
        let stopped = settings(&first, &wanted(), &[], false, 2 * SEC, || unreachable!("drawn already"));
        assert_eq!((stopped.flows_from_ns, stopped.queries_from_ns), (0, 0));
        let again = settings(&stopped, &wanted(), &[], true, 900 * SEC, || unreachable!("drawn already"));
        assert_eq!(again.flows_from_ns, 1_200 * SEC);
    }

    #[test]
    fn bound_ports_are_those_that_strangers_reach() {
        let text = "  sl  local_address rem_address   st\n\
            1: 00000000:007B 00000000:0000 07 00000000:00000000\n\
            2: 0100007F:0035 00000000:0000 07 00000000:00000000\n\
            3: 0100000A:9C40 08080808:0035 01 00000000:00000000\n";
        let six = "  sl  local_address remote_address st\n\
            1: 00000000000000000000000000000000:007B 00000000000000000000000000000000:0000 07\n\
            2: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07\n";
        if cfg!(target_endian = "little") {
            assert_eq!((bound(text), bound(six)), (vec![123], vec![123]));
        }
    }
}
