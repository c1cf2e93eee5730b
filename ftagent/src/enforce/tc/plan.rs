//! Which filters stand for a set of rules: pure.
//!
//! ```text
//! 49000, 49001   what comes from the allowlist, IPv4 and IPv6, and neighbour discovery: pass, and no filter behind is
//!                asked
//! 49002, 49003   blocks of sources
//! 49004, 49005   what rules let pass
//! 49006, 49007   what else is dropped
//! 49008 - 49099  a limit each, so that a packet meets all of them: drop what is over it, else go on
//! ```
//! Filters of one preference share tables in the kernel, so that thousands of blocks cost what one does (flower). The
//! preferences lie behind those that people number and before those of `tc_police_interface`.

use std::collections::{BTreeMap, BTreeSet};

use ftagent_common::vocab::Mode;
use ipnet::IpNet;

use super::encode::{Classifier, Encoded, encode};
use crate::enforce::nftables::OfDatapath;
use crate::enforce::split::cuts_off;
use crate::engine::{Matches, Now, Point, Rule, RuleId, RuleSet, Verdict};

impl Classifier {
    /// The most filters of a place and a family: of u32 a preference has 4,095, which are compared one after the other.
    fn max_filters(self) -> usize {
        match self {
            Self::Flower => 16_384,
            Self::U32 => 1_024,
        }
    }
}

/// Ranges are told as values under masks: more filters than this for one rule are not made.
const MAX_PIECES: usize = 64;

/// What this kernel's traffic control has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Means {
    pub(super) classifier: Classifier,
    /// `act_police`.
    pub(super) police: bool,
    /// By packets. Since Linux 5.13.
    pub(super) police_packets: bool,
}

/// Where a filter stands among ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Allow,
    /// Of a source: as in the datapath, no rule lets it pass.
    Block,
    Pass,
    Drop,
    Limit,
}

/// What happens to what a filter matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Pass,
    Drop,
    LimitPackets { pps: u64, burst: u64 },
    LimitBytes { bytes_per_sec: u64, burst: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

/// What one filter matches: one family and one protocol, and values under masks. Absent parts match everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Narrow {
    pub(super) family: Family,
    pub(super) source: Option<IpNet>,
    pub(super) target: Option<IpNet>,
    pub(super) protocol: Option<u8>,
    pub(super) src_port: Option<[u16; 2]>,
    pub(super) dst_port: Option<[u16; 2]>,
    /// `[value, mask]`, as the ones below.
    pub(super) ttl: Option<[u8; 2]>,
    pub(super) icmp_type: Option<[u8; 2]>,
    pub(super) tcp_flags: Option<[u8; 2]>,
    /// In the place of the whole byte.
    pub(super) dscp: Option<[u8; 2]>,
    pub(super) fragment: Option<bool>,
}

/// A filter, and the rules that it stands for.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    pub(super) place: Place,
    pub(super) family: Family,
    pub(super) encoded: Encoded,
    pub(super) rules: Vec<RuleId>,
}

/// The filters that every interface should have; none means that there should be nothing of ours.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// In the order in which they are made.
    pub(super) filters: Vec<Filter>,
    /// What should be in force, by whatever means.
    pub(super) wanted: BTreeMap<RuleId, Rule>,
    /// What has no filters, and why.
    pub(super) refused: BTreeMap<RuleId, String>,
}

