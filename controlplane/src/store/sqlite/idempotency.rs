//! Answers by `Idempotency-Key` in SQLite.

use async_trait::async_trait;
use sqlx::Row;

use super::{SqliteStore, hash};
use crate::domain::Timestamp;
use crate::store::{Answered, Idempotency, Result};

#[async_trait]
impl Idempotency for SqliteStore {
    async fn answered(&self, actor: &str, key_hash: [u8; 32], since: Timestamp) -> Result<Option<Answered>> {
        let row = sqlx::query("SELECT * FROM idempotency WHERE actor = ? AND key_hash = ? AND created_at >= ?")
            .bind(actor)
            .bind(key_hash.as_slice())
            .bind(since.micros())
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| {
            Ok(Answered {
                request_hash: hash(&row, "request_hash")?,
                status: row.try_get("status")?,
                answer: row.try_get("answer")?,
            })
        })
        .transpose()
    }

    async fn remember(&self, actor: &str, key_hash: [u8; 32], answered: &Answered, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        sqlx::query("INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?)")
            .bind(actor)
            .bind(key_hash.as_slice())
            .bind(answered.request_hash.as_slice())
            .bind(answered.status)
            .bind(&answered.answer)
            .bind(now.micros())
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn forget_answers(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let done =
            sqlx::query("DELETE FROM idempotency WHERE created_at < ?").bind(before.micros()).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}
