//! Runbooks, and how executions of them are made.

use async_trait::async_trait;
use uuid::Uuid;

use super::audits::append;
use super::runs::{execution, insert_note_of, probe_live};
use super::transaction::On;
use super::windows::held;
use super::{
    Row, SqlStore, Tx, amount, at, count, incidents, json, leave_room, maybe_at, node_id, or_missing, sql, to_json,
    unless_taken,
};
use crate::domain::{
    Actor, Attack, Deed, Fact, Listed, MAX_LIVE_RUNS, MAX_RUNBOOKS, MAX_RUNS_AN_HOUR, NewRunbook, Page, Problem, Run,
    RunTrigger, Runbook, RunbookExecution, Standing, Step, StoredIncident, Timestamp, WorkspaceId,
};
use crate::store::{CarriedOut, ClaimedExecution, Result, RunbookEdit, Runbooks, StoreError};

const SELECT: &str = "SELECT r.*,
        (SELECT count(*) FROM runbook_executions e WHERE e.runbook_id = r.id) AS executions,
        (SELECT max(e.created_at) FROM runbook_executions e WHERE e.runbook_id = r.id) AS executed_at
     FROM runbooks r WHERE r.workspace_id = $1";

/// The active ones, without a look at their history.
const ACTIVE: &str = "SELECT r.*, CAST(0 AS BIGINT) AS executions, CAST(NULL AS BIGINT) AS executed_at
     FROM runbooks r WHERE r.workspace_id = $1 AND r.active ORDER BY r.id";

fn runbook(row: &Row) -> Result<Runbook> {
    let steps: Vec<Step> = json(row, "steps")?;
    Ok(Runbook {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        trigger_conditions: json(row, "conditions")?,
        steps_count: u32::try_from(steps.len()).unwrap_or(u32::MAX),
        steps,
        active: row.try_get("active")?,
        execution_count: amount(row, "executions")?,
        last_executed_at: maybe_at(row, "executed_at")?,
        created_at: at(row, "created_at")?,
        updated_at: at(row, "updated_at")?,
    })
}

async fn one(on: impl Into<On<'_>>, ws: WorkspaceId, id: i64) -> Result<Runbook> {
    let query = sql(sqlx::AssertSqlSafe(format!("{SELECT} AND r.id = $2"))).bind(ws.0).bind(id);
    runbook(&or_missing(query.optional(on).await?, "runbook")?)
}

/// What an execution is about.
struct About<'a> {
    by: RunTrigger,
    incident: Option<&'a StoredIncident>,
    node: Option<Uuid>,
}

/// Makes an execution that goes on from `run`.
async fn insert(
    tx: &mut Tx,
    ws: WorkspaceId,
    runbook: &Runbook,
    about: About<'_>,
    run: &Run,
    now: Timestamp,
) -> Result<RunbookExecution> {
    let row = sql(
        "INSERT INTO runbook_executions (uuid, workspace_id, runbook_id, runbook_name, started_by, test, incident_id, node,
                                         conditions, steps, status, error, next_at, created_at, ended_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING *",
    )
    .bind(Uuid::new_v4().to_string())
    .bind(ws.0)
    .bind(runbook.id)
    .bind(&runbook.name)
    .bind(about.by.as_str())
    .bind(about.incident.is_none())
    .bind(about.incident.map(|incident| incident.id))
    .bind(about.node.map(|node| node.to_string()))
    .bind(to_json(&runbook.trigger_conditions)?)
    .bind(to_json(&run.steps)?)
    .bind(run.status.as_str())
    .bind(&run.error)
    .bind(run.next_at.map(Timestamp::micros))
    .bind(now.micros())
    .bind(run.ended_at.map(Timestamp::micros))
    .one(tx)
    .await?;
    execution(&row)
}

