//! Other control planes on the same PostgreSQL: word between them, and which of them leads.

use async_trait::async_trait;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgListener;
use sqlx::{Connection as _, Postgres};

use super::transaction::{LOCKS, Pools};
use super::{Query, SqlStore, WAIT, sql};
use crate::store::{Listener, Peers, Result};

const CHANNEL: &str = "ftagent_controlplane";
/// The second half of the number of the lock that the leader holds; transactions have the small ones.
const LEADER: i32 = 1_000;

/// The session whose lock says that this process leads: with the session goes the lock.
pub(super) type Lead = tokio::sync::Mutex<Option<PoolConnection<Postgres>>>;

#[async_trait]
impl Peers for SqlStore {
    async fn take_over(&self) -> Result<()> {
        if self.pools.is_postgres() {
            return Ok(());
        }
        let mut tx = self.write().await?;
        sql("UPDATE destinations SET lease = NULL, lease_until = NULL WHERE lease IS NOT NULL").run(&mut tx).await?;
        for free in [
            "UPDATE mitigation_rules SET claim = NULL, leased_until = NULL WHERE claim IS NOT NULL",
            "UPDATE runbook_executions SET claim = NULL, leased_until = NULL WHERE claim IS NOT NULL",
        ] {
            sql(free).run(&mut tx).await?;
        }
        Ok(tx.commit().await?)
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
        let Pools::Postgres { patient, .. } = &self.pools else { return Ok(true) };
        let mut lead = self.lead.lock().await;
        if let Some(session) = lead.as_mut() {
            if matches!(tokio::time::timeout(WAIT, session.ping()).await, Ok(Ok(()))) {
                return Ok(true);
            }
            // Never back to the pool: if the session lives after all, its lock must not.
            if let Some(session) = lead.take() {
                drop(session.detach());
            }
        }
        let mut session = patient.acquire().await?;
        let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1, $2)")
            .bind(LOCKS)
            .bind(LEADER)
            .fetch_one(&mut *session)
            .await?;
        if taken {
            *lead = Some(session);
        }
        Ok(taken)
    }
}

struct Channel(PgListener);

#[async_trait]
impl Listener for Channel {
    async fn next(&mut self) -> Result<Option<String>> {
        Ok(self.0.try_recv().await?.map(|notice| notice.payload().to_owned()))
    }
}
