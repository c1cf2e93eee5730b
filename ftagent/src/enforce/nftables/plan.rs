//! What the table should look like for a set of rules: pure.
//!
//! ```text
//! chain mitigate (prerouting)   neighbour discovery: accept
//!                               source in allow4_LEN / allow6_LEN, one lookup for each prefix length in use: accept
//!                               source in blocked4_LEN / blocked6_LEN, likewise: drop
//!                               jump pass
//!                               jump network
//!                               later fragments: accept
//!                               jump transport
//! chain pass                    rules that let pass; of ports, whole datagrams alone
//! chain network, transport      everything else, one of ours as one to four of the kernel's; by whether it looks into
//!                               the transport header
//! ```
//! Later fragments never reach `transport`: the kernel's short cut for small fields (`nft_payload_fast_eval`) reads
//! their payload as if it were a header, seen on 6.18.
//!
//! A hash set for each prefix length instead of one interval set: prefixes may overlap, every element has its own
//! timeout, and adding one costs the same however many there are.

use std::collections::{BTreeMap, BTreeSet};

use ftagent_common::vocab::Mode;

use super::expr::{self, Expressions, Family, Outcome};
use super::place::Place;
use super::wire::Mark;
use crate::enforce::split::cuts_off;
use crate::engine::{Now, Point, Rule, RuleId, RuleSet, Verdict};

pub(super) const BASE_CHAIN: &str = "mitigate";
/// The chains that the base chain jumps to.
pub(super) const PASS_CHAIN: &str = "pass";
pub(super) const NETWORK_CHAIN: &str = "network";
pub(super) const TRANSPORT_CHAIN: &str = "transport";
/// The name behind `ftagent:` of what belongs to no rule.
const ALLOW: &str = "allow";

/// The table as it should be; empty means that there should be none.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) place: Place,
    pub(super) sets: BTreeMap<String, SetPlan>,
    /// Of the base chain, in order.
    pub(super) lookups: Vec<KernelRule>,
    /// With the chain they belong in.
    pub(super) rules: Vec<(RuleId, &'static str, KernelRule)>,
    /// What should be in force, by whatever means.
    pub(super) wanted: BTreeMap<RuleId, Rule>,
    /// Rules that the kernel's cannot stand for, and why.
    pub(super) impossible: BTreeMap<RuleId, String>,
}

#[derive(Clone, Debug)]
pub(super) struct SetPlan {
    pub(super) family: Family,
    /// Elements may have an end.
    pub(super) timeouts: bool,
    pub(super) elements: BTreeMap<Vec<u8>, ElementPlan>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ElementPlan {
    pub(super) mark: Mark,
    pub(super) rule: Option<RuleId>,
    /// Milliseconds from now on; absent: it stays.
    pub(super) remaining_ms: Option<u64>,
}

/// One rule for the kernel, with its end already in it.
#[derive(Clone, Debug)]
pub(super) struct KernelRule {
    pub(super) mark: Mark,
    pub(super) expressions: Expressions,
}

impl KernelRule {
    fn new(name: String, expressions: Expressions, until_secs: Option<u64>) -> Self {
        let mark = Mark { name, checksum: expressions.checksum(), until_secs: until_secs.unwrap_or(0) };
        let expressions = match until_secs {
            Some(secs) => expressions.until(secs),
            None => expressions,
        };
        Self { mark, expressions }
    }
}

/// Which rules a table carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Takes {
    /// Those that ask for nftables.
    pub(super) named: bool,
    pub(super) datapath: OfDatapath,
}

/// Which of the rules that the datapath should carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OfDatapath {
    #[default]
    None,
    All,
    /// Those that it has no room for.
    These(BTreeSet<RuleId>),
}

impl Takes {
    fn includes(&self, rule: &Rule) -> bool {
        match (rule.point, &self.datapath) {
            (Point::Nftables, _) => self.named,
            (Point::Datapath, OfDatapath::None) => false,
            (Point::Datapath, OfDatapath::All) => true,
            (Point::Datapath, OfDatapath::These(rules)) => rules.contains(&rule.id),
        }
    }
}

