//! What happens around every handler.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest, Sha256};
use tracing::{error, warn};

use super::Context;
use super::auth::{address, authenticate};
use super::error::ApiError;
use super::extract::read_body;
use super::limits::{Bucket, GENERAL, RateSlot};
use crate::domain::{Actor, Problem};
use crate::store::{Answered, Claim, Intent, Key, with_intent};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const EVERY_FEW_SECONDS: [&str; 2] = ["/api/v1/agent/heartbeat", "/api/v1/agent/metrics"];

/// Runs the rest in a task of its own: a caller who goes away does not stop a change between its commit and its
/// announcement, and a panic becomes an answer. What only reads is stopped where it is, and so is what a node says every
/// few seconds: nothing follows its commit, which many of them share.
pub(super) async fn survive_panics(request: Request, next: Next) -> Response {
    let stops = may_be_stopped(&request);
    let work = next.run(request);
    let done = if stops {
        AssertUnwindSafe(work).catch_unwind().await.map_err(|_| true)
    } else {
        tokio::spawn(work).await.map_err(|fault| fault.is_panic())
    };
    done.unwrap_or_else(|panicked| {
        // The panic hook has logged where it happened.
        error!(panicked, "a handler did not finish");
        ApiError::internal().into_response()
    })
}

/// Rate limit of callers without a token, headers of every answer, measurements.
pub(super) async fn finish(State(context): State<Context>, mut request: Request, next: Next) -> Response {
    let slot = RateSlot::default();
    request.extensions_mut().insert(slot.clone());
    let (parts, body) = request.into_parts();
    let bucket = Bucket::Address(address(&parts));
    let path = parts.uri.path().to_owned();
    let route = parts.extensions.get::<MatchedPath>().map(|p| p.as_str().to_owned());
    let method = parts.method.clone();
    let mut answer = next.run(Request::from_parts(parts, body)).await;
    let now = context.app.now();
    let rate = slot.rate().unwrap_or_else(|| {
        // Nobody asked who this is, or could not: counted by address.
        let exempt = counts_against_nobody(&path, answer.status());
        let count = if exempt { super::limits::Limiter::look } else { super::limits::Limiter::take };
        let rate = count(&context.limiter, bucket, GENERAL, now);
        if rate.exceeded && !exempt {
            answer = ApiError::rate_limited(rate.retry_after(now)).into_response();
        }
        rate
    });
    answer.headers_mut().reserve(HEADERS);
    rate.write_to(answer.headers_mut());
    secure(&mut answer);
    context.telemetry.answered(&method, route.as_deref().unwrap_or("none"), answer.status());
    answer
}

/// Whether it is a look at the server itself, or a fault of ours: nobody is refused for that.
fn counts_against_nobody(path: &str, status: StatusCode) -> bool {
    matches!(path, "/api/health" | "/api/ready" | "/metrics") || status.is_server_error()
}

/// Whether nothing is left half-done when the caller goes away. Who brings a key has claimed it, and would find it claimed.
fn may_be_stopped(request: &Request) -> bool {
    let said_again = EVERY_FEW_SECONDS.contains(&request.uri().path());
    request.method().is_safe() || said_again && !request.headers().contains_key(IDEMPOTENCY_KEY)
}

/// What every answer gets, and room for what it has and what the connection adds.
const HEADERS: usize = 16;

