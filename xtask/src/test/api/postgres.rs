//! A PostgreSQL of our own on a free port, until it is dropped or we end.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};

use crate::process;
use crate::setup::tools;

/// A running server; stopped, and its files removed, when dropped.
pub(super) struct Cluster {
    server: Child,
    home: PathBuf,
    pub(super) url: String,
}

impl Cluster {
    /// Starts one, after installing PostgreSQL if it is missing.
    ///
    /// # Errors
    /// It cannot be installed or does not start.
    pub(super) fn start() -> Result<Self> {
        tools::install(&tools::missing(tools::DATABASES))?;
        let initdb = tools::DATABASES.iter().find_map(tools::Tool::find).context("PostgreSQL is not installed")?;
        // A link in the search path may lead to it; its kin are beside it alone.
        let initdb = fs::canonicalize(initdb)?;
        let programs = initdb.parent().context("a program lies in a folder")?.to_owned();
        // PostgreSQL does not run as root, and its user must be able to reach its files.
        let home = env::temp_dir().join(format!("ftagent-api-{}", std::process::id()));
        fs::create_dir(&home).with_context(|| format!("cannot make {}", home.display()))?;
        if process::is_root() {
            process::capture(Command::new("chown").arg("postgres").arg(&home))?;
        }
        let data = home.join("data");
        let mut make = unprivileged(initdb);
        make.arg("-D").arg(&data).args(["-U", "ftagent", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]);
        process::capture(&mut make)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let mut serve = unprivileged(programs.join("postgres"));
        serve.arg("-D").arg(&data).args(["-p", &port, "-k", ""]);
        serve.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=50"]);
        let log = fs::File::create(home.join("log"))?;
        let server = serve.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let url = format!("postgres://ftagent@127.0.0.1:{port}/postgres");
        let mut cluster = Self { server, home, url };
        for _ in 0..300 {
            let mut ask = Command::new(programs.join("pg_isready"));
            if process::capture(ask.args(["-h", "127.0.0.1", "-p", &port])).is_ok() {
                return Ok(cluster);
            }
            ensure!(cluster.server.try_wait()?.is_none(), "PostgreSQL ended: {}", cluster.words());
            thread::sleep(Duration::from_millis(100));
        }
        bail!("PostgreSQL is not ready after 30 s: {}", cluster.words())
    }

    fn words(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // At once: what it holds is not needed any more.
        drop(Command::new("kill").args(["-QUIT", &self.server.id().to_string()]).status());
        drop(self.server.wait());
        drop(fs::remove_dir_all(&self.home));
    }
}

/// A program of PostgreSQL as a user who may run it, which ends with us.
fn unprivileged(program: PathBuf) -> Command {
    let mut command = Command::new("setpriv");
    if process::is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]);
    }
    command.args(["--pdeathsig", "QUIT", "--"]).arg(program).current_dir("/");
    command
}
