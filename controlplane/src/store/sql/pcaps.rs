//! Captures; their bytes lie in `store/files.rs`.

use async_trait::async_trait;
use uuid::Uuid;

use super::audits::append;
use super::{Alone, Row, SqlStore, Tx, amount, at, count, hash, or_missing, own_node, sql, uuid, word};
use crate::domain::{
    CHUNK_BYTES, Fact, Listed, MAX_UNDER_WAY, NewChunk, Page, Pcap, Problem, Quota, Timestamp, UPLOADS_PER_HOUR,
    WorkspaceId, sha256_text,
};
use crate::store::{Assembled, Opened, Pcaps, Result, StoreError, UnderWay};

const SELECT: &str = "SELECT p.*, i.uuid AS incident_uuid, n.uuid AS node_uuid, n.name AS node_name
    FROM pcaps p JOIN incidents i ON i.id = p.incident_id JOIN nodes n ON n.id = p.node_id";

fn pcap(row: &Row) -> Result<Pcap> {
    let part: i64 = row.try_get("part")?;
    let packets: Option<i64> = row.try_get("packets")?;
    Ok(Pcap {
        id: row.try_get("id")?,
        incident_id: row.try_get("incident_id")?,
        incident: uuid(row, "incident_uuid")?,
        node: uuid(row, "node_uuid")?,
        node_name: row.try_get("node_name")?,
        part: u32::try_from(part).unwrap_or(1),
        packets: packets.and_then(|p| u64::try_from(p).ok()),
        format: word(row, "format")?,
        bytes: amount(row, "bytes")?,
        sha256: sha256_text(&hash(row, "sha256")?),
        created_at: at(row, "created_at")?,
    })
}

/// Up to ten times of captures that the node uploaded within the last hour, newest first.
async fn of_last_hour(conn: &mut Tx, node: i64, now: Timestamp) -> Result<Vec<Timestamp>> {
    let rows =
        sql("SELECT created_at FROM pcaps WHERE node_id = $1 AND created_at > $2 ORDER BY created_at DESC LIMIT $3")
            .bind(node)
            .bind(now.plus_secs(-3_600).micros())
            .bind(UPLOADS_PER_HOUR)
            .all(conn)
            .await?;
    rows.iter().map(|row| at(row, "created_at")).collect()
}

fn too_many(quota: Quota, now: Timestamp) -> Problem {
    let wait_secs = u64::try_from(quota.reset.secs() - now.secs()).unwrap_or(0).max(1);
    Problem::TooMany { what: "captures within an hour", wait_secs }
}

async fn of_upload(conn: &mut Tx, node: i64, upload: &str) -> Result<Option<Pcap>> {
    let query = sqlx::AssertSqlSafe(format!("{SELECT} WHERE p.node_id = $1 AND p.upload = $2"));
    let row = sql(query).bind(node).bind(upload).optional(conn).await?;
    row.as_ref().map(pcap).transpose()
}

/// Forgets the uploads of a node that stood still longest, so that one more has a place.
async fn make_place(conn: &mut Tx, node: i64) -> Result<Vec<Uuid>> {
    let rows = sql(
        "DELETE FROM pcap_uploads WHERE id IN
             (SELECT id FROM pcap_uploads WHERE node_id = $1 ORDER BY touched_at DESC, id DESC LIMIT 9223372036854775807 OFFSET $2)
         RETURNING key",
    )
    .bind(node)
    .bind(MAX_UNDER_WAY - 1)
    .all(conn)
    .await?;
    rows.iter().map(|row| uuid(row, "key")).collect()
}