/// What has been planned.
#[derive(Default)]
struct Seen {
    /// Where each filter is, by what it does.
    at: BTreeMap<(Place, Family, Vec<u8>), usize>,
    counts: BTreeMap<(Place, Family), usize>,
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

impl Plan {
    /// Plans for those of the datapath's rules that `takes` says.
    pub(super) fn of(takes: &OfDatapath, means: Means, desired: &RuleSet, now: Now) -> Self {
        let mut plan = Self::default();
        if desired.mode == Some(Mode::Bypass) {
            return plan;
        }
        let is_evaluated = |rule: &Rule| rule.evaluate || desired.mode == Some(Mode::Evaluate);
        let is_over = |rule: &Rule| rule.expires_at_ns.is_some_and(|end| end <= now.mono_ns);
        let rules = || desired.rules.values().filter(|rule| rule.point == Point::Datapath && !is_over(rule));
        let mut seen = Seen::default();
        let max = means.classifier.max_filters();
        let mut lost = Vec::new();
        // What lets pass holds here too, whoever carries it.
        let is_pass = |rule: &&Rule| *takes != OfDatapath::None && rule.verdict == Verdict::Pass && !is_evaluated(rule);
        for rule in rules().filter(is_pass) {
            let is_ours = takes.includes(rule.id);
            if let Err(why) = filters_of(rule, means).and_then(|filters| plan.put(filters, max, &mut seen)) {
                lost.push(rule);
                if is_ours {
                    plan.refused.insert(rule.id, format!("tc: {why}"));
                }
            }
        }
        for rule in rules().filter(|rule| takes.includes(rule.id)) {
            plan.wanted.insert(rule.id, rule.clone());
            // Nothing is to happen to what they match, and counting is for the datapath alone.
            if is_evaluated(rule) || rule.verdict == Verdict::Pass {
                continue;
            }
            let put = match cuts_off(rule, &lost) {
                Some(pass) => {
                    Err(format!("it would drop what rule {} lets pass, which cannot be told here", pass.id.0))
                }
                None => filters_of(rule, means).and_then(|filters| plan.put(filters, max, &mut seen)),
            };
            if let Err(why) = put {
                plan.refused.insert(rule.id, format!("tc: {why}"));
            }
        }
        if plan.filters.iter().all(|filter| filter.place == Place::Pass) {
            // Nothing is dropped: whatever is to pass does.
            plan.filters.clear();
        }
        if !plan.filters.is_empty() {
            plan.spare(means, desired);
        }
        plan.filters.sort_by_key(|filter| filter.place);
        plan
    }

    /// Adds the filters of a rule, or says why not.
    fn put(&mut self, filters: Vec<Filter>, max: usize, seen: &mut Seen) -> Result<(), String> {
        let mut counts = seen.counts.clone();
        for filter in &filters {
            *counts.entry((filter.place, filter.family)).or_default() += 1;
        }
        if counts.values().any(|count| *count > max) {
            return Err(format!("more than {max} filters of a family would be needed"));
        }
        seen.counts = counts;
        for filter in filters {
            let key = (filter.place, filter.family, filter.encoded.identity());
            // Two limits are two, even if they look the same.
            match seen.at.get(&key).filter(|_| filter.place != Place::Limit) {
                Some(at) => self.filters[*at].rules.extend(filter.rules),
                None => {
                    seen.at.insert(key, self.filters.len());
                    self.filters.push(filter);
                }
            }
        }
        Ok(())
    }

    /// Puts the allowlist before everything.
    fn spare(&mut self, means: Means, desired: &RuleSet) {
        let prefixes: BTreeSet<IpNet> = desired.allow.iter().map(|entry| entry.prefix.trunc()).collect();
        let max = means.classifier.max_filters();
        if Family::BOTH.iter().any(|family| prefixes.iter().filter(|net| Family::of(net) == *family).count() > max) {
            let why = format!("tc: the allowlist has {} prefixes, and {max} of a family can be spared", prefixes.len());
            self.filters.clear();
            self.refused = self.wanted.keys().map(|id| (*id, why.clone())).collect();
            return;
        }
        let of_prefix = |prefix: IpNet| Narrow { source: Some(prefix), ..Narrow::any(Family::of(&prefix)) };
        let mut spared: Vec<Narrow> = prefixes.into_iter().map(of_prefix).collect();
        if self.filters.iter().any(|filter| filter.family == Family::V6) {
            spared.extend(neighbour_discovery());
        }
        for matched in spared {
            match encode(means.classifier, &matched, Action::Pass) {
                Ok(encoded) => {
                    self.filters.push(Filter {
                        place: Place::Allow,
                        family: matched.family,
                        encoded,
                        rules: Vec::new(),
                    });
                }
                Err(why) => {
                    // Rather nothing than a block of who must pass.
                    self.filters.clear();
                    self.refused = self.wanted.keys().map(|id| (*id, format!("tc: {matched:?}: {why}"))).collect();
                    return;
                }
            }
        }
    }
}

/// That of this link: no router forwards a hop limit of 255 unchanged (RFC 4861 section 6.1.1). What is behind
/// extension headers or in fragments is none.
fn neighbour_discovery() -> impl Iterator<Item = Narrow> {
    cover(133, 137, 8).into_iter().map(|icmp_type| Narrow {
        protocol: Some(ICMPV6),
        ttl: Some([255, 255]),
        icmp_type: Some(icmp_type),
        ..Narrow::any(Family::V6)
    })
}

impl OfDatapath {
    /// Whether a rung takes this rule of the datapath's.
    pub(in crate::enforce) fn includes(&self, rule: RuleId) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::These(rules) => rules.contains(&rule),
        }
    }
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

