//! IPv6 prefixes by the kernel table that holds them: hashes for the two lengths that lists are made of, a trie for the
//! others.

use ipnet::Ipv6Net;

/// A set of IPv6 prefixes, each table sorted and without duplicates. Looked up in the order of the fields, the first that
/// answers is the longest match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split6 {
    /// /128, by address.
    pub addresses: Vec<(u128, u16)>,
    /// /65 to /127: few lists have any, and a trie that is empty need not be asked.
    pub longer: Vec<(Ipv6Net, u16)>,
    /// /64, by the first half of the address.
    pub networks: Vec<(u64, u16)>,
    /// /0 to /63.
    pub shorter: Vec<(Ipv6Net, u16)>,
}

impl Split6 {
    /// Splits `prefixes`; of equal prefixes the one with the smallest value holds. Host bits are ignored.
    pub fn new(prefixes: impl IntoIterator<Item = (Ipv6Net, u16)>) -> Self {
        let mut split = Self::default();
        for (prefix, value) in prefixes {
            let prefix = prefix.trunc();
            let address = u128::from(prefix.network());
            match prefix.prefix_len() {
                128 => split.addresses.push((address, value)),
                65..=127 => split.longer.push((prefix, value)),
                64 => split.networks.push(((address >> 64) as u64, value)),
                _ => split.shorter.push((prefix, value)),
            }
        }
        first_of_equal(&mut split.addresses);
        first_of_equal(&mut split.longer);
        first_of_equal(&mut split.networks);
        first_of_equal(&mut split.shorter);
        split
    }

    /// Every prefix with its value.
    pub fn prefixes(&self) -> impl Iterator<Item = (Ipv6Net, u16)> + '_ {
        let net = |address: u128, len: u8| Ipv6Net::new_assert(address.into(), len);
        let addresses = self.addresses.iter().map(move |(address, value)| (net(*address, 128), *value));
        let networks = self.networks.iter().map(move |(half, value)| (net(u128::from(*half) << 64, 64), *value));
        addresses.chain(networks).chain(self.longer.iter().copied()).chain(self.shorter.iter().copied())
    }

    /// Entries of all tables.
    pub fn len(&self) -> usize {
        self.addresses.len() + self.longer.len() + self.networks.len() + self.shorter.len()
    }

    /// No prefix at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Sorts by key, then value, and keeps the first of each key.
fn first_of_equal<K: Ord + Copy>(entries: &mut Vec<(K, u16)>) {
    entries.sort_unstable();
    entries.dedup_by_key(|(key, _)| *key);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(entries: &[(&str, u16)]) -> Split6 {
        Split6::new(entries.iter().map(|(text, value)| (text.parse().expect(text), *value)))
    }

    /// The kernel's order of look-ups.
    fn lookup(split: &Split6, address: u128) -> Option<u16> {
        let trie = |table: &[(Ipv6Net, u16)]| {
            let hits = table.iter().filter(|(prefix, _)| prefix.contains(&std::net::Ipv6Addr::from(address)));
            hits.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, value)| *value)
        };
        let exact = split.addresses.iter().find(|(key, _)| *key == address).map(|(_, value)| *value);
        let half = (address >> 64) as u64;
        let network = || split.networks.iter().find(|(key, _)| *key == half).map(|(_, value)| *value);
        exact.or_else(|| trie(&split.longer)).or_else(network).or_else(|| trie(&split.shorter))
    }

    #[test]
    fn every_length_has_its_table() {
        let split = split(&[("2001:db8::1/128", 1), ("2001:db8::/127", 2), ("2001:db8::/65", 3), ("2001:db8::/64", 4)]);
        assert_eq!((split.addresses.len(), split.longer.len(), split.networks.len()), (1, 2, 1));
        for length in 0..64 {
            let net = Ipv6Net::new(std::net::Ipv6Addr::LOCALHOST, length).expect("a length");
            assert_eq!(Split6::new([(net, 1)]).shorter.len(), 1, "/{length}");
        }
    }

    #[test]
    fn of_equal_prefixes_the_smallest_value_holds() {
        let split = split(&[("2001:db8::1/64", 7), ("2001:db8::/64", 3), ("2001:db8::2/64", 5)]);
        assert_eq!((split.len(), split.networks[0]), (1, (0x2001_0db8_0000_0000, 3)));
    }

    #[test]
    fn nothing_is_empty() {
        assert!(split(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn the_order_of_tables_is_longest_match(
            entries in prop::collection::vec((0u128..4, 120u8..=128, any::<u16>(), any::<bool>()), 0..20),
            low in 0u128..512,
        ) {
            // Half of the prefixes have their length cut by 64 bits, so that both sides of /64 meet in one address.
            let base = 0x2001_0db8u128 << 96;
            let entries: Vec<(Ipv6Net, u16)> = entries.iter().map(|(host, length, value, is_short)| {
                let length = if *is_short { length - 64 } else { *length };
                (Ipv6Net::new((base | (host * 37)).into(), length).expect("a length").trunc(), *value)
            }).collect();
            let address = base | low;
            let hits = entries.iter().filter(|(prefix, _)| prefix.contains(&std::net::Ipv6Addr::from(address)));
            let expected = hits.min_by_key(|(prefix, value)| (128 - prefix.prefix_len(), *value)).map(|(_, value)| *value);
            prop_assert_eq!(lookup(&Split6::new(entries.iter().copied()), address), expected);
        }
    }
}
