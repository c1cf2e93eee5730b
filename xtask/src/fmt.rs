//! `cargo xtask fmt`: rustfmt over every Rust file that git lists, the datapath's crate included.

use std::collections::BTreeSet;
use std::process::{Command, ExitCode, Stdio};

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

/// Formats, or with `check` names the files that are not; returns whether rustfmt was content.
pub(crate) fn format(check: bool) -> Result<bool> {
    let files = repo::files()?;
    let sources = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut rustfmt = Command::new("rustfmt");
    // Files are named one by one, so that none is forgotten because no `mod` names it yet.
    rustfmt.current_dir(repo::root()).args(["--edition", "2024"]).args(sources);
    if check {
        rustfmt.args(["--check", "-l"]);
    }
    let output = rustfmt.stderr(Stdio::inherit()).output();
    let output = output.context("cannot run rustfmt: `rustup component add rustfmt` installs it")?;
    // A file is named once for itself and once for each that has it as a module.
    let named: BTreeSet<_> = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
    for path in named {
        eprintln!("not formatted: {}", String::from_utf8_lossy(path));
    }
    Ok(output.status.success())
}
