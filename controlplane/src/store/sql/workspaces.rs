//! Workspaces and tokens.

use async_trait::async_trait;

use super::audits::append;
use super::{
    Alone, Row, SqlStore, advance_shared, amount, at, hash, json, maybe_at, or_missing, sql, to_json, unexpected,
    unless_taken,
};
use crate::domain::{
    Actor, Fact, Listed, NewToken, Page, Problem, Role, SecretHash, Subscription, Timestamp, Token, Workspace,
    WorkspaceId, WorkspacePatch,
};
use crate::store::{Changed, Known, Result, Workspaces};

fn role(row: &Row) -> Result<Role> {
    let word: String = row.try_get("role")?;
    Role::from_word(&word).ok_or_else(|| unexpected("role", std::io::Error::other(word)))
}

pub(super) fn subscription(row: &Row) -> Result<Subscription> {
    let word: String = row.try_get("subscription")?;
    Ok(if word == Subscription::Active.as_str() { Subscription::Active } else { Subscription::Inactive })
}

fn token(row: &Row) -> Result<Token> {
    Ok(Token {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        role: role(row)?,
        rate_limit: row.try_get::<Option<i64>>("rate_limit")?.and_then(|limit| u32::try_from(limit).ok()),
        created_at: at(row, "created_at")?,
        expires_at: maybe_at(row, "expires_at")?,
        revoked_at: maybe_at(row, "revoked_at")?,
    })
}

fn workspace(row: &Row) -> Result<Workspace> {
    Ok(Workspace {
        id: WorkspaceId(row.try_get("id")?),
        name: row.try_get("name")?,
        subscription: subscription(row)?,
        detection: json(row, "detection")?,
        created_at: at(row, "created_at")?,
    })
}

const INSERT_TOKEN: &str =
    "INSERT INTO tokens (workspace_id, name, role, lookup, hash, rate_limit, created_at, expires_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING *";