impl Plan {
    /// Plans at `place` for those of `desired` that `takes` says.
    pub(super) fn at(place: &Place, takes: &Takes, desired: &RuleSet, now: Now) -> Self {
        let mut plan = Self { place: place.clone(), ..Self::default() };
        if desired.mode == Some(Mode::Bypass) {
            return plan;
        }
        let evaluate = desired.mode == Some(Mode::Evaluate);
        let is_over = |rule: &Rule| rule.expires_at_ns.is_some_and(|end| end <= now.mono_ns);
        let rules = || desired.rules.values().filter(|rule| !is_over(rule));
        // A rule that lets pass holds here too, whoever carries it.
        let is_shared = |rule: &Rule| rule.point == Point::Datapath && takes.datapath != OfDatapath::None;
        let is_pass = |rule: &Rule| rule.verdict == Verdict::Pass && !rule.evaluate && !evaluate;
        let passes: Vec<&Rule> =
            rules().filter(|rule| is_pass(rule) && (takes.includes(rule) || is_shared(rule))).collect();
        let is_lost = |rule: &&Rule| expr::of_rule(place, &rule.matches, rule.verdict, false).is_empty();
        let lost: Vec<&Rule> = passes.iter().copied().filter(is_lost).collect();
        for rule in rules().filter(|rule| takes.includes(rule)) {
            match cuts_off(rule, &lost).filter(|_| !evaluate && !rule.evaluate) {
                Some(pass) => {
                    plan.wanted.insert(rule.id, rule.clone());
                    let why = format!("it would drop what rule {} lets pass, which cannot be told here", pass.id.0);
                    plan.impossible.insert(rule.id, why);
                }
                None => plan.take(rule, evaluate, now),
            }
        }
        if plan.sets.is_empty() && plan.rules.iter().all(|(_, chain, _)| *chain == PASS_CHAIN) {
            // Nothing is dropped: whatever is to pass does.
            plan.rules.clear();
        } else {
            for rule in passes.into_iter().filter(|rule| !takes.includes(rule)) {
                plan.add(rule, false, now);
            }
        }
        if plan.is_empty() {
            return plan;
        }
        for entry in &desired.allow {
            let element = ElementPlan { mark: mark(ALLOW), rule: None, remaining_ms: None };
            plan.set(ALLOW, &entry.prefix).elements.insert(expr::key(&entry.prefix), element);
        }
        plan.plan_lookups(evaluate);
        plan
    }

    /// Whether nothing is to be enforced, so that the table has no reason to be.
    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.rules.is_empty()
    }

    fn take(&mut self, rule: &Rule, evaluate: bool, now: Now) {
        self.wanted.insert(rule.id, rule.clone());
        let remaining_ns = rule.expires_at_ns.map(|end| end - now.mono_ns);
        let name = rule.id.0.to_string();
        let is_block = rule.matches.is_sources_only() && !rule.evaluate;
        if is_block && rule.verdict == Verdict::Drop {
            let remaining_ms = remaining_ns.map(|ns| (ns / 1_000_000).max(1));
            // Two rules for one source: the one that ends last stands for both.
            let lasts_longer = |there: &ElementPlan| {
                there.remaining_ms.is_some() && remaining_ms.is_none_or(|ms| Some(ms) > there.remaining_ms)
            };
            for source in rule.matches.all_sources() {
                let element = ElementPlan { mark: mark(&name), rule: Some(rule.id), remaining_ms };
                let elements = &mut self.set("blocked", source).elements;
                let key = expr::key(source);
                if elements.get(&key).is_none_or(lasts_longer) {
                    elements.insert(key, element);
                }
            }
            return;
        }
        if !self.add(rule, evaluate, now) {
            self.impossible.insert(rule.id, why_impossible(rule).to_owned());
        }
    }

    /// Adds the kernel's rules for one of ours, if there are any.
    fn add(&mut self, rule: &Rule, evaluate: bool, now: Now) -> bool {
        let remaining_ns = rule.expires_at_ns.map(|end| end - now.mono_ns);
        let until = remaining_ns.map(|ns| wall_secs(now) + ns.div_ceil(1_000_000_000));
        let kernel_rules = expr::of_rule(&self.place, &rule.matches, rule.verdict, evaluate || rule.evaluate);
        let is_possible = !kernel_rules.is_empty();
        let chain = match rule.verdict {
            Verdict::Pass => PASS_CHAIN,
            _ if expr::reads_transport(&rule.matches) => TRANSPORT_CHAIN,
            _ => NETWORK_CHAIN,
        };
        let named = |e| (rule.id, chain, KernelRule::new(rule.id.0.to_string(), e, until));
        self.rules.extend(kernel_rules.into_iter().map(named));
        is_possible
    }

    fn set(&mut self, kind: &str, prefix: &ipnet::IpNet) -> &mut SetPlan {
        let family = Family::of(prefix);
        let name = format!("{kind}{}_{}", family.digit(), prefix.prefix_len());
        let empty = SetPlan { family, timeouts: kind != ALLOW, elements: BTreeMap::new() };
        self.sets.entry(name).or_insert(empty)
    }

    fn plan_lookups(&mut self, evaluate: bool) {
        let neighbours = expr::neighbour_discovery(&self.place);
        self.lookups.push(KernelRule::new("neighbour_discovery".into(), neighbours, None));
        // By name, so that every allow set comes before every blocked one.
        for (name, set) in &self.sets {
            let prefix_len = name.rsplit('_').next().and_then(|len| len.parse().ok()).unwrap_or(0);
            let outcome = match (set.timeouts, evaluate) {
                (false, _) => Outcome::Accept,
                (true, false) => Outcome::Drop,
                (true, true) => Outcome::Count,
            };
            let lookup = expr::source_in_set(&self.place, set.family, prefix_len, name, outcome);
            self.lookups.push(KernelRule::new(name.clone(), lookup, None));
        }
        for chain in [PASS_CHAIN, NETWORK_CHAIN] {
            self.lookups.push(KernelRule::new(chain.into(), expr::jump(chain), None));
        }
        for family in Family::BOTH {
            let name = format!("later_fragments{}", family.digit());
            self.lookups.push(KernelRule::new(name, expr::later_fragment(&self.place, family), None));
        }
        self.lookups.push(KernelRule::new(TRANSPORT_CHAIN.into(), expr::jump(TRANSPORT_CHAIN), None));
    }
}

