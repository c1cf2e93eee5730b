//! Copies of an SQLite database: taken while the server works, put back while it does not.
//!
//! ```text
//! backup    VACUUM INTO FILE.partial --> sync --> rename
//! restore   copy to DATABASE.restoring --> open, migrate, verify --> close
//!           --> empty the old one's log into it, which fails while anybody has it open
//!           --> keep it as DATABASE.replaced --> rename the new one into its place
//! ```
//! The rename is the moment at which either happens: before it the old file is whole, after it the new one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};

use super::dump::{Chain, DumpError};
use super::transaction::Pools;
use super::{Database, SqlStore, dump, sqlite};
use crate::store::{Store as _, StoreError};

/// Why a copy is not taken or not put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path} cannot be read or written")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "PostgreSQL is backed up and restored by its own programs, pg_dump and pg_restore; export and import work too"
    )]
    Postgres,
    #[error("{0} is there already")]
    Exists(PathBuf),
    #[error("{0} has a log beside it: it is a database in use, take a backup of it first")]
    InUse(PathBuf),
    #[error("{0} is in use: stop the server first")]
    Running(PathBuf),
    #[error("the copy is damaged: {0}")]
    Damaged(String),
    #[error("the copy cannot be verified")]
    Dump(#[from] DumpError),
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn at<T>(path: &Path, done: io::Result<T>) -> Result<T, BackupError> {
    done.map_err(|source| BackupError::File { path: path.to_owned(), source })
}

fn remove(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(BackupError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Makes a file that nobody else reads, and that was not there.
fn create(path: &Path) -> Result<File, BackupError> {
    at(path, OpenOptions::new().write(true).create_new(true).mode(0o600).open(path))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Brings a file and its name in its folder to the disk.
fn sync(path: &Path) -> Result<(), BackupError> {
    at(path, File::open(path).and_then(|file| file.sync_all()))?;
    let folder = folder_of(path);
    at(folder, File::open(folder).and_then(|folder| folder.sync_all()))
}

impl SqlStore {
    /// Writes a copy of the database as of one moment; the server may go on working. Its size in bytes.
    ///
    /// # Errors
    /// The database is PostgreSQL, the file exists, there is no room.
    pub async fn backup(&self, to: &Path) -> Result<u64, BackupError> {
        let Pools::Sqlite { writer, .. } = &self.pools else { return Err(BackupError::Postgres) };
        if to.exists() {
            return Err(BackupError::Exists(to.to_owned()));
        }
        let partial = with_suffix(to, ".partial");
        remove(&partial)?;
        drop(create(&partial)?);
        let name = partial.to_str().ok_or_else(|| BackupError::File {
            path: partial.clone(),
            source: io::Error::new(io::ErrorKind::InvalidFilename, "its name is no UTF-8"),
        })?;
        let done = sqlx::query("VACUUM INTO $1").bind(name.to_owned()).execute(writer).await;
        if let Err(fault) = done {
            remove(&partial)?;
            return Err(StoreError::from(fault).into());
        }
        sync(&partial)?;
        at(to, fs::rename(&partial, to))?;
        sync(to)?;
        Ok(at(to, fs::metadata(to))?.len())
    }
}

/// Puts a copy into the place of the database `to`; what was there is kept as `to.replaced`.
///
/// # Errors
/// The copy is no database of ours, newer than this program or damaged; the server is running. Then nothing changed.
pub async fn restore(from: &Path, to: &Path) -> Result<Vec<Chain>, BackupError> {
    if with_suffix(from, "-wal").exists() {
        return Err(BackupError::InUse(from.to_owned()));
    }
    let copy = with_suffix(to, ".restoring");
    for suffix in ["", "-wal", "-shm", "-journal"] {
        remove(&with_suffix(&copy, suffix))?;
    }
    let done = place(from, &copy, to).await;
    if done.is_err() {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            remove(&with_suffix(&copy, suffix))?;
        }
    }
    done
}

async fn place(from: &Path, copy: &Path, to: &Path) -> Result<Vec<Chain>, BackupError> {
    let mut source = at(from, File::open(from))?;
    at(copy, io::copy(&mut source, &mut create(copy)?))?;
    let chains = verify(copy).await?;
    let mut lone = lone(copy).await?;
    if let Some(connection) = lone.take() {
        connection.close().await.map_err(StoreError::from)?;
    }
    hand_over(copy, to)?;
    sync(copy)?;
    // Held until the new file is in place, so that nobody writes into the old one meanwhile.
    let held = if to.exists() { lone_or_damaged(to).await? } else { None };
    if to.exists() {
        let kept = with_suffix(to, ".replaced");
        remove(&kept)?;
        at(&kept, fs::hard_link(to, &kept))?;
    }
    at(to, fs::rename(copy, to))?;
    sync(to)?;
    drop(held);
    Ok(chains)
}

/// Gives the copy to whom the database belongs: the service is another user than root, who restores.
fn hand_over(copy: &Path, to: &Path) -> Result<(), BackupError> {
    let like = if to.exists() { to } else { folder_of(to) };
    let (is, should) = (at(copy, fs::metadata(copy))?, at(like, fs::metadata(like))?);
    if (is.uid(), is.gid()) == (should.uid(), should.gid()) {
        return Ok(());
    }
    at(copy, std::os::unix::fs::chown(copy, Some(should.uid()), Some(should.gid())))
}

/// Opens the copy as the server would, and looks at all of it.
async fn verify(copy: &Path) -> Result<Vec<Chain>, BackupError> {
    let store = SqlStore::open(&Database::Sqlite(copy.to_owned())).await?;
    let looked = async {
        let Pools::Sqlite { writer, .. } = &store.pools else { return Err(BackupError::Postgres) };
        for check in ["PRAGMA integrity_check(1)", "PRAGMA foreign_key_check"] {
            let row = sqlx::query(check).fetch_optional(writer).await.map_err(StoreError::from)?;
            let said = row.map(|row| row.try_get::<String, _>(0).unwrap_or_else(|e| e.to_string()));
            if let Some(said) = said.filter(|said| said != "ok") {
                return Err(BackupError::Damaged(said));
            }
        }
        Ok(dump::chains(&mut store.read().await?).await?)
    }
    .await;
    store.close().await;
    looked
}

/// The only connection to a database, with its log emptied into it and gone.
async fn lone(path: &Path) -> Result<Option<SqliteConnection>, BackupError> {
    let options = sqlite::options(path).journal_mode(sqlx::sqlite::SqliteJournalMode::Delete);
    let options = options.create_if_missing(false).busy_timeout(std::time::Duration::from_secs(1));
    let opened = async {
        let mut connection = options.connect().await?;
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode = DELETE").fetch_one(&mut connection).await?;
        if mode != "delete" {
            return Ok(None);
        }
        sqlx::query("BEGIN EXCLUSIVE").execute(&mut connection).await?;
        Ok(Some(connection))
    };
    match opened.await {
        Ok(Some(connection)) => Ok(Some(connection)),
        Ok(None) => Err(BackupError::Running(path.to_owned())),
        Err(sqlx::Error::Database(e)) if matches!(e.code().as_deref(), Some("5" | "6" | "261" | "517")) => {
            Err(BackupError::Running(path.to_owned()))
        }
        Err(fault) => Err(StoreError::from(fault).into()),
    }
}

/// As [`lone`]; none for a file that is no database any more, which is what a backup is for.
async fn lone_or_damaged(path: &Path) -> Result<Option<SqliteConnection>, BackupError> {
    match lone(path).await {
        Err(BackupError::Store(StoreError::Unavailable { reason: sqlite::DAMAGED, .. })) => {
            for suffix in ["-wal", "-shm", "-journal"] {
                remove(&with_suffix(path, suffix))?;
            }
            Ok(None)
        }
        other => other,
    }
}