/// Starts the runbooks whose conditions an active incident meets, each once for an attack: again only when the attack
/// comes back after its end.
pub(super) async fn start_matching(
    tx: &mut Tx,
    ws: WorkspaceId,
    before: Option<Standing>,
    incident: &StoredIncident,
    now: Timestamp,
) -> Result<()> {
    use ftagent_common::vocab::IncidentStatus::Active;
    if incident.status() != Active {
        return Ok(());
    }
    let is_back = before.is_some_and(|before| before.status != Active);
    let attack = Attack::of(incident);
    for row in sql(ACTIVE).bind(ws.0).all(&mut *tx).await? {
        let runbook = runbook(&row)?;
        if !runbook.trigger_conditions.hold(&attack) {
            continue;
        }
        let known = sql("SELECT id FROM runbook_executions WHERE runbook_id = $1 AND incident_id = $2
             AND (status IN ('queued', 'running') OR NOT $3) LIMIT 1");
        if known.bind(runbook.id).bind(incident.id).bind(is_back).optional(&mut *tx).await?.is_some() {
            continue;
        }
        let lately: i64 = sql("SELECT count(*) FROM runbook_executions
             WHERE runbook_id = $1 AND started_by = 'incident' AND created_at > $2")
        .bind(runbook.id)
        .bind(now.plus_secs(-3_600).micros())
        .scalar(&mut *tx)
        .await?;
        let mut run = Run::queued(&runbook.steps, held(tx, ws, incident.node, now).await?.unwrap_or(now));
        if lately >= MAX_RUNS_AN_HOUR {
            run = run.cancelled("incidents started the runbook too often within an hour", now);
        } else if probe_live(tx, ws).await? >= MAX_LIVE_RUNS {
            run = run.cancelled("too many executions of the workspace are under way", now);
        }
        let about = About { by: RunTrigger::Incident, incident: Some(incident), node: Some(incident.node) };
        let made = insert(tx, ws, &runbook, about, &run, now).await?;
        let result = if made.run.status.is_live() { "ok" } else { "refused" };
        let fact = Fact::new(now, &Actor::System { workspace: ws }, "runbook.start", format!("runbook/{}", runbook.id));
        let detail = serde_json::json!({ "execution": made.id, "incident": incident.id, "error": made.run.error });
        append(tx, ws, fact.result(result).with(detail)).await?;
        if made.run.status.is_live() {
            insert_note_of(tx, incident.id, &made, "started", now).await?;
        }
    }
    Ok(())
}

#[async_trait]
impl Runbooks for SqlStore {
    async fn runbooks(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Runbook>> {
        let mut tx = self.read().await?;
        let total = sql("SELECT count(*) AS total FROM runbooks WHERE workspace_id = $1").bind(ws.0);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let query = sqlx::AssertSqlSafe(format!("{SELECT} ORDER BY r.id DESC LIMIT $2 OFFSET $3"));
        let rows = sql(query).bind(ws.0).bind(page.limit).bind(count(page.offset)).all(&mut tx).await?;
        Ok(Listed { entries: rows.iter().map(runbook).collect::<Result<_>>()?, total })
    }

    async fn runbook(&self, ws: WorkspaceId, id: i64) -> Result<Runbook> {
        one(&self.pools, ws, id).await
    }

    async fn create_runbook(&self, ws: WorkspaceId, new: NewRunbook, fact: Fact) -> Result<Runbook> {
        let mut tx = self.write_to(ws).await?;
        leave_room(&mut tx, ws, "runbooks", MAX_RUNBOOKS, "name").await?;
        check_nodes(&mut tx, ws, &new).await?;
        let id: i64 =
            sql("INSERT INTO runbooks (workspace_id, name, description, conditions, steps, active, created_at,
                                                 updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7) RETURNING id")
            .bind(ws.0)
            .bind(&new.name)
            .bind(&new.description)
            .bind(to_json(&new.trigger_conditions)?)
            .bind(to_json(&new.steps)?)
            .bind(new.active)
            .bind(fact.at.micros())
            .scalar(&mut tx)
            .await
            .map_err(|e| unless_taken(e, || "a runbook of this name".to_owned()))?;
        let made = one(&mut tx, ws, id).await?;
        append(&mut tx, ws, fact.on(id)).await?;
        tx.commit().await?;
        Ok(made)
    }

    async fn edit_runbook(&self, ws: WorkspaceId, id: i64, edit: RunbookEdit<'_>, fact: Fact) -> Result<Runbook> {
        let mut tx = self.write_to(ws).await?;
        let before = one(&mut tx, ws, id).await?;
        let new = edit(&before)?;
        if new.trigger_conditions != before.trigger_conditions {
            check_nodes(&mut tx, ws, &new).await?;
        }
        sql(
            "UPDATE runbooks SET name = $1, description = $2, conditions = $3, steps = $4, active = $5, updated_at = $6
             WHERE workspace_id = $7 AND id = $8",
        )
        .bind(&new.name)
        .bind(&new.description)
        .bind(to_json(&new.trigger_conditions)?)
        .bind(to_json(&new.steps)?)
        .bind(new.active)
        .bind(fact.at.micros())
        .bind(ws.0)
        .bind(id)
        .run(&mut tx)
        .await
        .map_err(|e| unless_taken(e, || "a runbook of this name".to_owned()))?;
        let saved = one(&mut tx, ws, id).await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(saved)
    }

    async fn delete_runbook(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<()> {
        let mut tx = self.write_to(ws).await?;
        let before = one(&mut tx, ws, id).await?;
        sql("DELETE FROM runbooks WHERE workspace_id = $1 AND id = $2").bind(ws.0).bind(id).run(&mut tx).await?;
        append(&mut tx, ws, fact.with(serde_json::json!({ "name": before.name }))).await?;
        Ok(tx.commit().await?)
    }

    async fn runbook_executions(&self, ws: WorkspaceId, id: i64, page: Page) -> Result<Listed<RunbookExecution>> {
        let mut tx = self.read().await?;
        one(&mut tx, ws, id).await?;
        let total = sql("SELECT count(*) AS total FROM runbook_executions WHERE workspace_id = $1 AND runbook_id = $2");
        let total = amount(&total.bind(ws.0).bind(id).one(&mut tx).await?, "total")?;
        let rows = sql("SELECT * FROM runbook_executions WHERE workspace_id = $1 AND runbook_id = $2
             ORDER BY id DESC LIMIT $3 OFFSET $4")
        .bind(ws.0)
        .bind(id)
        .bind(page.limit)
        .bind(count(page.offset))
        .all(&mut tx)
        .await?;
        Ok(Listed { entries: rows.iter().map(execution).collect::<Result<_>>()?, total })
    }

    async fn run_runbook(&self, ws: WorkspaceId, id: i64, node: Option<Uuid>, fact: Fact) -> Result<RunbookExecution> {
        let mut tx = self.write_to(ws).await?;
        let runbook = one(&mut tx, ws, id).await?;
        let mut incident = None;
        if let Some(node) = node {
            let number = node_id(&mut tx, ws, node).await.map_err(|e| no_such_node(e, "node"))?;
            incident = incidents::newest_active(&mut tx, number).await?;
        }
        if probe_live(&mut tx, ws).await? >= MAX_LIVE_RUNS {
            return Err(Problem::TooMany { what: "executions of runbooks under way", wait_secs: 30 }.into());
        }
        let run = Run::queued(&runbook.steps, fact.at);
        let about = About { by: RunTrigger::Manual, incident: incident.as_ref(), node };
        let made = insert(&mut tx, ws, &runbook, about, &run, fact.at).await?;
        let detail = serde_json::json!({ "execution": made.id, "node": node, "incident": made.incident_id });
        if let Some(incident) = &incident {
            insert_note_of(&mut tx, incident.id, &made, "started by hand", fact.at).await?;
        }
        append(&mut tx, ws, fact.with(detail)).await?;
        tx.commit().await?;
        Ok(made)
    }

    async fn claim_execution(&self, now: Timestamp) -> Result<Option<ClaimedExecution>> {
        self.claim_run(now).await
    }

    async fn carry_out(&self, claimed: &ClaimedExecution, deed: &Deed, now: Timestamp) -> Result<Option<CarriedOut>> {
        self.carry_out_step(claimed, deed, now).await
    }

    async fn confirm(&self, claimed: &ClaimedExecution, now: Timestamp) -> Result<Option<RunbookExecution>> {
        self.confirm_run(claimed, now).await
    }

    async fn cancel(&self, claimed: &ClaimedExecution, why: &str, now: Timestamp) -> Result<Option<RunbookExecution>> {
        self.cancel_run(claimed, why, now).await
    }

    async fn release_execution(&self, claimed: &ClaimedExecution) -> Result<()> {
        self.release_run(claimed).await
    }

    async fn prune_executions(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let pruned =
            sql("DELETE FROM runbook_executions WHERE ended_at < $1").bind(before.micros()).run(&mut tx).await?;
        tx.commit().await?;
        Ok(pruned)
    }
}

async fn check_nodes(tx: &mut Tx, ws: WorkspaceId, new: &NewRunbook) -> Result<()> {
    for node in &new.trigger_conditions.nodes {
        node_id(tx, ws, *node).await.map_err(|e| no_such_node(e, "trigger_conditions.nodes"))?;
    }
    Ok(())
}

fn no_such_node(fault: StoreError, field: &str) -> StoreError {
    match fault {
        StoreError::Problem(Problem::NotFound(_)) => Problem::field(field, "there is no such node").into(),
        other => other,
    }
}
