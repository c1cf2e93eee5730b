//! Firewall rules.

use std::collections::BTreeSet;

use async_trait::async_trait;
use uuid::Uuid;

use super::audits::append;
use super::look::places;
use super::transaction::On;
use super::{
    Row, SqlStore, Tx, advance, advance_shared, amount, at, json, leave_room, number, or_missing, sql, to_json,
    unless_taken, uuid,
};
use crate::domain::{Execution, Fact, Listed, NewRule, Page, Problem, Rule, RuleScope, Timestamp, WorkspaceId};
use crate::store::{Changed, Edit, Result, Rules};

/// The most firewall rules of a workspace.
const MAX_RULES: i64 = 1_000;
/// Bytes of the actions of all of them together, as JSON: a node gets them all at once, and takes 8 MiB.
const MAX_ACTION_BYTES: u64 = 7 * 1_048_576;

/// Refuses actions that are too long together, with the one just written.
async fn leave_room_for_actions(tx: &mut Tx, ws: WorkspaceId) -> Result<()> {
    let row =
        sql("SELECT CAST(coalesce(sum(length(action_json)), 0) AS BIGINT) AS bytes FROM rules WHERE workspace_id = $1")
            .bind(ws.0);
    let bytes = amount(&row.one(tx).await?, "bytes")?;
    if bytes <= MAX_ACTION_BYTES {
        return Ok(());
    }
    let message = format!(
        "the actions of the workspace's rules would have {bytes} bytes of JSON, {MAX_ACTION_BYTES} is the most: name fewer \
         sources, or prefixes instead of addresses"
    );
    Err(Problem::field("action.sources", message).into())
}

fn rule(row: &Row) -> Result<Rule> {
    let new = NewRule {
        name: row.try_get("name")?,
        trigger: json(row, "trigger_json")?,
        action: json(row, "action_json")?,
        scope: json(row, "scope_json")?,
        cooldown_minutes: number(row, "cooldown_minutes")?,
        enabled: row.try_get("enabled")?,
    };
    Ok(Rule {
        id: row.try_get("id")?,
        warnings: new.warnings(),
        name: new.name,
        trigger: new.trigger,
        action: new.action,
        scope: new.scope,
        cooldown_minutes: new.cooldown_minutes,
        enabled: new.enabled,
        created_at: at(row, "created_at")?,
        updated_at: at(row, "updated_at")?,
    })
}

/// The enabled rules of a workspace, oldest first.
pub(super) async fn enabled(conn: &mut Tx, ws: WorkspaceId) -> Result<Vec<Rule>> {
    let rows = sql("SELECT * FROM rules WHERE workspace_id = $1 AND enabled ORDER BY id").bind(ws.0).all(conn).await?;
    rows.iter().map(rule).collect()
}

async fn one(conn: impl Into<On<'_>>, ws: WorkspaceId, id: i64) -> Result<Rule> {
    let row = sql("SELECT * FROM rules WHERE workspace_id = $1 AND id = $2").bind(ws.0).bind(id).optional(conn).await?;
    rule(&or_missing(row, "rule")?)
}

/// Refuses a scope that names what is no node of the workspace.
async fn check_scope(conn: &mut Tx, ws: WorkspaceId, scope: &RuleScope) -> Result<()> {
    let RuleScope::Nodes { nodes } = scope else { return Ok(()) };
    let places = places(conn, &nodes.iter().copied().collect::<Vec<_>>()).await?;
    match nodes.iter().find(|n| places.get(n).is_none_or(|place| place.workspace != ws)) {
        Some(missing) => Err(Problem::field("scope.nodes", format!("there is no node {missing}")).into()),
        None => Ok(()),
    }
}

/// Advances the nodes that any of the scopes covers.
async fn advance_scopes(conn: &mut Tx, ws: WorkspaceId, scopes: &[&RuleScope]) -> Result<Changed> {
    let mut named = BTreeSet::new();
    for scope in scopes {
        match scope {
            RuleScope::All {} => return advance_shared(conn, ws).await,
            RuleScope::Nodes { nodes } => named.extend(nodes.iter().copied()),
        }
    }
    // In one order: two changes of the same nodes wait for each other. Some may be gone since the rule was made.
    let named: Vec<Uuid> = named.into_iter().collect();
    let places = places(&mut *conn, &named).await?;
    let there = named.iter().filter_map(|node| places.get(node)).filter(|place| place.workspace == ws);
    advance(conn, ws, &there.map(|place| place.id).collect::<Vec<_>>()).await
}

/// Puts a rule in or out of force, in the transaction of what led to it; none changed if it was so already.
pub(super) async fn switch(
    tx: &mut Tx,
    ws: WorkspaceId,
    id: i64,
    enabled: bool,
    now: Timestamp,
) -> Result<(Rule, Option<Changed>)> {
    let before = one(&mut *tx, ws, id).await?;
    if before.enabled == enabled {
        return Ok((before, None));
    }
    sql("UPDATE rules SET enabled = $1, updated_at = $2 WHERE workspace_id = $3 AND id = $4")
        .bind(enabled)
        .bind(now.micros())
        .bind(ws.0)
        .bind(id)
        .run(&mut *tx)
        .await?;
    let changed = advance_scopes(tx, ws, &[&before.scope]).await?;
    Ok((one(tx, ws, id).await?, Some(changed)))
}

