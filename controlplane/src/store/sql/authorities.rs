//! Roots of the built-in authority, and the certificates of nodes.

use async_trait::async_trait;
use ftagent_common::api::Trust;
use uuid::Uuid;

use super::audits::append;
use super::transaction::On;
use super::{
    Query, Row, SqlStore, Tx, advance, advance_shared, at, hash, maybe_at, node_id, or_missing, own_node, revise, sql,
    unless_taken, uuid, word,
};
use crate::domain::{
    CERTIFICATES_A_DAY, Fact, Fingerprint, NodeCertificate, Problem, Root, RootState, TRUSTED_ROOTS, Timestamp,
    WorkspaceId,
};
use crate::pki::pem;
use crate::store::{Authorities, Changed, NewCertificate, NewRoot, Result};

/// The names of nodes that a refusal lists.
const NAMES: usize = 10;

const CERTIFICATES: &str = "SELECT c.*, n.uuid AS node_uuid, n.name AS node_name, a.name AS root, a.state AS root_state
    FROM certificates c JOIN nodes n ON n.id = c.node_id JOIN authorities a ON a.id = c.authority_id";

fn root(row: &Row) -> Result<Root> {
    Ok(Root {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        state: state(row, "state")?,
        certificate: row.try_get("certificate")?,
        fingerprint: Fingerprint(hash(row, "fingerprint")?),
        sealed_key: row.try_get("sealed_key")?,
        created_at: at(row, "created_at")?,
        not_after: at(row, "not_after")?,
    })
}

pub(super) fn state(row: &Row, column: &'static str) -> Result<RootState> {
    word(row, column)
}

fn certificate(row: &Row) -> Result<NodeCertificate> {
    Ok(NodeCertificate {
        id: row.try_get("id")?,
        node: uuid(row, "node_uuid")?,
        node_name: row.try_get("node_name")?,
        root: row.try_get("root")?,
        root_state: state(row, "root_state")?,
        serial: row.try_get("serial")?,
        not_before: at(row, "not_before")?,
        not_after: at(row, "not_after")?,
        issued_at: at(row, "issued_at")?,
        revoked_at: maybe_at(row, "revoked_at")?,
    })
}

/// The roots of a workspace, newest first.
async fn roots_of(on: impl Into<On<'_>>, ws: WorkspaceId) -> Result<Vec<Root>> {
    let rows = sql("SELECT * FROM authorities WHERE workspace_id = $1 ORDER BY id DESC").bind(ws.0).all(on).await?;
    rows.iter().map(root).collect()
}

/// What a node of the workspace should trust; none where there never was a root.
pub(super) async fn trust(tx: &mut Tx, ws: WorkspaceId, renew_before: Option<Timestamp>) -> Result<Option<Trust>> {
    let roots = roots_of(tx, ws).await?;
    if roots.is_empty() {
        return Ok(None);
    }
    let (trusted, retired): (Vec<_>, Vec<_>) = roots.iter().partition(|root| root.state.is_trusted());
    Ok(Some(Trust {
        roots: trusted.iter().map(|root| pem(&root.certificate)).collect(),
        retired: retired.iter().map(|root| root.fingerprint.to_string()).collect(),
        renew_before: renew_before.map(Into::into),
    }))
}

async fn set_state(tx: &mut Tx, ws: WorkspaceId, from: RootState, to: RootState, now: Timestamp) -> Result<u64> {
    Ok(sql("UPDATE authorities SET state = $1, changed_at = $2 WHERE workspace_id = $3 AND state = $4")
        .bind(to.as_str())
        .bind(now.micros())
        .bind(ws.0)
        .bind(from.as_str())
        .run(tx)
        .await?)
}