#[async_trait]
impl Pcaps for SqlStore {
    async fn open_upload(&self, node: Uuid, chunk: &NewChunk, room: u64, now: Timestamp) -> Result<Opened> {
        let mut tx = self.write().await?;
        own_node(&mut tx, node, "incident").await?;
        let row = sql(
            "SELECT i.id, i.node_id FROM incidents i JOIN nodes n ON n.id = i.node_id WHERE n.uuid = $1 AND i.uuid = $2",
        )
        .bind(node.to_string())
        .bind(chunk.incident.to_string())
        .optional(&mut tx)
        .await?;
        // Another node's incident is as unknown as one that does not exist.
        let row = or_missing(row, "incident")?;
        let (incident, node): (i64, i64) = (row.try_get("id")?, row.try_get("node_id")?);
        let used_otherwise = || Problem::field("X-Upload-Id", "was used for another capture");
        let times = of_last_hour(&mut tx, node, now).await?;
        let quota = Quota::of(&times, now);
        if let Some(pcap) = of_upload(&mut tx, node, &chunk.upload).await? {
            if pcap.incident_id != incident {
                return Err(used_otherwise().into());
            }
            return Ok(Opened { quota, evicted: Vec::new(), under_way: UnderWay::Done(pcap) });
        }
        if quota.remaining == 0 {
            return Err(too_many(quota, now).into());
        }
        let known = sql("SELECT * FROM pcap_uploads WHERE node_id = $1 AND upload = $2")
            .bind(node)
            .bind(&chunk.upload)
            .optional(&mut tx)
            .await?;
        if let Some(row) = known {
            let (of, chunks): (i64, i64) = (row.try_get("incident_id")?, row.try_get("chunks")?);
            if of != incident {
                return Err(used_otherwise().into());
            }
            if chunks != i64::from(chunk.total) {
                return Err(Problem::field("X-Chunk-Total", format!("was {chunks} before")).into());
            }
            let key = uuid(&row, "key")?;
            // A commit for each chunk would cost more than it tells.
            if now.secs_since(at(&row, "touched_at")?) >= 60 {
                sql("UPDATE pcap_uploads SET touched_at = $1 WHERE id = $2")
                    .bind(now.micros())
                    .bind(row.try_get::<i64>("id")?)
                    .run(&mut tx)
                    .await?;
                tx.commit().await?;
            }
            return Ok(Opened { quota, evicted: Vec::new(), under_way: UnderWay::Key(key) });
        }
        tx.alone(Alone::Uploads).await?;
        let evicted = make_place(&mut tx, node).await?;
        let taken: i64 =
            sql("SELECT CAST(coalesce(sum(chunks), 0) AS BIGINT) FROM pcap_uploads").scalar(&mut tx).await?;
        let wanted = u64::try_from(taken).unwrap_or(0).saturating_add(chunk.total.into());
        if wanted.saturating_mul(CHUNK_BYTES) > room {
            return Err(StoreError::Disk {
                reason: "uploads under way take all of the room",
                source: std::io::ErrorKind::QuotaExceeded.into(),
            });
        }
        let key = Uuid::new_v4();
        sql(
            "INSERT INTO pcap_uploads (key, node_id, incident_id, upload, chunks, touched_at) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(key.to_string())
        .bind(node)
        .bind(incident)
        .bind(&chunk.upload)
        .bind(chunk.total)
        .bind(now.micros())
        .run(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(Opened { quota, evicted, under_way: UnderWay::Key(key) })
    }

    async fn keep_pcap(&self, key: Uuid, chunk: &NewChunk, file: &Assembled, fact: Fact) -> Result<Pcap> {
        let mut tx = self.write().await?;
        let ws = sql("SELECT n.workspace_id FROM pcap_uploads u JOIN nodes n ON n.id = u.node_id WHERE u.key = $1")
            .bind(key.to_string())
            .optional_scalar(&mut tx)
            .await?;
        let ws: i64 = or_missing(ws, "upload under way")?;
        tx.own(WorkspaceId(ws)).await?;
        let row = sql("DELETE FROM pcap_uploads WHERE key = $1 RETURNING node_id, incident_id, upload")
            .bind(key.to_string())
            .optional(&mut tx)
            .await?;
        let row = or_missing(row, "upload under way")?;
        let (node, incident): (i64, i64) = (row.try_get("node_id")?, row.try_get("incident_id")?);
        let times = of_last_hour(&mut tx, node, fact.at).await?;
        let quota = Quota::of(&times, fact.at);
        if quota.remaining == 0 {
            return Err(too_many(quota, fact.at).into());
        }
        let id: Option<i64> = sql(
            "INSERT INTO pcaps (workspace_id, node_id, incident_id, upload, part, packets, format, bytes, sha256,
                                created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (incident_id, sha256) DO NOTHING RETURNING id",
        )
        .bind(ws)
        .bind(node)
        .bind(incident)
        .bind(row.try_get::<String>("upload")?)
        .bind(chunk.part)
        .bind(chunk.packets.map(count))
        .bind(file.format.as_str())
        .bind(count(file.bytes))
        .bind(file.sha256.as_slice())
        .bind(fact.at.micros())
        .optional_scalar(&mut tx)
        .await?;
        let query = sqlx::AssertSqlSafe(format!("{SELECT} WHERE p.incident_id = $1 AND p.sha256 = $2"));
        let kept = sql(query).bind(incident).bind(file.sha256.as_slice()).one(&mut tx).await?;
        let kept = pcap(&kept)?;
        if id.is_some() {
            append(&mut tx, WorkspaceId(ws), fact.on(kept.id).with(&kept)).await?;
        }
        tx.commit().await?;
        Ok(kept)
    }

    async fn forget_upload(&self, key: Uuid) -> Result<()> {
        let mut tx = self.write().await?;
        sql("DELETE FROM pcap_uploads WHERE key = $1").bind(key.to_string()).run(&mut tx).await?;
        Ok(tx.commit().await?)
    }

    async fn forget_uploads(&self, before: Timestamp) -> Result<Vec<Uuid>> {
        let mut tx = self.write().await?;
        tx.alone(Alone::Uploads).await?;
        let rows = sql("DELETE FROM pcap_uploads WHERE touched_at < $1 RETURNING key")
            .bind(before.micros())
            .all(&mut tx)
            .await?;
        tx.commit().await?;
        rows.iter().map(|row| uuid(row, "key")).collect()
    }

    async fn pcaps(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Pcap>> {
        let mut tx = self.read().await?;
        let total = sql("SELECT count(*) AS total FROM pcaps WHERE workspace_id = $1").bind(ws.0);
        let total = amount(&total.one(&mut tx).await?, "total")?;
        let query =
            sqlx::AssertSqlSafe(format!("{SELECT} WHERE p.workspace_id = $1 ORDER BY p.id DESC LIMIT $2 OFFSET $3"));
        let rows = sql(query).bind(ws.0).bind(page.limit).bind(count(page.offset)).all(&mut tx).await?;
        Ok(Listed { entries: rows.iter().map(pcap).collect::<Result<_>>()?, total })
    }

    async fn pcaps_of(&self, ws: WorkspaceId, incident: i64) -> Result<Vec<Pcap>> {
        let query = sqlx::AssertSqlSafe(format!(
            "{SELECT} WHERE p.workspace_id = $1 AND p.incident_id = $2 ORDER BY p.part, p.id"
        ));
        let rows = sql(query).bind(ws.0).bind(incident).all(&self.pools).await?;
        rows.iter().map(pcap).collect()
    }

    async fn pcap(&self, ws: WorkspaceId, id: i64) -> Result<(Pcap, [u8; 32])> {
        let query = sqlx::AssertSqlSafe(format!("{SELECT} WHERE p.workspace_id = $1 AND p.id = $2"));
        let row = sql(query).bind(ws.0).bind(id).optional(&self.pools).await?;
        let row = or_missing(row, "capture")?;
        Ok((pcap(&row)?, hash(&row, "sha256")?))
    }

    async fn delete_pcap(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<()> {
        let mut tx = self.write_to(ws).await?;
        let query = sqlx::AssertSqlSafe(format!("{SELECT} WHERE p.workspace_id = $1 AND p.id = $2"));
        let row = sql(query).bind(ws.0).bind(id).optional(&mut tx).await?;
        let gone = pcap(&or_missing(row, "capture")?)?;
        sql("DELETE FROM pcaps WHERE id = $1").bind(id).run(&mut tx).await?;
        append(&mut tx, ws, fact.with(&gone)).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn prune_pcaps(&self, before: Timestamp, max_bytes: u64) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = sql(
            "DELETE FROM pcaps WHERE created_at < $1 OR id IN
                 (SELECT id FROM (SELECT id, sum(bytes) OVER (ORDER BY id DESC) AS kept FROM pcaps) AS newest WHERE kept > $2)",
        )
        .bind(before.micros())
        .bind(count(max_bytes))
        .run(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(done)
    }

    async fn pcap_files(&self) -> Result<(Vec<Uuid>, Vec<[u8; 32]>)> {
        let mut tx = self.read().await?;
        let keys = sql("SELECT key FROM pcap_uploads").all(&mut tx).await?;
        let hashes = sql("SELECT DISTINCT sha256 FROM pcaps ORDER BY sha256").all(&mut tx).await?;
        let keys = keys.iter().map(|row| uuid(row, "key")).collect::<Result<_>>()?;
        Ok((keys, hashes.iter().map(|row| hash(row, "sha256")).collect::<Result<_>>()?))
    }
}
