//! The allowlist.

use async_trait::async_trait;
use uuid::Uuid;

use super::audits::append;
use super::transaction::On;
use super::{
    Row, SqlStore, Tx, advance, advance_shared, amount, at, leave_room, node_id, or_missing, sql, unless_taken, word,
};
use crate::domain::{AllowlistEntry, AllowlistScope, Fact, Listed, NewAllowlistEntry, Page, Problem, WorkspaceId};
use crate::store::{Allowlist, Changed, Result, StoreError};

/// Which entries are meant: all of the workspace, or with a node's uuid those that hold on it.
const WHERE: &str = "FROM allowlist a LEFT JOIN nodes n ON n.id = a.node_id
     WHERE a.workspace_id = $1 AND ($2 IS NULL OR a.node_id IS NULL OR n.uuid = $2)";

/// The most allowlist entries of a workspace.
const MAX_ENTRIES: i64 = 10_000;

fn entry(row: &Row) -> Result<AllowlistEntry> {
    let node: Option<String> = row.try_get("node")?;
    let node = node.map(|text| text.parse().map_err(|e| super::unexpected("node", e))).transpose()?;
    Ok(AllowlistEntry {
        id: row.try_get("id")?,
        ip_address: word(row, "prefix")?,
        label: row.try_get("label")?,
        scope: if node.is_some() { AllowlistScope::Node } else { AllowlistScope::Workspace },
        node,
        created_at: at(row, "created_at")?,
    })
}

/// What holds on a node, oldest first.
pub(super) async fn of_node(conn: &mut Tx, ws: WorkspaceId, node: Uuid) -> Result<Vec<AllowlistEntry>> {
    let query = sqlx::AssertSqlSafe(format!("SELECT a.*, n.uuid AS node {WHERE} ORDER BY a.id"));
    let rows = sql(query).bind(ws.0).bind(node.to_string()).all(conn).await?;
    rows.iter().map(entry).collect()
}

/// What holds on any node, oldest first, as the transaction sees it.
pub(super) async fn all(on: impl Into<On<'_>>, ws: WorkspaceId) -> Result<Vec<AllowlistEntry>> {
    let query = sqlx::AssertSqlSafe(format!("SELECT a.*, n.uuid AS node {WHERE} ORDER BY a.id"));
    let rows = sql(query).bind(ws.0).bind(None::<String>).all(on).await?;
    rows.iter().map(entry).collect()
}

#[async_trait]
impl Allowlist for SqlStore {
    async fn allowlist(&self, ws: WorkspaceId, node: Option<Uuid>, page: Page) -> Result<Listed<AllowlistEntry>> {
        let mut tx = self.read().await?;
        if let Some(node) = node {
            node_id(&mut tx, ws, node).await?;
        }
        let node = node.map(|n| n.to_string());
        let query = sqlx::AssertSqlSafe(format!("SELECT count(*) AS total {WHERE}"));
        let total = amount(&sql(query).bind(ws.0).bind(&node).one(&mut tx).await?, "total")?;
        let query =
            sqlx::AssertSqlSafe(format!("SELECT a.*, n.uuid AS node {WHERE} ORDER BY a.id DESC LIMIT $3 OFFSET $4"));
        let rows =
            sql(query).bind(ws.0).bind(&node).bind(page.limit).bind(super::count(page.offset)).all(&mut tx).await?;
        Ok(Listed { entries: rows.iter().map(entry).collect::<Result<_>>()?, total })
    }

    async fn all_allowed(&self, ws: WorkspaceId) -> Result<Vec<AllowlistEntry>> {
        all(&self.pools, ws).await
    }

    async fn allow(&self, ws: WorkspaceId, new: NewAllowlistEntry, fact: Fact) -> Result<(AllowlistEntry, Changed)> {
        let mut tx = self.write_to(ws).await?;
        leave_room(&mut tx, ws, "allowlist", MAX_ENTRIES, "ip_address").await?;
        let node_number = match new.node {
            None => None,
            Some(node) => Some(node_id(&mut tx, ws, node).await.map_err(|e| match e {
                StoreError::Problem(Problem::NotFound(_)) => Problem::field("node", "there is no such node").into(),
                other => other,
            })?),
        };
        let id: i64 =
            sql("INSERT INTO allowlist (workspace_id, prefix, label, node_id, created_at) VALUES ($1, $2, $3, $4, $5)
             RETURNING id")
            .bind(ws.0)
            .bind(new.prefix.to_string())
            .bind(&new.label)
            .bind(node_number)
            .bind(fact.at.micros())
            .scalar(&mut tx)
            .await
            .map_err(|e| unless_taken(e, || format!("an allowlist entry for {} in this scope", new.prefix)))?;
        let changed = match node_number {
            Some(node) => advance(&mut tx, ws, &[node]).await?,
            None => advance_shared(&mut tx, ws).await?,
        };
        let entry = AllowlistEntry {
            id,
            ip_address: new.prefix,
            label: new.label,
            scope: if new.node.is_some() { AllowlistScope::Node } else { AllowlistScope::Workspace },
            node: new.node,
            created_at: fact.at,
        };
        append(&mut tx, ws, fact.on(id)).await?;
        tx.commit().await?;
        Ok((entry, changed))
    }

    async fn disallow(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<Changed> {
        let mut tx = self.write_to(ws).await?;
        let row = sql("DELETE FROM allowlist WHERE workspace_id = $1 AND id = $2 RETURNING prefix, node_id")
            .bind(ws.0)
            .bind(id)
            .optional(&mut tx)
            .await?;
        let row = or_missing(row, "allowlist entry")?;
        let changed = match row.try_get::<Option<i64>>("node_id")? {
            Some(node) => advance(&mut tx, ws, &[node]).await?,
            None => advance_shared(&mut tx, ws).await?,
        };
        let prefix: String = row.try_get("prefix")?;
        append(&mut tx, ws, fact.with(serde_json::json!({ "ip_address": prefix }))).await?;
        tx.commit().await?;
        Ok(changed)
    }
}
