//! One POST to a URL that an operator gave: limits of time and size, no redirects, no addresses that are not allowed.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, USER_AGENT};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// For resolving the name, connecting and TLS.
const CONNECT_TIME: Duration = Duration::from_secs(4);
/// For all of it. [`crate::domain::LEASE_SECS`] is twice that.
const TOTAL_TIME: Duration = Duration::from_secs(10);
/// How much of an answer is read; its beginning is kept for messages.
const MAX_ANSWER: usize = 65_536;

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the URL cannot be used: {0}")]
    Url(&'static str),
    #[error("{0}")]
    Address(String),
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("cannot connect within {} s", CONNECT_TIME.as_secs())]
    ConnectTime,
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    #[error("no answer within {} s", TOTAL_TIME.as_secs())]
    TotalTime,
    #[error("the answer is larger than {MAX_ANSWER} bytes or was cut off")]
    Body,
    #[error("the other side speaks no HTTP or hung up: {0}")]
    Protocol(#[source] hyper::Error),
}

/// How requests leave this server.
#[derive(Clone, Copy, Debug)]
pub struct Outbound {
    private: bool,
}

/// An answer: its status, and the beginning of its text without control characters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) text: String,
}

impl Outbound {
    /// `private`: whether loopback, private and link-local addresses may be connected to.
    pub const fn new(private: bool) -> Self {
        Self { private }
    }

    /// Posts JSON.
    pub(super) async fn post(&self, url: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, SendError> {
        tokio::time::timeout(TOTAL_TIME, self.post_in_time(url, headers, body))
            .await
            .map_err(|_| SendError::TotalTime)?
    }

    async fn post_in_time(&self, url: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, SendError> {
        let uri: Uri = url.parse().map_err(|_| SendError::Url("it is none"))?;
        let authority = uri.authority().ok_or(SendError::Url("it names no host"))?;
        let https = uri.scheme_str() == Some("https");
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, authority.as_str())
            .header(USER_AGENT, concat!("ftagent-controlplane/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|_| SendError::Url("it makes no request"))?;
        request.headers_mut().extend(headers);
        let tcp = tokio::time::timeout(CONNECT_TIME, self.connect(host, port))
            .await
            .map_err(|_| SendError::ConnectTime)??;
        if !https {
            return exchange(tcp, request).await;
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| SendError::Url("its host has no name for TLS"))?;
        let tls = tokio::time::timeout(CONNECT_TIME, connector()?.connect(name, tcp))
            .await
            .map_err(|_| SendError::ConnectTime)?
            .map_err(|e| SendError::Tls(e.to_string()))?;
        exchange(tls, request).await
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, SendError> {
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((host, port)).await.map_err(SendError::Connect)?.take(8).collect();
        let mut failed = SendError::Address("the name has no address".to_owned());
        for address in addresses {
            if let Err(why) = super::may_connect(address.ip(), self.private) {
                failed = SendError::Address(why);
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(tcp) => return Ok(tcp),
                Err(e) => failed = SendError::Connect(e),
            }
        }
        Err(failed)
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, SendError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, driver) = handshake(TokioIo::new(stream)).await.map_err(SendError::Protocol)?;
    // Ends with the exchange, whatever the other side does.
    let driver = AbortOnDrop(tokio::spawn(async move { drop(driver.await) }));
    let (head, body) = sender.send_request(request).await.map_err(SendError::Protocol)?.into_parts();
    let status = head.status.as_u16();
    let text = match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => shorten(&body.to_bytes()),
        // A refusal is one, however much it says; a success that is cut off may be none.
        Err(_) if !head.status.is_success() => String::new(),
        Err(_) => return Err(SendError::Body),
    };
    drop(driver);
    Ok(Answer { status, text })
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The first 200 characters, fit for a line of a log.
fn shorten(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1_024)]);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

/// TLS with the authorities of the system, read once.
fn connector() -> Result<TlsConnector, SendError> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err("this system has no certificate authorities: install ca-certificates".to_owned());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth();
        Ok(Arc::new(config))
    });
    config.clone().map(TlsConnector::from).map_err(SendError::Tls)
}
