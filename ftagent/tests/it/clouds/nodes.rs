//! Two nodes with the same provider: each is right, and neither undoes what is the other's.

use ftagent::actions::cloud::CloudKeeper;
use ftagent::engine::Wanted;

use super::{CASES, Case, LATER_NS, SEC, Site, done, undone};

const MARKS: [&str; 2] = ["node-one-0123456789abcdef", "node-two-fedcba9876543210"];

fn two(site: &Site, case: Case) -> [CloudKeeper; 2] {
    MARKS.map(|mark| site.keeper_of(case.tool, mark, 0))
}

#[test]
fn a_source_that_two_nodes_block_is_blocked_until_both_undo() {
    for case in CASES {
        for first in [0, 1] {
            let site = Site::new(case.tool);
            let before = site.receiver.snapshot();
            let mut nodes = two(&site, case);
            let wanted = || vec![case.wanted(1, &["198.51.100.7/32"])];
            let mut now_ns = SEC;
            nodes.iter_mut().for_each(|node| drop(done(node, wanted(), SEC)));
            // Each looks while both want it: nothing changes.
            let during = site.receiver.snapshot();
            nodes.iter_mut().for_each(|node| drop(node.repair(LATER_NS)));
            assert_eq!(site.receiver.snapshot(), during, "{case:?}");
            now_ns += LATER_NS;
            undone(&mut nodes[first], vec![], &[1], now_ns);
            // At the other's next look it is blocked again, if it was not all the time.
            nodes[1 - first].repair(now_ns + 60 * SEC);
            assert!(site.receiver.blocks("198.51.100.7"), "{case:?}");
            now_ns += LATER_NS;
            undone(&mut nodes[1 - first], vec![], &[1], now_ns);
            assert_eq!(site.receiver.snapshot(), before, "{case:?}");
            assert!(nodes.iter().all(CloudKeeper::is_idle));
        }
    }
}

#[test]
fn nodes_that_block_different_sources_do_not_meet() {
    for case in CASES {
        for first in [0, 1] {
            let site = Site::new(case.tool);
            let before = site.receiver.snapshot();
            let mut nodes = two(&site, case);
            // Neighbours, so that Vultr has room for both.
            let sources = ["198.51.100.6/32", "198.51.100.7/32"];
            let wanted = |node: usize| -> Vec<Wanted> { vec![case.wanted(1, &sources[node..=node])] };
            for (at, node) in nodes.iter_mut().enumerate() {
                done(node, wanted(at), SEC);
            }
            for node in &mut nodes {
                node.repair(LATER_NS);
            }
            assert!(sources.iter().all(|source| site.receiver.blocks(source)), "{case:?}");
            undone(&mut nodes[first], vec![], &[1], 2 * LATER_NS);
            assert!(!site.receiver.blocks(sources[first]) && site.receiver.blocks(sources[1 - first]), "{case:?}");
            nodes[1 - first].repair(3 * LATER_NS);
            undone(&mut nodes[1 - first], vec![], &[1], 4 * LATER_NS);
            assert_eq!(site.receiver.snapshot(), before, "{case:?} {first}");
        }
    }
}
