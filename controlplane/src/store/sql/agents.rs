//! What nodes say and ask,.

use std::collections::BTreeMap;

use async_trait::async_trait;
use ftagent_common::api::{AckStatus, CommandAck, Heartbeat, MetricsSample, NodeCommand, NodeConfig};
use uuid::Uuid;

use super::audits::append;
use super::workspaces::subscription;
use super::{
    Alone, Query, SqlStore, again, allowlist, amount, authorities, count, hash, json, maybe_at, or_missing, own_node,
    rules, sql, thresholds, to_json, uuid,
};
use crate::domain::{
    Actor, AllowlistEntry, CertificateStanding, Fact, Fingerprint, Problem, Rule, SecretHash, Threshold, Timestamp,
    WorkspaceId,
};
use crate::store::{Agents, Known, NodeAccess, Result};

/// Samples of one statement.
const SAMPLES: usize = 100;

/// The columns that seconds and minutes share.
const MEANS: [&str; 7] = ["pps", "bps", "dropped_pps", "tcp_pps", "udp_pps", "icmp_pps", "other_pps"];

#[async_trait]
impl Agents for SqlStore {
    async fn node_key(&self, node: Uuid, shown: Option<Fingerprint>) -> Result<Option<NodeAccess>> {
        // One query: it runs with every request of every node.
        let row =
            sql("SELECT n.key_hash, n.workspace_id, n.enroll_until, w.subscription, c.not_after, c.revoked_at, a.state
             FROM nodes n JOIN workspaces w ON w.id = n.workspace_id
             LEFT JOIN certificates c ON c.fingerprint = $2 AND c.node_id = n.id
             LEFT JOIN authorities a ON a.id = c.authority_id WHERE n.uuid = $1")
            .bind(node.to_string())
            .bind(shown.map(|fingerprint| fingerprint.0.to_vec()))
            .optional(&self.pools)
            .await?;
        row.map(|row| {
            let standing = match maybe_at(&row, "not_after")? {
                None => None,
                Some(not_after) => Some(CertificateStanding {
                    not_after,
                    revoked: maybe_at(&row, "revoked_at")?.is_some(),
                    root: authorities::state(&row, "state")?,
                }),
            };
            let known = Known {
                actor: Actor::Node { uuid: node, workspace: WorkspaceId(row.try_get("workspace_id")?) },
                hash: SecretHash::from_bytes(hash(&row, "key_hash")?),
                expires_at: None,
                subscription: subscription(&row)?,
            };
            Ok(NodeAccess { known, standing, enroll_until: maybe_at(&row, "enroll_until")? })
        })
        .transpose()
    }

    async fn heartbeat(&self, node: Uuid, heartbeat: &Heartbeat, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        let done = sql("UPDATE nodes SET last_seen = $1, ratio = $2, heartbeat = $3 WHERE uuid = $4")
            .bind(now.micros())
            .bind(heartbeat.threshold_ratio)
            .bind(to_json(heartbeat)?)
            .bind(node.to_string())
            .run(&mut tx)
            .await?;
        or_missing((done > 0).then_some(()), "node")?;
        Ok(tx.commit().await?)
    }

    async fn record_metrics(&self, node: Uuid, samples: &[MetricsSample]) -> Result<()> {
        again(|| self.keep_metrics(node, samples)).await
    }

    async fn config_version(&self, node: Uuid) -> Result<u64> {
        let row = sql("SELECT config_version FROM nodes WHERE uuid = $1")
            .bind(node.to_string())
            .optional(&self.pools)
            .await?;
        amount(&or_missing(row, "node")?, "config_version")
    }

    async fn node_config(&self, node: Uuid) -> Result<NodeConfig> {
        let mut tx = self.read().await?;
        let row = sql("SELECT n.config_version, n.workspace_id, n.renew_before, w.detection FROM nodes n
             JOIN workspaces w ON w.id = n.workspace_id WHERE n.uuid = $1")
        .bind(node.to_string())
        .optional(&mut tx)
        .await?;
        let row = or_missing(row, "node")?;
        let ws = WorkspaceId(row.try_get("workspace_id")?);
        let rules = rules::of_node(&mut tx, ws, node).await?;
        let (rules, tool_rules) = rules.iter().map(Rule::to_wire).partition(|rule| rule.action.is_native());
        Ok(NodeConfig {
            version: amount(&row, "config_version")?,
            rules,
            tool_rules,
            allowlist: allowlist::of_node(&mut tx, ws, node).await?.iter().map(AllowlistEntry::to_wire).collect(),
            thresholds: thresholds::of_workspace(&mut tx, ws).await?.iter().map(Threshold::to_wire).collect(),
            detection: json(&row, "detection")?,
            trust: authorities::trust(&mut tx, ws, maybe_at(&row, "renew_before")?).await?,
        })
    }

    async fn pending_commands(&self, node: Uuid, after: i64) -> Result<Vec<(i64, NodeCommand)>> {
        let rows = sql("SELECT c.id, c.uuid, c.order_json FROM commands c JOIN nodes n ON n.id = c.node_id
             WHERE n.uuid = $1 AND c.status = 'pending' AND c.id > $2 ORDER BY c.id LIMIT 1000")
        .bind(node.to_string())
        .bind(after)
        .all(&self.pools)
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
        again(|| self.thin_out(seconds_before, minutes_before)).await
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
    async fn keep_metrics(&self, node: Uuid, samples: &[MetricsSample]) -> Result<()> {
        let mut tx = self.write().await?;
        let id: Option<i64> =
            sql("SELECT id FROM nodes WHERE uuid = $1").bind(node.to_string()).optional_scalar(&mut tx).await?;
        let id = or_missing(id, "node")?;
        // In one order, so that two batches of a node wait for each other; of the same second the last one counts.
        let by_second: BTreeMap<_, _> = samples.iter().map(|s| (Timestamp::from(s.at).secs(), s)).collect();
        let by_second: Vec<_> = by_second.into_iter().collect();
        for some in by_second.chunks(SAMPLES) {
            let mut insert = Query::growing("INSERT INTO metrics (node_id, at_secs, ");
            insert.push(MEANS.join(", ")).push(") VALUES ");
            for (n, (at, sample)) in some.iter().enumerate() {
                insert.push(if n == 0 { "(" } else { ", (" }).push_bind(id).push(", ").push_bind(*at);
                let MetricsSample { pps, bps, dropped_pps, tcp_pps, udp_pps, icmp_pps, other_pps, .. } = **sample;
                for value in [pps, bps, dropped_pps, tcp_pps, udp_pps, icmp_pps, other_pps] {
                    insert.push(", ").push_bind(count(value));
                }
                insert.push(")");
            }
            let replaced = MEANS.map(|c| format!("{c} = excluded.{c}")).join(", ");
            insert.push(" ON CONFLICT (node_id, at_secs) DO UPDATE SET ").push(replaced);
            insert.run(&mut tx).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn thin_out(&self, seconds_before: Timestamp, minutes_before: Timestamp) -> Result<u64> {
        // Whole minutes only: a minute that is split would be merged later, but needs not be.
        let before = seconds_before.secs().div_euclid(60) * 60;
        let mut tx = self.write().await?;
        tx.take_time().await?;
        tx.alone(Alone::Pruning).await?;
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
             FROM gone WHERE at_secs < $1 GROUP BY 1, 2
             ON CONFLICT (node_id, at_secs) DO UPDATE
             SET {merged}, samples = m.samples + excluded.samples, {peaks}"
        );
        let delete = "DELETE FROM metrics WHERE at_secs < $1";
        // What is deleted must be what was merged. A late sample in between waits in SQLite, which has one writer; in
        // PostgreSQL one statement does both, and leaves it for the next time.
        let seconds = if tx.is_postgres() {
            let both = format!("WITH gone AS ({delete} RETURNING *), merged AS ({merge}) SELECT count(*) FROM gone");
            let seconds: i64 = sql(sqlx::AssertSqlSafe(both)).bind(before).scalar(&mut tx).await?;
            u64::try_from(seconds).unwrap_or(0)
        } else {
            let merge = merge.replace("FROM gone", "FROM metrics");
            sql(sqlx::AssertSqlSafe(merge)).bind(before).run(&mut tx).await?;
            sql(delete).bind(before).run(&mut tx).await?
        };
        let minutes =
            sql("DELETE FROM metrics_minutes WHERE at_secs < $1").bind(minutes_before.secs()).run(&mut tx).await?;
        tx.commit().await?;
        Ok(seconds + minutes)
    }
}

/// A node's words are cut to what is kept.
pub(super) const MAX_OUTPUT: usize = 4_096;

/// Refuses a report about an incident of another node.
pub(super) fn not_yours() -> Problem {
    Problem::AlreadyExists("an incident of another node with this uuid".to_owned())
}
