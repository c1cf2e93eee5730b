//! The outbox: messages written with what they tell, claimed by workers, settled.
//!
//! A worker claims a destination, not a delivery: so deliveries to it keep their order whichever process sends, and a
//! half-open circuit gets one probe. What a dead worker had claimed is freed by its peers, or ends by itself, and is
//! sent again under the same uuid. Locks are taken destination first, then deliveries.

use async_trait::async_trait;
use ftagent_common::vocab::Severity;
use uuid::Uuid;

use super::audits::append;
use super::destinations::{health, insert, kind, list, one, replace};
use super::windows::held;
use super::{Row, SqlStore, Tx, amount, at, count, json, maybe_at, number, sql, unexpected, uuid, word};
use crate::domain::{
    Delivery, DeliveryStatus, Destination, Duty, EventKind, Fact, HandedOver, HandedOverKind, Health, Listed, Page,
    Problem, Standing, StepOutcome, StoredIncident, Timestamp, WorkspaceId, incident_body,
};
use crate::store::{Claimed, DestinationEdit, Draft, Outbox, Result, Sealed, Settled, TestMade, Waiting};

/// The most deliveries that wait for one destination; further ones are kept as failed.
const MAX_PENDING: i64 = 10_000;

/// What can be claimed: something is due that no earlier delivery about the same incident stands in front of.
const CLAIMABLE: &str = "SELECT d.* FROM destinations d
     WHERE d.enabled AND (d.lease_until IS NULL OR d.lease_until <= $1)
       AND (d.open_until IS NULL OR d.open_until <= $1) AND (d.paused_until IS NULL OR d.paused_until <= $1)
       AND EXISTS (SELECT 1 FROM deliveries v WHERE v.destination_id = d.id AND v.status = 'pending'
             AND v.next_at <= $1 AND NOT EXISTS (
                 SELECT 1 FROM deliveries e WHERE e.destination_id = v.destination_id AND e.status = 'pending'
                    AND e.incident_id = v.incident_id AND e.id < v.id))
     ORDER BY d.claimed_at, d.id LIMIT $2";

const DUE: &str =
    "SELECT v.* FROM deliveries v WHERE v.destination_id = $1 AND v.status = 'pending' AND v.next_at <= $2
       AND NOT EXISTS (SELECT 1 FROM deliveries e WHERE e.destination_id = v.destination_id AND e.status = 'pending'
             AND e.incident_id = v.incident_id AND e.id < v.id)
     ORDER BY v.id LIMIT $3";

/// Writes what an incident's change tells, for every destination that it concerns.
pub(super) async fn leave_messages(
    tx: &mut Tx,
    ws: WorkspaceId,
    before: Option<Standing>,
    incident: &StoredIncident,
    now: Timestamp,
) -> Result<()> {
    let events = Standing::of(incident).events_since(before);
    if events.is_empty() {
        return Ok(());
    }
    let due = held(tx, ws, incident.node, now).await?.unwrap_or(now);
    let rows = sql("SELECT id, kind, min_severity FROM destinations WHERE workspace_id = $1 AND enabled ORDER BY id")
        .bind(ws.0)
        .all(&mut *tx)
        .await?;
    for row in &rows {
        let (id, least): (i64, Severity) = (row.try_get("id")?, word(row, "min_severity")?);
        // Whoever was told of an incident is told how it goes on.
        let concerned =
            kind(row)?.is_connected() && (incident.severity() >= least || was_told(tx, id, incident.id).await?);
        if concerned {
            for event in &events {
                leave(tx, ws, id, incident, *event, (now, due)).await?;
            }
        }
    }
    Ok(())
}

async fn was_told(tx: &mut Tx, destination: i64, incident: i64) -> Result<bool> {
    let query = sql("SELECT id FROM deliveries WHERE destination_id = $1 AND incident_id = $2 LIMIT 1");
    Ok(query.bind(destination).bind(incident).optional(tx).await?.is_some())
}

async fn leave(
    tx: &mut Tx,
    ws: WorkspaceId,
    destination: i64,
    incident: &StoredIncident,
    event: EventKind,
    (now, due): (Timestamp, Timestamp),
) -> Result<()> {
    let uuid = Uuid::new_v4();
    let body = incident_body(uuid, event, incident, now);
    leave_body(tx, ws, destination, Some(incident.id), (uuid, event, body), (now, due)).await
}

