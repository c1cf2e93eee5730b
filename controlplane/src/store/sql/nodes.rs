//! Nodes, their series and their orders.

use async_trait::async_trait;
use ftagent_common::api::{Heartbeat, NodeCommand, Order};
use ftagent_common::vocab::NodeStatus;
use uuid::Uuid;

use super::audits::append;
use super::transaction::On;
use super::{
    Row, SqlStore, Tx, again, amount, at, maybe_at, node_id, number, or_missing, sql, to_json, unexpected,
    unless_taken, uuid, word,
};
use crate::domain::{
    Deployment, ENROLL_SECS, Fact, HEARTBEAT_GRACE_SECS, Listed, MetricsPoint, MetricsWindow, Node, NodeFilter,
    NodePatch, Page, SecretHash, Timestamp, WorkspaceId, node_status,
};
use crate::store::{NodeGlance, Nodes, Result};

/// Nodes with their active incidents, and their status by the rule of `domain::node_status` for filters.
const FROM: &str = "FROM (SELECT *, CASE WHEN last_seen IS NULL OR $2 - last_seen >= $3 THEN 'offline'
                           WHEN active > 0 THEN 'attack' WHEN ratio > 0.7 THEN 'elevated' ELSE 'online' END AS status
            FROM (SELECT n.*, s.last_seen, coalesce(s.ratio, 0.0) AS ratio, s.heartbeat,
                         n.config_version + w.config_version AS version,
                         coalesce(a.active, 0) AS active
                  FROM nodes n JOIN workspaces w ON w.id = n.workspace_id LEFT JOIN node_states s ON s.node_id = n.id
                  LEFT JOIN (SELECT node_id, count(*) AS active FROM incidents WHERE status = 'active'
                             GROUP BY node_id) AS a ON a.node_id = n.id
                  WHERE $1 IS NULL OR n.workspace_id = $1) AS counted) AS rated";

fn node(row: &Row, now: Timestamp) -> Result<Node> {
    let heartbeat: Option<String> = row.try_get("heartbeat")?;
    let heartbeat: Option<Heartbeat> =
        heartbeat.map(|text| serde_json::from_str(&text)).transpose().map_err(|e| unexpected("heartbeat", e))?;
    let last_seen = maybe_at(row, "last_seen")?;
    let active: u32 = number(row, "active")?;
    Ok(Node {
        uuid: uuid(row, "uuid")?,
        name: row.try_get("name")?,
        ip: row.try_get("ip")?,
        location: row.try_get("location")?,
        os: row.try_get("os")?,
        interface: row.try_get("interface")?,
        status: node_status(now, last_seen, active, row.try_get("ratio")?),
        created_at: at(row, "created_at")?,
        last_seen,
        agent_version: heartbeat.as_ref().map(|h| h.agent_version.clone()),
        active_incidents: active,
        config_version: amount(row, "version")?,
        applied_version: heartbeat.as_ref().map_or(0, |h| h.config_version),
        heartbeat,
    })
}

async fn one(conn: impl Into<On<'_>>, ws: WorkspaceId, wanted: Uuid, now: Timestamp) -> Result<Node> {
    let query = sqlx::AssertSqlSafe(format!("SELECT * {FROM} WHERE uuid = $4"));
    let row = sql(query)
        .bind(ws.0)
        .bind(now.micros())
        .bind(HEARTBEAT_GRACE_SECS * 1_000_000)
        .bind(wanted.to_string())
        .optional(conn)
        .await?;
    node(&or_missing(row, "node")?, now)
}

/// Leaves a command for a node; `domain` refuses none here, so callers check before.
pub(super) async fn leave_order(conn: &mut Tx, node_id: i64, order: &Order, now: Timestamp) -> Result<NodeCommand> {
    let command = NodeCommand { command_id: Uuid::new_v4(), order: order.clone() };
    sql("INSERT INTO commands (node_id, uuid, order_json, created_at) VALUES ($1, $2, $3, $4)")
        .bind(node_id)
        .bind(command.command_id.to_string())
        .bind(to_json(order)?)
        .bind(now.micros())
        .run(conn)
        .await?;
    Ok(command)
}

