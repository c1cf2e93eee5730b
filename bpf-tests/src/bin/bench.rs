//! `cargo xtask bench`: measures every goal of the datapath's specification.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use bpf_tests::bench::history::{self, Entry};
use bpf_tests::bench::{self, Goal, Options, report};
use clap::{Parser, ValueEnum};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Measures this machine's datapath in network namespaces of its own. Needs root.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    /// What to measure; everything without it
    groups: Vec<Group>,
    /// Where plots and history go after a run that is neither quick nor of one goal
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
    /// What is measured, for the history
    #[arg(long, value_name = "ID", default_value = "unknown")]
    commit: String,
    /// Print a line of JSON for each goal instead of the table
    #[arg(long)]
    json: bool,
    /// Some three minutes, with fewer and shorter rounds; nothing is recorded
    #[arg(long)]
    quick: bool,
    /// Turns of every scenario
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Nodes of the simulated fleet instead of 11,000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(11..=20_000))]
    nodes: Option<u32>,
    /// This goal alone, such as P4 or P4c
    #[arg(long, value_name = "ID")]
    only: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    Datapath,
    Ladder,
    Swap,
    Latency,
    Agent,
    Detection,
    Controlplane,
    /// The capacity model: fleets of three sizes; not among everything
    Scale,
}

impl Group {
    /// Those that measure goals.
    const ALL: [Self; 7] =
        [Self::Datapath, Self::Ladder, Self::Swap, Self::Latency, Self::Agent, Self::Detection, Self::Controlplane];

    /// Whether it works without network namespaces and BPF: computed, or on the loopback network.
    const fn needs_no_lab(self) -> bool {
        matches!(self, Self::Detection | Self::Controlplane | Self::Scale)
    }

    /// The goals that it measures.
    fn goals(self) -> &'static [&'static str] {
        match self {
            Self::Datapath => &["P1", "P2", "P3", "P4", "P6", "P7", "P10"],
            Self::Ladder => &["P5"],
            Self::Swap => &["P11"],
            Self::Latency => &["P9"],
            Self::Agent => &["P8", "P12"],
            Self::Detection => &["D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "D10", "D11", "D12"],
            Self::Controlplane => &["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10"],
            Self::Scale => &[],
        }
    }
}

fn main() -> ExitCode {
    bpf_tests::inside::exec_if_asked();
    let arguments = Arguments::parse();
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let chosen = chosen(arguments)?;
    let lab = !chosen.iter().all(|group| group.needs_no_lab());
    if lab && !nix::unistd::geteuid().is_root() {
        bail!("network namespaces and BPF need root: run `cargo xtask bench`, which asks for it");
    }
    if lab {
        bpf_tests::netns::sweep();
        bpf_tests::bpffs::sweep();
    }
    let quick = arguments.quick;
    let options =
        Options { quick, rounds: arguments.rounds.unwrap_or(if quick { 5 } else { 15 }), nodes: arguments.nodes };
    let only = arguments.only.as_deref();
    let docs = arguments.docs.as_deref().filter(|_| !quick && only.is_none());
    if let Some(docs) = docs {
        fs::create_dir_all(docs).with_context(|| format!("cannot make {}", docs.display()))?;
    }
    let mut progress = |step: &str| eprintln!("bench: {step}");
    let mut goals: Vec<Goal> = Vec::new();
    for group in chosen {
        progress(&format!("{group:?}").to_lowercase());
        let measured = match group {
            Group::Datapath => bench::datapath::run_only(&options, only, docs, &mut progress),
            Group::Ladder => bench::ladder::run_into(&options, docs, &mut progress),
            Group::Swap => bench::swap::run(&options, &mut progress),
            Group::Latency => bench::latency::run(&options, &mut progress),
            Group::Agent => bench::agent::run(&options, &mut progress),
            Group::Controlplane => {
                let wanted = |id: &str| only.is_none_or(|only| is_asked_for(id, only));
                bench::controlplane::run(&options, wanted, &mut progress)
            }
            Group::Scale => bench::controlplane::scale(&options, &mut progress).map(|text| {
                print!("{text}");
                Vec::new()
            }),
            Group::Detection => bench::detection::run_only(&options, only, &mut progress).map(|measured| {
                if !arguments.json {
                    print!("{}", measured.text);
                }
                measured.goals
            }),
        };
        goals.extend(measured.with_context(|| format!("{group:?}"))?);
    }
    if let Some(only) = only {
        goals.retain(|goal| is_asked_for(goal.id, only));
    }
    if !goals.is_empty() {
        print!("{}", if arguments.json { report::json(&goals) } else { report::table(&goals) });
    }
    let entry = entry(&goals, &arguments.commit)?;
    let path = |docs: &Path| docs.join("history.jsonl");
    if let Some(history) = arguments.docs.as_deref().map(path) {
        for line in history::worse(&entry, &history::read(&history)?) {
            eprintln!("bench: {line}");
        }
    }
    if let Some(docs) = docs {
        bench::plots::goals(docs, &goals)?;
        history::append(&path(docs), &entry).context("the history cannot be written")?;
    }
    Ok(())
}

/// The groups of the command line, or those that measure the one goal asked for.
fn chosen(arguments: &Arguments) -> anyhow::Result<Vec<Group>> {
    let given: Vec<Group> = if arguments.groups.is_empty() { Group::ALL.to_vec() } else { arguments.groups.clone() };
    let Some(only) = arguments.only.as_deref() else { return Ok(given) };
    let measures = |group: &Group| group.goals().iter().any(|id| is_asked_for(only, id));
    let chosen: Vec<Group> = given.into_iter().filter(measures).collect();
    if chosen.is_empty() {
        bail!("none of these groups measures a goal {only:?}");
    }
    Ok(chosen)
}

/// Whether `id` is `asked`, or one of its figures: `P4c` is asked for by `P4`, `P10` is not by `P1`.
fn is_asked_for(id: &str, asked: &str) -> bool {
    id.strip_prefix(asked).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn entry(goals: &[Goal], commit: &str) -> anyhow::Result<Entry> {
    let date = OffsetDateTime::from(bpf_tests::clock::Moment::now().wall).format(&Rfc3339)?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let goals = history::figures(goals);
    Ok(Entry { date, commit: commit.to_owned(), kernel, cpu: history::cpu_model(), goals })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups_of(line: &[&str]) -> anyhow::Result<Vec<Group>> {
        chosen(&Arguments::try_parse_from([&["bench"], line].concat())?)
    }

    #[test]
    fn groups_are_named_or_follow_from_the_goal() {
        assert_eq!(groups_of(&[]).expect("all").len(), 7);
        assert_eq!(groups_of(&["swap", "ladder"]).expect("two"), [Group::Swap, Group::Ladder]);
        assert_eq!(groups_of(&["--only", "P4c"]).expect("one"), [Group::Datapath]);
        assert_eq!(groups_of(&["--only", "P12"]).expect("one"), [Group::Agent]);
        assert_eq!(groups_of(&["--only", "D11a"]).expect("one"), [Group::Detection]);
        assert!(groups_of(&["--only", "P99"]).is_err());
        assert!(groups_of(&["everything"]).is_err());
        assert!(groups_of(&["--rounds", "0"]).is_err());
    }

    #[test]
    fn a_goal_is_asked_for_by_its_number() {
        assert!(is_asked_for("P4c", "P4") && is_asked_for("P4c", "P4c") && is_asked_for("P1", "P1"));
        assert!(!is_asked_for("P10", "P1") && !is_asked_for("P4c", "P4a"));
    }
}
