//! Connections and transactions of either database, and what waits for what.
//!
//! ```text
//!             SQLite                               PostgreSQL
//! write       the one writer, BEGIN IMMEDIATE      READ COMMITTED; the workspace's row is locked first
//! read        a snapshot of a reader               REPEATABLE READ, READ ONLY
//! ```
//! On PostgreSQL the lock on the workspace's row makes its writes serial: audit chain, versions and numbers of commands
//! grow in the order of commits. Locks are taken in one order, workspace, then [`Alone`], then rows, so that writes wait
//! for each other and do not dead-lock. Reports that touch one node alone (heartbeats, metrics) take no such lock.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres, Sqlite, SqliteConnection, SqlitePool, Transaction};
use uuid::Uuid;

use super::postgres;
use super::query::{Query, Row, sql};
use crate::domain::WorkspaceId;

/// What only one transaction at a time does, whatever its workspace.
#[derive(Clone, Copy)]
pub(super) enum Alone {
    /// The first workspace is made, or a dump taken.
    Bootstrap = 1,
    /// Room for uploads is given away.
    Uploads = 2,
    /// Seconds become minutes.
    Pruning = 3,
}

/// The first half of the numbers of our advisory locks: "ftag".
pub(super) const LOCKS: i32 = 0x6674_6167;

/// Connections to one database.
#[derive(Clone)]
pub(super) enum Pools {
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
    },
    Postgres {
        pool: PgPool,
        /// Without limits of time: the listener, the lock of the jobs.
        patient: PgPool,
        /// How long the server may take for one statement, and a little more: a server that is gone says nothing.
        patience: Duration,
        /// Tells this process from others on the same database.
        instance: Uuid,
    },
}

/// Where a query runs.
pub(super) enum On<'a> {
    Transaction(&'a mut Tx),
    /// A reading connection of its own.
    Pools(&'a Pools),
}

impl On<'_> {
    pub(super) const fn is_postgres(&self) -> bool {
        match self {
            On::Transaction(tx) => tx.is_postgres(),
            On::Pools(pools) => pools.is_postgres(),
        }
    }

    /// The same once more.
    pub(super) fn again(&mut self) -> On<'_> {
        match self {
            On::Transaction(tx) => On::Transaction(tx),
            On::Pools(pools) => On::Pools(pools),
        }
    }
}

impl<'a> From<&'a mut Tx> for On<'a> {
    fn from(tx: &'a mut Tx) -> Self {
        On::Transaction(tx)
    }
}

impl<'a> From<&'a Pools> for On<'a> {
    fn from(pools: &'a Pools) -> Self {
        On::Pools(pools)
    }
}

impl Pools {
    pub(super) const fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres { .. })
    }

    /// Tells this process from others, where there can be some.
    pub(super) const fn instance(&self) -> Option<Uuid> {
        match self {
            Self::Sqlite { .. } => None,
            Self::Postgres { instance, .. } => Some(*instance),
        }
    }

    /// A transaction that writes: on disk when its commit returns.
    pub(super) async fn write(&self) -> Result<Tx, sqlx::Error> {
        self.begin("BEGIN").await
    }

    /// A transaction that writes what is said again in seconds: on PostgreSQL its commit waits for no disk. The server
    /// writes it within three times `wal_writer_delay` (0.6 s) and with the next commit that does wait: a control plane
    /// that is killed loses nothing, a database server that crashes what came in that time.
    pub(super) async fn write_lazily(&self) -> Result<Tx, sqlx::Error> {
        self.begin("BEGIN; SET LOCAL synchronous_commit TO OFF").await
    }

    async fn begin(&self, postgres: &'static str) -> Result<Tx, sqlx::Error> {
        Ok(match self {
            Self::Sqlite { writer, .. } => Tx::new(Inner::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?), None),
            Self::Postgres { pool, patience, instance, .. } => {
                let tx = Tx::new(Inner::Postgres(pool.begin_with(postgres).await?), Some(*patience));
                Tx { instance: Some(*instance), ..tx }
            }
        })
    }

    /// A transaction that sees one moment of the database.
    pub(super) async fn read(&self) -> Result<Tx, sqlx::Error> {
        Ok(match self {
            Self::Sqlite { readers, .. } => Tx::new(Inner::Sqlite(readers.begin().await?), None),
            Self::Postgres { pool, patience, .. } => {
                let tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
                Tx::new(Inner::Postgres(tx), Some(*patience))
            }
        })
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
            Self::Postgres { pool, patient, .. } => {
                // A session that hangs must not keep the program from ending; the server ends it.
                for pool in [patient, pool] {
                    if tokio::time::timeout(super::WAIT, pool.close()).await.is_err() {
                        tracing::warn!("a connection to the database does not close: it is left");
                    }
                }
            }
        }
    }
}

enum Inner {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// A transaction; rolled back unless it is committed.
pub(super) struct Tx {
    inner: Inner,
    patience: Option<Duration>,
    owns: Option<WorkspaceId>,
    /// Of the process, where there can be others.
    pub(super) instance: Option<Uuid>,
}

impl Tx {
    const fn new(inner: Inner, patience: Option<Duration>) -> Self {
        Self { inner, patience, owns: None, instance: None }
    }

    pub(super) const fn is_postgres(&self) -> bool {
        matches!(self.inner, Inner::Postgres(_))
    }

