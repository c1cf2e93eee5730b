//! Incidents.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use async_trait::async_trait;
use ftagent_common::api::{ExecutionOutcome, IncidentReport, NodeCommand, Order, RuleExecution};
use ftagent_common::vocab::IncidentStatus;
use uuid::Uuid;

use super::agents::{MAX_OUTPUT, not_yours};
use super::audits::append;
use super::nodes::leave_order;
use super::outbox::leave_messages;
use super::rows::Rows;
use super::runbooks::start_matching;
use super::staged::stage;
use super::transaction::Pools;
use super::{Query, Row, SqlStore, Tx, again, amount, at, json, maybe_at, or_missing, rules, sql, to_json, uuid};
use crate::domain::{
    Actor, Closing, Execution, Fact, IncidentFilter, Listed, Note, OperatorChange, Page, Problem, Standing,
    StoredIncident, Timestamp, WorkspaceId,
};
use crate::store::{Incidents, Recorded, Result, StoreError, intent};

const SELECT: &str =
    "SELECT i.*, n.uuid AS node_uuid, n.name AS node_name FROM incidents i JOIN nodes n ON n.id = i.node_id";

fn incident(row: &Row) -> Result<StoredIncident> {
    let severity: Option<String> = row.try_get("severity_set")?;
    let false_positive: bool = row.try_get("false_positive")?;
    Ok(StoredIncident {
        id: row.try_get("id")?,
        node: uuid(row, "node_uuid")?,
        node_name: row.try_get("node_name")?,
        report: json(row, "report")?,
        closing: maybe_at(row, "closed_at")?.map(|at| Closing { at, false_positive }),
        severity: severity.and_then(|word| word.parse().ok()),
    })
}

fn note(row: &Row) -> Result<Note> {
    Ok(Note {
        id: row.try_get("id")?,
        at: at(row, "at")?,
        kind: row.try_get("kind")?,
        author: row.try_get("author")?,
        text: row.try_get("text")?,
    })
}

async fn by_id(conn: &mut Tx, ws: WorkspaceId, id: i64) -> Result<StoredIncident> {
    let query = sqlx::AssertSqlSafe(format!("{SELECT} WHERE i.workspace_id = $1 AND i.id = $2"));
    let row = sql(query).bind(ws.0).bind(id).optional(conn).await?;
    incident(&or_missing(row, "incident")?)
}

/// Writes what counts beside the report, so that filters and node status need not read reports.
async fn save(conn: &mut Tx, kept: &StoredIncident) -> Result<()> {
    // The timeline's executions have a table of their own.
    let report = IncidentReport { executions: Vec::new(), ..kept.report.clone() };
    sql(
        "UPDATE incidents SET status = $1, severity = $2, family = $3, report = $4, closed_at = $5, false_positive = $6,
                severity_set = $7 WHERE id = $8",
    )
    .bind(kept.status().as_str())
    .bind(kept.severity().as_str())
    .bind(kept.report.family.as_str())
    .bind(to_json(&report)?)
    .bind(kept.closing.map(|c| c.at.micros()))
    .bind(kept.closing.is_some_and(|c| c.false_positive))
    .bind(kept.severity.map(|s| s.as_str()))
    .bind(kept.id)
    .run(conn)
    .await?;
    Ok(())
}

