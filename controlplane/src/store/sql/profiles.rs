//! Attack profiles on nodes.

use std::collections::HashSet;

use async_trait::async_trait;
use ftagent_common::api::{Order, ProfileReport, ProfileState, Suite};
use uuid::Uuid;

use super::audits::append;
use super::nodes::leave_order;
use super::staged::check_agent;
use super::transaction::On;
use super::{
    Row, SqlStore, Tx, amount, at, json, maybe_at, node_id, node_ids, number, or_missing, own_node, sql, to_json,
    unexpected, uuid,
};
use crate::domain::{
    Application, ApplicationStatus, Fact, Listed, NewApplication, Page, Problem, ProfileId, Timestamp, Verdict, Word,
    WorkspaceId,
};
use crate::store::{Profiles, Result};

/// With the ends of both orders.
const SELECT: &str = "SELECT a.*, n.uuid AS node, f.status AS first_status, f.ended_at AS first_ended,
        f.error AS first_error, l.status AS last_status, l.ended_at AS last_ended, l.error AS last_error
     FROM profile_applications a JOIN nodes n ON n.id = a.node_id
     LEFT JOIN commands f ON f.uuid = a.command LEFT JOIN commands l ON l.uuid = a.last_command";

const STATES: [ProfileState; 3] = [ProfileState::Confirmed, ProfileState::Lapsed, ProfileState::RolledBack];

fn said(row: &Row, status: &'static str, ended: &'static str) -> Result<Word> {
    let status: Option<String> = row.try_get(status)?;
    Ok(match status.as_deref() {
        Some("applied") => Word::Applied(at(row, ended)?),
        Some("failed" | "expired") => Word::Failed,
        _ => Word::None,
    })
}

fn application(row: &Row, now: Timestamp) -> Result<Application> {
    let unknown = |column| unexpected(column, std::io::Error::other("an unknown word"));
    let (profile, suite): (String, String) = (row.try_get("profile")?, row.try_get("suite")?);
    let decision: String = row.try_get("decision")?;
    let last = said(row, "last_status", "last_ended")?;
    let decision = match decision.as_str() {
        "confirmed" => Some((Verdict::Confirm, last)),
        "rolled_back" => Some((Verdict::RollBack, last)),
        _ => None,
    };
    let confirm_secs = number(row, "confirm_secs")?;
    let told: Option<String> = row.try_get("told")?;
    let told = told.as_deref().and_then(|word| STATES.into_iter().find(|state| state.as_str() == word));
    let first = said(row, "first_status", "first_ended")?;
    let status = ApplicationStatus::of(first, decision, told, confirm_secs, now);
    let errors: [Option<String>; 3] =
        [row.try_get("told_reason")?, row.try_get("last_error")?, row.try_get("first_error")?];
    let mut error = errors.into_iter().flatten().find(|e| !e.is_empty()).unwrap_or_default();
    if status == ApplicationStatus::Failed && error.is_empty() {
        "the node did not answer within a day".clone_into(&mut error);
    }
    Ok(Application {
        id: row.try_get("id")?,
        uuid: uuid(row, "uuid")?,
        node: uuid(row, "node")?,
        profile: ProfileId::from_word(&profile).ok_or_else(|| unknown("profile"))?,
        suite: Suite::ALL.into_iter().find(|s| s.as_str() == suite).ok_or_else(|| unknown("suite"))?,
        custom: json(row, "custom")?,
        status,
        confirm_secs,
        created_at: at(row, "created_at")?,
        decided_at: maybe_at(row, "decided_at")?,
        error,
    })
}

async fn one(on: impl Into<On<'_>>, ws: WorkspaceId, id: i64, now: Timestamp) -> Result<Application> {
    let query = sqlx::AssertSqlSafe(format!("{SELECT} WHERE a.workspace_id = $1 AND a.id = $2"));
    application(&or_missing(sql(query).bind(ws.0).bind(id).optional(on).await?, "application")?, now)
}

/// Refuses nodes that have a profile already, or may have.
async fn check_free(tx: &mut Tx, ws: WorkspaceId, nodes: &HashSet<Uuid>, now: Timestamp) -> Result<()> {
    // The newest of each node: no other can be open.
    let query = sqlx::AssertSqlSafe(format!(
        "{SELECT} WHERE a.workspace_id = $1 AND a.id IN
            (SELECT max(id) FROM profile_applications WHERE workspace_id = $1 GROUP BY node_id)"
    ));
    for row in &sql(query).bind(ws.0).all(tx).await? {
        let known = application(row, now)?;
        if nodes.contains(&known.node) && known.status.is_open() {
            let (id, profile, status) = (known.id, known.profile.as_str(), known.status.as_str());
            let what = format!(
                "a profile on node {} ({profile}, application {id}, {status}): roll it back first; it",
                known.node
            );
            return Err(Problem::AlreadyExists(what).into());
        }
    }
    Ok(())
}

