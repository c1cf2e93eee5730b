//! Mitigation rules and the escalation policy.
//!
//! A claim locks one row and no workspace, and skips rows that others lock; whatever a claim leads to is written in a
//! transaction of the workspace, and only if the claim still stands.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use async_trait::async_trait;
use uuid::Uuid;

use super::audits::append;
use super::{
    Query, Row, SqlStore, Tx, adapters, allowlist, amount, at, json, maybe_at, number, or_missing, sql, to_json,
    unless_taken, uuid, word,
};
use crate::domain::{
    Actor, COOLDOWN_SECS, Course, Ending, Escalation, Fact, LEASE_SECS, Listed, MAX_LIVE_RULES, MitigationRule,
    MitigationStatus, NewMitigation, Outcome, Pace, Page, Problem, Timestamp, WINDOW_SECS, WorkspaceId, refusal,
};
use crate::store::{ClaimedRule, Mitigations, PolicyEdit, Result, StoreError};

/// The most rules that one look ends: the next look goes on.
const SWEEP: i64 = 200;

/// A rule and where it is.
pub(super) struct Kept {
    pub(super) rule: MitigationRule,
    course: Course,
}

fn kept(row: &Row) -> Result<Kept> {
    let ending: Option<String> = row.try_get("ending")?;
    let status: MitigationStatus = word(row, "status")?;
    let course = Course {
        status,
        ending: ending.and_then(|word| word.parse().ok()),
        since: at(row, "since")?,
        attempts: number(row, "attempts")?,
        next_at: at(row, "next_at")?,
        last_error: row.try_get("last_error")?,
    };
    let waits = matches!(status, MitigationStatus::Pending | MitigationStatus::Withdrawing);
    let rule = MitigationRule {
        id: row.try_get("id")?,
        uuid: uuid(row, "uuid")?,
        target_ip: word(row, "target")?,
        intent_type: word(row, "intent")?,
        adapter_id: row.try_get("adapter_id")?,
        adapter_name: row.try_get("adapter_name")?,
        ttl: number(row, "ttl_secs")?,
        reason: row.try_get("reason")?,
        status,
        attempts: course.attempts,
        last_error: course.last_error.clone(),
        next_attempt_at: waits.then_some(course.next_at),
        created_at: at(row, "created_at")?,
        announced_at: maybe_at(row, "announced_at")?,
        expires_at: maybe_at(row, "expires_at")?,
        ended_at: maybe_at(row, "ended_at")?,
    };
    Ok(Kept { rule, course })
}

fn rule(row: &Row) -> Result<MitigationRule> {
    Ok(kept(row)?.rule)
}

/// The rules of an adapter that have not ended.
pub(super) async fn live_of_adapter(conn: &mut Tx, ws: WorkspaceId, adapter: i64) -> Result<Vec<Kept>> {
    let mut query = Query::growing("SELECT * FROM mitigation_rules WHERE workspace_id = ");
    query.push_bind(ws.0).push(" AND adapter_id = ").push_bind(adapter);
    query.push(" AND status IN ('pending', 'active', 'withdrawing') ORDER BY id").push(locking(conn));
    query.all(conn).await?.iter().map(kept).collect()
}

/// Keeps claims away until the transaction ends: a rule must not be sent after it was judged to be untried.
const fn locking(conn: &Tx) -> &'static str {
    if conn.is_postgres() { " FOR UPDATE" } else { "" }
}

/// Writes where a rule is now; a claim on it stays unless `release`.
async fn write(conn: &mut Tx, rule: i64, course: &Course, release: bool, now: Timestamp) -> Result<MitigationRule> {
    let ended = !course.status.is_live();
    let active = course.status == MitigationStatus::Active;
    let mut query = Query::growing("UPDATE mitigation_rules SET status = ");
    query.push_bind(course.status.as_str()).push(", ending = ").push_bind(course.ending.map(Ending::as_str));
    query.push(", since = ").push_bind(course.since.micros()).push(", attempts = ").push_bind(course.attempts);
    query.push(", next_at = ").push_bind(course.next_at.micros());
    query.push(", last_error = ").push_bind(&course.last_error);
    if active {
        query.push(", announced_at = coalesce(announced_at, ").push_bind(now.micros()).push(")");
    }
    if ended {
        query.push(", ended_at = coalesce(ended_at, ").push_bind(now.micros()).push(")");
    }
    if release || ended {
        query.push(", claim = NULL, leased_until = NULL");
    }
    query.push(" WHERE id = ").push_bind(rule).push(" RETURNING *");
    self::rule(&query.one(conn).await?)
}

