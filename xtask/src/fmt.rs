//! `cargo xtask fmt`: rustfmt over every Rust file that git lists, the datapath's crate included.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::repo;

#[derive(Args)]
pub(crate) struct Options {
    /// Only report what is not formatted; exit status 1 when something is not
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    Ok(if format(options.check)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Formats, or with `check` shows the differences; returns whether rustfmt was content.
pub(crate) fn format(check: bool) -> Result<bool> {
    let files = repo::files()?;
    let sources: Vec<_> = files.iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).collect();
    let mut rustfmt = Command::new("rustfmt");
    // Files are named one by one, so that none is forgotten because no `mod` names it yet.
    rustfmt.current_dir(repo::root()).args(["--edition", "2024"]).args(&sources);
    if check {
        rustfmt.arg("--check");
    }
    let status = rustfmt.status().context("cannot run rustfmt: `rustup component add rustfmt` installs it")?;
    Ok(status.success())
}
