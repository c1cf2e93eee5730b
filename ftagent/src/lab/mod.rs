//! `ftagent lab`: the drop ladder and the time to the first drop, on the operator's own machine.
//!
//! `ftagent-lab` builds namespaces and measures; here are the peers that are this program, and what is printed.

mod latency;
pub mod peer;

use std::fmt::Write as _;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ftagent_lab::ladder::{self, Options, Row, Sources};
use ftagent_lab::{bpffs, netns, signals};
use serde_json::json;

use crate::cli::{FloodSources, LabArguments};
use crate::object;

pub use latency::Latency;

/// Measures and prints.
///
/// # Errors
/// Without root or BPF programs, when the lab cannot be built, and when it is interrupted; nothing stays then either.
pub fn run(arguments: &LabArguments, as_json: bool) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab makes network namespaces and loads BPF programs: run `sudo ftagent lab`");
    }
    if !object::is_built() {
        bail!("this program was built without the datapath: run `cargo xtask setup` and build again");
    }
    let stop = signals::stop_on_signals().context("signals cannot be waited for")?;
    // What a lab that was killed left behind.
    netns::sweep();
    bpffs::sweep();
    let mut progress = |step: &str| eprintln!("lab: {step}");

    let mut rows = Vec::new();
    if arguments.ladder {
        let options = Options {
            rounds: arguments.rounds,
            time: Duration::from_secs_f64(arguments.seconds / f64::from(arguments.rounds.max(1))),
            entries: arguments.entries.clone(),
            sources: arguments.sources.iter().map(|s| (*s).into()).collect(),
            only: arguments.only.clone(),
            more: peer::peers(),
            stop: Some(stop.clone()),
        };
        rows = ladder::run(&options, &mut progress)?;
    }
    if !as_json && arguments.ladder {
        // Before the rest, which may fail.
        print!("{}", ladder_text(&rows));
    }
    let latency = if arguments.latency { Some(time_to_drop(arguments, &stop, &mut progress)?) } else { None };
    if as_json {
        println!("{}", json!({ "ladder": rows, "latency": latency }));
    } else if let Some(latency) = &latency {
        print!("{}", latency_text(latency));
    }
    Ok(())
}

fn time_to_drop(arguments: &LabArguments, stop: &AtomicBool, progress: &mut dyn FnMut(&str)) -> Result<Latency> {
    progress(&format!("{} attacks on an agent in a namespace", arguments.runs));
    latency::measure(arguments.runs, stop, progress)
}

impl From<FloodSources> for Sources {
    fn from(sources: FloodSources) -> Self {
        match sources {
            FloodSources::Hot => Self::Hot,
            FloodSources::Random => Self::Random,
        }
    }
}

fn ladder_text(rows: &[Row]) -> String {
    let rounds = rows.iter().map(|row| row.rounds).max().unwrap_or(0);
    format!(
        "What a dropped packet costs its receiver: the smallest UDP packets over a veth pair, one core, the median of\n\
         {rounds} rounds; x floor: as a multiple of a program that drops everything unseen, measured just before.\n\n{}",
        ladder::text(rows)
    )
}

fn latency_text(latency: &Latency) -> String {
    let ms = &latency.first_drop_ms;
    let (min, max) = (ms.iter().copied().fold(f64::INFINITY, f64::min), ms.iter().copied().fold(0.0, f64::max));
    let mut text = String::new();
    writeln!(text, "From the first packet of an attack to the first one dropped by a rule, default settings")
        .expect("text");
    writeln!(
        text,
        "  {}, {} packets a second, {} runs: median {:.0} ms ({min:.0} to {max:.0})",
        latency.attack,
        latency.attack_pps,
        ms.len(),
        latency.median_ms
    )
    .expect("text");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_the_first_drop_is_told_with_its_range() {
        let latency = Latency {
            attack: "SYN flood, forged sources",
            attack_pps: 100_000,
            first_drop_ms: vec![340.0, 310.4, 420.0],
            median_ms: 340.0,
        };
        let text = latency_text(&latency);
        assert!(text.contains("100000 packets a second, 3 runs: median 340 ms (310 to 420)"), "{text}");
    }
}
