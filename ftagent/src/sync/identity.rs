//! The node's client certificate: from files that an operator keeps, or its own, which it asks the control plane for.
//!
//! The private key is made here and stays in the state directory.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ftagent_common::api::IssuedCertificate;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::credentials::Secret;
use super::{LinkError, ServerError};
use crate::persist::{self, Loaded};

/// Files with the certificate, its chain and its key; PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What is shown in a handshake.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Shown {
    fn new(certificate: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|e| format!("no PEM: {e}"))?;
        if chain.is_empty() {
            return Err("it holds no certificate".into());
        }
        PrivateKeyDer::from_pem_slice(key).map_err(|_| "its key's file holds no private key without a password")?;
        Ok(Self { chain, key: key.to_vec() })
    }

    pub(super) fn key(&self) -> Result<PrivateKeyDer<'static>, rustls::Error> {
        PrivateKeyDer::from_pem_slice(&self.key).map_err(|e| rustls::Error::General(e.to_string()))
    }
}

/// The certificate that the node got.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Own {
    key: Secret,
    pub(super) issued: IssuedCertificate,
}

/// Whose certificate is shown.
#[derive(Clone, Debug)]
pub(super) enum Identity {
    Files(ClientFiles),
    Own(Box<Own>),
    None,
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("client.json")
}

impl ClientFiles {
    /// Reads both.
    ///
    /// # Errors
    /// They cannot be read or used, or others may read the key.
    pub(super) fn read(&self) -> Result<Shown, ServerError> {
        let wrong = |path: &Path, why: String| ServerError::Client { path: path.into(), why };
        let read = |path: &Path| std::fs::read(path).map_err(|e| wrong(path, e.to_string()));
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        let mode = std::fs::metadata(&self.key).map_err(|e| wrong(&self.key, e.to_string()))?.permissions().mode();
        if mode & 0o027 != 0 {
            let why = format!("others may read or write this key (mode {:04o}): chmod 0600", mode & 0o7777);
            return Err(wrong(&self.key, why));
        }
        Shown::new(&certificate, &key).map_err(|why| wrong(&self.certificate, why))
    }
}

impl Identity {
    /// What the configuration names, else what is in the state directory.
    pub(super) fn load(files: Option<&ClientFiles>, state_dir: &Path, unix_secs: i64) -> Result<Self, LinkError> {
        if let Some(files) = files {
            files.read()?;
            return Ok(Self::Files(files.clone()));
        }
        Ok(match persist::load_json(&file(state_dir), unix_secs)? {
            Loaded::There(own) => Self::Own(own),
            Loaded::Missing => Self::None,
            Loaded::Corrupt { moved_to, why } => {
                let moved_to = moved_to.display();
                tracing::error!(%moved_to, why, "the client certificate's file is corrupt: the node asks for another");
                Self::None
            }
        })
    }

    /// What is shown now; one of our own that has ended is not, since a server would refuse the connection for it.
    pub(super) fn shown(&self, now: OffsetDateTime) -> Option<Shown> {
        match self {
            Self::Files(files) => files.read().ok(),
            Self::Own(own) if now < own.issued.not_after => {
                Shown::new(own.issued.certificate.as_bytes(), own.key.expose().as_bytes()).ok()
            }
            Self::Own(_) | Self::None => None,
        }
    }
}

/// A key that was made, and the request for its certificate.
pub(super) struct Request {
    key: Secret,
    pub(super) csr: String,
}

impl Request {
    /// Makes a key.
    pub(super) fn make() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
        Ok(Self { key: Secret::new(&key.serialize_pem()), csr })
    }

    /// The certificate that was issued for the key; refused if it is not.
    pub(super) fn with(self, issued: IssuedCertificate) -> Result<Own, String> {
        let shown = Shown::new(issued.certificate.as_bytes(), self.key.expose().as_bytes())?;
        let key = shown.key().map_err(|e| e.to_string())?;
        let provider = rustls::crypto::ring::default_provider();
        rustls::sign::CertifiedKey::from_der(shown.chain, key, &provider).map_err(|e| e.to_string())?;
        Ok(Own { key: self.key, issued })
    }
}

impl Own {
    pub(super) fn save(&self, state_dir: &Path) -> Result<(), persist::PersistError> {
        persist::save_json(&file(state_dir), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(certificate: String, ends: i64) -> IssuedCertificate {
        let at = |secs| OffsetDateTime::from_unix_timestamp(secs).unwrap();
        let (issued_at, renew_at, not_after) = (at(0), at(ends / 2), at(ends));
        IssuedCertificate { certificate, serial: "01".into(), issued_at, renew_at, not_after, roots: String::new() }
    }

    #[test]
    fn a_certificate_is_kept_with_its_key_and_shown_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let request = Request::make().unwrap();
        let key = KeyPair::from_pem(request.key.expose()).unwrap();
        let certificate = CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        request.with(issued(certificate.clone(), 1_000)).unwrap().save(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join("client.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let identity = Identity::load(None, dir.path(), 0).unwrap();
        let at = |secs| OffsetDateTime::from_unix_timestamp(secs).unwrap();
        assert!(identity.shown(at(999)).is_some() && identity.shown(at(1_000)).is_none());
        // Another's certificate is no use.
        assert!(Request::make().unwrap().with(issued(certificate, 1_000)).is_err());
        assert!(!format!("{identity:?}").contains("PRIVATE KEY"));
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
        let files = ClientFiles { certificate: dir.path().join("c.pem"), key: dir.path().join("k.pem") };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        for (mode, good) in [(0o600, true), (0o640, true), (0o644, false), (0o606, false)] {
            std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(mode)).unwrap();
            let read = files.read();
            assert_eq!(read.is_ok(), good, "{mode:o}");
            if let Err(error) = read {
                assert!(error.to_string().contains("k.pem") && error.to_string().contains("chmod"), "{error}");
            }
        }
    }
}
