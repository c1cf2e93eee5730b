//! Answers by `Idempotency-Key`.

use async_trait::async_trait;

use super::{SqlStore, Tx, at, hash, number, sql};
use crate::domain::Timestamp;
use crate::store::{ANSWER_SECS, Answered, CLAIM_SECS, Claim, Idempotency, Intent, Key, Result, StoreError, intent};

/// The status of a request whose change is committed and whose answer is not kept yet: no HTTP answer has it.
const DONE: u16 = 1;

/// Marks the request that is being answered, if it has a key, as done; in the transaction of its change.
///
/// Where other processes serve the database, one may have taken the key over meanwhile: then the change is not made.
pub(super) async fn mark(conn: &mut Tx, object: &str, now: Timestamp) -> Result<()> {
    let Some(intent) = intent::current().filter(Intent::is_first) else { return Ok(()) };
    let Intent { actor, key, .. } = intent;
    let Some(instance) = conn.instance else {
        sql("INSERT INTO idempotency (actor, key_hash, request_hash, status, answer, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (actor, key_hash) DO UPDATE
             SET request_hash = excluded.request_hash, status = excluded.status, answer = excluded.answer,
                 created_at = excluded.created_at")
        .bind(actor)
        .bind(key.hash.as_slice())
        .bind(key.request_hash.as_slice())
        .bind(DONE)
        .bind(object.as_bytes())
        .bind(now.micros())
        .run(conn)
        .await?;
        return Ok(());
    };
    let ours = sql("UPDATE idempotency SET status = $1, answer = $2, created_at = $3
         WHERE actor = $4 AND key_hash = $5 AND status = 0 AND answer = $6")
    .bind(DONE)
    .bind(object.as_bytes())
    .bind(now.micros())
    .bind(actor)
    .bind(key.hash.as_slice())
    .bind(instance.as_bytes().as_slice())
    .run(conn)
    .await?;
    if ours == 0 {
        let source = Box::new(std::io::Error::other("the key is another's"));
        return Err(StoreError::Unavailable { reason: "another process answers the same request", source });
    }
    Ok(())
}

#[async_trait]
impl Idempotency for SqlStore {
    async fn claim(&self, actor: &str, key: &Key, now: Timestamp, since: Timestamp) -> Result<Claim> {
        // One process answers a key once anyway: its requests wait for each other before they come here. So one that it
        // took, and could not give free while the database was away, is its own to take again; `answer` says whose.
        if let Some(instance) = self.pools.instance() {
            let mut tx = self.write().await?;
            let taken = sql("INSERT INTO idempotency AS i (actor, key_hash, request_hash, status, answer, created_at)
                 VALUES ($1, $2, $3, 0, $4, $5)
                 ON CONFLICT (actor, key_hash) DO UPDATE
                 SET request_hash = excluded.request_hash, status = 0, answer = excluded.answer,
                     created_at = excluded.created_at
                 WHERE i.created_at < $6 OR (i.status = 0 AND (i.created_at < $7 OR i.answer = $4))")
            .bind(actor)
            .bind(key.hash.as_slice())
            .bind(key.request_hash.as_slice())
            .bind(instance.as_bytes().as_slice())
            .bind(now.micros())
            .bind(since.micros())
            .bind(now.plus_secs(-CLAIM_SECS).micros())
            .run(&mut tx)
            .await?;
            tx.commit().await?;
            if taken > 0 {
                return Ok(Claim::Taken);
            }
        }
        let row = sql("SELECT * FROM idempotency WHERE actor = $1 AND key_hash = $2 AND created_at >= $3")
            .bind(actor)
            .bind(key.hash.as_slice())
            .bind(since.micros())
            .optional(&self.pools)
            .await?;
        let Some(row) = row else {
            // On PostgreSQL it was given free in between: the next try takes it.
            return Ok(if self.pools.is_postgres() { Claim::UnderWay } else { Claim::Taken });
        };
        if number::<u16>(&row, "status")? == DONE {
            let at = at(&row, "created_at")?;
            // Of this database's only process, or so old that the process that did it is gone.
            if self.pools.is_postgres() && now.secs_since(at) < ANSWER_SECS {
                return Ok(Claim::UnderWay);
            }
            let object = String::from_utf8_lossy(&row.try_get::<Vec<u8>>("answer")?).into_owned();
            return Ok(Claim::Done { request_hash: hash(&row, "request_hash")?, object });
        }
        let answered = Answered {
            request_hash: hash(&row, "request_hash")?,
            status: number(&row, "status")?,
            answer: row.try_get("answer")?,
        };
        Ok(if answered.status == 0 { Claim::UnderWay } else { Claim::Answered(answered) })
    }

    async fn release(&self, actor: &str, key_hash: [u8; 32]) -> Result<()> {
        if let Some(instance) = self.pools.instance() {
            let mut tx = self.write().await?;
            sql("DELETE FROM idempotency WHERE actor = $1 AND key_hash = $2 AND status = 0 AND answer = $3")
                .bind(actor)
                .bind(key_hash.as_slice())
                .bind(instance.as_bytes().as_slice())
                .run(&mut tx)
                .await?;
            tx.commit().await?;
        }
        Ok(())
    }

    async fn remember(&self, actor: &str, key_hash: [u8; 32], answered: &Answered, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        sql("INSERT INTO idempotency (actor, key_hash, request_hash, status, answer, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (actor, key_hash) DO UPDATE
             SET request_hash = excluded.request_hash, status = excluded.status, answer = excluded.answer,
                 created_at = excluded.created_at")
        .bind(actor)
        .bind(key_hash.as_slice())
        .bind(answered.request_hash.as_slice())
        .bind(answered.status)
        .bind(answered.answer.as_slice())
        .bind(now.micros())
        .run(&mut tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn forget_answers(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = sql("DELETE FROM idempotency WHERE created_at < $1").bind(before.micros()).run(&mut tx).await?;
        tx.commit().await?;
        Ok(done)
    }
}
