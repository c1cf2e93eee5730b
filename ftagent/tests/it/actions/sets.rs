//! Members of ipsets on the real tool, in chunks: whose they are, what a set has no room for, deaths between and within
//! chunks, and the journals of agents that had a command for each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ftagent::actions::journal::{Entry, Journal};
use ftagent::actions::runner::{Runner as _, System};
use ftagent::engine::{Outcome, Wanted};
use ftagent_common::api::{SetListing, ToolStep};
use ipnet::IpNet;
use uuid::Uuid;

use super::real::{dump, inside, tool};
use super::{Dead, Death, LATER_NS, Mortal, open, outcomes, steps, wanted};

fn ban(set: &str, sources: &[&str]) -> Vec<ToolStep> {
    steps(&serde_json::json!({ "type": "ipset_ban", "set": set, "sources": sources }).to_string())
}

/// As many addresses, one after the other.
fn many(set: &str, first: u32, count: u32) -> Vec<ToolStep> {
    let sources: Vec<String> = (first..first + count).map(|n| format!("{}/32", std::net::Ipv4Addr::from(n))).collect();
    ban(set, &sources.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The members of a set, without their timeouts.
fn held(set: &str) -> Vec<String> {
    let (mut listing, mut members) = (SetListing::default(), Vec::new());
    let ran = System.list(&SetListing::argv(set), &mut |line| members.extend(listing.take(line)));
    assert!(ran.is_success(), "{ran:?}");
    let short = |net: &IpNet| if net.prefix_len() == 32 { net.addr().to_string() } else { net.to_string() };
    let mut members: Vec<String> = members.iter().map(short).collect();
    members.sort();
    members
}

fn done(dir: &Path, set: &[Wanted], ending: &[Uuid], now_ns: u64) {
    let mut keeper = open(System, dir, now_ns);
    keeper.set(set.to_vec(), ending.iter().copied());
    let acted = keeper.work(now_ns);
    let expected: Vec<&Outcome> =
        set.iter().map(|_| &Outcome::Applied).chain(ending.iter().map(|_| &Outcome::Undone)).collect();
    assert_eq!(outcomes(&acted), expected, "{acted:#?}");
    assert_eq!(keeper.stuck(), Vec::<String>::new());
}

#[test]
fn members_of_others_stay_and_shared_ones_go_with_the_last_who_wants_them() {
    inside(|| {
        tool("ipset create shop hash:net family inet timeout 0").unwrap();
        tool("ipset add shop 198.51.100.1 timeout 0").unwrap();
        tool("ipset add shop 203.0.113.0/24 timeout 0").unwrap();
        let before = dump();
        let dir = tempfile::tempdir().unwrap();
        let first = wanted(1, ban("shop", &["198.51.100.1/32", "198.51.100.2/32", "198.51.100.3/32"]));
        let second = wanted(2, ban("shop", &["198.51.100.1/32", "198.51.100.3/32", "10.0.0.0/16"]));
        done(dir.path(), std::slice::from_ref(&first), &[], LATER_NS);
        done(dir.path(), &[first.clone(), second.clone()], &[], LATER_NS);
        let all = ["10.0.0.0/16", "198.51.100.1", "198.51.100.2", "198.51.100.3", "203.0.113.0/24"];
        assert_eq!(held("shop"), all);
        // Another plan of the same action, without one of its sources: that one goes, and nothing else is touched.
        let less = wanted(1, ban("shop", &["198.51.100.1/32", "198.51.100.3/32"]));
        done(dir.path(), &[less, second.clone()], &[], LATER_NS);
        assert_eq!(held("shop"), ["10.0.0.0/16", "198.51.100.1", "198.51.100.3", "203.0.113.0/24"]);
        done(dir.path(), std::slice::from_ref(&second), &[first.task], 2 * LATER_NS);
        assert_eq!(held("shop"), ["10.0.0.0/16", "198.51.100.1", "198.51.100.3", "203.0.113.0/24"]);
        done(dir.path(), &[], &[second.task], 3 * LATER_NS);
        assert_eq!(dump(), before);
        done(dir.path(), &[], &[first.task, second.task], 4 * LATER_NS);
        assert_eq!(dump(), before);
    });
}

#[test]
fn what_a_set_does_not_take_is_refused_before_anything_is_put_in() {
    inside(|| {
        for (made, sources, part) in [
            ("hash:net family inet timeout 0 maxelem 3", &["10.0.0.1/32", "10.0.0.2/32"][..], "has room for 3 members"),
            ("hash:net family inet maxelem 100", &["10.0.0.1/32"], "without timeouts"),
            ("hash:ip family inet timeout 0", &["10.0.0.1/32", "10.0.0.0/24"], "takes no prefixes"),
            ("hash:ip,port family inet timeout 0", &["10.0.0.1/32"], "hash:ip,port"),
            // A set that drops a member when it is full would drop one of somebody else.
            ("hash:net family inet timeout 0 maxelem 3 forceadd", &["10.0.0.1/32", "10.0.0.2/32"], "has room for 3"),
        ] {
            tool(&format!("ipset create shop {made}")).unwrap();
            if made.contains("maxelem 3") {
                tool("ipset add shop 198.51.100.1").unwrap();
                tool("ipset add shop 198.51.100.2").unwrap();
            }
            let before = dump();
            let dir = tempfile::tempdir().unwrap();
            let mut keeper = open(System, dir.path(), 0);
            keeper.set(vec![wanted(1, ban("shop", sources))], []);
            let acted = keeper.work(LATER_NS);
            let [Outcome::Failed(why)] = outcomes(&acted)[..] else { panic!("{made}: {acted:#?}") };
            assert!(why.contains(part), "{made}: {why}");
            assert_eq!((dump(), keeper.stuck(), keeper.is_idle_but_wanted()), (before, Vec::new(), true), "{made}");
            assert_eq!(acted[0].commands, Vec::<Vec<String>>::new(), "{made}");
            tool("ipset destroy shop").unwrap();
        }
        // A plain hash:ip takes addresses.
        tool("ipset create shop hash:ip family inet timeout 0").unwrap();
        let before = dump();
        let dir = tempfile::tempdir().unwrap();
        let one = wanted(1, ban("shop", &["10.0.0.1/32"]));
        done(dir.path(), std::slice::from_ref(&one), &[], LATER_NS);
        assert_eq!(held("shop"), ["10.0.0.1"]);
        done(dir.path(), &[], &[one.task], LATER_NS);
        assert_eq!(dump(), before);
    });
}

#[test]
fn a_death_between_chunks_or_within_one_leaves_nothing_in_the_end() {
    inside(|| {
        // Three chunks; the first of them shares its set with somebody else's.
        // A set that grew stays large, which its dump says: this one is so from the start.
        tool("ipset create shop hash:net family inet timeout 0 maxelem 100000 hashsize 65536").unwrap();
        tool("ipset add shop 10.0.0.7 timeout 0").unwrap();
        let before = dump();
        let one = wanted(1, many("shop", 0x0a00_0000, 17_000));
        // The looks at set and rule come first, then the rule, then the chunks.
        for after in 0..8 {
            for has_run in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let mortal = Mortal { inner: System, death: Some(Death { after, has_run }) };
                let mut keeper = open(mortal, dir.path(), 0);
                keeper.set(vec![one.clone()], []);
                let is_dead = catch_unwind(AssertUnwindSafe(|| keeper.work(0))).is_err_and(|p| p.is::<Dead>());
                let within = held("shop").len();
                drop(keeper);
                if after == 5 && has_run {
                    // Undone at the next start, and again when nothing can come late any more.
                    assert!((1_000..17_000).contains(&within), "{within} are in: no death within a chunk");
                }
                let mut keeper = open(System, dir.path(), 0);
                keeper.set(Vec::new(), [one.task]);
                keeper.work(0);
                assert_eq!(held("shop"), ["10.0.0.7"], "{after} {has_run} {is_dead}");
                // What the dead agent's run adds late is found.
                if within > 1 {
                    tool("ipset add shop 10.0.0.9 timeout 60").unwrap();
                }
                keeper.work(LATER_NS);
                assert!(keeper.is_idle(), "{after} {has_run}");
                assert_eq!(dump(), before, "{after} {has_run} {is_dead}");
            }
        }
        // Begun again instead, it is whole.
        let dir = tempfile::tempdir().unwrap();
        let mortal = Mortal { inner: System, death: Some(Death { after: 5, has_run: true }) };
        let mut keeper = open(mortal, dir.path(), 0);
        keeper.set(vec![one.clone()], []);
        assert!(catch_unwind(AssertUnwindSafe(|| keeper.work(0))).is_err());
        drop(keeper);
        done(dir.path(), std::slice::from_ref(&one), &[], 0);
        assert_eq!(held("shop").len(), 17_000);
        done(dir.path(), &[], &[one.task], LATER_NS);
        assert_eq!(dump(), before);
    });
}

#[test]
fn somebody_elses_hands_are_seen_by_one_listing() {
    inside(|| {
        let before = dump();
        let dir = tempfile::tempdir().unwrap();
        let one = wanted(1, many("shop", 0x0a00_0000, 9_000));
        let mut keeper = open(System, dir.path(), 0);
        keeper.set(vec![one.clone()], []);
        assert_eq!(outcomes(&keeper.work(0)), [&Outcome::Applied]);
        tool("ipset flush shop").unwrap();
        keeper.repair(1);
        assert_eq!(held("shop").len(), 9_000);
        // A listing takes a hundredth of the time at most.
        tool("ipset del shop 10.0.0.1").unwrap();
        keeper.repair(2);
        assert_eq!(held("shop").len(), 8_999);
        keeper.repair(LATER_NS);
        assert_eq!(held("shop").len(), 9_000);
        keeper.set(Vec::new(), [one.task]);
        assert_eq!(outcomes(&keeper.work(LATER_NS)), [&Outcome::Undone]);
        assert_eq!(dump(), before);
    });
}

#[test]
fn the_journal_of_an_agent_that_had_a_command_for_each_is_taken_over() {
    inside(|| {
        let before = dump();
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let old = |n: usize, place| {
            let (run, undo) =
                (format!("ipset add shop 10.0.0.{n} timeout 60 -exist"), format!("ipset del shop 10.0.0.{n} -exist"));
            let step = ToolStep { run: words(&run), undo: words(&undo), unless: Vec::new(), members: None };
            let boot = "this boot".to_owned();
            Entry { task: Uuid::from_u128(1), step, place, found: n == 3, before: None, boot, theirs: Vec::new() }
        };
        for is_wanted in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let plan = ban("shop", &["10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"]);
            let mut journal = Journal::open(&dir.path().join("journal"));
            journal.begin((1..=4).map(|n| old(n, n as u32 + 1)).collect()).unwrap();
            drop(journal);
            // Written as it was: no word of what is new.
            let text = std::fs::read_to_string(dir.path().join("journal")).unwrap();
            assert!(!text.contains("members") && !text.contains("theirs"), "{text}");
            tool("ipset create shop hash:net family inet timeout 60").unwrap();
            let with_set = dump();
            for n in 1..=4 {
                tool(&format!("ipset add shop 10.0.0.{n} timeout 60")).unwrap();
            }
            let one = wanted(1, plan);
            if is_wanted {
                done(dir.path(), std::slice::from_ref(&one), &[], LATER_NS);
                assert_eq!(held("shop"), ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "what is not wanted any more goes");
            }
            done(dir.path(), &[], &[one.task], 2 * LATER_NS);
            assert_eq!(held("shop"), ["10.0.0.3"], "the one that was there before stays");
            tool("ipset del shop 10.0.0.3").unwrap();
            assert_eq!(dump(), with_set);
            tool("ipset destroy shop").unwrap();
        }
        assert_eq!(dump(), before);
    });
}
