//! A list of blocked sources that is computed, so that the generator's program needs no table of it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The /4 in which all of them lie; nothing leaves the lab.
pub(super) const BASE: Ipv4Addr = Ipv4Addr::new(16, 0, 0, 0);

/// What the entries of a list are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// /24, /26, /28 and /32 in turn.
    Networks,
    /// Single addresses.
    Addresses,
}

/// So many sources, each in a /24 of its own, neighbours far apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    entries: Entries,
    count: u32,
}

impl Listed {
    /// The most that a list holds.
    pub const MAX: u32 = 1 << 20;

    /// A list of `count` entries, 1 to [`Self::MAX`]; what lies outside is brought inside.
    pub fn new(entries: Entries, count: u32) -> Self {
        Self { entries, count: count.clamp(1, Self::MAX) }
    }

    pub fn count(self) -> u32 {
        self.count
    }

    pub fn entries(self) -> Entries {
        self.entries
    }

    pub(super) fn class(self) -> u32 {
        if self.entries == Entries::Addresses { 3 } else { 0 }
    }

    /// Every entry.
    pub fn networks(self) -> impl Iterator<Item = Ipv4Net> {
        (0..self.count).map(move |i| self.network(i))
    }

    /// One entry; the BPF program computes the same.
    fn network(self, i: u32) -> Ipv4Net {
        let slot = i.wrapping_mul(0x9e37_79b1) & (Self::MAX - 1);
        let class = (i & 3) | self.class();
        let host_bits = if class == 3 { 0 } else { 8 - 2 * class };
        let anchor = (slot.wrapping_mul(167) + 13) & 0xff & !((1 << host_bits) - 1);
        let address = Ipv4Addr::from(u32::from(BASE) | (slot << 8) | anchor);
        Ipv4Net::new(address, 32 - host_bits as u8).expect("a prefix of 24 to 32 bits")
    }

    /// An address of the first entry.
    pub fn first(self) -> Ipv4Addr {
        self.network(0).addr()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_entry_is_a_network_and_none_comes_twice() {
        for (entries, lengths) in [(Entries::Networks, &[24, 26, 28, 32][..]), (Entries::Addresses, &[32])] {
            let all: Vec<Ipv4Net> = Listed::new(entries, 5_000).networks().collect();
            let around: HashSet<Ipv4Addr> =
                all.iter().map(|n| Ipv4Net::new(n.addr(), 24).expect("a /24").network()).collect();
            assert_eq!(around.len(), 5_000, "each lies in a /24 of its own");
            assert!(all.iter().all(|n| n.trunc() == *n && lengths.contains(&n.prefix_len())));
            assert!(all.iter().all(|n| n.addr().octets()[0] >> 4 == 1), "inside 16.0.0.0/4");
        }
    }

    #[test]
    fn a_list_has_a_smallest_and_a_largest_size() {
        assert_eq!(Listed::new(Entries::Networks, 0).count(), 1);
        assert_eq!(Listed::new(Entries::Networks, u32::MAX).count(), Listed::MAX);
    }
}
