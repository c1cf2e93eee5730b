//! Heavy sources, as the kernel's sketch finds them: every source is counted for about a second, and those that sent
//! enough are counted by themselves from then on.

use std::collections::HashMap;
use std::net::IpAddr;

use ftagent_common::abi::{SOURCE_SILENT_NS, SourceCounters};
use ftagent_common::packet::Ip;

use super::datapath::EPOCH_SHIFT;

/// Sources counted in one epoch; those beyond are not found heavy in it.
const MAX_COUNTED: usize = 1 << 18;

pub(super) struct Sources {
    promote_pps: u32,
    max_heavy: usize,
    epoch: u64,
    /// Packets in this epoch and the one before.
    now: HashMap<Ip, u32>,
    before: HashMap<Ip, u32>,
    heavy: HashMap<Ip, SourceCounters>,
}

impl Sources {
    pub(super) fn new(promote_pps: u32, max_heavy: usize) -> Self {
        Self { promote_pps, max_heavy, epoch: 0, now: HashMap::new(), before: HashMap::new(), heavy: HashMap::new() }
    }

    /// Counts a packet.
    pub(super) fn count(&mut self, src: Ip, bytes: u64, dropped: bool, now_ns: u64) {
        let key = if src.is_v4() { src } else { Ip([src.0[0], src.0[1], 0, 0]) };
        if let Some(counters) = self.heavy.get_mut(&key) {
            counters.last_seen_ns = now_ns;
            if dropped {
                counters.flow.dropped.add(bytes)
            } else {
                counters.flow.passed.add(bytes)
            }
            return;
        }
        let epoch = now_ns >> EPOCH_SHIFT;
        if epoch != self.epoch {
            self.before = if epoch == self.epoch + 1 { std::mem::take(&mut self.now) } else { HashMap::new() };
            self.now.clear();
            self.epoch = epoch;
        }
        if self.now.len() >= MAX_COUNTED && !self.now.contains_key(&key) {
            return;
        }
        let left = 1_024 - ((now_ns >> (EPOCH_SHIFT - 10)) & 1_023);
        let before = (u64::from(self.before.get(&key).copied().unwrap_or(0)) * left) >> 10;
        let packets = self.now.entry(key).or_default();
        *packets += 1;
        if u64::from(*packets) + before >= u64::from(self.promote_pps) && self.heavy.len() < self.max_heavy {
            let mut counters = SourceCounters { key, last_seen_ns: now_ns, ..SourceCounters::default() };
            if dropped {
                counters.flow.dropped.add(bytes)
            } else {
                counters.flow.passed.add(bytes)
            }
            self.heavy.insert(key, counters);
        }
    }

    /// Those that were heard of lately, in the order of their addresses.
    pub(super) fn heavy(&mut self, now_ns: u64) -> Vec<(IpAddr, SourceCounters)> {
        self.heavy.retain(|_, counters| now_ns.saturating_sub(counters.last_seen_ns) <= SOURCE_SILENT_NS);
        let mut all: Vec<_> = self.heavy.iter().map(|(ip, counters)| (IpAddr::from(*ip), *counters)).collect();
        all.sort_unstable_by_key(|(ip, _)| *ip);
        all
    }
}

/// The hash that distinct sources are estimated from: bits that have nothing to do with each other.
pub(super) fn hash(ip: Ip) -> u64 {
    let mix = |x: u64| {
        let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    };
    let [a, b, c, d] = ip.0.map(u64::from);
    mix(mix(a << 32 | b).wrapping_add(c << 32 | d).wrapping_add(0x9e37_79b9_7f4a_7c15)) >> 26
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: u64 = 1_000_000_000;

    fn ip(last: u32) -> Ip {
        Ip::v4(last.to_be_bytes())
    }

    #[test]
    fn a_source_is_heavy_from_the_rate_on_and_forgotten_when_silent() {
        let mut sources = Sources::new(500, 10);
        for i in 0..499 {
            sources.count(ip(7), 100, false, SEC + i);
        }
        assert!(sources.heavy(SEC).is_empty());
        for i in 0..10 {
            sources.count(ip(7), 100, i % 2 == 0, SEC + 500 + i);
        }
        let [(address, counters)] = sources.heavy(SEC)[..] else { panic!("one heavy source") };
        assert_eq!(address, IpAddr::from(ip(7)));
        assert_eq!(counters.flow.total().packets, 10, "counted from when it is heavy");
        assert!(sources.heavy(SEC + 61 * SEC).is_empty());
    }

    #[test]
    fn forged_sources_are_bounded_and_none_is_heavy() {
        let mut sources = Sources::new(500, 10);
        for i in 0..400_000 {
            sources.count(ip(i), 60, false, SEC);
        }
        assert!(sources.now.len() <= MAX_COUNTED);
        assert!(sources.heavy(SEC).is_empty());
    }

    #[test]
    fn addresses_of_one_network_of_ipv6_count_together() {
        let mut sources = Sources::new(500, 10);
        for i in 0..500u32 {
            let octets = u128::to_be_bytes(0x2001_0db8 << 96 | u128::from(i));
            sources.count(Ip::v6(octets), 60, false, SEC);
        }
        assert_eq!(sources.heavy(SEC)[0].0.to_string(), "2001:db8::");
    }
}
