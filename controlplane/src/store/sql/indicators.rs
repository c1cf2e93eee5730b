//! Imported indicators.

use async_trait::async_trait;

use super::audits::append;
use super::{Query, Row, SqlStore, amount, at, count, or_missing, sql, unexpected};
use crate::domain::{
    Fact, Indicator, IndicatorFilter, IndicatorValue, Listed, NewIndicator, Page, Problem, Timestamp, WorkspaceId,
    check_allowed,
};
use crate::store::{Imported, Indicators, Result};

/// The most indicators of a workspace.
const MAX_INDICATORS: u64 = 100_000;

fn indicator(row: &Row) -> Result<Indicator> {
    let text: String = row.try_get("value")?;
    let value = IndicatorValue::parse(&text).ok_or_else(|| unexpected("value", std::io::Error::other(text)))?;
    Ok(Indicator {
        id: row.try_get("id")?,
        kind: value.kind(),
        value,
        confidence: row.try_get("confidence")?,
        source: row.try_get("source")?,
        description: row.try_get("description")?,
        first_seen: at(row, "first_seen")?,
        last_seen: at(row, "last_seen")?,
        expires_at: at(row, "expires_at")?,
        created_at: at(row, "created_at")?,
        updated_at: at(row, "updated_at")?,
    })
}

fn filtered(query: &mut Query, ws: WorkspaceId, filter: &IndicatorFilter) {
    query.push(" WHERE workspace_id = ").push_bind(ws.0);
    if let Some(kind) = filter.kind {
        query.push(" AND kind = ").push_bind(kind.as_str());
    }
    if let Some(source) = &filter.source {
        query.push(" AND source = ").push_bind(source);
    }
    if let Some(value) = &filter.value {
        query.push(" AND value = ").push_bind(value.to_string());
    }
    if let Some(confidence) = filter.min_confidence {
        query.push(" AND confidence >= ").push_bind(confidence);
    }
}

/// A later word of the same source stands in the place of the earlier one; what was seen earliest and latest stays.
const UPSERT: &str =
    "INSERT INTO indicators (workspace_id, source, value, kind, confidence, description, first_seen, last_seen,
                             expires_at, created_at, updated_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)
     ON CONFLICT (workspace_id, source, value) DO UPDATE SET
        confidence = excluded.confidence, description = excluded.description, expires_at = excluded.expires_at,
        first_seen = CASE WHEN excluded.first_seen < indicators.first_seen THEN excluded.first_seen
                          ELSE indicators.first_seen END,
        last_seen = CASE WHEN excluded.last_seen > indicators.last_seen THEN excluded.last_seen
                         ELSE indicators.last_seen END,
        updated_at = excluded.updated_at
     RETURNING *";

#[async_trait]
impl Indicators for SqlStore {
    async fn import_indicators(&self, ws: WorkspaceId, new: &[NewIndicator], fact: Fact) -> Result<Imported> {
        let mut tx = self.write_to(ws).await?;
        // Looked at within the transaction: an entry that is added at this moment comes before or after all of it.
        let allowlist = super::allowlist::all(&mut tx, ws).await?;
        check_allowed(new, &allowlist)?;
        let held = "SELECT count(*) AS total FROM indicators WHERE workspace_id = $1";
        let before = amount(&sql(held).bind(ws.0).one(&mut tx).await?, "total")?;
        let mut indicators = Vec::with_capacity(new.len());
        for one in new {
            let row = sql(UPSERT)
                .bind(ws.0)
                .bind(&one.source)
                .bind(one.value.to_string())
                .bind(one.value.kind().as_str())
                .bind(one.confidence)
                .bind(&one.description)
                .bind(one.first_seen.micros())
                .bind(one.last_seen.micros())
                .bind(one.expires_at.micros())
                .bind(fact.at.micros())
                .one(&mut tx)
                .await?;
            indicators.push(indicator(&row)?);
        }
        let after = amount(&sql(held).bind(ws.0).one(&mut tx).await?, "total")?;
        if after > MAX_INDICATORS {
            let message = format!("the workspace has {before} already, it can have {MAX_INDICATORS}");
            return Err(Problem::field("indicators", message).into());
        }
        let created = after - before;
        append(&mut tx, ws, fact).await?;
        tx.commit().await?;
        Ok(Imported { created, updated: new.len() as u64 - created, indicators })
    }

    async fn indicators(&self, ws: WorkspaceId, filter: &IndicatorFilter, page: Page) -> Result<Listed<Indicator>> {
        let mut tx = self.read().await?;
        let mut counting = Query::growing("SELECT count(*) AS total FROM indicators");
        filtered(&mut counting, ws, filter);
        let total = amount(&counting.one(&mut tx).await?, "total")?;
        let mut listing = Query::growing("SELECT * FROM indicators");
        filtered(&mut listing, ws, filter);
        listing.push(" ORDER BY id DESC LIMIT ").push_bind(page.limit);
        listing.push(" OFFSET ").push_bind(count(page.offset));
        let rows = listing.all(&mut tx).await?;
        Ok(Listed { entries: rows.iter().map(indicator).collect::<Result<_>>()?, total })
    }

    async fn delete_indicator(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<()> {
        let mut tx = self.write_to(ws).await?;
        let row = sql("DELETE FROM indicators WHERE workspace_id = $1 AND id = $2 RETURNING *")
            .bind(ws.0)
            .bind(id)
            .optional(&mut tx)
            .await?;
        let gone = indicator(&or_missing(row, "indicator")?)?;
        append(&mut tx, ws, fact.with(serde_json::json!({ "value": gone.value, "source": gone.source }))).await?;
        Ok(tx.commit().await?)
    }

    async fn surest_indicators(
        &self,
        ws: WorkspaceId,
        since: Timestamp,
        now: Timestamp,
        most: u32,
    ) -> Result<Vec<Indicator>> {
        let rows = sql("SELECT * FROM indicators WHERE workspace_id = $1 AND last_seen >= $2 AND expires_at > $3
             ORDER BY confidence DESC, id LIMIT $4")
        .bind(ws.0)
        .bind(since.micros())
        .bind(now.micros())
        .bind(most)
        .all(&self.pools)
        .await?;
        rows.iter().map(indicator).collect()
    }

    async fn forget_indicators(&self, now: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let gone = sql("DELETE FROM indicators WHERE expires_at <= $1").bind(now.micros()).run(&mut tx).await?;
        tx.commit().await?;
        Ok(gone)
    }
}
