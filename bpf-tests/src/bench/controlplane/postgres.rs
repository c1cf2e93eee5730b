//! A PostgreSQL of the bench's own, from the distribution's package, in a folder of its own and on a free port; what it
//! acknowledges is on the disk.

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::unistd::{Gid, Uid, User};

use super::server::{bytes_below, cpu_secs};

/// A running server, gone when dropped.
pub(super) struct Cluster {
    programs: PathBuf,
    /// Whom it runs as: it refuses root.
    user: Option<(Uid, Gid)>,
    folder: tempfile::TempDir,
    port: u16,
}

impl Cluster {
    /// Whether there is one to be had.
    pub(super) fn is_there() -> bool {
        programs().is_some()
    }

    pub(super) fn start() -> anyhow::Result<Self> {
        let programs = programs().context("PostgreSQL is not installed: cargo xtask setup --databases")?;
        let user = if Uid::effective().is_root() {
            let known = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten());
            Some(known.map(|user| (user.uid, user.gid)).context("there is no user to run PostgreSQL as")?)
        } else {
            None
        };
        let folder = tempfile::Builder::new().prefix("ftagent-fleet-pg-").tempdir()?;
        let (uid, gid) = (user.map(|u| u.0.as_raw()), user.map(|u| u.1.as_raw()));
        std::os::unix::fs::chown(folder.path(), uid, gid)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let cluster = Self { programs, user, folder, port };
        let data = cluster.folder.path().join("data");
        let data = data.to_str().context("a path that is no text")?;
        cluster.run("initdb", &["-D", data, "-U", "ftagent", "-A", "trust", "-E", "UTF8", "--no-locale"])?;
        // Two CPUs and some gigabytes, shared with everything else here.
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nmax_connections = 60\n\
             shared_buffers = '512MB'\nmax_wal_size = '4GB'\ncheckpoint_timeout = '15min'\n",
            cluster.folder.path().display()
        );
        let mut conf =
            std::fs::OpenOptions::new().append(true).open(cluster.folder.path().join("data/postgresql.conf"))?;
        std::io::Write::write_all(&mut conf, settings.as_bytes())?;
        cluster.control(&["start", "-w", "-t", "60"])?;
        cluster.run("createdb", &["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "ftagent", "fleet"])?;
        Ok(cluster)
    }

    pub(super) fn url(&self) -> String {
        format!("postgres://ftagent@127.0.0.1:{}/fleet", self.port)
    }

    /// Of all of its processes, those that have ended left out.
    pub(super) fn cpu_secs(&self) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(self.folder.path().join("data/postmaster.pid"))?;
        let server: u32 = text.lines().next().context("an empty file")?.trim().parse()?;
        let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children"))?;
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        Ok(children.chain([server]).filter_map(|pid| cpu_secs(pid).ok()).sum())
    }

    /// Without the log of writes, which does not grow for ever.
    pub(super) fn bytes(&self) -> anyhow::Result<u64> {
        bytes_below(&self.folder.path().join("data/base"))
    }

    fn control(&self, args: &[&str]) -> anyhow::Result<()> {
        let (data, log) = (self.folder.path().join("data"), self.folder.path().join("log"));
        let common = ["-D", data.to_str().unwrap_or_default(), "-l", log.to_str().unwrap_or_default()];
        self.run("pg_ctl", &[args, &common].concat())
    }

    fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.join(program));
        if let Some((uid, gid)) = self.user {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command.current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        // Its output goes nowhere: a server that it starts would keep a pipe open.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.args(args).status().with_context(|| format!("cannot run {program}"))?;
        ensure!(status.success(), "{program} failed: {status}");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(fault) = self.control(&["stop", "-m", "immediate", "-w"]) {
            eprintln!("bench: PostgreSQL may be left running in {}: {fault:#}", self.folder.path().display());
        }
    }
}

fn programs() -> Option<PathBuf> {
    // Debian has a folder for each version, others have the programs where all are.
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folders = versions.map(|version| version.path().join("bin")).chain(["/usr/bin".into()]);
    folders.filter(|folder| folder.join("initdb").exists()).max()
}
