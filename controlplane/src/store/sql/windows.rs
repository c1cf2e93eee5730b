//! Maintenance windows.

use async_trait::async_trait;
use uuid::Uuid;

use super::audits::append;
use super::transaction::On;
use super::{Row, SqlStore, Tx, amount, at, count, json, node_id, or_missing, sql, to_json, unexpected};
use crate::domain::{Fact, Listed, MaintenanceWindow, NewWindow, Page, Problem, Timestamp, WorkspaceId, held_until};
use crate::store::{EditWindow, Result, StoreError, Windows};

/// The most windows of a workspace: each message looks at all of them.
const MAX_WINDOWS: i64 = 500;

/// Which windows are meant: all of the workspace, or with a node's uuid those that hold for it.
const WHERE: &str = "FROM maintenance_windows m LEFT JOIN nodes n ON n.id = m.node_id
     WHERE m.workspace_id = $1 AND ($2 IS NULL OR m.node_id IS NULL OR n.uuid = $2)";

fn window(row: &Row) -> Result<MaintenanceWindow> {
    let node: Option<String> = row.try_get("node")?;
    Ok(MaintenanceWindow {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        node: node.map(|text| text.parse().map_err(|e| unexpected("node", e))).transpose()?,
        schedule: json(row, "schedule")?,
        enabled: row.try_get("enabled")?,
        created_at: at(row, "created_at")?,
        updated_at: at(row, "updated_at")?,
    })
}

async fn one(on: impl Into<On<'_>>, ws: WorkspaceId, id: i64) -> Result<MaintenanceWindow> {
    let row = sql("SELECT m.*, n.uuid AS node FROM maintenance_windows m LEFT JOIN nodes n ON n.id = m.node_id
         WHERE m.workspace_id = $1 AND m.id = $2")
    .bind(ws.0)
    .bind(id)
    .optional(on)
    .await?;
    window(&or_missing(row, "maintenance window")?)
}

/// The enabled windows of a workspace.
async fn enabled(on: impl Into<On<'_>>, ws: WorkspaceId) -> Result<Vec<MaintenanceWindow>> {
    let query = sqlx::AssertSqlSafe(format!("SELECT m.*, n.uuid AS node {WHERE} AND m.enabled ORDER BY m.id"));
    let rows = sql(query).bind(ws.0).bind(None::<String>).all(on).await?;
    rows.iter().map(window).collect()
}

/// Until when what is told of `node` is held.
pub(super) async fn held(tx: &mut Tx, ws: WorkspaceId, node: Uuid, now: Timestamp) -> Result<Option<Timestamp>> {
    Ok(held_until(&enabled(tx, ws).await?, Some(node), now))
}

#[async_trait]
impl Windows for SqlStore {
    async fn windows(&self, ws: WorkspaceId, node: Option<Uuid>, page: Page) -> Result<Listed<MaintenanceWindow>> {
        let mut tx = self.read().await?;
        if let Some(node) = node {
            node_id(&mut tx, ws, node).await?;
        }
        let node = node.map(|n| n.to_string());
        let query = sqlx::AssertSqlSafe(format!("SELECT count(*) AS total {WHERE}"));
        let total = amount(&sql(query).bind(ws.0).bind(&node).one(&mut tx).await?, "total")?;
        let query =
            sqlx::AssertSqlSafe(format!("SELECT m.*, n.uuid AS node {WHERE} ORDER BY m.id DESC LIMIT $3 OFFSET $4"));
        let rows = sql(query).bind(ws.0).bind(&node).bind(page.limit).bind(count(page.offset)).all(&mut tx).await?;
        Ok(Listed { entries: rows.iter().map(window).collect::<Result<_>>()?, total })
    }

    async fn all_windows(&self, ws: WorkspaceId) -> Result<Vec<MaintenanceWindow>> {
        enabled(&self.pools, ws).await
    }

    async fn window(&self, ws: WorkspaceId, id: i64) -> Result<MaintenanceWindow> {
        one(&self.pools, ws, id).await
    }

    async fn create_window(&self, ws: WorkspaceId, new: NewWindow, fact: Fact) -> Result<MaintenanceWindow> {
        let mut tx = self.write_to(ws).await?;
        let held: i64 =
            sql("SELECT count(*) FROM maintenance_windows WHERE workspace_id = $1").bind(ws.0).scalar(&mut tx).await?;
        if held >= MAX_WINDOWS {
            let message = format!("the workspace has {held} maintenance windows already: delete those that are over");
            return Err(Problem::field("name", message).into());
        }
        let node = match new.node {
            None => None,
            Some(node) => Some(node_id(&mut tx, ws, node).await.map_err(|e| match e {
                StoreError::Problem(Problem::NotFound(_)) => Problem::field("node", "there is no such node").into(),
                other => other,
            })?),
        };
        let id: i64 =
            sql("INSERT INTO maintenance_windows (workspace_id, node_id, name, schedule, enabled, created_at,
                                                  updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $6) RETURNING id")
            .bind(ws.0)
            .bind(node)
            .bind(&new.name)
            .bind(to_json(&new.schedule)?)
            .bind(new.enabled)
            .bind(fact.at.micros())
            .scalar(&mut tx)
            .await?;
        let window = one(&mut tx, ws, id).await?;
        append(&mut tx, ws, fact.on(id)).await?;
        tx.commit().await?;
        Ok(window)
    }

    async fn edit_window(
        &self,
        ws: WorkspaceId,
        id: i64,
        edit: EditWindow<'_>,
        fact: Fact,
    ) -> Result<MaintenanceWindow> {
        let mut tx = self.write_to(ws).await?;
        let new = edit(&one(&mut tx, ws, id).await?)?;
        sql("UPDATE maintenance_windows SET name = $1, schedule = $2, enabled = $3, updated_at = $4
             WHERE workspace_id = $5 AND id = $6")
        .bind(&new.name)
        .bind(to_json(&new.schedule)?)
        .bind(new.enabled)
        .bind(fact.at.micros())
        .bind(ws.0)
        .bind(id)
        .run(&mut tx)
        .await?;
        let window = one(&mut tx, ws, id).await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(window)
    }

    async fn delete_window(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<()> {
        let mut tx = self.write_to(ws).await?;
        let before = one(&mut tx, ws, id).await?;
        sql("DELETE FROM maintenance_windows WHERE workspace_id = $1 AND id = $2")
            .bind(ws.0)
            .bind(id)
            .run(&mut tx)
            .await?;
        append(&mut tx, ws, fact.with(serde_json::json!({ "name": before.name }))).await?;
        Ok(tx.commit().await?)
    }
}
