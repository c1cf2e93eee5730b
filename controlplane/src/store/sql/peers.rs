//! Other control planes on the same PostgreSQL: word between them, which of them lives and which of them leads.
//!
//! Each process keeps a session whose advisory lock says that it lives, and the leader holds one more: with a session
//! go its locks. A claim begins with the number of the process that made it, so that the leader can free what a dead
//! one left.

use std::collections::BTreeSet;
use std::io;

use async_trait::async_trait;
use sqlx::postgres::PgListener;
use sqlx::{Connection as _, PgConnection, PgPool};
use uuid::{Builder, Uuid};

use super::transaction::{LOCKS, Pools};
use super::{Query, SqlStore, WAIT};
use crate::store::{Listener, Peers, Result};

const CHANNEL: &str = "ftagent_controlplane";
/// The second half of the number of the lock that the leader holds; transactions have the small ones.
const LEADER: i32 = 1_000;
/// The first half of the numbers of the locks by which processes live: "ftal". The second half is the process's.
const ALIVE: i32 = 0x6674_616c;

/// Rows that can be claimed: those of many that an index finds, and their columns for the claim and for its end.
struct Claimable {
    table: &'static str,
    rows: &'static str,
    claim: &'static str,
    until: &'static str,
}

const CLAIMABLE: [Claimable; 3] = [
    Claimable { table: "destinations", rows: "lease IS NOT NULL", claim: "lease", until: "lease_until" },
    Claimable {
        table: "mitigation_rules",
        rows: "status IN ('pending', 'withdrawing') AND claim IS NOT NULL",
        claim: "claim",
        until: "leased_until",
    },
    Claimable {
        table: "runbook_executions",
        rows: "status IN ('queued', 'running') AND claim IS NOT NULL",
        claim: "claim",
        until: "leased_until",
    },
];

impl Claimable {
    /// Frees them all.
    fn free(&self) -> Query {
        let Self { table, rows, claim, until } = self;
        Query::growing(&format!("UPDATE {table} SET {claim} = NULL, {until} = NULL WHERE {rows}"))
    }

    /// Who holds some.
    async fn holders(&self, pools: &Pools) -> Result<Vec<String>> {
        let Self { table, rows, claim, .. } = self;
        let query = Query::growing(&format!("SELECT DISTINCT left({claim}, 8) AS holder FROM {table} WHERE {rows}"));
        query.all(pools).await?.iter().map(|row| Ok(row.try_get("holder")?)).collect()
    }
}

/// Numbers of the processes that live, as claims begin. Every session of the database sees all locks.
const LIVING: &str = "SELECT lpad(to_hex(objid::bigint), 8, '0') FROM pg_locks
     WHERE locktype = 'advisory' AND classid = $1 AND objsubid = 2 AND granted
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// The session that this process lives by.
#[derive(Default)]
pub(super) struct Presence {
    session: Option<PgConnection>,
    leads: bool,
    /// Processes that held claims and did not live when the leader looked last.
    missed: BTreeSet<String>,
}

pub(super) type Lead = tokio::sync::Mutex<Presence>;

impl Presence {
    /// Sees to it that the session stands, as `instance`, and leads if nobody does.
    async fn keep(&mut self, patient: &PgPool, instance: Uuid) -> Result<()> {
        match tokio::time::timeout(WAIT, self.renew(patient, instance)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(fault)) => {
                self.give_up();
                Err(fault.into())
            }
            // A server that is gone says nothing.
            Err(_) => {
                self.give_up();
                Err(gone().into())
            }
        }
    }

    async fn renew(&mut self, patient: &PgPool, instance: Uuid) -> Result<(), sqlx::Error> {
        if let Some(session) = self.session.as_mut()
            && session.ping().await.is_err()
        {
            self.give_up();
        }
        let session = match self.session.as_mut() {
            Some(session) => session,
            None => {
                let mut session = patient.acquire().await?.detach();
                sqlx::query("SELECT pg_advisory_lock_shared($1, $2)")
                    .bind(ALIVE)
                    .bind(number(instance))
                    .execute(&mut session)
                    .await?;
                self.session.insert(session)
            }
        };
        if !self.leads {
            let lead = sqlx::query_scalar("SELECT pg_try_advisory_lock($1, $2)").bind(LOCKS).bind(LEADER);
            self.leads = lead.fetch_one(session).await?;
        }
        Ok(())
    }

    /// Numbers of the processes that live, as claims begin.
    async fn living(&mut self) -> Result<Vec<String>> {
        let Some(session) = self.session.as_mut() else { return Err(gone().into()) };
        match tokio::time::timeout(WAIT, sqlx::query_scalar(LIVING).bind(ALIVE).fetch_all(session)).await {
            Ok(Ok(living)) => Ok(living),
            Ok(Err(fault)) => Err(fault.into()),
            Err(_) => {
                self.give_up();
                Err(gone().into())
            }
        }
    }

    /// Never back to a pool: if the session lives after all, its locks must not.
    fn give_up(&mut self) {
        *self = Self::default();
    }

    /// Ends the session; its locks go with it.
    pub(super) async fn end(&mut self) {
        if let Some(session) = self.session.take() {
            // A server that does not hear it ends it with the connection.
            drop(tokio::time::timeout(WAIT, session.close()).await);
        }
        self.give_up();
    }
}

