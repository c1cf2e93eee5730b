//! `cargo xtask demo`: an attack is seen, named, dropped in the kernel, reported and undone.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bpf_tests::demo::{self, Options, Story};
use clap::Parser;

/// Plays attacks against a node in network namespaces of its own and proves what happened to every frame.
///
/// Needs root. Real captures are used if FTAGENT_CAPTURES names a folder of them.
#[derive(Parser)]
#[command(name = "demo")]
struct Arguments {
    /// The agent's binary
    #[arg(long, value_name = "PATH")]
    ftagent: PathBuf,
    /// The control plane's binary
    #[arg(long, value_name = "PATH")]
    controlplane: PathBuf,
    /// End with one line of JSON on standard output; the time line goes to standard error
    #[arg(long)]
    json: bool,
    /// Leave the lab up and say how to look at it
    #[arg(long)]
    keep: bool,
    /// Play every scenario this many times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Play every attack capture, not one of each family
    #[arg(long)]
    all_captures: bool,
    /// At the end kill the agent, then the control plane, in the middle of a flood and start them again
    #[arg(long)]
    faults: bool,
    /// Play this scenario alone; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

fn main() -> ExitCode {
    bpf_tests::inside::exec_if_asked();
    let arguments = Arguments::parse();
    match play(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            if arguments.json {
                println!("{}", serde_json::json!({ "ok": false, "scenarios": [], "error": format!("{error:#}") }));
            }
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that was to be shown really happened.
fn play(arguments: &Arguments) -> anyhow::Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces and BPF need root: run `cargo xtask demo`, which asks for it");
    }
    let absolute =
        |path: &PathBuf| path.canonicalize().with_context(|| format!("there is no program {}", path.display()));
    let options = Options {
        ftagent: absolute(&arguments.ftagent)?,
        controlplane: absolute(&arguments.controlplane)?,
        helper: std::env::current_exe()?,
        runs: arguments.runs,
        every_capture: arguments.all_captures,
        only: arguments.only.clone(),
        faults: arguments.faults,
        keep: arguments.keep,
    };
    let stop = bpf_tests::signals::stop_on_signals()?;
    let story = Story::new(arguments.json);
    let report = demo::run(&options, &story, &stop)?;
    if let (Some(p50), Some(p99)) = (report.drop_ms_p50, report.drop_ms_p99) {
        story.heading(&format!("first attack frame to first drop by rule: p50 {p50:.0} ms, p99 {p99:.0} ms"));
    }
    if let Some(error) = &report.error {
        story.bad(error);
    }
    if arguments.json {
        println!("{}", report.to_line());
    }
    Ok(report.ok)
}
