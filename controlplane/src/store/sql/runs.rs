//! Executions of runbooks: claimed by one process, carried on step by step.
//!
//! What a step does in the database and what came of it are written in one transaction, and only if the claim still
//! stands: so it is done once, whoever dies when. What leaves the server (a call of a URL) may be repeated after that,
//! under the same key.

use std::collections::HashMap;

use super::audits::append;
use super::incidents::{change_in, insert_note, known};
use super::mitigations::create_in;
use super::nodes::leave_order;
use super::outbox::leave_notice;
use super::rules::switch;
use super::{Query, Row, SqlStore, Tx, at, json, maybe_at, node_id, number, scrubbings, sql, to_json, uuid, word};
use crate::domain::{
    Actor, Attack, Confirmation, Deed, Fact, HandedOver, HandedOverKind, MitigationRule, Problem, Provider,
    RUN_LEASE_SECS, Rule, Run, RunbookExecution, StepOutcome, StepStatus, StoredIncident, Timestamp, WorkspaceId,
    runbook_body,
};
use crate::store::{CarriedOut, Changed, ClaimedExecution, Result, StoreError};

pub(super) fn execution(row: &Row) -> Result<RunbookExecution> {
    let node: Option<String> = row.try_get("node")?;
    Ok(RunbookExecution {
        id: row.try_get("id")?,
        uuid: uuid(row, "uuid")?,
        runbook_id: row.try_get("runbook_id")?,
        runbook_name: row.try_get("runbook_name")?,
        trigger: word(row, "started_by")?,
        test: row.try_get("test")?,
        incident_id: row.try_get("incident_id")?,
        node: node.and_then(|text| text.parse().ok()),
        created_at: at(row, "created_at")?,
        run: Run {
            status: word(row, "status")?,
            error: row.try_get("error")?,
            steps: json(row, "steps")?,
            position: number(row, "position")?,
            tries: number(row, "tries")?,
            next_at: maybe_at(row, "next_at")?,
            started_at: maybe_at(row, "started_at")?,
            ended_at: maybe_at(row, "ended_at")?,
        },
    })
}

/// How many executions of the workspace are under way.
pub(super) async fn probe_live(tx: &mut Tx, ws: WorkspaceId) -> Result<i64> {
    let query = "SELECT count(*) FROM runbook_executions WHERE workspace_id = $1 AND status IN ('queued', 'running')";
    Ok(sql(query).bind(ws.0).scalar(tx).await?)
}

/// Tells on an incident's time line how far an execution is.
pub(super) async fn insert_note_of(
    tx: &mut Tx,
    incident: i64,
    about: &RunbookExecution,
    what: &str,
    now: Timestamp,
) -> Result<()> {
    let text = format!("runbook {} {what} (execution {})", about.runbook_name, about.id);
    insert_note(tx, incident, now, "runbook", "system", &text).await.map(drop)
}

/// The execution, if the claim on it stands; locked until the transaction ends.
async fn standing(tx: &mut Tx, claimed: &ClaimedExecution) -> Result<Option<RunbookExecution>> {
    let mut query = Query::growing("SELECT * FROM runbook_executions WHERE id = ");
    query.push_bind(claimed.execution.id).push(" AND claim = ").push_bind(claimed.claim.to_string());
    if tx.is_postgres() {
        query.push(" FOR UPDATE");
    }
    query.optional(tx).await?.as_ref().map(execution).transpose()
}

async fn write(tx: &mut Tx, id: i64, run: &Run, release: bool) -> Result<RunbookExecution> {
    let mut query = Query::growing("UPDATE runbook_executions SET status = ");
    query.push_bind(run.status.as_str()).push(", error = ").push_bind(&run.error);
    query.push(", steps = ").push_bind(to_json(&run.steps)?).push(", position = ").push_bind(run.position);
    query.push(", tries = ").push_bind(run.tries);
    query.push(", next_at = ").push_bind(run.next_at.map(Timestamp::micros));
    query.push(", started_at = ").push_bind(run.started_at.map(Timestamp::micros));
    query.push(", ended_at = ").push_bind(run.ended_at.map(Timestamp::micros));
    if release || !run.status.is_live() {
        query.push(", claim = NULL, leased_until = NULL");
    }
    query.push(" WHERE id = ").push_bind(id).push(" RETURNING *");
    execution(&query.one(tx).await?)
}

