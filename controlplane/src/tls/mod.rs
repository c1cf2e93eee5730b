//! TLS of the API's listeners: whose certificate is shown, whose are accepted, and how both change while it runs.
//!
//! ```text
//! files, SIGHUP ----> identity --+
//! authority's roots ------------+--> ServerConfig --> every handshake from then on
//! ```
//! A file that became unusable changes nothing: the last good certificate goes on, with an error in the log.
//! Sessions are never resumed: a certificate is verified in every handshake, and agents shake hands seldom.

mod accept;
mod files;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{error, info, warn};

use crate::app::{App, Trusted};
use crate::domain::Timestamp;
use crate::store::StoreError;

pub use accept::Acceptor;
use files::chain;
pub use files::{FileError, Pair};

/// How often the authority is looked at: a revocation by another process ends streams within that.
const LOOK: Duration = Duration::from_secs(1);
/// How often the files are looked at.
const FILES: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(86_400);

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MinVersion {
    #[default]
    #[serde(rename = "1.2")]
    V12,
    #[serde(rename = "1.3")]
    V13,
}

impl std::str::FromStr for MinVersion {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "1.2" => Ok(Self::V12),
            "1.3" => Ok(Self::V13),
            _ => Err(()),
        }
    }
}

/// Where the server's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Files {
        certificate: PathBuf,
        key: PathBuf,
    },
    /// The built-in authority makes one for these names and addresses.
    Authority {
        names: Vec<String>,
    },
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("tls_names needs the built-in authority, and there is none: run `controlplane ca init` first")]
    NoAuthority,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a root of the authority cannot be used")]
    Roots(#[source] rustls::server::VerifierBuilderError),
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ends: Option<Timestamp>,
    /// When one of the authority is to be replaced.
    renew_at: Option<Timestamp>,
}

/// The TLS of all listeners.
pub struct Tls {
    app: Arc<App>,
    source: Source,
    min: MinVersion,
    identity: Identity,
    trusted: Trusted,
    config: watch::Sender<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads or makes the certificate, and the roots of whose nodes are accepted.
    ///
    /// # Errors
    /// The files cannot be used, or there is no authority.
    pub async fn open(app: Arc<App>, source: Source, min: MinVersion) -> Result<Self, TlsError> {
        let identity = identity(&app, &source).await?;
        let trusted = app.trusted().await?;
        let config = server_config(min, &identity, &trusted.roots)?;
        Ok(Self { app, source, min, identity, trusted, config: watch::Sender::new(Arc::new(config)) })
    }

    /// What a handshake that begins now goes by.
    pub fn config(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }

    /// Follows files and authority until the server drains. Each word of `again` has the files read at once.
    pub async fn follow(mut self, mut again: mpsc::Receiver<()>, mut draining: watch::Receiver<bool>) {
        let (mut looks, mut files, mut days) = (every(LOOK), every(FILES), every(DAY));
        let mut trouble = None;
        loop {
            let (due, asked) = tokio::select! {
                _ = looks.tick() => (false, false),
                _ = files.tick() => (true, false),
                Some(()) = again.recv() => (true, true),
                _ = days.tick() => {
                    self.warn_of_end();
                    continue;
                }
                _ = draining.wait_for(|d| *d) => return,
            };
            match self.look(due, asked).await {
                Err(fault) => {
                    // The same trouble once, not every second.
                    let what = chain(&fault);
                    if trouble.as_ref() != Some(&what) {
                        error!(error = what, "TLS goes on with the certificate and the roots that it had");
                    }
                    trouble = Some(what);
                }
                Ok(()) if due && trouble.take().is_some() => info!("certificate and roots can be used again"),
                Ok(()) => {}
            }
        }
    }

    fn warn_of_end(&self) {
        if let (Source::Files { certificate, .. }, Some(ends)) = (&self.source, self.identity.ends) {
            let days = ends.secs_since(self.app.now()) / 86_400;
            if days < 14 {
                warn!(certificate = %certificate.display(), %ends, days, "the server's certificate ends soon, or has");
            }
        }
    }

    /// Takes what changed into force.
    async fn look(&mut self, files: bool, asked: bool) -> Result<(), TlsError> {
        let mut changed = false;
        if self.app.trust_revision().await? != self.trusted.revision {
            let trusted = self.app.trusted().await?;
            let of_authority = matches!(self.source, Source::Authority { .. });
            if of_authority && trusted.active != self.trusted.active {
                self.identity = identity(&self.app, &self.source).await?;
            }
            info!(roots = trusted.roots.len(), "roots or revocations changed");
            self.trusted = trusted;
            changed = true;
        }
        let renew = self.identity.renew_at.is_some_and(|at| at <= self.app.now());
        let read = files && matches!(self.source, Source::Files { .. });
        if renew || read {
            let identity = identity(&self.app, &self.source).await?;
            if identity.chain != self.identity.chain {
                // Only what can be used replaces what is.
                server_config(self.min, &identity, &self.trusted.roots)?;
                self.identity = identity;
                self.warn_of_end();
                info!("another certificate is shown from now on");
                changed = true;
            } else if asked {
                info!("the certificate is the one that is shown already");
            }
        }
        if changed {
            let config = server_config(self.min, &self.identity, &self.trusted.roots)?;
            self.config.send_replace(Arc::new(config));
            self.app.look_at_streams();
        }
        Ok(())
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn identity(app: &App, source: &Source) -> Result<Identity, TlsError> {
    match source {
        Source::Files { certificate, key } => {
            let Pair { chain, key, ends } = Pair::read(certificate, key)?;
            Ok(Identity { chain, key, ends, renew_at: None })
        }
        Source::Authority { names } => {
            let made = app.server_identity(names).await?.ok_or(TlsError::NoAuthority)?;
            let (ends, renew_at) = (Some(made.not_after), Some(made.renew_at));
            Ok(Identity { chain: vec![made.certificate], key: made.key, ends, renew_at })
        }
    }
}

fn server_config(
    min: MinVersion,
    identity: &Identity,
    roots: &[CertificateDer<'static>],
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(default_provider());
    let versions: &[_] = match min {
        MinVersion::V12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        MinVersion::V13 => &[&rustls::version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = if roots.is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        // Operators have none, and nodes may have none yet: who must show one is decided with the request.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).allow_unauthenticated();
        builder.with_client_cert_verifier(verifier.build().map_err(TlsError::Roots)?)
    };
    let mut config = builder.with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