/// Why a rule has no rules of the kernel's.
fn why_impossible(rule: &Rule) -> &'static str {
    if rule.matches.payload.is_some() || rule.matches.dscp.is_some() {
        return "payload and DSCP are for programs alone";
    }
    match rule.verdict {
        Verdict::Sample | Verdict::Mark { .. } => "a rule that samples or marks needs a program",
        Verdict::Pass if rule.matches.fragment == Some(true) => "what passes by its ports has to be whole",
        Verdict::Pass | Verdict::Drop | Verdict::LimitPps { .. } | Verdict::LimitBps { .. } => {
            "no packet can match: its address families contradict each other"
        }
    }
}

fn wall_secs(now: Now) -> u64 {
    u64::try_from(now.wall.unix_timestamp()).unwrap_or(0)
}

fn mark(name: &str) -> Mark {
    Mark { name: name.into(), ..Mark::default() }
}

#[cfg(test)]
mod tests {
    use ftagent_common::api::AllowEntry;

    use super::*;
    use crate::engine::{Matches, Origin};

    const NOW: Now = Now { mono_ns: 1_000_000_000, wall: time::OffsetDateTime::UNIX_EPOCH };

    fn block(id: u64, source: &str, ends_in_ms: Option<u64>) -> Rule {
        Rule {
            id: RuleId(id),
            matches: Matches::source(source.parse().unwrap()),
            verdict: Verdict::Drop,
            point: Point::Nftables,
            origin: Origin::Operator,
            expires_at_ns: ends_in_ms.map(|ms| NOW.mono_ns + ms * 1_000_000),
            evaluate: false,
        }
    }

    fn plan(datapath: OfDatapath, rules: &RuleSet) -> Plan {
        Plan::at(&Place::Prerouting, &Takes { named: true, datapath }, rules, NOW)
    }

    fn rule_set(rules: &[Rule]) -> RuleSet {
        RuleSet { rules: rules.iter().map(|r| (r.id, r.clone())).collect(), ..RuleSet::default() }
    }

    #[test]
    fn the_longest_of_two_blocks_of_a_source_stands_for_both() {
        for (first, second, expected) in [
            (Some(5_000), Some(9_000), Some(9_000)),
            (Some(9_000), Some(5_000), Some(9_000)),
            (None, Some(5_000), None),
            (Some(5_000), None, None),
        ] {
            let rules = rule_set(&[block(1, "198.51.100.7/32", first), block(2, "198.51.100.7/32", second)]);
            let plan = plan(OfDatapath::None, &rules);
            let elements: Vec<_> = plan.sets["blocked4_32"].elements.values().collect();
            assert_eq!(elements.len(), 1);
            assert_eq!(elements[0].remaining_ms, expected, "{first:?} and {second:?}");
            assert_eq!(plan.wanted.len(), 2);
        }
    }

