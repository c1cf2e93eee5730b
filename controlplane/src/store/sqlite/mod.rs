//! The embedded database: one writer connection, several readers, write-ahead log.
//!
//! SQLite lets one connection write at a time; holding exactly one makes waiting ours (a bounded queue in memory)
//! instead of SQLite's (polling a lock file). Every write transaction is `BEGIN IMMEDIATE`, so that it fails before
//! it did anything when another process holds the lock. A commit is on disk (`synchronous = FULL`) when it returns.

mod agents;
mod allowlist;
mod audits;
mod idempotency;
mod incidents;
mod nodes;
mod pcaps;
mod rules;
mod thresholds;
mod workspaces;

use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection as _, Row, Sqlite, SqliteConnection, Transaction};
use uuid::Uuid;

use super::{Changed, Result, Store, StoreError};
use crate::domain::{Problem, Timestamp, WorkspaceId};

/// How long a call waits for a connection or for another process's lock before it answers 503.
const WAIT: Duration = Duration::from_secs(5);
/// Readers do not block each other or the writer; more than a few only cost memory.
const READERS: u32 = 4;

/// The store in one SQLite file.
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the database file, made if missing, and brings its schema up to date.
    ///
    /// # Errors
    /// The file cannot be opened or is none of ours; a migration fails.
    pub async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(WAIT);
        let pool = || {
            SqlitePoolOptions::new()
                .acquire_timeout(WAIT)
                .idle_timeout(None)
                .max_lifetime(None)
                .after_release(|conn, _| Box::pin(is_sound(conn)))
        };
        let writer = pool().max_connections(1).connect_with(options.clone()).await?;
        sqlx::migrate!("migrations/sqlite").run(&writer).await.map_err(|source| StoreError::Unexpected {
            what: "the schema cannot be brought up to date",
            source: Box::new(source),
        })?;
        let readers = pool().max_connections(READERS).connect_with(options.read_only(true)).await?;
        Ok(Self { writer, readers })
    }

    /// A transaction that writes.
    async fn write(&self) -> Result<Transaction<'static, Sqlite>> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// A transaction that sees one moment of the database.
    async fn read(&self) -> Result<Transaction<'static, Sqlite>> {
        Ok(self.readers.begin().await?)
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn check(&self) -> Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("UPDATE workspaces SET subscription = subscription WHERE id = 1").execute(&mut *tx).await?;
        tx.rollback().await?;
        sqlx::query("SELECT count(*) FROM workspaces").fetch_one(&self.readers).await?;
        Ok(())
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(source: sqlx::Error) -> Self {
        let reason = match &source {
            sqlx::Error::PoolTimedOut => Some("too many writes are waiting"),
            sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => Some("it is closed"),
            sqlx::Error::Io(_) => Some("it cannot be read or written"),
            sqlx::Error::Database(e) => e.code().and_then(|code| code.parse::<u32>().ok()).and_then(trouble),
            _ => None,
        };
        match reason {
            Some(reason) => Self::Unavailable { reason, source: Box::new(source) },
            None => Self::Unexpected { what: "a query failed", source: Box::new(source) },
        }
    }
}

/// Whether a connection can be used again.
///
/// SQLite rolls a transaction back by itself when the disk is full; the driver's own rollback then fails, and the
/// driver believes for ever that the transaction is open. Such a connection is closed, and the next use opens another.
async fn is_sound(conn: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // The driver rolls back in the background: the answer to a ping comes after it.
    conn.ping().await?;
    Ok(!conn.is_in_transaction())
}

/// What an (extended) result code of SQLite means, if a later try may succeed.
fn trouble(code: u32) -> Option<&'static str> {
    match code & 0xff {
        5 | 6 => Some("it is locked by another process"),
        7 => Some("there is no memory left"),
        8 | 3 | 23 => Some("it cannot be written"),
        9 => Some("it was interrupted"),
        10 | 14 => Some("it cannot be read or written"),
        11 | 26 => Some("its file is damaged"),
        13 => Some("the disk is full"),
        _ => None,
    }
}

/// Turns a violated uniqueness into what already exists, and passes everything else on.
fn unless_taken(source: sqlx::Error, what: impl FnOnce() -> String) -> StoreError {
    match &source {
        sqlx::Error::Database(e) if e.is_unique_violation() => Problem::AlreadyExists(what()).into(),
        _ => source.into(),
    }
}

