//! Into an empty database, whole or not at all.

use std::collections::BTreeMap;
use std::io::BufRead;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::export::chains;
use super::tables::{Kind, TABLES, Table};
use super::{DumpError, End, FORMAT, Head, Line, Moved, Progress, STEP, VERSION};
use crate::domain::hex;
use crate::store::sql::query::Value;
use crate::store::sql::transaction::{Alone, Tx};
use crate::store::sql::{Query, SqlStore, schema, sql};

/// Rows of one statement.
const BATCH: usize = 200;
/// The longest line that is read: a rule with a thousand sources has a tenth of a mebibyte.
const LINE_BYTES: u64 = 64 << 20;

impl SqlStore {
    /// Takes a dump; the database, whose schema is up to date, must hold nothing.
    ///
    /// # Errors
    /// The database is not empty, or the file is no whole dump of this schema: then nothing was taken.
    pub async fn import(&self, file: &mut (dyn BufRead + Send), progress: Progress<'_>) -> Result<Moved, DumpError> {
        let mut tx = self.write().await?;
        tx.take_time().await?;
        // A server that starts at the same time makes no workspace meanwhile.
        tx.alone(Alone::Bootstrap).await?;
        for table in TABLES {
            let query = format!("SELECT 1 FROM {} LIMIT 1", table.name);
            if sql(sqlx::AssertSqlSafe(query)).optional(&mut tx).await?.is_some() {
                return Err(DumpError::NotEmpty(table.name));
            }
        }
        let mut lines = Lines { file, hasher: Sha256::new(), number: 0 };
        let head = lines.next()?;
        let head: Head =
            serde_json::from_slice(&head).map_err(|e| lines.fault(format!("is no head of a dump: {e}")))?;
        let schema = schema::SQLITE.version();
        if head.format != FORMAT || head.version != VERSION {
            return Err(lines.fault("is the head of another format or version"));
        }
        if head.schema != schema {
            let message =
                format!("the dump is of schema {}, this program has {schema}: export with this program", head.schema);
            return Err(lines.fault(message));
        }
        let mut reading = Reading { batch: Vec::new(), table: None, tables: TABLES.iter(), rows: 0, done: 0 };
        let (mut numbers, mut claimed) = (None, None);
        let end = loop {
            let before = lines.hasher.clone();
            let bytes = lines.next()?;
            let line = serde_json::from_slice(&bytes).map_err(|_| lines.fault("is no line of a dump"))?;
            match line {
                Line::Row(row) => {
                    let Some(table) = reading.table else { return Err(lines.fault("a row of no table")) };
                    reading.batch.push(row_of(table, row).map_err(|e| lines.fault(e))?);
                    if reading.batch.len() == BATCH {
                        reading.write(&mut tx).await.map_err(|e| lines.refused(e))?;
                        if reading.done.is_multiple_of(STEP) {
                            progress(table.name, reading.done);
                        }
                    }
                }
                Line::Table { table, columns } => {
                    reading.write(&mut tx).await.map_err(|e| lines.refused(e))?;
                    reading.finish(progress);
                    let next = reading.tables.next().filter(|next| {
                        next.name == table && next.columns.iter().map(|(name, _)| *name).eq(columns.iter())
                    });
                    reading.table = Some(next.ok_or_else(|| lines.fault(format!("{table} is not what comes here")))?);
                }
                Line::Numbers { numbers: found } => numbers = Some(found),
                Line::Chains { chains: found } => claimed = Some(found),
                Line::End { end } => {
                    reading.write(&mut tx).await.map_err(|e| lines.refused(e))?;
                    reading.finish(progress);
                    break lines.check(end, before, reading.rows)?;
                }
            }
        };
        let (Some(numbers), Some(claimed), None) = (numbers, claimed, reading.tables.next()) else {
            return Err(lines.fault("the dump ends before it is whole"));
        };
        let chains = chains(&mut tx).await?;
        if let Some((now, _)) = chains.iter().zip(&claimed).find(|(now, then)| now != then) {
            return Err(DumpError::Chain { workspace: now.workspace });
        }
        number_on(&mut tx, &numbers).await?;
        tx.commit().await?;
        Ok(Moved { rows: end.rows, chains })
    }
}

struct Lines<'a> {
    file: &'a mut (dyn BufRead + Send),
    hasher: Sha256,
    number: u64,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Vec<u8>, DumpError> {
        use std::io::Read as _;
        self.number += 1;
        let mut line = Vec::new();
        (&mut *self.file).take(LINE_BYTES).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(self.fault("the dump ends here, in the middle"));
        }
        self.hasher.update(&line);
        Ok(line)
    }

    fn check(&self, end: End, before: Sha256, rows: u64) -> Result<End, DumpError> {
        if end.sha256 != hex(&before.finalize()) || end.rows != rows {
            return Err(self.fault("the dump is not as it was written: its hash is another"));
        }
        Ok(end)
    }

    fn fault(&self, message: impl Into<String>) -> DumpError {
        DumpError::Line { line: self.number, message: message.into() }
    }

    /// What the database would not take, unless it could not answer at all.
    fn refused(&self, source: sqlx::Error) -> DumpError {
        match &source {
            sqlx::Error::Database(e)
                if e.constraint().is_some() || !matches!(e.kind(), sqlx::error::ErrorKind::Other) =>
            {
                self.fault(format!("the database does not take these rows: {}", e.message()))
            }
            _ => source.into(),
        }
    }
}