/// Keeps and audits the executions that are new.
async fn record_executions(
    conn: &mut Tx,
    ws: WorkspaceId,
    incident: i64,
    actor: &Actor,
    node: Uuid,
    executions: Vec<RuleExecution>,
    now: Timestamp,
) -> Result<()> {
    for mut execution in executions {
        let (outcome, action, result) = match execution.outcome {
            ExecutionOutcome::Applied => ("applied", "execution.apply", "ok"),
            ExecutionOutcome::Undone => ("undone", "execution.undo", "ok"),
            ExecutionOutcome::Failed => ("failed", "execution.apply", "failed"),
            ExecutionOutcome::Refused => ("refused", "execution.apply", "refused"),
        };
        if execution.output.len() > MAX_OUTPUT {
            let end = (0..=MAX_OUTPUT).rev().find(|i| execution.output.is_char_boundary(*i)).unwrap_or(0);
            execution.output.truncate(end);
        }
        let done =
            sql("INSERT INTO executions (workspace_id, incident_id, node_uuid, uuid, rule_id, outcome, at, execution)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (incident_id, uuid, outcome) DO NOTHING")
            .bind(ws.0)
            .bind(incident)
            .bind(node.to_string())
            .bind(execution.uuid.to_string())
            .bind(execution.rule_id)
            .bind(outcome)
            .bind(Timestamp::from(execution.at).micros())
            .bind(to_json(&execution)?)
            .run(&mut *conn)
            .await?;
        if done > 0 {
            let fact = Fact::new(now, actor, action, format!("rule/{}", execution.rule_id))
                .result(result)
                .with(serde_json::json!({ "incident": incident, "execution": execution }));
            append(conn, ws, fact).await?;
        }
    }
    Ok(())
}

fn filtered(query: &mut Query, ws: WorkspaceId, filter: &IncidentFilter) {
    query.push(" WHERE i.workspace_id = ").push_bind(ws.0);
    if let Some(node) = filter.node {
        query.push(" AND n.uuid = ").push_bind(node.to_string());
    }
    if let Some(status) = filter.status {
        query.push(" AND i.status = ").push_bind(status.as_str());
    }
    if let Some(severity) = filter.severity {
        query.push(" AND i.severity = ").push_bind(severity.as_str());
    }
    if let Some(family) = filter.family {
        query.push(" AND i.family = ").push_bind(family.as_str());
    }
    if let Some(from) = filter.from {
        query.push(" AND i.started_at >= ").push_bind(from.micros());
    }
    if let Some(to) = filter.to {
        query.push(" AND i.started_at < ").push_bind(to.micros());
    }
}

/// What a node says of an incident.
#[derive(Clone)]
pub(super) struct Told {
    node: Uuid,
    report: IncidentReport,
    now: Timestamp,
}

/// Reports of one transaction: whoever else writes waits for no more.
pub(super) const MOST: usize = 16;
/// An attack on many nodes at once is told by all of them in the same seconds.
pub(super) const PACE: Duration = Duration::from_millis(5);

/// Where a node's incidents are.
struct Home {
    id: i64,
    workspace: WorkspaceId,
    name: String,
}

static HOMES: Rows = Rows::new("SELECT id, uuid, workspace_id, name FROM nodes WHERE uuid IN (VALUES", 1, ")");

async fn homes(conn: &mut Tx, nodes: &BTreeSet<Uuid>) -> Result<HashMap<Uuid, Home>> {
    let wanted: Vec<Uuid> = nodes.iter().copied().collect();
    let mut homes = HashMap::with_capacity(wanted.len());
    for (text, some) in HOMES.exactly(conn.is_postgres(), &wanted) {
        let query = some.iter().fold(sql(text), |query, node| query.bind(node.to_string()));
        for row in query.all(&mut *conn).await? {
            let workspace = WorkspaceId(row.try_get("workspace_id")?);
            let home = Home { id: row.try_get("id")?, workspace, name: row.try_get("name")? };
            homes.insert(uuid(&row, "uuid")?, home);
        }
    }
    Ok(homes)
}

/// Keeps the reports, in order, in one transaction; answers each.
pub(super) async fn record_all(pools: Pools, told: Vec<Told>) -> Result<Vec<Result<Recorded>>> {
    again(|| record_once(&pools, &told)).await
}

