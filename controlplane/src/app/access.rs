//! Who a credential belongs to.

use uuid::Uuid;

use super::App;
use crate::domain::Secret;
use crate::store::{Known, Result};

impl App {
    /// The token with this value, unless it is unknown or revoked. Whole hashes are compared in constant time.
    pub(crate) async fn token_of(&self, secret: &Secret) -> Result<Option<Known>> {
        let hash = secret.hash();
        Ok(self.store.token_candidates(&hash).await?.into_iter().find(|known| known.hash.matches(&hash)))
    }

    /// The node, if the key is its own.
    pub(crate) async fn node_of(&self, node: Uuid, key: &Secret) -> Result<Option<Known>> {
        let hash = key.hash();
        Ok(self.store.node_key(node).await?.filter(|known| known.hash.matches(&hash)))
    }
}
