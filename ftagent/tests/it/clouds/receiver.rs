//! Receivers that hold what providers hold and take what their published APIs take, and nothing else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::cloudflare::Cloudflare;
use super::digitalocean::Digitalocean;
use super::vultr::Vultr;

pub(super) const TOKEN: &str = "a-key-of-the-tests-0123456789";

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// This answer, with a `Retry-After` if it says so, and no effect.
    Status(u16, Option<&'static str>),
    /// The connection closes, before or after the effect.
    Drop { after: bool },
    /// The effect is there at once, the answer after so long.
    Slow(Duration),
    /// The effect is there, and the answer is none.
    Garbage,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sent {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: Value,
}

/// One provider's side.
pub(super) trait Cloud {
    /// Status and body; none for an answer without one.
    fn answer(&mut self, method: &str, path: &str, query: &str, body: &Value) -> (u16, Value);

    /// What it holds, for comparison.
    fn snapshot(&self) -> Value;

    /// Whether a packet from `source` would be kept out.
    fn blocks(&self, source: &str) -> bool;

    /// The words of a refused key.
    fn refusal(&self, status: u16) -> Value;
}

pub(super) struct State {
    pub(super) cloud: Box<dyn Cloud + Send>,
    pub(super) troubles: VecDeque<Option<Trouble>>,
    /// Troubles of requests that change something alone.
    pub(super) changes: VecDeque<Option<Trouble>>,
    pub(super) log: Vec<Sent>,
    pub(super) token: String,
    /// The status of a key that is not the right one.
    pub(super) refuses_with: u16,
}

impl State {
    pub(super) fn sent_changes(&self) -> Vec<Sent> {
        self.log.iter().filter(|sent| sent.method != "GET").cloned().collect()
    }
}

/// A receiver on this machine; it ends with the value.
pub(super) struct Receiver {
    pub(super) url: String,
    state: Arc<Mutex<State>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Receiver {
    pub(super) fn new(tool: &str) -> Self {
        let cloud: Box<dyn Cloud + Send> = match tool {
            "cloudflare" => Box::new(Cloudflare::default()),
            "digitalocean" => Box::new(Digitalocean::new()),
            _ => Box::new(Vultr::new()),
        };
        let state = State {
            cloud,
            troubles: VecDeque::new(),
            changes: VecDeque::new(),
            log: Vec::new(),
            token: TOKEN.to_owned(),
            refuses_with: 401,
        };
        let state = Arc::new(Mutex::new(state));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = service_fn(move |request| serve(Arc::clone(&shared), request));
                    let served = hyper::server::conn::http1::Builder::new();
                    drop(served.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { url, state, runtime: Some(runtime) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn snapshot(&self) -> Value {
        self.state().cloud.snapshot()
    }

    pub(super) fn blocks(&self, source: &str) -> bool {
        self.state().cloud.blocks(source)
    }

    /// What somebody else does, past the agent.
    pub(super) fn by_hand(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        self.state().cloud.answer(method, path, query, body)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The connection closes without an answer.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed")
    }
}

impl std::error::Error for Closed {}

async fn serve(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Closed> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
    let (answer, pause) = {
        let mut state = state.lock().unwrap();
        let path = head.uri.path().strip_prefix("/base").unwrap_or("?").to_owned();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let method = head.method.to_string();
        let json: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        if !body.is_empty() {
            assert_eq!(head.headers["content-type"], "application/json");
        }
        state.log.push(Sent { method: method.clone(), path: path.clone(), body: json.clone() });
        let mut trouble = state.troubles.pop_front().flatten();
        if method != "GET" {
            trouble = trouble.or_else(|| state.changes.pop_front().flatten());
        }
        let expected = format!("Bearer {}", state.token);
        let is_let_in = head.headers.get("authorization").is_some_and(|sent| sent.as_bytes() == expected.as_bytes());
        let answer = |state: &mut State| {
            if is_let_in {
                state.cloud.answer(&method, &path, &query, &json)
            } else {
                (state.refuses_with, state.cloud.refusal(state.refuses_with))
            }
        };
        match trouble {
            Some(Trouble::Status(status, after)) => (response(status, &json!({ "message": "not now" }), after), None),
            Some(Trouble::Drop { after }) => {
                if after {
                    answer(&mut state);
                }
                return Err(Closed);
            }
            Some(Trouble::Slow(pause)) => {
                let (status, body) = answer(&mut state);
                (response(status, &body, None), Some(pause))
            }
            Some(Trouble::Garbage) => {
                answer(&mut state);
                (Response::new(Full::new("<html>".into())), None)
            }
            None => {
                let (status, body) = answer(&mut state);
                (response(status, &body, None), None)
            }
        }
    };
    if let Some(pause) = pause {
        tokio::time::sleep(pause).await;
    }
    Ok::<_, Closed>(answer)
}

fn response(status: u16, body: &Value, after: Option<&str>) -> Response<Full<Bytes>> {
    let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let mut response = Response::builder().status(status);
    if let Some(after) = after {
        response = response.header("retry-after", after);
    }
    response.body(Full::new(bytes)).unwrap()
}

/// The keys of an object are these, the first `required` of them in any case.
pub(super) fn has_keys(body: &Value, keys: &[&str], required: usize) -> bool {
    let Some(object) = body.as_object() else { return false };
    object.keys().all(|key| keys.contains(&key.as_str()))
        && keys[..required].iter().all(|key| object.contains_key(*key))
}

pub(super) fn query<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}