/// Writes what a runbook tells one destination.
///
/// # Errors
/// There is no such destination, or it is disabled.
pub(super) async fn leave_notice(
    tx: &mut Tx,
    ws: WorkspaceId,
    duty: Duty,
    id: i64,
    incident: Option<i64>,
    body: impl FnOnce(Uuid) -> String + Send,
    now: Timestamp,
) -> Result<StepOutcome> {
    let kept = one(&mut *tx, ws, duty, id, now).await?.destination;
    let kind = kept.kind.as_str();
    if !kept.kind.is_connected() {
        let why = format!("not connected: this version cannot send to {kind}, so nothing was sent to {}", kept.name);
        return Ok(StepOutcome::NotConnected(why));
    }
    if !kept.enabled {
        return Err(Problem::field(duty.as_str(), format!("{} is disabled", kept.name)).into());
    }
    let uuid = Uuid::new_v4();
    leave_body(tx, ws, id, incident, (uuid, EventKind::Runbook, body(uuid)), (now, now)).await?;
    let left = HandedOver { kind: HandedOverKind::Delivery, uuid };
    Ok(StepOutcome::HandedOver(format!("a message for {}", kept.name), vec![left]))
}

async fn leave_body(
    tx: &mut Tx,
    ws: WorkspaceId,
    destination: i64,
    incident: Option<i64>,
    (uuid, event, body): (Uuid, EventKind, String),
    (now, due): (Timestamp, Timestamp),
) -> Result<()> {
    let waiting = sql("SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE destination_id = $1 AND status = 'pending'
                       LIMIT $2) AS waiting");
    let waiting: i64 = waiting.bind(destination).bind(MAX_PENDING).scalar(&mut *tx).await?;
    let full = waiting >= MAX_PENDING;
    let (status, error) = if full {
        (DeliveryStatus::Failed, format!("{MAX_PENDING} deliveries wait for this destination already"))
    } else {
        (DeliveryStatus::Pending, String::new())
    };
    sql("INSERT INTO deliveries (uuid, workspace_id, destination_id, incident_id, event, body, status, attempts,
                                 next_at, created_at, ended_at, error)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, $9, $10, $11)")
    .bind(uuid.to_string())
    .bind(ws.0)
    .bind(destination)
    .bind(incident)
    .bind(event.as_str())
    .bind(body)
    .bind(status.as_str())
    .bind(due.micros())
    .bind(now.micros())
    .bind(full.then_some(now.micros()))
    .bind(error)
    .run(tx)
    .await?;
    Ok(())
}

fn delivery(row: &Row) -> Result<Delivery> {
    let (event, status): (String, String) = (row.try_get("event")?, row.try_get("status")?);
    let status =
        DeliveryStatus::from_word(&status).ok_or_else(|| unexpected("status", std::io::Error::other(status)))?;
    Ok(Delivery {
        id: row.try_get("id")?,
        uuid: uuid(row, "uuid")?,
        event: EventKind::from_word(&event).ok_or_else(|| unexpected("event", std::io::Error::other(event)))?,
        incident_id: row.try_get("incident_id")?,
        status,
        attempts: number(row, "attempts")?,
        next_at: if status == DeliveryStatus::Pending { Some(at(row, "next_at")?) } else { None },
        created_at: at(row, "created_at")?,
        attempted_at: maybe_at(row, "attempted_at")?,
        ended_at: maybe_at(row, "ended_at")?,
        http_status: row.try_get::<Option<i64>>("http_status")?.and_then(|status| u16::try_from(status).ok()),
        latency_ms: row.try_get("latency_ms")?,
        error: row.try_get("error")?,
        answer: row.try_get("answer")?,
    })
}

fn waiting(row: &Row) -> Result<Waiting> {
    Ok(Waiting {
        id: row.try_get("id")?,
        uuid: uuid(row, "uuid")?,
        event: row.try_get("event")?,
        body: row.try_get("body")?,
        attempts: number(row, "attempts")?,
        created_at: at(row, "created_at")?,
    })
}

#[async_trait]
impl Outbox for SqlStore {
    async fn destinations(
        &self,
        ws: WorkspaceId,
        duty: Duty,
        page: Page,
        now: Timestamp,
    ) -> Result<Listed<Destination>> {
        list(&mut self.read().await?, ws, duty, page, now).await
    }

    async fn destination(&self, ws: WorkspaceId, duty: Duty, id: i64, now: Timestamp) -> Result<Sealed> {
        one(&self.pools, ws, duty, id, now).await
    }

