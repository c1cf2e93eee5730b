//! A receiver of webhooks on loopback that checks signatures and fails on demand.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use ring::hmac;
use serde_json::Value;

/// What signs.
pub(crate) const TOKEN: &str = "correct horse battery";

/// What it does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Take,
    Answer(u16),
    /// Answers after this time.
    After(Duration),
    Hang,
    Redirect,
    /// A success with an endless body.
    Flood,
}

/// A request that was understood.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) key: Option<String>,
    pub(crate) body: Value,
}

impl Got {
    pub(crate) fn action(&self) -> &str {
        self.body["action"].as_str().unwrap()
    }
}

struct Inner {
    signed: bool,
    mood: Mutex<Mood>,
    got: Mutex<Vec<Got>>,
    elsewhere: AtomicUsize,
}

#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) url: String,
    inner: Arc<Inner>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        Self::start_with(true).await
    }

    /// One that takes requests of anybody.
    pub(crate) async fn start_unsigned() -> Self {
        Self::start_with(false).await
    }

    async fn start_with(signed: bool) -> Self {
        let (mood, got) = (Mutex::new(Mood::Take), Mutex::default());
        let inner = Arc::new(Inner { signed, mood, got, elsewhere: AtomicUsize::new(0) });
        let counted = inner.clone();
        let router = Router::new()
            .route("/hook", axum::routing::post(take))
            .with_state(inner.clone())
            .fallback(move || async move { counted.elsewhere.fetch_add(1, Ordering::SeqCst).to_string() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, inner }
    }

    pub(crate) fn turn(&self, mood: Mood) {
        *self.inner.mood.lock().unwrap() = mood;
    }

    /// What came so far, in order.
    pub(crate) fn got(&self) -> Vec<Got> {
        self.inner.got.lock().unwrap().clone()
    }

    pub(crate) fn actions(&self) -> Vec<String> {
        self.got().iter().map(|got| got.action().to_owned()).collect()
    }

    /// Requests to other paths, to which redirects lead.
    pub(crate) fn elsewhere(&self) -> usize {
        self.inner.elsewhere.load(Ordering::SeqCst)
    }

    /// Waits until this many requests came.
    pub(crate) async fn wait_for(&self, count: usize) {
        tokio::time::timeout(Duration::from_secs(60), async {
            while self.got().len() < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
    }
}

/// Whether it was signed with [`TOKEN`].
fn is_signed(headers: &HeaderMap, body: &[u8]) -> bool {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let signed = [text("x-ftagent-timestamp").as_bytes(), b".", body].concat();
    let hex = |what: &[u8]| -> String {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, TOKEN.as_bytes()), what);
        tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    text("x-ftagent-signature") == format!("v1={}", hex(&signed))
        && text("x-flowtriq-signature") == format!("sha256={}", hex(body))
}

async fn take(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    if inner.signed && !is_signed(&headers, &body) {
        return (StatusCode::UNAUTHORIZED, "the signature is wrong").into_response();
    }
    let key = headers.get("idempotency-key").map(|v| v.to_str().unwrap().to_owned());
    inner.got.lock().unwrap().push(Got { key, body: serde_json::from_slice(&body).unwrap() });
    let mood = *inner.mood.lock().unwrap();
    match mood {
        Mood::Take => StatusCode::NO_CONTENT.into_response(),
        Mood::Answer(status) => (StatusCode::from_u16(status).unwrap(), "as\nasked").into_response(),
        Mood::After(time) => {
            tokio::time::sleep(time).await;
            StatusCode::OK.into_response()
        }
        Mood::Hang => std::future::pending().await,
        Mood::Redirect => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "/elsewhere")]).into_response(),
        Mood::Flood => vec![b'x'; 1 << 20].into_response(),
    }
}
