//! Blocks of IPv6 sources that an earlier agent left, kept until the lists that they may be of are loaded again.
//!
//! The table of a list's IPv4 prefixes stays by itself. IPv6 prefixes of lists lie among the blocks of rules: what no
//! rule wants may be a list's, and a file that is slow, missing or being written to is no reason to let it pass.

use std::collections::BTreeMap;

use ftagent_common::abi::{AUTOMATIC, Block, NO_RULE};
use ftagent_common::packet::Ip;

use crate::xdp::compile::Tables;
use crate::xdp::table::TrieKey;

#[derive(Debug, Default)]
pub(super) struct Left {
    block6: BTreeMap<Ip, Block>,
    block6_net: BTreeMap<[u32; 3], Block>,
    block6_prefix: BTreeMap<TrieKey<Ip>, Block>,
}

impl Left {
    /// What is `there`, by nobody's detection, and not `wanted` by any rule. What has an end may be a decision of CrowdSec.
    pub(super) fn behind(there: &Tables, wanted: &Tables) -> Self {
        Self {
            block6: rest(&there.block6, &wanted.block6),
            block6_net: rest(&there.block6_net, &wanted.block6_net),
            block6_prefix: rest(&there.block6_prefix, &wanted.block6_prefix),
        }
    }

    /// Adds it to what is wanted; what a rule says of the same source holds.
    pub(super) fn keep(&self, wanted: &mut Tables) {
        self.block6.iter().for_each(|(key, block)| _ = wanted.block6.entry(*key).or_insert(*block));
        self.block6_net.iter().for_each(|(key, block)| _ = wanted.block6_net.entry(*key).or_insert(*block));
        self.block6_prefix.iter().for_each(|(key, block)| _ = wanted.block6_prefix.entry(*key).or_insert(*block));
    }
}

fn rest<K: Ord + Copy>(there: &BTreeMap<K, Block>, wanted: &BTreeMap<K, Block>) -> BTreeMap<K, Block> {
    let is_left = |(key, block): &(&K, &Block)| block.flags & AUTOMATIC == 0 && !wanted.contains_key(*key);
    // Its counter slot was the earlier agent's, and may be another rule's now.
    there.iter().filter(is_left).map(|(key, block)| (*key, Block { rule: NO_RULE, ..*block })).collect()
}

#[cfg(test)]
mod tests {
    use ftagent_common::abi::PRESENT;

    use super::*;

    #[test]
    fn what_lists_left_is_kept_and_what_is_automatic_or_wanted_is_not() {
        let block = |expires_at_ns, flags| Block { expires_at_ns, rule: 3, flags: PRESENT | flags, padding: [0; 3] };
        let ip = |last| Ip::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        let mut there = Tables::default();
        there.block6.extend([
            (ip(1), block(0, 0)),
            (ip(2), block(9, 0)),
            (ip(3), block(0, AUTOMATIC)),
            (ip(4), block(0, 0)),
        ]);
        let mut wanted = Tables::default();
        wanted.block6.insert(ip(4), Block { rule: 7, ..block(0, 0) });
        Left::behind(&there, &wanted).keep(&mut wanted);
        let rules: Vec<(Ip, u32)> = wanted.block6.iter().map(|(ip, block)| (*ip, block.rule)).collect();
        assert_eq!(rules, [(ip(1), NO_RULE), (ip(2), NO_RULE), (ip(4), 7)]);
        assert_eq!(wanted.block6[&ip(2)].expires_at_ns, 9, "its end is the same");
    }
}
