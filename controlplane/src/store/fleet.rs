//! What a fleet asks of the store at once, and what it is told.

use async_trait::async_trait;
use ftagent_common::api::NodeCommand;
use ftagent_common::vocab::NodeStatus;
use uuid::Uuid;

use super::Result;
use crate::domain::{Timestamp, VersionedConfig, WorkspaceId};

/// The nodes whose configuration a write changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    Nodes(Vec<Uuid>),
    /// What all nodes of the workspace have in common, and nothing of a node's own.
    Shared(WorkspaceId),
    /// Those of all nodes of the workspace, with what is each one's own.
    All(WorkspaceId),
}

impl Default for Changed {
    fn default() -> Self {
        Self::none()
    }
}

impl Changed {
    /// No node's.
    pub const fn none() -> Self {
        Self::Nodes(Vec::new())
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Nodes(nodes) if nodes.is_empty())
    }
}

/// A node's name and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeGlance {
    pub workspace: WorkspaceId,
    pub uuid: Uuid,
    pub name: String,
    pub status: NodeStatus,
}

/// What a node asks.
#[derive(Clone, Debug)]
pub struct Look {
    pub node: Uuid,
    pub config: Wanted,
    /// Also the unacknowledged commands with numbers above this.
    pub commands_after: Option<i64>,
    /// What a look before this one learned, where nothing of the node's own has changed since: it is not read again.
    pub seen: Option<Seen>,
}

/// What is a node's own, as a look found it: a thousand nodes that hear of a change for all of them need not each have
/// theirs read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub(super) id: i64,
    pub(super) workspace: WorkspaceId,
    /// The part of its configuration's version that only its own changes advance.
    pub(super) version: u64,
    /// Its certificates of before count as old.
    pub(super) renew_before: Option<Timestamp>,
}

/// Whether a node needs its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    No,
    /// It has this version.
    Unless(u64),
    Always,
}

/// What it should know.
#[derive(Clone, Debug)]
pub struct Looked {
    /// Of the configuration that the node should have.
    pub version: u64,
    pub config: Option<VersionedConfig>,
    /// Oldest first, with their numbers; after very many the next look goes on.
    pub commands: Vec<(i64, NodeCommand)>,
    pub seen: Seen,
}

/// A process asks for a part of what all processes may let through of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which requests are counted together.
    pub bucket: String,
    pub want: u32,
    pub limit: u32,
    /// A minute from now: the end of the window that begins, if there is none under way.
    pub ends: Timestamp,
}

/// What it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leased {
    pub granted: u32,
    /// What no process has.
    pub left: u32,
    pub ends: Timestamp,
}

/// Requests that all processes on the database count together.
#[async_trait]
pub trait Rates {
    /// Whether other processes can be on this database.
    fn is_shared(&self) -> bool;
    async fn lease(&self, lease: Lease) -> Result<Leased>;
    /// Forgets windows that ended before `before`.
    async fn forget_windows(&self, before: Timestamp) -> Result<u64>;
}
