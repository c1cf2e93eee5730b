//! The drop ladder: a row for every peer, and nothing of it stays.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bpf_tests::generator::Listed;
use bpf_tests::ladder::{self, Holds, Options, Peer, Site, Sources};
use bpf_tests::skip_without_root;

/// What this process made and did not remove.
fn left_behind() -> Vec<String> {
    let mine = format!("ftlab-{}-", std::process::id());
    let names = |dir: &std::path::Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).filter(|name| name.starts_with(&mine)).collect()
    };
    let mut left = names(std::path::Path::new("/run/netns"));
    left.extend(names(&std::env::temp_dir()));
    left
}

fn short() -> Options {
    Options {
        rounds: 1,
        time: Duration::from_millis(2),
        entries: vec![1, 40],
        sources: vec![Sources::Hot, Sources::Random],
        ..Options::default()
    }
}

#[test]
fn every_peer_has_a_row_and_nothing_leaks_through_a_defence() {
    if skip_without_root("every_peer_has_a_row_and_nothing_leaks_through_a_defence") {
        return;
    }
    let mut steps = 0;
    let rows = ladder::run(&short(), &mut |_| steps += 1).expect("the ladder runs");
    println!("{}", ladder::text(&rows));
    assert!(steps >= 2, "every round is told");
    for peer in ladder::peers() {
        let lists = if peer.holds() == Holds::Everything { 1 } else { 2 };
        let of: Vec<_> = rows.iter().filter(|row| row.peer == peer.name()).collect();
        assert_eq!(of.len(), 2 * lists, "{}: hot and random for each list", peer.name());
        for row in of {
            match &row.error {
                // A kernel may lack ipset or what xdp-filter needs; these two are in every one.
                Some(error) if row.peer.starts_with("nft") || row.peer == "blackhole" => {
                    assert!(error.contains(" is not installed "), "{}: {error}", row.peer);
                }
                Some(error) => assert!(error.starts_with("not available: "), "{}: {error}", row.peer),
                None => {
                    assert!(row.packets > 8_000 && row.ns_median > 0.0 && row.ratio > 0.0, "{row:?}");
                    let leaked = if row.is_defence { 0 } else { row.packets };
                    assert_eq!(row.leaked, leaked, "{row:?}");
                }
            }
        }
    }
    // What needs nothing but the kernel.
    for name in ["none", "xdp-drop", "xdp-count", "xdp-hash", "xdp-lpm", "xdp-generic", "tc-hash", "tc-lpm"] {
        assert!(rows.iter().any(|row| row.peer == name && row.error.is_none()), "{name} works on every kernel");
    }
    assert_eq!(left_behind(), Vec::<String>::new());
}

/// A peer whose tool nobody has.
struct Absent;

impl Peer for Absent {
    fn name(&self) -> &str {
        "absent"
    }

    fn title(&self) -> &str {
        "a tool that nobody has"
    }

    fn holds(&self) -> Holds {
        Holds::Networks { at_most: 10 }
    }

    fn set_up(&self, _site: &Site, _blocked: Listed) -> anyhow::Result<Box<dyn Any>> {
        anyhow::bail!("no-such-tool is not installed (package no-such-package)")
    }
}

#[test]
fn a_missing_tool_gives_a_row_with_its_reason() {
    if skip_without_root("a_missing_tool_gives_a_row_with_its_reason") {
        return;
    }
    let options = || Options { more: vec![Box::new(Absent)], sources: vec![Sources::Hot], ..short() };
    let rows = ladder::run(&Options { only: vec!["absent".into()], ..options() }, &mut |_| {}).expect("it runs");
    let mut reasons: Vec<_> = rows.iter().map(|row| row.error.clone().unwrap_or_default()).collect();
    reasons.sort();
    assert_eq!(
        reasons,
        [
            "not available: it holds no more than 10 entries",
            "not available: no-such-tool is not installed (package no-such-package)"
        ]
    );
    let nobody = ladder::run(&Options { only: vec!["nobody".into()], ..options() }, &mut |_| {});
    let error = nobody.expect_err("nobody is called so").to_string();
    assert!(error.contains("absent") && error.contains("nft-netdev"), "{error}");
}

#[test]
fn a_ladder_that_is_stopped_leaves_nothing() {
    if skip_without_root("a_ladder_that_is_stopped_leaves_nothing") {
        return;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let options = Options { rounds: 1_000, stop: Some(Arc::clone(&stop)), ..short() };
    let stopped = ladder::run(&options, &mut |step| {
        if step.contains("round 2 ") {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    });
    assert_eq!(stopped.expect_err("it was stopped").to_string(), "interrupted");
    assert_eq!(left_behind(), Vec::<String>::new());
}
