//! Runs a command-line tool inside a site's namespace.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::site::Site;

/// Where tools of administrators lie, in case the search path has only those of users.
const MORE: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Finds a program, or says which package has it.
pub(super) fn find(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(MORE.map(PathBuf::from));
    let mut places = folders.map(|folder| folder.join(program));
    places.find(|place| place.is_file()).with_context(|| format!("{program} is not installed (package {package})"))
}

/// Runs `program` in the site's namespace with `input` on its standard input.
pub(super) fn run(site: &Site, program: &Path, args: &[&str], input: &str) -> anyhow::Result<()> {
    site.edge.run(|| run_here(site.path(), program, args, input))?
}

/// The same in whatever namespaces the calling thread is; `folder` is for a file that holds the input.
pub(super) fn run_here(folder: &Path, program: &Path, args: &[&str], input: &str) -> anyhow::Result<()> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    // A file, not a pipe: lists are longer than a pipe, and whoever reads them may complain meanwhile.
    let path = folder.join(format!("{name}.input"));
    fs::write(&path, input).with_context(|| format!("cannot write {}", path.display()))?;
    let output = Command::new(program)
        .args(args)
        // iptables locks the machine's firewall against others; this is another firewall.
        .env("XTABLES_LOCKFILE", folder.join("xtables.lock"))
        .stdin(File::open(&path)?)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("{name} cannot be started"))?;
    fs::remove_file(&path).ok();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("nothing");
        let said: String = said.chars().take(160).collect();
        bail!("{name} ended with {}: {said}", output.status);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_is_missing_is_named_with_its_package() {
        let error = find("no-such-tool", "no-such-package").expect_err("nobody has it");
        assert_eq!(error.to_string(), "no-such-tool is not installed (package no-such-package)");
        assert!(find("sh", "dash").is_ok());
    }
}
