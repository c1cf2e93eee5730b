//! A hundred thousand sources into each tool that has sets: how long until the last of them is kept out and until it is
//! heard again, what that needs of memory, and what it costs everybody else's packets.
//!
//! `FTAGENT_ACTION_SOURCES=1000,10000,100000 cargo test --release -p ftagent --test it -- --nocapture actions::sets_bench`
//! prints figures; without the variable a few sources go the same way. Only what must hold is judged: that everything is
//! applied, has its effect, and is undone without a trace.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ftagent::clock;
use ftagent::enforce::nftables::Nftables;
use ftagent::engine::{ActionSet, Ending, Now, Outcome, RuleSet};

use super::bench::{Bench, asked};
use crate::profiles::site::{NODE, OPERATOR, STRANGER, inside, run};

/// So long packets of everybody else are counted.
const COUNTED: Duration = Duration::from_millis(400);
/// The best of so many counts: the machine is shared.
const COUNTS: usize = 5;

fn counts() -> Vec<usize> {
    let text = std::env::var("FTAGENT_ACTION_SOURCES").unwrap_or_else(|_| "300".to_owned());
    text.split(',').map(|n| n.parse().expect("a number")).collect()
}

/// As many sources, the stranger last of them.
fn action(kind: &str, count: usize) -> String {
    let mut all: Vec<String> =
        (1..count).map(|n| std::net::Ipv4Addr::from(0x0a00_0000 + n as u32 * 97).to_string() + "/32").collect();
    all.push(format!("{STRANGER}/32"));
    format!(r#"{{"type":{kind},"sources":{}}}"#, serde_json::to_string(&all).unwrap())
}

/// A line of a file of `/proc` as kibibytes or a plain number.
fn number(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn slab_kib() -> u64 {
    number("/proc/meminfo", "Slab:") + number("/proc/meminfo", "VmallocUsed:")
}

/// UDP datagrams that reached this namespace's sockets, room there or not.
fn datagrams() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let counted =
        names.split(' ').zip(values.split(' ')).filter(|(name, _)| ["InDatagrams", "InErrors"].contains(name));
    counted.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
}

/// Packets per second of one whom nothing blocks, as fast as one thread can send: what the node takes in of them, best
/// of some.
fn clean_pps(bench: &Bench) -> u64 {
    // Nobody reads them: the kernel's way to the socket is what is measured.
    let sink = UdpSocket::bind((NODE, 9_998)).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let from = bench.stranger.peer.run(|| UdpSocket::bind((OPERATOR, 0)).unwrap());
    let sender = std::thread::spawn(move || {
        while !ends.load(Ordering::Relaxed) {
            from.send_to(&[7; 32], (NODE, 9_998)).ok();
        }
    });
    let count = || {
        let (before, began_ns) = (datagrams(), clock::mono_ns());
        std::thread::sleep(COUNTED);
        (datagrams() - before) * 1_000_000_000 / (clock::mono_ns() - began_ns)
    };
    let best = (0..COUNTS).map(|_| count()).max().unwrap_or(0);
    over.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    drop(sink);
    best
}

/// What is measured of one action.
struct Row {
    effect_ms: f64,
    undo_ms: f64,
    rss_mib: f64,
    kernel_kib: u64,
    pps: (u64, u64),
}

fn print(tool: &str, count: usize, row: &Row) {
    println!(
        "{tool:<18} {count:>7} {:>10.1} {:>10.1} {:>9.1} {:>11} {:>10} {:>10}",
        row.effect_ms, row.undo_ms, row.rss_mib, row.kernel_kib, row.pps.0, row.pps.1
    );
}

fn head() {
    println!(
        "{:<18} {:>7} {:>10} {:>10} {:>9} {:>11} {:>10} {:>10}",
        "tool", "sources", "effect ms", "undone ms", "RSS MiB", "kernel KiB", "pps before", "pps with"
    );
}

/// Resets the highest memory that the process had, and says what it has.
fn reset_peak() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    number("/proc/self/status", "VmRSS:")
}

fn peak_mib(before_kib: u64) -> f64 {
    number("/proc/self/status", "VmHWM:").saturating_sub(before_kib) as f64 / 1_024.0
}

fn dump() -> String {
    let tools: [&[&str]; 3] = [&["iptables-save"], &["ipset", "save"], &["nft", "-s", "list", "ruleset"]];
    let lines = tools.iter().map(|words| run(words, "").unwrap());
    let lines = lines.collect::<String>();
    lines.lines().filter(|l| !l.starts_with('#')).map(|l| l.split(" [").next().unwrap_or(l).to_owned() + "\n").collect()
}

