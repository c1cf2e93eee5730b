//! Scrubbing integrations.

use async_trait::async_trait;

use super::audits::append;
use super::transaction::On;
use super::{Row, SqlStore, amount, at, json, leave_room, or_missing, sql, to_json, unless_taken, word};
use crate::domain::{Fact, Listed, NewScrubbing, Page, Scrubbing, ScrubbingPatch, ScrubbingStatus, WorkspaceId};
use crate::store::{Result, Scrubbings, SealedChange};

/// The most integrations of a workspace.
const MAX_SCRUBBINGS: i64 = 100;

fn scrubbing(row: &Row) -> Result<Scrubbing> {
    Ok(Scrubbing {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        provider: word(row, "provider")?,
        prefixes: json(row, "prefixes")?,
        has_credentials: row.try_get::<Option<Vec<u8>>>("credentials")?.is_some(),
        status: ScrubbingStatus::NotConnected,
        created_at: at(row, "created_at")?,
        updated_at: at(row, "updated_at")?,
    })
}

pub(super) async fn one(conn: impl Into<On<'_>>, ws: WorkspaceId, id: i64) -> Result<Row> {
    let row = sql("SELECT * FROM scrubbing WHERE workspace_id = $1 AND id = $2").bind(ws.0).bind(id);
    or_missing(row.optional(conn).await?, "scrubbing integration")
}

#[async_trait]
impl Scrubbings for SqlStore {
    async fn scrubbings(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Scrubbing>> {
        let mut tx = self.read().await?;
        let total = sql("SELECT count(*) AS total FROM scrubbing WHERE workspace_id = $1").bind(ws.0);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let rows = sql("SELECT * FROM scrubbing WHERE workspace_id = $1 ORDER BY id DESC LIMIT $2 OFFSET $3")
            .bind(ws.0)
            .bind(page.limit)
            .bind(super::count(page.offset))
            .all(&mut tx)
            .await?;
        Ok(Listed { entries: rows.iter().map(scrubbing).collect::<Result<_>>()?, total })
    }

    async fn scrubbing(&self, ws: WorkspaceId, id: i64) -> Result<Scrubbing> {
        scrubbing(&one(&self.pools, ws, id).await?)
    }

    async fn create_scrubbing(
        &self,
        ws: WorkspaceId,
        new: NewScrubbing,
        credentials: Vec<u8>,
        fact: Fact,
    ) -> Result<Scrubbing> {
        let mut tx = self.write_to(ws).await?;
        leave_room(&mut tx, ws, "scrubbing", MAX_SCRUBBINGS, "name").await?;
        let row =
            sql("INSERT INTO scrubbing (workspace_id, name, provider, credentials, prefixes, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $6) RETURNING *")
            .bind(ws.0)
            .bind(&new.name)
            .bind(new.provider.as_str())
            .bind(credentials)
            .bind(to_json(&new.prefixes)?)
            .bind(fact.at.micros())
            .one(&mut tx)
            .await
            .map_err(|e| unless_taken(e, || "a scrubbing integration of this name".to_owned()))?;
        let made = scrubbing(&row)?;
        append(&mut tx, ws, fact.on(made.id)).await?;
        tx.commit().await?;
        Ok(made)
    }

    async fn patch_scrubbing(
        &self,
        ws: WorkspaceId,
        id: i64,
        patch: ScrubbingPatch,
        credentials: SealedChange,
        fact: Fact,
    ) -> Result<Scrubbing> {
        let mut tx = self.write_to(ws).await?;
        let row = one(&mut tx, ws, id).await?;
        let new = patch.applied_to(&scrubbing(&row)?).check()?;
        let sealed = match credentials {
            SealedChange::Keep => row.try_get::<Option<Vec<u8>>>("credentials")?,
            SealedChange::Remove => None,
            SealedChange::Set(sealed) => Some(sealed),
        };
        let row = sql("UPDATE scrubbing SET name = $1, prefixes = $2, credentials = $3, updated_at = $4
             WHERE workspace_id = $5 AND id = $6 RETURNING *")
        .bind(&new.name)
        .bind(to_json(&new.prefixes)?)
        .bind(sealed)
        .bind(fact.at.micros())
        .bind(ws.0)
        .bind(id)
        .one(&mut tx)
        .await
        .map_err(|e| unless_taken(e, || "a scrubbing integration of this name".to_owned()))?;
        let saved = scrubbing(&row)?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(saved)
    }

    async fn delete_scrubbing(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<()> {
        let mut tx = self.write_to(ws).await?;
        let before = scrubbing(&one(&mut tx, ws, id).await?)?;
        sql("DELETE FROM scrubbing WHERE workspace_id = $1 AND id = $2").bind(ws.0).bind(id).run(&mut tx).await?;
        let detail = serde_json::json!({ "name": before.name, "provider": before.provider });
        append(&mut tx, ws, fact.with(detail)).await?;
        Ok(tx.commit().await?)
    }
}
