//! Captures that nodes uploaded.

use std::fs::File;
use std::io::SeekFrom;
use std::ops::RangeInclusive;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;

use crate::analysis::{Analysis, PacketRow};
use crate::domain::{Page, Pcap};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{Path, Query};
use crate::http::{Context, Done, answers};

/// What is read at once.
const PIECE: usize = 64 << 10;

answers! {
    PcapList { pcaps: Vec<Pcap>, total: u64 }
    /// In the order of the file. Where the file breaks off or is damaged, `truncated` and `errors` say so, and `total` is
    /// what could be read.
    PcapPackets { packets: Vec<PacketRow>, total: u64, truncated: bool, errors: Vec<String> }
    PcapAnalysis { analysis: Analysis }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct PcapQuery {
    /// Captures per page, 1 to 100; 50 by default.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<i64>,
    #[param(minimum = 0)]
    offset: Option<i64>,
}

/// Lists captures of incidents. Role: readonly.
#[utoipa::path(get, path = "/pcaps", tag = "pcaps", params(PcapQuery),
    responses((status = 200, description = "Captures, newest first", body = PcapList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<PcapQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let page = Page::new(query.limit, query.offset, 50, 100)?;
    let listed = context.app.pcaps(&operator.actor, page).await?;
    Ok(PcapList::new(listed.entries, listed.total))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct PacketQuery {
    /// Packets per page, 1 to 1,000; 100 by default.
    #[param(minimum = 1, maximum = 1_000)]
    limit: Option<i64>,
    /// Packets that are passed over.
    #[param(minimum = 0)]
    offset: Option<i64>,
}

/// Lists the packets of a capture, in the order of its file. Role: readonly.
///
/// pcap and pcapng of any byte order; Ethernet with VLANs, raw IP, null and loopback, Linux cooked (v1, v2) and PPP.
/// Packets of other link layers are listed as `undecoded`.
#[utoipa::path(get, path = "/pcaps/{id}/packets", tag = "pcaps",
    params(("id" = i64, Path, description = "The capture"), PacketQuery),
    responses((status = 200, description = "Packets, first of the file first", body = PcapPackets)))]
async fn packets(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    Query(query): Query<PacketQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let page = Page::new(query.limit, query.offset, 100, 1_000)?;
    let read = context.app.pcap_packets(&operator.actor, id, page).await?;
    Ok(PcapPackets::new(read.packets, read.total, read.truncated, read.errors))
}

/// Analyses a capture: vector, totals, sources, ports, and what could be done. Role: readonly.
///
/// Computed from the packets' numbers on this machine; the answer is remembered by the file's hash.
#[utoipa::path(get, path = "/pcaps/{id}/analysis", tag = "pcaps", params(("id" = i64, Path, description = "The capture")),
    responses((status = 200, description = "What the packets are", body = PcapAnalysis)))]
async fn analysis(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    let analysis = context.app.pcap_analysis(&operator.actor, id).await?;
    Ok(PcapAnalysis::new(Analysis::clone(&analysis)))
}

/// Downloads a capture, whole or one range of it. Role: readonly.
///
/// pcapng has no media type of its own, and programs that open the one open the other: the file's name says which it is.
/// Several ranges at once are not understood, which as RFC 9110 has it gives the whole file.
#[utoipa::path(get, path = "/pcaps/{id}/download", tag = "pcaps",
    params(("id" = i64, Path, description = "The capture"),
           ("Range" = Option<String>, Header, description = "One range of bytes, such as `bytes=1048576-`"),
           ("If-Range" = Option<String>, Header, description = "The `ETag` that the range is of; the whole file comes if it is another's"),
           ("If-None-Match" = Option<String>, Header, description = "An `ETag` that is there already, or several")),
    responses((status = 200, description = "The file, pcap or pcapng", body = String, content_type = "application/vnd.tcpdump.pcap",
                   headers(("ETag" = String, description = "Of the file's hash"),
                           ("Content-Disposition" = String, description = "`attachment` with a name: `inc_<8 hex>-<part>.<pcap or pcapng>`"),
                           ("Accept-Ranges" = String, description = "`bytes`"))),
              (status = 206, description = "The range of it", body = String, content_type = "application/vnd.tcpdump.pcap",
                   headers(("Content-Range" = String, description = "Which bytes of how many"))),
              (status = 304, description = "It is the one that `If-None-Match` names"),
              (status = 416, description = "`range_not_satisfiable`: `Content-Range` says how long the file is",
                   body = crate::http::error::ErrorAnswer)))]