async fn record_once(pools: &Pools, told: &[Told]) -> Result<Vec<Result<Recorded>>> {
    let mut tx = pools.write().await?;
    let nodes: BTreeSet<Uuid> = told.iter().map(|told| told.node).collect();
    // Two processes own workspaces in one order, and so wait for each other instead of locking each other out.
    let workspaces: BTreeSet<i64> = homes(&mut tx, &nodes).await?.values().map(|home| home.workspace.0).collect();
    for ws in workspaces {
        tx.own(WorkspaceId(ws)).await?;
    }
    let homes = homes(&mut tx, &nodes).await?;
    let mut answers = Vec::with_capacity(told.len());
    for told in told {
        answers.push(match homes.get(&told.node) {
            Some(home) => record(&mut tx, home, told.clone()).await?.map_err(Into::into),
            None => Err(Problem::NotFound("node").into()),
        });
    }
    tx.commit().await?;
    Ok(answers)
}

/// Keeps one report; a problem where it is refused before anything is written.
async fn record(tx: &mut Tx, home: &Home, told: Told) -> Result<std::result::Result<Recorded, Problem>> {
    let Told { node, mut report, now } = told;
    let ws = home.workspace;
    let actor = Actor::Node { uuid: node, workspace: ws };
    let executions = std::mem::take(&mut report.executions);
    let started_at = Timestamp::from(report.started_at);
    let query = sqlx::AssertSqlSafe(format!(
        "{SELECT} WHERE i.uuid = $1 OR (i.node_id = $2 AND i.started_at = $3 AND i.target = $4)
         ORDER BY i.uuid = $1 DESC LIMIT 1"
    ));
    let known = sql(query)
        .bind(report.uuid.to_string())
        .bind(home.id)
        .bind(started_at.micros())
        .bind(report.target.to_string())
        .optional(&mut *tx)
        .await?;
    let mut recorded = if let Some(row) = known {
        let mut kept = incident(&row)?;
        if row.try_get::<i64>("workspace_id")? != ws.0 {
            // Not even that it is there is a stranger's to know by another word.
            return Ok(Err(Problem::NotFound("incident")));
        }
        if kept.node != node {
            return Ok(Err(not_yours()));
        }
        let before = Standing::of(&kept);
        let applied = kept.take(report);
        if applied {
            save(tx, &kept).await?;
            leave_messages(tx, ws, Some(before), &kept, now).await?;
            start_matching(tx, ws, Some(before), &kept, now).await?;
        }
        let active = |status| status == IncidentStatus::Active;
        let action = match (active(before.status), active(kept.status())) {
            (true, false) => Some("incident.resolve"),
            (false, true) => Some("incident.reopen"),
            _ => None,
        };
        if let Some(action) = action {
            append(tx, ws, Fact::new(now, &actor, action, format!("incident/{}", kept.id))).await?;
        }
        Recorded { incident: kept, opened: false, applied, staged: 0, ordered: false }
    } else {
        let id: i64 =
            sql("INSERT INTO incidents (workspace_id, uuid, node_id, target, started_at, status, severity, family,
                                    report, received_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING id")
            .bind(ws.0)
            .bind(report.uuid.to_string())
            .bind(home.id)
            .bind(report.target.to_string())
            .bind(started_at.micros())
            .bind(report.status.as_str())
            .bind(report.severity.as_str())
            .bind(report.family.as_str())
            .bind(to_json(&report)?)
            .bind(now.micros())
            .scalar(&mut *tx)
            .await?;
        let fact = Fact::new(now, &actor, "incident.open", format!("incident/{id}")).with(serde_json::json!({
            "uuid": report.uuid, "target": report.target, "family": report.family, "severity": report.severity,
        }));
        append(tx, ws, fact).await?;
        let node_name = home.name.clone();
        let incident = StoredIncident { id, node, node_name, report, closing: None, severity: None };
        leave_messages(tx, ws, None, &incident, now).await?;
        start_matching(tx, ws, None, &incident, now).await?;
        Recorded { incident, opened: true, applied: true, staged: 0, ordered: false }
    };
    if recorded.applied {
        let effect = stage(tx, ws, &recorded.incident, &actor, now).await?;
        (recorded.staged, recorded.ordered) = (effect.changed, effect.ordered);
    }
    record_executions(tx, ws, recorded.incident.id, &actor, node, executions, now).await?;
    Ok(Ok(recorded))
}

#[async_trait]
impl Incidents for SqlStore {
    async fn record(&self, node: Uuid, report: IncidentReport, now: Timestamp) -> Result<Recorded> {
        let told = Told { node, report, now };
        // A key is marked in the transaction of its own request.
        if intent::current().is_some() {
            let mut answers = record_all(self.pools.clone(), vec![told]).await?;
            return answers.pop().unwrap_or_else(|| Err(Problem::NotFound("node").into()));
        }
        self.incidents.call(told).await
    }

    async fn incidents(&self, ws: WorkspaceId, filter: &IncidentFilter, page: Page) -> Result<Listed<StoredIncident>> {
        let mut tx = self.read().await?;
        let mut counting = Query::growing("SELECT count(*) AS total FROM incidents i JOIN nodes n ON n.id = i.node_id");
        filtered(&mut counting, ws, filter);
        let total = amount(&counting.one(&mut tx).await?, "total")?;
        let mut listing = Query::growing(SELECT);
        filtered(&mut listing, ws, filter);
        listing.push(" ORDER BY i.started_at DESC, i.id DESC LIMIT ").push_bind(page.limit);
        listing.push(" OFFSET ").push_bind(super::count(page.offset));
        let rows = listing.all(&mut tx).await?;
        Ok(Listed { entries: rows.iter().map(incident).collect::<Result<_>>()?, total })
    }

    async fn export(&self, ws: WorkspaceId, filter: &IncidentFilter, before: i64) -> Result<Vec<StoredIncident>> {
        let mut listing = Query::growing(SELECT);
        filtered(&mut listing, ws, filter);
        listing.push(" AND i.id < ").push_bind(before);
        listing.push(" ORDER BY i.id DESC LIMIT ").push_bind(super::EXPORT_CHUNK);
        let rows = listing.all(&self.pools).await?;
        rows.iter().map(incident).collect()
    }

    async fn find(&self, ws: WorkspaceId, reference: &str) -> Result<i64> {
        let short = reference.strip_prefix("inc_").filter(|h| h.len() == 8 && h.bytes().all(|b| b.is_ascii_hexdigit()));
        let id = if let Ok(id) = reference.parse::<i64>() {
            Some(id)
        } else if let Ok(uuid) = reference.parse::<Uuid>() {
            sql("SELECT id FROM incidents WHERE workspace_id = $1 AND uuid = $2")
                .bind(ws.0)
                .bind(uuid.to_string())
                .optional_scalar(&self.pools)
                .await?
        } else if let Some(short) = short {
            sql("SELECT id FROM incidents WHERE workspace_id = $1 AND uuid LIKE $2 ORDER BY id DESC LIMIT 1")
                .bind(ws.0)
                .bind(format!("{}-%", short.to_ascii_lowercase()))
                .optional_scalar(&self.pools)
                .await?
        } else {
            return Err(Problem::parameter("id", "must be an id, a uuid or inc_ with 8 hex digits").into());
        };
        or_missing(id, "incident")
    }

    async fn incident(&self, ws: WorkspaceId, id: i64) -> Result<(StoredIncident, Vec<Note>, Vec<Execution>)> {
        let mut tx = self.read().await?;
        let kept = by_id(&mut tx, ws, id).await?;
        let notes =
            sql("SELECT * FROM incident_notes WHERE incident_id = $1 ORDER BY id").bind(id).all(&mut tx).await?;
        let executions =
            sql("SELECT * FROM executions WHERE incident_id = $1 ORDER BY at, id").bind(id).all(&mut tx).await?;
        Ok((
            kept,
            notes.iter().map(note).collect::<Result<_>>()?,
            executions.iter().map(rules::execution).collect::<Result<_>>()?,
        ))
    }

    async fn change(
        &self,
        ws: WorkspaceId,
        id: i64,
        change: OperatorChange,
        author: &str,
        fact: Fact,
    ) -> Result<(StoredIncident, Option<NodeCommand>)> {
        let mut tx = self.write_to(ws).await?;
        let changed = change_in(&mut tx, ws, id, change, author, fact).await?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn note(&self, ws: WorkspaceId, id: i64, author: &str, text: &str, fact: Fact) -> Result<Note> {
        let mut tx = self.write_to(ws).await?;
        by_id(&mut tx, ws, id).await?;
        let note = insert_note(&mut tx, id, fact.at, "note", author, text).await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(note)
    }
}

/// An operator's or a runbook's change, in the transaction of what led to it.
pub(super) async fn change_in(
    tx: &mut Tx,
    ws: WorkspaceId,
    id: i64,
    change: OperatorChange,
    author: &str,
    fact: Fact,
) -> Result<(StoredIncident, Option<NodeCommand>)> {
    let mut kept = by_id(tx, ws, id).await?;
    let before = Standing::of(&kept);
    let (status, severity) = (before.status, before.severity);
    let change = change.check(status)?;
    let mut command = None;
    if let Some(wanted) = change.status.filter(|wanted| *wanted != status) {
        let false_positive = wanted == IncidentStatus::FalsePositive;
        let at = kept.closing.map_or(fact.at, |c| c.at);
        kept.closing = Some(Closing { at, false_positive });
        insert_note(tx, id, fact.at, "status", author, &format!("{status} to {wanted}")).await?;
        if change.ends(status) {
            let node = super::node_id(tx, ws, kept.node).await?;
            let order = Order::ResolveIncident { incident: kept.report.uuid, false_positive };
            command = Some(leave_order(tx, node, &order, fact.at).await?);
        }
    }
    if let Some(wanted) = change.severity.filter(|wanted| *wanted != severity) {
        kept.severity = Some(wanted);
        insert_note(tx, id, fact.at, "severity", author, &format!("{severity} to {wanted}")).await?;
    }
    save(tx, &kept).await?;
    leave_messages(tx, ws, Some(before), &kept, fact.at).await?;
    start_matching(tx, ws, Some(before), &kept, fact.at).await?;
    let (now, system) = (fact.at, Actor::System { workspace: ws });
    append(tx, ws, fact).await?;
    stage(tx, ws, &kept, &system, now).await?;
    Ok((kept, command))
}

/// The incident, if it is there.
pub(super) async fn known(tx: &mut Tx, ws: WorkspaceId, id: i64) -> Result<Option<StoredIncident>> {
    match by_id(tx, ws, id).await {
        Ok(incident) => Ok(Some(incident)),
        Err(StoreError::Problem(Problem::NotFound(_))) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// The active incident of a node that began last.
pub(super) async fn newest_active(tx: &mut Tx, node: i64) -> Result<Option<StoredIncident>> {
    let query = sqlx::AssertSqlSafe(format!(
        "{SELECT} WHERE i.node_id = $1 AND i.status = 'active' ORDER BY i.started_at DESC, i.id DESC LIMIT 1"
    ));
    sql(query).bind(node).optional(tx).await?.as_ref().map(incident).transpose()
}

pub(super) async fn insert_note(
    conn: &mut Tx,
    incident: i64,
    at: Timestamp,
    kind: &str,
    author: &str,
    text: &str,
) -> Result<Note> {
    let row =
        sql("INSERT INTO incident_notes (incident_id, at, kind, author, text) VALUES ($1, $2, $3, $4, $5) RETURNING *")
            .bind(incident)
            .bind(at.micros())
            .bind(kind)
            .bind(author)
            .bind(text)
            .one(conn)
            .await?;
    note(&row)
}
