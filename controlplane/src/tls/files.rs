//! Certificate and key in PEM files: what is wrong with them is said with the file's name and the way to mend it.

use std::error::Error;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::domain::Timestamp;

/// The largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{key}: {path} cannot be read: name a file that this server's user may read", path = path.display())]
    Read {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{key}: {path} has more than {MAX_BYTES} bytes: it is something else", path = path.display())]
    TooLarge { key: &'static str, path: PathBuf },
    #[error("{key}: {path} is no PEM file: convert it with openssl", path = path.display())]
    NoPem {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("tls_cert: {path} holds no certificate: put the server's own first and those of its issuers after it", path = .0.display())]
    NoCertificate(PathBuf),
    #[error("tls_key: {path} holds no private key: it must be PKCS #8, PKCS #1 or SEC1, without a password", path = .0.display())]
    NoKey(PathBuf),
    #[error("tls_key: others may read or write {path} (mode {mode:04o}): chmod 0600, or 0640 for a group of its own", path = path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("tls_key: {key} is not the key of the first certificate in {certificate}: copy both again", key = key.display(), certificate = certificate.display())]
    Mismatch { key: PathBuf, certificate: PathBuf },
    #[error("tls_key, tls_cert: {key} with {certificate} cannot be used: they must be RSA, ECDSA or Ed25519", key = key.display(), certificate = certificate.display())]
    Unusable {
        key: PathBuf,
        certificate: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// A fault with its causes, as one line.
pub(super) fn chain(fault: &dyn Error) -> String {
    let mut text = fault.to_string();
    let mut cause = fault.source();
    while let Some(fault) = cause {
        let more = fault.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = fault.source();
    }
    text
}

/// A certificate with its chain, and its key.
#[derive(Debug)]
pub struct Pair {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// When the first certificate ends, if that can be read of it.
    pub ends: Option<Timestamp>,
}

impl Pair {
    /// Reads both.
    ///
    /// # Errors
    /// As [`FileError`] lists.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, FileError> {
        let text = read("tls_cert", certificate)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let chain =
            chain.map_err(|source| FileError::NoPem { key: "tls_cert", path: certificate.to_owned(), source })?;
        if chain.is_empty() {
            return Err(FileError::NoCertificate(certificate.to_owned()));
        }
        let private = read_key(key)?;
        let both = || (key.to_owned(), certificate.to_owned());
        CertifiedKey::from_der(chain.clone(), private.clone_key(), &default_provider()).map_err(|source| {
            let (key, certificate) = both();
            match source {
                rustls::Error::InconsistentKeys(_) => FileError::Mismatch { key, certificate },
                source => FileError::Unusable { key, certificate, source },
            }
        })?;
        let ends = crate::pki::ends(&chain[0]);
        Ok(Self { chain, key: private, ends })
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let text = read("tls_key", path)?;
    let read = |source| FileError::Read { key: "tls_key", path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(read)?.permissions().mode() & 0o7777;
    // The group may read: service managers hand out credentials so.
    if mode & 0o027 != 0 {
        return Err(FileError::Mode { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|fault| match fault {
        pem::Error::NoItemsFound => FileError::NoKey(path.to_owned()),
        source => FileError::NoPem { key: "tls_key", path: path.to_owned(), source },
    })
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, FileError> {
    let fault = |source| FileError::Read { key, path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(fault)?.len() > MAX_BYTES {
        return Err(FileError::TooLarge { key, path: path.to_owned() });
    }
    std::fs::read(path).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name_and_the_way_to_mend_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str, mode: u32| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            path
        };
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).expect("made");
        let other = rcgen::generate_simple_self_signed(["a".to_owned()]).expect("made").signing_key.serialize_pem();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let cert_file = write("cert.pem", &cert, 0o644);
        let table = [
            ("cert.pem", "key.pem", key.as_str(), 0o600, None),
            ("cert.pem", "key.pem", &key, 0o640, None),
            ("cert.pem", "key.pem", &key, 0o644, Some(["key.pem", "0644", "chmod 0600"])),
            ("cert.pem", "key.pem", &key, 0o660, Some(["key.pem", "0660", "chmod 0600"])),
            ("cert.pem", "key.pem", &other, 0o600, Some(["key.pem", "cert.pem", "not the key of"])),
            ("cert.pem", "key.pem", &cert, 0o600, Some(["tls_key", "key.pem", "no private key"])),
            ("cert.pem", "key.pem", "", 0o600, Some(["tls_key", "key.pem", "no private key"])),
            ("key.pem", "key.pem", &key, 0o600, Some(["tls_cert", "key.pem", "no certificate"])),
            ("none.pem", "key.pem", &key, 0o600, Some(["tls_cert", "none.pem", "cannot be read"])),
        ];
        for (cert, key, text, mode, expected) in table {
            let key = write(key, text, mode);
            let got = Pair::read(&cert_file.with_file_name(cert), &key);
            match (got, expected) {
                (Ok(pair), None) => assert!(pair.ends.is_some()),
                (Err(fault), Some(parts)) => {
                    let fault = chain(&fault);
                    assert!(parts.iter().all(|part| fault.contains(part)), "{fault}");
                }
                (got, expected) => panic!("{mode:o}: {got:?}, not {expected:?}"),
            }
        }
    }
}