/// Wishes the end of a rule, with a record if that changes anything.
pub(super) async fn end_rule(
    conn: &mut Tx,
    ws: WorkspaceId,
    before: Kept,
    ending: Ending,
    why: &str,
    now: Timestamp,
    actor: &str,
) -> Result<MitigationRule> {
    let Some(course) = before.course.withdrawn(ending, why, now) else { return Ok(before.rule) };
    let after = write(conn, before.rule.id, &course, false, now).await?;
    append(conn, ws, about(&after, "mitigation.withdraw", actor, now)).await?;
    Ok(after)
}

/// A record of where a rule is.
fn about(rule: &MitigationRule, action: &'static str, actor: &str, now: Timestamp) -> Fact {
    let result = if rule.status == MitigationStatus::Failed { "failed" } else { "ok" };
    Fact {
        at: now,
        actor: actor.to_owned(),
        action,
        object: format!("mitigation/{}", rule.id),
        result,
        detail: serde_json::json!({
            "target_ip": rule.target_ip, "intent_type": rule.intent_type, "adapter": rule.adapter_name,
            "status": rule.status, "attempts": rule.attempts, "error": rule.last_error,
        }),
    }
}

async fn one(conn: &mut Tx, ws: WorkspaceId, id: i64) -> Result<Kept> {
    let mut query = Query::growing("SELECT * FROM mitigation_rules WHERE workspace_id = ");
    query.push_bind(ws.0).push(" AND id = ").push_bind(id).push(locking(conn));
    kept(&or_missing(query.optional(conn).await?, "mitigation rule")?)
}

/// Rules that a claim could take; the values are bound in the order of the text.
fn due(query: &mut Query, now: Timestamp, busy: &[i64]) {
    query.push(" FROM mitigation_rules WHERE status IN ('pending', 'withdrawing') AND next_at <= ");
    query.push_bind(now.micros()).push(" AND (leased_until IS NULL OR leased_until <= ").push_bind(now.micros());
    query.push(")");
    for adapter in busy {
        query.push(" AND adapter_id <> ").push_bind(*adapter);
    }
}