impl Narrow {
    pub(super) fn any(family: Family) -> Self {
        Self {
            family,
            source: None,
            target: None,
            protocol: None,
            src_port: None,
            dst_port: None,
            ttl: None,
            icmp_type: None,
            tcp_flags: None,
            dscp: None,
            fragment: None,
        }
    }
}

fn filters_of(rule: &Rule, means: Means) -> Result<Vec<Filter>, String> {
    let (place, action) = match rule.verdict {
        Verdict::Drop if rule.matches.is_source_only() => (Place::Block, Action::Drop),
        Verdict::Drop => (Place::Drop, Action::Drop),
        Verdict::Pass => (Place::Pass, Action::Pass),
        Verdict::LimitPps { .. } | Verdict::LimitBps { .. } if !means.police => {
            return Err("a limit needs act_police, which this kernel lacks".to_owned());
        }
        Verdict::LimitPps { .. } if !means.police_packets => {
            return Err("a limit of packets needs Linux 5.13; a limit of bits would do".to_owned());
        }
        Verdict::LimitPps { pps, burst } => {
            (Place::Limit, Action::LimitPackets { pps: pps.max(1), burst: burst.max(1) })
        }
        Verdict::LimitBps { bps, burst } => {
            let bytes_per_sec = (bps / 8).max(1);
            // Less than a frame would let nothing through.
            (Place::Limit, Action::LimitBytes { bytes_per_sec, burst: (burst / 8).max(2_048) })
        }
        Verdict::Sample | Verdict::Mark { .. } => {
            return Err("a rule that samples or marks needs a program".to_owned());
        }
    };
    let pieces = narrow(&rule.matches, place == Place::Limit, means.classifier)?;
    let filter = |matched: Narrow| {
        let encoded = encode(means.classifier, &matched, action)?;
        Ok(Filter { place, family: matched.family, encoded, rules: vec![rule.id] })
    };
    pieces.into_iter().map(filter).collect()
}

/// The filters that a match becomes. One that limits becomes one for each family and protocol, never more: each of
/// them has a budget of its own.
fn narrow(matches: &Matches, is_limit: bool, classifier: Classifier) -> Result<Vec<Narrow>, String> {
    if matches.payload.is_some() {
        return Err("it does not look at payload".to_owned());
    }
    if matches.length.is_some() {
        return Err("it does not look at lengths".to_owned());
    }
    let mut all = Vec::new();
    for family in families(matches)? {
        for protocol in protocols(matches, family) {
            let one = Narrow {
                source: matches.source.map(|net| net.trunc()),
                target: matches.target.map(|net| net.trunc()),
                protocol,
                src_port: matches.src_port.filter(|range| *range != [0, u16::MAX]),
                dst_port: matches.dst_port.filter(|range| *range != [0, u16::MAX]),
                tcp_flags: matches.tcp_flags.map(|[mask, value]| [value & mask, mask]),
                fragment: matches.fragment,
                ..Narrow::any(family)
            };
            let mut pieces = vec![one];
            split(&mut pieces, matches.ttl, 8, |piece, part| piece.ttl = Some(part));
            split(&mut pieces, matches.icmp_type, 8, |piece, part| piece.icmp_type = Some(part));
            split(&mut pieces, matches.dscp, 6, |piece, [value, mask]| piece.dscp = Some([value << 2, mask << 2]));
            if is_limit && pieces.len() > 1 {
                return Err("a limit of a range of TTL, DSCP or ICMP types would be several limits".to_owned());
            }
            all.extend(pieces);
        }
    }
    if all.len() > MAX_PIECES {
        return Err(format!("it would take {} filters for one rule, more than {MAX_PIECES}", all.len()));
    }
    all.iter().try_for_each(|piece| classifier.takes(piece))?;
    Ok(all)
}

