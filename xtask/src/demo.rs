//! `cargo xtask demo`: an attack is seen, named, dropped and undone, in a lab on this machine.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::{process, repo, setup};

#[derive(Args)]
pub(crate) struct Options {
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
    /// Leave the lab up and say how to look at it
    #[arg(long)]
    keep: bool,
    /// Handed on to the demo
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds what the demo shows and becomes it: from there on, stdout is the demo's alone.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(&setup::Options::default())?;
    let step = "building the agent, the control plane and the lab";
    let mut build = repo::cargo();
    build.args(["build", "--release", "--bin", "ftagent", "--bin", "controlplane", "--bin", "demo"]);
    build.env("FTAGENT_REQUIRE_EBPF", "1");
    let took = process::run_long(step, &mut build, None)?;
    eprintln!("  {step}: {} s", took.as_secs());

    let folder = repo::target().join("release");
    let mut demo = command(&folder)?;
    for (given, flag) in [(options.json, "--json"), (options.keep, "--keep")] {
        if given {
            demo.arg(flag);
        }
    }
    demo.args(&options.arguments);
    // The demo takes our place, so that an interrupt reaches it alone and it can take its lab down.
    Err(demo.exec()).context("cannot start the demo")
}

fn command(folder: &Path) -> Result<Command> {
    let program = |name: &str| -> PathBuf { folder.join(name) };
    let mut demo = process::as_root(program("demo"), "a lab of network namespaces")?;
    demo.arg("--ftagent").arg(program("ftagent")).arg("--controlplane").arg(program("controlplane"));
    Ok(demo)
}
