//! Staged rules.

use std::collections::BTreeSet;

use async_trait::async_trait;
use ftagent_common::api::{Action, Heartbeat};
use ftagent_common::vocab::{IncidentStatus, Severity};
use ipnet::IpNet;
use serde_json::json;
use uuid::Uuid;

use super::audits::append;
use super::nodes::leave_order;
use super::transaction::On;
use super::windows::held;
use super::{
    Query, Row, SqlStore, Tx, allowlist, amount, at, json as from_json, maybe_at, node_id, number, or_missing, sql,
    to_json, unexpected, uuid, word,
};
use crate::domain::{
    Actor, Decision, Fact, Listed, MAX_STAGED, Page, Problem, Settings, StagedRule, StagedStatus, Staging,
    StoredIncident, Timestamp, WorkspaceId, action_to_stage, preview_staged,
};
use crate::store::{Result, Staged, StoreError};

/// A rule with its incident, its node and what its order came to.
const FROM: &str = "FROM (SELECT s.*, i.uuid AS incident, i.target, i.status AS incident_status, n.uuid AS node,
        c.error AS node_error,
        CASE WHEN s.status = 'approved' AND c.status = 'applied' THEN 'applied'
             WHEN s.status = 'approved' AND c.status IN ('failed', 'expired') THEN 'failed'
             ELSE s.status END AS standing,
        CASE WHEN c.status = 'expired' THEN 'the node did not answer within a day' ELSE '' END AS silence
     FROM staged_rules s JOIN incidents i ON i.id = s.incident_id JOIN nodes n ON n.id = i.node_id
     LEFT JOIN commands c ON c.uuid = s.command WHERE s.workspace_id = $1) AS staged";

fn staged(row: &Row) -> Result<StagedRule> {
    let standing: String = row.try_get("standing")?;
    let status = StagedStatus::ALL.into_iter().find(|s| s.as_str() == standing);
    let action: Action = from_json(row, "action")?;
    let target: IpNet = word(row, "target")?;
    let command: Option<String> = row.try_get("command")?;
    let (error, silence): (Option<String>, String) = (row.try_get("node_error")?, row.try_get("silence")?);
    Ok(StagedRule {
        id: row.try_get("id")?,
        integration: row.try_get("destination_id")?,
        incident: uuid(row, "incident")?,
        node: uuid(row, "node")?,
        preview: preview_staged(&action, target),
        action,
        status: status.ok_or_else(|| unexpected("status", std::io::Error::other(standing)))?,
        undo_at_resolve: row.try_get("undo_at_resolve")?,
        ttl_secs: number(row, "ttl_secs")?,
        created_at: at(row, "created_at")?,
        expires_at: at(row, "expires_at")?,
        decided_at: maybe_at(row, "decided_at")?,
        decided_by: row.try_get("decided_by")?,
        reason: row.try_get("reason")?,
        command_id: command.map(|text| text.parse().map_err(|e| unexpected("command", e))).transpose()?,
        error: if silence.is_empty() { error.unwrap_or_default() } else { silence },
    })
}

async fn one(on: impl Into<On<'_>>, ws: WorkspaceId, id: i64) -> Result<StagedRule> {
    let query = sqlx::AssertSqlSafe(format!("SELECT * {FROM} WHERE id = $2"));
    staged(&or_missing(sql(query).bind(ws.0).bind(id).optional(on).await?, "staged rule")?)
}

/// What an incident's change staged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// Rules that are new, or ended with the incident.
    pub(super) changed: usize,
    /// Whether the node has an order.
    pub(super) ordered: bool,
}

