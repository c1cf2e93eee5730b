//! HTTP/1.1 to one server at a time: bounded answers, time limits, no redirects.
//!
//! Knows nothing of the agent protocol. One [`Connection`] per task is kept open between requests. What failed is told
//! to [`Servers`], which then say another.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::body::Paced;
use super::servers::{Route, Server, Servers};

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("cannot connect to {server}: {source}")]
    Connect { server: String, source: io::Error },
    #[error("no TLS with {server}: {why}")]
    Tls { server: String, why: String },
    #[error("{server} did not answer within {secs} s")]
    TimedOut { server: String, secs: u64 },
    #[error("{server} answered with more than {limit} bytes")]
    TooLarge { server: String, limit: usize },
    #[error("{server} closed the connection or spoke no HTTP: {why}")]
    Protocol { server: String, why: String },
    #[error("the request cannot be formed: {0}")]
    Request(#[from] hyper::http::Error),
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// A header as text, if it is there and is text.
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What to ask.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// From the root, with query.
    pub(super) path: &'a str,
    pub(super) headers: &'a HeaderMap,
    /// JSON, unless the headers say otherwise.
    pub(super) body: Option<Bytes>,
}

/// A connection that is opened when needed and kept.
pub(super) struct Connection {
    servers: Arc<Servers>,
    /// This server alone, whichever is the current one.
    pinned: Option<usize>,
    /// Without the client certificate.
    anonymous: bool,
    /// For each of connecting and answering.
    limit: Duration,
    /// Bytes per second of bodies.
    pace: Option<NonZeroU64>,
    open: Option<Open>,
    /// Counts what was opened.
    opened: u64,
    /// Where the last request went.
    last: Route,
}

struct Open {
    route: Route,
    sender: SendRequest<Paced>,
    driver: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Nothing is opened yet.
    pub(super) fn new(servers: Arc<Servers>, limit: Duration) -> Self {
        let last = servers.route();
        Self { servers, pinned: None, anonymous: false, limit, pace: None, open: None, opened: 0, last }
    }

    /// With bodies that are no faster than so many bytes per second.
    pub(super) fn paced(self, bytes_per_sec: NonZeroU64) -> Self {
        Self { pace: Some(bytes_per_sec), ..self }
    }

    /// To the server with this number alone; its failures concern nobody else.
    pub(super) fn pinned(self, number: usize) -> Self {
        Self { pinned: Some(number), ..self }
    }

    /// That shows no client certificate.
    pub(super) fn anonymous(self) -> Self {
        Self { anonymous: true, ..self }
    }

    /// Grows with each connection that had to be opened.
    pub(super) const fn opened(&self) -> u64 {
        self.opened
    }

    /// Where the last request went.
    pub(super) const fn route(&self) -> Route {
        self.last
    }

    /// The server that was asked last is not well: the next one is everybody's from now on.
    pub(super) fn give_up(&mut self) {
        self.open = None;
        if self.pinned.is_none() {
            self.servers.failed(self.last);
        }
    }

    fn server(&self) -> &Server {
        self.servers.server(self.last.server)
    }

