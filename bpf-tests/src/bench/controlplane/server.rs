//! The server under test: the real program in a process of its own, on a fresh database.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

use super::postgres::Cluster;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Database {
    Sqlite,
    Postgres,
}

impl Database {
    pub(super) const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// A running server; stopped when dropped.
pub(super) struct Server {
    child: Child,
    pub(super) address: SocketAddr,
    /// The owner's.
    pub(super) token: String,
    folder: tempfile::TempDir,
    cluster: Option<Cluster>,
}

/// What a process used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) cpu_secs: f64,
    pub(super) memory_mib: f64,
    pub(super) peak_mib: f64,
    pub(super) files: u64,
}

impl Server {
    /// Starts the program beside this one, or that of `CONTROLPLANE_BIN`.
    pub(super) fn start(database: Database) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("ftagent-fleet-").tempdir()?;
        let cluster = match database {
            Database::Sqlite => None,
            Database::Postgres => Some(Cluster::start()?),
        };
        let program = program()?;
        let mut command = Command::new(&program);
        command.args(["--listen", "127.0.0.1:0", "--data"]).arg(folder.path().join("data"));
        if let Some(cluster) = &cluster {
            command.args(["--database", &cluster.url()]);
        }
        command.arg("serve").env("FTAGENT_CP_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(folder.path().join("log"))?);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let lines = BufReader::new(child.stdout.take().context("it has no output")?).lines();
        let (mut token, mut address) = (None, None);
        for line in lines {
            let line = line?;
            if let Some(value) = line.strip_prefix("deploy token: ") {
                token = Some(value.to_owned());
            } else if let Some(url) = line.strip_prefix("listening on http://") {
                address = Some(url.parse()?);
                break;
            }
        }
        let (Some(token), Some(address)) = (token, address) else {
            drop(child.kill());
            let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            bail!("the server ended before it listened: {log}");
        };
        Ok(Self { child, address, token, folder, cluster })
    }

    /// What the server used, and its database's processes if it has any.
    pub(super) fn usage(&self) -> anyhow::Result<(Usage, f64)> {
        let database = self.cluster.as_ref().map_or(Ok(0.0), Cluster::cpu_secs)?;
        Ok((usage(self.child.id())?, database))
    }

    /// Bytes of the database on the disk.
    pub(super) fn database_bytes(&self) -> anyhow::Result<u64> {
        match &self.cluster {
            Some(cluster) => cluster.bytes(),
            None => bytes_below(&self.folder.path().join("data")),
        }
    }

    /// The last lines of its log.
    pub(super) fn complaints(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(3).collect();
        lines.join(" | ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn program() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("CONTROLPLANE_BIN").map(PathBuf::from);
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("controlplane"));
    let path = named.or_else(beside).context("this program does not know where it is")?;
    if !path.is_file() {
        bail!("{} is missing: `cargo xtask bench controlplane` builds it", path.display());
    }
    Ok(path)
}

/// The whole of a folder.
pub(super) fn bytes_below(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        // What goes away meanwhile is not counted.
        let Ok((entry, about)) = entry.and_then(|entry| entry.metadata().map(|about| (entry, about))) else { continue };
        bytes += if about.is_dir() { bytes_below(&entry.path())? } else { about.len() };
    }
    Ok(bytes)
}

/// Ticks of `/proc/<pid>/stat` in a second, on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// Seconds of CPU that a process used.
pub(super) fn cpu_secs(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, can hold anything.
    let (_, fields) = stat.rsplit_once(") ").context("a stat without a name")?;
    let field = |n: usize| fields.split(' ').nth(n).and_then(|text| text.parse::<f64>().ok()).context("a short stat");
    Ok((field(11)? + field(12)?) / TICKS)
}

fn usage(pid: u32) -> anyhow::Result<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1_024.0
    };
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    Ok(Usage { cpu_secs: cpu_secs(pid)?, memory_mib: mib("VmRSS:"), peak_mib: mib("VmHWM:"), files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_used_something() {
        let mut sum = 0_u64;
        for n in 0..50_000_000_u64 {
            sum = sum.wrapping_mul(3).wrapping_add(std::hint::black_box(n));
        }
        assert!(std::hint::black_box(sum) > 0);
        let usage = usage(std::process::id()).expect("it is there");
        assert!(usage.cpu_secs > 0.0 && usage.memory_mib > 1.0 && usage.peak_mib >= usage.memory_mib, "{usage:?}");
        assert!(usage.files >= 3);
    }
}