    #[test]
    fn expired_rules_foreign_points_and_bypass_leave_nothing() {
        let mut rules = rule_set(&[block(1, "198.51.100.7/32", Some(0))]);
        rules.allow.push(AllowEntry { prefix: "203.0.113.0/24".parse().unwrap(), label: String::new() });
        assert!(plan(OfDatapath::All, &rules).is_empty(), "an allowlist alone needs no table");
        let datapath = Rule { point: Point::Datapath, ..block(2, "198.51.100.8/32", None) };
        rules.rules.insert(RuleId(2), datapath);
        assert!(plan(OfDatapath::None, &rules).is_empty());
        assert!(!plan(OfDatapath::All, &rules).is_empty());
        rules.mode = Some(Mode::Bypass);
        assert!(plan(OfDatapath::All, &rules).is_empty());
    }

    #[test]
    fn a_rule_that_is_only_evaluated_drops_nothing() {
        let evaluated = Rule { evaluate: true, ..block(1, "198.51.100.7/32", None) };
        let plan = plan(OfDatapath::None, &rule_set(&[evaluated]));
        assert!(plan.sets.is_empty(), "the set's members are dropped");
        let counted = expr::of_rule(&Place::Prerouting, &plan.wanted[&RuleId(1)].matches, Verdict::Drop, true);
        assert_eq!(plan.rules[0].2.expressions, counted[0]);
    }

    #[test]
    fn what_a_rule_lets_pass_is_dropped_by_none_on_a_rung() {
        let to = |id, verdict, matches| Rule {
            matches: Matches { target: "203.0.113.0/24".parse().ok(), ..matches },
            verdict,
            point: Point::Datapath,
            ..block(id, "192.0.2.0/24", None)
        };
        let udp = Matches { protocol: Some(17), ..Matches::default() };
        let drop = to(1, Verdict::Drop, udp.clone());
        let these = |pass: Rule| {
            // The maps have room for the pass alone.
            let plan = plan(OfDatapath::These([RuleId(1)].into()), &rule_set(&[drop.clone(), pass]));
            let chains: Vec<(u64, &str)> = plan.rules.iter().map(|(id, chain, _)| (id.0, *chain)).collect();
            (chains, plan.wanted.len(), plan.impossible.len())
        };
        let dns = Matches { dst_port: Some([53, 53]), ..udp.clone() };
        assert_eq!(these(to(2, Verdict::Pass, dns)), (vec![(1, NETWORK_CHAIN), (2, PASS_CHAIN)], 1, 0));
        let payload = Matches { payload: Some(vec![1]), ..udp.clone() };
        assert_eq!(these(to(2, Verdict::Pass, payload.clone())), (vec![], 1, 1), "rather nothing than what must pass");
        let tcp = Matches { protocol: Some(6), ..payload };
        assert_eq!(these(to(2, Verdict::Pass, tcp)), (vec![(1, NETWORK_CHAIN)], 1, 0));
        let evaluated = Rule { evaluate: true, ..to(2, Verdict::Pass, udp.clone()) };
        assert_eq!(these(evaluated), (vec![(1, NETWORK_CHAIN)], 1, 0));
        let alone = plan(OfDatapath::All, &rule_set(&[to(2, Verdict::Pass, udp)]));
        assert!(alone.is_empty() && alone.impossible.is_empty() && alone.wanted.len() == 1, "nothing is dropped");
    }

    #[test]
    fn the_allowlist_is_asked_before_every_block() {
        let mut rules = rule_set(&[block(1, "198.51.100.0/24", None), block(2, "2001:db8::/48", None)]);
        rules.allow.push(AllowEntry { prefix: "2001:db8:0:1::/64".parse().unwrap(), label: String::new() });
        let plan = plan(OfDatapath::None, &rules);
        let order: Vec<&str> = plan.lookups.iter().map(|l| l.mark.name.as_str()).collect();
        assert_eq!(order[..5], ["neighbour_discovery", "allow6_64", "blocked4_24", "blocked6_48", "pass"]);
    }
}
