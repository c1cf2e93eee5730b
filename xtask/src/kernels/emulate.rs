//! Booting a kernel under QEMU's software emulation, and finding or installing QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::apt::Archive;
use super::table::Report;
use crate::{process, repo, setup};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// A minute on an idle machine; emulation shares its cores with whatever else runs.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// The emulator; installed where it is missing and can be.
///
/// # Errors
/// With the command that installs it.
pub(crate) fn ensure() -> Result<PathBuf> {
    if let Some(path) = process::find_program(PROGRAM) {
        return Ok(path);
    }
    eprintln!("kernels: {PROGRAM} is missing: it boots the kernels");
    let plain = setup::install(&[PACKAGE], &["--no-remove".to_owned()]);
    if let Err(error) = plain {
        // Where parts of QEMU came from backports already, the rest has to come from there too.
        eprintln!("  {error:#}\n  looking in the release's backports");
        install_from_backports().with_context(|| format!("no {PROGRAM}: as root run `apt-get install {PACKAGE}`"))?;
    }
    process::find_program(PROGRAM).with_context(|| format!("{PACKAGE} is installed and holds no {PROGRAM}"))
}

fn install_from_backports() -> Result<()> {
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("this release has no code name, so it has no backports")?;
    let backports = format!("{codename}-backports");
    let archive = Archive::open(&repo::target().join("kernels/qemu"), &[codename, &backports])?;
    let options = [archive.options(), ["--no-remove", "-t", &backports].map(str::to_owned).to_vec()].concat();
    setup::install(&[PACKAGE], &options)
}

/// Boots `vmlinuz` with `initramfs` and reads what its first process tells.
pub(crate) fn boot(
    emulator: &Path,
    name: &str,
    vmlinuz: &Path,
    initramfs: &Path,
    console: &Path,
    row: Option<&str>,
) -> Result<Report> {
    if row.is_some_and(|row| row.is_empty() || row.contains(char::is_whitespace)) {
        bail!("--row is a part of a row's name, without blanks");
    }
    let mut command = Command::new(emulator);
    command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]);
    command.args(["-display", "none", "-monitor", "none", "-nodefaults", "-no-reboot", "-nic", "none"]);
    let mut log = std::ffi::OsString::from("stdio,id=console,signal=off,logfile=");
    log.push(console);
    command.arg("-chardev").arg(log).args(["-serial", "chardev:console"]);
    command.arg("-kernel").arg(vmlinuz).arg("-initrd").arg(initramfs);
    let row = row.map(|row| format!(" matrix_row={row}")).unwrap_or_default();
    command.arg("-append").arg(format!("console=ttyS0 panic=-1 quiet{row}"));
    let (succeeded, output) = process::observe(&format!("kernel {name} under emulation"), &mut command, LIMIT)
        .with_context(|| format!("its console is in {}", console.display()))?;
    let report = Report::parse(&output);
    if !succeeded || !report.is_complete() {
        let tail: Vec<&str> = output.lines().rev().filter(|line| !line.is_empty()).take(12).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("it stopped before the end; its last words (all are in {}):\n{}", console.display(), tail.join("\n"));
    }
    Ok(report)
}
