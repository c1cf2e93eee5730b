//! Firewalls that tests start for themselves: fetched and unpacked, never installed.
//!
//! Installed, they would close the machine that the tests run on. Unpacked they lie in `target/firewalls/root`, which a
//! test lays over `/usr` and `/etc` in a mount namespace of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::distribution::Family;
use crate::{process, repo};

/// The firewalls, and what of theirs a machine without them lacks.
const PACKAGES: &[&str] = &[
    "ufw",
    "fail2ban",
    "firewalld",
    "python3-firewall",
    "python3-nftables",
    "python3-dbus",
    "python3-gi",
    "python3-cap-ng",
    "gir1.2-glib-2.0",
    "libgirepository-1.0-1",
    "libcap-ng0",
    "libdbus-1-3",
    "libapparmor1",
    "libexpat1",
    "dbus-bin",
    "dbus-daemon",
    "dbus-system-bus-common",
    "systemd-container",
];

/// CrowdSec, in a folder of its own. Installed it would register with a server on the Internet.
const CROWDSEC: &[&str] = &["crowdsec"];

/// Fetches and unpacks them, unless that was done.
///
/// # Errors
/// This is no Debian, or a package cannot be fetched or unpacked.
pub(crate) fn fetch() -> Result<()> {
    unpacked("fetching ufw, firewalld and fail2ban for the tests", "firewalls", PACKAGES)?;
    compile(&repo::target().join("firewalls/root/usr"));
    unpacked("fetching CrowdSec for the tests", "crowdsec", CROWDSEC)
}

/// Compiles the modules of Python below `folder`, as installing the packages would: otherwise each command of a test
/// compiles them anew, and takes three times as long as on a machine that has them. What is compiled is left as it is.
fn compile(folder: &Path) {
    let mut compile = Command::new("python3");
    compile.args(["-m", "compileall", "-q"]).arg(folder).stdout(Stdio::null()).stderr(Stdio::null());
    // Some packages have files for other versions of Python. What is not compiled is slower, and works.
    if let Err(error) = compile.status() {
        eprintln!("  the firewalls' scripts are not compiled, and slower: {error}");
    }
}

/// Fetches `packages` and unpacks them into `target/FOLDER/root`, where the tests look, unless that is there.
fn unpacked(step: &str, folder: &str, packages: &[&str]) -> Result<()> {
    let root = repo::target().join(folder).join("root");
    if root.exists() {
        return Ok(());
    }
    ensure!(Family::here() == Family::Debian, "firewalls for the tests are fetched from Debian alone");
    let folder = repo::target().join(folder).join("packages");
    let unpacked = folder.join("root");
    fs::create_dir_all(&unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
    let mut download = Command::new("apt-get");
    download.arg("download").args(packages).current_dir(&folder);
    process::run_long(step, &mut download, None)?;
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("--extract").arg(&path).arg(&unpacked);
            process::run_long("unpacking", &mut unpack, None)?;
        }
    }
    // What packages still put into /lib lies in /usr/lib on the machine.
    let (old, new) = (unpacked.join("lib"), unpacked.join("usr/lib"));
    if old.exists() {
        let mut merge = Command::new("cp");
        merge.arg("-a").arg(old.join(".")).arg(&new);
        process::run_long("merging /lib", &mut merge, None)?;
    }
    fs::rename(&unpacked, &root).with_context(|| format!("cannot make {}", root.display()))
}
