//! Requests to servers that operators named: HTTP/1.1 with bounds, no redirects, TLS by rustls.
//!
//! An operator's URL must not lead to what only this machine can reach: unless the configuration allows it, every
//! address that a name has is looked at, and the one that was looked at is the one that is connected to.

mod remote_write;
mod signature;
mod webhook;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use crate::domain::no_destination;
pub use remote_write::{Credentials, RemoteWrite, SERIES, WorkspaceKey, key_of};
pub use signature::{SIGNATURE, sign};
pub use webhook::webhook;

/// How long one connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read; the rest is left.
const ANSWER_BYTES: usize = 1_024;
/// Bytes of an answer's head.
const HEAD_BYTES: usize = 65_536;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// From the look-up of the name to the last byte of the answer.
    pub timeout: Duration,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answered {
    pub status: u16,
    pub retry_after: Option<String>,
    /// At most 1,024 bytes.
    pub body: Vec<u8>,
}

/// Why there was no answer. No message holds the URL or a header: they can hold secrets.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("the name cannot be resolved: {0}")]
    Name(std::io::Error),
    #[error("the name leads to {0}, which {1}")]
    NoDestination(IpAddr, &'static str),
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("no TLS: {0}")]
    Tls(std::io::Error),
    #[error("this system has no certificate authorities: install ca-certificates")]
    NoAuthorities,
    #[error("no answer within {0} s")]
    TimedOut(u64),
    #[error("the connection broke or spoke no HTTP: {0}")]
    Protocol(String),
}

/// Sends requests.
pub struct Outbound {
    allow_private: bool,
    /// None until the first `https`: reading the system's authorities takes a while.
    tls: OnceLock<Option<TlsConnector>>,
}

impl Outbound {
    /// Trusts the system's certificate authorities.
    pub fn new(allow_private: bool) -> Self {
        Self { allow_private, tls: OnceLock::new() }
    }

    /// Trusts `roots` alone.
    pub fn with_roots(roots: RootCertStore, allow_private: bool) -> Self {
        Self { allow_private, tls: OnceLock::from(connector(roots)) }
    }

    /// Whether addresses that are not public may be sent to.
    pub const fn allows_private(&self) -> bool {
        self.allow_private
    }

    /// Sends a POST once.
    ///
    /// # Errors
    /// There was no answer. An answer of any status is none.
    pub async fn post(&self, outgoing: &Outgoing) -> Result<Answered, NoAnswer> {
        let limit = outgoing.timeout;
        timeout(limit, self.exchange(outgoing)).await.unwrap_or(Err(NoAnswer::TimedOut(limit.as_secs())))
    }

    async fn exchange(&self, outgoing: &Outgoing) -> Result<Answered, NoAnswer> {
        let stream = self.connect(&outgoing.url).await?;
        if outgoing.url.scheme() != "https" {
            return converse(stream, outgoing).await;
        }
        let connector = self.tls.get_or_init(system).as_ref().ok_or(NoAnswer::NoAuthorities)?;
        let bare = outgoing.url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare).map_err(|e| NoAnswer::Tls(std::io::Error::other(e)))?;
        let stream = connector.connect(name, stream).await.map_err(NoAnswer::Tls)?;
        converse(stream, outgoing).await
    }

    async fn connect(&self, url: &Url) -> Result<TcpStream, NoAnswer> {
        let port = url.port_or_known_default().unwrap_or(443);
        let addresses: Vec<SocketAddr> = match url.host() {
            Some(Host::Ipv4(v4)) => vec![(v4, port).into()],
            Some(Host::Ipv6(v6)) => vec![(v6, port).into()],
            Some(Host::Domain(name)) => tokio::net::lookup_host((name, port)).await.map_err(NoAnswer::Name)?.collect(),
            None => Vec::new(),
        };
        let mut fault = NoAnswer::Name(std::io::ErrorKind::NotFound.into());
        for address in addresses {
            if let Some(why) = no_destination(address.ip(), self.allow_private) {
                fault = NoAnswer::NoDestination(address.ip(), why);
                continue;
            }
            match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => fault = NoAnswer::Connect(source),
                Err(_) => fault = NoAnswer::Connect(std::io::ErrorKind::TimedOut.into()),
            }
        }
        Err(fault)
    }
}

fn system() -> Option<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return None;
    }
    connector(roots)
}

fn connector(roots: RootCertStore) -> Option<TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    Some(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    outgoing: &Outgoing,
) -> Result<Answered, NoAnswer> {
    let broke = |e: hyper::Error| NoAnswer::Protocol(e.to_string());
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(HEAD_BYTES).handshake(TokioIo::new(stream)).await.map_err(broke)?;
    // Ends with this call, whatever the other side does.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut answer = sender.send_request(request(outgoing)?).await.map_err(broke)?;
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let mut body = Vec::new();
    while body.len() < ANSWER_BYTES
        && let Some(frame) = answer.body_mut().frame().await
    {
        // The status counts, not whether the rest arrives.
        let Ok(frame) = frame else { break };
        if let Some(data) = frame.data_ref() {
            body.extend_from_slice(&data[..data.len().min(ANSWER_BYTES - body.len())]);
        }
    }
    Ok(Answered { status: answer.status().as_u16(), retry_after, body })
}

fn request(outgoing: &Outgoing) -> Result<Request<Full<Bytes>>, NoAnswer> {
    let url = &outgoing.url;
    let wrong = |e: hyper::http::Error| NoAnswer::Protocol(e.to_string());
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let host = HeaderValue::try_from(authority).map_err(|e| wrong(e.into()))?;
    let mut request = Request::post(target).body(Full::new(outgoing.body.clone())).map_err(wrong)?;
    request.headers_mut().extend(outgoing.headers.clone());
    request.headers_mut().insert(HOST, host);
    Ok(request)
}
