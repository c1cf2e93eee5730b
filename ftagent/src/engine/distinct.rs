//! How many distinct sources send to a target: the kernel's estimate, epoch by epoch.
//!
//! The kernel begins anew every 2^30 ns, so that what it has noted of the epoch that runs says too little. An epoch that
//! is over says it all, but for what came between its end and the last reading before.

use std::net::IpAddr;

use ftagent_common::abi::TargetCounters;
use ipnet::IpNet;

use super::Engine;
use super::input::Now;

/// log2 of an epoch in nanoseconds; see [`TargetCounters::epoch`].
const EPOCH_SHIFT: u32 = 30;

fn epoch(now_ns: u64) -> u32 {
    (now_ns >> EPOCH_SHIFT) as u32
}

/// What the epoch before the newest one said of a target.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Distinct {
    before: Option<(u32, f64)>,
}

impl Distinct {
    /// Keeps what `last` says if `new` is of another epoch.
    pub(super) fn observe(&mut self, last: &TargetCounters, new: &TargetCounters) {
        if last.epoch != new.epoch {
            self.before = Some((last.epoch, last.distinct_sources()));
        }
    }

    /// Distinct sources in about a second up to now; 0 when there were none or nobody counts them.
    pub(super) fn estimate(&self, last: &TargetCounters, now_ns: u64) -> u64 {
        let age = |epoch_then: u32| epoch(now_ns).wrapping_sub(epoch_then);
        let newest = if age(last.epoch) <= 1 { last.distinct_sources() } else { 0.0 };
        let before = self.before.filter(|(then, _)| age(*then) == 1).map_or(0.0, |(_, sources)| sources);
        newest.max(before).round() as u64
    }
}

impl Engine {
    /// Raises what active incidents know of their distinct sources. One source of several targets of a prefix counts
    /// once: the kernel notes it alike for all of them.
    pub(super) fn count_sources(&mut self, now: Now) {
        let targets = &self.targets;
        for incident in self.incidents.values_mut().filter(|incident| incident.is_active()) {
            let mut sum = TargetCounters::default();
            for (_, target) in targets.range(first(&incident.target)..=last(&incident.target)) {
                sum += target.last();
            }
            if epoch(now.mono_ns).wrapping_sub(sum.epoch) > 1 {
                continue;
            }
            let sources = sum.distinct_sources().round() as u64;
            if sources > incident.distinct_sources.unwrap_or(0) {
                incident.distinct_sources = Some(sources);
            }
        }
    }
}

fn first(net: &IpNet) -> IpAddr {
    net.network()
}

fn last(net: &IpNet) -> IpAddr {
    net.broadcast()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counters after `sources` sources in this epoch, from the `from`-th on.
    fn noted(epoch: u32, from: u64, sources: u64) -> TargetCounters {
        let mut counters = TargetCounters::default();
        for source in from..from + sources {
            // What a keyed hash gives: bits that have nothing to do with each other.
            let hash = (source + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            counters.note_source((hash ^ hash >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20, epoch);
        }
        counters
    }

    const fn at(epoch: u64) -> u64 {
        (epoch << EPOCH_SHIFT) + 1_000
    }

    fn is_about(estimate: u64, sources: u64) -> bool {
        estimate.abs_diff(sources) * 3 < sources
    }

    #[test]
    fn an_epoch_that_just_began_does_not_hide_the_one_before() {
        let mut distinct = Distinct::default();
        let (old, new) = (noted(7, 0, 20_000), noted(8, 0, 5));
        assert!(is_about(distinct.estimate(&old, at(7)), 20_000), "while it runs");
        distinct.observe(&old, &new);
        assert!(is_about(distinct.estimate(&new, at(8)), 20_000), "the whole epoch is known");
        let next = noted(9, 0, 5);
        distinct.observe(&new, &next);
        assert!(distinct.estimate(&next, at(9)) < 20, "the flood is over");
    }

    #[test]
    fn a_target_that_nobody_sends_to_has_no_sources() {
        let mut distinct = Distinct::default();
        let old = noted(7, 0, 1_000);
        distinct.observe(&TargetCounters::default(), &old);
        assert!(is_about(distinct.estimate(&old, at(8)), 1_000), "the last epoch");
        assert_eq!(distinct.estimate(&old, at(9)), 0);
        assert_eq!(Distinct::default().estimate(&TargetCounters::default(), at(7)), 0);
    }

    #[test]
    fn the_addresses_of_a_target_are_found_in_order() {
        for (net, expected) in [
            ("192.0.2.0/24", ("192.0.2.0", "192.0.2.255")),
            ("192.0.2.7/32", ("192.0.2.7", "192.0.2.7")),
            ("192.0.2.6/31", ("192.0.2.6", "192.0.2.7")),
            ("2001:db8::/64", ("2001:db8::", "2001:db8::ffff:ffff:ffff:ffff")),
        ] {
            let net: IpNet = net.parse().expect(net);
            assert_eq!((first(&net).to_string(), last(&net).to_string()), (expected.0.into(), expected.1.into()));
        }
    }
}