/// Records the end of an execution, if it ended.
async fn record_end(tx: &mut Tx, claimed: &ClaimedExecution, after: &RunbookExecution, now: Timestamp) -> Result<()> {
    if after.run.status.is_live() {
        return Ok(());
    }
    let status = after.run.status;
    let result = if status == crate::domain::RunStatus::Succeeded { "ok" } else { "failed" };
    let detail = serde_json::json!({ "execution": after.id, "status": status, "error": after.run.error });
    append(tx, claimed.ws, fact(claimed, "runbook.end", now).result(result).with(detail)).await?;
    if let Some(incident) = &claimed.incident {
        insert_note_of(tx, incident.id, after, status.as_str(), now).await?;
    }
    Ok(())
}

fn fact(claimed: &ClaimedExecution, action: &'static str, now: Timestamp) -> Fact {
    by_system(claimed.ws, action, format!("runbook/{}", claimed.execution.runbook_id), now)
}

fn by_system(ws: WorkspaceId, action: &'static str, object: String, now: Timestamp) -> Fact {
    Fact::new(now, &Actor::System { workspace: ws }, action, object)
}

/// What a deed changed beside the execution.
#[derive(Default)]
struct Effects {
    changed: Changed,
    incident: Option<StoredIncident>,
    rule: Option<Rule>,
    mitigation: Option<MitigationRule>,
}

async fn work(
    tx: &mut Tx,
    claimed: &ClaimedExecution,
    run: &Run,
    deed: &Deed,
    effects: &mut Effects,
    now: Timestamp,
) -> Result<StepOutcome> {
    let ClaimedExecution { ws, execution, incident, .. } = claimed;
    let gone = || Problem::NotFound("incident");
    Ok(match deed {
        Deed::Over(outcome) => outcome.clone(),
        Deed::Wait(secs) if run.current().is_some_and(|record| record.status == StepStatus::Running) => {
            StepOutcome::Succeeded(format!("waited {secs} s"))
        }
        Deed::Wait(secs) => StepOutcome::Wait(now.plus_secs(i64::from(*secs))),
        Deed::Orders { node, orders, message } => {
            let number = node_id(tx, *ws, *node).await?;
            let mut left = Vec::new();
            for order in orders {
                let uuid = leave_order(tx, number, order, now).await?.command_id;
                left.push(HandedOver { kind: HandedOverKind::Command, uuid });
            }
            let detail = serde_json::json!({ "orders": orders, "runbook": execution.runbook_id });
            append(tx, *ws, by_system(*ws, "command.create", format!("node/{node}"), now).with(detail)).await?;
            effects.changed = Changed::Nodes(vec![*node]);
            StepOutcome::HandedOver(message.clone(), left)
        }
        Deed::Rule { id, enabled } => {
            let how = if *enabled { "in" } else { "out of" };
            match switch(tx, *ws, *id, *enabled, now).await? {
                (rule, None) => StepOutcome::Succeeded(format!("the firewall rule {} was {how} force", rule.name)),
                (rule, Some(changed)) => {
                    let detail = serde_json::json!({ "enabled": enabled, "runbook": execution.runbook_id });
                    append(tx, *ws, by_system(*ws, "rule.toggle", format!("rule/{id}"), now).with(detail)).await?;
                    let message = format!("the firewall rule {} is {how} force", rule.name);
                    (effects.changed, effects.rule) = (changed, Some(rule));
                    StepOutcome::Succeeded(message)
                }
            }
        }
        Deed::Tell { duty, destination, message } => {
            let attack = incident.as_ref().map_or_else(|| made_up(claimed), Attack::of);
            let body = |delivery| runbook_body(delivery, execution, message, &attack, incident.as_ref(), now);
            leave_notice(tx, *ws, *duty, *destination, execution.incident_id, body, now).await?
        }
        Deed::Scrub { integration } => {
            let provider: Provider = word(&scrubbings::one(tx, *ws, *integration).await?, "provider")?;
            StepOutcome::NotConnected(provider.not_connected())
        }
        Deed::Call { .. } => StepOutcome::Failed("it was not called".to_owned()),
        Deed::Announce(new) => {
            let fact = by_system(*ws, "mitigation.create", "mitigation".to_owned(), now);
            let detail = serde_json::json!({
                "target_ip": new.target, "intent_type": new.intent, "adapter_id": new.adapter_id, "ttl": new.ttl_secs,
                "reason": new.reason, "runbook": execution.runbook_id,
            });
            let rule = create_in(tx, *ws, new.clone(), fact.with(detail)).await?;
            let left = HandedOver { kind: HandedOverKind::MitigationRule, uuid: rule.uuid };
            let message = format!("mitigation rule {}", rule.id);
            effects.mitigation = Some(rule);
            StepOutcome::HandedOver(message, vec![left])
        }
        Deed::Change(change) => {
            let id = incident.as_ref().ok_or_else(gone)?.id;
            let author = format!("runbook {}", execution.runbook_name);
            let detail = serde_json::json!({
                "status": change.status, "severity": change.severity, "runbook": execution.runbook_id,
            });
            let object = format!("incident/{id}");
            let fact = by_system(*ws, "incident.update", object, now).with(detail);
            let (changed, _) = change_in(tx, *ws, id, *change, &author, fact).await?;
            // It may have an order now: to end the incident, or of an integration that asks nobody.
            effects.changed = Changed::Nodes(vec![changed.node]);
            let message = format!("the incident is {}, its severity {}", changed.status(), changed.severity());
            effects.incident = Some(changed);
            StepOutcome::Succeeded(message)
        }
        Deed::Note(text) => {
            let id = incident.as_ref().ok_or_else(gone)?.id;
            insert_note(tx, id, now, "note", &format!("runbook {}", execution.runbook_name), text).await?;
            StepOutcome::Succeeded("written".to_owned())
        }
    })
}

