//! Who a credential belongs to.

use uuid::Uuid;

use super::App;
use crate::domain::{Fingerprint, Problem, Secret, admit};
use crate::store::{Known, NodeAccess, Result};

impl App {
    /// The token with this value, unless it is unknown or revoked. Whole hashes are compared in constant time.
    pub(crate) async fn token_of(&self, secret: &Secret) -> Result<Option<Known>> {
        let hash = secret.hash();
        Ok(self.store.token_candidates(&hash).await?.into_iter().find(|known| known.hash.matches(&hash)))
    }

    /// The node, if the key is its own, and what is known of the certificate that it showed.
    pub(crate) async fn node_of(
        &self,
        node: Uuid,
        key: &Secret,
        shown: Option<Fingerprint>,
    ) -> Result<Option<NodeAccess>> {
        let hash = key.hash();
        Ok(self.store.node_key(node, shown).await?.filter(|access| access.known.hash.matches(&hash)))
    }

    /// Whether the certificate that opened a stream still lets the node in.
    pub(super) async fn still_admitted(&self, node: Uuid, shown: Option<Fingerprint>) -> Result<()> {
        let Some(shown) = shown else { return Ok(()) };
        let access = self.store.node_key(node, Some(shown)).await?;
        let standing = access.and_then(|access| access.standing);
        admit(true, true, standing, self.now()).map_err(|refused| Problem::Forbidden(refused.to_string()).into())
    }
}
