//! What columns hold, as the domain's types: times are microseconds, JSON and uuids are text, hashes are bytes.

use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::Row;
use crate::domain::Timestamp;
use crate::store::{Result, StoreError};

pub(super) fn unexpected(what: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unexpected { what, source: Box::new(source) }
}

/// A word of the vocabulary in a text column.
pub(super) fn word<T: FromStr>(row: &Row, column: &'static str) -> Result<T> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|_| unexpected(column, std::io::Error::other(format!("unknown word {text:?}"))))
}

pub(super) fn json<T: DeserializeOwned>(row: &Row, column: &'static str) -> Result<T> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|e| unexpected(column, e))
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| unexpected("a value that is no JSON", e))
}

pub(super) fn uuid(row: &Row, column: &'static str) -> Result<Uuid> {
    word(row, column)
}

pub(super) fn at(row: &Row, column: &'static str) -> Result<Timestamp> {
    Ok(Timestamp::from_micros(row.try_get(column)?))
}

pub(super) fn maybe_at(row: &Row, column: &'static str) -> Result<Option<Timestamp>> {
    Ok(row.try_get::<Option<i64>>(column)?.map(Timestamp::from_micros))
}

pub(super) fn hash(row: &Row, column: &'static str) -> Result<[u8; 32]> {
    let bytes: Vec<u8> = row.try_get(column)?;
    bytes.try_into().map_err(|_| unexpected(column, std::io::Error::other("not 32 bytes")))
}

/// A quantity for an integer column, which ends at 2^63 - 1.
pub(super) fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn amount(row: &Row, column: &'static str) -> Result<u64> {
    let value: i64 = row.try_get(column)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

/// An integer of a narrower type than the column's.
pub(super) fn number<T>(row: &Row, column: &'static str) -> Result<T>
where
    T: TryFrom<i64, Error: std::error::Error + Send + Sync + 'static>,
{
    T::try_from(row.try_get::<i64>(column)?).map_err(|e| unexpected(column, e))
}