/// What the workspace did lately, to `new`'s target and at all.
async fn pace(conn: &mut Tx, ws: WorkspaceId, new: &NewMitigation, now: Timestamp) -> Result<Pace> {
    let ended = sql("SELECT max(ended_at) AS ended_at FROM mitigation_rules
         WHERE workspace_id = $1 AND target = $2 AND announced_at IS NOT NULL AND ended_at > $3")
    .bind(ws.0)
    .bind(new.target.to_string())
    .bind(now.plus_secs(-COOLDOWN_SECS).micros())
    .one(&mut *conn)
    .await?;
    let made = sql("SELECT count(*) AS made, min(created_at) AS first_at FROM mitigation_rules
         WHERE workspace_id = $1 AND created_at > $2")
    .bind(ws.0)
    .bind(now.plus_secs(-WINDOW_SECS).micros())
    .one(conn)
    .await?;
    Ok(Pace {
        ended_at: maybe_at(&ended, "ended_at")?,
        made: amount(&made, "made")?,
        first_at: maybe_at(&made, "first_at")?,
    })
}

/// Makes a rule unless the guard refuses it, in the transaction of what led to it.
pub(super) async fn create_in(tx: &mut Tx, ws: WorkspaceId, new: NewMitigation, fact: Fact) -> Result<MitigationRule> {
    let adapter = match adapters::one(&mut *tx, ws, new.adapter_id, "adapter").await {
        Err(StoreError::Problem(Problem::NotFound(_))) => {
            return Err(Problem::field("adapter_id", "there is no such adapter").into());
        }
        found => found?.adapter,
    };
    adapter.check_use(new.intent, &new.target)?;
    let allowed = allowlist::all(&mut *tx, ws).await?;
    if let Some(why) = refusal(&new.target, &allowed) {
        return Err(Problem::field("target_ip", why).into());
    }
    let live: i64 = sql("SELECT count(*) FROM mitigation_rules WHERE workspace_id = $1
                         AND status IN ('pending', 'active', 'withdrawing')")
    .bind(ws.0)
    .scalar(&mut *tx)
    .await?;
    if live >= i64::from(MAX_LIVE_RULES) {
        let why = format!("the workspace has {live} rules already, the most that can be announced at once");
        return Err(Problem::field("target_ip", why).into());
    }
    let now = fact.at;
    pace(tx, ws, &new, now).await?.check(now)?;
    let expires_at = (new.ttl_secs > 0).then(|| now.plus_secs(i64::from(new.ttl_secs)).micros());
    let course = Course::new(now);
    let row =
        sql("INSERT INTO mitigation_rules (workspace_id, uuid, target, intent, adapter_id, adapter_name, ttl_secs,
                                       reason, status, since, next_at, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $10, $11) RETURNING *")
        .bind(ws.0)
        .bind(Uuid::new_v4().to_string())
        .bind(new.target.to_string())
        .bind(new.intent.as_str())
        .bind(new.adapter_id)
        .bind(&adapter.name)
        .bind(new.ttl_secs)
        .bind(&new.reason)
        .bind(course.status.as_str())
        .bind(now.micros())
        .bind(expires_at)
        .one(&mut *tx)
        .await
        .map_err(|e| unless_taken(e, || "a rule for this target and intent that has not ended".to_owned()))?;
    let rule = rule(&row)?;
    append(tx, ws, fact.on(rule.id)).await?;
    Ok(rule)
}

#[async_trait]
impl Mitigations for SqlStore {
    async fn mitigations(&self, ws: WorkspaceId, live: bool, page: Page) -> Result<Listed<MitigationRule>> {
        let filter = if live { " AND status IN ('pending', 'active', 'withdrawing')" } else { "" };
        let mut tx = self.read().await?;
        let mut total = Query::growing("SELECT count(*) AS total FROM mitigation_rules WHERE workspace_id = ");
        total.push_bind(ws.0).push(filter);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let mut query = Query::growing("SELECT * FROM mitigation_rules WHERE workspace_id = ");
        query.push_bind(ws.0).push(filter).push(" ORDER BY id DESC LIMIT ").push_bind(page.limit);
        query.push(" OFFSET ").push_bind(super::count(page.offset));
        let rows = query.all(&mut tx).await?;
        Ok(Listed { entries: rows.iter().map(rule).collect::<Result<_>>()?, total })
    }

    async fn create_mitigation(&self, ws: WorkspaceId, new: NewMitigation, fact: Fact) -> Result<MitigationRule> {
        let mut tx = self.write_to(ws).await?;
        let rule = create_in(&mut tx, ws, new, fact).await?;
        tx.commit().await?;
        Ok(rule)
    }

    async fn withdraw_mitigation(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<MitigationRule> {
        let mut tx = self.write_to(ws).await?;
        let before = one(&mut tx, ws, id).await?;
        let after = end_rule(&mut tx, ws, before, Ending::Withdrawn, "", fact.at, &fact.actor).await?;
        tx.commit().await?;
        Ok(after)
    }

    async fn claim_mitigation(&self, now: Timestamp, busy: &[i64]) -> Result<Option<ClaimedRule>> {
        let mut looking = Query::growing("SELECT id");
        due(&mut looking, now, busy);
        looking.push(" LIMIT 1");
        // Most looks find nothing, and need not wait for the writer.
        if looking.optional(&self.pools).await?.is_none() {
            return Ok(None);
        }
        let mut tx = self.write().await?;
        let claim = self.pools.claim();
        let until = now.plus_secs(LEASE_SECS);
        let mut query = Query::growing("UPDATE mitigation_rules SET attempts = attempts + 1, claim = ");
        query.push_bind(claim.to_string()).push(", leased_until = ").push_bind(until.micros());
        query.push(" WHERE id IN (SELECT id");
        due(&mut query, now, busy);
        query.push(" ORDER BY next_at, id LIMIT 1");
        if tx.is_postgres() {
            query.push(" FOR UPDATE SKIP LOCKED");
        }
        query.push(") RETURNING *");
        let row = query.optional(&mut tx).await?;
        tx.commit().await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(ClaimedRule { ws: WorkspaceId(row.try_get("workspace_id")?), rule: rule(&row)?, claim, until }))
    }

    async fn settle_mitigation(
        &self,
        claimed: &ClaimedRule,
        tried: MitigationStatus,
        outcome: &Outcome,
        now: Timestamp,
    ) -> Result<Option<MitigationRule>> {
        let (ws, id) = (claimed.ws, claimed.rule.id);
        let mut tx = self.write_to(ws).await?;
        let row = sql("SELECT * FROM mitigation_rules WHERE id = $1 AND claim = $2")
            .bind(id)
            .bind(claimed.claim.to_string())
            .optional(&mut tx)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let before = kept(&row)?;
        let course = before.course.settled(tried, outcome, id, now);
        let after = write(&mut tx, id, &course, true, now).await?;
        if after.status != before.rule.status {
            let action = match after.status {
                MitigationStatus::Active => "mitigation.announced",
                MitigationStatus::Withdrawing => "mitigation.withdraw",
                _ => "mitigation.ended",
            };
            let system = Actor::System { workspace: ws }.to_string();
            append(&mut tx, ws, about(&after, action, &system, now)).await?;
        }
        tx.commit().await?;
        Ok(Some(after))
    }

    async fn sweep_mitigations(&self, now: Timestamp) -> Result<Vec<(WorkspaceId, MitigationRule, Ending)>> {
        let mut changed = Vec::new();
        let overdue = sql("SELECT workspace_id, id FROM mitigation_rules
             WHERE status IN ('pending', 'active') AND expires_at <= $1 ORDER BY expires_at, id LIMIT $2")
        .bind(now.micros())
        .bind(SWEEP)
        .all(&self.pools)
        .await?;
        let mut wanted = Vec::new();
        for row in &overdue {
            wanted.push((
                WorkspaceId(row.try_get("workspace_id")?),
                row.try_get::<i64>("id")?,
                Ending::Expired,
                String::new(),
            ));
        }
        let live = sql("SELECT * FROM mitigation_rules WHERE status IN ('pending', 'active')
             AND EXISTS (SELECT 1 FROM allowlist a WHERE a.workspace_id = mitigation_rules.workspace_id
                                                     AND a.created_at >= mitigation_rules.created_at)")
        .all(&self.pools)
        .await?;
        let mut allowed = HashMap::new();
        for row in &live {
            let (ws, rule) = (WorkspaceId(row.try_get("workspace_id")?), rule(row)?);
            if let Entry::Vacant(entry) = allowed.entry(ws) {
                let mut tx = self.read().await?;
                entry.insert(allowlist::all(&mut tx, ws).await?);
                tx.rollback().await?;
            }
            if let Some(why) = refusal(&rule.target_ip, &allowed[&ws]) {
                wanted.push((ws, rule.id, Ending::Withdrawn, format!("the target {why}")));
            }
        }
        for (ws, id, ending, why) in wanted {
            let mut tx = self.write_to(ws).await?;
            let before = one(&mut tx, ws, id).await?;
            let status = before.rule.status;
            let system = Actor::System { workspace: ws }.to_string();
            let after = end_rule(&mut tx, ws, before, ending, &why, now, &system).await?;
            tx.commit().await?;
            if after.status != status {
                changed.push((ws, after, ending));
            }
        }
        let done = sql("SELECT workspace_id, id FROM adapters WHERE deleting_at IS NOT NULL AND NOT EXISTS (
                 SELECT 1 FROM mitigation_rules r WHERE r.adapter_id = adapters.id
                    AND r.status IN ('pending', 'active', 'withdrawing'))")
        .all(&self.pools)
        .await?;
        for row in &done {
            let (ws, id) = (WorkspaceId(row.try_get("workspace_id")?), row.try_get("id")?);
            let mut tx = self.write_to(ws).await?;
            if !adapters::remove(&mut tx, ws, id).await? {
                continue;
            }
            let fact = Fact::new(now, &Actor::System { workspace: ws }, "adapter.deleted", format!("adapter/{id}"));
            append(&mut tx, ws, fact).await?;
            tx.commit().await?;
        }
        Ok(changed)
    }

    async fn escalation(&self, ws: WorkspaceId) -> Result<Escalation> {
        policy(sql("SELECT * FROM escalation_policies WHERE workspace_id = $1").bind(ws.0).optional(&self.pools).await?)
    }

    async fn save_escalation(&self, ws: WorkspaceId, edit: PolicyEdit<'_>, fact: Fact) -> Result<Escalation> {
        let mut tx = self.write_to(ws).await?;
        let row = sql("SELECT * FROM escalation_policies WHERE workspace_id = $1").bind(ws.0).optional(&mut tx).await?;
        let saved = Escalation { updated_at: Some(fact.at), ..edit(&policy(row)?)? };
        sql("INSERT INTO escalation_policies (workspace_id, policy, updated_at) VALUES ($1, $2, $3)
             ON CONFLICT (workspace_id) DO UPDATE SET policy = excluded.policy, updated_at = excluded.updated_at")
        .bind(ws.0)
        .bind(to_json(&saved)?)
        .bind(fact.at.micros())
        .run(&mut tx)
        .await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(saved)
    }
}

fn policy(row: Option<Row>) -> Result<Escalation> {
    let Some(row) = row else { return Ok(Escalation::default()) };
    Ok(Escalation { updated_at: maybe_at(&row, "updated_at")?, ..json(&row, "policy")? })
}