fn secure(answer: &mut Response) {
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// Gives the first answer again to a POST with the same `Idempotency-Key` and body by the same caller.
///
/// Answers can hold secrets that the server keeps only as hashes, so an answer is sealed with a key made of the
/// caller's credential, which the server does not keep either.
pub(super) async fn remember_answers(State(context): State<Context>, request: Request, next: Next) -> Response {
    let key = request.headers().get(IDEMPOTENCY_KEY).cloned();
    let (Some(key), &Method::POST) = (key, request.method()) else { return next.run(request).await };
    match answer_once(&context, key.as_bytes(), request, next).await {
        Ok(answer) | Err(answer) => answer,
    }
}

async fn answer_once(context: &Context, key: &[u8], request: Request, next: Next) -> Result<Response, Response> {
    if key.is_empty() || key.len() > 255 {
        return Err(ApiError::invalid_field("Idempotency-Key", "must be 1 to 255 characters").into_response());
    }
    let (mut parts, body) = request.into_parts();
    // A caller who is refused gets the refusal from the handler itself where there is one.
    let Ok((actor, _)) = authenticate(&mut parts, context).await else {
        return Ok(next.run(Request::from_parts(parts, body)).await);
    };
    let owner = match &actor {
        Actor::Token { id, .. } => format!("token/{id}"),
        Actor::Node { uuid, .. } => format!("node/{uuid}"),
        Actor::System { .. } => "system".to_owned(),
    };
    let bytes = read_body(parts.uri.path(), &parts.headers, body).await.map_err(IntoResponse::into_response)?;
    let key_hash: [u8; 32] = Sha256::digest(key).into();
    let mut hasher = Sha256::new();
    hasher.update(parts.uri.path().as_bytes());
    hasher.update([0]);
    hasher.update(&bytes);
    let request_hash: [u8; 32] = hasher.finalize().into();
    let credential = parts.headers.get(header::AUTHORIZATION).map(|v| v.as_bytes().to_vec()).unwrap_or_default();
    let seal = Seal::new(&credential, &key_hash);

    let gate = context.gates.of(&owner, key_hash);
    let _turn = gate.lock().await;
    let key = Key { hash: key_hash, request_hash };
    let claim = context.app.claim(&owner, &key).await.map_err(|e| ApiError::from(e).into_response())?;
    if claim == Claim::UnderWay {
        return Err(
            ApiError::unavailable("the first request with this Idempotency-Key is not answered yet").into_response()
        );
    }
    if let Claim::Done { request_hash: known, object } = &claim {
        let problem = if *known == request_hash {
            Problem::AlreadyExists(format!(
                "what this Idempotency-Key asked for was done ({object}); its answer was lost"
            ))
        } else {
            Problem::field("Idempotency-Key", "was used for another request within the last 24 h")
        };
        return Err(ApiError::from(problem).into_response());
    }
    // Otherwise there is an answer that cannot be opened any more, and the request is done as if it had no key.
    let ours = claim == Claim::Taken;
    if let Claim::Answered(known) = claim {
        if known.request_hash != request_hash {
            let problem = Problem::field("Idempotency-Key", "was used for another request within the last 24 h");
            return Err(ApiError::from(problem).into_response());
        }
        if let (Some(body), Ok(status)) = (seal.open(known.answer), StatusCode::from_u16(known.status)) {
            let headers =
                [(header::CONTENT_TYPE, "application/json"), (HeaderName::from_static("idempotent-replayed"), "true")];
            return Ok((status, headers, body).into_response());
        }
    }
    let work = next.run(Request::from_parts(parts, Body::from(bytes)));
    let answer = if ours { with_intent(Intent::new(owner.clone(), key), work).await } else { work.await };
    let (head, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.map_err(|_| ApiError::internal().into_response())?;
    // Refusals that say nothing of the request itself are not kept: the next try may succeed.
    let lasting = !head.status.is_server_error() && !matches!(head.status.as_u16(), 401..=403 | 408 | 413 | 415 | 429);
    if lasting && let Some(sealed) = seal.close(&body) {
        let answered = Answered { request_hash, status: head.status.as_u16(), answer: sealed };
        if let Err(fault) = context.app.remember(&owner, key_hash, &answered).await {
            error!(error = %fault, "an answer could not be kept for its Idempotency-Key");
        }
    } else if let Err(fault) = context.app.release(&owner, key_hash).await {
        warn!(error = %fault, "an Idempotency-Key could not be given free: it is in ten seconds");
    }
    Ok(Response::from_parts(head, Body::from(body)))
}

/// One request with the same key at a time: the second waits for the first one's answer.
#[derive(Default)]
pub(crate) struct Gates(Mutex<HashMap<GateKey, Weak<Gate>>>);

/// Whose key, and its hash.
type GateKey = (String, [u8; 32]);

type Gate = tokio::sync::Mutex<()>;

impl Gates {
    fn of(&self, owner: &str, key_hash: [u8; 32]) -> Arc<Gate> {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|_, gate| gate.strong_count() > 0);
        let known = gates.entry((owner.to_owned(), key_hash)).or_default();
        known.upgrade().unwrap_or_else(|| {
            let gate = Arc::default();
            *known = Arc::downgrade(&gate);
            gate
        })
    }
}

/// Seals answers with the caller's credential.
struct Seal(LessSafeKey);

impl Seal {
    fn new(credential: &[u8], key_hash: &[u8; 32]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"ftagent answer");
        hasher.update(key_hash);
        hasher.update(credential);
        let key = UnboundKey::new(&CHACHA20_POLY1305, &hasher.finalize()).expect("SHA-256 gives the 32 bytes needed");
        Self(LessSafeKey::new(key))
    }

    fn close(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::TryRngCore::try_fill_bytes(&mut rand::rngs::OsRng, &mut nonce).ok()?;
        let mut sealed = text.to_vec();
        self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed).ok()?;
        sealed.extend_from_slice(&nonce);
        Some(sealed)
    }

    fn open(&self, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let nonce: [u8; NONCE_LEN] = sealed.split_off(sealed.len().checked_sub(NONCE_LEN)?).try_into().ok()?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        Some(self.0.open_in_place(nonce, Aad::empty(), &mut sealed).ok()?.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer_without_inner_text() {
        async fn boom() -> StatusCode {
            panic!("inner text")
        }
        let router = axum::Router::<()>::new()
            .route("/", axum::routing::get(boom).post(boom))
            .layer(axum::middleware::from_fn(survive_panics));
        for method in [Method::GET, Method::POST] {
            let request = Request::builder().method(method).uri("/").body(Body::empty()).expect("a request");
            let answer = tower::ServiceExt::oneshot(router.clone(), request).await.expect("routers do not fail");
            assert_eq!(answer.status(), 500);
            let body = axum::body::to_bytes(answer.into_body(), 1_000).await.expect("short");
            let text = String::from_utf8(body.to_vec()).expect("text");
            assert!(text.contains("internal_error") && !text.contains("inner text"), "{text}");
        }
    }

    #[test]
    fn what_a_key_was_claimed_for_and_what_changes_is_not_stopped() {
        let stops = |method, path, key: Option<&str>| {
            let mut request = Request::builder().method(method).uri(path);
            if let Some(key) = key {
                request = request.header(IDEMPOTENCY_KEY, key);
            }
            may_be_stopped(&request.body(Body::empty()).expect("a request"))
        };
        assert!(stops(Method::GET, "/api/v1/nodes", None) && stops(Method::POST, "/api/v1/agent/metrics", None));
        assert!(!stops(Method::POST, "/api/v1/agent/metrics", Some("k")));
        assert!(!stops(Method::POST, "/api/v1/agent/commands/ack", None) && !stops(Method::DELETE, "/api/v1/x", None));
    }

    #[test]
    fn a_fault_of_ours_counts_against_nobody() {
        let counts = |path, status| !counts_against_nobody(path, status);
        assert!(counts("/api/v1/nodes", StatusCode::UNAUTHORIZED) && counts("/x", StatusCode::NOT_FOUND));
        assert!(!counts("/api/v1/nodes", StatusCode::SERVICE_UNAVAILABLE) && !counts("/api/ready", StatusCode::OK));
    }

    #[test]
    fn a_sealed_answer_opens_for_its_caller_alone() {
        let seal = Seal::new(b"Bearer one", &[1; 32]);
        let sealed = seal.close(b"a secret").expect("randomness");
        assert!(!sealed.windows(8).any(|w| w == b"a secret"));
        assert_eq!(seal.open(sealed.clone()).as_deref(), Some(b"a secret".as_slice()));
        assert_eq!(Seal::new(b"Bearer two", &[1; 32]).open(sealed.clone()), None);
        assert_eq!(Seal::new(b"Bearer one", &[2; 32]).open(sealed), None);
        assert_eq!(seal.open(vec![1, 2]), None);
    }
}
