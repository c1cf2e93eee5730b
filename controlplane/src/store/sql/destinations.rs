//! Destinations: rows and their reading. The trait is in `outbox.rs`.

use std::collections::BTreeSet;

use super::transaction::On;
use super::{Row, amount, at, json, maybe_at, number, or_missing, sql, to_json, unexpected, unless_taken, word};
use super::{Tx, count};
use crate::domain::{
    Circuit, Destination, DestinationKind, Duty, Health, Listed, MAX_DESTINATIONS, Page, Problem, Timestamp,
    WorkspaceId, secrets_set,
};
use crate::store::{Draft, Result, Sealed};

const SELECT: &str = "SELECT d.*, (SELECT count(*) FROM deliveries v WHERE v.destination_id = d.id
        AND v.status = 'pending') AS pending FROM destinations d WHERE d.workspace_id = $1 AND d.duty = $2";

pub(super) fn kind(row: &Row) -> Result<DestinationKind> {
    let text: String = row.try_get("kind")?;
    DestinationKind::from_word(&text).ok_or_else(|| unexpected("kind", std::io::Error::other(text)))
}

pub(super) fn health(row: &Row) -> Result<Health> {
    Ok(Health {
        circuit: Circuit { failures: number(row, "failures")?, open_until: maybe_at(row, "open_until")? },
        paused_until: maybe_at(row, "paused_until")?,
        delivered_at: maybe_at(row, "delivered_at")?,
        failed_at: maybe_at(row, "failed_at")?,
    })
}

fn destination(row: &Row, now: Timestamp) -> Result<Destination> {
    let (kind, health) = (kind(row)?, health(row)?);
    let enabled = row.try_get("enabled")?;
    let names: BTreeSet<String> = json(row, "secret_names")?;
    Ok(Destination {
        id: row.try_get("id")?,
        kind,
        name: row.try_get("name")?,
        enabled,
        min_severity: word(row, "min_severity")?,
        settings: json(row, "settings")?,
        has_secrets: secrets_set(kind, &names),
        headers: names.iter().filter_map(|n| n.strip_prefix("header.")).map(str::to_owned).collect(),
        status: health.status(kind, enabled),
        circuit: health.circuit.state(now),
        failures: health.circuit.failures,
        resting_until: health.resting_until(now),
        pending: amount(row, "pending")?,
        delivered_at: health.delivered_at,
        failed_at: health.failed_at,
        last_error: row.try_get("last_error")?,
        created_at: at(row, "created_at")?,
        updated_at: at(row, "updated_at")?,
    })
}

pub(super) async fn list(
    tx: &mut Tx,
    ws: WorkspaceId,
    duty: Duty,
    page: Page,
    now: Timestamp,
) -> Result<Listed<Destination>> {
    let total = sql("SELECT count(*) AS total FROM destinations WHERE workspace_id = $1 AND duty = $2");
    let total = amount(&total.bind(ws.0).bind(duty.as_str()).one(&mut *tx).await?, "total")?;
    let text = sqlx::AssertSqlSafe(format!("{SELECT} ORDER BY d.id DESC LIMIT $3 OFFSET $4"));
    let query = sql(text).bind(ws.0).bind(duty.as_str()).bind(page.limit).bind(count(page.offset));
    let rows = query.all(tx).await?;
    Ok(Listed { entries: rows.iter().map(|row| destination(row, now)).collect::<Result<_>>()?, total })
}

pub(super) async fn one(
    conn: impl Into<On<'_>>,
    ws: WorkspaceId,
    duty: Duty,
    id: i64,
    now: Timestamp,
) -> Result<Sealed> {
    let query = sql(sqlx::AssertSqlSafe(format!("{SELECT} AND d.id = $3"))).bind(ws.0).bind(duty.as_str()).bind(id);
    let row = or_missing(query.optional(conn).await?, duty.as_str())?;
    Ok(Sealed { destination: destination(&row, now)?, sealed: row.try_get("sealed")? })
}

/// Adds the destination; its number.
pub(super) async fn insert(tx: &mut Tx, ws: WorkspaceId, duty: Duty, new: &Draft, now: Timestamp) -> Result<i64> {
    let known = sql("SELECT count(*) FROM destinations WHERE workspace_id = $1 AND duty = $2");
    let known: i64 = known.bind(ws.0).bind(duty.as_str()).scalar(&mut *tx).await?;
    if known >= MAX_DESTINATIONS {
        let message = format!("the workspace has {known} {}s already, the most there can be", duty.as_str());
        return Err(Problem::field("name", message).into());
    }
    sql("INSERT INTO destinations (workspace_id, duty, kind, name, enabled, min_severity, settings, secret_names,
                                   sealed, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10) RETURNING id")
    .bind(ws.0)
    .bind(duty.as_str())
    .bind(new.kind.as_str())
    .bind(&new.name)
    .bind(new.enabled)
    .bind(new.min_severity.as_str())
    .bind(to_json(&new.settings)?)
    .bind(to_json(&new.secret_names)?)
    .bind(new.sealed.as_slice())
    .bind(now.micros())
    .scalar(tx)
    .await
    .map_err(|e| unless_taken(e, || format!("a {} of this name", duty.as_str())))
}

pub(super) async fn replace(tx: &mut Tx, duty: Duty, id: i64, new: &Draft, now: Timestamp) -> Result<()> {
    sql("UPDATE destinations SET name = $1, enabled = $2, min_severity = $3, settings = $4, secret_names = $5,
                sealed = $6, updated_at = $7, failures = 0, open_until = NULL, paused_until = NULL
         WHERE id = $8")
    .bind(&new.name)
    .bind(new.enabled)
    .bind(new.min_severity.as_str())
    .bind(to_json(&new.settings)?)
    .bind(to_json(&new.secret_names)?)
    .bind(new.sealed.as_slice())
    .bind(now.micros())
    .bind(id)
    .run(tx)
    .await
    .map_err(|e| unless_taken(e, || format!("a {} of this name", duty.as_str())))?;
    Ok(())
}
