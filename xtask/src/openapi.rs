//! `cargo xtask openapi`: the REST description in `docs/openapi.json`, as the control plane prints it, and the table of
//! who may call what in `docs/authorization.md`, which is made of it.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::repo::Build;
use crate::{authorization, process, repo};

const FILE: &str = "docs/openapi.json";
const TABLE: &str = "docs/authorization.md";

#[derive(Args)]
pub(crate) struct Options {
    /// Only compare; exit status 1 when the file is not what the program prints
    #[arg(long)]
    check: bool,
}

/// The comparison as a step of CI after the tests; there is nothing to compare before the file was first written.
pub(crate) fn check() -> Result<ExitCode> {
    if !repo::root().join(FILE).exists() {
        eprintln!("openapi: skipped, there is no {FILE} (`cargo xtask openapi` writes it)");
        return Ok(ExitCode::SUCCESS);
    }
    compare(&Options { check: true }, Build::AsTested)
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    compare(options, Build::Now)
}

fn compare(options: &Options, build: Build) -> Result<ExitCode> {
    let document = process::capture(Command::new(repo::controlplane(build)?).arg("openapi"))?;
    let table = authorization::table(&document)?;
    let mut current = true;
    for (file, made) in [(FILE, document), (TABLE, table)] {
        let path = repo::root().join(file);
        if fs::read_to_string(&path).unwrap_or_default() == made {
            eprintln!("openapi: {file} is up to date");
        } else if options.check {
            eprintln!("openapi: {file} is not what `controlplane openapi` prints: run `cargo xtask openapi`");
            current = false;
        } else {
            fs::create_dir_all(repo::root().join("docs"))?;
            fs::write(&path, made).with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("openapi: {file} written");
        }
    }
    Ok(if current { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
