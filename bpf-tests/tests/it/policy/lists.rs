//! Operators' lists in the model: a source is on a list if one of its prefixes contains it, and a list that is only
//! evaluated drops nothing.

use std::net::IpAddr;

use ipnet::IpNet;

use super::draw::{SOURCES, prefix};
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
pub(crate) fn draw(random: &mut Random) -> Vec<List> {
    let mut lists: Vec<List> = Vec::new();
    let has_v4 = random.one_in(5);
    let count = if has_v4 || random.one_in(2) { 1 + random.below(3) } else { 0 };
    for _ in 0..count {
        let evaluate = random.one_in(3);
        let drawn = (0..1 + random.below(5)).map(|_| prefix(random, &SOURCES)).collect::<Vec<_>>();
        let wanted = drawn.into_iter().filter(|p| has_v4 || p.addr().is_ipv6());
        lists.push(List { prefixes: wanted.collect(), evaluate });
    }
    lists
}