struct Reading<'a> {
    table: Option<&'static Table>,
    tables: std::slice::Iter<'a, Table>,
    batch: Vec<Vec<Value>>,
    /// Of this table.
    done: u64,
    rows: u64,
}

impl Reading<'_> {
    async fn write(&mut self, tx: &mut Tx) -> Result<(), sqlx::Error> {
        let (Some(table), false) = (self.table, self.batch.is_empty()) else { return Ok(()) };
        let mut query = Query::growing(&format!("INSERT INTO {} ({}) VALUES ", table.name, table.column_list()));
        self.done += self.batch.len() as u64;
        for (n, row) in self.batch.drain(..).enumerate() {
            query.push(if n == 0 { "(" } else { ", (" });
            for (n, value) in row.into_iter().enumerate() {
                query.push(if n == 0 { "" } else { ", " }).push_bind(value);
            }
            query.push(")");
        }
        query.run(tx).await?;
        Ok(())
    }

    fn finish(&mut self, progress: Progress<'_>) {
        if let Some(table) = self.table {
            progress(table.name, self.done);
        }
        self.rows += std::mem::take(&mut self.done);
    }
}

fn row_of(table: &Table, row: Vec<Json>) -> Result<Vec<Value>, String> {
    if row.len() != table.columns.len() {
        return Err(format!("{} has {} columns, the row {}", table.name, table.columns.len(), row.len()));
    }
    let values = row.into_iter().zip(table.columns).map(|(value, (column, kind))| {
        value_of(value, *kind).ok_or_else(|| format!("{}.{column} holds what it cannot hold", table.name))
    });
    values.collect()
}

fn value_of(value: Json, kind: Kind) -> Option<Value> {
    Some(match (kind, value) {
        (Kind::Int, Json::Null) => Value::Int(None),
        (Kind::Int, value) => Value::Int(Some(value.as_i64()?)),
        (Kind::Flag, Json::Null) => Value::Flag(None),
        (Kind::Flag, value) => Value::Flag(Some(value.as_bool()?)),
        (Kind::Text, Json::Null) => Value::Text(None),
        (Kind::Text, Json::String(text)) => Value::Text(Some(text)),
        (Kind::Real, Json::Null) => Value::Real(None),
        (Kind::Real, Json::String(text)) => Value::Real(Some(text.parse().ok()?)),
        (Kind::Bytes, Json::Null) => Value::Bytes(None),
        (Kind::Bytes, Json::String(text)) => Value::Bytes(Some(bytes_of(&text)?)),
        (Kind::Text | Kind::Real | Kind::Bytes, _) => return None,
    })
}

fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Lets numbering go on where it was: a number that a deleted thing had is in audit records.
async fn number_on(tx: &mut Tx, numbers: &BTreeMap<String, i64>) -> Result<(), sqlx::Error> {
    for table in TABLES.iter().filter(|table| table.numbered) {
        let (name, last) = (table.name, numbers.get(table.name).copied().unwrap_or(0));
        if tx.is_postgres() {
            let query = format!("SELECT setval('{name}_id_seq', $1, $2)");
            sql(sqlx::AssertSqlSafe(query)).bind(last.max(1)).bind(last > 0).optional(&mut *tx).await?;
        } else {
            sql("DELETE FROM sqlite_sequence WHERE name = $1").bind(name).run(&mut *tx).await?;
            sql("INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)").bind(name).bind(last).run(&mut *tx).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_their_column_has_them_or_not_at_all() {
        let json = |text: &str| serde_json::from_str::<Json>(text).expect("JSON");
        for (kind, text, expected) in [
            (Kind::Int, "-9223372036854775808", Some(Value::Int(Some(i64::MIN)))),
            (Kind::Int, "9223372036854775808", None),
            (Kind::Int, "1.5", None),
            (Kind::Int, "null", Some(Value::Int(None))),
            (Kind::Flag, "true", Some(Value::Flag(Some(true)))),
            (Kind::Flag, "1", None),
            (Kind::Text, "\"a\"", Some(Value::Text(Some("a".to_owned())))),
            (Kind::Text, "1", None),
            (Kind::Real, "\"0.1\"", Some(Value::Real(Some(0.1)))),
            (Kind::Real, "\"x\"", None),
            (Kind::Bytes, "\"00ff\"", Some(Value::Bytes(Some(vec![0, 255])))),
            (Kind::Bytes, "\"00f\"", None),
            (Kind::Bytes, "\"zz\"", None),
        ] {
            assert_eq!(value_of(json(text), kind), expected, "{kind:?} {text}");
        }
    }
}