/// Makes each piece into one for each value under a mask that the range consists of.
fn split(pieces: &mut Vec<Narrow>, range: Option<[u8; 2]>, bits: u8, mut set: impl FnMut(&mut Narrow, [u8; 2])) {
    let Some([low, high]) = range else { return };
    let parts = cover(low, high, bits);
    *pieces = pieces
        .iter()
        .flat_map(|piece| {
            parts
                .iter()
                .map(|part| {
                    let mut piece = piece.clone();
                    set(&mut piece, *part);
                    piece
                })
                .collect::<Vec<_>>()
        })
        .collect();
}

/// Values under masks, of `bits` bits, that are the range `low` to `high` together.
fn cover(low: u8, high: u8, bits: u8) -> Vec<[u8; 2]> {
    let all = ((1u16 << bits) - 1) as u8;
    let mut parts = Vec::new();
    let mut at = u16::from(low);
    let end = u16::from(high.min(all));
    while at <= end {
        // The largest aligned block that begins here and does not end behind the range.
        let mut size = 1u16;
        while at % (size * 2) == 0 && at + size * 2 - 1 <= end {
            size *= 2;
        }
        parts.push([at as u8, all & !((size - 1) as u8)]);
        at += size;
    }
    parts
}

fn families(matches: &Matches) -> Result<Vec<Family>, String> {
    let of = |net: &Option<IpNet>| net.as_ref().map(Family::of);
    let by_protocol = match matches.protocol {
        Some(ICMP) => Some(Family::V4),
        Some(ICMPV6) => Some(Family::V6),
        _ => None,
    };
    let named: BTreeSet<Family> =
        [of(&matches.source), of(&matches.target), by_protocol].into_iter().flatten().collect();
    match named.len() {
        0 => Ok(Family::BOTH.to_vec()),
        1 => Ok(named.into_iter().collect()),
        _ => Err("no packet can match: its address families contradict each other".to_owned()),
    }
}

fn protocols(matches: &Matches, family: Family) -> Vec<Option<u8>> {
    match matches.protocol {
        Some(protocol) => vec![Some(protocol)],
        None if matches.tcp_flags.is_some() => vec![Some(TCP)],
        None if matches.icmp_type.is_some() => vec![Some(if family == Family::V4 { ICMP } else { ICMPV6 })],
        None if matches.src_port.is_some() || matches.dst_port.is_some() => vec![Some(TCP), Some(UDP)],
        None => vec![None],
    }
}

#[cfg(test)]
mod tests {
    use ftagent_common::api::AllowEntry;

    use super::*;
    use crate::engine::Origin;

    const NOW: Now = Now { mono_ns: 1_000_000_000, wall: time::OffsetDateTime::UNIX_EPOCH };
    const FLOWER: Means = Means { classifier: Classifier::Flower, police: true, police_packets: true };
    const LIMIT: Verdict = Verdict::LimitPps { pps: 100, burst: 10 };

    fn rule(id: u64, matches: Matches, verdict: Verdict) -> Rule {
        Rule {
            id: RuleId(id),
            matches,
            verdict,
            point: Point::Datapath,
            origin: Origin::Operator,
            expires_at_ns: None,
            evaluate: false,
        }
    }

    fn set(rules: Vec<Rule>) -> RuleSet {
        RuleSet { rules: rules.into_iter().map(|rule| (rule.id, rule)).collect(), ..RuleSet::default() }
    }

    fn source(text: &str) -> Matches {
        Matches::source(text.parse().expect("a prefix"))
    }

    /// How many filters a rule becomes, or what is said instead.
    fn of(matches: Matches, verdict: Verdict, means: Means) -> Result<usize, String> {
        let plan = Plan::of(&OfDatapath::All, means, &set(vec![rule(1, matches, verdict)]), NOW);
        match plan.refused.into_values().next() {
            Some(why) => Err(why),
            None => Ok(plan.filters.iter().filter(|filter| filter.place != Place::Allow).count()),
        }
    }

