//! Captures on their way from nodes: whole ones as multipart, others in chunks.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use super::multipart;
use crate::app::{Begun, Progress};
use crate::domain::{CHUNK_BYTES, NewChunk, Pcap, Problem, Quota, UPLOADS_PER_HOUR, parse_sha256};
use crate::http::access::routes;
use crate::http::auth::Agent;
use crate::http::error::ApiError;
use crate::http::extract::Path;
use crate::http::limits::{Rate, RateSlot};
use crate::http::{Context, answers};
use crate::store::StoreError;
use crate::store::files::Receiving;

/// How long a chunk may take: 2 MiB at 140 kbit/s.
const CHUNK_TIME: Duration = Duration::from_secs(120);
/// What multipart adds to a file, at most.
const MULTIPART_BYTES: u64 = 16 << 10;

answers! {
    /// How far an upload is.
    PcapAnswer {
        /// As it was sent, or made here.
        upload_id: String,
        /// Whether all chunks are here; then `pcap` is the capture.
        complete: bool,
        /// Indices of the chunks that are here.
        received: Vec<u32>,
        /// Indices of those that are not.
        missing: Vec<u32>,
        #[serde(skip_serializing_if = "Option::is_none")] pcap: Option<Pcap>
    }
}

/// What a body holds.
enum Form {
    Chunk,
    /// A whole file, between these lines.
    Multipart(String),
}

/// Takes a capture of an incident: `multipart/form-data` with one file of up to 2 MiB, or chunks of up to 2 MiB each as
/// `application/octet-stream`, in any order.
///
/// Every answer lists the chunks that are here. Chunks may be sent again, also after the capture is complete. An upload
/// that stands still for a day is forgotten. A node may complete 10 captures an hour.
#[utoipa::path(post, path = "/agent/incidents/{uuid}/pcap", tag = "agent",
    params(("uuid" = Uuid, Path, description = "The incident, one of the node's own"),
           ("X-Upload-Id" = Option<String>, Header, pattern = "^[A-Za-z0-9_-]{1,64}$",
            description = "The node's word for the upload; needed for chunks"),
           ("X-Chunk-Index" = Option<u32>, Header, description = "From 0; needed for chunks"),
           ("X-Chunk-Total" = Option<u32>, Header, minimum = 1, description = "Needed for chunks"),
           ("X-Capture-Sha256" = Option<String>, Header, pattern = "^[0-9A-Fa-f]{64}$",
            description = "Of the whole capture; another one is refused"),
           ("X-Capture-Part" = Option<u32>, Header, minimum = 1, maximum = 10_000,
            description = "Of a long attack's capture, from 1"),
           ("X-Capture-Packets" = Option<u64>, Header, description = "Packets in the capture")),
    request_body(content(
        (String = "application/octet-stream"),
        (String = "multipart/form-data"))),
    responses((status = 200, description = "Kept", body = PcapAnswer),
              (status = 413, description = "`payload_too_large`: a body has at most 2 MiB, a capture `pcap_max_bytes`", body = crate::http::error::ErrorAnswer),
              (status = 415, description = "`unsupported_media_type`: send `application/octet-stream` or `multipart/form-data`", body = crate::http::error::ErrorAnswer)))]
