//! `cargo xtask test`: every test there is, those that need root included.
//!
//! cargo compiles the test programs and says where they are; we run them one by one, because those of the lab need
//! root and passes of their own, and because only then each can be counted by its kind.

pub(crate) mod api;
mod passes;
mod program;
mod tally;

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use self::program::{Kind, Program};
use self::tally::{Tally, parse};
use crate::{kernels, process, repo, setup};

/// A test program that takes longer hangs; CI as a whole has half an hour.
const LIMIT: Duration = Duration::from_secs(15 * 60);

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Leave out the tests that need root (package bpf-tests, program `it`)
    #[arg(long)]
    no_root: bool,
    /// Boot Debian's kernels under emulation and print what works on each; runs nothing else
    #[arg(long, conflicts_with_all = ["no_root", "filters"])]
    kernels: bool,
    /// Fuzz the REST API as its OpenAPI document describes it, on both databases; runs nothing else
    #[arg(long, conflicts_with_all = ["no_root", "filters", "kernels"])]
    api: bool,
    /// Random bodies and parameters for each operation
    #[arg(long, requires = "api", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    examples: u32,
    /// Only on this database
    #[arg(long, requires = "api", value_enum)]
    database: Option<api::Database>,
    /// Only what CI runs of it
    #[arg(long, requires = "api", conflicts_with_all = ["examples", "seed", "database"])]
    share: bool,
    /// The same seed gives the same calls
    #[arg(long, requires = "api", default_value_t = 1)]
    seed: u64,
    /// Only this kernel of the matrix; may be given more than once
    #[arg(long, value_name = "KERNEL", requires = "kernels", value_parser = clap::builder::PossibleValuesParser::new(kernels::names()))]
    only: Vec<String>,
    /// A kernel or an emulator that cannot be obtained is no error
    #[arg(long, requires = "kernels")]
    allow_missing: bool,
    /// Run only the rows whose names contain this, which has no blanks
    #[arg(long, value_name = "PART", requires = "kernels")]
    row: Option<String>,
    /// Look for newer kernels than those that were downloaded before
    #[arg(long, requires = "kernels")]
    refresh: bool,
    /// Run only tests whose name contains one of these
    filters: Vec<OsString>,
}

/// Tests of the control plane that take no notice of which database is asked for: they name theirs, mostly both.
const OF_BOTH: &[&str] = &[
    "sqlite",
    "postgres",
    "captures::",
    "copies::",
    "crash::",
    "faults::",
    "firewalls::",
    "limits::",
    "pcap_files::",
    "peers::",
    "process::",
    "remote_write::",
    "siege::",
    "tls::",
];

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.api {
        let all = api::Extent::new(options.database, options.examples, options.seed);
        return api::run(if options.share { &api::SHARE } else { &all }, repo::Build::Now);
    }
    if options.kernels {
        let Options { only, allow_missing, refresh, row, .. } = options;
        let row = row.as_deref();
        return kernels::run(&kernels::Options { only, allow_missing: *allow_missing, refresh: *refresh, row });
    }
    let began = Instant::now();
    setup::ensure(&setup::Options { peers: true, databases: true, firewalls: true, ..setup::Options::default() })?;
    let mut programs = compile()?;
    // Pure tests first: a mistake there explains those of the lab.
    programs.sort_by(|a, b| (a.kind, &a.package, &a.name).cmp(&(b.kind, &b.package, &b.name)));

    let mut rows: Vec<(Kind, Tally)> = Vec::new();
    for program in &programs {
        if program.kind == Kind::Root && options.no_root {
            eprintln!("test: {program}: left out (--no-root)");
            continue;
        }
        for run in program.runs(&options.filters)? {
            let tally = execute(&run.what, program.command(&run)?)?;
            // A program that died reports no more than its failure.
            if let Some(tests) = run.tests.filter(|_| tally.failed == 0) {
                ensure!(tally.total() as usize == tests, "{}: {tally}, and {tests} were to run", run.what);
            }
            rows.push((program.kind, tally));
        }
    }
    let mut doc = repo::cargo();
    doc.args(["test", "--workspace", "--doc", "--quiet", "--"]).args(&options.filters).arg("--show-output");
    doc.env("FTAGENT_REQUIRE_EBPF", "1");
    rows.push((Kind::Doc, execute("doc tests", doc)?));

    Ok(conclude(&rows, began))
}

/// Runs tests, shows what failed and what was skipped, and counts.
fn execute(what: &str, mut command: Command) -> Result<Tally> {
    let began = Instant::now();
    let (succeeded, output) = process::observe(&format!("test: {what}"), &mut command, LIMIT)?;
    let tally = parse(&output, succeeded);
    for skipped in &tally.skips {
        eprintln!("  {skipped}");
    }
    if tally.failed > 0 {
        // What passed comes first, with all that it printed.
        eprintln!("{}", output.find("\nfailures:\n").map_or(output.as_str(), |at| &output[at..]));
    }
    if tally.total() > 0 {
        eprintln!("test: {what}: {tally}, {:.1} s", began.elapsed().as_secs_f64());
    }
    Ok(tally)
}

/// Compiles all tests, and the programs that those of the lab start.
fn compile() -> Result<Vec<Program>> {
    eprintln!("test: compiling");
    let began = Instant::now();
    // The programs of a package are built with its integration tests.
    let mut cargo = repo::cargo();
    cargo.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    cargo.env("FTAGENT_REQUIRE_EBPF", "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot run cargo")?;
    let messages = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut programs = Vec::new();
    for line in messages.lines() {
        programs.extend(Program::from_message(&line?));
    }
    if !child.wait()?.success() {
        bail!("the tests do not compile");
    }
    eprintln!("test: compiled {} test programs in {} s", programs.len(), began.elapsed().as_secs());
    Ok(programs)
}

fn conclude(rows: &[(Kind, Tally)], began: Instant) -> ExitCode {
    let mut all = Tally::default();
    for kind in Kind::ALL {
        let mut of_kind = Tally::default();
        rows.iter().filter(|(row, _)| *row == kind).for_each(|(_, tally)| of_kind.add(tally));
        if of_kind.total() > 0 {
            println!("{:<12} {of_kind}", kind.as_str());
        }
        all.add(&of_kind);
    }
    println!("in {:.0} s", began.elapsed().as_secs_f64());
    println!("{all}");
    if all.passed + all.failed == 0 {
        eprintln!("error: no test ran");
    }
    if all.failed == 0 && all.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
