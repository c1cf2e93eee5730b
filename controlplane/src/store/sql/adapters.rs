//! Adapters.

use async_trait::async_trait;

use super::audits::append;
use super::mitigations::{Kept, end_rule, live_of_adapter};
use super::transaction::On;
use super::{Row, SqlStore, Tx, amount, at, json, leave_room, maybe_at, or_missing, sql, to_json, unless_taken, word};
use crate::domain::{
    Adapter, AdapterStatus, AdapterType, Checked, CheckedAdapter, Ending, Fact, Listed, Page, Problem, WorkspaceId,
};
use crate::store::{Adapters, Deleted, KeptAdapter, Result, SealedChange};

/// The most adapters of a workspace.
const MAX_ADAPTERS: i64 = 100;

pub(super) fn adapter(row: &Row) -> Result<Adapter> {
    let adapter_type: AdapterType = word(row, "kind")?;
    let checked_at = maybe_at(row, "checked_at")?;
    let last_error: String = row.try_get("check_error")?;
    let deleting = maybe_at(row, "deleting_at")?.is_some();
    let latency: Option<i64> = row.try_get("latency_ms")?;
    Ok(Adapter {
        id: row.try_get("id")?,
        adapter_type,
        name: row.try_get("name")?,
        endpoint: row.try_get("endpoint")?,
        has_auth_token: row.try_get::<Option<Vec<u8>>>("auth_token")?.is_some(),
        config: json(row, "config")?,
        capabilities: json(row, "capabilities")?,
        status: AdapterStatus::of(adapter_type, deleting, checked_at.is_some(), &last_error),
        checked_at,
        latency_ms: latency.and_then(|ms| u32::try_from(ms).ok()),
        last_error,
        created_at: at(row, "created_at")?,
        updated_at: at(row, "updated_at")?,
    })
}

pub(super) async fn one(conn: impl Into<On<'_>>, ws: WorkspaceId, id: i64, what: &'static str) -> Result<KeptAdapter> {
    let row = sql("SELECT * FROM adapters WHERE workspace_id = $1 AND id = $2").bind(ws.0).bind(id);
    let row = or_missing(row.optional(conn).await?, what)?;
    Ok(KeptAdapter { adapter: adapter(&row)?, auth_token: row.try_get("auth_token")? })
}

/// Deletes an adapter whose last rule has ended; whether it was there.
pub(super) async fn remove(conn: &mut Tx, ws: WorkspaceId, id: i64) -> Result<bool> {
    let query = sql("DELETE FROM adapters WHERE workspace_id = $1 AND id = $2").bind(ws.0).bind(id);
    Ok(query.run(conn).await? > 0)
}

/// Refuses to lead rules that are announced elsewhere, or a token that was given for another receiver.
fn check_change(before: &Adapter, new: &CheckedAdapter, token: &SealedChange, live: &[Kept]) -> Result<(), Problem> {
    if before.status == AdapterStatus::Deleting {
        return Err(Problem::field("name", "the adapter of this name is being deleted"));
    }
    let moves = before.endpoint != new.endpoint || before.adapter_type != new.adapter_type;
    if moves && !live.is_empty() {
        let field = if before.endpoint == new.endpoint { "adapter_type" } else { "endpoint" };
        return Err(Problem::field(field, format!("{} rules use the adapter: withdraw them first", live.len())));
    }
    if let Some(kept) = live.iter().find(|kept| !new.config.may_announce(&kept.rule.target_ip)) {
        let target = kept.rule.target_ip;
        return Err(Problem::field("config.prefixes", format!("must contain {target}, which is announced")));
    }
    if moves && before.has_auth_token && *token == SealedChange::Keep {
        return Err(Problem::field("auth_token", "must be given again for another endpoint or type, or be null"));
    }
    Ok(())
}

