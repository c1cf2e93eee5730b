//! Which routes and rules stand for a set of rules: pure. Only what is dropped by its source alone can be.

use std::collections::{BTreeMap, BTreeSet};

use ftagent_common::vocab::Mode;
use ipnet::IpNet;

use crate::enforce::nftables::OfDatapath;
use crate::enforce::split::{overlap, without};
use crate::engine::{Now, Point, Rule, RuleId, RuleSet, Verdict};

/// The most prefixes that a block may become where the allowlist lies in it, and the most of all together.
const MAX_PIECES: usize = 512;
const MAX_ROUTES: usize = 16_384;
/// Rules are asked one after the other.
const MAX_RULES: usize = 512;

/// What is wanted of the kernel; none means that there should be nothing of ours.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// Blackhole routes, with the rules that they stand for.
    pub(super) routes: BTreeMap<IpNet, Vec<RuleId>>,
    /// Sources that are asked for by a rule each.
    pub(super) by_source: BTreeSet<IpNet>,
    pub(super) wanted: BTreeMap<RuleId, Rule>,
    /// What has no routes, and why.
    pub(super) refused: BTreeMap<RuleId, String>,
}

impl Plan {
    /// Plans for those of the datapath's rules that `takes` says. Where the kernel checks the way back, an IPv4 route
    /// drops what comes as well, and needs no rule by source.
    pub(super) fn of(takes: &OfDatapath, is_way_back_checked: bool, desired: &RuleSet, now: Now) -> Self {
        let mut plan = Self::default();
        if desired.mode == Some(Mode::Bypass) {
            return plan;
        }
        let allowed: Vec<IpNet> = desired.allow.iter().map(|entry| entry.prefix.trunc()).collect();
        let is_over = |rule: &Rule| rule.expires_at_ns.is_some_and(|end| end <= now.mono_ns);
        let ours = desired.rules.values().filter(|rule| rule.point == Point::Datapath && takes.includes(rule.id));
        for rule in ours.filter(|rule| !is_over(rule)) {
            plan.wanted.insert(rule.id, rule.clone());
            if rule.evaluate || desired.mode == Some(Mode::Evaluate) {
                continue;
            }
            if let Err(why) = plan.take(rule, &allowed, is_way_back_checked) {
                plan.refused.insert(rule.id, format!("null route: {why}"));
            }
        }
        plan
    }

    fn take(&mut self, rule: &Rule, allowed: &[IpNet], is_way_back_checked: bool) -> Result<(), String> {
        let source = rule.matches.source.filter(|_| rule.matches.is_source_only() && rule.verdict == Verdict::Drop);
        let source = source.ok_or("a route drops what comes from a source, and can neither limit nor tell more")?;
        refuse_dangerous(&source)?;
        let pieces = without(source, allowed, MAX_PIECES)
            .ok_or_else(|| format!("the allowlist cuts {source} into more than {MAX_PIECES} prefixes"))?;
        let new = |there: &dyn Fn(&IpNet) -> bool| pieces.iter().filter(|net| !there(net)).count();
        if self.routes.len() + new(&|net| self.routes.contains_key(net)) > MAX_ROUTES {
            return Err(format!("more than {MAX_ROUTES} routes would be needed"));
        }
        let needs_rule = !is_way_back_checked || matches!(source, IpNet::V6(_));
        if needs_rule && self.by_source.len() + new(&|net| self.by_source.contains(net)) > MAX_RULES {
            return Err(format!("more than {MAX_RULES} rules by source would be needed"));
        }
        for net in pieces {
            self.routes.entry(net).or_default().push(rule.id);
            if needs_rule {
                self.by_source.insert(net);
            }
        }
        Ok(())
    }
}

