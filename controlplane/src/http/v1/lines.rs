//! Rows as a file of lines, streamed: memory does not grow with their number.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::store::Result;

/// A file's format.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    Csv,
    Jsonl,
}

/// Rows that come in parts, each following from the last row of the part before.
pub(super) trait Rows: Send + 'static {
    /// The file's name without its ending.
    const NAME: &'static str;
    const COLUMNS: &'static [&'static str];
    type Row: Serialize + Send;

    /// The next part; empty at the end.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Self::Row>>> + Send;

    /// A row's fields in the order of the columns.
    fn fields(row: &Self::Row) -> Vec<String>;
}

/// The answer with all rows.
///
/// # Errors
/// When the first part cannot be read: later faults cut the answer off, since its status is then gone.
pub(super) async fn stream<R: Rows>(mut rows: R, format: Format) -> Result<Response, ApiError> {
    let mut first = match format {
        Format::Csv => format!("{}\r\n", R::COLUMNS.join(",")),
        Format::Jsonl => String::new(),
    };
    let begun = part(&mut rows, format).await?;
    let more = begun.is_some().then_some(rows);
    first.push_str(&begun.unwrap_or_default());
    let rest = stream::unfold(more, move |rows| async move {
        let mut rows = rows?;
        match part(&mut rows, format).await {
            Ok(None) => None,
            Ok(Some(part)) => Some((Ok(Bytes::from(part)), Some(rows))),
            Err(fault) => {
                warn!(error = %fault, file = R::NAME, "an export was cut off");
                Some((Err(std::io::Error::other("the database cannot answer")), None))
            }
        }
    });
    let body = Body::from_stream(stream::once(async { Ok::<_, std::io::Error>(Bytes::from(first)) }).chain(rest));
    let (content_type, ending) = match format {
        Format::Csv => ("text/csv; charset=utf-8", "csv"),
        Format::Jsonl => ("application/x-ndjson", "jsonl"),
    };
    let disposition = format!("attachment; filename=\"{}.{ending}\"", R::NAME);
    let headers = [(header::CONTENT_TYPE, content_type.to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, body).into_response())
}

async fn part<R: Rows>(rows: &mut R, format: Format) -> Result<Option<String>> {
    let next = rows.next().await?;
    let line = |row: &R::Row| match format {
        Format::Csv => R::fields(row).iter().map(|f| csv_field(f)).collect::<Vec<_>>().join(",") + "\r\n",
        Format::Jsonl => serde_json::to_string(row).expect("a row has string keys") + "\n",
    };
    Ok((!next.is_empty()).then(|| next.iter().map(line).collect()))
}

/// Quotes a field (RFC 4180); one that a spreadsheet would run as a formula is led by an apostrophe.
fn csv_field(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_never_a_formula_and_never_breaks_its_row() {
        for (text, expected) in [
            ("edge-1", "edge-1"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("=cmd|'/c calc'!A0", "'=cmd|'/c calc'!A0"),
            ("+1", "'+1"),
            ("@x\ny", "\"'@x\ny\""),
        ] {
            assert_eq!(csv_field(text), expected);
        }
    }
}