fn gone() -> sqlx::Error {
    sqlx::Error::Io(io::ErrorKind::TimedOut.into())
}

/// The first four bytes, as PostgreSQL numbers locks.
fn number(instance: Uuid) -> i32 {
    let [a, b, c, d, ..] = *instance.as_bytes();
    i32::from_be_bytes([a, b, c, d])
}

impl Pools {
    /// A new claim of this process.
    pub(super) fn claim(&self) -> Uuid {
        let mut claim = *Uuid::new_v4().as_bytes();
        if let Some(instance) = self.instance() {
            claim[..4].copy_from_slice(&instance.as_bytes()[..4]);
        }
        Builder::from_custom_bytes(claim).into_uuid()
    }
}

#[async_trait]
impl Peers for SqlStore {
    async fn take_over(&self) -> Result<()> {
        if let Pools::Postgres { patient, instance, .. } = &self.pools {
            // Before anything is claimed: what nobody living claims is free.
            return self.lead.lock().await.keep(patient, *instance).await;
        }
        let mut tx = self.write().await?;
        for claimable in CLAIMABLE {
            claimable.free().run(&mut tx).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn free_claims(&self) -> Result<u64> {
        let Pools::Postgres { patient, instance, .. } = &self.pools else { return Ok(0) };
        let mut presence = self.lead.lock().await;
        presence.keep(patient, *instance).await?;
        if !presence.leads {
            presence.missed.clear();
            return Ok(0);
        }
        let mut holders = BTreeSet::new();
        for claimable in CLAIMABLE {
            holders.extend(claimable.holders(&self.pools).await?);
        }
        if !holders.is_empty() {
            let living = presence.living().await?;
            holders.retain(|holder| !living.contains(holder));
        }
        // A process whose session was cut off has until the next look to come again.
        let dead: Vec<String> = holders.intersection(&presence.missed).cloned().collect();
        presence.missed = holders;
        let mut freed = 0;
        for claimable in CLAIMABLE {
            for holder in &dead {
                let mut query = claimable.free();
                query.push(" AND left(").push(claimable.claim).push(", 8) = ").push_bind(holder.clone());
                freed += query.run(&self.pools).await?;
            }
        }
        Ok(freed)
    }

    async fn tell(&self, notices: &[String]) -> Result<()> {
        if !self.pools.is_postgres() || notices.is_empty() {
            return Ok(());
        }
        let mut query = Query::growing("SELECT ");
        for (n, notice) in notices.iter().enumerate() {
            query.push(if n == 0 { "" } else { ", " }).push("pg_notify('").push(CHANNEL).push("', ");
            query.push_bind(notice).push(")");
        }
        query.run(&self.pools).await?;
        Ok(())
    }

    async fn listen(&self) -> Result<Option<Box<dyn Listener>>> {
        let Pools::Postgres { patient, .. } = &self.pools else { return Ok(None) };
        let mut listener = PgListener::connect_with(patient).await?;
        listener.listen(CHANNEL).await?;
        Ok(Some(Box::new(Channel(listener))))
    }

    async fn lead(&self) -> Result<bool> {
        let Pools::Postgres { patient, instance, .. } = &self.pools else { return Ok(true) };
        let mut presence = self.lead.lock().await;
        presence.keep(patient, *instance).await?;
        Ok(presence.leads)
    }
}

struct Channel(PgListener);

#[async_trait]
impl Listener for Channel {
    async fn next(&mut self) -> Result<Option<String>> {
        Ok(self.0.try_recv().await?.map(|notice| notice.payload().to_owned()))
    }
}