/// A route is for what leaves as well: without these the node could reach nobody.
fn refuse_dangerous(source: &IpNet) -> Result<(), String> {
    const NEEDED: [&str; 6] = ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8"];
    let shortest = if matches!(source, IpNet::V4(_)) { 8 } else { 16 };
    if source.prefix_len() < shortest {
        return Err(format!("a route for {source} would cut the node off; /{shortest} is the shortest prefix"));
    }
    let needed: Vec<IpNet> = NEEDED.iter().filter_map(|net| net.parse().ok()).collect();
    match needed.iter().find(|net| overlap(net, source)) {
        Some(net) => Err(format!("{source} overlaps {net}, which the node needs to reach its neighbours")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ftagent_common::api::AllowEntry;

    use super::*;
    use crate::engine::{Matches, Origin};

    const NOW: Now = Now { mono_ns: 1_000_000_000, wall: time::OffsetDateTime::UNIX_EPOCH };

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

    fn source(text: &str) -> Matches {
        Matches::source(text.parse().expect("a prefix"))
    }

    fn set(rules: Vec<Rule>, allow: &[&str]) -> RuleSet {
        let entry = |net: &&str| AllowEntry { prefix: net.parse().expect("a prefix"), label: String::new() };
        RuleSet {
            rules: rules.into_iter().map(|rule| (rule.id, rule)).collect(),
            allow: allow.iter().map(entry).collect(),
            ..RuleSet::default()
        }
    }

    fn texts<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Vec<String> {
        nets.into_iter().map(IpNet::to_string).collect()
    }

    #[test]
    fn a_block_is_cut_around_the_allowlist() {
        for (block, allow, routes) in [
            ("198.51.100.0/24", &[][..], &["198.51.100.0/24"][..]),
            ("198.51.100.0/30", &["198.51.100.1/32"], &["198.51.100.0/32", "198.51.100.2/31"]),
            ("198.51.100.7/32", &["198.51.100.0/24"], &[]),
            ("2001:db8::/127", &["2001:db8::/128"], &["2001:db8::1/128"]),
        ] {
            let desired = set(vec![rule(1, source(block), Verdict::Drop)], allow);
            let plan = Plan::of(&OfDatapath::All, true, &desired, NOW);
            assert_eq!(texts(plan.routes.keys()), routes, "{block} without {allow:?}");
            assert!(plan.refused.is_empty());
        }
    }

    #[test]
    fn what_is_no_block_of_a_source_is_refused_with_the_reason() {
        let limit = Verdict::LimitPps { pps: 1, burst: 1 };
        let port = Matches { dst_port: Some([53, 53]), ..source("198.51.100.7/32") };
        for (name, matches, verdict, word) in [
            ("a limit", source("198.51.100.7/32"), limit, "neither limit"),
            ("a port", port, Verdict::Drop, "nor tell more"),
            ("a target", Matches::target("198.51.100.7/32".parse().expect("a prefix")), Verdict::Drop, "from a source"),
            ("all", source("0.0.0.0/0"), Verdict::Drop, "cut the node off"),
            ("half of IPv6", source("8000::/1"), Verdict::Drop, "cut the node off"),
            ("neighbours", source("fe80::1/128"), Verdict::Drop, "neighbours"),
            ("loopback", source("127.0.0.0/8"), Verdict::Drop, "neighbours"),
        ] {
            let plan = Plan::of(&OfDatapath::All, true, &set(vec![rule(1, matches, verdict)], &[]), NOW);
            assert!(plan.routes.is_empty(), "{name}");
            assert!(plan.refused.values().any(|why| why.contains(word)), "{name}: {:?}", plan.refused);
        }
        let wide = set(vec![rule(1, source("2001:db8::/32"), Verdict::Drop)], &[]);
        let holes = (0..20).map(|n| format!("2001:db8:{n:x}::1/128")).collect::<Vec<_>>();
        let holes: Vec<&str> = holes.iter().map(String::as_str).collect();
        let plan = Plan::of(&OfDatapath::All, true, &RuleSet { allow: set(vec![], &holes).allow, ..wide }, NOW);
        assert!(plan.refused.values().any(|why| why.contains("cuts")), "{:?}", plan.refused);
    }

    #[test]
    fn rules_by_source_are_for_where_the_way_back_is_not_checked() {
        let rules = vec![
            rule(1, source("198.51.100.7/32"), Verdict::Drop),
            rule(2, source("2001:db8::7/128"), Verdict::Drop),
            rule(3, source("198.51.100.7/32"), Verdict::Drop),
        ];
        let plan = |checked| Plan::of(&OfDatapath::All, checked, &set(rules.clone(), &[]), NOW);
        assert_eq!(texts(&plan(true).by_source), ["2001:db8::7/128"]);
        assert_eq!(plan(false).by_source.len(), 2);
        let stand_for = &plan(true).routes[&"198.51.100.7/32".parse::<IpNet>().expect("a prefix")];
        assert_eq!(stand_for, &[RuleId(1), RuleId(3)]);
        let mut desired = set(rules.clone(), &[]);
        desired.mode = Some(Mode::Evaluate);
        let plan = Plan::of(&OfDatapath::All, true, &desired, NOW);
        assert_eq!((plan.routes.len(), plan.wanted.len()), (0, 3));
    }
}
