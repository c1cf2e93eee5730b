//! HTTP/1.1 to one server: bounded answers, time limits, no redirects, TLS by rustls.
//!
//! Knows nothing of the agent protocol. One [`Connection`] per task is kept open between requests.

use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::body::Paced;

/// Why the server cannot be addressed as configured.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{url}: not a URL of a server: {why}; write it like https://controlplane.example:8443")]
    Url { url: String, why: String },
    #[error("{path}: no certificate authority could be read: {why}; it must hold PEM certificates", path = .path.display())]
    Authority { path: PathBuf, why: String },
    #[error("this system has no certificate authorities ({why}); install ca-certificates or name a CA file")]
    NoAuthorities { why: String },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{what} contains characters that no token has; copy it again")]
    Secret { what: &'static str },
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("cannot connect to {server}: {source}")]
    Connect { server: String, source: io::Error },
    #[error("no TLS with {server}: {source}")]
    Tls { server: String, source: io::Error },
    #[error("{server} did not answer within {secs} s")]
    TimedOut { server: String, secs: u64 },
    #[error("{server} answered with more than {limit} bytes")]
    TooLarge { server: String, limit: usize },
    #[error("{server} closed the connection or spoke no HTTP: {why}")]
    Protocol { server: String, why: String },
    #[error("the request cannot be formed: {0}")]
    Request(#[from] hyper::http::Error),
}

/// Where the server is and how to trust it.
#[derive(Clone)]
pub(super) struct Server {
    host: String,
    port: u16,
    /// In front of every path; empty or `/prefix`.
    base: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Server {
    /// Reads `url`; with `ca_file` that authority alone is trusted, without it the system's are.
    pub(super) fn new(url: &str, ca_file: Option<&Path>) -> Result<Self, ServerError> {
        let wrong = |why: &str| ServerError::Url { url: url.into(), why: why.into() };
        let uri: Uri = url.parse().map_err(|e: hyper::http::uri::InvalidUri| wrong(&e.to_string()))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it must start with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it may not carry a user"));
        }
        if uri.query().is_some() {
            return Err(wrong("it may not carry a query"));
        }
        let host = authority.host().to_owned();
        let tls = if https {
            let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(bare).map_err(|e| wrong(&e.to_string()))?;
            Some((connector(ca_file)?, name))
        } else {
            None
        };
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { host, port, base: uri.path().trim_end_matches('/').into(), tls })
    }

    /// Host and port, for messages.
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn protocol(&self, why: impl ToString) -> CallError {
        CallError::Protocol { server: self.name(), why: why.to_string() }
    }
}

fn connector(ca_file: Option<&Path>) -> Result<TlsConnector, ServerError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let wrong = |why: String| ServerError::Authority { path: path.into(), why };
            let certificates = CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|e| wrong(e.to_string()))?;
                roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("it holds no certificate".into()));
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs);
            if roots.is_empty() {
                let why = system.errors.first().map_or_else(|| "none found".into(), ToString::to_string);
                return Err(ServerError::NoAuthorities { why });
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
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
    server: Server,
    /// For each of connecting and answering.
    limit: Duration,
    /// Bytes per second of bodies.
    pace: Option<NonZeroU64>,
    open: Option<Open>,
}

struct Open {
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
    pub(super) fn new(server: Server, limit: Duration) -> Self {
        Self { server, limit, pace: None, open: None }
    }

    /// With bodies that are no faster than so many bytes per second.
    pub(super) fn paced(self, bytes_per_sec: NonZeroU64) -> Self {
        Self { pace: Some(bytes_per_sec), ..self }
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
        if answer.is_err() {
            self.open = None;
        }
        answer
    }

    async fn call_once(&mut self, call: &Call<'_>, max_bytes: usize) -> Result<Answer, CallError> {
        let limit = self.limit;
        let server = self.server.clone();
        let whole = async {
            let response = self.send(call).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, max_bytes).collect().await.map_err(|e| {
                if e.is::<LengthLimitError>() {
                    CallError::TooLarge { server: server.name(), limit: max_bytes }
                } else {
                    server.protocol(e)
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
        match timeout(self.limit, self.send(call)).await {
            Ok(response) => response,
            Err(_) => Err(self.timed_out()),
        }
    }

    async fn send(&mut self, call: &Call<'_>) -> Result<Response<Incoming>, CallError> {
        let body = call.body.clone();
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{}", self.server.base, call.path))
            .header(HOST, self.server.name())
            .header(USER_AGENT, concat!("ftagent/", env!("CARGO_PKG_VERSION")));
        if body.is_some() && !call.headers.contains_key(CONTENT_TYPE) {
            let json = HeaderValue::from_static("application/json");
            request = request.header(CONTENT_TYPE, json);
        }
        let mut request = request.body(Paced::new(body.unwrap_or_default(), self.pace))?;
        request.headers_mut().extend(call.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        let server = self.server.clone();
        let open = self.ready().await?;
        open.sender.send_request(request).await.map_err(|e| server.protocol(e))
    }

    async fn ready(&mut self) -> Result<&mut Open, CallError> {
        let kept = match self.open.take() {
            Some(mut open) => open.sender.ready().await.is_ok().then_some(open),
            None => None,
        };
        let open = match kept {
            Some(open) => open,
            None => connect(&self.server).await?,
        };
        Ok(self.open.insert(open))
    }

    fn timed_out(&mut self) -> CallError {
        self.open = None;
        CallError::TimedOut { server: self.server.name(), secs: self.limit.as_secs() }
    }
}

async fn connect(server: &Server) -> Result<Open, CallError> {
    let host = server.host.trim_start_matches('[').trim_end_matches(']');
    let failed = |source| CallError::Connect { server: server.name(), source };
    let tcp = TcpStream::connect((host, server.port)).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    let Some((connector, name)) = &server.tls else {
        let (sender, driver) = handshake(TokioIo::new(tcp)).await.map_err(|e| server.protocol(e))?;
        return Ok(Open { sender, driver: tokio::spawn(drive(driver)) });
    };
    let tls = connector.connect(name.clone(), tcp).await;
    let tls = tls.map_err(|source| CallError::Tls { server: server.name(), source })?;
    let (sender, driver) = handshake(TokioIo::new(tls)).await.map_err(|e| server.protocol(e))?;
    Ok(Open { sender, driver: tokio::spawn(drive(driver)) })
}

/// How the connection ends is told by the request that it ends.
async fn drive<E>(driver: impl Future<Output = Result<(), E>>) {
    drop(driver.await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_scheme_host_port_and_base() {
        let server = Server::new("http://controlplane.example", None).ok().unwrap();
        assert_eq!((server.name(), server.base.as_str()), ("controlplane.example:80".into(), ""));
        let server = Server::new("http://[2001:db8::1]:8080/ft/", None).ok().unwrap();
        assert_eq!((server.name(), server.base.as_str()), ("[2001:db8::1]:8080".into(), "/ft"));
        for url in ["", "controlplane.example", "ftp://a", "http://u:p@a", "http://a/?q", "http://"] {
            let error = Server::new(url, None).err().map(|e| e.to_string()).expect(url);
            assert!(error.contains("https://controlplane.example:8443"), "{url}: {error}");
        }
    }

    #[test]
    fn a_ca_file_without_a_certificate_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Server::new("https://a", Some(file.path())).err().unwrap().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
