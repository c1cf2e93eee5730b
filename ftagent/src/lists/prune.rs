//! Sorted prefixes, each once, none inside another; and which of them meet prefixes that lists should not.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Spared;
use super::report::{Report, SparedHit};

/// A prefix as its first and last address.
pub(super) trait Bounds: Copy + Ord + Into<IpNet> {
    fn first(&self) -> u128;
    fn last(&self) -> u128;
}

impl Bounds for Ipv4Net {
    fn first(&self) -> u128 {
        u32::from(self.network()).into()
    }

    fn last(&self) -> u128 {
        u32::from(self.broadcast()).into()
    }
}

impl Bounds for Ipv6Net {
    fn first(&self) -> u128 {
        self.network().into()
    }

    fn last(&self) -> u128 {
        self.broadcast().into()
    }
}

/// Sorts, and drops duplicates and what a wider prefix covers, counting both.
pub(super) fn prune<N: Bounds>(nets: &mut Vec<N>, report: &mut Report) {
    // Wider ones come before those inside them: by first address, then by length.
    nets.sort_unstable();
    let mut before: Option<N> = None;
    let mut reaches: Option<u128> = None;
    nets.retain(|net| {
        if before.replace(*net) == Some(*net) {
            report.duplicates += 1;
            return false;
        }
        if reaches.is_some_and(|last| net.last() <= last) {
            report.covered += 1;
            return false;
        }
        reaches = Some(net.last());
        true
    });
    nets.shrink_to_fit();
}

/// Reports which of `nets`, pruned, meet `spared`.
pub(super) fn note_spared<N: Bounds>(nets: &[N], first: u128, last: u128, spared: &Spared, report: &mut Report) {
    let start = nets.partition_point(|net| net.last() < first);
    let count = nets[start..].partition_point(|net| net.first() <= last);
    let hits = nets[start..start + count].iter().map(|net| SparedHit {
        listed: (*net).into(),
        spared: spared.prefix,
        why: spared.why.to_owned(),
    });
    report.note_spared(count as u64, hits);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    #[test]
    fn duplicates_and_covered_prefixes_are_counted_apart() {
        let mut report = Report::default();
        let mut list = nets(&["10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/16", "192.0.2.1/32", "192.0.2.1/32", "9.0.0.0/8"]);
        prune(&mut list, &mut report);
        assert_eq!(list, nets(&["9.0.0.0/8", "10.0.0.0/8", "192.0.2.1/32"]));
        assert_eq!((report.duplicates, report.covered), (2, 1));
    }

    #[test]
    fn listed_prefixes_around_and_inside_a_spared_one_are_said() {
        for (listed, spared, hits) in [
            (&["10.0.0.0/8"][..], "10.1.2.3/32", 1),
            (&["10.1.2.3/32", "10.1.2.9/32", "10.1.3.1/32"], "10.1.2.0/24", 2),
            (&["10.1.1.0/24", "10.1.3.0/24"], "10.1.2.0/24", 0),
            (&[], "10.1.2.0/24", 0),
        ] {
            let mut report = Report::default();
            let prefix: Ipv4Net = spared.parse().expect(spared);
            let spared = Spared { prefix: prefix.into(), why: "allowlist" };
            note_spared(&nets(listed), prefix.first(), prefix.last(), &spared, &mut report);
            assert_eq!((report.spared, report.spared_first.len()), (hits, hits as usize), "{listed:?}");
        }
    }

    proptest! {
        #[test]
        fn pruning_changes_no_address(entries in prop::collection::vec((0u32..1 << 12, 20u8..=32), 0..40), low in 0u32..1 << 12) {
            let all: Vec<Ipv4Net> =
                entries.iter().map(|(low, length)| Ipv4Net::new((*low).into(), *length).expect("a length").trunc()).collect();
            let mut pruned = all.clone();
            let mut report = Report::default();
            prune(&mut pruned, &mut report);
            let address = std::net::Ipv4Addr::from(low);
            prop_assert_eq!(all.iter().any(|n| n.contains(&address)), pruned.iter().any(|n| n.contains(&address)));
            prop_assert_eq!(pruned.len() as u64 + report.duplicates + report.covered, all.len() as u64);
            prop_assert!(pruned.windows(2).all(|w| w[0].last() < w[1].first()));
        }
    }
}
