//! What it takes to reach what lies outside of the nodes: the key of secrets, the way out, and word that rules are due.

use tokio::sync::Notify;

use crate::adapters::Outbound;
use crate::store::{AdapterToken, Result, StoreError};
use crate::vault::Vault;

/// See the module.
pub struct Upstream {
    vault: Option<Vault>,
    pub(super) outbound: Outbound,
    /// Told after a commit that made a rule due.
    pub(super) due: Notify,
}

impl Default for Upstream {
    fn default() -> Self {
        Self { vault: None, outbound: Outbound::new(false), due: Notify::new() }
    }
}

impl Upstream {
    pub fn new(vault: Vault, outbound: Outbound) -> Self {
        Self { vault: Some(vault), outbound, due: Notify::new() }
    }

    pub(super) fn seal(&self, purpose: &str, secret: &[u8]) -> Result<Vec<u8>> {
        let unexpected = |source| StoreError::Unexpected { what: "a secret cannot be sealed", source };
        let vault = self.vault.as_ref().ok_or_else(|| unexpected("there is no key of secrets".into()))?;
        vault.seal(purpose, secret).map_err(|e| unexpected(e.into()))
    }

    /// What becomes of a kept secret: absent stays, null goes, text replaces it.
    pub(super) fn seal_change(&self, purpose: &str, given: Option<Option<&[u8]>>) -> Result<AdapterToken> {
        Ok(match given {
            None => AdapterToken::Keep,
            Some(None) => AdapterToken::Remove,
            Some(Some(secret)) => AdapterToken::Set(self.seal(purpose, secret)?),
        })
    }

    /// The secret, if it was sealed with this server's key.
    pub(super) fn unseal(&self, purpose: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        self.vault.as_ref()?.unseal(purpose, sealed)
    }
}
