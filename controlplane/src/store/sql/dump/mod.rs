//! All that a database holds as lines of JSON, out of either database and into either one.
//!
//! ```text
//! {"format":"ftagent-controlplane","version":1,"schema":2}
//! {"table":"workspaces","columns":["id",…]}
//! [1,…]                                              a row: numbers, flags, text; bytes as hex, reals as text
//! {"numbers":{"rules":17,…}}                         where numbering goes on, so that no number is used again
//! {"chains":[{"workspace":1,"records":40,"intact":true}]}
//! {"end":{"rows":123,"sha256":"…"}}                  of every byte above: a file that was cut or changed shows
//! ```
//! An export is one moment of the database, an import one transaction into an empty one: it happens whole or not at
//! all. The files of captures are not part of it.

mod export;
mod import;
mod tables;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(super) use export::chains;

const FORMAT: &str = "ftagent-controlplane";
const VERSION: u32 = 1;

/// Called with a table's name and how many of its rows are done.
pub type Progress<'a> = &'a mut (dyn FnMut(&str, u64) + Send);

/// Rows between two calls of [`Progress`].
const STEP: u64 = 10_000;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    version: u32,
    schema: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Table { table: String, columns: Vec<String> },
    Row(Vec<serde_json::Value>),
    Numbers { numbers: BTreeMap<String, i64> },
    Chains { chains: Vec<Chain> },
    End { end: End },
}

/// What verifying the audit chain of a workspace gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    pub workspace: i64,
    /// Records that follow from one another.
    pub records: i64,
    pub intact: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    rows: u64,
    sha256: String,
}

/// What was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub rows: u64,
    pub chains: Vec<Chain>,
}

/// Why a dump is not written or taken.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error("the file cannot be read or written")]
    File(#[from] std::io::Error),
    #[error("line {line}: {message}")]
    Line { line: u64, message: String },
    #[error("the database is not empty: it has rows in {0}")]
    NotEmpty(&'static str),
    #[error("the audit chain of workspace {workspace} is not what it was when it was exported")]
    Chain { workspace: i64 },
}

impl From<sqlx::Error> for DumpError {
    fn from(source: sqlx::Error) -> Self {
        Self::Store(source.into())
    }
}
