//! Where things are: the repository, the target folder, the files that git lists.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::process;

/// The repository's root folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository")
}

/// The target folder: the one we were built into, wherever cargo's configuration puts it.
pub(crate) fn target() -> PathBuf {
    let program = env::current_exe().unwrap_or_default();
    // cargo marks the target folders that it makes.
    let marked = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    marked.map_or_else(|| root().join("target"), Path::to_owned)
}

/// The cargo that called us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    process::remove_package_variables(&mut command);
    command
}

/// Whether a program that a check runs is built first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    Now,
    /// `cargo xtask test` built it a moment ago, with what the tests want of its dependencies.
    AsTested,
}

/// The control plane's program.
///
/// # Errors
/// It does not compile.
pub(crate) fn controlplane(build: Build) -> Result<PathBuf> {
    if build == Build::Now {
        let arguments = ["build", "--quiet", "--package", "controlplane", "--bin", "controlplane"];
        process::run(cargo().args(arguments))?;
    }
    Ok(target().join("debug/controlplane"))
}

/// Paths, relative to the root, of the files that git tracks or would track, without those deleted in the work tree.
///
/// # Errors
/// When git is missing or this is no work tree.
pub(crate) fn files() -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = process::capture(&mut git).context("the files to look at come from `git ls-files`")?;
    let mut files: Vec<PathBuf> = listed.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    files.retain(|path| fs::symlink_metadata(root().join(path)).is_ok_and(|meta| meta.is_file()));
    files.sort();
    files.dedup();
    Ok(files)
}
