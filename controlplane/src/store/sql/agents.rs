//! What nodes say and ask.

use async_trait::async_trait;
use ftagent_common::api::{AckStatus, CommandAck, Heartbeat, MetricsSample};
use uuid::Uuid;

use super::audits::append;
use super::entry::Entry;
use super::ingest::{MEANS, Report};
use super::{Alone, SqlStore, again, or_missing, own_node, sql, to_json};
use crate::domain::{Fact, Fingerprint, Problem, Timestamp, WorkspaceId};
use crate::store::{Agents, Look, Looked, NodeAccess, Result};

/// Nodes whose samples are thinned out in one transaction: reports wait no longer for it than this takes.
const NODES: u32 = 100;

#[async_trait]
impl Agents for SqlStore {
    async fn node_key(&self, node: Uuid, shown: Option<Fingerprint>) -> Result<Option<NodeAccess>> {
        self.entries.call(Entry { node, shown }).await
    }

    async fn heartbeat(&self, node: Uuid, heartbeat: &Heartbeat, now: Timestamp) -> Result<u64> {
        let (ratio, text) = (heartbeat.threshold_ratio, to_json(heartbeat)?.into());
        self.reports.call(Report::Heartbeat { node, at: now, ratio, text }).await
    }

    async fn record_metrics(&self, node: Uuid, samples: &[MetricsSample]) -> Result<()> {
        self.reports.call(Report::Metrics { node, samples: samples.into() }).await.map(drop)
    }

    async fn look(&self, question: Look) -> Result<Looked> {
        self.looks.call(question).await
    }

    async fn acknowledge(&self, node: Uuid, ack: &CommandAck, fact: Fact) -> Result<()> {
        let mut tx = self.write().await?;
        own_node(&mut tx, node, "command").await?;
        let row = sql("SELECT c.id, c.status, n.workspace_id FROM commands c JOIN nodes n ON n.id = c.node_id
             WHERE n.uuid = $1 AND c.uuid = $2")
        .bind(node.to_string())
        .bind(ack.command_id.to_string())
        .optional(&mut tx)
        .await?;
        let row = or_missing(row, "command")?;
        let status: String = row.try_get("status")?;
        if status != "pending" && status != "expired" {
            return Ok(());
        }
        let word = match ack.status {
            AckStatus::Applied => "applied",
            AckStatus::Failed => "failed",
        };
        sql("UPDATE commands SET status = $1, ended_at = $2, error = $3, output = $4 WHERE id = $5")
            .bind(word)
            .bind(fact.at.micros())
            .bind(&ack.error)
            .bind(&ack.output)
            .bind(row.try_get::<i64>("id")?)
            .run(&mut tx)
            .await?;
        append(&mut tx, WorkspaceId(row.try_get("workspace_id")?), fact).await?;
        Ok(tx.commit().await?)
    }

    async fn prune_metrics(&self, seconds_before: Timestamp, minutes_before: Timestamp) -> Result<u64> {
        let (mut pruned, mut after) = (0, 0);
        loop {
            let some = sql("SELECT id FROM nodes WHERE id > $1 ORDER BY id LIMIT $2").bind(after).bind(NODES);
            let some = some.all(&self.pools).await?;
            let ids = some.iter().map(|row| row.try_get("id")).collect::<Result<Vec<i64>, _>>()?;
            let (Some(first), Some(last)) = (ids.first(), ids.last()) else { return Ok(pruned) };
            pruned += again(|| self.thin_out((*first, *last), seconds_before, minutes_before)).await?;
            after = *last;
        }
    }

    async fn expire_commands(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = sql(
            "UPDATE commands SET status = 'expired', ended_at = created_at WHERE status = 'pending' AND created_at < $1",
        )
        .bind(before.micros())
        .run(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(done)
    }
}

impl SqlStore {
    /// Thins out the samples of the nodes with numbers from `first` to `last`.
    async fn thin_out(
        &self,
        (first, last): (i64, i64),
        seconds_before: Timestamp,
        minutes_before: Timestamp,
    ) -> Result<u64> {
        // Whole minutes only: a minute that is split would be merged later, but needs not be.
        let before = seconds_before.secs().div_euclid(60) * 60;
        let mut tx = self.write().await?;
        tx.take_time().await?;
        tx.alone(Alone::Pruning).await?;
        // A table that grew faster than its statistics looks small, and all of it would be read for each few nodes.
        tx.by_index().await?;
        let columns = MEANS.join(", ");
        let mean = |c| self.dialect().whole(&format!("avg(CAST({c} AS DOUBLE PRECISION))"));
        let means = MEANS.map(mean).join(", ");
        let merged = MEANS
            .map(|c| {
                let sum = format!("CAST(m.{c} AS DOUBLE PRECISION) * m.samples + CAST(excluded.{c} AS DOUBLE PRECISION) * excluded.samples");
                format!("{c} = {}", self.dialect().whole(&format!("({sum}) / (m.samples + excluded.samples)")))
            })
            .join(", ");
        let peak = |c| format!("{c} = CASE WHEN m.{c} > excluded.{c} THEN m.{c} ELSE excluded.{c} END");
        let peaks = ["peak_pps", "peak_bps"].map(peak).join(", ");
        let merge = format!(
            "INSERT INTO metrics_minutes AS m (node_id, at_secs, samples, {columns}, peak_pps, peak_bps)
             SELECT node_id, at_secs / 60 * 60, count(*), {means}, max(pps), max(bps)
             FROM gone WHERE {OLD} GROUP BY 1, 2
             ON CONFLICT (node_id, at_secs) DO UPDATE
             SET {merged}, samples = m.samples + excluded.samples, {peaks}"
        );
        let delete = format!("DELETE FROM metrics WHERE {OLD}");
        // What is deleted must be what was merged. A late sample in between waits in SQLite, which has one writer; in
        // PostgreSQL one statement does both, and leaves it for the next time.
        let seconds = if tx.is_postgres() {
            let both = format!("WITH gone AS ({delete} RETURNING *), merged AS ({merge}) SELECT count(*) FROM gone");
            let seconds: i64 =
                sql(sqlx::AssertSqlSafe(both)).bind(before).bind(first).bind(last).scalar(&mut tx).await?;
            u64::try_from(seconds).unwrap_or(0)
        } else {
            let merge = merge.replace("FROM gone", "FROM metrics");
            sql(sqlx::AssertSqlSafe(merge)).bind(before).bind(first).bind(last).run(&mut tx).await?;
            sql(sqlx::AssertSqlSafe(delete)).bind(before).bind(first).bind(last).run(&mut tx).await?
        };
        let minutes = sqlx::AssertSqlSafe(format!("DELETE FROM metrics_minutes WHERE {OLD}"));
        let minutes = sql(minutes).bind(minutes_before.secs()).bind(first).bind(last).run(&mut tx).await?;
        tx.commit().await?;
        Ok(seconds + minutes)
    }
}

/// Old samples of some nodes. Both tables are in the order of nodes: it takes the nodes one by one, so that each has a
/// beginning to look from, instead of looking at every sample there is.
const OLD: &str = "at_secs < $1 AND node_id IN (SELECT id FROM nodes WHERE id BETWEEN $2 AND $3)";

/// A node's words are cut to what is kept.
pub(super) const MAX_OUTPUT: usize = 4_096;

/// Refuses a report about an incident of another node.
pub(super) fn not_yours() -> Problem {
    Problem::AlreadyExists("an incident of another node with this uuid".to_owned())
}
