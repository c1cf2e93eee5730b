//! Secrets that must be known in clear to be used, such as the tokens of adapters: sealed before they are stored.
//!
//! The database, its backups and its dumps hold what only the server's key opens. The key is 32 bytes in a file beside
//! the database, or one that several processes share.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rand::TryRngCore as _;
use rand::rngs::OsRng;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("cannot read or write the key of secrets {path}", path = .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} must hold 64 hex characters", path = .path.display())]
    NoKey { path: PathBuf },
    #[error("the operating system gives no random numbers")]
    Random(#[from] rand::rand_core::OsError),
}

/// Seals and opens secrets.
pub struct Vault(LessSafeKey);

impl Vault {
    /// A vault with this key.
    pub fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has the length of the algorithm's");
        Self(LessSafeKey::new(key))
    }

    /// A vault with a key that nobody has: what it seals ends with the process.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn ephemeral() -> Result<Self, VaultError> {
        Ok(Self::new(&random()?))
    }

    /// A vault with the key in a file, which is made with mode 0600 if it is missing.
    ///
    /// # Errors
    /// The file cannot be read or made, or holds no key.
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        let failed = |source| VaultError::File { path: path.to_owned(), source };
        let options = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match options {
            Ok(mut file) => {
                let key = random()?;
                writeln!(file, "{}", crate::domain::hex(&key)).map_err(failed)?;
                file.sync_all().map_err(failed)?;
                Ok(Self::new(&key))
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let mut text = String::new();
                let file = std::fs::File::open(path).map_err(failed)?;
                file.take(1_024).read_to_string(&mut text).map_err(failed)?;
                key_of(text.trim()).map(|key| Self::new(&key)).ok_or(VaultError::NoKey { path: path.to_owned() })
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// Seals `secret` for `purpose`, such as `adapter`: it opens for no other.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn seal(&self, purpose: &str, secret: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0; NONCE_LEN];
        OsRng.try_fill_bytes(&mut nonce)?;
        let mut sealed = secret.to_vec();
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(purpose.as_bytes()), &mut sealed)
            .expect("secrets are far shorter than the algorithm's limit");
        sealed.extend_from_slice(&nonce);
        Ok(sealed)
    }

    /// The secret; none if it was sealed with another key or for another purpose, or was changed.
    pub fn unseal(&self, purpose: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = sealed.to_vec();
        let nonce: [u8; NONCE_LEN] = sealed.split_off(sealed.len().checked_sub(NONCE_LEN)?).try_into().ok()?;
        let aad = Aad::from(purpose.as_bytes());
        Some(self.0.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).ok()?.to_vec())
    }
}

fn random() -> Result<[u8; 32], VaultError> {
    let mut key = [0; 32];
    OsRng.try_fill_bytes(&mut key)?;
    Ok(key)
}

fn key_of(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let bytes: Option<Vec<u8>> = (0..32).map(|n| u8::from_str_radix(&text[n * 2..n * 2 + 2], 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_with_its_key_for_its_purpose_unchanged() {
        let vault = Vault::new(&[1; 32]);
        let sealed = vault.seal("adapter", b"sesame").expect("random numbers");
        assert_ne!(sealed, vault.seal("adapter", b"sesame").expect("random numbers"), "never the same twice");
        assert!(!sealed.windows(6).any(|w| w == b"sesame"));
        assert_eq!(vault.unseal("adapter", &sealed).as_deref(), Some(b"sesame".as_slice()));
        assert_eq!(vault.unseal("scrubbing", &sealed), None);
        assert_eq!(Vault::new(&[2; 32]).unseal("adapter", &sealed), None);
        let mut changed = sealed.clone();
        changed[0] ^= 1;
        assert_eq!(vault.unseal("adapter", &changed), None);
        assert_eq!(vault.unseal("adapter", &sealed[..5]), None);
    }

    #[test]
    fn the_key_stays_in_its_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret.key");
        let sealed = Vault::open(&path).expect("made").seal("a", b"sesame").expect("random numbers");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Vault::open(&path).expect("read").unseal("a", &sealed).as_deref(), Some(b"sesame".as_slice()));
        std::fs::write(&path, "no key").expect("written");
        assert!(matches!(Vault::open(&path), Err(VaultError::NoKey { .. })));
    }
}
