//! Secrets that must be known in clear to be used, sealed with a key that is not in the database.
//!
//! The database, its backups and its dumps hold what only that key opens, each secret for one purpose alone.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rand::TryRngCore as _;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::new_secret;
use crate::domain::Secret;
use crate::store::StoreError;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read or make the key file {path}: {source}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the key file {0} must hold 64 hex characters")]
    NoKey(PathBuf),
    #[error("the operating system gives no random numbers")]
    Random,
}

/// What a secret is for: it opens for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Adapter,
    Authority,
    Destination,
    Scrubbing,
}

impl Purpose {
    const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Adapter => b"adapter",
            Self::Authority => b"authority",
            Self::Destination => b"destination",
            Self::Scrubbing => b"scrubbing",
        }
    }
}

/// Seals and opens.
pub struct Vault(LessSafeKey);

impl Vault {
    /// With this key.
    pub fn new(key: &Secret) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"ftagent secrets");
        hasher.update(key.reveal());
        let key = UnboundKey::new(&CHACHA20_POLY1305, &hasher.finalize()).expect("SHA-256 gives the 32 bytes needed");
        Self(LessSafeKey::new(key))
    }

    /// With the key in this file, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be read or made, or holds no key.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let file = |source| KeyError::File { path: path.to_owned(), source };
        match std::fs::read_to_string(path) {
            Ok(text) => {
                Secret::parse(text.trim()).map(|key| Self::new(&key)).ok_or_else(|| KeyError::NoKey(path.to_owned()))
            }
            Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => {
                let key = new_secret().map_err(|_| KeyError::Random)?;
                // Whole or not at all, and never another's: two processes may begin at once.
                let draft = path.with_extension(format!("{}.new", std::process::id()));
                let written = (|| {
                    let mut new =
                        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
                    writeln!(new, "{}", key.reveal())?;
                    new.sync_all()?;
                    std::fs::hard_link(&draft, path)
                })();
                let removed = std::fs::remove_file(&draft);
                match written {
                    Err(fault) if fault.kind() == std::io::ErrorKind::AlreadyExists => Self::from_file(path),
                    written => written.and(removed).map(|()| Self::new(&key)).map_err(file),
                }
            }
            Err(fault) => Err(file(fault)),
        }
    }

    /// Seals `secret`, never the same twice.
    ///
    /// # Errors
    /// There are no random numbers.
    pub(super) fn seal(&self, purpose: Purpose, secret: &impl Serialize) -> Result<Vec<u8>, StoreError> {
        let mut nonce = [0; NONCE_LEN];
        rand::rngs::OsRng.try_fill_bytes(&mut nonce).map_err(|source| StoreError::Unavailable {
            reason: "the operating system gives no random numbers",
            source: Box::new(std::io::Error::other(source)),
        })?;
        let mut sealed = serde_json::to_vec(secret).expect("secrets are texts under names");
        let aad = Aad::from(purpose.as_bytes());
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .expect("secrets are far shorter than the algorithm's limit");
        sealed.extend_from_slice(&nonce);
        Ok(sealed)
    }

    /// The secret; none if it was sealed with another key or for another purpose, or was changed.
    pub(super) fn open<T: DeserializeOwned>(&self, purpose: Purpose, sealed: &[u8]) -> Option<T> {
        let (text, nonce) = sealed.split_last_chunk::<NONCE_LEN>()?;
        let mut text = text.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        let opened = self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut text).ok()?;
        serde_json::from_slice(opened).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_for_the_same_purpose_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secrets.key");
        let vault = Vault::from_file(&path).expect("a key is made");
        let seal = || vault.seal(Purpose::Adapter, &"sesame").expect("random numbers");
        let sealed = seal();
        assert!(!sealed.windows(6).any(|w| w == b"sesame"));
        assert_ne!(sealed, seal());
        let opened = |vault: &Vault, purpose, sealed: &[u8]| vault.open::<String>(purpose, sealed);
        let same = Vault::from_file(&path).expect("the same");
        assert_eq!(opened(&same, Purpose::Adapter, &sealed).as_deref(), Some("sesame"));
        assert_eq!(opened(&same, Purpose::Scrubbing, &sealed), None);
        assert_eq!(opened(&Vault::new(&Secret::from_random([1; 32])), Purpose::Adapter, &sealed), None);
        assert_eq!(opened(&vault, Purpose::Adapter, &[1, 2, 3]), None);
        let mut changed = sealed;
        changed[0] ^= 1;
        assert_eq!(opened(&vault, Purpose::Adapter, &changed), None);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "no draft is left");
        std::fs::write(&path, "no key").expect("written");
        assert!(matches!(Vault::from_file(&path), Err(KeyError::NoKey(_))));
    }
}
