//! As root in a network namespace of its own; skipped elsewhere with the reason. Packets: `bpf-tests`.

use ftagent_common::api::AllowEntry;

use super::*;
use crate::clock;
use crate::engine::{Matches, Origin, Point, Rule, Verdict};
use crate::test_ground::{in_an_empty_network, run};

fn desired(sources: &[&str], allow: &[&str]) -> RuleSet {
    let rule = |(id, source): (u64, &&str)| Rule {
        id: RuleId(id),
        matches: Matches::source(source.parse().expect("a prefix")),
        verdict: Verdict::Drop,
        point: Point::Datapath,
        origin: Origin::Operator,
        expires_at_ns: None,
        evaluate: false,
    };
    let entry = |net: &&str| AllowEntry { prefix: net.parse().expect("a prefix"), label: String::new() };
    RuleSet {
        rules: (1..).zip(sources).map(rule).map(|rule| (rule.id, rule)).collect(),
        allow: allow.iter().map(entry).collect(),
        ..RuleSet::default()
    }
}

/// All that there is of rules and routes.
fn dump() -> String {
    let all: [&[&str]; 4] = [
        &["-4", "rule"],
        &["-6", "rule"],
        &["-4", "route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
    ];
    all.map(|words| run("ip", words)).concat()
}

fn told(results: &[EnforceResult]) -> Vec<(u64, bool, bool)> {
    results.iter().map(|result| (result.rule.0, result.installed, result.result.is_ok())).collect()
}

#[test]
fn routes_and_rules_are_made_repaired_and_taken_away_beside_those_of_others() {
    in_an_empty_network(|| {
        let dir = tempfile::tempdir().expect("a directory");
        run("ip", &["link", "set", "lo", "up"]);
        // Somebody else's, in our very places.
        run("ip", &["route", "add", "blackhole", "192.0.2.0/24", "table", "63401"]);
        run("ip", &["rule", "add", "pref", "247", "from", "192.0.2.1", "lookup", "main"]);
        run("ip", &["-6", "rule", "add", "pref", "246", "from", "2001:db8:9::/48", "blackhole"]);
        let before = dump();
        let devices = ["lo".to_owned()];
        let new = || {
            let mut rung = NullRoute::new(dir.path());
            assert_eq!(rung.prepare(&devices), Ok(Vec::new()));
            assert_eq!(dump(), before, "what was tried is gone");
            rung.set(OfDatapath::All, &devices);
            rung
        };
        let mut rung = new();
        let wanted = desired(&["198.51.100.0/30", "2001:db8::7/128", "10.0.0.0/7"], &["198.51.100.1/32"]);
        let results = rung.reconcile(&wanted, clock::now());
        assert_eq!(told(&results), [(1, true, true), (2, true, true), (3, true, false)]);
        assert!(rung.failing()[&RuleId(3)].contains("cut the node off"), "{:?}", rung.failing());
        let during = dump();
        for line in [
            "blackhole 198.51.100.0 ",
            "blackhole 198.51.100.2/31 ",
            "blackhole 2001:db8::7 ",
            "247:\tfrom all lookup 63401",
        ] {
            assert!(during.contains(line), "{line} in {during}");
        }
        assert!(during.contains("246:\tfrom 2001:db8::7 blackhole"), "{during}");
        assert!(!during.contains("from 198.51.100"), "the way back is checked: {during}");
        let filter = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/lo/rp_filter").expect("a value");
        assert_eq!(filter().trim(), "2");
        assert_eq!(told(&rung.reconcile(&wanted, clock::now())), []);
        assert_eq!(dump(), during, "twice is once");

        // Somebody takes away what is ours.
        run("ip", &["route", "del", "blackhole", "198.51.100.2/31", "table", "63401"]);
        run("ip", &["rule", "del", "pref", "247", "lookup", "63401"]);
        std::fs::write("/proc/sys/net/ipv4/conf/lo/rp_filter", "0").expect("written");
        assert_eq!(told(&rung.reconcile(&wanted, clock::now())), []);
        let lines = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(&dump()), lines(&during), "repaired");
        assert_eq!(filter().trim(), "2");

        // The agent dies; its heir has no use for the rung.
        drop(rung);
        let mut heir = NullRoute::new(dir.path());
        assert_eq!(told(&heir.reconcile(&wanted, clock::now())), []);
        assert_eq!(lines(&dump()), lines(&before), "what the dead one left is gone, and nobody else's");
        assert_eq!(filter().trim(), "0", "as it was");

        let mut rung = new();
        rung.reconcile(&wanted, clock::now());
        assert_eq!(told(&rung.reconcile(&desired(&[], &[]), clock::now())), [(1, false, true), (2, false, true)]);
        assert_eq!(lines(&dump()), lines(&before));
        rung.reconcile(&wanted, clock::now());
        rung.remove_all().expect("removed");
        rung.remove_all().expect("removed twice");
        assert_eq!((lines(&dump()), filter().trim()), (lines(&before), "0"));
    });
}
