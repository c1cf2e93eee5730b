//! Thresholds of single hosts.

use async_trait::async_trait;

use super::audits::append;
use super::{Row, SqlStore, Tx, advance_shared, amount, at, json, leave_room, or_missing, sql, to_json, word};
use crate::domain::{Fact, Listed, NewThreshold, Page, Threshold, WorkspaceId};
use crate::store::{Changed, Result, Thresholds};

/// The most thresholds of a workspace.
const MAX_THRESHOLDS: i64 = 10_000;

fn threshold(row: &Row) -> Result<Threshold> {
    Ok(Threshold {
        id: row.try_get("id")?,
        target_ip: word(row, "target")?,
        label: row.try_get("label")?,
        thresholds: json(row, "thresholds")?,
        created_at: at(row, "created_at")?,
        updated_at: at(row, "updated_at")?,
    })
}

/// Every threshold of a workspace, oldest first.
pub(super) async fn of_workspace(conn: &mut Tx, ws: WorkspaceId) -> Result<Vec<Threshold>> {
    let rows = sql("SELECT * FROM thresholds WHERE workspace_id = $1 ORDER BY id").bind(ws.0).all(conn).await?;
    rows.iter().map(threshold).collect()
}

#[async_trait]
impl Thresholds for SqlStore {
    async fn thresholds(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Threshold>> {
        let mut tx = self.read().await?;
        let total = sql("SELECT count(*) AS total FROM thresholds WHERE workspace_id = $1").bind(ws.0);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let rows = sql("SELECT * FROM thresholds WHERE workspace_id = $1 ORDER BY id DESC LIMIT $2 OFFSET $3")
            .bind(ws.0)
            .bind(page.limit)
            .bind(super::count(page.offset))
            .all(&mut tx)
            .await?;
        Ok(Listed { entries: rows.iter().map(threshold).collect::<Result<_>>()?, total })
    }

    async fn save_threshold(&self, ws: WorkspaceId, new: NewThreshold, fact: Fact) -> Result<(Threshold, Changed)> {
        let mut tx = self.write_to(ws).await?;
        let known: i64 = sql("SELECT count(*) FROM thresholds WHERE workspace_id = $1 AND target = $2")
            .bind(ws.0)
            .bind(new.target.to_string())
            .scalar(&mut tx)
            .await?;
        if known == 0 {
            leave_room(&mut tx, ws, "thresholds", MAX_THRESHOLDS, "target_ip").await?;
        }
        let row = sql("INSERT INTO thresholds (workspace_id, target, label, thresholds, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $5)
             ON CONFLICT (workspace_id, target) DO UPDATE
             SET label = excluded.label, thresholds = excluded.thresholds, updated_at = excluded.updated_at
             RETURNING *")
        .bind(ws.0)
        .bind(new.target.to_string())
        .bind(&new.label)
        .bind(to_json(&new.thresholds)?)
        .bind(fact.at.micros())
        .one(&mut tx)
        .await?;
        let saved = threshold(&row)?;
        let changed = advance_shared(&mut tx, ws).await?;
        append(&mut tx, ws, fact.on(saved.id)).await?;
        tx.commit().await?;
        Ok((saved, changed))
    }

    async fn delete_threshold(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<Changed> {
        let mut tx = self.write_to(ws).await?;
        let target: Option<String> = sql("DELETE FROM thresholds WHERE workspace_id = $1 AND id = $2 RETURNING target")
            .bind(ws.0)
            .bind(id)
            .optional_scalar(&mut tx)
            .await?;
        let target = or_missing(target, "threshold")?;
        let changed = advance_shared(&mut tx, ws).await?;
        append(&mut tx, ws, fact.with(serde_json::json!({ "target_ip": target }))).await?;
        tx.commit().await?;
        Ok(changed)
    }
}
