//! Reading bodies, paths and queries: what cannot be read is answered in our own shape.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::json::Strict;

/// The largest body: 1 MiB.
pub(crate) const MAX_BODY: usize = 1_048_576;
/// The largest body of an operation that takes a firewall rule's action: 100,000 prefixes of IPv6, a line each, and room
/// to spare.
pub(crate) const MAX_RULE_BODY: usize = 6 * 1_048_576;
/// How long a whole body may take.
const BODY_TIME: Duration = Duration::from_secs(15);

/// The largest body of what `path` names.
fn most_of(path: &str) -> usize {
    let mut parts = path.trim_start_matches("/api/v1").split('/').skip(1);
    if parts.next() == Some("firewall-rules") { MAX_RULE_BODY } else { MAX_BODY }
}

/// Reads a whole body. Who sends it is known already.
pub(crate) async fn read_body(path: &str, headers: &HeaderMap, mut body: Body) -> Result<Bytes, ApiError> {
    let most = most_of(path);
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > most as u64) {
        return Err(ApiError::too_large(most));
    }
    let reading = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::invalid("the body ended before its time"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > most {
                return Err(ApiError::too_large(most));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    };
    tokio::time::timeout(BODY_TIME, reading).await.map_err(|_| ApiError::too_slow())?
}

/// A JSON body.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        if !is_json(&parts.headers) {
            return Err(ApiError::media_type());
        }
        let bytes = read_body(parts.uri.path(), &parts.headers, body).await?;
        parse(&bytes).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::invalid("the body must be a JSON object"));
    }
    // Where a fault lies is only looked for once there is one: remembering the way costs as much as reading.
    let mut json = serde_json::Deserializer::from_slice(bytes);
    if let Ok(value) = T::deserialize(Strict(&mut json))
        && json.end().is_ok()
    {
        return Ok(value);
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(Strict(&mut json)).map_err(|e| {
        let path = e.path().to_string();
        unreadable(&path, &e.into_inner().to_string())
    })?;
    json.end().map_err(|e| ApiError::invalid(shorten(&e.to_string())))?;
    Ok(value)
}

/// Refuses what lies at `path`, and names the field that serde names in its message only.
fn unreadable(path: &str, message: &str) -> ApiError {
    let quoted = ["missing field `", "duplicate field `", "unknown field `"];
    let named = quoted.iter().find_map(|begin| message.strip_prefix(begin)).and_then(|rest| rest.split('`').next());
    let field = match (path, named) {
        (".", None) => return ApiError::invalid(shorten(message)),
        (".", Some(name)) => name.to_owned(),
        (path, None) => path.to_owned(),
        (path, Some(name)) if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        (path, Some(name)) => format!("{path}.{name}"),
    };
    // An unknown field's name is the caller's.
    ApiError::invalid_field(field.chars().take(128).collect::<String>(), shorten(message))
}

/// Keeps a message that quotes the caller's text at a length fit for an answer.
fn shorten(message: &str) -> String {
    const MAX: usize = 400;
    if message.chars().count() <= MAX {
        return message.to_owned();
    }
    message.chars().take(MAX).chain("...".chars()).collect()
}

/// Parameters of the path.
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // Rust reads a sign before a number; an id has one spelling.
        let raw = axum::extract::RawPathParams::from_request_parts(parts, state).await;
        if raw.is_ok_and(|raw| raw.iter().any(|(_, value)| value.starts_with('+'))) {
            return Err(ApiError::invalid_field(last_parameter(parts), "must not begin with a sign"));
        }
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid_field(last_parameter(parts), shorten(&rejection.body_text()))),
        }
    }
}

/// The name of the route's last parameter; our routes have one each.
fn last_parameter(parts: &Parts) -> String {
    let route = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str).unwrap_or_default();
    let name = route.rsplit('/').find_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    name.unwrap_or("path").to_owned()
}

/// Parameters of the query.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = serde_urlencoded::Deserializer::new(url::form_urlencoded::parse(query.as_bytes()));
        serde_path_to_error::deserialize(pairs)
            .map(Self)
            .map_err(|e| unreadable(&e.path().to_string(), &e.inner().to_string()))
    }
}
