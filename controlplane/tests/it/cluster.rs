//! A PostgreSQL cluster of the tests' own, from the distribution's package: in a folder of its own, on a socket in it and
//! a free port, gone with the last test that uses it or with the process.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use controlplane::store::sql::{Database, PostgresSettings};
use nix::unistd::{Gid, Pid, Uid, User};

const FOLDER: &str = "FTAGENT_TEST_CLUSTER";

/// Programs of PostgreSQL and whom they run as: they refuse root.
#[derive(Clone)]
struct Programs {
    folder: PathBuf,
    user: Option<(Uid, Gid)>,
}

impl Programs {
    fn find() -> Option<Self> {
        // Debian has a folder for each version, others have the programs where all are.
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let folders = versions.map(|version| version.path().join("bin")).chain(["/usr/bin".into()]);
        let folder = folders.filter(|folder| folder.join("initdb").exists()).max()?;
        let user = if Uid::effective().is_root() {
            let user = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten())?;
            Some((user.uid, user.gid))
        } else {
            None
        };
        Some(Self { folder, user })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.join(program));
        if let Some((uid, gid)) = self.user {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command.current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, args: &[&str]) {
        // Its output goes nowhere: a server that it starts would keep a pipe open.
        let mut command = self.command(program);
        let status = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{program} {args:?}: {status}");
    }
}

/// A running cluster.
pub(crate) struct Cluster {
    programs: Programs,
    folder: PathBuf,
    pub(crate) port: u16,
    databases: AtomicU32,
    /// Cleans up when this process is gone, however it went.
    reaper: Child,
}

static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

impl Cluster {
    /// The cluster that tests share; none, with a message, where PostgreSQL is not installed (an error with `CI=true`).
    pub(crate) fn shared() -> Option<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = shared.upgrade() {
            return Some(cluster);
        }
        let cluster = Self::start()?;
        *shared = Arc::downgrade(&cluster);
        Some(cluster)
    }

    /// A cluster for one test, which may treat it badly.
    pub(crate) fn start() -> Option<Arc<Self>> {
        let Some(programs) = Programs::find() else {
            assert_ne!(
                std::env::var("CI").as_deref(),
                Ok("true"),
                "PostgreSQL is not installed: cargo xtask setup --databases"
            );
            println!("skipped: PostgreSQL is not installed (cargo xtask setup --databases installs it)");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("ftagent-pg-").tempdir().unwrap().keep();
        let reaper = reap_later(&folder);
        std::os::unix::fs::chown(&folder, programs.user.map(|u| u.0.as_raw()), programs.user.map(|u| u.1.as_raw()))
            .unwrap();
        let data = folder.join("data");
        let data = data.to_str().unwrap();
        programs.run("initdb", &["-D", data, "-U", "ftagent", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Processes die in these tests, never the machine: nothing has to reach the disk.
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nfsync = off\nmax_connections = 200\n",
            folder.display()
        );
        let mut file = std::fs::OpenOptions::new().append(true).open(folder.join("data/postgresql.conf")).unwrap();
        file.write_all(settings.as_bytes()).unwrap();
        let cluster = Self { programs, folder, port, databases: AtomicU32::new(0), reaper };
        cluster.control(&["start", "-w"]);
        Some(Arc::new(cluster))
    }

    fn control(&self, args: &[&str]) {
        let (data, log) = (self.folder.join("data"), self.folder.join("log"));
        let common = ["-D", data.to_str().unwrap(), "-l", log.to_str().unwrap(), "-t", "60"];
        self.programs.run("pg_ctl", &[args, &common].concat());
    }

    /// A new database: its URL.
    pub(crate) async fn database(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.execute("postgres", &format!("CREATE DATABASE {name}")).await;
        self.url(&name)
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("postgres://ftagent@127.0.0.1:{}/{name}", self.port)
    }

    /// Runs a statement as the cluster's owner.
    pub(crate) async fn execute(&self, database: &str, statement: &str) {
        let pool = sqlx::PgPool::connect(&self.url(database)).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&pool).await.unwrap();
        pool.close().await;
    }

    /// A copy by PostgreSQL's own programs, taken while the database is used: its URL.
    pub(crate) async fn copy(&self, url: &str) -> String {
        let copy = self.database().await;
        let mut dump =
            self.programs.command("pg_dump").args(["--no-owner", url]).stdout(Stdio::piped()).spawn().unwrap();
        let mut psql = self.programs.command("psql");
        let psql = psql.args(["-q", "-v", "ON_ERROR_STOP=1", "-d", &copy]).stdin(dump.stdout.take().unwrap());
        assert!(psql.stdout(Stdio::null()).status().unwrap().success());
        assert!(dump.wait().unwrap().success());
        copy
    }

    /// Stops at once, as in a crash.
    pub(crate) fn crash(&self) {
        self.control(&["stop", "-m", "immediate", "-w"]);
    }

    pub(crate) fn start_again(&self) {
        self.control(&["start", "-w"]);
    }

    /// The processes that serve connections from programs.
    pub(crate) fn sessions(&self) -> Vec<Pid> {
        let text = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        let server = text.lines().next().unwrap().trim();
        let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap();
        let serves = |pid: &i32| {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.contains("ftagent") && command.contains("127.0.0.1")
        };
        children.split_whitespace().map(|pid| pid.parse().unwrap()).filter(serves).map(Pid::from_raw).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Without its standard input the reaper does its work.
        drop(self.reaper.stdin.take());
        drop(self.reaper.wait());
    }
}

/// Settings for `url` with a small pool.
pub(crate) fn settings(url: &str) -> Database {
    Database::Postgres(PostgresSettings::parse(url, 8, Duration::from_secs(15)).unwrap())
}

/// Runs statements beside a store.
pub(crate) async fn raw(database: &Database, statements: &str) -> Result<(), sqlx::Error> {
    let statements = sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned()));
    match database {
        Database::Sqlite(path) => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
            statements.execute(&sqlx::SqlitePool::connect_with(options).await?).await?;
        }
        Database::Postgres(settings) => {
            let url = format!("postgres://ftagent@{}", settings.place());
            statements.execute(&sqlx::PgPool::connect(&url).await?).await?;
        }
    }
    Ok(())
}

/// Starts this program again, to clean up when the pipe to it closes.
fn reap_later(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cluster::reap", "--ignored"])
        .env(FOLDER, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A Ctrl-C is for the tests: this is what cleans up after it.
        .process_group(0)
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "cleans up behind a cluster, and is started by it"]
fn reap() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    let programs = Programs::find().unwrap();
    let data = folder.join("data");
    if data.join("postmaster.pid").exists() {
        let args = ["stop", "-m", "immediate", "-w", "-D", data.to_str().unwrap()];
        drop(programs.command("pg_ctl").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status());
    }
    std::fs::remove_dir_all(folder).unwrap();
}
