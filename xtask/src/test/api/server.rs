//! The real control plane on a database of its own, until it is dropped.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::http::Client;
use super::postgres::Cluster;
use crate::{process, repo};

/// Whose requests have no limit that counts here, a minute.
const RATE: &str = "1000000";

/// Which database is below.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Database {
    Sqlite,
    #[value(name = "postgresql")]
    Postgres,
}

impl Database {
    pub(super) const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// A running control plane; killed when dropped.
pub(super) struct Server {
    child: Child,
    pub(super) client: Client,
    pub(super) folder: PathBuf,
    /// Ends after the server.
    _cluster: Option<Cluster>,
}

impl Server {
    /// Starts it with an owner's token that is not limited.
    ///
    /// # Errors
    /// A program that is missing or does not start.
    pub(super) fn start(program: &Path, database: Database) -> Result<Self> {
        let folder = repo::target().join("api").join(database.as_str().to_lowercase());
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(&folder)?;
        let cluster = (database == Database::Postgres).then(Cluster::start).transpose()?;
        let url = cluster.as_ref().map(|c| c.url.clone());
        let data = folder.join("data");
        let log = fs::File::create(folder.join("server.log"))?;
        let mut child = command(program, &data, url.as_deref())
            .args(["--listen", "127.0.0.1:0", "serve"])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot run the control plane")?;
        let mut address = None;
        for line in BufReader::new(child.stdout.take().expect("stdout is piped")).lines() {
            if let Some(url) = line?.strip_prefix("listening on http://") {
                address = Some(url.to_owned());
                break;
            }
        }
        let mut server = Self {
            child,
            client: Client { address: address.unwrap_or_default(), token: String::new() },
            folder,
            _cluster: cluster,
        };
        ensure!(!server.client.address.is_empty(), "the control plane ended: see {}", server.log().display());
        let arguments = ["token", "create", "--name", "fuzz", "--role", "owner", "--rate-limit", RATE];
        let printed = process::capture(command(program, &data, url.as_deref()).args(arguments))?;
        let token = printed.trim().strip_prefix("deploy token: ").context("no token was printed")?;
        server.client.token = token.to_owned();
        Ok(server)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// It ended.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the control plane ended ({status}): see {}", self.log().display()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn command(program: &Path, data: &Path, database: Option<&str>) -> Command {
    // It ends with us, however we end.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.arg("--data").arg(data);
    if let Some(url) = database {
        command.args(["--database", url]);
    }
    // Wrong credentials are most of what is sent without a token; webhooks lead to this machine, where nobody listens.
    command.env("FTAGENT_CP_AUTH_FAILURES_PER_MINUTE", RATE).env("FTAGENT_CP_ALLOW_PRIVATE_DESTINATIONS", "true");
    command.env("FTAGENT_CP_LOG", "warn");
    command
}
