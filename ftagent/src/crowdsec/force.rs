//! From bans to what the kernel is to drop: past the guard, without what wider ones cover, by when they end. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use ftagent_common::api::is_broad;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::guarded::{Guarded, bounds};
use super::keeper::Ban;
use super::stream::Why;
use super::{Spared, rule};
use crate::lists::{ListAction, ListInForce, LoadedList, Report, Stamp};

const SECOND_NS: u64 = 1_000_000_000;

/// What of the decisions is in force.
#[derive(Clone, Debug, Default)]
pub struct Decided {
    /// An empty list, then one for each bucket of ends.
    pub lists: Vec<ListInForce>,
    /// Grows with each change.
    pub revision: u64,
}

/// The prefixes that are to be dropped, and what became of the others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Forced {
    /// Sorted; each with when it ends. One inside another ends later than that.
    pub(super) prefixes: Vec<(IpNet, u64)>,
    /// Bans that are not in force, by why.
    pub(super) refused: BTreeMap<Why, u64>,
}

/// What of `bans` may be in force beside `spared`.
pub(super) fn force(bans: impl Iterator<Item = Ban>, spared: &Spared) -> Forced {
    let (allow, own) = (Guarded::new(&spared.allow), Guarded::new(&spared.own));
    let mut forced = Forced::default();
    for ban in bans {
        let why = if is_broad(&ban.prefix) {
            Some(Why::Broad)
        } else if own.meets(&ban.prefix) {
            Some(Why::Guarded)
        } else if allow.covers(&ban.prefix) {
            Some(Why::Allowlisted)
        } else {
            None
        };
        match why {
            Some(why) => *forced.refused.entry(why).or_default() += 1,
            None => forced.prefixes.push((ban.prefix, ban.ends_at_ns)),
        }
    }
    prune(&mut forced.prefixes);
    forced
}

/// Sorts, keeps of each prefix the ban that ends last, and drops those that one around them outlasts.
///
/// The kernel takes the longest match alone: one inside another that ended sooner would hide it until user space comes.
fn prune(prefixes: &mut Vec<(IpNet, u64)>) {
    // Wider ones first, and of equal ones that which ends last.
    prefixes.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    let mut around: Vec<(bool, u128, u64)> = Vec::new();
    prefixes.retain(|(prefix, ends_at_ns)| {
        let (is_v4, (first, last)) = (prefix.addr().is_ipv4(), bounds(prefix));
        while around.last().is_some_and(|(of_v4, end, _)| *of_v4 != is_v4 || *end < first) {
            around.pop();
        }
        if around.last().is_some_and(|(_, _, outlasts)| outlasts >= ends_at_ns) {
            return false;
        }
        around.push((is_v4, last, *ends_at_ns));
        true
    });
}

/// The prefixes as lists, each with an end that is not before those of its prefixes, and not much after them. The first
/// is empty and has no end: the rule that counts frames stays when the last decision goes.
pub(super) fn lists(prefixes: &[(IpNet, u64)], action: ListAction, now_ns: u64) -> Vec<ListInForce> {
    let mut buckets: BTreeMap<u64, (Vec<Ipv4Net>, Vec<Ipv6Net>)> = BTreeMap::from([(0, Default::default())]);
    for (prefix, ends_at_ns) in prefixes {
        let (v4, v6) = buckets.entry(rounded(*ends_at_ns, now_ns)).or_default();
        match prefix {
            IpNet::V4(net) => v4.push(*net),
            IpNet::V6(net) => v6.push(*net),
        }
    }
    let list = |(ends_at_ns, (v4, v6))| ListInForce {
        name: "crowdsec".to_owned(),
        rule: rule(),
        action,
        ends_at_ns,
        list: Arc::new(LoadedList { v4, v6, report: Report::default(), stamp: Stamp::default() }),
    };
    buckets.into_iter().map(list).collect()
}

