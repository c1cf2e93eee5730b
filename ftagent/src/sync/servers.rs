//! The control plane's servers: which one is asked, whom they are believed by, and the certificate shown to them.
//!
//! ```text
//! a request fails --> the next server is everybody's, at once; each task waits with jitter before its next try
//! the first one answers again, twice --> back to it
//! ```
//! All tasks share one route, so that one failure is felt once. A connection that is open by an older route is not used
//! for the next request, and streams open anew.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ftagent_common::api::Trust;
use hyper::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::identity::{Identity, Shown};

/// Why the server cannot be addressed as configured.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{url}: not a URL of a server: {why}; write it like https://controlplane.example:8443")]
    Url { url: String, why: String },
    #[error("{path}: no certificate authority could be read: {why}; it must hold PEM certificates", path = .path.display())]
    Authority { path: PathBuf, why: String },
    #[error("this system has no certificate authorities ({why}); install ca-certificates or name a CA file")]
    NoAuthorities { why: String },
    #[error("{path}: the client certificate cannot be used: {why}", path = .path.display())]
    Client { path: PathBuf, why: String },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{what} contains characters that no token has; copy it again")]
    Secret { what: &'static str },
}

/// Which server is asked, and how it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) server: usize,
    /// Grows when trust or certificate change.
    pub(super) generation: u64,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Server {
    host: String,
    port: u16,
    /// In front of every path; empty or `/prefix`.
    base: String,
    tls: Option<ServerName<'static>>,
}

impl Server {
    pub(super) fn new(url: &str) -> Result<Self, ServerError> {
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
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = if https { Some(ServerName::try_from(bare).map_err(|e| wrong(&e.to_string()))?) } else { None };
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { host, port, base: uri.path().trim_end_matches('/').into(), tls })
    }

    /// Host and port, for messages.
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn address(&self) -> (&str, u16) {
        (self.host.trim_start_matches('[').trim_end_matches(']'), self.port)
    }

    /// What its certificate must be for; none without TLS.
    pub(super) const fn tls_name(&self) -> Option<&ServerName<'static>> {
        self.tls.as_ref()
    }
}

/// All of them.
pub(super) struct Servers {
    list: Vec<Server>,
    route: watch::Sender<Route>,
    /// From the file, or the system's; read once.
    base: Vec<CertificateDer<'static>>,
    tls: RwLock<Tls>,
    wall: fn() -> OffsetDateTime,
}

struct Tls {
    trust: Option<Trust>,
    shown: Option<Shown>,
    /// With the certificate, and without.
    connectors: [TlsConnector; 2],
}

impl Servers {
    /// Reads `urls`; with `ca_file` that authority alone is trusted, without it the system's are, and in either case the
    /// roots that `trust` names.
    pub(super) fn new(
        urls: &[String],
        ca_file: Option<&Path>,
        trust: Option<Trust>,
        identity: &Identity,
        wall: fn() -> OffsetDateTime,
    ) -> Result<Self, ServerError> {
        let list = urls.iter().map(|url| Server::new(url)).collect::<Result<Vec<_>, _>>()?;
        if list.is_empty() {
            return Err(ServerError::Url { url: String::new(), why: "there is none".into() });
        }
        let secure = list.iter().any(|server| server.tls.is_some());
        let base = if secure { authorities(ca_file, trust.as_ref())? } else { Vec::new() };
        let shown = identity.shown(wall());
        let connectors = connectors(&base, trust.as_ref(), shown.as_ref())?;
        let tls = RwLock::new(Tls { trust, shown, connectors });
        let route = watch::Sender::new(Route { server: 0, generation: 0 });
        Ok(Self { list, route, base, tls, wall })
    }

    pub(super) fn server(&self, number: usize) -> &Server {
        &self.list[number]
    }

    pub(super) fn is_secure(&self) -> bool {
        self.list.iter().any(|server| server.tls.is_some())
    }

    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    pub(super) fn route(&self) -> Route {
        *self.route.borrow()
    }

    /// Changes of the route from now on.
    pub(super) fn routes(&self) -> watch::Receiver<Route> {
        self.route.subscribe()
    }

    /// The name of the server that is asked.
    pub(super) fn name(&self) -> String {
        self.server(self.route().server).name()
    }

