//! Everything that is done to this repository: `cargo xtask <command>`.
//!
//! One file per command. Progress goes to stderr, results to stdout. No crate of ours may be a dependency, so that
//! this one builds in seconds and on a machine where nothing else does.

mod process;
mod repo;
mod setup;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Set-up, checks, tests and demo of ftagent")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what the eBPF build, the labs and the tests need
    Setup(setup::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(options) => setup::run(&options),
    };
    finish(result)
}

fn finish(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
