//! Feed tokens, and the numbers of Suricata rules.

use std::collections::HashMap;

use async_trait::async_trait;

use super::audits::append;
use super::transaction::On;
use super::{Query, Row, SqlStore, amount, at, count, hash, maybe_at, or_missing, sql};
use crate::domain::{Fact, FeedToken, Listed, NewFeedToken, Page, Problem, SecretHash, Timestamp, WorkspaceId};
use crate::store::{Feeds, KnownFeed, Result};

/// The most tokens of a workspace that are not revoked.
const MAX_TOKENS: i64 = 100;
/// Values that one statement looks for.
const BATCH: usize = 500;
/// How often the day of the last use is written.
const STALE_SECS: i64 = 86_400;

fn token(row: &Row) -> Result<FeedToken> {
    Ok(FeedToken {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        created_at: at(row, "created_at")?,
        expires_at: maybe_at(row, "expires_at")?,
        revoked_at: maybe_at(row, "revoked_at")?,
    })
}

/// Those of `values` that have a number: it, and when it was last used.
async fn numbered(
    on: impl Into<On<'_>>,
    ws: WorkspaceId,
    values: &[String],
) -> Result<HashMap<String, (i64, Timestamp)>> {
    let mut query = Query::growing("SELECT id, value, used_at FROM suricata_sids WHERE workspace_id = ");
    query.push_bind(ws.0).push(" AND value IN (");
    for (n, value) in values.iter().enumerate() {
        query.push(if n == 0 { "" } else { ", " }).push_bind(value);
    }
    query.push(")");
    let rows = query.all(on).await?;
    rows.iter().map(|row| Ok((row.try_get("value")?, (row.try_get("id")?, at(row, "used_at")?)))).collect()
}

#[async_trait]
impl Feeds for SqlStore {
    async fn feed_tokens(&self, ws: WorkspaceId, page: Page) -> Result<Listed<FeedToken>> {
        let mut tx = self.read().await?;
        let total = sql("SELECT count(*) AS total FROM feed_tokens WHERE workspace_id = $1").bind(ws.0);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let rows = sql("SELECT * FROM feed_tokens WHERE workspace_id = $1 ORDER BY id DESC LIMIT $2 OFFSET $3")
            .bind(ws.0)
            .bind(page.limit)
            .bind(count(page.offset))
            .all(&mut tx)
            .await?;
        Ok(Listed { entries: rows.iter().map(token).collect::<Result<_>>()?, total })
    }

    async fn create_feed_token(
        &self,
        ws: WorkspaceId,
        new: &NewFeedToken,
        hash: &SecretHash,
        fact: Fact,
    ) -> Result<FeedToken> {
        let mut tx = self.write_to(ws).await?;
        let valid: i64 = sql("SELECT count(*) FROM feed_tokens WHERE workspace_id = $1 AND revoked_at IS NULL")
            .bind(ws.0)
            .scalar(&mut tx)
            .await?;
        if valid >= MAX_TOKENS {
            let message = format!("the workspace has {valid} feed tokens already: revoke one");
            return Err(Problem::field("name", message).into());
        }
        let row = sql("INSERT INTO feed_tokens (workspace_id, name, lookup, hash, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6) RETURNING *")
        .bind(ws.0)
        .bind(&new.name)
        .bind(hash.lookup())
        .bind(hash.bytes().as_slice())
        .bind(fact.at.micros())
        .bind(new.expires_at.map(Timestamp::micros))
        .one(&mut tx)
        .await?;
        let token = token(&row)?;
        append(&mut tx, ws, fact.on(token.id)).await?;
        tx.commit().await?;
        Ok(token)
    }

    async fn revoke_feed_token(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<FeedToken> {
        let mut tx = self.write_to(ws).await?;
        let row =
            sql("UPDATE feed_tokens SET revoked_at = coalesce(revoked_at, $1) WHERE workspace_id = $2 AND id = $3
             RETURNING *")
            .bind(fact.at.micros())
            .bind(ws.0)
            .bind(id)
            .optional(&mut tx)
            .await?;
        let token = token(&or_missing(row, "feed token")?)?;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(token)
    }

    async fn feed_token_candidates(&self, wanted: &SecretHash) -> Result<Vec<KnownFeed>> {
        let rows = sql("SELECT * FROM feed_tokens WHERE lookup = $1 AND revoked_at IS NULL")
            .bind(wanted.lookup())
            .all(&self.pools)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(KnownFeed {
                    id: row.try_get("id")?,
                    workspace: WorkspaceId(row.try_get("workspace_id")?),
                    hash: SecretHash::from_bytes(hash(row, "hash")?),
                    expires_at: maybe_at(row, "expires_at")?,
                })
            })
            .collect()
    }

    async fn sids(&self, ws: WorkspaceId, values: &[String], now: Timestamp) -> Result<HashMap<String, i64>> {
        let mut numbers = HashMap::with_capacity(values.len());
        for batch in values.chunks(BATCH) {
            let stale = now.plus_secs(-STALE_SECS);
            let mut known = numbered(&self.pools, ws, batch).await?;
            if batch.iter().any(|value| known.get(value).is_none_or(|(_, used)| *used < stale)) {
                let mut tx = self.write_to(ws).await?;
                known = numbered(&mut tx, ws, batch).await?;
                let new: Vec<_> = batch.iter().filter(|value| !known.contains_key(*value)).collect();
                if !new.is_empty() {
                    let mut query = Query::growing("INSERT INTO suricata_sids (workspace_id, value, used_at) VALUES ");
                    for (n, value) in new.into_iter().enumerate() {
                        query.push(if n == 0 { "(" } else { ", (" }).push_bind(ws.0);
                        query.push(", ").push_bind(value).push(", ").push_bind(now.micros()).push(")");
                    }
                    query.run(&mut tx).await?;
                }
                let mut query = Query::growing("UPDATE suricata_sids SET used_at = ");
                query.push_bind(now.micros()).push(" WHERE workspace_id = ").push_bind(ws.0);
                query.push(" AND used_at < ").push_bind(stale.micros()).push(" AND value IN (");
                for (n, value) in batch.iter().enumerate() {
                    query.push(if n == 0 { "" } else { ", " }).push_bind(value);
                }
                query.push(")");
                query.run(&mut tx).await?;
                known = numbered(&mut tx, ws, batch).await?;
                tx.commit().await?;
            }
            numbers.extend(known.into_iter().map(|(value, (number, _))| (value, number)));
        }
        Ok(numbers)
    }

    async fn forget_sids(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let gone = sql("DELETE FROM suricata_sids WHERE used_at < $1").bind(before.micros()).run(&mut tx).await?;
        tx.commit().await?;
        Ok(gone)
    }
}
