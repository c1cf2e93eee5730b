//! The store in a database that speaks SQL: SQLite in a file of ours, or PostgreSQL.
//!
//! Each query is written once, in words that both understand (`Dialect` has the few that they do not share); `query.rs`
//! and `transaction.rs` wrap the two drivers, `sqlite.rs` and `postgres.rs` open them, and one file per resource holds
//! its trait.

mod adapters;
mod agents;
mod allowlist;
mod audits;
mod authorities;
mod backup;
mod columns;
mod destinations;
pub mod dump;
mod entry;
mod feeds;
mod gather;
mod idempotency;
mod incidents;
mod indicators;
mod ingest;
mod look;
mod mitigations;
mod nodes;
mod outbox;
mod pcaps;
mod peers;
mod postgres;
mod profiles;
mod query;
mod rates;
mod rows;
mod rules;
mod runbooks;
mod runs;
mod schema;
mod scrubbings;
mod sqlite;
mod staged;
mod thresholds;
mod transaction;
mod windows;
mod workspaces;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Changed, Lease, Leased, Look, Looked, NodeAccess, Recorded, Result, Store, StoreError};
use crate::domain::{Problem, WorkspaceId};
pub use backup::{BackupError, restore};
use columns::{amount, at, count, hash, json, maybe_at, number, to_json, unexpected, uuid, word};
use gather::Gather;
pub use postgres::PostgresSettings;
use query::{Query, Row, sql};
use transaction::{Alone, Pools, Tx};

/// How long a call waits for a connection or for another's lock before it answers 503.
const WAIT: Duration = Duration::from_secs(5);

/// How many rows an export reads at once.
const EXPORT_CHUNK: i64 = 500;

/// Which database.
#[derive(Clone, Debug)]
pub enum Database {
    /// A file, made if missing.
    Sqlite(PathBuf),
    Postgres(PostgresSettings),
}

/// What may be done to a database when it is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// It is made, if there is none, and its schema brought up to date.
    Migrate,
    /// Nothing.
    AsItIs,
}

/// The store in an SQL database.
pub struct SqlStore {
    pools: Pools,
    lead: peers::Lead,
    /// What nodes say every few seconds, and what they ask: many at a time.
    reports: Gather<ingest::Report, u64>,
    looks: Gather<Look, Looked>,
    leases: Gather<Lease, Leased>,
    /// Who they are.
    entries: Gather<entry::Entry, Option<NodeAccess>>,
    incidents: Gather<incidents::Told, Recorded>,
}

impl SqlStore {
    /// Opens the database, and brings its schema up to date.
    ///
    /// # Errors
    /// It cannot be reached or is none of ours; it is newer than this program; a migration fails.
    pub async fn open(database: &Database) -> Result<Self> {
        Self::prepare(database, Opening::Migrate).await
    }

    /// Opens a database whose schema is this program's already, and changes nothing: a server may be using it.
    ///
    /// # Errors
    /// It cannot be reached, is none of ours, or has another schema.
    pub async fn attach(database: &Database) -> Result<Self> {
        Self::prepare(database, Opening::AsItIs).await
    }

    async fn prepare(database: &Database, opening: Opening) -> Result<Self> {
        let pools = match database {
            Database::Sqlite(path) => sqlite::open(path, opening).await?,
            Database::Postgres(settings) => postgres::open(settings, opening).await?,
        };
        let [reports, looks, leases, entries, incidents] = std::array::from_fn(|_| pools.clone());
        let reports = Gather::start(ingest::MOST, ingest::PACE, move |calls| ingest::keep(reports.clone(), calls));
        let read = Arc::<look::Read>::default();
        let looks = Gather::start(look::MOST, look::PACE, move |calls| look::look(looks.clone(), read.clone(), calls));
        let leases = Gather::start(rates::MOST, rates::PACE, move |calls| rates::lease(leases.clone(), calls));
        let entries = Gather::start(entry::MOST, entry::PACE, move |calls| entry::enter(entries.clone(), calls));
        let incidents =
            Gather::start(incidents::MOST, incidents::PACE, move |told| incidents::record_all(incidents.clone(), told));
        Ok(Self { pools, lead: peers::Lead::default(), reports, looks, leases, entries, incidents })
    }

    /// A transaction that writes, and that others who write to the workspace wait for.
    async fn write_to(&self, ws: WorkspaceId) -> Result<Tx> {
        let mut tx = self.write().await?;
        tx.own(ws).await?;
        Ok(tx)
    }

    /// A transaction that writes; audit records and versions need [`Self::write_to`] or [`Tx::own`].
    async fn write(&self) -> Result<Tx> {
        Ok(self.pools.write().await?)
    }

    /// A transaction that sees one moment of the database.
    async fn read(&self) -> Result<Tx> {
        Ok(self.pools.read().await?)
    }

    const fn dialect(&self) -> Dialect {
        Dialect { postgres: self.pools.is_postgres() }
    }
}

/// Words that the two databases do not share.
#[derive(Clone, Copy)]
struct Dialect {
    postgres: bool,
}