    /// Waits until this is the only transaction that changes the workspace.
    pub(super) async fn own(&mut self, ws: WorkspaceId) -> Result<(), sqlx::Error> {
        if self.owns == Some(ws) || !self.is_postgres() {
            return Ok(());
        }
        sql("SELECT id FROM workspaces WHERE id = $1 FOR NO KEY UPDATE").bind(ws.0).optional(&mut *self).await?;
        self.owns = Some(ws);
        Ok(())
    }

    /// Waits until this is the only transaction that does `what`.
    pub(super) async fn alone(&mut self, what: Alone) -> Result<(), sqlx::Error> {
        if self.is_postgres() {
            let text = format!("SELECT 1 FROM (SELECT pg_advisory_xact_lock({LOCKS}, {})) AS locked", what as i32);
            sql(sqlx::AssertSqlSafe(text)).optional(self).await?;
        }
        Ok(())
    }

    /// Lets statements take ten minutes: for work on the whole database.
    pub(super) async fn take_time(&mut self) -> Result<(), sqlx::Error> {
        if self.is_postgres() {
            self.patience = Some(Duration::from_secs(610));
            sql("SET LOCAL statement_timeout = '600s'").run(&mut *self).await?;
            sql("SET LOCAL idle_in_transaction_session_timeout = '600s'").run(self).await?;
        }
        Ok(())
    }

    /// Has statements look rows up, one after the other, where there is an index.
    pub(super) async fn by_index(&mut self) -> Result<(), sqlx::Error> {
        if self.is_postgres() {
            for way in ["seqscan", "hashjoin", "mergejoin"] {
                sql(sqlx::AssertSqlSafe(format!("SET LOCAL enable_{way} = off"))).run(&mut *self).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self.inner {
            Inner::Sqlite(tx) => tx.commit().await,
            Inner::Postgres(tx) => within(self.patience, tx.commit()).await,
        }
    }

    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        match self.inner {
            Inner::Sqlite(tx) => tx.rollback().await,
            Inner::Postgres(tx) => within(self.patience, tx.rollback()).await,
        }
    }

    /// Hands every row to `each`, one after the other, without keeping them.
    pub(super) async fn for_each<E: From<sqlx::Error>>(
        &mut self,
        query: Query,
        mut each: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<(), E> {
        match &mut self.inner {
            Inner::Sqlite(tx) => {
                let mut rows = query.for_sqlite().fetch(&mut **tx);
                while let Some(row) = rows.try_next().await? {
                    each(Row::Sqlite(row))?;
                }
            }
            Inner::Postgres(tx) => {
                let mut rows = query.for_postgres().fetch(&mut **tx);
                while let Some(row) = rows.try_next().await? {
                    each(Row::Postgres(row))?;
                }
            }
        }
        Ok(())
    }
}

/// Gives up on a server that does not even say that it gave up.
async fn within<T>(
    patience: Option<Duration>,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let Some(patience) = patience else { return work.await };
    tokio::time::timeout(patience, work)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

/// Forgets prepared statements when one was refused for being older than its table, so that the next try succeeds.
async fn unless_stale<T>(
    conn: &mut PgConnection,
    patience: Option<Duration>,
    query: Query,
    run: impl AsyncFnOnce(&mut PgConnection, Query) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let done = within(patience, run(conn, query)).await;
    if let Err(sqlx::Error::Database(fault)) = &done
        && fault.code().as_deref() == Some(postgres::STALE)
    {
        within(patience, conn.clear_cached_statements()).await?;
    }
    done
}

impl On<'_> {
    /// Runs a query on whichever connection it is for.
    async fn with<T, S, P>(self, query: Query, sqlite: S, postgres: P) -> Result<T, sqlx::Error>
    where
        S: AsyncFnOnce(&mut SqliteConnection, Query) -> Result<T, sqlx::Error>,
        P: AsyncFnOnce(&mut PgConnection, Query) -> Result<T, sqlx::Error>,
    {
        match self {
            On::Transaction(Tx { inner: Inner::Sqlite(tx), .. }) => sqlite(tx, query).await,
            On::Transaction(Tx { inner: Inner::Postgres(tx), patience, .. }) => {
                unless_stale(tx, *patience, query, postgres).await
            }
            On::Pools(Pools::Sqlite { readers, .. }) => sqlite(&mut *readers.acquire().await?, query).await,
            On::Pools(Pools::Postgres { pool, patience, .. }) => {
                unless_stale(&mut *pool.acquire().await?, Some(*patience), query, postgres).await
            }
        }
    }

    pub(super) async fn run(self, query: Query) -> Result<u64, sqlx::Error> {
        self.with(
            query,
            async |conn, query| Ok(query.for_sqlite().execute(conn).await?.rows_affected()),
            async |conn, query| Ok(query.for_postgres().execute(conn).await?.rows_affected()),
        )
        .await
    }

    pub(super) async fn all(self, query: Query) -> Result<Vec<Row>, sqlx::Error> {
        self.with(
            query,
            async |conn, query| Ok(query.for_sqlite().fetch_all(conn).await?.into_iter().map(Row::Sqlite).collect()),
            async |conn, query| {
                Ok(query.for_postgres().fetch_all(conn).await?.into_iter().map(Row::Postgres).collect())
            },
        )
        .await
    }

    pub(super) async fn optional(self, query: Query) -> Result<Option<Row>, sqlx::Error> {
        self.with(
            query,
            async |conn, query| Ok(query.for_sqlite().fetch_optional(conn).await?.map(Row::Sqlite)),
            async |conn, query| Ok(query.for_postgres().fetch_optional(conn).await?.map(Row::Postgres)),
        )
        .await
    }
}
