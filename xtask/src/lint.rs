//! `cargo xtask lint`: everything that can be said about the source without running it.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{fmt, process, repo, setup, tidy};

type Check = fn() -> Result<Outcome>;

enum Outcome {
    Clean,
    /// Not done, and why.
    Skipped(&'static str),
}

const CHECKS: &[(&str, Check)] = &[
    ("fmt --check", formatted),
    ("tidy", tidied),
    ("clippy", clippy),
    ("clippy of the datapath", datapath),
    ("programs alone", programs),
    ("rustdoc", rustdoc),
    ("cargo deny", deny),
    ("typos", typos),
];

/// Runs every check, so that one run tells all, and fails when one failed.
pub(crate) fn run() -> Result<ExitCode> {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        eprintln!("lint: {name}");
        let began = Instant::now();
        match check() {
            Ok(Outcome::Clean) => eprintln!("lint: {name}: clean, {:.1} s", began.elapsed().as_secs_f64()),
            Ok(Outcome::Skipped(why)) => eprintln!("lint: {name}: skipped, {why}"),
            Err(error) => {
                eprintln!("lint: {name}: {error:#}");
                failed.push(*name);
            }
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("not clean: {}", failed.join(", "))
}

fn formatted() -> Result<Outcome> {
    if fmt::format(true)? { Ok(Outcome::Clean) } else { bail!("run `cargo xtask fmt`") }
}

fn tidied() -> Result<Outcome> {
    let findings = tidy::findings()?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    if findings.is_empty() { Ok(Outcome::Clean) } else { bail!("{} findings", findings.len()) }
}

fn clippy() -> Result<Outcome> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    process::run(repo::cargo().args(arguments))?;
    Ok(Outcome::Clean)
}

/// The datapath with the compiler that builds it; clippy where that compiler has one, else its own warnings.
fn datapath() -> Result<Outcome> {
    let Some(record) = setup::recorded() else {
        return Ok(Outcome::Skipped("no compiler for BPF is recorded (`cargo xtask setup`)"));
    };
    let clippy = record.cargo.with_file_name("cargo-clippy");
    let has_clippy = clippy.is_file();
    let mut command =
        if has_clippy { record.command(&clippy, "clippy") } else { record.command(&record.cargo, "check") };
    // Appended to the flags of the crate's own configuration, which RUSTFLAGS would replace.
    command.arg("--config").arg(format!("target.{}.rustflags=['-Dwarnings']", setup::BPF_TARGET));
    process::run(&mut command)?;
    if !has_clippy {
        eprintln!("  its compiler has no clippy: checked for rustc's warnings (Debian: package rust-web-clippy)");
    }
    Ok(Outcome::Clean)
}

/// With the features that users build: everywhere else the dependencies have those that tests want too.
fn programs() -> Result<Outcome> {
    process::run(repo::cargo().args(["check", "--workspace", "--bins", "--quiet"]))?;
    Ok(Outcome::Clean)
}

fn rustdoc() -> Result<Outcome> {
    process::run(
        repo::cargo().args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    Ok(Outcome::Clean)
}

/// tidy reads the licences and sources too; cargo-deny knows more cases, and takes four minutes to build.
fn deny() -> Result<Outcome> {
    if process::find_program("cargo-deny").is_none() {
        return Ok(Outcome::Skipped("not installed (`cargo install --locked cargo-deny`); tidy has read the licences"));
    }
    process::run(repo::cargo().args(["deny", "check", "licenses", "bans", "sources"]))?;
    Ok(Outcome::Clean)
}

fn typos() -> Result<Outcome> {
    let Some(typos) = process::find_program("typos") else {
        return Ok(Outcome::Skipped("not installed (`cargo install --locked typos-cli`)"));
    };
    process::run(Command::new(typos).current_dir(repo::root()))?;
    Ok(Outcome::Clean)
}