/// The end rounded up: to 10 s within an hour, 5 minutes within a day, an hour within a month, a day within a year, and
/// else a year. User space takes each away at its own end; the kernel's is for when there is none.
fn rounded(ends_at_ns: u64, now_ns: u64) -> u64 {
    const HOUR: u64 = 3_600;
    const DAY: u64 = 24 * HOUR;
    let left = ends_at_ns.saturating_sub(now_ns) / SECOND_NS;
    let step = match left {
        0..HOUR => 10,
        HOUR..DAY => 300,
        DAY..2_592_000 => HOUR,
        2_592_000..31_536_000 => DAY,
        _ => 31_536_000,
    };
    ends_at_ns.div_ceil(step * SECOND_NS).saturating_mul(step * SECOND_NS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ban(id: i64, prefix: &str, ends_at_ns: u64) -> Ban {
        Ban { id, prefix: prefix.parse().expect(prefix), ends_at_ns }
    }

    type Got = (Vec<(String, u64)>, Vec<(Why, u64)>);

    fn forced(bans: &[(&str, u64)], spared: &Spared) -> Got {
        let bans = bans.iter().zip(1..).map(|((prefix, ends), id)| ban(id, prefix, *ends));
        let forced = force(bans, spared);
        let prefixes = forced.prefixes.iter().map(|(net, ends)| (net.to_string(), *ends)).collect();
        (prefixes, forced.refused.into_iter().collect())
    }

    #[test]
    fn of_bans_of_one_address_the_one_that_lasts_holds() {
        let bans = [("192.0.2.1/32", 5), ("192.0.2.1/32", 9), ("192.0.2.1/32", 7), ("2001:db8::1/128", 3)];
        let (prefixes, _) = forced(&bans, &Spared::default());
        assert_eq!(prefixes, [("192.0.2.1/32".to_owned(), 9), ("2001:db8::1/128".to_owned(), 3)]);
    }

    #[test]
    fn a_ban_inside_another_stays_if_it_lasts_longer() {
        let bans = [
            ("192.0.2.0/24", 5),
            ("192.0.2.1/32", 5),
            ("192.0.2.2/32", 6),
            ("192.0.2.128/25", 9),
            ("192.0.2.129/32", 7),
            ("192.0.3.1/32", 1),
        ];
        let (prefixes, _) = forced(&bans, &Spared::default());
        let names: Vec<&str> = prefixes.iter().map(|(net, _)| net.as_str()).collect();
        assert_eq!(names, ["192.0.2.0/24", "192.0.2.2/32", "192.0.2.128/25", "192.0.3.1/32"]);
    }

    #[test]
    fn what_the_node_trusts_or_is_outranks_bans() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().expect(text)).collect();
        let spared = Spared {
            unreadable: false,
            allow: nets(&["198.51.100.0/24"]),
            own: nets(&["203.0.113.1/32", "2001:db8::1/128"]),
        };
        let bans = [
            ("198.51.100.7/32", 5),
            // The kernel passes the allowlisted ones of these.
            ("198.51.0.0/16", 5),
            ("203.0.113.0/24", 5),
            ("203.0.113.2/32", 5),
            ("10.0.0.0/8", 5),
            ("2001:db8::/31", 5),
            ("2001:db8::/64", 5),
        ];
        let (prefixes, refused) = forced(&bans, &spared);
        let names: Vec<&str> = prefixes.iter().map(|(net, _)| net.as_str()).collect();
        assert_eq!(names, ["198.51.0.0/16", "203.0.113.2/32"]);
        assert_eq!(refused, [(Why::Broad, 2), (Why::Allowlisted, 1), (Why::Guarded, 2)]);
    }

    #[test]
    fn ends_are_rounded_up_a_little_and_lists_stay_few() {
        let now = 7 * SECOND_NS + 123;
        for (left_secs, at_most_late) in
            [(1, 10), (3_599, 10), (3_600, 300), (86_399, 300), (86_400, 3_600), (2_592_000, 86_400)]
        {
            let ends = now + left_secs * SECOND_NS;
            let late = rounded(ends, now) - ends;
            assert!(late < at_most_late * SECOND_NS, "{left_secs} s: {late} ns late");
        }
        let far = (0..100_000u64).map(|n| now + n * 317 * SECOND_NS);
        let ends: std::collections::BTreeSet<u64> = far.map(|ends| rounded(ends, now)).collect();
        assert!(ends.len() < 2_000, "{}", ends.len());
    }

    proptest! {
        #[test]
        fn an_address_is_banned_as_long_as_any_ban_says(
            bans in prop::collection::vec((0u32..1 << 8, 24u8..=32, 1u64..20), 0..30), low in 0u32..1 << 8, now in 0u64..20,
        ) {
            let net = |low: u32, len| IpNet::new(std::net::IpAddr::V4(low.into()), len).expect("a length").trunc();
            let all: Vec<Ban> =
                bans.iter().zip(1..).map(|((low, len, ends), id)| Ban { id, prefix: net(*low, *len), ends_at_ns: *ends }).collect();
            let address = net(low, 32);
            let expected = all.iter().any(|ban| ban.prefix.contains(&address) && ban.ends_at_ns > now);
            let forced = force(all.iter().copied(), &Spared::default());
            // As the kernel does: the longest match alone.
            let around = forced.prefixes.iter().filter(|(prefix, _)| prefix.contains(&address));
            let longest = around.max_by_key(|(prefix, _)| prefix.prefix_len());
            prop_assert_eq!(longest.is_some_and(|(_, ends)| *ends > now), expected);
        }
    }
}
