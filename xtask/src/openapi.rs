//! `cargo xtask openapi`: the REST description in `docs/openapi.json`, as the control plane prints it.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::{process, repo};

const FILE: &str = "docs/openapi.json";

#[derive(Args)]
pub(crate) struct Options {
    /// Only compare; exit status 1 when the file is not what the program prints
    #[arg(long)]
    check: bool,
}

/// The comparison as a step of CI; there is nothing to compare before the file was first written.
pub(crate) fn check() -> Result<ExitCode> {
    if !repo::root().join(FILE).exists() {
        eprintln!("openapi: skipped, there is no {FILE} (`cargo xtask openapi` writes it)");
        return Ok(ExitCode::SUCCESS);
    }
    run(&Options { check: true })
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let arguments = ["run", "--quiet", "--package", "controlplane", "--bin", "controlplane", "--", "openapi"];
    let printed = process::capture(repo::cargo().args(arguments))?;
    let path = repo::root().join(FILE);
    let written = fs::read_to_string(&path).unwrap_or_default();
    if written == printed {
        eprintln!("openapi: {FILE} is up to date");
        return Ok(ExitCode::SUCCESS);
    }
    if options.check {
        eprintln!("openapi: {FILE} is not what `controlplane openapi` prints: run `cargo xtask openapi`");
        return Ok(ExitCode::FAILURE);
    }
    fs::create_dir_all(repo::root().join("docs"))?;
    fs::write(&path, printed).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("openapi: {FILE} written");
    Ok(ExitCode::SUCCESS)
}