    fn protocol(&self, fault: &(dyn std::error::Error + 'static)) -> CallError {
        let server = self.server().name();
        // What is wrong with our certificate is told after the handshake, when the first answer is awaited.
        match self.servers.explain(fault) {
            Some(why) => CallError::Tls { server, why },
            None => CallError::Protocol { server, why: fault.to_string() },
        }
    }

    /// Sends `call` and reads the whole answer, at most `max_bytes`.
    ///
    /// A kept connection that turns out to be closed is replaced once: every message of the protocol may be repeated.
    pub(super) async fn call(&mut self, call: &Call<'_>, max_bytes: usize) -> Result<Answer, CallError> {
        let kept = self.open.is_some();
        let answer = self.call_once(call, max_bytes).await;
        let answer = match answer {
            Err(CallError::Protocol { .. }) if kept => self.call_once(call, max_bytes).await,
            answer => answer,
        };
        if answer.as_ref().map_or(true, |answer| answer.status >= 500) {
            self.give_up();
        }
        answer
    }

    /// The same, sent once: for what has an effect that must be looked for before it is repeated.
    pub(super) async fn call_once(&mut self, call: &Call<'_>, max_bytes: usize) -> Result<Answer, CallError> {
        let limit = self.limit;
        let whole = async {
            let response = self.send(call).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, max_bytes).collect().await.map_err(|e| {
                if e.is::<LengthLimitError>() {
                    CallError::TooLarge { server: self.server().name(), limit: max_bytes }
                } else {
                    self.protocol(&*e)
                }
            })?;
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() })
        };
        let Ok(answer) = timeout(limit, whole).await else { return Err(self.timed_out()) };
        if answer.is_err() {
            self.open = None;
        }
        answer
    }

    /// Sends `call` and gives the answer as soon as its head is there; for bodies that never end.
    pub(super) async fn open_stream(&mut self, call: &Call<'_>) -> Result<Response<Incoming>, CallError> {
        // Never on a kept connection: its last stream may still be arriving.
        self.open = None;
        let limit = self.limit;
        let response = match timeout(limit, self.send(call)).await {
            Ok(response) => response,
            Err(_) => Err(self.timed_out()),
        };
        if response.as_ref().map_or(true, |response| response.status().is_server_error()) {
            let open = self.open.take();
            self.give_up();
            // The body of a refusal is still read.
            self.open = open;
        }
        response
    }

    async fn send(&mut self, call: &Call<'_>) -> Result<Response<Incoming>, CallError> {
        self.ready().await?;
        let body = call.body.clone();
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{}", self.server().base(), call.path))
            .header(HOST, self.server().name())
            .header(USER_AGENT, concat!("ftagent/", env!("CARGO_PKG_VERSION")));
        if body.is_some() && !call.headers.contains_key(CONTENT_TYPE) {
            let json = HeaderValue::from_static("application/json");
            request = request.header(CONTENT_TYPE, json);
        }
        let mut request = request.body(Paced::new(body.unwrap_or_default(), self.pace))?;
        request.headers_mut().extend(call.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        let open = self.open.as_mut().expect("it was made ready above");
        let sent = open.sender.send_request(request).await;
        sent.map_err(|e| self.protocol(&e))
    }

    /// Opens a connection by the current route, unless there is one that is alive.
    async fn ready(&mut self) -> Result<(), CallError> {
        let mut route = self.servers.route();
        route.server = self.pinned.unwrap_or(route.server);
        self.last = route;
        if let Some(mut open) = self.open.take()
            && open.route == route
            && open.sender.ready().await.is_ok()
        {
            self.open = Some(open);
            return Ok(());
        }
        let (sender, driver) = connect(&self.servers, route, self.anonymous).await?;
        self.opened += 1;
        self.open = Some(Open { route, sender, driver });
        Ok(())
    }

    fn timed_out(&mut self) -> CallError {
        self.open = None;
        CallError::TimedOut { server: self.server().name(), secs: self.limit.as_secs() }
    }
}

async fn connect(
    servers: &Servers,
    route: Route,
    anonymous: bool,
) -> Result<(SendRequest<Paced>, JoinHandle<()>), CallError> {
    let server = servers.server(route.server);
    let failed = |source| CallError::Connect { server: server.name(), source };
    let spoken = |e: hyper::Error| CallError::Protocol { server: server.name(), why: e.to_string() };
    let tcp = TcpStream::connect(server.address()).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    let Some(name) = server.tls_name() else {
        let (sender, driver) = handshake(TokioIo::new(tcp)).await.map_err(spoken)?;
        return Ok((sender, tokio::spawn(drive(driver))));
    };
    let tls = servers.connector(anonymous).connect(name.clone(), tcp).await;
    let tls = tls.map_err(|fault| {
        let why = servers.explain(&fault).unwrap_or_else(|| fault.to_string());
        CallError::Tls { server: server.name(), why }
    })?;
    let (sender, driver) = handshake(TokioIo::new(tls)).await.map_err(spoken)?;
    Ok((sender, tokio::spawn(drive(driver))))
}

/// How the connection ends is told by the request that it ends.
async fn drive<E>(driver: impl Future<Output = Result<(), E>>) {
    drop(driver.await);
}