/// Stages what the iptables integrations propose about an incident; ends what waits when the incident is over.
pub(super) async fn stage(
    tx: &mut Tx,
    ws: WorkspaceId,
    incident: &StoredIncident,
    actor: &Actor,
    now: Timestamp,
) -> Result<Effect> {
    let mut effect = Effect::default();
    if incident.status() != IncidentStatus::Active {
        let rows = sql("UPDATE staged_rules SET status = 'expired', decided_at = $1, reason = 'the incident ended'
             WHERE incident_id = $2 AND status = 'pending' RETURNING id")
        .bind(now.micros())
        .bind(incident.id)
        .all(&mut *tx)
        .await?;
        effect.changed = rows.len();
        return audit_ends(tx, ws, actor, &rows, "the incident ended", now).await.map(|()| effect);
    }
    let rows = sql("SELECT id, min_severity, settings FROM destinations
         WHERE workspace_id = $1 AND duty = 'integration' AND kind = 'iptables' AND enabled ORDER BY id")
    .bind(ws.0)
    .all(&mut *tx)
    .await?;
    for row in &rows {
        let (integration, least): (i64, Severity) = (row.try_get("id")?, word(row, "min_severity")?);
        if incident.severity() >= least {
            let settings: Settings = from_json(row, "settings")?;
            let made = stage_one(tx, ws, (integration, Staging::of(&settings)), incident, actor, now).await?;
            effect.changed += made.changed;
            effect.ordered |= made.ordered;
        }
    }
    Ok(effect)
}

async fn stage_one(
    tx: &mut Tx,
    ws: WorkspaceId,
    (integration, staging): (i64, Staging),
    incident: &StoredIncident,
    actor: &Actor,
    now: Timestamp,
) -> Result<Effect> {
    let rows =
        sql("SELECT action, status, expires_at FROM staged_rules WHERE incident_id = $1 AND destination_id = $2")
            .bind(incident.id)
            .bind(integration)
            .all(&mut *tx)
            .await?;
    let mut before = BTreeSet::new();
    for row in &rows {
        let (action, status): (Action, String) = (from_json(row, "action")?, row.try_get("status")?);
        if status == "pending" && at(row, "expires_at")? > now {
            // One question at a time: what is new meanwhile is asked after the answer.
            return Ok(Effect::default());
        }
        before.extend(action.sources().unwrap_or_default().iter().copied());
    }
    if rows.len() >= MAX_STAGED {
        return Ok(Effect::default());
    }
    let allowed = allowlist::of_node(tx, ws, incident.node).await?;
    let Some(action) = action_to_stage(incident, &before, &allowed) else { return Ok(Effect::default()) };
    let expires_at = now.plus_secs(staging.approve_secs);
    let id: i64 = sql("INSERT INTO staged_rules (workspace_id, destination_id, incident_id, action, status,
                                       undo_at_resolve, ttl_secs, created_at, expires_at)
         VALUES ($1, $2, $3, $4, 'pending', $5, $6, $7, $8) RETURNING id")
    .bind(ws.0)
    .bind(integration)
    .bind(incident.id)
    .bind(to_json(&action)?)
    .bind(staging.undo_at_resolve)
    .bind(staging.ttl_secs)
    .bind(now.micros())
    .bind(expires_at.micros())
    .scalar(&mut *tx)
    .await?;
    let fact = Fact::new(now, actor, "staged.create", format!("staged/{id}"));
    let detail = json!({ "integration": integration, "incident": incident.id, "action": action });
    append(tx, ws, fact.with(detail)).await?;
    // While a maintenance window is open, nothing automatic acts: an operator may.
    let ordered = staging.auto_apply && held(tx, ws, incident.node, now).await?.is_none();
    if ordered {
        let rule = one(&mut *tx, ws, id).await?;
        let fact = Fact::new(now, actor, "staged.approve", format!("staged/{id}")).with(json!({ "by": "auto_apply" }));
        approve(tx, ws, &rule, "auto_apply", fact).await?;
    }
    Ok(Effect { changed: 1, ordered })
}

/// Leaves the node the order.
async fn approve(tx: &mut Tx, ws: WorkspaceId, rule: &StagedRule, by: &str, fact: Fact) -> Result<()> {
    let node = node_id(tx, ws, rule.node).await?;
    let command = leave_order(tx, node, &rule.order(), fact.at).await?;
    sql("UPDATE staged_rules SET status = 'approved', decided_at = $1, decided_by = $2, command = $3 WHERE id = $4")
        .bind(fact.at.micros())
        .bind(by)
        .bind(command.command_id.to_string())
        .bind(rule.id)
        .run(&mut *tx)
        .await?;
    append(tx, ws, fact).await
}

async fn audit_ends(
    tx: &mut Tx,
    ws: WorkspaceId,
    actor: &Actor,
    rows: &[Row],
    reason: &str,
    now: Timestamp,
) -> Result<()> {
    for row in rows {
        let id: i64 = row.try_get("id")?;
        let fact = Fact::new(now, actor, "staged.expire", format!("staged/{id}")).with(json!({ "reason": reason }));
        append(tx, ws, fact).await?;
    }
    Ok(())
}

/// Refuses an approval that would be without effect, or wrong by now.
async fn check_approval(tx: &mut Tx, ws: WorkspaceId, rule: &StagedRule) -> Result<()> {
    check_agent(tx, ws, rule.node).await?;
    let allowed = allowlist::of_node(tx, ws, rule.node).await?;
    let sources = rule.action.sources().unwrap_or_default();
    match sources.iter().find_map(|s| Some((s, allowed.iter().find(|e| e.overlaps(s))?))) {
        Some((source, entry)) => Err(Problem::field(
            "id",
            format!("{source} is allowlisted by entry {} ({}) since: reject the rule", entry.id, entry.ip_address),
        )
        .into()),
        None => Ok(()),
    }
}

/// Refuses a node whose agent does not understand orders about other tools, as far as is known.
pub(super) async fn check_agent(tx: &mut Tx, ws: WorkspaceId, node: Uuid) -> Result<()> {
    let row = sql("SELECT s.heartbeat FROM nodes n LEFT JOIN node_states s ON s.node_id = n.id
         WHERE n.workspace_id = $1 AND n.uuid = $2");
    let row = or_missing(row.bind(ws.0).bind(node.to_string()).optional(tx).await?, "node")?;
    let Some(text) = row.try_get::<Option<String>>("heartbeat")? else { return Ok(()) };
    let heartbeat: Heartbeat = serde_json::from_str(&text).map_err(|e| unexpected("heartbeat", e))?;
    if heartbeat.protocol_version < 2 {
        let version = heartbeat.protocol_version;
        let message = format!("its agent speaks protocol {version} and does not understand such orders: update it");
        return Err(Problem::field("node", message).into());
    }
    Ok(())
}

#[async_trait]
impl Staged for SqlStore {
    async fn staged_rules(
        &self,
        ws: WorkspaceId,
        status: Option<StagedStatus>,
        incident: Option<Uuid>,
        page: Page,
    ) -> Result<Listed<StagedRule>> {
        let mut tx = self.read().await?;
        let matching = "WHERE ($2 IS NULL OR standing = $2) AND ($3 IS NULL OR incident = $3)";
        let bound = |query: Query| {
            query.bind(ws.0).bind(status.map(StagedStatus::as_str)).bind(incident.map(|uuid| uuid.to_string()))
        };
        let query = sqlx::AssertSqlSafe(format!("SELECT count(*) AS total {FROM} {matching}"));
        let total = amount(&bound(sql(query)).one(&mut tx).await?, "total")?;
        let query = sqlx::AssertSqlSafe(format!("SELECT * {FROM} {matching} ORDER BY id DESC LIMIT $4 OFFSET $5"));
        let rows = bound(sql(query)).bind(page.limit).bind(super::count(page.offset)).all(&mut tx).await?;
        Ok(Listed { entries: rows.iter().map(staged).collect::<Result<_>>()?, total })
    }

    async fn staged_rule(&self, ws: WorkspaceId, id: i64) -> Result<StagedRule> {
        one(&self.pools, ws, id).await
    }

    async fn decide_staged(
        &self,
        ws: WorkspaceId,
        id: i64,
        decision: Decision,
        by: &str,
        fact: Fact,
    ) -> Result<StagedRule> {
        let mut tx = self.write_to(ws).await?;
        let rule = one(&mut tx, ws, id).await?;
        let taken =
            |how: String| StoreError::from(Problem::AlreadyExists(format!("a decision on staged rule {id} ({how})")));
        if rule.status != StagedStatus::Pending {
            let by = if rule.decided_by.is_empty() { String::new() } else { format!(" by {}", rule.decided_by) };
            return Err(taken(format!("{}{by}", rule.status.as_str())));
        }
        if rule.expires_at <= fact.at {
            return Err(taken(format!("expired at {}", rule.expires_at)));
        }
        match decision {
            Decision::Approve => {
                check_approval(&mut tx, ws, &rule).await?;
                approve(&mut tx, ws, &rule, by, fact).await?;
            }
            Decision::Reject => {
                sql("UPDATE staged_rules SET status = 'rejected', decided_at = $1, decided_by = $2 WHERE id = $3")
                    .bind(fact.at.micros())
                    .bind(by)
                    .bind(id)
                    .run(&mut tx)
                    .await?;
                append(&mut tx, ws, fact).await?;
            }
        }
        let decided = one(&mut tx, ws, id).await?;
        tx.commit().await?;
        Ok(decided)
    }

    async fn expire_staged(&self, now: Timestamp) -> Result<u64> {
        let due = sql("SELECT DISTINCT workspace_id FROM staged_rules WHERE status = 'pending' AND expires_at <= $1");
        let due = due.bind(now.micros()).all(&self.pools).await?;
        let mut ended = 0;
        for row in &due {
            let ws = WorkspaceId(row.try_get("workspace_id")?);
            let mut tx = self.write_to(ws).await?;
            let rows = sql("UPDATE staged_rules SET status = 'expired', decided_at = expires_at,
                        reason = 'nobody decided in time'
                 WHERE workspace_id = $1 AND status = 'pending' AND expires_at <= $2 RETURNING id")
            .bind(ws.0)
            .bind(now.micros())
            .all(&mut tx)
            .await?;
            audit_ends(&mut tx, ws, &Actor::System { workspace: ws }, &rows, "nobody decided in time", now).await?;
            tx.commit().await?;
            ended += rows.len() as u64;
        }
        Ok(ended)
    }
}
