//! Out of a database.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::tables::{Kind, TABLES, Table};
use super::{Chain, DumpError, End, FORMAT, Head, Line, Moved, Progress, STEP, VERSION};
use crate::domain::{WorkspaceId, hex};
use crate::store::sql::transaction::Tx;
use crate::store::sql::{Row, SqlStore, audits, schema, sql};

impl SqlStore {
    /// Writes everything as of one moment; the server may go on working.
    ///
    /// # Errors
    /// The database cannot be read, or the file not written.
    pub async fn export(&self, out: &mut (dyn Write + Send), progress: Progress<'_>) -> Result<Moved, DumpError> {
        let mut tx = self.read().await?;
        tx.take_time().await?;
        let mut out = Hashed { out, hasher: Sha256::new() };
        out.line(&Head { format: FORMAT.to_owned(), version: VERSION, schema: schema::SQLITE.version() })?;
        let mut rows = 0;
        for table in TABLES {
            let columns = table.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
            out.line(&Line::Table { table: table.name.to_owned(), columns })?;
            let query = format!("SELECT {} FROM {} ORDER BY {}", table.column_list(), table.name, table.key);
            let mut done = 0_u64;
            tx.for_each(sql(sqlx::AssertSqlSafe(query)), |row| {
                out.line(&Line::Row(values(table, &row)?))?;
                done += 1;
                if done.is_multiple_of(STEP) {
                    progress(table.name, done);
                }
                Ok::<_, DumpError>(())
            })
            .await?;
            progress(table.name, done);
            rows += done;
        }
        out.line(&Line::Numbers { numbers: numbers(&mut tx).await? })?;
        let chains = chains(&mut tx).await?;
        out.line(&Line::Chains { chains: chains.clone() })?;
        let sha256 = hex(&out.hasher.clone().finalize());
        out.line(&Line::End { end: End { rows, sha256 } })?;
        out.out.flush()?;
        tx.rollback().await?;
        Ok(Moved { rows, chains })
    }
}

struct Hashed<'a> {
    out: &'a mut (dyn Write + Send),
    hasher: Sha256,
}

impl Hashed<'_> {
    fn line(&mut self, line: &impl Serialize) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.hasher.update(&text);
        self.out.write_all(&text)
    }
}

fn values(table: &Table, row: &Row) -> Result<Vec<Value>, sqlx::Error> {
    let value = |(index, (_, kind)): (usize, &(&str, Kind))| {
        Ok(match kind {
            Kind::Int => row.at::<Option<i64>>(index)?.map_or(Value::Null, Value::from),
            Kind::Flag => row.at::<Option<bool>>(index)?.map_or(Value::Null, Value::from),
            Kind::Text => row.at::<Option<String>>(index)?.map_or(Value::Null, Value::from),
            Kind::Bytes => row.at::<Option<Vec<u8>>>(index)?.map_or(Value::Null, |bytes| hex(&bytes).into()),
            // Text keeps every bit.
            Kind::Real => row.at::<Option<f64>>(index)?.map_or(Value::Null, |real| real.to_string().into()),
        })
    };
    table.columns.iter().enumerate().map(value).collect()
}

/// The last number that each table gave away.
async fn numbers(tx: &mut Tx) -> Result<BTreeMap<String, i64>, sqlx::Error> {
    let mut numbers = BTreeMap::new();
    for table in TABLES.iter().filter(|table| table.numbered) {
        let name = table.name;
        let query = if tx.is_postgres() {
            format!("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {name}_id_seq")
        } else {
            format!("SELECT seq FROM sqlite_sequence WHERE name = '{name}'")
        };
        let last: Option<i64> = sql(sqlx::AssertSqlSafe(query)).optional_scalar(&mut *tx).await?;
        numbers.insert(name.to_owned(), last.unwrap_or(0));
    }
    Ok(numbers)
}

/// Verifies the chain of every workspace.
pub(in crate::store::sql) async fn chains(tx: &mut Tx) -> Result<Vec<Chain>, DumpError> {
    let rows = sql("SELECT id FROM workspaces ORDER BY id").all(&mut *tx).await?;
    let mut chains = Vec::new();
    for row in rows {
        let workspace = row.at(0)?;
        let (verifier, broken) = audits::verify(tx, WorkspaceId(workspace)).await?;
        chains.push(Chain { workspace, records: verifier.seq(), intact: broken.is_none() });
    }
    Ok(chains)
}
