//! Everything that is done to this repository: `cargo xtask <command>`.
//!
//! One file per command. Progress goes to stderr, results to stdout. No crate of ours may be a dependency, so that
//! this one builds in seconds and on a machine where nothing else does.
#![expect(clippy::disallowed_methods, reason = "nothing is decided here: clocks only measure how long steps take")]
#![forbid(unsafe_code)]

mod authorization;
mod bench;
mod ci;
mod demo;
mod dist;
mod fmt;
mod fuzz;
mod kernels;
mod lint;
mod openapi;
mod process;
mod repo;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

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
    /// Format every Rust file that git lists
    Fmt(fmt::Options),
    /// Run every check of the source: fmt, tidy, clippy, rustdoc, licences
    Lint,
    /// Check what ARCHITECTURE.md promises: layers, unsafe code, links, migrations, licences
    Tidy,
    /// Build and run all tests, those that need root included
    Test(test::Options),
    /// Compare parser or policy with a reference of its own, for as long as asked
    Fuzz(fuzz::Options),
    /// Show the main job in a lab: an attack is seen, named, dropped and undone
    Demo(demo::Options),
    /// Measure every goal of the datapath's specification against the floor and the peers
    Bench(bench::Options),
    /// Write docs/openapi.json as the control plane prints it, and docs/authorization.md from it
    Openapi(openapi::Options),
    /// Build what is installed on a machine into target/dist
    Dist,
    /// Run what CI runs: setup, lint, test, openapi --check, a share of test --api
    Ci,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(options) => setup::run(&options),
        Command::Fmt(options) => fmt::run(&options),
        Command::Lint => lint::run(),
        Command::Tidy => tidy::run(),
        Command::Test(options) => test::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Openapi(options) => openapi::run(&options),
        Command::Dist => dist::run(),
        Command::Ci => ci::run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
