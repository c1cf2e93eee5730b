//! `cargo xtask ci`: the exact list that CI runs. `.ci/run` calls this and nothing else.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{lint, openapi, repo, setup, test};

type Step = fn() -> Result<ExitCode>;

const STEPS: &[(&str, Step)] =
    &[("setup", prepared), ("lint", lint::run), ("test", tested), ("openapi", openapi::check), ("api", fuzzed)];

/// Runs the steps in turn, stops at the first that fails, and says how long each took.
pub(crate) fn run() -> Result<ExitCode> {
    let mut durations = Vec::new();
    for (name, step) in STEPS {
        eprintln!("ci: {name}");
        let began = Instant::now();
        let code = step()?;
        durations.push((*name, began.elapsed()));
        report(&durations);
        ensure!(code == ExitCode::SUCCESS, "{name} failed");
    }
    Ok(ExitCode::SUCCESS)
}

fn prepared() -> Result<ExitCode> {
    setup::ensure(&setup::Options { peers: true, databases: true, firewalls: true, ..setup::Options::default() })?;
    Ok(ExitCode::SUCCESS)
}

fn tested() -> Result<ExitCode> {
    test::run(&test::Options::default())
}

/// A share of `cargo xtask test --api`.
fn fuzzed() -> Result<ExitCode> {
    test::api::run(&test::api::SHARE, repo::Build::AsTested)
}

fn report(durations: &[(&str, Duration)]) {
    let line: Vec<_> = durations.iter().map(|(name, took)| format!("{name} {} s", took.as_secs())).collect();
    eprintln!("ci: {}", line.join(", "));
}
