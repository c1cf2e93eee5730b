//! The keeper on the real iptables, ipset, ip and sysctl, in a network namespace of each test's own.

use std::iter::StepBy;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

use ftagent::actions::keeper::Keeper;
use ftagent::actions::runner::{Ran, Runner, System};
use ftagent::engine::{Outcome, Wanted};
use ftagent::program::PATH;
use ftagent_common::api::{NodeMeans, SetListing, ToolStep};
use ftagent_lab::floods::Dice;
use nix::sched::{CloneFlags, unshare};

use super::random::{count, sequence};
use super::{LATER_NS, LOCAL, do_step, open, outcomes, steps, steps_where, undo_step, wanted};

const DUMPS: &[&[&str]] = &[
    &["iptables-save"],
    &["ip6tables-save"],
    &["ipset", "save"],
    &["nft", "list", "ruleset"],
    &["ip", "-4", "rule"],
    &["ip", "-6", "rule"],
    &["ip", "-4", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["tc", "qdisc", "show", "dev", "lo"],
    &["tc", "filter", "show", "dev", "lo", "ingress"],
    &["ip", "-o", "link", "show", "type", "ifb"],
    &["sysctl", "net.ipv4.tcp_syncookies"],
];

/// Runs `test` in a network namespace of its own, where there is something of somebody else in every tool; skipped
/// without the right to make one.
pub(super) fn inside(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(why) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("skipped: a network namespace cannot be made: {why}");
            return;
        }
        for words in [
            "ip link set lo up",
            "iptables -P INPUT ACCEPT",
            "ip6tables -P INPUT ACCEPT",
            "iptables -A INPUT -s 203.0.113.9/32 -j DROP",
            "iptables -A INPUT -p udp -m comment --comment mine -j ACCEPT",
            "ipset create theirs hash:net family inet",
            "ipset add theirs 198.51.100.7",
            "ip route add blackhole 203.0.113.77/32",
            "ip rule add pref 186 from 203.0.113.77/32 blackhole",
            "sysctl -w net.ipv4.tcp_syncookies=0",
        ] {
            tool(words).unwrap();
        }
        test();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

pub(super) fn tool(words: &str) -> Result<String, String> {
    let ran = System.run(&words.split(' ').map(str::to_owned).collect::<Vec<_>>());
    if ran.is_success() { Ok(ran.output) } else { Err(format!("{words}: {}", ran.text())) }
}

pub(super) fn dump() -> String {
    let of = |words: &&[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).env("PATH", PATH).output().expect(words[0]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Times of the dump are no rules, and counters of policies grow with the machine's own discovery of neighbours.
        // A program that is loaded again has another number, and so has the table of a filter that is made again.
        let line = |l: &str| {
            let l = l.split(" [").next().and_then(|l| l.split(" id ").next()).unwrap_or(l);
            let words: Vec<&str> = l.split(' ').collect();
            let is_number = |at: usize| at > 0 && words.contains(&"u32") && ["fh", "ht"].contains(&words[at - 1]);
            let kept = words.iter().enumerate().filter(|(at, _)| !is_number(*at));
            kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
        };
        let lines = text.lines().filter(|l| !l.starts_with('#')).map(line);
        format!("{words:?}\n{}\n", lines.collect::<Vec<_>>().join("\n"))
    };
    DUMPS.iter().map(of).collect()
}

pub(super) fn same(what: &str, now: &str, before: &str) {
    let only =
        |a: &str, b: &str| a.lines().filter(|l| !b.lines().any(|m| m == *l)).map(str::to_owned).collect::<Vec<_>>();
    let first = now.lines().zip(before.lines()).find(|(now, before)| now != before);
    assert!(now == before, "{what}: new {:#?}, gone {:#?}, first {first:?}", only(now, before), only(before, now));
}

/// Everything that an action must survive on its tool; `dump` is the tool's own word on what it holds.
pub(super) fn survive(json: &str, dump: &dyn Fn() -> String) {
    survive_plan(json, steps(json), dump);
}

/// The same of a plan of `json`.
pub(super) fn survive_plan(json: &str, plan: Vec<ToolStep>, dump: &dyn Fn() -> String) {
    let dir = tempfile::tempdir().unwrap();
    let one = wanted(1, plan);
    let before = dump();
    let mut keeper = open(System, dir.path(), 0);
    keeper.set(vec![one.clone()], []);
    let acted = keeper.work(0);
    assert_eq!(outcomes(&acted), [&Outcome::Applied], "{json}: {acted:#?}");
    // What is shown is what was run, but for what was there.
    let shown: Vec<_> = one.steps.iter().map(|s| s.run.clone()).collect();
    assert_eq!(acted[0].commands, shown, "{json}");
    let during = dump();
    assert_ne!(during, before, "{json} has no effect");
    for step in &one.steps {
        assert_eq!(there(step), Some(true), "{json}: {step:?}\n{during}");
    }
    // Twice is once, also after a restart and by another action; a look changes nothing.
    keeper.set(vec![one.clone(), Wanted { task: uuid::Uuid::from_u128(2), ..one.clone() }], []);
    assert_eq!(outcomes(&keeper.work(0)), [&Outcome::Applied], "{json}");
    assert_eq!(keeper.repair(0), [], "{json}");
    let mut keeper = open(System, dir.path(), 0);
    keeper.set(vec![one.clone()], []);
    let again = keeper.work(0);
    assert_eq!((outcomes(&again), again[0].commands.len()), (vec![&Outcome::Applied], 0), "{json}");
    same(json, &dump(), &during);
    // Undone, and undone twice.
    keeper.set(Vec::new(), [one.task]);
    let undone = keeper.work(LATER_NS);
    assert_eq!(outcomes(&undone), [&Outcome::Undone], "{json}: {undone:#?}");
    same(json, &dump(), &before);
    keeper.set(Vec::new(), [one.task]);
    assert_eq!(outcomes(&keeper.work(LATER_NS)), [&Outcome::Undone], "{json}");
    assert!(keeper.is_idle());
    same(json, &dump(), &before);
    half_applied(json, dir.path(), &one, &before, dump);
    found(json, dir.path(), &one, &before, dump);
    taken_away(json, dir.path(), &one, &before, dump);
    println!("{json}: {} step(s)", one.steps.len());
}

pub(super) fn there(step: &ToolStep) -> Option<bool> {
    if let Some(members) = &step.members {
        let (mut listing, mut seen) = (SetListing::default(), Vec::new());
        System.list(&SetListing::argv(&members.set), &mut |line| seen.extend(listing.take(line)));
        return Some(members.prefixes.iter().all(|prefix| seen.contains(prefix)));
    }
    let look = step.look().expect("a look");
    let ran = System.run(&look.argv);
    look.sees(ran.exit, &ran.output)
}

/// A step that fails takes those before it with it.
fn half_applied(json: &str, dir: &Path, one: &Wanted, before: &str, dump: &dyn Fn() -> String) {
    let mut broken = one.clone();
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    broken.steps.push(ToolStep {
        run: words("ip route add blackhole 300.1.2.3/32 proto 248"),
        undo: words("ip route del blackhole 300.1.2.3/32 proto 248"),
        unless: Vec::new(),
        members: None,
    });
    let mut keeper = open(System, dir, 0);
    keeper.set(vec![broken], []);
    let acted = keeper.work(LATER_NS);
    let [Outcome::Failed(why)] = outcomes(&acted)[..] else { panic!("{json}: {acted:#?}") };
    assert!(why.contains("300.1.2.3"), "the tool's own words: {why}");
    same(json, &dump(), before);
    assert!(keeper.stuck().is_empty() && keeper.is_idle_but_wanted(), "{json}: {:?}", keeper.stuck());
}

/// What was there before and is not marked as ours stays.
fn found(json: &str, dir: &Path, one: &Wanted, before: &str, dump: &dyn Fn() -> String) {
    let theirs: Vec<&ToolStep> =
        one.steps.iter().filter(|s| !s.unless.is_empty() || !s.look().is_some_and(|l| l.is_marked)).collect();
    for step in &theirs {
        assert!(do_step(&mut System, step).is_success(), "{json}: {step:?}");
    }
    let foreign = dump();
    let mut keeper = open(System, dir, 0);
    keeper.set(vec![one.clone()], []);
    let acted = keeper.work(0);
    if one.steps.iter().any(|step| step.is_stacked() && step.spares()) {
        // Nobody knows whether theirs stands before what it must stand before.
        let [Outcome::Failed(why)] = outcomes(&acted)[..] else { panic!("{json}: {acted:#?}") };
        assert!(why.contains("somebody else has this rule already"), "{json}: {why}");
    } else {
        assert_eq!(outcomes(&acted), [&Outcome::Applied], "{json}");
        // Also a keeper that has it from the journal alone.
        drop(keeper);
        let mut keeper = open(System, dir, 0);
        keeper.set(Vec::new(), [one.task]);
        assert_eq!(outcomes(&keeper.work(LATER_NS)), [&Outcome::Undone], "{json}");
    }
    same(json, &dump(), &foreign);
    for step in theirs.iter().rev() {
        undo_step(&mut System, step);
    }
    same(json, &dump(), before);
}

/// What somebody else takes away comes again, and goes in the end.
fn taken_away(json: &str, dir: &Path, one: &Wanted, before: &str, dump: &dyn Fn() -> String) {
    let mut keeper = open(System, dir, 0);
    keeper.set(vec![one.clone()], []);
    keeper.work(0);
    let during = dump();
    let last = one.steps.last().expect("a step");
    assert!(undo_step(&mut System, last).is_success(), "{json}: {last:?}");
    for _ in 0..=one.steps.len() / 32 {
        keeper.repair(0);
    }
    same(json, &dump(), &during);
    keeper.set(Vec::new(), [one.task]);
    keeper.work(LATER_NS);
    same(json, &dump(), before);
}

#[test]
fn every_action_of_the_machines_own_tools_is_done_and_undone_without_a_trace() {
    inside(|| {
        for json in LOCAL {
            survive(json, &dump);
        }
    });
}

/// A filter whose device is gone drops everything, and looks as if it were there.
#[test]
fn a_filter_without_its_device_does_not_stay() {
    inside(|| {
        let before = dump();
        let dir = tempfile::tempdir().unwrap();
        // Two rates: the stricter comes first, since nothing that is redirected comes to another.
        let strict = steps(r#"ifb {"type":"tc_police_interface","interface":"lo","bps":8000}"#);
        let all = vec![wanted(1, steps(LOCAL[13])), wanted(2, strict.clone())];
        let place = |steps: &[ToolStep]| steps.last().unwrap().run[7].parse::<u32>().unwrap();
        assert!(place(&strict) < place(&all[0].steps));
        let gone = |steps: &[ToolStep]| tool(&steps[0].undo.join(" ")).unwrap();
        let mut keeper = open(System, dir.path(), 0);
        keeper.set(all.clone(), []);
        assert_eq!(outcomes(&keeper.work(0)), [&Outcome::Applied, &Outcome::Applied]);
        let during = dump();
        gone(&strict);
        assert_eq!(there(strict.last().unwrap()), Some(false));
        // By who goes on, and by who starts next.
        keeper.repair(0);
        assert!(all.iter().flat_map(|one| &one.steps).all(|step| there(step) == Some(true)));
        gone(&strict);
        let mut keeper = open(System, dir.path(), 0);
        keeper.set(all.clone(), []);
        assert_eq!(outcomes(&keeper.work(0)), [&Outcome::Applied, &Outcome::Applied]);
        assert!(all.iter().flat_map(|one| &one.steps).all(|step| there(step) == Some(true)));
        assert_eq!(dump().lines().count(), during.lines().count(), "nothing twice: {}", dump());
        gone(&strict);
        keeper.set(Vec::new(), all.iter().map(|one| one.task));
        assert_eq!(outcomes(&keeper.work(LATER_NS)), [&Outcome::Undone, &Outcome::Undone]);
        assert!(keeper.is_idle(), "{:?}", keeper.stuck());
        same("undone", &dump(), &before);
    });
}

#[test]
fn the_tools_are_as_before_after_any_sequence() {
    in_lanes(u64::from(count(60)), some_sequences);
}

/// Does so many sequences, a share in each of several threads: tools are waited for more than they work.
pub(super) fn in_lanes(sequences: u64, some: impl Fn(StepBy<RangeInclusive<u64>>) + Copy + Send) {
    std::thread::scope(|lanes| {
        for first in 1..=LANES {
            lanes.spawn(move || some((first..=sequences).step_by(LANES as usize)));
        }
    });
}

/// Whether somebody else may take it away between two looks and nobody is harmed by what is tried then.
fn is_taken_away(step: &ToolStep) -> bool {
    step.run[0].ends_with("tables")
        || step.run[0] == "tc"
        || step.run[..2] == ["ip", "link"]
        || step.run[0] == "ftagent"
}

/// Namespaces in which sequences run at the same time.
const LANES: u64 = 4;

/// A sequence for each seed, in a namespace of their own.
fn some_sequences(seeds: StepBy<RangeInclusive<u64>>) {
    inside(|| {
        let (before, mut done) = (dump(), 0);
        for seed in seeds {
            let dir = tempfile::tempdir().unwrap();
            let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let log = sequence(
                &mut dice,
                dir.path(),
                &LOCAL,
                || System,
                |dice, set| {
                    let all: Vec<_> = set.iter().flat_map(|w| &w.steps).filter(|s| is_taken_away(s)).collect();
                    if !all.is_empty() {
                        System.run(&all[dice.below(all.len() as u64) as usize].undo);
                    }
                },
            );
            let after = dump();
            assert!(after == before, "seed {seed}: {log:#?}\nbefore {before}\nafter {after}");
            done += 1;
            if seed.is_multiple_of(500) {
                eprintln!("sequence {seed} is over");
            }
        }
        println!("{done} sequences on the real tools");
    });
}

/// A machine without one of the tools.
struct Without(&'static str);

impl Without {
    fn renamed(&self, argv: &[String]) -> Vec<String> {
        let mut argv = argv.to_vec();
        if argv[0] == self.0 {
            argv[0] = format!("{}-that-nobody-has", self.0);
        }
        argv
    }
}

impl Runner for Without {
    fn run(&mut self, argv: &[String]) -> Ran {
        System.run(&self.renamed(argv))
    }

    fn feed(&mut self, argv: &[String], input: &str) -> Ran {
        System.feed(&self.renamed(argv), input)
    }

    fn list(&mut self, argv: &[String], hear: &mut dyn FnMut(&str)) -> Ran {
        System.list(&self.renamed(argv), hear)
    }
}

#[test]
fn a_missing_tool_is_a_failure_that_says_so_and_leaves_nothing() {
    inside(|| {
        let before = dump();
        let firewalld = r#"{"type":"firewalld_drop_source","sources":["198.51.100.7/32"]}"#;
        for (json, tool) in [
            (LOCAL[0], "iptables"),
            (LOCAL[1], "ip6tables"),
            (LOCAL[8], "ipset"),
            (LOCAL[8], "iptables"),
            (LOCAL[10], "ip"),
            (LOCAL[12], "sysctl"),
            (r#"{"type":"ufw_deny_source","sources":["198.51.100.7/32"]}"#, "ufw"),
            (firewalld, "busctl"),
            (firewalld, "firewall-cmd"),
            (r#"{"type":"fail2ban_ban","jail":"sshd","sources":["198.51.100.7/32"]}"#, "fail2ban-client"),
            (r#"{"type":"tc_police_interface","interface":"lo","bps":8000}"#, "tc"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut keeper: Keeper<Without> = open(Without(tool), dir.path(), 0);
            let node = NodeMeans { lacks_busctl: tool == "firewall-cmd", police: None };
            keeper.set(vec![wanted(1, steps_where(json, node))], []);
            let acted = keeper.work(0);
            let [Outcome::Failed(why)] = outcomes(&acted)[..] else { panic!("{json}: {acted:#?}") };
            assert!(why.contains("is not installed: install the package"), "{json}: {why}");
            assert_eq!(keeper.stuck(), Vec::<String>::new(), "{json}");
            same(json, &dump(), &before);
        }
    });
}