#[async_trait]
impl Workspaces for SqlStore {
    async fn bootstrap(&self, now: Timestamp, owner: &SecretHash) -> Result<bool> {
        let mut tx = self.write().await?;
        tx.alone(Alone::Bootstrap).await?;
        let known: i64 = sql("SELECT count(*) FROM workspaces").scalar(&mut tx).await?;
        if known > 0 {
            return Ok(false);
        }
        let id: i64 = sql("INSERT INTO workspaces (name, created_at) VALUES ('default', $1) RETURNING id")
            .bind(now.micros())
            .scalar(&mut tx)
            .await?;
        let ws = WorkspaceId(id);
        let row = sql(INSERT_TOKEN)
            .bind(id)
            .bind("owner")
            .bind(Role::Owner.as_str())
            .bind(owner.lookup())
            .bind(owner.bytes().as_slice())
            .bind(None::<i64>)
            .bind(now.micros())
            .bind(None::<i64>)
            .one(&mut tx)
            .await?;
        let system = Actor::System { workspace: ws };
        append(&mut tx, ws, Fact::new(now, &system, "workspace.create", "workspace/default")).await?;
        append(&mut tx, ws, Fact::new(now, &system, "token.create", "token").on(token(&row)?.id)).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn first_workspace(&self) -> Result<WorkspaceId> {
        let id: Option<i64> = sql("SELECT min(id) FROM workspaces").scalar(&self.pools).await?;
        or_missing(id.map(WorkspaceId), "workspace")
    }

    async fn workspace(&self, ws: WorkspaceId) -> Result<Workspace> {
        let row = sql("SELECT * FROM workspaces WHERE id = $1").bind(ws.0).optional(&self.pools).await?;
        workspace(&or_missing(row, "workspace")?)
    }

    async fn patch_workspace(
        &self,
        ws: WorkspaceId,
        patch: WorkspacePatch,
        fact: Fact,
    ) -> Result<(Workspace, Changed)> {
        let mut tx = self.write_to(ws).await?;
        let detection = patch.detection.as_ref().map(to_json).transpose()?;
        let row = sql(
            "UPDATE workspaces SET name = coalesce($1, name), detection = coalesce($2, detection) WHERE id = $3 RETURNING *",
        )
        .bind(&patch.name)
        .bind(&detection)
        .bind(ws.0)
        .optional(&mut tx)
        .await
        .map_err(|e| unless_taken(e, || "a workspace of this name".to_owned()))?;
        let workspace = workspace(&or_missing(row, "workspace")?)?;
        let changed = if detection.is_some() { advance_shared(&mut tx, ws).await? } else { Changed::none() };
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok((workspace, changed))
    }

    async fn subscribe(&self, ws: WorkspaceId, subscription: Subscription, fact: Fact) -> Result<()> {
        let mut tx = self.write_to(ws).await?;
        sql("UPDATE workspaces SET subscription = $1 WHERE id = $2")
            .bind(subscription.as_str())
            .bind(ws.0)
            .run(&mut tx)
            .await?;
        append(&mut tx, ws, fact).await?;
        Ok(tx.commit().await?)
    }

    async fn tokens(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Token>> {
        let mut tx = self.read().await?;
        let total = sql("SELECT count(*) AS total FROM tokens WHERE workspace_id = $1").bind(ws.0);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let rows = sql("SELECT * FROM tokens WHERE workspace_id = $1 ORDER BY id DESC LIMIT $2 OFFSET $3")
            .bind(ws.0)
            .bind(page.limit)
            .bind(super::count(page.offset))
            .all(&mut tx)
            .await?;
        Ok(Listed { entries: rows.iter().map(token).collect::<Result<_>>()?, total })
    }

    async fn create_token(&self, ws: WorkspaceId, new: NewToken, hash: &SecretHash, fact: Fact) -> Result<Token> {
        let mut tx = self.write_to(ws).await?;
        let row = sql(INSERT_TOKEN)
            .bind(ws.0)
            .bind(&new.name)
            .bind(new.role.as_str())
            .bind(hash.lookup())
            .bind(hash.bytes().as_slice())
            .bind(new.rate_limit)
            .bind(fact.at.micros())
            .bind(new.expires_at.map(Timestamp::micros))
            .one(&mut tx)
            .await?;
        let token = token(&row)?;
        append(&mut tx, ws, fact.on(token.id)).await?;
        tx.commit().await?;
        Ok(token)
    }

    async fn revoke_token(&self, ws: WorkspaceId, id: i64, now: Timestamp, fact: Fact) -> Result<Token> {
        let mut tx = self.write_to(ws).await?;
        let row = sql(
            "UPDATE tokens SET revoked_at = coalesce(revoked_at, $1) WHERE workspace_id = $2 AND id = $3 RETURNING *",
        )
        .bind(now.micros())
        .bind(ws.0)
        .bind(id)
        .optional(&mut tx)
        .await?;
        let token = token(&or_missing(row, "token")?)?;
        let owners: i64 =
            sql("SELECT count(*) FROM tokens WHERE workspace_id = $1 AND role = 'owner' AND revoked_at IS NULL
             AND (expires_at IS NULL OR expires_at > $2)")
            .bind(ws.0)
            .bind(now.micros())
            .scalar(&mut tx)
            .await?;
        if owners == 0 {
            return Err(Problem::Forbidden("the last owner token stays: create another one first".to_owned()).into());
        }
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(token)
    }

    async fn token_candidates(&self, wanted: &SecretHash) -> Result<Vec<Known>> {
        let rows = sql("SELECT t.*, w.subscription FROM tokens t JOIN workspaces w ON w.id = t.workspace_id
             WHERE t.lookup = $1 AND t.revoked_at IS NULL")
        .bind(wanted.lookup())
        .all(&self.pools)
        .await?;
        rows.iter()
            .map(|row| {
                let token = token(row)?;
                Ok(Known {
                    actor: Actor::Token {
                        id: token.id,
                        name: token.name,
                        role: token.role,
                        workspace: WorkspaceId(row.try_get("workspace_id")?),
                        rate_limit: token.rate_limit,
                    },
                    hash: SecretHash::from_bytes(hash(row, "hash")?),
                    expires_at: token.expires_at,
                    subscription: subscription(row)?,
                })
            })
            .collect()
    }
}