fn with_ipset(bench: &mut Bench, count: usize) -> Row {
    let before = dump();
    let pps = clean_pps(bench);
    let rss_kib = reset_peak();
    let (k, opened_sim_ns, began_ns) =
        asked(&action(r#""ipset_ban","set":"banned""#, count), |k| !k.actions.is_empty());
    let waited_ns = k.now_ns - opened_sim_ns;
    let wanted = k.actions[0].clone();
    let (task, tool) = (wanted.task, wanted.tool);
    bench.act(&ActionSet { wanted: vec![wanted], ending: Vec::new() }, task, &Outcome::Applied);
    let effect_ns = bench.stranger.silence_ns().expect("an effect on packets");
    let rss_mib = peak_mib(rss_kib);
    let said = run(&["ipset", "list", "-t", "banned"], "").unwrap();
    let said = |name| said.lines().find_map(|l| l.strip_prefix(name)).and_then(|n| n.trim().parse::<u64>().ok());
    assert_eq!(said("Number of entries:"), Some(count as u64));
    let pps = (pps, clean_pps(bench));
    let undo_ns = clock::mono_ns();
    bench.act(&ActionSet { wanted: Vec::new(), ending: vec![Ending { task, tool }] }, task, &Outcome::Undone);
    let undo_ms = (clock::mono_ns() - undo_ns) as f64 / 1e6;
    assert!(bench.stranger.is_heard());
    assert_eq!(dump(), before);
    let effect_ms = (effect_ns.saturating_sub(began_ns) + waited_ns) as f64 / 1e6;
    Row { effect_ms, undo_ms, rss_mib, kernel_kib: said("Size in memory:").unwrap_or(0) / 1_024, pps }
}

fn with_nftables(bench: &Bench, count: usize) -> Row {
    let before = dump();
    let pps = clean_pps(bench);
    let (rss_kib, slab) = (reset_peak(), slab_kib());
    let rules = |k: &crate::kernel::Kernel| k.engine.desired();
    let (k, opened_sim_ns, began_ns) = asked(&action(r#""nft_drop_source""#, count), |k| !rules(k).rules.is_empty());
    let waited_ns = k.now_ns - opened_sim_ns;
    let desired = rules(&k);
    // The simulated clock's ends, on the real one.
    let shift = |ns: u64| clock::mono_ns() + ns.saturating_sub(k.now_ns);
    let mut desired: RuleSet = desired.clone();
    desired.rules.values_mut().for_each(|rule| rule.expires_at_ns = rule.expires_at_ns.map(shift));
    let mut nftables = Nftables::new(false);
    let now = || -> Now { clock::now() };
    let results = nftables.reconcile(&desired, now());
    assert!(!results.is_empty() && results.iter().all(|r| r.result.is_ok()), "{:?}", results.first());
    let effect_ns = bench.stranger.silence_ns().expect("an effect on packets");
    let (rss_mib, kernel_kib) = (peak_mib(rss_kib), slab_kib().saturating_sub(slab));
    let elements = run(&["nft", "list", "set", "inet", "ftagent", "blocked4_32"], "").unwrap();
    assert_eq!(elements.matches("timeout").count() - elements.matches("flags timeout").count(), count);
    let look_ns = clock::mono_ns();
    assert_eq!(nftables.reconcile(&desired, now()), [], "twice is once");
    let look_ms = (clock::mono_ns() - look_ns) as f64 / 1e6;
    if count >= 1_000 {
        println!("{:<18} {count:>7} one look at what is there: {look_ms:.1} ms", "");
    }
    let pps = (pps, clean_pps(bench));
    let undo_ns = clock::mono_ns();
    let results = nftables.reconcile(&RuleSet::default(), now());
    assert!(results.iter().all(|r| r.result.is_ok()), "{:?}", results.first());
    let undo_ms = (clock::mono_ns() - undo_ns) as f64 / 1e6;
    assert!(bench.stranger.is_heard());
    assert_eq!(dump(), before);
    let effect_ms = (effect_ns.saturating_sub(began_ns) + waited_ns) as f64 / 1e6;
    Row { effect_ms, undo_ms, rss_mib, kernel_kib, pps }
}

#[test]
fn many_sources_go_into_every_tool_that_has_sets() {
    inside(|| {
        let mut bench = Bench::new();
        head();
        for count in counts() {
            print("ipset_ban", count, &with_ipset(&mut bench, count));
            print("nft_drop_source", count, &with_nftables(&bench, count));
        }
    });
}
