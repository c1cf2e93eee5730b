//! What nodes say and ask, in SQLite.

use async_trait::async_trait;
use ftagent_common::api::{AckStatus, CommandAck, Heartbeat, MetricsSample, NodeCommand, NodeConfig};
use sqlx::Row;
use uuid::Uuid;

use super::audits::append;
use super::workspaces::subscription;
use super::{SqliteStore, allowlist, amount, count, hash, json, or_missing, rules, thresholds, to_json, uuid};
use crate::domain::{Actor, AllowlistEntry, Fact, Problem, Rule, SecretHash, Threshold, Timestamp, WorkspaceId};
use crate::store::{Agents, Known, Result};

/// The columns that seconds and minutes share.
const MEANS: [&str; 7] = ["pps", "bps", "dropped_pps", "tcp_pps", "udp_pps", "icmp_pps", "other_pps"];

#[async_trait]
impl Agents for SqliteStore {
    async fn node_key(&self, node: Uuid) -> Result<Option<Known>> {
        let row = sqlx::query(
            "SELECT n.key_hash, n.workspace_id, w.subscription FROM nodes n JOIN workspaces w ON w.id = n.workspace_id
             WHERE n.uuid = ?",
        )
        .bind(node.to_string())
        .fetch_optional(&self.readers)
        .await?;
        row.map(|row| {
            Ok(Known {
                actor: Actor::Node { uuid: node, workspace: WorkspaceId(row.try_get("workspace_id")?) },
                hash: SecretHash::from_bytes(hash(&row, "key_hash")?),
                expires_at: None,
                subscription: subscription(&row)?,
            })
        })
        .transpose()
    }

    async fn heartbeat(&self, node: Uuid, heartbeat: &Heartbeat, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        let done = sqlx::query("UPDATE nodes SET last_seen = ?, ratio = ?, heartbeat = ? WHERE uuid = ?")
            .bind(now.micros())
            .bind(heartbeat.threshold_ratio)
            .bind(to_json(heartbeat)?)
            .bind(node.to_string())
            .execute(&mut *tx)
            .await?;
        or_missing((done.rows_affected() > 0).then_some(()), "node")?;
        Ok(tx.commit().await?)
    }

