//! Operators' lists in the model: a source is on a list if one of its prefixes contains it, and a list that is only
//! evaluated drops nothing.

use std::net::IpAddr;

use ftagent::engine::{Rule, Verdict};
use ipnet::IpNet;

use super::draw::{SOURCES, prefix};
use super::model::ENDED;
use super::random::Random;

#[derive(Clone, Debug)]
pub(crate) struct List {
    pub(crate) prefixes: Vec<IpNet>,
    pub(crate) evaluate: bool,
}

/// Prefixes around `src` that drop.
pub(crate) fn around(lists: &[List], src: IpAddr) -> impl Iterator<Item = IpNet> {
    let drop = lists.iter().filter(|list| !list.evaluate);
    drop.flat_map(|list| &list.prefixes).copied().filter(move |prefix| prefix.contains(&src))
}

/// No list in half of the worlds, at most three in the others. Those of IPv4 are rare: to put another table of them in
/// place the kernel waits for all CPUs, which takes as long as a hundred packets.
pub(crate) fn draw(random: &mut Random, rules: &[Rule]) -> Vec<List> {
    let mut lists: Vec<List> = Vec::new();
    let has_v4 = random.one_in(5);
    let count = if has_v4 || random.one_in(2) { 1 + random.below(3) } else { 0 };
    for _ in 0..count {
        let evaluate = random.one_in(3);
        let drawn = (0..1 + random.below(5)).map(|_| prefix(random, &SOURCES)).collect::<Vec<_>>();
        let wanted = drawn.into_iter().filter(|p| has_v4 || p.addr().is_ipv6());
        let prefixes = wanted.filter(|p| !is_in_a_gap(*p, evaluate, rules, &lists)).collect();
        lists.push(List { prefixes, evaluate });
    }
    lists
}

/// Whether the kernel is known to say something else than the model here: it asks the longest prefix alone, so that one
/// that does nothing hides what lies around it. Blocks are settled against that before they are written, lists are not:
/// `lists.rs` beside this folder has the cases.
fn is_in_a_gap(prefix: IpNet, evaluate: bool, rules: &[Rule], before: &[List]) -> bool {
    let meets = |other: IpNet| other.contains(&prefix) || prefix.contains(&other);
    let is_idle = |r: &Rule| r.evaluate || r.origin.is_automatic() || r.expires_at_ns == Some(ENDED);
    let blocks = rules.iter().filter(|r| r.verdict == Verdict::Drop && r.matches.is_source_only());
    let mut blocks = blocks.filter(|r| r.matches.source.is_some_and(meets));
    let mut others = before.iter().filter(|list| list.evaluate != evaluate);
    // Those of IPv4 have a table of their own.
    (prefix.addr().is_ipv6() && blocks.any(|r| evaluate || is_idle(r)))
        || others.any(|list| list.prefixes.iter().any(|p| meets(*p)))
}
