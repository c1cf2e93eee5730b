//! Who calls: the keys of nodes and the standing of their certificates, looked up for many calls at a time.
//!
//! A fleet that comes back after a cut, or whose keys were believed for as long as they are, asks for all of them within
//! seconds.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use uuid::Uuid;

use super::rows::Rows;
use super::transaction::Pools;
use super::workspaces::subscription;
use super::{authorities, hash, maybe_at, sql, uuid};
use crate::domain::{Actor, CertificateStanding, Fingerprint, SecretHash, WorkspaceId};
use crate::store::{Known, NodeAccess, Result};

/// Calls of one look-up.
pub(super) const MOST: usize = 512;
/// Every other thing that the node asks for waits for this.
pub(super) const PACE: Duration = Duration::from_millis(5);

/// A node that calls, and the certificate that it showed.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) node: Uuid,
    pub(super) shown: Option<Fingerprint>,
}

static NODES: Rows = Rows::new(
    "SELECT n.uuid, n.key_hash, n.workspace_id, n.enroll_until, w.subscription
     FROM nodes n JOIN workspaces w ON w.id = n.workspace_id WHERE n.uuid IN (VALUES",
    1,
    ")",
);

static CERTIFICATES: Rows = Rows::new(
    "SELECT c.fingerprint, n.uuid, c.not_after, c.revoked_at, a.state
     FROM certificates c JOIN nodes n ON n.id = c.node_id JOIN authorities a ON a.id = c.authority_id
     WHERE c.fingerprint IN (VALUES",
    1,
    ")",
);

/// What is known of each that calls: none where there is no such node.
pub(super) async fn enter(pools: Pools, entries: Vec<Entry>) -> Result<Vec<Result<Option<NodeAccess>>>> {
    let nodes = nodes(&pools, &entries).await?;
    let standings = standings(&pools, &entries).await?;
    let answer = |entry: &Entry| {
        let access = nodes.get(&entry.node)?;
        let standing = entry.shown.and_then(|shown| standings.get(&(entry.node, shown.0)).copied());
        Some(NodeAccess { standing, ..access.clone() })
    };
    Ok(entries.iter().map(|entry| Ok(answer(entry))).collect())
}

async fn nodes(pools: &Pools, entries: &[Entry]) -> Result<HashMap<Uuid, NodeAccess>> {
    let wanted: BTreeSet<Uuid> = entries.iter().map(|entry| entry.node).collect();
    let wanted: Vec<Uuid> = wanted.into_iter().collect();
    let mut nodes = HashMap::with_capacity(wanted.len());
    for (text, some, more) in NODES.at_least(pools.is_postgres(), &wanted) {
        let all = some.iter().chain(some.last().into_iter().cycle().take(more));
        let query = all.fold(sql(text), |query, node| query.bind(node.to_string()));
        for row in query.all(pools).await? {
            let node = uuid(&row, "uuid")?;
            let known = Known {
                actor: Actor::Node { uuid: node, workspace: WorkspaceId(row.try_get("workspace_id")?) },
                hash: SecretHash::from_bytes(hash(&row, "key_hash")?),
                expires_at: None,
                subscription: subscription(&row)?,
            };
            let enroll_until = maybe_at(&row, "enroll_until")?;
            nodes.insert(node, NodeAccess { known, standing: None, enroll_until });
        }
    }
    Ok(nodes)
}

/// Of the certificates that are their node's own.
async fn standings(pools: &Pools, entries: &[Entry]) -> Result<HashMap<(Uuid, [u8; 32]), CertificateStanding>> {
    let shown: BTreeSet<[u8; 32]> = entries.iter().filter_map(|entry| entry.shown).map(|shown| shown.0).collect();
    let shown: Vec<[u8; 32]> = shown.into_iter().collect();
    let mut standings = HashMap::with_capacity(shown.len());
    for (text, some, more) in CERTIFICATES.at_least(pools.is_postgres(), &shown) {
        let all = some.iter().chain(some.last().into_iter().cycle().take(more));
        let query = all.fold(sql(text), |query, fingerprint| query.bind(fingerprint.to_vec()));
        for row in query.all(pools).await? {
            let Some(not_after) = maybe_at(&row, "not_after")? else { continue };
            let standing = CertificateStanding {
                not_after,
                revoked: maybe_at(&row, "revoked_at")?.is_some(),
                root: authorities::state(&row, "state")?,
            };
            standings.insert((uuid(&row, "uuid")?, hash(&row, "fingerprint")?), standing);
        }
    }
    Ok(standings)
}
