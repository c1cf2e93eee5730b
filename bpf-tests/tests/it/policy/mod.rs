//! The kernel's policy against a plain model of it, over random rule sets and packets; and over all of them, that a
//! packet of a fail-safe source is never dropped.
//!
//! `cargo test` runs a short share; `cargo xtask fuzz policy` runs the same test for longer, by
//! `FTAGENT_FUZZ_EXECUTIONS` (packets), `FTAGENT_FUZZ_SECONDS` and `FTAGENT_FUZZ_SEED`.

mod draw;
mod gate;
mod lists;
mod model;
#[path = "../../../../ftagent-common/tests/differential/random.rs"]
mod random;
mod tables;

use std::collections::BTreeMap;
use std::time::Duration;

use aya::programs::Xdp;
use bpf_tests::clock::now;
use bpf_tests::run::run_xdp;
use bpf_tests::skip_without_root;
use ftagent::xdp::counters;
use ftagent::xdp::maps::Maps;
use ftagent_common::abi::Reason;
use ftagent_common::vocab::Mode;

use self::model::Arrival;
use self::random::Random;
use self::tables::Tables;
use crate::datapath::{Datapath, XDP_DROP};

/// What `cargo test` runs: so many rule sets, each with so many packets.
const SETS: u64 = 90;
const PACKETS: u64 = 110;
/// Packets of one rule set in a long run: a set costs as much as a few hundred packets.
const PACKETS_LONG: u64 = 400;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[test]
fn the_kernel_decides_as_the_model_does_and_never_against_a_fail_safe_source() {
    if skip_without_root("the_kernel_decides_as_the_model_does_and_never_against_a_fail_safe_source") {
        return;
    }
    let executions = variable("FTAGENT_FUZZ_EXECUTIONS");
    let seconds = variable("FTAGENT_FUZZ_SECONDS");
    let seed = variable("FTAGENT_FUZZ_SEED").unwrap_or(1);
    let is_long = executions.is_some() || seconds.is_some();
    let each = if is_long { PACKETS_LONG } else { PACKETS };
    let wanted = executions.unwrap_or(if is_long { u64::MAX } else { SETS * PACKETS });
    let time = seconds.map_or(Duration::MAX, Duration::from_secs);

    let mut random = Random::new(seed);
    let mut datapath = Datapath::new();
    let mut tables = Tables::open(&datapath);
    let program = datapath.program();
    let mut counts: BTreeMap<Reason, u64> = BTreeMap::new();
    let (mut sets, mut packets, mut safe) = (0u64, 0u64, 0u64);
    let began = now();
    while packets < wanted && began.elapsed() < time {
        let mut world = draw::world(&mut random);
        tables.install(&mut datapath, &world);
        sets += 1;
        for _ in 0..each {
            let (arrival, frame) = draw::arrival(&mut random, &world);
            let (dropped, reason) = decide(&program, &datapath.maps, &frame);
            let at = now();
            let expected = world.judge(&arrival, at);
            let context = || {
                let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
                format!("seed {seed}, set {sets}: {arrival:?}\n{hex}\n{world}")
            };
            assert!(expected.contains(&reason), "{reason:?}, the model says {expected:?}; {}", context());
            let is_enforced = world.mode == Mode::Enforce;
            assert_eq!(dropped, reason.is_drop() && is_enforced, "{reason:?}; {}", context());
            if let Arrival::Packet(facts) = &arrival
                && world.is_fail_safe(facts)
            {
                safe += 1;
                assert!(!dropped, "R1: a fail-safe packet is dropped; {}", context());
            }
            world.note(&arrival, reason, at);
            *counts.entry(reason).or_default() += 1;
            packets += 1;
        }
        tables.clear(&world.gate);
    }
    println!(
        "policy: {packets} executions in {:.1} s, seed {seed}, {sets} rule sets, {safe} packets of fail-safe sources, 0 differences",
        began.elapsed().as_secs_f64()
    );
    for (reason, count) in &counts {
        println!("  {}: {count}", reason.as_str());
    }
    for reason in COMMON {
        let count = counts.get(&reason).copied().unwrap_or(0);
        assert!(count > 0 || packets < SETS * PACKETS, "{} never came up: the rule sets have lost it", reason.as_str());
    }
}

/// Reasons that every share of rule sets and packets must have come upon.
const COMMON: [Reason; 16] = [
    Reason::Clean,
    Reason::NotIp,
    Reason::FailSafe,
    Reason::Allowlisted,
    Reason::Bypassed,
    Reason::MalformedPassed,
    Reason::Malformed,
    Reason::BlockedSource,
    Reason::BlockedPrefix,
    Reason::TargetRule,
    Reason::TargetLimit,
    Reason::SourceLimit,
    Reason::Listed,
    Reason::Reflection,
    Reason::UnsolicitedTcp,
    Reason::SynGate,
];

/// Whether the frame is dropped, and the reason whose counter grew.
fn decide(program: &Xdp, maps: &Maps, frame: &[u8]) -> (bool, Reason) {
    let read = || counters::interface(maps, 0).expect("counters").reasons;
    let before = read();
    let outcome = run_xdp(program, frame, None).expect("runs");
    let after = read();
    let grown = |r: &Reason| after[r.index()].packets != before[r.index()].packets;
    let mut reasons = Reason::ALL.iter().copied().filter(grown);
    let reason = reasons.next().expect("a frame is counted");
    assert_eq!(reasons.next(), None, "a frame is counted once");
    (outcome.verdict == XDP_DROP, reason)
}
