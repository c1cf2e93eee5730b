//! A prefix without others that lie in it, and rules that give way to others: pure.

use ipnet::IpNet;

use crate::engine::{Matches, Rule, Verdict};

/// The prefixes that cover `net` and none of `holes`; nothing if more than `max` are needed.
pub(super) fn without(net: IpNet, holes: &[IpNet], max: usize) -> Option<Vec<IpNet>> {
    let mut rest = Vec::new();
    cut(net.trunc(), holes, max, &mut rest).then_some(rest)
}

fn cut(net: IpNet, holes: &[IpNet], max: usize, rest: &mut Vec<IpNet>) -> bool {
    let inside: Vec<IpNet> = holes.iter().filter(|hole| overlap(hole, &net)).copied().collect();
    if inside.is_empty() {
        rest.push(net);
        return rest.len() <= max;
    }
    // Halves end at single addresses, which are outside of every hole or in one.
    let halves =
        if inside.iter().any(|hole| hole.contains(&net)) { None } else { net.subnets(net.prefix_len() + 1).ok() };
    halves.is_none_or(|mut halves| halves.all(|half| cut(half, &inside, max, rest)))
}

/// Whether one lies in the other.
pub(super) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Whether a packet may match both: true where it is not certain that none does.
pub(super) fn may_meet(one: &Matches, other: &Matches) -> bool {
    fn nets(one: Option<IpNet>, other: Option<IpNet>) -> bool {
        one.zip(other).is_none_or(|(one, other)| overlap(&one, &other))
    }
    fn ranges<T: PartialOrd>(one: Option<[T; 2]>, other: Option<[T; 2]>) -> bool {
        one.zip(other).is_none_or(|([low, high], [from, to])| low <= to && from <= high)
    }
    nets(one.source, other.source)
        && nets(one.target, other.target)
        && one.protocol.zip(other.protocol).is_none_or(|(one, other)| one == other)
        && ranges(one.src_port, other.src_port)
        && ranges(one.dst_port, other.dst_port)
        && ranges(one.length, other.length)
        && ranges(one.ttl, other.ttl)
        && ranges(one.icmp_type, other.icmp_type)
}

/// The rule among `passes` that this one would cut off: in the datapath what lets pass comes before what drops or
/// limits, but for blocks of sources.
pub(super) fn cuts_off<'a>(rule: &Rule, passes: &[&'a Rule]) -> Option<&'a Rule> {
    let is_block = rule.verdict == Verdict::Drop && rule.matches.is_source_only();
    if is_block || rule.verdict == Verdict::Pass {
        return None;
    }
    passes.iter().copied().find(|pass| may_meet(&rule.matches, &pass.matches))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().expect("a prefix")).collect()
    }

    #[test]
    fn what_is_left_covers_everything_but_the_holes() {
        for (net, holes, rest) in [
            ("10.0.0.0/8", "192.0.2.0/24 2001:db8::/32", Some("10.0.0.0/8")),
            ("192.0.2.0/24", "192.0.2.0/24", Some("")),
            ("192.0.2.7/32", "192.0.2.0/24", Some("")),
            ("192.0.2.0/30", "192.0.2.1/32", Some("192.0.2.0/32 192.0.2.2/31")),
            ("192.0.2.0/30", "192.0.2.1/32 192.0.2.2/32", Some("192.0.2.0/32 192.0.2.3/32")),
            ("2001:db8::/127", "2001:db8::1/128", Some("2001:db8::/128")),
            ("10.0.0.0/8", "10.1.2.3/32", None),
        ] {
            let got = without(net.parse().expect("a prefix"), &nets(holes), 8);
            assert_eq!(got, rest.map(nets), "{net} without {holes}");
        }
    }

    #[test]
    fn rules_meet_unless_it_is_certain_that_they_do_not() {
        let of = |target: &str, protocol, dst_port| Matches {
            protocol,
            dst_port,
            ..Matches::target(target.parse().expect("a prefix"))
        };
        let pass = of("192.0.2.0/24", Some(6), Some([80, 90]));
        for (name, other, meets) in [
            ("everything", Matches::default(), true),
            ("a part", of("192.0.2.7/32", None, None), true),
            ("an edge", of("192.0.0.0/16", Some(6), Some([90, 99])), true),
            ("another target", of("192.0.3.0/24", None, None), false),
            ("another protocol", of("192.0.2.0/24", Some(17), None), false),
            ("other ports", of("192.0.2.0/24", None, Some([91, 99])), false),
        ] {
            assert_eq!((may_meet(&pass, &other), may_meet(&other, &pass)), (meets, meets), "{name}");
        }
    }

    proptest! {
        #[test]
        fn an_address_is_left_if_and_only_if_no_hole_has_it(
            holes in prop::collection::vec((0u32..4_096, 20u8..=32), 0..6),
            probe in 0u32..8_192,
        ) {
            let base = u32::from(std::net::Ipv4Addr::new(10, 0, 0, 0));
            let at = |n: u32, len| IpNet::new(std::net::Ipv4Addr::from(base + n).into(), len).expect("a prefix").trunc();
            let holes: Vec<IpNet> = holes.into_iter().map(|(n, len)| at(n, len)).collect();
            let rest = without(at(0, 20), &holes, 4_096).expect("room");
            let probe = at(probe, 32);
            let is_left = rest.iter().any(|net| net.contains(&probe));
            prop_assert_eq!(is_left, at(0, 20).contains(&probe) && !holes.iter().any(|hole| hole.contains(&probe)));
            let addresses: usize = rest.iter().map(|net| 1usize << (32 - net.prefix_len())).sum();
            prop_assert!(addresses <= 4_096, "they do not overlap");
        }
    }
}