#[async_trait]
impl Profiles for SqlStore {
    async fn apply_profile(&self, ws: WorkspaceId, new: &NewApplication, fact: Fact) -> Result<Vec<Application>> {
        let mut tx = self.write_to(ws).await?;
        let ids = node_ids(&mut tx, ws).await?;
        let wanted: HashSet<Uuid> = match &new.nodes {
            None => ids.keys().copied().collect(),
            Some(nodes) => nodes.iter().copied().collect(),
        };
        if let Some(missing) = wanted.iter().find(|n| !ids.contains_key(n)) {
            return Err(Problem::field("node_ids", format!("there is no node {missing}")).into());
        }
        if wanted.is_empty() {
            return Err(Problem::field("node_ids", "the workspace has no nodes").into());
        }
        check_free(&mut tx, ws, &wanted, fact.at).await?;
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        wanted.sort_unstable();
        let mut made = Vec::new();
        for node in wanted {
            check_agent(&mut tx, ws, node).await?;
            let uuid = Uuid::new_v4();
            let command = leave_order(&mut tx, ids[&node], &new.order(uuid), fact.at).await?;
            let id: i64 = sql("INSERT INTO profile_applications (workspace_id, node_id, uuid, profile, suite, custom,
                                       decision, confirm_secs, created_at, command)
                 VALUES ($1, $2, $3, $4, $5, $6, 'none', $7, $8, $9) RETURNING id")
            .bind(ws.0)
            .bind(ids[&node])
            .bind(uuid.to_string())
            .bind(new.profile.as_str())
            .bind(new.suite.as_str())
            .bind(to_json(&new.custom)?)
            .bind(new.confirm_secs)
            .bind(fact.at.micros())
            .bind(command.command_id.to_string())
            .scalar(&mut tx)
            .await?;
            made.push(one(&mut tx, ws, id, fact.at).await?);
        }
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(made)
    }

    async fn note_profile(&self, node: Uuid, report: &ProfileReport, fact: Fact) -> Result<bool> {
        let mut tx = self.write().await?;
        let ws = own_node(&mut tx, node, "application").await?;
        let row = sql("SELECT a.id, a.told FROM profile_applications a JOIN nodes n ON n.id = a.node_id
             WHERE n.uuid = $1 AND a.uuid = $2")
        .bind(node.to_string())
        .bind(report.application.to_string())
        .optional(&mut tx)
        .await?;
        let row = or_missing(row, "application")?;
        let known: Option<String> = row.try_get("told")?;
        if known.as_deref() == Some(report.state.as_str()) {
            return Ok(false);
        }
        sql("UPDATE profile_applications SET told = $1, told_reason = $2, told_at = $3 WHERE id = $4")
            .bind(report.state.as_str())
            .bind(&report.reason)
            .bind(fact.at.micros())
            .bind(row.try_get::<i64>("id")?)
            .run(&mut tx)
            .await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn applications(
        &self,
        ws: WorkspaceId,
        node: Option<Uuid>,
        page: Page,
        now: Timestamp,
    ) -> Result<Listed<Application>> {
        let mut tx = self.read().await?;
        if let Some(node) = node {
            node_id(&mut tx, ws, node).await?;
        }
        let node = node.map(|n| n.to_string());
        let total = sql("SELECT count(*) AS total FROM profile_applications a JOIN nodes n ON n.id = a.node_id
             WHERE a.workspace_id = $1 AND ($2 IS NULL OR n.uuid = $2)");
        let total = amount(&total.bind(ws.0).bind(&node).one(&mut tx).await?, "total")?;
        let query = sqlx::AssertSqlSafe(format!(
            "{SELECT} WHERE a.workspace_id = $1 AND ($2 IS NULL OR n.uuid = $2) ORDER BY a.id DESC LIMIT $3 OFFSET $4"
        ));
        let rows =
            sql(query).bind(ws.0).bind(&node).bind(page.limit).bind(super::count(page.offset)).all(&mut tx).await?;
        Ok(Listed { entries: rows.iter().map(|row| application(row, now)).collect::<Result<_>>()?, total })
    }

    async fn application(&self, ws: WorkspaceId, id: i64, now: Timestamp) -> Result<Application> {
        one(&self.pools, ws, id, now).await
    }

    async fn decide_application(&self, ws: WorkspaceId, id: i64, verdict: Verdict, fact: Fact) -> Result<Application> {
        let mut tx = self.write_to(ws).await?;
        let known = one(&mut tx, ws, id, fact.at).await?;
        if !known.status.takes(verdict) {
            let what = format!("an end of application {id} ({}) or a decision on it", known.status.as_str());
            return Err(Problem::AlreadyExists(what).into());
        }
        let (word, order) = match verdict {
            Verdict::Confirm => ("confirmed", Order::ConfirmProfile { application: known.uuid }),
            Verdict::RollBack => ("rolled_back", Order::RollBackProfile { application: known.uuid }),
        };
        let node = node_id(&mut tx, ws, known.node).await?;
        let command = leave_order(&mut tx, node, &order, fact.at).await?;
        sql("UPDATE profile_applications SET decision = $1, decided_at = $2, last_command = $3 WHERE id = $4")
            .bind(word)
            .bind(fact.at.micros())
            .bind(command.command_id.to_string())
            .bind(id)
            .run(&mut tx)
            .await?;
        let now = fact.at;
        append(&mut tx, ws, fact).await?;
        let decided = one(&mut tx, ws, id, now).await?;
        tx.commit().await?;
        Ok(decided)
    }
}