async fn upload(
    agent: Agent,
    State(context): State<Context>,
    Path(incident): Path<Uuid>,
    Extension(rates): Extension<RateSlot>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PcapAnswer>, ApiError> {
    let form = form(&headers).ok_or_else(ApiError::capture_type)?;
    let most = if matches!(form, Form::Chunk) { CHUNK_BYTES } else { CHUNK_BYTES + MULTIPART_BYTES };
    if announced(&headers).is_some_and(|length| length > most) {
        return Err(ApiError::too_large(usize::try_from(most).unwrap_or(usize::MAX)));
    }
    let chunk = chunk(incident, &form, &headers).and_then(|c| Ok(c.check(context.app.max_capture_bytes())?));
    let begun = match chunk {
        Ok(chunk) => context.app.begin_chunk(agent.node, &chunk).await.map(|begun| (chunk, begun)).map_err(|fault| {
            if let StoreError::Problem(Problem::TooMany { wait_secs, .. }) = &fault {
                let wait = i64::try_from(*wait_secs).unwrap_or(3_600);
                rates.note_own(rate(Quota { remaining: 0, reset: context.app.now().plus_secs(wait) }, true));
            }
            fault.into()
        }),
        Err(refusal) => Err(refusal),
    };
    let (chunk, (quota, begun)) = match begun {
        Ok(begun) => begun,
        Err(refusal) => {
            // Whoever is still sending would not hear the answer.
            drain(body, most).await;
            return Err(refusal);
        }
    };
    rates.note_own(rate(quota, false));
    let progress = match begun {
        Begun::Done(progress) => {
            drain(body, most).await;
            progress
        }
        Begun::Receive(key) => {
            let (received, _permit) = context.app.receive().await?;
            let mut received = take(body, received, most).await?;
            if let Form::Multipart(boundary) = form {
                let file_in = move |body: &[u8]| multipart::file(body, &boundary);
                received = context.app.unpack(received, file_in).await?;
                if received.bytes() > CHUNK_BYTES {
                    return Err(ApiError::too_large(usize::try_from(CHUNK_BYTES).unwrap_or(usize::MAX)));
                }
            }
            context.app.keep_chunk(&agent.actor, agent.node, &chunk, key, received).await?
        }
    };
    let Progress { received, missing, pcap } = progress;
    Ok(PcapAnswer::new(chunk.upload, pcap.is_some(), received, missing, pcap))
}

fn rate(quota: Quota, exceeded: bool) -> Rate {
    Rate { limit: UPLOADS_PER_HOUR, remaining: quota.remaining, reset: quota.reset, exceeded }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn form(headers: &HeaderMap) -> Option<Form> {
    let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/octet-stream" | "application/vnd.tcpdump.pcap" => Some(Form::Chunk),
        "multipart/form-data" => multipart::boundary(content_type).map(Form::Multipart),
        _ => None,
    }
}

/// Reads the headers; a file that comes whole is the only chunk of its upload.
fn chunk(incident: Uuid, form: &Form, headers: &HeaderMap) -> Result<NewChunk, ApiError> {
    let whole = matches!(form, Form::Multipart(_));
    let fallback = |value| if whole { Some(value) } else { None };
    let id = match text(headers, "x-upload-id")? {
        Some(id) => id.to_owned(),
        None if whole => Uuid::new_v4().to_string(),
        None => return Err(ApiError::invalid_field("X-Upload-Id", "is needed for chunks")),
    };
    let sha256 = text(headers, "x-capture-sha256")?
        .map(|text| {
            parse_sha256(text).ok_or_else(|| ApiError::invalid_field("X-Capture-Sha256", "must be 64 hex digits"))
        })
        .transpose()?;
    Ok(NewChunk {
        incident,
        upload: id,
        index: number(headers, "X-Chunk-Index", fallback(0))?,
        total: number(headers, "X-Chunk-Total", fallback(1))?,
        part: number(headers, "X-Capture-Part", Some(1))?,
        packets: match headers.get("x-capture-packets") {
            None => None,
            Some(_) => Some(number(headers, "X-Capture-Packets", None)?),
        },
        sha256,
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, ApiError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    value.to_str().map(Some).map_err(|_| ApiError::invalid_field(name, "must be text"))
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, name: &'static str, fallback: Option<T>) -> Result<T, ApiError> {
    let wrong = || ApiError::invalid_field(name, "must be a number without a sign");
    match headers.get(name) {
        None => fallback.ok_or_else(|| ApiError::invalid_field(name, "is needed for chunks")),
        Some(value) => {
            let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            digits.ok_or_else(wrong)?.parse().map_err(|_| wrong())
        }
    }
}

/// Streams a body to disk.
async fn take(mut body: Body, mut received: Receiving, most: u64) -> Result<Receiving, ApiError> {
    let receiving = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::invalid("the body ended before its time"))?;
            let Ok(piece) = frame.into_data() else { continue };
            if received.bytes() + piece.len() as u64 > most {
                return Err(ApiError::too_large(usize::try_from(most).unwrap_or(usize::MAX)));
            }
            received.write(&piece).await?;
        }
        received.finish().await?;
        Ok(received)
    };
    tokio::time::timeout(CHUNK_TIME, receiving).await.map_err(|_| ApiError::too_slow())?
}

/// Reads what is not wanted, within the same bounds.
async fn drain(mut body: Body, most: u64) {
    let draining = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, |piece| piece.len() as u64);
            if bytes > most {
                return;
            }
        }
    };
    // One that is too slow hears nothing, and comes again.
    drop(tokio::time::timeout(CHUNK_TIME, draining).await);
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(upload))
}
