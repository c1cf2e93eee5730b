//! The embedded database: one writer connection, several readers, write-ahead log.
//!
//! SQLite lets one connection write at a time; holding exactly one makes waiting ours (a bounded queue in memory)
//! instead of SQLite's (polling a lock file). Every write transaction is `BEGIN IMMEDIATE`, so that it fails before
//! it did anything when another process holds the lock. A commit is on disk (`synchronous = FULL`) when it returns.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, SqliteConnection};

use super::rows::PREPARED;
use super::transaction::Pools;
use super::{Opening, WAIT, schema};
use crate::store::Result;

/// Readers do not block each other or the writer; more than a few only cost memory.
const READERS: u32 = 4;
/// Rows that a connection's thread reads ahead: it is woken for as many, not for each few.
const ROWS: usize = 1_024;
/// Pages that each connection keeps, in KiB (negative: that is how SQLite is told); as many as they come to hold.
const CACHE: &str = "-32768";

pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(WAIT)
        .statement_cache_capacity(PREPARED)
        .row_buffer_size(ROWS)
        .pragma("cache_size", CACHE)
}

pub(super) async fn open(path: &Path, opening: Opening) -> Result<Pools> {
    let options = options(path).create_if_missing(opening == Opening::Migrate);
    let pool = || {
        SqlitePoolOptions::new()
            .acquire_timeout(WAIT)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_release(|conn, _| Box::pin(is_sound(conn)))
            // There is no server that could have gone meanwhile.
            .test_before_acquire(false)
    };
    let writer = pool().max_connections(1).connect_with(options.clone()).await?;
    schema::SQLITE.prepare(&mut *writer.acquire().await?, opening).await?;
    let readers = pool().max_connections(READERS).connect_with(options.read_only(true)).await?;
    Ok(Pools::Sqlite { writer, readers })
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

/// Said of a file that SQLite cannot read.
pub(super) const DAMAGED: &str = "its file is damaged";

/// What an (extended) result code means, if a later try may succeed.
pub(super) fn trouble(code: u32) -> Option<&'static str> {
    match code & 0xff {
        5 | 6 => Some("it is locked by another process"),
        7 => Some("there is no memory left"),
        8 | 3 | 23 => Some("it cannot be written"),
        9 => Some("it was interrupted"),
        10 | 14 => Some("it cannot be read or written"),
        11 | 26 => Some(DAMAGED),
        13 => Some("the disk is full"),
        _ => None,
    }
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
