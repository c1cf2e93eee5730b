//! Feeds for other machines: Suricata, Zeek, and one address per line.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;

use crate::domain::{FeedEntry, FeedFormat, FeedQuery, hex};
use crate::http::Context;
use crate::http::access::routes;
use crate::http::auth::FeedReader;
use crate::http::error::ApiError;
use crate::http::extract::Query;

/// Entries that are written at once.
const PART: usize = 500;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ContentQuery {
    /// Only what was seen within so many days, 1 to 90; 30 by default.
    #[param(minimum = 1, maximum = 90)]
    lookback_days: Option<i64>,
    /// Only what is at least so sure, 0 to 1; 0.5 by default.
    #[param(minimum = 0.0, maximum = 1.0)]
    min_confidence: Option<f64>,
}

/// Shows Suricata rules that drop what the workspace holds to be hostile: imported addresses and prefixes, and the
/// sources of ended incidents that were not judged forged; at most 10,000. Nothing that the allowlist holds is among
/// them. An address keeps its sid.
#[utoipa::path(get, path = "/feeds/suricata.rules", tag = "feeds",
    params(ContentQuery, ("If-None-Match" = Option<String>, Header, description = "The `ETag` of the feed that is there already")),
    responses((status = 200, description = "Rules, in order of address", body = String, content_type = "text/plain",
               headers(("ETag" = String, description = "Of this content, quoted"))),
              (status = 304, description = "It is there already")))]
async fn suricata(
    reader: FeedReader,
    State(context): State<Context>,
    Query(query): Query<ContentQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    feed(&reader, &context, &query, &headers, FeedFormat::Suricata).await
}

/// Shows a file of Zeek's Intel framework: as the Suricata rules, and imported domain names.
#[utoipa::path(get, path = "/feeds/zeek.intel", tag = "feeds",
    params(ContentQuery, ("If-None-Match" = Option<String>, Header, description = "The `ETag` of the feed that is there already")),
    responses((status = 200, description = "A `#fields` line and indicators, in order of value, with tabs", body = String,
               content_type = "text/plain", headers(("ETag" = String, description = "Of this content, quoted"))),
              (status = 304, description = "It is there already")))]
async fn zeek(
    reader: FeedReader,
    State(context): State<Context>,
    Query(query): Query<ContentQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    feed(&reader, &context, &query, &headers, FeedFormat::Zeek).await
}

/// Shows an address or prefix per line: what the Suricata rules drop.
#[utoipa::path(get, path = "/feeds/plain.txt", tag = "feeds",
    params(ContentQuery, ("If-None-Match" = Option<String>, Header, description = "The `ETag` of the feed that is there already")),
    responses((status = 200, description = "Addresses and prefixes, in order", body = String, content_type = "text/plain",
               headers(("ETag" = String, description = "Of this content, quoted"))),
              (status = 304, description = "It is there already")))]
async fn plain(
    reader: FeedReader,
    State(context): State<Context>,
    Query(query): Query<ContentQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    feed(&reader, &context, &query, &headers, FeedFormat::Plain).await
}

async fn feed(
    reader: &FeedReader,
    context: &Context,
    query: &ContentQuery,
    headers: &HeaderMap,
    format: FeedFormat,
) -> Result<Response, ApiError> {
    let query = FeedQuery::new(query.lookback_days, query.min_confidence, context.app.now())?;
    let entries = context.app.feed(reader.workspace, format, query).await?;
    let mut parts = Parts { format, entries, done: None };
    let mut hasher = Sha256::new();
    for part in parts.by_ref() {
        hasher.update(&part);
    }
    let tag = format!("\"{}\"", &hex(&hasher.finalize())[..32]);
    // What is kept must be asked for again: an entry may have been allowlisted meanwhile.
    let common = [
        (header::ETAG, HeaderValue::from_str(&tag).expect("hex digits and quotes are a header value")),
        (header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache")),
    ];
    if is_known(headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    parts.done = None;
    let body = Body::from_stream(stream::iter(parts.map(Ok::<_, std::io::Error>)));
    Ok((common, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// Whether `If-None-Match` names the tag (RFC 9110 section 13.1.2: compared weakly).
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|tags| {
        tags.split(',').map(str::trim).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
    })
}

/// The text of a feed, piece by piece: only its entries are in memory as a whole.
struct Parts {
    format: FeedFormat,
    entries: Vec<(FeedEntry, i64)>,
    /// Entries that were written; none before the head was.
    done: Option<usize>,
}

impl Iterator for Parts {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut part = if self.done.is_none() { self.format.head().to_owned() } else { String::new() };
        let begin = self.done.unwrap_or(0);
        let end = self.entries.len().min(begin + PART);
        for (entry, number) in &self.entries[begin..end] {
            self.format.write(&mut part, entry, *number);
        }
        let first = self.done.replace(end).is_none();
        (first || end > begin).then(|| Bytes::from(part))
    }
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(suricata)).routes(routes!(zeek)).routes(routes!(plain))
}