/// Refuses with the names of the nodes that `query` finds.
async fn unless_any(tx: &mut Tx, query: Query, why: &str) -> Result<()> {
    let names: Vec<String> = query.all(tx).await?.iter().map(|row| row.try_get("name")).collect::<Result<_, _>>()?;
    if names.is_empty() {
        return Ok(());
    }
    let more = if names.len() > NAMES { ", …" } else { "" };
    let shown = names.iter().take(NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    Err(Problem::Forbidden(format!("{} nodes {why}: {shown}{more}; wait for them, or use --force", names.len())).into())
}

/// Every node of the workspace renews what was issued before now. That is each one's own, and so is the version that it
/// advances: a stream that heard of another change first, and asked for no more than what all share, gets this one too.
async fn renew_all(tx: &mut Tx, ws: WorkspaceId, now: Timestamp) -> Result<Changed> {
    revise(tx, ws).await?;
    sql("UPDATE nodes SET renew_before = $1, config_version = config_version + 1 WHERE workspace_id = $2")
        .bind(now.micros())
        .bind(ws.0)
        .run(tx)
        .await?;
    Ok(Changed::All(ws))
}

#[async_trait]
impl Authorities for SqlStore {
    async fn trust_revision(&self) -> Result<(i64, i64)> {
        let row = sql("SELECT (SELECT coalesce(max(changed_at), 0) FROM authorities) AS roots,
                    (SELECT count(revoked_at) FROM certificates) AS revoked")
        .one(&self.pools)
        .await?;
        Ok((row.try_get("roots")?, row.try_get("revoked")?))
    }

    async fn roots(&self, ws: WorkspaceId) -> Result<Vec<Root>> {
        roots_of(&self.pools, ws).await
    }

    async fn trusted_roots(&self) -> Result<Vec<Root>> {
        let rows = sql("SELECT * FROM authorities WHERE state <> 'retired' ORDER BY id DESC").all(&self.pools).await?;
        rows.iter().map(root).collect()
    }

    async fn trust_of(&self, node: Uuid) -> Result<Option<Trust>> {
        let mut tx = self.read().await?;
        let row = sql("SELECT workspace_id, renew_before FROM nodes WHERE uuid = $1").bind(node.to_string());
        let row = or_missing(row.optional(&mut tx).await?, "node")?;
        let ws = WorkspaceId(row.try_get("workspace_id")?);
        trust(&mut tx, ws, maybe_at(&row, "renew_before")?).await
    }

    async fn add_root(&self, ws: WorkspaceId, new: &NewRoot, fact: Fact) -> Result<(RootState, Changed)> {
        let mut tx = self.write_to(ws).await?;
        let roots = roots_of(&mut tx, ws).await?;
        if roots.iter().filter(|root| root.state.is_trusted()).count() >= TRUSTED_ROOTS {
            let message = format!("{TRUSTED_ROOTS} roots are trusted already: finish with `controlplane ca retire`");
            return Err(Problem::Forbidden(message).into());
        }
        let first = !roots.iter().any(|root| root.state == RootState::Active);
        let state = if first { RootState::Active } else { RootState::Next };
        let row = sql("INSERT INTO authorities
             (workspace_id, name, state, certificate, fingerprint, sealed_key, created_at, not_after, changed_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $7) RETURNING id")
        .bind(ws.0)
        .bind(&new.name)
        .bind(state.as_str())
        .bind(new.certificate.as_slice())
        .bind(new.fingerprint.0.as_slice())
        .bind(new.sealed_key.as_slice())
        .bind(fact.at.micros())
        .bind(new.not_after.micros())
        .one(&mut tx)
        .await
        .map_err(|e| unless_taken(e, || "a root that nodes learn of".to_owned()))?;
        let changed = advance_shared(&mut tx, ws).await?;
        sql("UPDATE nodes SET trust_version = config_version
                + (SELECT w.config_version FROM workspaces w WHERE w.id = nodes.workspace_id)
             WHERE workspace_id = $1")
        .bind(ws.0)
        .run(&mut tx)
        .await?;
        append(&mut tx, ws, fact.on(row.try_get::<i64>("id")?)).await?;
        tx.commit().await?;
        Ok((state, changed))
    }

    async fn promote_root(&self, ws: WorkspaceId, seen: Timestamp, force: bool, fact: Fact) -> Result<Changed> {
        let mut tx = self.write_to(ws).await?;
        if !force {
            let behind = sql("SELECT n.name, s.heartbeat, n.trust_version FROM nodes n
                 JOIN node_states s ON s.node_id = n.id
                 WHERE n.workspace_id = $1 AND s.last_seen >= $2 AND n.trust_version IS NOT NULL ORDER BY n.name")
            .bind(ws.0)
            .bind(seen.micros());
            let mut names = Vec::new();
            for row in behind.all(&mut tx).await? {
                let heartbeat: Option<ftagent_common::api::Heartbeat> =
                    serde_json::from_str(&row.try_get::<String>("heartbeat")?).ok();
                let applied = heartbeat.map_or(0, |h| h.config_version);
                if applied < super::amount(&row, "trust_version")? {
                    names.push(row.try_get::<String>("name")?);
                }
            }
            if !names.is_empty() {
                let shown = names.iter().take(NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
                let message = format!(
                    "{} nodes do not know the next root yet: {shown}; wait for them, or use --force",
                    names.len()
                );
                return Err(Problem::Forbidden(message).into());
            }
        }
        let next = sql("SELECT id FROM authorities WHERE workspace_id = $1 AND state = 'next'").bind(ws.0);
        let next: i64 = or_missing(next.optional_scalar(&mut tx).await?, "next root: make one with `ca rotate`")?;
        set_state(&mut tx, ws, RootState::Active, RootState::Old, fact.at).await?;
        set_state(&mut tx, ws, RootState::Next, RootState::Active, fact.at).await?;
        let changed = renew_all(&mut tx, ws, fact.at).await?;
        append(&mut tx, ws, fact.on(next)).await?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn retire_roots(&self, ws: WorkspaceId, seen: Timestamp, force: bool, fact: Fact) -> Result<Changed> {
        let mut tx = self.write_to(ws).await?;
        if !force {
            // Nodes that have certificates, but none of a root that stays.
            let query = sql("SELECT n.name FROM nodes n JOIN node_states s ON s.node_id = n.id
                 WHERE n.workspace_id = $1 AND s.last_seen >= $2
                 AND EXISTS (SELECT 1 FROM certificates c WHERE c.node_id = n.id AND c.revoked_at IS NULL
                             AND c.not_after > $3)
                 AND NOT EXISTS (SELECT 1 FROM certificates c JOIN authorities a ON a.id = c.authority_id
                                 WHERE c.node_id = n.id AND c.revoked_at IS NULL AND c.not_after > $3
                                 AND a.state = 'active') ORDER BY n.name")
            .bind(ws.0)
            .bind(seen.micros())
            .bind(fact.at.micros());
            unless_any(&mut tx, query, "have no certificate of the new root yet").await?;
        }
        if set_state(&mut tx, ws, RootState::Old, RootState::Retired, fact.at).await? == 0 {
            return Err(Problem::NotFound("old root").into());
        }
        let changed = advance_shared(&mut tx, ws).await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn keep_certificate(&self, node: Uuid, new: &NewCertificate, day: Timestamp, fact: Fact) -> Result<()> {
        let mut tx = self.write().await?;
        let ws = own_node(&mut tx, node, "node").await?;
        let node_id = node_id(&mut tx, ws, node).await?;
        let today: Vec<Row> =
            sql("SELECT issued_at FROM certificates WHERE node_id = $1 AND issued_at > $2 ORDER BY issued_at")
                .bind(node_id)
                .bind(day.micros())
                .all(&mut tx)
                .await?;
        if today.len() >= CERTIFICATES_A_DAY as usize {
            let oldest = at(&today[0], "issued_at")?;
            let wait_secs = u64::try_from(oldest.secs_since(day)).unwrap_or(0).max(60);
            return Err(Problem::TooMany { what: "certificates within a day", wait_secs }.into());
        }
        // Between reading the root and here it may have been replaced: nothing is signed by one that signs no more.
        let signs = sql("SELECT id FROM authorities WHERE id = $1 AND workspace_id = $2 AND state = 'active'")
            .bind(new.root)
            .bind(ws.0)
            .optional_scalar::<i64>(&mut tx)
            .await?;
        or_missing(signs, "signing root")?;
        let row = sql("INSERT INTO certificates
             (workspace_id, authority_id, node_id, serial, fingerprint, not_before, not_after, issued_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id")
        .bind(ws.0)
        .bind(new.root)
        .bind(node_id)
        .bind(&new.serial)
        .bind(new.fingerprint.0.as_slice())
        .bind(new.not_before.micros())
        .bind(new.not_after.micros())
        .bind(fact.at.micros())
        .one(&mut tx)
        .await?;
        append(&mut tx, ws, fact.on(row.try_get::<i64>("id")?)).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn let_enroll(&self, ws: WorkspaceId, node: Uuid, until: Timestamp, fact: Fact) -> Result<()> {
        let mut tx = self.write_to(ws).await?;
        let id = node_id(&mut tx, ws, node).await?;
        let set = sql("UPDATE nodes SET enroll_until = $1 WHERE id = $2").bind(until.micros()).bind(id);
        set.run(&mut tx).await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn ask_to_renew(&self, ws: WorkspaceId, node: Option<Uuid>, fact: Fact) -> Result<Changed> {
        let mut tx = self.write_to(ws).await?;
        let changed = match node {
            None => renew_all(&mut tx, ws, fact.at).await?,
            Some(node) => {
                let id = node_id(&mut tx, ws, node).await?;
                let set = sql("UPDATE nodes SET renew_before = $1 WHERE id = $2").bind(fact.at.micros()).bind(id);
                set.run(&mut tx).await?;
                advance(&mut tx, ws, &[id]).await?
            }
        };
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn certificates(&self, ws: WorkspaceId) -> Result<Vec<NodeCertificate>> {
        let query = format!("{CERTIFICATES} WHERE c.workspace_id = $1 ORDER BY c.id DESC LIMIT 10000");
        let rows = sql(sqlx::AssertSqlSafe(query)).bind(ws.0).all(&self.pools).await?;
        rows.iter().map(certificate).collect()
    }

    async fn revoke_certificate(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<NodeCertificate> {
        let mut tx = self.write_to(ws).await?;
        let done = sql("UPDATE certificates SET revoked_at = coalesce(revoked_at, $1)
             WHERE workspace_id = $2 AND id = $3")
        .bind(fact.at.micros())
        .bind(ws.0)
        .bind(id)
        .run(&mut tx)
        .await?;
        or_missing((done > 0).then_some(()), "certificate")?;
        let query = format!("{CERTIFICATES} WHERE c.id = $1");
        let revoked = certificate(&sql(sqlx::AssertSqlSafe(query)).bind(id).one(&mut tx).await?)?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(revoked)
    }

    async fn revoke_node(&self, ws: WorkspaceId, node: Uuid, fact: Fact) -> Result<u64> {
        let mut tx = self.write_to(ws).await?;
        let id = node_id(&mut tx, ws, node).await?;
        let now = fact.at.micros();
        let done = sql("UPDATE certificates SET revoked_at = $1
             WHERE node_id = $2 AND revoked_at IS NULL AND not_after > $1")
        .bind(now)
        .bind(id)
        .run(&mut tx)
        .await?;
        sql("UPDATE nodes SET enroll_until = NULL WHERE id = $1").bind(id).run(&mut tx).await?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(done)
    }

    async fn forget_certificates(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let gone = sql("DELETE FROM certificates WHERE not_after < $1").bind(before.micros()).run(&mut tx).await?;
        tx.commit().await?;
        Ok(gone)
    }
}