impl Dialect {
    /// The whole part of a floating-point expression, at most what an integer column holds.
    fn whole(self, expression: &str) -> String {
        if self.postgres {
            // SQLite cuts off and clamps; PostgreSQL rounds and refuses. The number is the last double below 2^63.
            format!("CAST(least(trunc({expression}), 9223372036854774784) AS BIGINT)")
        } else {
            format!("CAST({expression} AS INTEGER)")
        }
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn check(&self) -> Result<()> {
        let mut tx = self.write().await?;
        sql("UPDATE workspaces SET subscription = subscription WHERE id = 1").run(&mut tx).await?;
        tx.rollback().await?;
        sql("SELECT count(*) FROM workspaces").one(&self.pools).await?;
        Ok(())
    }

    async fn close(&self) {
        // Another process leads from now on.
        self.lead.lock().await.end().await;
        self.pools.close().await;
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(source: sqlx::Error) -> Self {
        let reason = match &source {
            sqlx::Error::PoolTimedOut => Some("no connection to it came free in time"),
            sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => Some("it is closed"),
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) => Some("it cannot be reached, read or written"),
            sqlx::Error::Database(e) => match e.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
                Some(e) => postgres::trouble(e.code()),
                None => e.code().and_then(|code| code.parse::<u32>().ok()).and_then(sqlite::trouble),
            },
            _ => None,
        };
        match reason {
            Some(reason) => Self::Unavailable { reason, source: Box::new(source) },
            None => Self::Unexpected { what: "a query failed", source: Box::new(source) },
        }
    }
}

/// Tries once more what another transaction was in the way of: nothing of it was kept.
///
/// Writes to one workspace wait for each other and need it not; what touches rows of many does.
async fn again<T, W: Future<Output = Result<T>>>(mut work: impl FnMut() -> W) -> Result<T> {
    for _ in 0..3 {
        match work().await {
            Err(StoreError::Unavailable { reason: postgres::CONTENTION, .. }) => {}
            done => return done,
        }
    }
    work().await
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

/// The database's numbers of a workspace's nodes, by uuid; a uuid of another workspace is not among them.
async fn node_ids(conn: &mut Tx, ws: WorkspaceId) -> Result<HashMap<Uuid, i64>> {
    let rows = sql("SELECT id, uuid FROM nodes WHERE workspace_id = $1").bind(ws.0).all(conn).await?;
    rows.iter().map(|row| Ok((uuid(row, "uuid")?, row.try_get("id")?))).collect()
}

/// Refuses one more row in `table` beyond `most`: all of a workspace's rows go to its nodes as one message.
async fn leave_room(conn: &mut Tx, ws: WorkspaceId, table: &'static str, most: i64, field: &str) -> Result<()> {
    let query = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table} WHERE workspace_id = $1"));
    let rows: i64 = sql(query).bind(ws.0).scalar(conn).await?;
    if rows >= most {
        return Err(Problem::field(field, format!("the workspace has {rows} already, the most that nodes take")).into());
    }
    Ok(())
}

/// The database's number of one node.
async fn node_id(conn: &mut Tx, ws: WorkspaceId, node: Uuid) -> Result<i64> {
    let id = sql("SELECT id FROM nodes WHERE workspace_id = $1 AND uuid = $2")
        .bind(ws.0)
        .bind(node.to_string())
        .optional_scalar(conn)
        .await?;
    or_missing(id, "node")
}

/// The workspace of a node, whose writes wait for this transaction from now on.
async fn own_node(conn: &mut Tx, node: Uuid, what: &'static str) -> Result<WorkspaceId> {
    let query = sql("SELECT workspace_id FROM nodes WHERE uuid = $1").bind(node.to_string());
    let ws = WorkspaceId(or_missing(query.optional_scalar(&mut *conn).await?, what)?);
    conn.own(ws).await?;
    Ok(ws)
}

/// Advances what the configurations of all nodes of a workspace have in common.
async fn advance_shared(conn: &mut Tx, ws: WorkspaceId) -> Result<Changed> {
    let all = sql("UPDATE workspaces SET config_version = config_version + 1, config_revision = config_revision + 1
         WHERE id = $1");
    all.bind(ws.0).run(conn).await?;
    Ok(Changed::Shared(ws))
}

/// What was read of the workspace for its nodes holds no more.
async fn revise(conn: &mut Tx, ws: WorkspaceId) -> Result<()> {
    let revise = sql("UPDATE workspaces SET config_revision = config_revision + 1 WHERE id = $1");
    revise.bind(ws.0).run(conn).await?;
    Ok(())
}

/// Advances the configurations of the nodes of a workspace with these numbers.
async fn advance(conn: &mut Tx, ws: WorkspaceId, nodes: &[i64]) -> Result<Changed> {
    revise(conn, ws).await?;
    let mut changed = Vec::new();
    for node in nodes {
        let node = sql("UPDATE nodes SET config_version = config_version + 1 WHERE id = $1 RETURNING uuid").bind(*node);
        for row in node.all(&mut *conn).await? {
            changed.push(uuid(&row, "uuid")?);
        }
    }
    Ok(Changed::Nodes(changed))
}
