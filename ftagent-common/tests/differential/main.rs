//! The parser of the datapath against a second one that shares nothing with it.
//!
//! `cargo test` runs a short share; `cargo xtask fuzz parser` runs the same test for longer, by these variables:
//! `FTAGENT_FUZZ_EXECUTIONS`, `FTAGENT_FUZZ_SECONDS`, `FTAGENT_FUZZ_SEED`, `FTAGENT_FUZZ_THREADS`. A frame that the
//! two see differently is printed as a row for `regressions.txt`, where it stays.
#![expect(clippy::disallowed_methods, reason = "nothing is decided here: the clock only ends a campaign")]

mod campaign;
mod corpus;
mod frames;
mod random;
mod reference;

use std::time::{Duration, Instant};

use campaign::{Bounds, Outcome, ours, run};
use reference::{Case, Judgement, judge};

/// What `cargo test` runs.
const SHARE: u64 = 2_000_000;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[test]
fn both_parsers_see_the_same_in_every_frame() {
    let executions = variable("FTAGENT_FUZZ_EXECUTIONS");
    let seconds = variable("FTAGENT_FUZZ_SECONDS");
    let seed = variable("FTAGENT_FUZZ_SEED").unwrap_or(1);
    let threads = variable("FTAGENT_FUZZ_THREADS").unwrap_or(1).clamp(1, 256);
    let executions = executions.unwrap_or(if seconds.is_some() { u64::MAX } else { SHARE });
    let time = seconds.map_or(Duration::MAX, Duration::from_secs);
    let corpus = corpus::frames();

    let began = Instant::now();
    let bounds = Bounds { executions: executions.div_ceil(threads), time };
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let corpus = &corpus;
        // Seeds of different threads lie far apart.
        let start = |thread: u64| scope.spawn(move || run(seed.wrapping_add(thread << 40), corpus, bounds, ours));
        let running: Vec<_> = (0..threads).map(start).collect();
        running.into_iter().map(|thread| thread.join().expect("a campaign")).collect()
    });

    let sum: u64 = outcomes.iter().map(|o| o.executions).sum();
    let differences: Vec<_> = outcomes.iter().flat_map(|o| &o.differences).collect();
    let took = began.elapsed();
    println!(
        "parser: {sum} executions in {:.1} s ({:.2} M/s), seed {seed}, corpus {} frames, {} differences",
        took.as_secs_f64(),
        sum as f64 / took.as_secs_f64() / 1e6,
        corpus.len(),
        differences.len()
    );
    for answer in outcomes[0].answers.keys() {
        let count: u64 = outcomes.iter().map(|o| o.answers[answer]).sum();
        println!("  {answer}: {count}");
        // A share that is large enough has seen every answer there is.
        assert!(count > 0 || sum < SHARE, "no frame was {answer}: the generator has lost something");
    }
    for difference in &differences {
        println!(
            "{}\n  the datapath: {:?}\n  the reference: {:?}",
            difference.row(),
            difference.ours,
            difference.theirs
        );
    }
    assert!(differences.is_empty(), "{} frames are seen differently", differences.len());
}

/// A row of the regression file: the length on the wire, the checks that are on, the bytes.
fn parse_row(row: &str) -> Option<(Vec<u8>, usize, bool, bool)> {
    let mut words = row.split_whitespace();
    let wire_len = words.next()?.parse().ok()?;
    let (sanity, tunnels) = (words.next()? == "sanity", words.next()? == "tunnels");
    let hex = words.next()?;
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    let bytes = (0..hex.len()).step_by(2).map(byte).collect::<Option<_>>()?;
    Some((bytes, wire_len, sanity, tunnels))
}

#[test]
fn frames_that_were_seen_differently_once_are_seen_the_same() {
    let rows = include_str!("regressions.txt").lines().filter(|row| !row.is_empty() && !row.starts_with('#'));
    for row in rows {
        let (bytes, wire_len, sanity, tunnels) = parse_row(row).unwrap_or_else(|| panic!("not a row: {row}"));
        let case = Case { bytes: &bytes, wire_len, sanity, tunnels };
        assert_eq!(ours(&case), judge(&case), "{row}");
    }
}

/// A campaign against a subject that is wrong must find a short frame that shows it.
fn check_noticed(wrong: &str, subject: impl Fn(&Case<'_>) -> Judgement) {
    let bounds = Bounds { executions: 500_000, time: Duration::MAX };
    let outcome = run(7, &[], bounds, &subject);
    let shown = outcome.differences.iter().min_by_key(|d| d.bytes.len());
    let shown = shown.unwrap_or_else(|| panic!("{wrong}: not noticed in {} executions", outcome.executions));
    assert!(shown.bytes.len() <= 400, "{wrong}: {}", shown.row());
    let (bytes, wire_len, sanity, tunnels) = parse_row(&shown.row()).expect("a row");
    let case = Case { bytes: &bytes, wire_len, sanity, tunnels };
    assert_eq!((subject(&case), judge(&case)), (shown.ours, shown.theirs), "{wrong}: the row shows it again");
}

#[test]
fn what_is_wrong_is_noticed_and_made_small() {
    let bent = |case: &Case<'_>, bend: fn(&mut Case<'_>)| {
        let mut bent = *case;
        bend(&mut bent);
        judge(&bent)
    };
    check_noticed("a byte too many on the wire", |c| bent(c, |c| c.wire_len += 1));
    check_noticed("tunnels stay closed", |c| bent(c, |c| c.tunnels = false));
    check_noticed("no source is a martian", |c| bent(c, |c| c.sanity = false));
    check_noticed("later fragments have ports", |c| match judge(c) {
        Judgement::Ip(mut seen) if seen.piece == reference::Piece::Last && seen.protocol == 17 => {
            seen.ports = [53, 53];
            Judgement::Ip(seen)
        }
        right => right,
    });
    check_noticed("the eighth extension header is one too many", |c| match judge(c) {
        Judgement::Ip(seen) if seen.version == 6 && seen.tunnel == "none" && chain_len(c.bytes, &seen) == 8 => {
            Judgement::Refused(reference::Refusal::TooDeep)
        }
        right => right,
    });
}

/// Extension headers of a packet that has no fragment and no authentication header.
fn chain_len(bytes: &[u8], seen: &reference::Seen) -> usize {
    let mut at = seen.l3_offset + 40;
    let mut count = 0;
    while at < seen.l4_offset && count < 9 {
        let Some(units) = bytes.get(at + 1) else { break };
        at += 8 + usize::from(*units) * 8;
        count += 1;
    }
    count
}