    async fn create_destination(&self, ws: WorkspaceId, duty: Duty, new: Draft, fact: Fact) -> Result<Destination> {
        let mut tx = self.write_to(ws).await?;
        let now = fact.at;
        let id = insert(&mut tx, ws, duty, &new, now).await?;
        append(&mut tx, ws, fact.on(id)).await?;
        let made = one(&mut tx, ws, duty, id, now).await?;
        tx.commit().await?;
        Ok(made.destination)
    }

    async fn edit_destination(
        &self,
        ws: WorkspaceId,
        duty: Duty,
        id: i64,
        edit: DestinationEdit<'_>,
        fact: Fact,
    ) -> Result<Destination> {
        let mut tx = self.write_to(ws).await?;
        let now = fact.at;
        let before = one(&mut tx, ws, duty, id, now).await?;
        let new = edit(&before)?;
        replace(&mut tx, duty, id, &new, now).await?;
        append(&mut tx, ws, fact).await?;
        let changed = one(&mut tx, ws, duty, id, now).await?;
        tx.commit().await?;
        Ok(changed.destination)
    }

    async fn delete_destination(&self, ws: WorkspaceId, duty: Duty, id: i64, fact: Fact) -> Result<()> {
        let mut tx = self.write_to(ws).await?;
        one(&mut tx, ws, duty, id, fact.at).await?;
        sql("DELETE FROM destinations WHERE id = $1").bind(id).run(&mut tx).await?;
        append(&mut tx, ws, fact).await?;
        Ok(tx.commit().await?)
    }

    async fn deliveries(&self, ws: WorkspaceId, duty: Duty, id: i64, page: Page) -> Result<Listed<Delivery>> {
        let mut tx = self.read().await?;
        one(&mut tx, ws, duty, id, Timestamp::from_secs(0)).await?;
        let total = sql("SELECT count(*) AS total FROM deliveries WHERE destination_id = $1").bind(id);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let rows = sql("SELECT * FROM deliveries WHERE destination_id = $1 ORDER BY id DESC LIMIT $2 OFFSET $3")
            .bind(id)
            .bind(page.limit)
            .bind(count(page.offset))
            .all(&mut tx)
            .await?;
        Ok(Listed { entries: rows.iter().map(delivery).collect::<Result<_>>()?, total })
    }

    async fn keep_test(&self, ws: WorkspaceId, duty: Duty, id: i64, test: TestMade, fact: Fact) -> Result<Delivery> {
        let mut tx = self.write_to(ws).await?;
        let ended = fact.at.micros();
        one(&mut tx, ws, duty, id, fact.at).await?;
        if test.attempt.succeeded() {
            sql("UPDATE destinations SET failures = 0, open_until = NULL, paused_until = NULL, delivered_at = $1
                 WHERE id = $2")
            .bind(ended)
            .bind(id)
            .run(&mut tx)
            .await?;
        } else {
            sql("UPDATE destinations SET failed_at = $1, last_error = $2 WHERE id = $3")
                .bind(ended)
                .bind(&test.attempt.error)
                .bind(id)
                .run(&mut tx)
                .await?;
        }
        let status = if test.attempt.succeeded() { DeliveryStatus::Delivered } else { DeliveryStatus::Failed };
        let row = sql("INSERT INTO deliveries (uuid, workspace_id, destination_id, event, body, status, attempts,
                              next_at, created_at, attempted_at, ended_at, http_status, latency_ms, error, answer)
             VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $7, $7, $8, $9, $10, $11, $12) RETURNING *")
        .bind(test.uuid.to_string())
        .bind(ws.0)
        .bind(id)
        .bind(EventKind::Test.as_str())
        .bind(&test.body)
        .bind(status.as_str())
        .bind(test.sent_at.micros())
        .bind(ended)
        .bind(test.attempt.http_status)
        .bind(test.attempt.latency_ms)
        .bind(&test.attempt.error)
        .bind(&test.attempt.answer)
        .one(&mut tx)
        .await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        delivery(&row)
    }