#[async_trait]
impl Adapters for SqlStore {
    async fn adapters(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Adapter>> {
        let mut tx = self.read().await?;
        let total = sql("SELECT count(*) AS total FROM adapters WHERE workspace_id = $1").bind(ws.0);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let rows = sql("SELECT * FROM adapters WHERE workspace_id = $1 ORDER BY id DESC LIMIT $2 OFFSET $3")
            .bind(ws.0)
            .bind(page.limit)
            .bind(super::count(page.offset))
            .all(&mut tx)
            .await?;
        Ok(Listed { entries: rows.iter().map(adapter).collect::<Result<_>>()?, total })
    }

    async fn adapter(&self, ws: WorkspaceId, id: i64) -> Result<KeptAdapter> {
        one(&self.pools, ws, id, "adapter").await
    }

    async fn save_adapter(
        &self,
        ws: WorkspaceId,
        new: CheckedAdapter,
        token: SealedChange,
        fact: Fact,
    ) -> Result<Adapter> {
        let mut tx = self.write_to(ws).await?;
        let known = sql("SELECT * FROM adapters WHERE workspace_id = $1 AND name = $2")
            .bind(ws.0)
            .bind(&new.name)
            .optional(&mut tx)
            .await?;
        let kept = match &known {
            Some(row) => {
                let before = adapter(row)?;
                let live = live_of_adapter(&mut tx, ws, before.id).await?;
                check_change(&before, &new, &token, &live)?;
                row.try_get::<Option<Vec<u8>>>("auth_token")?
            }
            None => {
                leave_room(&mut tx, ws, "adapters", MAX_ADAPTERS, "name").await?;
                None
            }
        };
        let sealed = match token {
            SealedChange::Keep => kept,
            SealedChange::Remove => None,
            SealedChange::Set(sealed) => Some(sealed),
        };
        // What was known of the other side may be so no longer.
        let row = sql("INSERT INTO adapters (workspace_id, kind, name, endpoint, auth_token, config, capabilities,
                                   created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
             ON CONFLICT (workspace_id, name) DO UPDATE
             SET kind = excluded.kind, endpoint = excluded.endpoint, auth_token = excluded.auth_token,
                 config = excluded.config, capabilities = excluded.capabilities, updated_at = excluded.updated_at,
                 checked_at = NULL, check_error = '', latency_ms = NULL
             RETURNING *")
        .bind(ws.0)
        .bind(new.adapter_type.as_str())
        .bind(&new.name)
        .bind(&new.endpoint)
        .bind(sealed)
        .bind(to_json(&new.config)?)
        .bind(to_json(&new.capabilities)?)
        .bind(fact.at.micros())
        .one(&mut tx)
        .await
        .map_err(|e| unless_taken(e, || "an adapter of this name".to_owned()))?;
        let saved = adapter(&row)?;
        append(&mut tx, ws, fact.on(saved.id)).await?;
        tx.commit().await?;
        Ok(saved)
    }

    async fn note_adapter(&self, ws: WorkspaceId, id: i64, checked: &Checked, fact: Option<Fact>) -> Result<()> {
        let mut tx = if fact.is_some() { self.write_to(ws).await? } else { self.write().await? };
        let latency = checked.error.is_empty().then_some(checked.latency_ms);
        sql("UPDATE adapters SET checked_at = $1, check_error = $2, latency_ms = $3
             WHERE workspace_id = $4 AND id = $5 AND (checked_at IS NULL OR checked_at <= $1)")
        .bind(checked.at.micros())
        .bind(&checked.error)
        .bind(latency)
        .bind(ws.0)
        .bind(id)
        .run(&mut tx)
        .await?;
        if let Some(fact) = fact {
            append(&mut tx, ws, fact).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn delete_adapter(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<Deleted> {
        let mut tx = self.write_to(ws).await?;
        let before = one(&mut tx, ws, id, "adapter").await?.adapter;
        let (mut rules, mut withdrawing) = (Vec::new(), 0);
        for kept in live_of_adapter(&mut tx, ws, id).await? {
            let now = fact.at;
            let ended =
                end_rule(&mut tx, ws, kept, Ending::Withdrawn, "its adapter is deleted", now, &fact.actor).await?;
            withdrawing += u64::from(ended.status.is_live());
            rules.push(ended);
        }
        if withdrawing == 0 {
            remove(&mut tx, ws, id).await?;
        } else {
            sql("UPDATE adapters SET deleting_at = $1, updated_at = $1 WHERE workspace_id = $2 AND id = $3")
                .bind(fact.at.micros())
                .bind(ws.0)
                .bind(id)
                .run(&mut tx)
                .await?;
        }
        append(&mut tx, ws, fact.with(serde_json::json!({ "name": before.name, "withdrawing": withdrawing }))).await?;
        tx.commit().await?;
        Ok(Deleted { withdrawing, rules })
    }
}