/// Turns a row that is not there into what was looked for.
fn or_missing<T>(row: Option<T>, what: &'static str) -> Result<T> {
    row.ok_or_else(|| Problem::NotFound(what).into())
}

fn unexpected(what: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unexpected { what, source: Box::new(source) }
}

/// A word of the vocabulary in a text column.
fn word<T: FromStr>(row: &SqliteRow, column: &'static str) -> Result<T> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|_| unexpected(column, std::io::Error::other(format!("unknown word {text:?}"))))
}

fn json<T: DeserializeOwned>(row: &SqliteRow, column: &'static str) -> Result<T> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|e| unexpected(column, e))
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| unexpected("a value that is no JSON", e))
}

fn uuid(row: &SqliteRow, column: &'static str) -> Result<Uuid> {
    word(row, column)
}

fn at(row: &SqliteRow, column: &'static str) -> Result<Timestamp> {
    Ok(Timestamp::from_micros(row.try_get(column)?))
}

fn maybe_at(row: &SqliteRow, column: &'static str) -> Result<Option<Timestamp>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_micros))
}

fn hash(row: &SqliteRow, column: &'static str) -> Result<[u8; 32]> {
    let bytes: Vec<u8> = row.try_get(column)?;
    bytes.try_into().map_err(|_| unexpected(column, std::io::Error::other("not 32 bytes")))
}

/// A quantity for an integer column: SQLite's integers end at 2^63 - 1.
fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn amount(row: &SqliteRow, column: &'static str) -> Result<u64> {
    let value: i64 = row.try_get(column)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

/// The database's numbers of a workspace's nodes, by uuid; a uuid of another workspace is not among them.
async fn node_ids(conn: &mut SqliteConnection, ws: WorkspaceId) -> Result<HashMap<Uuid, i64>> {
    let rows = sqlx::query("SELECT id, uuid FROM nodes WHERE workspace_id = ?").bind(ws.0).fetch_all(conn).await?;
    rows.iter().map(|row| Ok((uuid(row, "uuid")?, row.try_get("id")?))).collect()
}

/// Refuses one more row in `table` beyond `most`: all of a workspace's rows go to its nodes as one message.
async fn leave_room(
    conn: &mut SqliteConnection,
    ws: WorkspaceId,
    table: &'static str,
    most: i64,
    field: &str,
) -> Result<()> {
    let query = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table} WHERE workspace_id = ?"));
    let rows: i64 = sqlx::query_scalar(query).bind(ws.0).fetch_one(conn).await?;
    if rows >= most {
        return Err(Problem::field(field, format!("the workspace has {rows} already, the most that nodes take")).into());
    }
    Ok(())
}

/// The database's number of one node.
async fn node_id(conn: &mut SqliteConnection, ws: WorkspaceId, node: Uuid) -> Result<i64> {
    let row = sqlx::query_scalar("SELECT id FROM nodes WHERE workspace_id = ? AND uuid = ?")
        .bind(ws.0)
        .bind(node.to_string())
        .fetch_optional(conn)
        .await?;
    or_missing(row, "node")
}

/// Advances the configuration of every node of a workspace.
async fn advance_all(conn: &mut SqliteConnection, ws: WorkspaceId) -> Result<Changed> {
    let rows =
        sqlx::query("UPDATE nodes SET config_version = config_version + 1 WHERE workspace_id = ? RETURNING uuid")
            .bind(ws.0)
            .fetch_all(conn)
            .await?;
    rows.iter().map(|row| uuid(row, "uuid")).collect()
}

/// Advances the configuration of the node with this number.
async fn advance(conn: &mut SqliteConnection, node_id: i64) -> Result<Changed> {
    let rows = sqlx::query("UPDATE nodes SET config_version = config_version + 1 WHERE id = ? RETURNING uuid")
        .bind(node_id)
        .fetch_all(conn)
        .await?;
    rows.iter().map(|row| uuid(row, "uuid")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_is_a_defect() {
        for (code, passes) in [(5, true), (261, true), (13, true), (778, true), (11, true), (1, false), (19, false)] {
            assert_eq!(trouble(code).is_some(), passes, "{code}");
        }
    }
}