    async fn claim_deliveries(&self, most: u32, width: u32, now: Timestamp, until: Timestamp) -> Result<Vec<Claimed>> {
        // A look that hinders nobody: mostly there is nothing to do.
        if sql(CLAIMABLE).bind(now.micros()).bind(1_i64).optional(&self.pools).await?.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.write().await?;
        let mut query = sql(CLAIMABLE).bind(now.micros()).bind(most);
        if tx.is_postgres() {
            // Weaker than FOR UPDATE: new deliveries may refer to the row meanwhile.
            query.push(" FOR NO KEY UPDATE OF d SKIP LOCKED");
        }
        let mut claims = Vec::new();
        for row in query.all(&mut tx).await? {
            let health = health(&row)?;
            let claimed = Claimed {
                id: row.try_get("id")?,
                lease: self.pools.claim(),
                kind: kind(&row)?,
                settings: json(&row, "settings")?,
                sealed: row.try_get("sealed")?,
                health,
                waiting: Vec::new(),
            };
            let due = sql(DUE).bind(claimed.id).bind(now.micros()).bind(health.circuit.width(now, width));
            let waiting = due.all(&mut tx).await?.iter().map(waiting).collect::<Result<Vec<_>>>()?;
            sql("UPDATE destinations SET lease = $1, lease_until = $2, claimed_at = $3 WHERE id = $4")
                .bind(claimed.lease.to_string())
                .bind(until.micros())
                .bind(now.micros())
                .bind(claimed.id)
                .run(&mut tx)
                .await?;
            claims.push(Claimed { waiting, ..claimed });
        }
        tx.commit().await?;
        Ok(claims)
    }

    async fn settle(&self, claimed: &Claimed, settled: &[Settled], health: Health, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        let failed = settled.iter().rev().find(|s| !s.attempt.succeeded());
        let ours = sql("UPDATE destinations SET lease = NULL, lease_until = NULL, failures = $1, open_until = $2,
                    paused_until = $3, delivered_at = $4, failed_at = $5, last_error = coalesce($6, last_error)
             WHERE id = $7 AND lease = $8")
        .bind(health.circuit.failures)
        .bind(health.circuit.open_until.map(Timestamp::micros))
        .bind(health.paused_until.map(Timestamp::micros))
        .bind(health.delivered_at.map(Timestamp::micros))
        .bind(health.failed_at.map(Timestamp::micros))
        .bind(failed.map(|s| s.attempt.error.clone()))
        .bind(claimed.id)
        .bind(claimed.lease.to_string())
        .run(&mut tx)
        .await?
            > 0;
        for one in settled.iter().filter(|s| ours || s.attempt.succeeded()) {
            let attempt = &one.attempt;
            let (status, ended) = match (attempt.succeeded(), one.next_at) {
                (true, _) => (DeliveryStatus::Delivered, Some(now.micros())),
                (false, None) => (DeliveryStatus::Failed, Some(now.micros())),
                (false, Some(_)) => (DeliveryStatus::Pending, None),
            };
            sql("UPDATE deliveries SET status = $1, attempts = attempts + 1, next_at = $2, attempted_at = $3,
                        ended_at = $4, http_status = $5, latency_ms = $6, error = $7, answer = $8
                 WHERE id = $9 AND (status = 'pending' OR $10)")
            .bind(status.as_str())
            .bind(one.next_at.unwrap_or(now).micros())
            .bind(now.micros())
            .bind(ended)
            .bind(attempt.http_status)
            .bind(attempt.latency_ms)
            .bind(&attempt.error)
            .bind(&attempt.answer)
            .bind(one.id)
            .bind(attempt.succeeded())
            .run(&mut tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn prune_deliveries(
        &self,
        waiting_since: Timestamp,
        ended_before: Timestamp,
        most: i64,
        now: Timestamp,
    ) -> Result<u64> {
        let mut tx = self.write().await?;
        let given_up = sql("UPDATE deliveries SET status = 'failed', ended_at = $1,
                 error = CASE WHEN error = '' THEN 'it could not be delivered in time' ELSE error END
             WHERE status = 'pending' AND CASE WHEN attempts = 0 THEN next_at ELSE created_at END < $2")
        .bind(now.micros())
        .bind(waiting_since.micros())
        .run(&mut tx)
        .await?;
        let old = sql("DELETE FROM deliveries WHERE status <> 'pending' AND ended_at < $1")
            .bind(ended_before.micros())
            .run(&mut tx)
            .await?;
        let many = sql("DELETE FROM deliveries WHERE status <> 'pending' AND id <= coalesce((
                 SELECT e.id FROM deliveries e WHERE e.destination_id = deliveries.destination_id
                    AND e.status <> 'pending' ORDER BY e.id DESC LIMIT 1 OFFSET $1), 0)
               AND destination_id IN (SELECT destination_id FROM deliveries WHERE status <> 'pending'
                    GROUP BY destination_id HAVING count(*) > $1)")
        .bind(most)
        .run(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(given_up + old + many)
    }
}
