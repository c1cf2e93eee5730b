//! The audit chain.

use async_trait::async_trait;

use super::{Query, Row, SqlStore, Tx, amount, at, hash, idempotency, sql};
use crate::domain::{AuditFilter, AuditRecord, Broken, Fact, GENESIS, Listed, Page, Verifier, WorkspaceId};
use crate::store::{Audits, Result};

/// Adds a fact to the chain, in the transaction of the change that it tells of.
pub(super) async fn append(conn: &mut Tx, ws: WorkspaceId, fact: Fact) -> Result<()> {
    conn.own(ws).await?;
    if fact.result == "ok" {
        idempotency::mark(conn, &fact.object, fact.at).await?;
    }
    let head = sql("SELECT seq, hash FROM audit_heads WHERE workspace_id = $1").bind(ws.0).optional(&mut *conn).await?;
    let (seq, previous) = match &head {
        Some(row) => (row.try_get::<i64>("seq")?, hash(row, "hash")?),
        None => (0, GENESIS),
    };
    let record = fact.chained(seq + 1, previous);
    sql("INSERT INTO audit (workspace_id, seq, at, actor, action, object, result, detail, hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
    .bind(ws.0)
    .bind(record.seq)
    .bind(record.at.micros())
    .bind(&record.actor)
    .bind(&record.action)
    .bind(&record.object)
    .bind(&record.result)
    .bind(&record.detail)
    .bind(record.hash.as_slice())
    .run(&mut *conn)
    .await?;
    sql("INSERT INTO audit_heads (workspace_id, seq, hash) VALUES ($1, $2, $3)
         ON CONFLICT (workspace_id) DO UPDATE SET seq = excluded.seq, hash = excluded.hash")
    .bind(ws.0)
    .bind(record.seq)
    .bind(record.hash.as_slice())
    .run(conn)
    .await?;
    Ok(())
}

fn record(row: &Row) -> Result<AuditRecord> {
    Ok(AuditRecord {
        seq: row.try_get("seq")?,
        at: at(row, "at")?,
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        object: row.try_get("object")?,
        result: row.try_get("result")?,
        detail: row.try_get("detail")?,
        hash: hash(row, "hash")?,
    })
}

fn filtered(query: &mut Query, ws: WorkspaceId, filter: &AuditFilter) {
    query.push(" FROM audit WHERE workspace_id = ").push_bind(ws.0);
    for (column, value) in [("action", &filter.action), ("object", &filter.object)] {
        if let Some(value) = value {
            query.push(format!(" AND {column} = ")).push_bind(value.clone());
        }
    }
    if let Some(actor) = &filter.actor {
        query.push(" AND substr(actor, 1, length(").push_bind(actor.clone()).push(")) = ").push_bind(actor.clone());
    }
    if let Some(from) = filter.from {
        query.push(" AND at >= ").push_bind(from.micros());
    }
    if let Some(to) = filter.to {
        query.push(" AND at < ").push_bind(to.micros());
    }
}

#[async_trait]
impl Audits for SqlStore {
    async fn audit(&self, ws: WorkspaceId, filter: &AuditFilter, page: Page) -> Result<Listed<AuditRecord>> {
        let mut tx = self.read().await?;
        let mut counting = Query::growing("SELECT count(*) AS total");
        filtered(&mut counting, ws, filter);
        let total = amount(&counting.one(&mut tx).await?, "total")?;
        let mut listing = Query::growing("SELECT *");
        filtered(&mut listing, ws, filter);
        listing
            .push(" ORDER BY seq DESC LIMIT ")
            .push_bind(page.limit)
            .push(" OFFSET ")
            .push_bind(super::count(page.offset));
        let rows = listing.all(&mut tx).await?;
        Ok(Listed { entries: rows.iter().map(record).collect::<Result<_>>()?, total })
    }

    async fn export_audit(&self, ws: WorkspaceId, filter: &AuditFilter, before: i64) -> Result<Vec<AuditRecord>> {
        let mut listing = Query::growing("SELECT *");
        filtered(&mut listing, ws, filter);
        listing.push(" AND seq < ").push_bind(before);
        listing.push(" ORDER BY seq DESC LIMIT ").push_bind(super::EXPORT_CHUNK);
        listing.all(&self.pools).await?.iter().map(record).collect()
    }

    async fn append(&self, ws: WorkspaceId, fact: Fact) -> Result<()> {
        let mut tx = self.write_to(ws).await?;
        append(&mut tx, ws, fact).await?;
        Ok(tx.commit().await?)
    }

    async fn verify(&self, ws: WorkspaceId) -> Result<(Verifier, Option<Broken>)> {
        verify(&mut self.read().await?, ws).await
    }
}

/// Walks a workspace's chain.
pub(super) async fn verify(tx: &mut Tx, ws: WorkspaceId) -> Result<(Verifier, Option<Broken>)> {
    let mut verifier = Verifier::default();
    loop {
        let rows = sql("SELECT * FROM audit WHERE workspace_id = $1 AND seq > $2 ORDER BY seq LIMIT 1000")
            .bind(ws.0)
            .bind(verifier.seq())
            .all(&mut *tx)
            .await?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            if let Err(broken) = verifier.observe(&record(row)?) {
                return Ok((verifier, Some(broken)));
            }
        }
    }
    let head = sql("SELECT seq, hash FROM audit_heads WHERE workspace_id = $1").bind(ws.0).optional(&mut *tx).await?;
    let (seq, last) = match &head {
        Some(row) => (row.try_get("seq")?, hash(row, "hash")?),
        None => (0, GENESIS),
    };
    let broken = verifier.finish(seq, last).err();
    Ok((verifier, broken))
}