    async fn record_metrics(&self, node: Uuid, samples: &[MetricsSample]) -> Result<()> {
        let mut tx = self.write().await?;
        let id: Option<i64> = sqlx::query_scalar("SELECT id FROM nodes WHERE uuid = ?")
            .bind(node.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        let id = or_missing(id, "node")?;
        for sample in samples {
            sqlx::query("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
                .bind(id)
                .bind(Timestamp::from(sample.at).secs())
                .bind(count(sample.pps))
                .bind(count(sample.bps))
                .bind(count(sample.dropped_pps))
                .bind(count(sample.tcp_pps))
                .bind(count(sample.udp_pps))
                .bind(count(sample.icmp_pps))
                .bind(count(sample.other_pps))
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn config_version(&self, node: Uuid) -> Result<u64> {
        let row = sqlx::query("SELECT config_version FROM nodes WHERE uuid = ?")
            .bind(node.to_string())
            .fetch_optional(&self.readers)
            .await?;
        amount(&or_missing(row, "node")?, "config_version")
    }

    async fn node_config(&self, node: Uuid) -> Result<NodeConfig> {
        let mut tx = self.read().await?;
        let row = sqlx::query(
            "SELECT n.config_version, n.workspace_id, w.detection FROM nodes n
             JOIN workspaces w ON w.id = n.workspace_id WHERE n.uuid = ?",
        )
        .bind(node.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        let row = or_missing(row, "node")?;
        let ws = WorkspaceId(row.try_get("workspace_id")?);
        Ok(NodeConfig {
            version: amount(&row, "config_version")?,
            rules: rules::of_node(&mut tx, ws, node).await?.iter().map(Rule::to_wire).collect(),
            allowlist: allowlist::of_node(&mut tx, ws, node).await?.iter().map(AllowlistEntry::to_wire).collect(),
            thresholds: thresholds::of_workspace(&mut tx, ws).await?.iter().map(Threshold::to_wire).collect(),
            detection: json(&row, "detection")?,
        })
    }

    async fn pending_commands(&self, node: Uuid, after: i64) -> Result<Vec<(i64, NodeCommand)>> {
        let rows = sqlx::query(
            "SELECT c.id, c.uuid, c.order_json FROM commands c JOIN nodes n ON n.id = c.node_id
             WHERE n.uuid = ? AND c.status = 'pending' AND c.id > ? ORDER BY c.id LIMIT 1000",
        )
        .bind(node.to_string())
        .bind(after)
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                let command = NodeCommand { command_id: uuid(row, "uuid")?, order: json(row, "order_json")? };
                Ok((row.try_get("id")?, command))
            })
            .collect()
    }

    async fn acknowledge(&self, node: Uuid, ack: &CommandAck, fact: Fact) -> Result<()> {
        let mut tx = self.write().await?;
        let row = sqlx::query(
            "SELECT c.id, c.status, n.workspace_id FROM commands c JOIN nodes n ON n.id = c.node_id
             WHERE n.uuid = ? AND c.uuid = ?",
        )
        .bind(node.to_string())
        .bind(ack.command_id.to_string())
        .fetch_optional(&mut *tx)
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
        sqlx::query("UPDATE commands SET status = ?, ended_at = ?, error = ?, output = ? WHERE id = ?")
            .bind(word)
            .bind(fact.at.micros())
            .bind(&ack.error)
            .bind(&ack.output)
            .bind(row.try_get::<i64, _>("id")?)
            .execute(&mut *tx)
            .await?;
        append(&mut tx, WorkspaceId(row.try_get("workspace_id")?), fact).await?;
        Ok(tx.commit().await?)
    }

    async fn prune_metrics(&self, seconds_before: Timestamp, minutes_before: Timestamp) -> Result<u64> {
        // Whole minutes only: a minute that is split would be merged later, but needs not be.
        let before = seconds_before.secs().div_euclid(60) * 60;
        let mut tx = self.write().await?;
        let columns = MEANS.join(", ");
        let means = MEANS.map(|c| format!("CAST(avg({c}) AS INTEGER)")).join(", ");
        let merged = MEANS
            .map(|c| format!("{c} = CAST(({c} * 1.0 * samples + excluded.{c} * 1.0 * excluded.samples) / (samples + excluded.samples) AS INTEGER)"))
            .join(", ");
        let query = sqlx::AssertSqlSafe(format!(
            "INSERT INTO metrics_minutes (node_id, at_secs, samples, {columns}, peak_pps, peak_bps)
             SELECT node_id, at_secs / 60 * 60, count(*), {means}, max(pps), max(bps)
             FROM metrics WHERE at_secs < ? GROUP BY 1, 2
             ON CONFLICT (node_id, at_secs) DO UPDATE SET {merged}, samples = samples + excluded.samples,
                peak_pps = max(peak_pps, excluded.peak_pps), peak_bps = max(peak_bps, excluded.peak_bps)"
        ));
        sqlx::query(query).bind(before).execute(&mut *tx).await?;
        let seconds = sqlx::query("DELETE FROM metrics WHERE at_secs < ?").bind(before).execute(&mut *tx).await?;
        let minutes = sqlx::query("DELETE FROM metrics_minutes WHERE at_secs < ?")
            .bind(minutes_before.secs())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(seconds.rows_affected() + minutes.rows_affected())
    }

    async fn expire_commands(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = sqlx::query(
            "UPDATE commands SET status = 'expired', ended_at = created_at WHERE status = 'pending' AND created_at < ?",
        )
        .bind(before.micros())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}

/// A node's words are cut to what is kept.
pub(super) const MAX_OUTPUT: usize = 4_096;

/// Refuses a report about an incident of another node.
pub(super) fn not_yours() -> Problem {
    Problem::AlreadyExists("an incident of another node with this uuid".to_owned())
}
