//! Blocks inside blocks. A trie answers with its longest prefix alone, so that a narrow block that has ended, or is
//! only evaluated, would hide a wide one that is in force. Pure.

use std::collections::BTreeMap;

use ftagent_common::abi::{AUTOMATIC, Block, EVALUATE};
use ipnet::IpNet;

/// What holds of two blocks: one that is enforced before one that is evaluated, an operator's before an automatic one,
/// and then the one that lasts longer.
///
/// An operator's that has ended hides an automatic one only until user space takes it away, and when user space is
/// silent automatic ones do not count.
pub(super) fn rank(block: &Block) -> (bool, bool, u64) {
    let ends = if block.expires_at_ns == 0 { u64::MAX } else { block.expires_at_ns };
    (block.flags & EVALUATE == 0, block.flags & AUTOMATIC == 0, ends)
}

/// Gives each prefix the strongest of its own block and those around it, and takes evaluated blocks away that lie in
/// an enforced one: they decide nothing there. Hits are then counted for the rule that holds.
///
/// Single addresses keep their own: they have tables of their own, and the prefixes are asked after those.
pub(super) fn settle(blocks: &mut BTreeMap<IpNet, Block>) {
    let mut around: Vec<(IpNet, Block)> = Vec::new();
    // In this order a prefix comes after all that contain it.
    blocks.retain(|prefix, block| {
        while around.last().is_some_and(|(wide, _)| !wide.contains(prefix)) {
            around.pop();
        }
        let is_evaluated = block.flags & EVALUATE != 0;
        let strongest = around.last().map(|(_, strongest)| *strongest);
        let is_address = prefix.prefix_len() == prefix.max_prefix_len();
        match strongest {
            Some(wide) if wide.flags & EVALUATE == 0 && is_evaluated => return false,
            Some(wide) if !is_address && rank(&wide) > rank(block) => *block = wide,
            _ => {}
        }
        around.push((*prefix, *block));
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks as `prefix rule ends flags`, and which rule each prefix has in the end.
    fn check(blocks: &[(&str, u32, u64, u8)], expected: &[(&str, u32)]) {
        let net = |text: &str| -> IpNet { text.parse().expect(text) };
        let mut settled = blocks
            .iter()
            .map(|(prefix, rule, ends, flags)| {
                (net(prefix), Block { expires_at_ns: *ends, rule: *rule, flags: *flags, padding: [0; 3] })
            })
            .collect();
        settle(&mut settled);
        let rules: Vec<(IpNet, u32)> = settled.iter().map(|(prefix, block)| (*prefix, block.rule)).collect();
        let expected: Vec<(IpNet, u32)> = expected.iter().map(|(prefix, rule)| (net(prefix), *rule)).collect();
        assert_eq!(rules, expected, "{blocks:?}");
    }

    #[test]
    fn a_block_that_ends_first_does_not_hide_the_one_around_it() {
        check(&[("10.0.0.0/8", 1, 0, 0), ("10.1.0.0/16", 2, 500, 0)], &[("10.0.0.0/8", 1), ("10.1.0.0/16", 1)]);
        check(&[("10.0.0.0/8", 1, 500, 0), ("10.1.0.0/16", 2, 0, 0)], &[("10.0.0.0/8", 1), ("10.1.0.0/16", 2)]);
        let three = [("2001:db8::/32", 1, 9, 0), ("2001:db8::/40", 2, 5, 0), ("2001:db8::/44", 3, 7, 0)];
        check(&three, &[("2001:db8::/32", 1), ("2001:db8::/40", 1), ("2001:db8::/44", 1)]);
    }

    #[test]
    fn an_automatic_block_does_not_hide_an_operators() {
        let blocks = [("10.0.0.0/8", 1, 500, 0), ("10.1.0.0/16", 2, 0, AUTOMATIC)];
        check(&blocks, &[("10.0.0.0/8", 1), ("10.1.0.0/16", 1)]);
    }

    #[test]
    fn an_evaluated_block_hides_nothing() {
        let blocks = [("10.0.0.0/8", 1, 0, 0), ("10.1.0.0/16", 2, 0, EVALUATE), ("10.1.0.7/32", 3, 0, EVALUATE)];
        check(&blocks, &[("10.0.0.0/8", 1)]);
        let alone = [("10.0.0.0/8", 1, 0, EVALUATE), ("10.1.0.7/32", 3, 0, EVALUATE), ("11.0.0.0/8", 4, 0, 0)];
        check(&alone, &[("10.0.0.0/8", 1), ("10.1.0.7/32", 3), ("11.0.0.0/8", 4)]);
    }

    #[test]
    fn neighbours_and_addresses_keep_their_own() {
        let blocks = [("10.0.0.0/9", 1, 0, 0), ("10.0.0.7/32", 2, 5, 0), ("10.128.0.0/9", 3, 5, 0)];
        check(&blocks, &[("10.0.0.0/9", 1), ("10.0.0.7/32", 2), ("10.128.0.0/9", 3)]);
    }
}
