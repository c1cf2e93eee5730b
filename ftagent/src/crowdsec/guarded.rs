//! A set of prefixes that many others are compared with. Pure.

use ipnet::IpNet;

/// Prefixes as ranges of addresses: sorted, none touching another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Guarded {
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl Guarded {
    pub(super) fn new<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut set = Self::default();
        for prefix in prefixes {
            let family = if prefix.addr().is_ipv4() { &mut set.v4 } else { &mut set.v6 };
            family.push(bounds(prefix));
        }
        merge(&mut set.v4);
        merge(&mut set.v6);
        set
    }

    /// Whether an address of `prefix` is in the set.
    pub(super) fn meets(&self, prefix: &IpNet) -> bool {
        let (first, last) = bounds(prefix);
        self.beside(prefix, first).is_some_and(|(start, _)| start <= last)
    }

    /// Whether every address of `prefix` is.
    pub(super) fn covers(&self, prefix: &IpNet) -> bool {
        let (first, last) = bounds(prefix);
        self.beside(prefix, first).is_some_and(|(start, end)| start <= first && last <= end)
    }

    /// The first range that does not end before `first`.
    fn beside(&self, prefix: &IpNet, first: u128) -> Option<(u128, u128)> {
        let family = if prefix.addr().is_ipv4() { &self.v4 } else { &self.v6 };
        family.get(family.partition_point(|(_, end)| *end < first)).copied()
    }
}

/// The first and the last address.
pub(super) fn bounds(prefix: &IpNet) -> (u128, u128) {
    match prefix {
        IpNet::V4(net) => (u32::from(net.network()).into(), u32::from(net.broadcast()).into()),
        IpNet::V6(net) => (net.network().into(), net.broadcast().into()),
    }
}

fn merge(ranges: &mut Vec<(u128, u128)>) {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges.drain(..) {
        match merged.last_mut() {
            Some(last) if start <= last.1.saturating_add(1) => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    *ranges = merged;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect(text)
    }

    #[test]
    fn neighbours_cover_what_lies_across_them() {
        let set = Guarded::new(&["192.0.2.0/25", "192.0.2.128/25", "2001:db8::/32", "192.0.2.7/32"].map(net));
        for (prefix, meets, covers) in [
            ("192.0.2.0/24", true, true),
            ("192.0.2.7/32", true, true),
            ("192.0.0.0/16", true, false),
            ("192.0.3.0/24", false, false),
            ("192.0.1.255/32", false, false),
            ("2001:db8:1::/48", true, true),
            ("2001::/16", true, false),
            ("2001:db9::/32", false, false),
            ("::/0", true, false),
        ] {
            assert_eq!((set.meets(&net(prefix)), set.covers(&net(prefix))), (meets, covers), "{prefix}");
        }
        assert!(!Guarded::default().meets(&net("0.0.0.0/0")));
    }

    proptest! {
        #[test]
        fn it_says_what_comparing_with_each_says(
            set in prop::collection::vec((0u32..1 << 10, 22u8..=32), 0..20), prefix in (0u32..1 << 10, 22u8..=32),
        ) {
            let net = |(low, len): (u32, u8)| IpNet::new(std::net::IpAddr::V4(low.into()), len).expect("a length").trunc();
            let set: Vec<IpNet> = set.into_iter().map(net).collect();
            let prefix = net(prefix);
            let meets = set.iter().any(|other| other.contains(&prefix) || prefix.contains(other));
            prop_assert_eq!(Guarded::new(&set).meets(&prefix), meets);
            let (first, last) = bounds(&prefix);
            let is_in = |address: u128| set.iter().any(|other| bounds(other).0 <= address && address <= bounds(other).1);
            prop_assert_eq!(Guarded::new(&set).covers(&prefix), (first..=last).all(is_in));
        }
    }
}