fn made_up(claimed: &ClaimedExecution) -> Attack {
    Attack::made_up(&claimed.conditions, claimed.execution.node)
}

/// Whose turn it is; the values are bound in the order of the text.
fn due(query: &mut Query, now: Timestamp) {
    query.push(" FROM runbook_executions WHERE status IN ('queued', 'running') AND next_at <= ");
    query.push_bind(now.micros()).push(" AND (leased_until IS NULL OR leased_until <= ").push_bind(now.micros());
    query.push(")");
}

impl SqlStore {
    pub(super) async fn claim_run(&self, now: Timestamp) -> Result<Option<ClaimedExecution>> {
        let mut looking = Query::growing("SELECT id");
        due(&mut looking, now);
        looking.push(" LIMIT 1");
        // Most looks find nothing, and need not wait for the writer.
        if looking.optional(&self.pools).await?.is_none() {
            return Ok(None);
        }
        let mut tx = self.write().await?;
        let (claim, until) = (self.pools.claim(), now.plus_secs(RUN_LEASE_SECS));
        let mut query = Query::growing("UPDATE runbook_executions SET claim = ");
        query.push_bind(claim.to_string()).push(", leased_until = ").push_bind(until.micros());
        query.push(" WHERE id IN (SELECT id");
        due(&mut query, now);
        query.push(" ORDER BY next_at, id LIMIT 1");
        if tx.is_postgres() {
            query.push(" FOR UPDATE SKIP LOCKED");
        }
        query.push(") RETURNING *");
        let Some(row) = query.optional(&mut tx).await? else { return Ok(None) };
        let ws = WorkspaceId(row.try_get("workspace_id")?);
        let execution = execution(&row)?;
        let incident = match execution.incident_id {
            Some(id) => known(&mut tx, ws, id).await?,
            None => None,
        };
        tx.commit().await?;
        let conditions = json(&row, "conditions")?;
        Ok(Some(ClaimedExecution { ws, execution, conditions, incident, claim, until }))
    }

    pub(super) async fn carry_out_step(
        &self,
        claimed: &ClaimedExecution,
        deed: &Deed,
        now: Timestamp,
    ) -> Result<Option<CarriedOut>> {
        match self.try_step(claimed, deed, now).await {
            // What the rules of the domain stand against was not done: that is what is kept.
            Err(StoreError::Problem(problem)) => {
                let why = problem.to_string();
                let outcome = match problem {
                    Problem::AlreadyExists(_) => StepOutcome::Skipped(why),
                    _ => StepOutcome::Failed(why),
                };
                self.try_step(claimed, &Deed::Over(outcome), now).await
            }
            done => done,
        }
    }

