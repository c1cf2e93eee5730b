//! Secrets of destinations, sealed with a key that is not in the database.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rand::TryRngCore as _;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest, Sha256};

use crate::app::new_secret;
use crate::domain::{Secret, Secrets};

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

/// Seals and opens.
pub struct Vault(LessSafeKey);

impl Vault {
    /// With this key.
    pub fn new(key: &Secret) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"ftagent destinations");
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

    pub(super) fn seal(&self, secrets: &Secrets) -> Option<Vec<u8>> {
        self.close(&serde_json::to_vec(secrets).ok()?, b"")
    }

    pub(super) fn open(&self, sealed: &[u8]) -> Option<Secrets> {
        serde_json::from_slice(&self.disclose(sealed, b"")?).ok()
    }

    /// Seals bytes for one `purpose`.
    pub(in crate::app) fn close(&self, bytes: &[u8], purpose: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::rngs::OsRng.try_fill_bytes(&mut nonce).ok()?;
        let mut sealed = bytes.to_vec();
        let aad = Aad::from(purpose);
        self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).ok()?;
        sealed.extend_from_slice(&nonce);
        Some(sealed)
    }

    /// Opens what was sealed for the same `purpose`.
    pub(in crate::app) fn disclose(&self, sealed: &[u8], purpose: &[u8]) -> Option<Vec<u8>> {
        let (text, nonce) = sealed.split_last_chunk::<NONCE_LEN>()?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.0.open_in_place(nonce, Aad::from(purpose), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secrets.key");
        let vault = Vault::from_file(&path).expect("a key is made");
        let mut secrets = Secrets::default();
        secrets.set("secret", "sesame".to_owned());
        let sealed = vault.seal(&secrets).expect("sealed");
        assert!(!sealed.windows(6).any(|w| w == b"sesame"));
        assert_eq!(Vault::from_file(&path).expect("the same").open(&sealed), Some(secrets));
        assert_eq!(Vault::new(&Secret::from_random([1; 32])).open(&sealed), None);
        assert_eq!(vault.open(&[1, 2, 3]), None);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "no draft is left");
        std::fs::write(&path, "no key").expect("written");
        assert!(matches!(Vault::from_file(&path), Err(KeyError::NoKey(_))));
    }
}