    /// The server of `route` is not well: the next one's turn, unless somebody else said so before.
    pub(super) fn failed(&self, route: Route) {
        if self.list.len() == 1 {
            return;
        }
        let moved = self.route.send_if_modified(|now| {
            let ours = now.server == route.server;
            if ours {
                now.server = (now.server + 1) % self.list.len();
            }
            ours
        });
        if moved {
            tracing::info!(from = self.server(route.server).name(), to = self.name(), "another control plane is asked");
        }
    }

    /// The first one is well again.
    pub(super) fn return_to_first(&self) {
        let moved = self.route.send_if_modified(|now| std::mem::replace(&mut now.server, 0) != 0);
        if moved {
            tracing::info!(to = self.name(), "the first control plane is asked again");
        }
    }

    pub(super) fn connector(&self, anonymous: bool) -> TlsConnector {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).connectors[usize::from(anonymous)].clone()
    }

    /// Takes what the control plane says of its authority.
    pub(super) fn set_trust(&self, trust: Option<&Trust>) -> Result<(), ServerError> {
        self.change(|tls| {
            let same = |one: &Option<Trust>| {
                one.as_ref().map(|t| (&t.roots, &t.retired)) == trust.map(|t| (&t.roots, &t.retired))
            };
            (!same(&tls.trust)).then(|| (trust.cloned(), tls.shown.clone()))
        })
    }

    /// Shows this certificate from now on.
    pub(super) fn set_shown(&self, shown: Option<Shown>) -> Result<(), ServerError> {
        self.change(|tls| (tls.shown != shown).then(|| (tls.trust.clone(), shown)))
    }

    fn change(&self, change: impl FnOnce(&Tls) -> Option<(Option<Trust>, Option<Shown>)>) -> Result<(), ServerError> {
        let mut tls = self.tls.write().unwrap_or_else(PoisonError::into_inner);
        let Some((trust, shown)) = change(&tls) else { return Ok(()) };
        if self.is_secure() {
            let connectors = connectors(&self.base, trust.as_ref(), shown.as_ref())?;
            *tls = Tls { trust, shown, connectors };
            drop(tls);
            self.route.send_modify(|route| route.generation += 1);
        }
        Ok(())
    }

    /// What a fault of TLS means for an operator, if it is one.
    pub(super) fn explain(&self, fault: &(dyn StdError + 'static)) -> Option<String> {
        let mut cause = Some(fault);
        while let Some(fault) = cause {
            let inner = fault.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            let fault = match inner {
                Some(inner) => inner as &(dyn StdError + 'static),
                None => fault,
            };
            if let Some(fault) = fault.downcast_ref::<rustls::Error>() {
                return Some(explained(fault, (self.wall)()));
            }
            cause = fault.source();
        }
        None
    }
}

fn explained(fault: &rustls::Error, now: OffsetDateTime) -> String {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    let now = now.format(&Rfc3339).unwrap_or_default();
    let hint = match fault {
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => format!("this machine's clock says {now}: set it right, or renew the server's certificate"),
        rustls::Error::InvalidCertificate(UnknownIssuer) => {
            "its authority is not trusted here: name it by ca_certificate; the control plane's own is \
             printed by `controlplane ca roots`"
                .into()
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "the URL's name or address must be in the certificate: see tls_names at the control plane".into()
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => format!(
            "the control plane says that the client certificate has expired; this machine's clock says {now}; the node \
             may get another after `controlplane ca issue NODE`"
        ),
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateRequired
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        ) => {
            "the control plane does not accept the client certificate: it is of another authority, or of one that was \
              retired; the node may get another after `controlplane ca issue NODE`"
                .into()
        }
        _ => return fault.to_string(),
    };
    format!("{fault}; {hint}")
}

/// The authorities of the file, or the system's.
fn authorities(ca_file: Option<&Path>, trust: Option<&Trust>) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let wrong = |why: String| ServerError::Authority { path: path.into(), why };
            let certificates = CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))?;
            let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(e.to_string()))?;
            for certificate in &certificates {
                roots.add(certificate.clone()).map_err(|e| wrong(e.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("it holds no certificate".into()));
            }
            Ok(certificates)
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs.iter().cloned());
            if roots.is_empty() && trust.is_none() {
                let why = system.errors.first().map_or_else(|| "none found".into(), ToString::to_string);
                return Err(ServerError::NoAuthorities { why });
            }
            Ok(system.certs)
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Connectors with the certificate and without; roots that were retired are trusted by neither.
fn connectors(
    base: &[CertificateDer<'static>],
    trust: Option<&Trust>,
    shown: Option<&Shown>,
) -> Result<[TlsConnector; 2], ServerError> {
    let told = trust.map_or("", |trust| trust.roots.as_str());
    let told = CertificateDer::pem_slice_iter(told.as_bytes()).filter_map(Result::ok);
    let retired = trust.map_or(&[][..], |trust| &trust.retired);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(
        base.iter().cloned().chain(told).filter(|root| !retired.contains(&hex(&Sha256::digest(root)))),
    );
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = || {
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        Ok::<_, rustls::Error>(builder.with_root_certificates(roots.clone()))
    };
    let without = TlsConnector::from(Arc::new(builder()?.with_no_client_auth()));
    let with = match shown {
        Some(shown) => {
            let config = builder()?.with_client_auth_cert(shown.chain.clone(), shown.key()?)?;
            TlsConnector::from(Arc::new(config))
        }
        None => without.clone(),
    };
    Ok([with, without])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(urls: &[&str]) -> Servers {
        let urls: Vec<_> = urls.iter().map(|url| (*url).to_owned()).collect();
        Servers::new(&urls, None, None, &Identity::None, || OffsetDateTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_url_is_scheme_host_port_and_base() {
        let server = Server::new("http://controlplane.example").ok().unwrap();
        assert_eq!((server.name(), server.base.as_str()), ("controlplane.example:80".into(), ""));
        let server = Server::new("http://[2001:db8::1]:8080/ft/").ok().unwrap();
        assert_eq!((server.name(), server.base.as_str()), ("[2001:db8::1]:8080".into(), "/ft"));
        assert_eq!(server.address(), ("2001:db8::1", 8080));
        for url in ["", "controlplane.example", "ftp://a", "http://u:p@a", "http://a/?q", "http://"] {
            let error = Server::new(url).err().map(|e| e.to_string()).expect(url);
            assert!(error.contains("https://controlplane.example:8443"), "{url}: {error}");
        }
    }

    #[test]
    fn a_ca_file_without_a_certificate_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = authorities(Some(file.path()), None).err().unwrap().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }

    #[test]
    fn faults_of_tls_say_what_to_mend() {
        let table = [
            (rustls::Error::InvalidCertificate(CertificateError::Expired), "this machine's clock says 1970-01-01"),
            (rustls::Error::InvalidCertificate(CertificateError::NotValidYet), "this machine's clock says 1970-01-01"),
            (rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer), "name it by ca_certificate"),
            (rustls::Error::InvalidCertificate(CertificateError::NotValidForName), "tls_names"),
            (rustls::Error::AlertReceived(AlertDescription::CertificateExpired), "has expired"),
            (rustls::Error::AlertReceived(AlertDescription::UnknownCA), "does not accept the client certificate"),
            (rustls::Error::AlertReceived(AlertDescription::ProtocolVersion), "ProtocolVersion"),
        ];
        let servers = servers(&["http://a"]);
        for (fault, expected) in table {
            // As it comes out of a stream: within another error.
            let wrapped = std::io::Error::other(fault);
            let said = servers.explain(&wrapped).expect("a fault of TLS");
            assert!(said.contains(expected), "{said}");
        }
        assert_eq!(servers.explain(&std::io::Error::other("something else")), None);
    }

    #[test]
    fn one_failure_moves_everybody_once_and_around() {
        let servers = servers(&["http://a", "http://b", "http://c"]);
        let first = servers.route();
        servers.failed(first);
        // A second task that was still at the first one.
        servers.failed(first);
        assert_eq!(servers.name(), "b:80");
        servers.failed(servers.route());
        servers.failed(servers.route());
        assert_eq!(servers.name(), "a:80");
        servers.failed(servers.route());
        servers.return_to_first();
        assert_eq!(servers.route(), first);
        let alone = self::servers(&["http://a"]);
        alone.failed(alone.route());
        assert_eq!(alone.name(), "a:80");
    }
}