#[async_trait]
impl Rules for SqlStore {
    async fn rules(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Rule>> {
        let mut tx = self.read().await?;
        let total = sql("SELECT count(*) AS total FROM rules WHERE workspace_id = $1").bind(ws.0);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let rows = sql("SELECT * FROM rules WHERE workspace_id = $1 ORDER BY id DESC LIMIT $2 OFFSET $3")
            .bind(ws.0)
            .bind(page.limit)
            .bind(super::count(page.offset))
            .all(&mut tx)
            .await?;
        Ok(Listed { entries: rows.iter().map(rule).collect::<Result<_>>()?, total })
    }

    async fn rule(&self, ws: WorkspaceId, id: i64) -> Result<Rule> {
        one(&self.pools, ws, id).await
    }

    async fn create_rule(&self, ws: WorkspaceId, new: NewRule, fact: Fact) -> Result<(Rule, Changed)> {
        let mut tx = self.write_to(ws).await?;
        leave_room(&mut tx, ws, "rules", MAX_RULES, "name").await?;
        check_scope(&mut tx, ws, &new.scope).await?;
        let row = sql(
            "INSERT INTO rules (workspace_id, name, trigger_json, action_json, scope_json, cooldown_minutes, enabled,
                                created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8) RETURNING *",
        )
        .bind(ws.0)
        .bind(&new.name)
        .bind(to_json(&new.trigger)?)
        .bind(to_json(&new.action)?)
        .bind(to_json(&new.scope)?)
        .bind(new.cooldown_minutes)
        .bind(new.enabled)
        .bind(fact.at.micros())
        .one(&mut tx)
        .await
        .map_err(|e| unless_taken(e, || "a rule of this name".to_owned()))?;
        leave_room_for_actions(&mut tx, ws).await?;
        let rule = rule(&row)?;
        let changed = if new.enabled { advance_scopes(&mut tx, ws, &[&new.scope]).await? } else { Changed::none() };
        append(&mut tx, ws, fact.on(rule.id)).await?;
        tx.commit().await?;
        Ok((rule, changed))
    }

    async fn edit_rule(&self, ws: WorkspaceId, id: i64, edit: Edit<'_>, fact: Fact) -> Result<(Rule, Changed)> {
        let mut tx = self.write_to(ws).await?;
        let before = one(&mut tx, ws, id).await?;
        let new = edit(&before)?;
        if new.scope != before.scope {
            check_scope(&mut tx, ws, &new.scope).await?;
        }
        let row = sql(
            "UPDATE rules SET name = $1, trigger_json = $2, action_json = $3, scope_json = $4, cooldown_minutes = $5,
                    enabled = $6, updated_at = $7
             WHERE workspace_id = $8 AND id = $9 RETURNING *",
        )
        .bind(&new.name)
        .bind(to_json(&new.trigger)?)
        .bind(to_json(&new.action)?)
        .bind(to_json(&new.scope)?)
        .bind(new.cooldown_minutes)
        .bind(new.enabled)
        .bind(fact.at.micros())
        .bind(ws.0)
        .bind(id)
        .one(&mut tx)
        .await
        .map_err(|e| unless_taken(e, || "a rule of this name".to_owned()))?;
        if new.action != before.action {
            leave_room_for_actions(&mut tx, ws).await?;
        }
        let rule = rule(&row)?;
        let mut scopes = Vec::new();
        if before.enabled {
            scopes.push(&before.scope);
        }
        if rule.enabled {
            scopes.push(&rule.scope);
        }
        let changed = advance_scopes(&mut tx, ws, &scopes).await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok((rule, changed))
    }

    async fn delete_rule(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<Changed> {
        let mut tx = self.write_to(ws).await?;
        let before = one(&mut tx, ws, id).await?;
        sql("DELETE FROM rules WHERE workspace_id = $1 AND id = $2").bind(ws.0).bind(id).run(&mut tx).await?;
        let changed =
            if before.enabled { advance_scopes(&mut tx, ws, &[&before.scope]).await? } else { Changed::none() };
        append(&mut tx, ws, fact.with(serde_json::json!({ "name": before.name }))).await?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn executions(&self, ws: WorkspaceId, rule: i64, page: Page) -> Result<Listed<Execution>> {
        let mut tx = self.read().await?;
        one(&mut tx, ws, rule).await?;
        let total = sql("SELECT count(*) AS total FROM executions WHERE workspace_id = $1 AND rule_id = $2")
            .bind(ws.0)
            .bind(rule);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let rows = sql("SELECT node_uuid, execution FROM executions WHERE workspace_id = $1 AND rule_id = $2
             ORDER BY at DESC, id DESC LIMIT $3 OFFSET $4")
        .bind(ws.0)
        .bind(rule)
        .bind(page.limit)
        .bind(super::count(page.offset))
        .all(&mut tx)
        .await?;
        Ok(Listed { entries: rows.iter().map(execution).collect::<Result<_>>()?, total })
    }
}

pub(super) fn execution(row: &Row) -> Result<Execution> {
    Ok(Execution { node: uuid(row, "node_uuid")?, execution: json(row, "execution")? })
}