async fn download(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (pcap, file) = context.app.pcap(&operator.actor, id).await?;
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = format!("\"{}\"", pcap.sha256);
    if text(header::IF_NONE_MATCH).is_some_and(|tags| names(tags, &etag)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let wanted = text(header::RANGE).filter(|_| text(header::IF_RANGE).is_none_or(|tag| tag.trim() == etag));
    let range = match wanted.map(|text| range(text, pcap.bytes)) {
        None | Some(Wanted::Whole) => None,
        Some(Wanted::Range(range)) => Some(range),
        Some(Wanted::Nothing) => {
            let length = format!("bytes */{}", pcap.bytes);
            return Ok(([(header::CONTENT_RANGE, length)], ApiError::range(pcap.bytes)).into_response());
        }
    };
    let (first, length) = range.as_ref().map_or((0, pcap.bytes), |r| (*r.start(), r.end() - r.start() + 1));
    let common = [
        (header::CONTENT_TYPE, "application/vnd.tcpdump.pcap".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", pcap.file_name())),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, etag),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    let body = pieces(file, first, length).await;
    Ok(match range {
        None => (common, body).into_response(),
        Some(range) => {
            let place = format!("bytes {}-{}/{}", range.start(), range.end(), pcap.bytes);
            (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, place)], common, body).into_response()
        }
    })
}

/// Deletes a capture and its file. Role: admin.
#[utoipa::path(delete, path = "/pcaps/{id}", tag = "pcaps", params(("id" = i64, Path, description = "The capture")),
    responses((status = 200, description = "Deleted", body = Done)))]
async fn delete(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.delete_pcap(&operator.actor, id).await?;
    Ok(Done::new(Some(id)))
}

/// Whether `If-None-Match` names `etag` (RFC 9110 section 13.1.2): weak ones count as well there.
fn names(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// What a `Range` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// It is none that is understood, which is as good as none.
    Whole,
    Range(RangeInclusive<u64>),
    /// It lies outside.
    Nothing,
}

/// Reads `Range` for a file of `bytes` (RFC 9110, section 14.2); several ranges are not understood.
fn range(text: &str, bytes: u64) -> Wanted {
    let Some((first, last)) = text.trim().strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return Wanted::Whole;
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let end = bytes.saturating_sub(1);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => Wanted::Whole,
        (Some(first), _) if first >= bytes => Wanted::Nothing,
        (Some(first), Some(last)) => Wanted::Range(first..=last.min(end)),
        (Some(first), None) if last.is_empty() => Wanted::Range(first..=end),
        (None, Some(0)) if first.is_empty() => Wanted::Nothing,
        (None, Some(newest)) if first.is_empty() => Wanted::Range(bytes.saturating_sub(newest)..=end),
        _ => Wanted::Whole,
    }
}

/// `length` bytes of a file from `first` on.
async fn pieces(file: File, first: u64, length: u64) -> Body {
    let mut file = tokio::fs::File::from_std(file);
    let sought = file.seek(SeekFrom::Start(first)).await;
    let state = (file.take(length), sought.err());
    Body::from_stream(stream::unfold(Some(state), |state| async {
        let (mut file, fault) = state?;
        if let Some(fault) = fault {
            return Some((Err(fault), None));
        }
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(length) => {
                piece.truncate(length);
                Some((Ok(Bytes::from(piece)), Some((file, None))))
            }
            Err(fault) => Some((Err(fault), None)),
        }
    }))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(packets))
        .routes(routes!(analysis))
        .routes(routes!(download))
        .routes(routes!(delete))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_among_several() {
        for (tags, expected) in [
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", \"a\"", true),
            ("*", true),
            ("\"b\"", false),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(names(tags, "\"a\""), expected, "{tags}");
        }
    }

    #[test]
    fn one_range_is_understood() {
        for (text, expected) in [
            ("bytes=0-9", Wanted::Range(0..=9)),
            ("bytes=90-", Wanted::Range(90..=99)),
            ("bytes=90-1000", Wanted::Range(90..=99)),
            ("bytes=-10", Wanted::Range(90..=99)),
            ("bytes=-1000", Wanted::Range(0..=99)),
            ("bytes=100-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=9-8", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("lines=1-2", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            assert_eq!(range(text, 100), expected, "{text}");
        }
    }
}