fn point(row: &Row) -> Result<MetricsPoint> {
    Ok(MetricsPoint {
        at: Timestamp::from_secs(row.try_get("at")?),
        pps: amount(row, "pps")?,
        bps: amount(row, "bps")?,
        dropped_pps: amount(row, "dropped_pps")?,
        tcp_pps: amount(row, "tcp_pps")?,
        udp_pps: amount(row, "udp_pps")?,
        icmp_pps: amount(row, "icmp_pps")?,
        other_pps: amount(row, "other_pps")?,
        peak_pps: amount(row, "peak_pps")?,
        peak_bps: amount(row, "peak_bps")?,
    })
}

#[async_trait]
impl Nodes for SqlStore {
    async fn deploy(&self, ws: WorkspaceId, deployment: &Deployment, key: &SecretHash, fact: Fact) -> Result<Uuid> {
        let mut tx = self.write_to(ws).await?;
        let node = Uuid::new_v4();
        let request = deployment.request();
        sql("INSERT INTO nodes (workspace_id, uuid, name, ip, location, os, interface, key_hash, created_at, enroll_until)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
        .bind(ws.0)
        .bind(node.to_string())
        .bind(&request.name)
        .bind(&request.ip)
        .bind(&request.location)
        .bind(&request.os)
        .bind(&request.interface)
        .bind(key.bytes().as_slice())
        .bind(fact.at.micros())
        .bind(fact.at.plus_secs(ENROLL_SECS).micros())
        .run(&mut tx)
        .await
        .map_err(|e| unless_taken(e, || "a node of this name".to_owned()))?;
        append(&mut tx, ws, fact.on(node)).await?;
        tx.commit().await?;
        Ok(node)
    }

    async fn nodes(&self, ws: WorkspaceId, filter: &NodeFilter, page: Page, now: Timestamp) -> Result<Listed<Node>> {
        let mut tx = self.read().await?;
        let status = filter.status.map(NodeStatus::as_str);
        let matching = "WHERE ($4 IS NULL OR status = $4)";
        let query = if status.is_some() {
            let query = sqlx::AssertSqlSafe(format!("SELECT count(*) AS total {FROM} {matching}"));
            sql(query).bind(ws.0).bind(now.micros()).bind(HEARTBEAT_GRACE_SECS * 1_000_000).bind(status)
        } else {
            sql("SELECT count(*) AS total FROM nodes WHERE workspace_id = $1").bind(ws.0)
        };
        let total = amount(&query.one(&mut tx).await?, "total")?;
        // Without a filter the page is cut first: what a node's status is made of is then read for its nodes alone.
        let page_of = "AND id IN (SELECT id FROM nodes WHERE workspace_id = $1 ORDER BY id DESC LIMIT $5 OFFSET $6)";
        let (cut, end) = if status.is_some() { ("", "LIMIT $5 OFFSET $6") } else { (page_of, "") };
        let query = sqlx::AssertSqlSafe(format!("SELECT * {FROM} {matching} {cut} ORDER BY id DESC {end}"));
        let rows = sql(query)
            .bind(ws.0)
            .bind(now.micros())
            .bind(HEARTBEAT_GRACE_SECS * 1_000_000)
            .bind(status)
            .bind(page.limit)
            .bind(super::count(page.offset))
            .all(&mut tx)
            .await?;
        Ok(Listed { entries: rows.iter().map(|row| node(row, now)).collect::<Result<_>>()?, total })
    }

    async fn node(&self, ws: WorkspaceId, node: Uuid, now: Timestamp) -> Result<Node> {
        one(&self.pools, ws, node, now).await
    }

    async fn patch_node(
        &self,
        ws: WorkspaceId,
        node: Uuid,
        patch: NodePatch,
        now: Timestamp,
        fact: Fact,
    ) -> Result<Node> {
        let mut tx = self.write_to(ws).await?;
        sql("UPDATE nodes SET name = coalesce($1, name), ip = coalesce($2, ip), location = coalesce($3, location),
                    os = coalesce($4, os), interface = coalesce($5, interface)
             WHERE workspace_id = $6 AND uuid = $7")
        .bind(&patch.name)
        .bind(&patch.ip)
        .bind(&patch.location)
        .bind(&patch.os)
        .bind(&patch.interface)
        .bind(ws.0)
        .bind(node.to_string())
        .run(&mut tx)
        .await
        .map_err(|e| unless_taken(e, || "a node of this name".to_owned()))?;
        let patched = one(&mut tx, ws, node, now).await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(patched)
    }

    async fn delete_node(&self, ws: WorkspaceId, node: Uuid, fact: Fact) -> Result<()> {
        again(|| self.remove_node(ws, node, fact.clone())).await
    }

    async fn metrics(&self, ws: WorkspaceId, node: Uuid, window: MetricsWindow) -> Result<Vec<MetricsPoint>> {
        let mut tx = self.read().await?;
        let id = node_id(&mut tx, ws, node).await?;
        let mean = |column: &str| {
            let mean = format!("sum(CAST({column} AS DOUBLE PRECISION) * n) / sum(n)");
            format!("{} AS {column}", self.dialect().whole(&mean))
        };
        let columns = ["pps", "bps", "dropped_pps", "tcp_pps", "udp_pps", "icmp_pps", "other_pps"];
        let means = columns.map(mean).join(", ");
        let columns = columns.join(", ");
        let query = sqlx::AssertSqlSafe(format!(
            "SELECT at_secs / $1 * $1 AS at, {means}, max(peak_pps) AS peak_pps, max(peak_bps) AS peak_bps
             FROM (SELECT at_secs, 1 AS n, {columns}, pps AS peak_pps, bps AS peak_bps FROM metrics
                   WHERE node_id = $2 AND at_secs >= $3 AND at_secs < $4
                   UNION ALL
                   SELECT at_secs, samples AS n, {columns}, peak_pps, peak_bps FROM metrics_minutes
                   WHERE node_id = $2 AND at_secs >= $3 AND at_secs < $4) AS points
             GROUP BY 1 ORDER BY 1"
        ));
        let rows =
            sql(query).bind(window.step).bind(id).bind(window.from.secs()).bind(window.to.secs()).all(&mut tx).await?;
        rows.iter().map(point).collect()
    }

    async fn order(&self, ws: WorkspaceId, node: Uuid, order: &Order, fact: Fact) -> Result<NodeCommand> {
        let mut tx = self.write_to(ws).await?;
        let id = node_id(&mut tx, ws, node).await?;
        if order.needs_protocol() > 1 {
            super::staged::check_agent(&mut tx, ws, node).await?;
        }
        let command = leave_order(&mut tx, id, order, fact.at).await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(command)
    }

    async fn all_nodes(&self, now: Timestamp) -> Result<Vec<NodeGlance>> {
        let query = sqlx::AssertSqlSafe(format!("SELECT workspace_id, uuid, name, status {FROM}"));
        let rows = sql(query)
            .bind(None::<i64>)
            .bind(now.micros())
            .bind(HEARTBEAT_GRACE_SECS * 1_000_000)
            .all(&self.pools)
            .await?;
        let glance = |row: &Row| {
            Ok(NodeGlance {
                workspace: WorkspaceId(row.try_get("workspace_id")?),
                uuid: uuid(row, "uuid")?,
                name: row.try_get("name")?,
                status: word(row, "status")?,
            })
        };
        rows.iter().map(glance).collect()
    }
}

impl SqlStore {
    async fn remove_node(&self, ws: WorkspaceId, node: Uuid, fact: Fact) -> Result<()> {
        let mut tx = self.write_to(ws).await?;
        let row = sql("DELETE FROM nodes WHERE workspace_id = $1 AND uuid = $2 RETURNING id, name")
            .bind(ws.0)
            .bind(node.to_string())
            .optional(&mut tx)
            .await?;
        let row = or_missing(row, "node")?;
        let (id, name): (i64, String) = (row.try_get("id")?, row.try_get("name")?);
        // After the node, whose row those who keep samples of it hold until theirs are there to be seen.
        sql("DELETE FROM metrics WHERE node_id = $1").bind(id).run(&mut tx).await?;
        append(&mut tx, ws, fact.with(serde_json::json!({ "name": name }))).await?;
        Ok(tx.commit().await?)
    }
}
