//! Who a credential belongs to.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::App;
use crate::domain::{Fingerprint, Problem, Secret, Timestamp, admit};
use crate::store::{Known, NodeAccess, Result};

/// How long a node's key is believed at most without asking the database again. A node that is deleted is forgotten at once
/// here, and at other processes as soon as they hear of it; this is for word that never comes.
const BELIEF_SECS: i64 = 60;
/// The last of these seconds are for some nodes and not for others: a fleet that came at once does not ask at once.
const SPREAD_SECS: u128 = 20;
/// So many keys are remembered.
const MOST: usize = 200_000;

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
        if shown.is_some() {
            // Whether a certificate still lets its node in, the database says each time: a revocation holds at once.
            return self.node_as_it_is(node, key, shown).await;
        }
        let alone = |known| NodeAccess { known, standing: None, enroll_until: None };
        let now = self.now();
        let (known, forgotten) = self.keys.recall(node, now);
        if let Some(known) = known.filter(|known| known.hash.matches(&hash)) {
            return Ok(Some(alone(known)));
        }
        let access = self.store.node_key(node, None).await?.filter(|access| access.known.hash.matches(&hash));
        let known = access.map(|access| access.known);
        if let Some(known) = &known {
            self.keys.remember(node, known, now, forgotten);
        }
        Ok(known.map(alone))
    }

    /// As [`Self::node_of`], and whether it may get a certificate; nothing of it is remembered.
    pub(crate) async fn node_as_it_is(
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

/// The keys of nodes that called lately.
#[derive(Default)]
pub(super) struct Keys(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    /// With the moment from which the database is asked again.
    keys: HashMap<Uuid, (Known, Timestamp)>,
    /// Grows whenever something is forgotten, so that what was read before is not remembered after.
    forgotten: u64,
}

impl Keys {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recall(&self, node: Uuid, now: Timestamp) -> (Option<Known>, u64) {
        let remembered = self.lock();
        let known = remembered.keys.get(&node);
        // A clock set back must not prolong a belief.
        let fresh = |until: Timestamp| now < until && until <= now.plus_secs(BELIEF_SECS);
        (known.filter(|(_, until)| fresh(*until)).map(|(known, _)| known.clone()), remembered.forgotten)
    }

    /// Remembers what was read after `forgotten`.
    fn remember(&self, node: Uuid, known: &Known, now: Timestamp, forgotten: u64) {
        let mut remembered = self.lock();
        if remembered.forgotten != forgotten {
            return;
        }
        if remembered.keys.len() >= MOST {
            remembered.keys.retain(|_, (_, until)| *until > now);
            if remembered.keys.len() >= MOST {
                remembered.keys.clear();
            }
        }
        let less = i64::try_from(node.as_u128() % SPREAD_SECS).unwrap_or(0);
        remembered.keys.insert(node, (known.clone(), now.plus_secs(BELIEF_SECS - less)));
    }

    /// The next call of the node asks the database.
    pub(super) fn forget(&self, node: Uuid) {
        let mut remembered = self.lock();
        remembered.forgotten += 1;
        remembered.keys.remove(&node);
    }

    /// As [`Self::forget`], of every node.
    pub(super) fn forget_all(&self) {
        let mut remembered = self.lock();
        remembered.forgotten += 1;
        remembered.keys.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Actor, Subscription, WorkspaceId};

    #[test]
    fn the_keys_of_a_fleet_are_not_asked_for_at_once() {
        let (keys, now) = (Keys::default(), Timestamp::from_secs(1_000));
        let known = |node| Known {
            actor: Actor::Node { uuid: node, workspace: WorkspaceId(1) },
            hash: Secret::from_random([1; 32]).hash(),
            expires_at: None,
            subscription: Subscription::Active,
        };
        let nodes: Vec<Uuid> = (0..1_000).map(Uuid::from_u128).collect();
        nodes.iter().for_each(|node| keys.remember(*node, &known(*node), now, 0));
        let left = |secs| nodes.iter().filter(|node| keys.recall(**node, now.plus_secs(secs)).0.is_some()).count();
        assert_eq!((left(40), left(50), left(60)), (1_000, 500, 0));
    }

    #[test]
    fn a_key_is_believed_for_a_minute_unless_it_is_forgotten() {
        let (keys, node, now) = (Keys::default(), Uuid::from_u128(20), Timestamp::from_secs(1_000));
        let known = Known {
            actor: Actor::Node { uuid: node, workspace: WorkspaceId(1) },
            hash: Secret::from_random([1; 32]).hash(),
            expires_at: None,
            subscription: Subscription::Active,
        };
        let is_known = |secs| keys.recall(node, now.plus_secs(secs)).0.is_some();
        keys.remember(node, &known, now, keys.recall(node, now).1);
        assert!(is_known(0) && is_known(59) && !is_known(60) && !is_known(-3_600));
        keys.forget(Uuid::from_u128(2));
        assert!(is_known(0));
        keys.forget(node);
        assert!(!is_known(0));
        // The row was read, then the node deleted: what was read must not come back.
        let (_, read) = keys.recall(node, now);
        keys.forget(node);
        keys.remember(node, &known, now, read);
        assert!(!is_known(0));
        keys.remember(node, &known, now, keys.recall(node, now).1);
        keys.forget_all();
        assert!(!is_known(0));
    }
}
