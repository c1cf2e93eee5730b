//! `cargo xtask bench`: the goals of the datapath's specification, measured on this machine.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::{process, repo, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// What to measure: datapath, ladder, swap, latency, agent, detection, controlplane, or scale; everything but scale without it
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,
    /// Print a line of JSON for each goal instead of the table
    #[arg(long)]
    json: bool,
    /// Some three minutes, with fewer and shorter rounds; nothing is recorded
    #[arg(long)]
    quick: bool,
    /// Turns of every scenario
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Nodes of the simulated fleet instead of 11,000
    #[arg(long, value_name = "N")]
    nodes: Option<u32>,
    /// This goal alone, such as P4 or P4c
    #[arg(long, value_name = "ID")]
    only: Option<String>,
}

/// Builds what measures and becomes it.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(&setup::Options { peers: true, databases: true, ..setup::Options::default() })?;
    let step = "building the agent, the control plane and the bench";
    let mut build = repo::cargo();
    build.args(["build", "--release", "--bin", "ftagent", "--bin", "controlplane", "--bin", "bench"]);
    build.env("FTAGENT_REQUIRE_EBPF", "1");
    let took = process::run_long(step, &mut build, None)?;
    eprintln!("  {step}: {} s", took.as_secs());

    let folder = repo::target().join("release");
    let mut bench = process::as_root(folder.join("bench"), "a lab of network namespaces")?;
    bench.arg("--docs").arg(repo::root().join("docs/bench"));
    bench.arg("--commit").arg(commit());
    bench.args(arguments(options));
    Err(bench.exec()).context("cannot start the bench")
}

/// What of the options is the bench's own.
fn arguments(options: &Options) -> Vec<String> {
    let mut arguments = options.groups.clone();
    for (given, flag) in [(options.json, "--json"), (options.quick, "--quick")] {
        if given {
            arguments.push(flag.to_owned());
        }
    }
    if let Some(rounds) = options.rounds {
        arguments.extend(["--rounds".to_owned(), rounds.to_string()]);
    }
    if let Some(nodes) = options.nodes {
        arguments.extend(["--nodes".to_owned(), nodes.to_string()]);
    }
    if let Some(only) = &options.only {
        arguments.extend(["--only".to_owned(), only.clone()]);
    }
    arguments
}

/// The commit that is measured; "unknown" outside a work tree.
fn commit() -> String {
    let mut git = Command::new("git");
    git.current_dir(repo::root()).args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]);
    process::capture(&mut git).map_or_else(|_| "unknown".to_owned(), |said| said.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn what_is_asked_for_is_handed_on() {
        let line =
            Line::parse_from(["bench", "ladder", "swap", "--json", "--rounds", "7", "--nodes", "500", "--only", "P5"]);
        assert_eq!(
            arguments(&line.options),
            ["ladder", "swap", "--json", "--rounds", "7", "--nodes", "500", "--only", "P5"]
        );
        assert!(arguments(&Line::parse_from(["bench"]).options).is_empty());
    }
}