    async fn try_step(&self, claimed: &ClaimedExecution, deed: &Deed, now: Timestamp) -> Result<Option<CarriedOut>> {
        let mut tx = self.write_to(claimed.ws).await?;
        let Some(before) = standing(&mut tx, claimed).await? else { return Ok(None) };
        let mut effects = Effects::default();
        let outcome = work(&mut tx, claimed, &before.run, deed, &mut effects, now).await?;
        let position = before.run.position;
        let run = before.run.after(outcome, now);
        let waits = run.next_at.is_some_and(|next| next > now);
        let after = write(&mut tx, before.id, &run, waits).await?;
        if let Some(record) = after.run.steps.get(position as usize).filter(|_| after.run.position > position) {
            let failed = matches!(record.status, StepStatus::Failed | StepStatus::NotConnected);
            let detail = serde_json::json!({
                "execution": after.id, "step": position + 1, "action_type": record.step.kind(), "status": record.status,
                "message": record.message,
            });
            let result = if failed { "failed" } else { "ok" };
            append(&mut tx, claimed.ws, fact(claimed, "runbook.step", now).result(result).with(detail)).await?;
        }
        record_end(&mut tx, claimed, &after, now).await?;
        tx.commit().await?;
        Ok(Some(CarriedOut {
            execution: after,
            changed: effects.changed,
            incident: effects.incident,
            rule: effects.rule,
            mitigation: effects.mitigation,
        }))
    }

    pub(super) async fn confirm_run(
        &self,
        claimed: &ClaimedExecution,
        now: Timestamp,
    ) -> Result<Option<RunbookExecution>> {
        let mut tx = self.write_to(claimed.ws).await?;
        let Some(before) = standing(&mut tx, claimed).await? else { return Ok(None) };
        let mut found = HashMap::new();
        for one in before.run.unconfirmed() {
            found.insert(one.uuid, confirmation(&mut tx, claimed.ws, one).await?);
        }
        let id = before.id;
        let of = |one: &HandedOver| found.get(&one.uuid).cloned().unwrap_or(Confirmation::Pending);
        let after = write(&mut tx, id, &before.run.confirmed(of, now), true).await?;
        record_end(&mut tx, claimed, &after, now).await?;
        tx.commit().await?;
        Ok(Some(after))
    }

    pub(super) async fn cancel_run(
        &self,
        claimed: &ClaimedExecution,
        why: &str,
        now: Timestamp,
    ) -> Result<Option<RunbookExecution>> {
        let mut tx = self.write_to(claimed.ws).await?;
        let Some(before) = standing(&mut tx, claimed).await? else { return Ok(None) };
        let after = write(&mut tx, before.id, &before.run.cancelled(why, now), true).await?;
        record_end(&mut tx, claimed, &after, now).await?;
        tx.commit().await?;
        Ok(Some(after))
    }

    pub(super) async fn release_run(&self, claimed: &ClaimedExecution) -> Result<()> {
        let mut tx = self.write().await?;
        sql("UPDATE runbook_executions SET claim = NULL, leased_until = NULL WHERE id = $1 AND claim = $2")
            .bind(claimed.execution.id)
            .bind(claimed.claim.to_string())
            .run(&mut tx)
            .await?;
        Ok(tx.commit().await?)
    }
}

async fn confirmation(tx: &mut Tx, ws: WorkspaceId, one: &HandedOver) -> Result<Confirmation> {
    let uuid = one.uuid.to_string();
    let row = match one.kind {
        HandedOverKind::Delivery => {
            let query = sql("SELECT status, error FROM deliveries WHERE workspace_id = $1 AND uuid = $2");
            query.bind(ws.0).bind(uuid).optional(tx).await?
        }
        HandedOverKind::Command => {
            let query = sql("SELECT c.status, c.error FROM commands c JOIN nodes n ON n.id = c.node_id
                 WHERE n.workspace_id = $1 AND c.uuid = $2");
            query.bind(ws.0).bind(uuid).optional(tx).await?
        }
        HandedOverKind::MitigationRule => {
            let query = sql("SELECT CASE WHEN announced_at IS NOT NULL THEN 'active' ELSE status END AS status,
                    last_error AS error FROM mitigation_rules WHERE workspace_id = $1 AND uuid = $2");
            query.bind(ws.0).bind(uuid).optional(tx).await?
        }
    };
    let Some(row) = row else { return Ok(Confirmation::Failed("it is gone, with whom it was given to".to_owned())) };
    let (status, error): (String, String) = (row.try_get("status")?, row.try_get("error")?);
    Ok(match (status.as_str(), error) {
        ("pending", _) => Confirmation::Pending,
        ("delivered" | "applied" | "active", _) => Confirmation::Done,
        (status, error) if error.is_empty() => Confirmation::Failed(format!("it is {status}")),
        (_, error) => Confirmation::Failed(error),
    })
}