    #[test]
    fn a_rule_is_filters_or_a_reason() {
        let any = Matches::default;
        let tail = |n| Some([n, n]);
        let u32 = Means { classifier: Classifier::U32, ..FLOWER };
        for (name, matches, verdict, means, expected) in [
            ("a source", source("198.51.100.0/24"), Verdict::Drop, FLOWER, Ok(1)),
            ("everything", any(), Verdict::Drop, FLOWER, Ok(2)),
            ("ports of any protocol", Matches { dst_port: tail(53), ..any() }, Verdict::Drop, FLOWER, Ok(4)),
            ("a range of TTLs", Matches { ttl: Some([1, 4]), ..source("192.0.2.1/32") }, Verdict::Drop, FLOWER, Ok(3)),
            ("such a limit", Matches { ttl: Some([1, 4]), ..source("192.0.2.1/32") }, LIMIT, FLOWER, Err("several")),
            ("a limit", source("198.51.100.0/24"), LIMIT, FLOWER, Ok(1)),
            ("before 5.13", source("192.0.2.1/32"), LIMIT, Means { police_packets: false, ..FLOWER }, Err("5.13")),
            (
                "bits before 5.13",
                source("192.0.2.1/32"),
                Verdict::LimitBps { bps: 1_000, burst: 1_000 },
                Means { police_packets: false, ..FLOWER },
                Ok(1),
            ),
            ("no police", source("192.0.2.1/32"), LIMIT, Means { police: false, ..FLOWER }, Err("act_police")),
            ("a length", Matches { length: tail(99), ..any() }, Verdict::Drop, FLOWER, Err("lengths")),
            ("payload", Matches { payload: Some(vec![1]), ..any() }, Verdict::Drop, FLOWER, Err("payload")),
            ("a mark", any(), Verdict::Mark { dscp: 1 }, FLOWER, Err("needs a program")),
            ("dscp", Matches { dscp: Some([8, 15]), ..source("192.0.2.1/32") }, Verdict::Drop, FLOWER, Ok(1)),
            (
                "two families",
                Matches { protocol: Some(58), ..source("192.0.2.1/32") },
                LIMIT,
                FLOWER,
                Err("contradict"),
            ),
            ("u32: a source", source("2001:db8::/48"), Verdict::Drop, u32, Ok(1)),
            ("u32: a port", Matches { dst_port: tail(53), protocol: Some(17), ..any() }, LIMIT, u32, Err("IPv6")),
            (
                "u32: an IPv4 port",
                Matches { dst_port: tail(53), protocol: Some(17), ..source("192.0.2.1/32") },
                LIMIT,
                u32,
                Ok(1),
            ),
        ] {
            let got = of(matches, verdict, means);
            match (&got, expected) {
                (Ok(count), Ok(wanted)) => assert_eq!(*count, wanted, "{name}"),
                (Err(why), Err(word)) => assert!(why.contains(word), "{name}: {why}"),
                _ => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_range_is_covered_exactly_by_few_parts() {
        for (low, high, bits) in [(0, 255, 8), (1, 254, 8), (5, 5, 8), (3, 17, 8), (0, 63, 6), (8, 15, 6), (9, 3, 8)] {
            let parts = cover(low, high, bits);
            for value in 0..=((1u16 << bits) - 1) as u8 {
                let hits = parts.iter().filter(|[wanted, mask]| value & mask == *wanted).count();
                assert_eq!(hits, usize::from((low..=high).contains(&value)), "{value} of {low} to {high}");
            }
            assert!(parts.len() <= 14);
        }
    }

    #[test]
    fn the_allowlist_comes_first_and_one_drop_stands_for_two_rules() {
        let mut rules = set(vec![
            rule(1, source("198.51.100.0/24"), Verdict::Drop),
            rule(2, source("198.51.100.0/24"), Verdict::Drop),
            rule(3, source("198.51.100.0/24"), LIMIT),
            rule(4, source("198.51.100.0/24"), LIMIT),
        ]);
        rules.allow.push(AllowEntry { prefix: "198.51.100.9/24".parse().expect("a prefix"), label: String::new() });
        let plan = Plan::of(&OfDatapath::All, FLOWER, &rules, NOW);
        let places: Vec<(Place, usize)> = plan.filters.iter().map(|f| (f.place, f.rules.len())).collect();
        assert_eq!(places, [(Place::Allow, 0), (Place::Block, 2), (Place::Limit, 1), (Place::Limit, 1)]);
    }

    #[test]
    fn what_a_rule_lets_pass_is_dropped_by_none() {
        let to = |id, verdict, matches| rule(id, Matches { target: "203.0.113.0/24".parse().ok(), ..matches }, verdict);
        let udp = Matches { protocol: Some(17), ..Matches::default() };
        let these = |pass: Matches| {
            let rules = set(vec![to(1, Verdict::Drop, udp.clone()), to(2, Verdict::Pass, pass)]);
            // The maps have room for the pass alone.
            let plan = Plan::of(&OfDatapath::These([RuleId(1)].into()), FLOWER, &rules, NOW);
            let places: Vec<Place> = plan.filters.iter().map(|filter| filter.place).collect();
            (places, plan.wanted.len(), plan.refused.len())
        };
        assert_eq!(these(Matches { dst_port: Some([53, 53]), ..udp.clone() }), (vec![Place::Pass, Place::Drop], 1, 0));
        let longer = Matches { length: Some([0, 100]), ..udp.clone() };
        assert_eq!(these(longer.clone()), (vec![], 1, 1), "rather nothing than a drop of what must pass");
        assert_eq!(these(Matches { protocol: Some(6), ..longer }), (vec![Place::Drop], 1, 0));
        let alone = Plan::of(&OfDatapath::All, FLOWER, &set(vec![to(2, Verdict::Pass, udp)]), NOW);
        assert!(alone.filters.is_empty() && alone.refused.is_empty() && alone.wanted.len() == 1, "nothing is dropped");
    }

    #[test]
    fn u32_takes_fewer_filters_than_flower() {
        let net = |n: u64| source(&format!("198.{}.{}.0/24", 18 + n / 256, n % 256));
        let mut rules = set((0..1_100).map(|n| rule(n, net(n), Verdict::Drop)).collect());
        let u32 = Means { classifier: Classifier::U32, ..FLOWER };
        let count = |means, rules: &RuleSet| {
            let plan = Plan::of(&OfDatapath::All, means, rules, NOW);
            (plan.filters.len(), plan.refused.len())
        };
        assert_eq!((count(FLOWER, &rules), count(u32, &rules)), ((1_100, 0), (1_024, 76)));
        let allow = |n| AllowEntry { prefix: net(n).source.expect("a prefix"), label: String::new() };
        rules.allow = (0..1_025).map(allow).collect();
        assert_eq!(count(FLOWER, &rules), (2_125, 0));
        assert_eq!(count(u32, &rules), (0, 1_100), "rather nothing than a block of who must pass");
    }

    #[test]
    fn neighbour_discovery_comes_before_blocks_of_ipv6() {
        for classifier in [Classifier::Flower, Classifier::U32] {
            let means = Means { classifier, ..FLOWER };
            let count = |net| {
                let plan = Plan::of(&OfDatapath::All, means, &set(vec![rule(1, source(net), Verdict::Drop)]), NOW);
                plan.filters.iter().filter(|filter| filter.place == Place::Allow).count()
            };
            assert_eq!((count("192.0.2.0/24"), count("2001:db8::/32")), (0, 3), "133, 134 and 135, 136 and 137");
        }
    }

    #[test]
    fn what_is_over_evaluated_or_elsewhere_needs_no_filter() {
        let over = Rule { expires_at_ns: Some(NOW.mono_ns), ..rule(1, source("192.0.2.1/32"), Verdict::Drop) };
        let evaluated = Rule { evaluate: true, ..rule(2, source("192.0.2.2/32"), Verdict::Drop) };
        let elsewhere = Rule { point: Point::Nftables, ..rule(3, source("192.0.2.3/32"), Verdict::Drop) };
        let mut rules = set(vec![over, evaluated, elsewhere, rule(4, source("192.0.2.4/32"), Verdict::Drop)]);
        rules.allow.push(AllowEntry { prefix: "192.0.2.9/32".parse().expect("a prefix"), label: String::new() });
        let plan = |takes: &OfDatapath, rules: &RuleSet| {
            let plan = Plan::of(takes, FLOWER, rules, NOW);
            (plan.filters.len(), plan.wanted.into_keys().map(|id| id.0).collect::<Vec<_>>())
        };
        assert_eq!(plan(&OfDatapath::All, &rules), (2, vec![2, 4]));
        assert_eq!(plan(&OfDatapath::These([RuleId(2)].into()), &rules), (0, vec![2]), "an allowlist alone needs none");
        assert_eq!(plan(&OfDatapath::None, &rules), (0, vec![]));
        rules.mode = Some(Mode::Evaluate);
        assert_eq!(plan(&OfDatapath::All, &rules), (0, vec![2, 4]));
        rules.mode = Some(Mode::Bypass);
        assert_eq!(plan(&OfDatapath::All, &rules), (0, vec![]));
    }
}
