//! One way to ask either database: text with `$1 …`, values, rows.
//!
//! `sqlx::Any` does the same with fewer types, but hides what each database needs here: SQLite's options and a look at
//! whether a connection is still within a transaction, PostgreSQL's listener and session locks. So the two drivers are
//! wrapped once, in this file and `transaction.rs`, and every query is written once.

use std::fmt::Display;

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Decode, Postgres, Row as _, SqlSafeStr, SqlStr, Sqlite, Type};

use super::transaction::On;

/// A value for a placeholder. A missing one keeps its type: PostgreSQL wants to know it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Int(Option<i64>),
    Real(Option<f64>),
    Flag(Option<bool>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    /// A column of many rows: for `unnest` on PostgreSQL; SQLite has no arrays, and gets JSON for its `json_each`.
    Ints(Vec<i64>),
}

macro_rules! values {
    ($($from:ty => $kind:ident, |$value:ident| $into:expr;)+) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Self {
                Self::$kind(Some($into))
            }
        }
        impl From<Option<$from>> for Value {
            fn from(value: Option<$from>) -> Self {
                Self::$kind(value.map(|$value| $into))
            }
        })+
    };
}
values! {
    i64 => Int, |v| v;
    u32 => Int, |v| v.into();
    u16 => Int, |v| v.into();
    f64 => Real, |v| v;
    bool => Flag, |v| v;
    String => Text, |v| v;
    &str => Text, |v| v.to_owned();
    &String => Text, |v| v.clone();
    Vec<u8> => Bytes, |v| v;
    &[u8] => Bytes, |v| v.to_vec();
}

impl From<Vec<i64>> for Value {
    fn from(values: Vec<i64>) -> Self {
        Self::Ints(values)
    }
}

impl From<&Option<String>> for Value {
    fn from(value: &Option<String>) -> Self {
        Self::Text(value.clone())
    }
}

/// Text that PostgreSQL takes: it has no place for NUL, in stored text as in what is looked for.
pub(super) fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// A statement with its values, ready to be run on either database.
pub(super) struct Query {
    text: Text,
    values: Vec<Value>,
}

enum Text {
    Whole(SqlStr),
    /// Put together of literals and placeholders, never of what a caller sent.
    Growing(String),
}

/// A statement; its placeholders are `$1`, `$2` and so on.
pub(super) fn sql(text: impl SqlSafeStr) -> Query {
    Query { text: Text::Whole(text.into_sql_str()), values: Vec::new() }
}

impl Query {
    /// A statement that grows by [`Self::push`].
    pub(super) fn growing(text: &str) -> Self {
        Self { text: Text::Growing(text.to_owned()), values: Vec::new() }
    }

    /// The value of the next placeholder.
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Adds text of the program.
    pub(super) fn push(&mut self, part: impl Display) -> &mut Self {
        use std::fmt::Write as _;
        let text = match &mut self.text {
            Text::Growing(text) => text,
            Text::Whole(whole) => {
                self.text = Text::Growing(whole.as_str().to_owned());
                let Text::Growing(text) = &mut self.text else { unreachable!("it was made on the line above") };
                text
            }
        };
        write!(text, "{part}").expect("a String takes every write");
        self
    }

    /// Adds a placeholder with its value.
    pub(super) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        let number = self.values.len();
        self.push(format_args!("${number}"))
    }

    pub(super) fn for_sqlite(self) -> sqlx::query::Query<'static, Sqlite, <Sqlite as sqlx::Database>::Arguments> {
        self.values.into_iter().fold(sqlx::query(text_of(self.text)), |query, value| match value {
            Value::Int(v) => query.bind(v),
            Value::Real(v) => query.bind(v),
            Value::Flag(v) => query.bind(v),
            Value::Text(v) => query.bind(v),
            Value::Bytes(v) => query.bind(v),
            Value::Ints(v) => query.bind(serde_json::Value::from(v).to_string()),
        })
    }

    pub(super) fn for_postgres(self) -> sqlx::query::Query<'static, Postgres, <Postgres as sqlx::Database>::Arguments> {
        self.values.into_iter().fold(sqlx::query(text_of(self.text)), |query, value| match value {
            Value::Int(v) => query.bind(v),
            Value::Real(v) => query.bind(v),
            Value::Flag(v) => query.bind(v),
            Value::Text(v) => query.bind(v.map(without_nul)),
            Value::Bytes(v) => query.bind(v),
            Value::Ints(v) => query.bind(v),
        })
    }

    /// Runs it; how many rows it wrote.
    pub(super) async fn run(self, on: impl Into<On<'_>>) -> Result<u64, sqlx::Error> {
        on.into().run(self).await
    }

    /// Every row.
    pub(super) async fn all(self, on: impl Into<On<'_>>) -> Result<Vec<Row>, sqlx::Error> {
        on.into().all(self).await
    }

    /// The first row, if there is one.
    pub(super) async fn optional(self, on: impl Into<On<'_>>) -> Result<Option<Row>, sqlx::Error> {
        on.into().optional(self).await
    }

    /// The first row.
    pub(super) async fn one(self, on: impl Into<On<'_>>) -> Result<Row, sqlx::Error> {
        self.optional(on).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// The first column of the first row.
    pub(super) async fn scalar<T: Column>(self, on: impl Into<On<'_>>) -> Result<T, sqlx::Error> {
        self.one(on).await?.first()
    }

    /// The first column of the first row, if there is one.
    pub(super) async fn optional_scalar<T: Column>(self, on: impl Into<On<'_>>) -> Result<Option<T>, sqlx::Error> {
        self.optional(on).await?.map(|row| row.first()).transpose()
    }
}

fn text_of(text: Text) -> SqlStr {
    match text {
        Text::Whole(text) => text,
        Text::Growing(text) => AssertSqlSafe(text).into_sql_str(),
    }
}

/// What a column can be read as.
pub(super) trait Column:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}
impl<T> Column for T where T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres> {}

/// A row of either database.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// The value of a column.
    pub(super) fn try_get<T: Column>(&self, column: &str) -> Result<T, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    /// The value of the column at `index`.
    pub(super) fn at<T: Column>(&self, index: usize) -> Result<T, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(index),
            Self::Postgres(row) => row.try_get(index),
        }
    }

    fn first<T: Column>(&self) -> Result<T, sqlx::Error> {
        self.at(0)
    }
}
