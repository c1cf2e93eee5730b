//! Keeping what the control plane knows: one trait per resource, one transaction per use case.
//!
//! A write takes the [`Fact`] that the audit chain keeps of it and commits both or neither. Writes that change what
//! nodes must do answer with the nodes concerned ([`Changed`]), whose versions grew in the same transaction. `sql/`
//! has one file per trait, for SQLite and PostgreSQL alike.

mod authorities;
mod error;
pub mod files;
mod fleet;
mod intent;
mod mitigations;
mod outbox;
mod profiles;
mod runbooks;
pub mod sql;
mod staged;

use std::collections::HashMap;

use async_trait::async_trait;
use ftagent_common::api::{CommandAck, Heartbeat, IncidentReport, MetricsSample, NodeCommand, NodeConfig, Order};
use uuid::Uuid;

use crate::domain::{
    Actor, AllowlistEntry, AuditFilter, AuditRecord, Broken, Deployment, Execution, Fact, FeedToken, Fingerprint,
    IncidentFilter, Indicator, IndicatorFilter, Listed, MaintenanceWindow, MetricsPoint, MetricsWindow,
    NewAllowlistEntry, NewChunk, NewFeedToken, NewIndicator, NewRule, NewThreshold, NewToken, NewWindow, Node,
    NodeFilter, NodePatch, Note, OperatorChange, Page, Pcap, PcapFormat, Problem, Quota, Rule, SecretHash,
    StoredIncident, Subscription, Threshold, Timestamp, Token, Verifier, Workspace, WorkspaceId, WorkspacePatch,
};

pub use authorities::{Authorities, NewCertificate, NewRoot, NodeAccess};
pub use error::{Result, StoreError};
pub use fleet::{Changed, Lease, Leased, Look, Looked, NodeGlance, Rates, Seen, Wanted};
pub use intent::{Intent, with_intent};
pub use mitigations::{Adapters, ClaimedRule, Deleted, KeptAdapter, Mitigations, PolicyEdit, Scrubbings, SealedChange};
pub use outbox::{Claimed, DestinationEdit, Draft, Outbox, Sealed, Settled, TestMade, Waiting};
pub use profiles::Profiles;
pub use runbooks::{CarriedOut, ClaimedExecution, RunbookEdit, Runbooks};
pub use staged::Staged;

/// Everything that must be kept.
#[async_trait]
pub trait Store:
    Workspaces
    + Nodes
    + Agents
    + Incidents
    + Outbox
    + Pcaps
    + Rules
    + Staged
    + Profiles
    + Allowlist
    + Thresholds
    + Audits
    + Idempotency
    + Peers
    + Adapters
    + Mitigations
    + Scrubbings
    + Runbooks
    + Indicators
    + Feeds
    + Windows
    + Authorities
    + Rates
    + Send
    + Sync
{
    /// Reads and writes once, so that a locked, full or broken database shows.
    async fn check(&self) -> Result<()>;

    /// Waits for the last commit and closes every connection.
    async fn close(&self);
}

/// Who a credential belongs to.
#[derive(Clone, Debug)]
pub struct Known {
    pub actor: Actor,
    pub hash: SecretHash,
    pub expires_at: Option<Timestamp>,
    pub subscription: Subscription,
}

/// Workspaces and their tokens.
#[async_trait]
pub trait Workspaces {
    /// Makes the workspace `default` and its owner's token, unless a workspace exists already.
    async fn bootstrap(&self, now: Timestamp, owner: &SecretHash) -> Result<bool>;
    /// The oldest workspace, which the command line acts on.
    async fn first_workspace(&self) -> Result<WorkspaceId>;
    async fn workspace(&self, ws: WorkspaceId) -> Result<Workspace>;
    async fn patch_workspace(&self, ws: WorkspaceId, patch: WorkspacePatch, fact: Fact)
    -> Result<(Workspace, Changed)>;
    async fn subscribe(&self, ws: WorkspaceId, subscription: Subscription, fact: Fact) -> Result<()>;
    async fn tokens(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Token>>;
    async fn create_token(&self, ws: WorkspaceId, new: NewToken, hash: &SecretHash, fact: Fact) -> Result<Token>;
    /// Revokes a token; the last owner's is refused, because nobody could make another.
    async fn revoke_token(&self, ws: WorkspaceId, id: i64, now: Timestamp, fact: Fact) -> Result<Token>;
    /// The unrevoked tokens whose hash begins like this one; the caller compares the whole.
    async fn token_candidates(&self, hash: &SecretHash) -> Result<Vec<Known>>;
}

/// Nodes as operators see them.
#[async_trait]
pub trait Nodes {
    async fn deploy(&self, ws: WorkspaceId, node: &Deployment, key: &SecretHash, fact: Fact) -> Result<Uuid>;
    async fn nodes(&self, ws: WorkspaceId, filter: &NodeFilter, page: Page, now: Timestamp) -> Result<Listed<Node>>;
    async fn node(&self, ws: WorkspaceId, node: Uuid, now: Timestamp) -> Result<Node>;
    async fn patch_node(
        &self,
        ws: WorkspaceId,
        node: Uuid,
        patch: NodePatch,
        now: Timestamp,
        fact: Fact,
    ) -> Result<Node>;
    /// Deletes a node with its incidents and metrics; its audit records stay.
    async fn delete_node(&self, ws: WorkspaceId, node: Uuid, fact: Fact) -> Result<()>;
    async fn metrics(&self, ws: WorkspaceId, node: Uuid, window: MetricsWindow) -> Result<Vec<MetricsPoint>>;
    async fn order(&self, ws: WorkspaceId, node: Uuid, order: &Order, fact: Fact) -> Result<NodeCommand>;
    /// Every node of every workspace, for the job that notices changes of status.
    async fn all_nodes(&self, now: Timestamp) -> Result<Vec<NodeGlance>>;
}

/// What nodes say and ask.
#[async_trait]
pub trait Agents {
    /// The node, the hash of its key, and what is known of the certificate that it showed.
    async fn node_key(&self, node: Uuid, shown: Option<Fingerprint>) -> Result<Option<NodeAccess>>;
    /// Answers with the version of the configuration that the node should have.
    async fn heartbeat(&self, node: Uuid, heartbeat: &Heartbeat, now: Timestamp) -> Result<u64>;
    async fn record_metrics(&self, node: Uuid, samples: &[MetricsSample]) -> Result<()>;
    /// What a node asks, answered together with what others ask.
    async fn look(&self, question: Look) -> Result<Looked>;
    async fn config_version(&self, node: Uuid) -> Result<u64> {
        let question = Look { node, config: Wanted::No, commands_after: None, seen: None };
        Ok(self.look(question).await?.version)
    }
    /// The whole configuration, of one moment.
    async fn node_config(&self, node: Uuid) -> Result<NodeConfig> {
        let question = Look { node, config: Wanted::Always, commands_after: None, seen: None };
        let config = self.look(question).await?.config.ok_or(Problem::NotFound("node"))?;
        Ok(config.to_wire())
    }
    /// The unacknowledged commands with numbers above `after`, oldest first, with their numbers.
    async fn pending_commands(&self, node: Uuid, after: i64) -> Result<Vec<(i64, NodeCommand)>> {
        let question = Look { node, config: Wanted::No, commands_after: Some(after), seen: None };
        Ok(self.look(question).await?.commands)
    }
    /// Repeats are harmless: the first word stays.
    async fn acknowledge(&self, node: Uuid, ack: &CommandAck, fact: Fact) -> Result<()>;
    /// Thins out seconds older than `seconds_before`, deletes minutes older than `minutes_before`.
    async fn prune_metrics(&self, seconds_before: Timestamp, minutes_before: Timestamp) -> Result<u64>;
    /// Gives up commands that nobody acknowledged since `before`.
    async fn expire_commands(&self, before: Timestamp) -> Result<u64>;
}

/// What became of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    pub incident: StoredIncident,
    /// Whether the report opened the incident.
    pub opened: bool,
    /// Whether it was newer than what was known.
    pub applied: bool,
    /// Rules that it staged, or whose incident it ended.
    pub staged: usize,
    /// Whether it left the node an order.
    pub ordered: bool,
}

/// Incidents.
#[async_trait]
pub trait Incidents {
    /// Keeps a node's report: idempotent by uuid and revision, and by node, beginning and target. Its executions are
    /// kept and audited once each.
    async fn record(&self, node: Uuid, report: IncidentReport, now: Timestamp) -> Result<Recorded>;
    async fn incidents(&self, ws: WorkspaceId, filter: &IncidentFilter, page: Page) -> Result<Listed<StoredIncident>>;
    /// The next incidents of an export, by falling id below `before`.
    async fn export(&self, ws: WorkspaceId, filter: &IncidentFilter, before: i64) -> Result<Vec<StoredIncident>>;
    /// The number that an id, a uuid or `inc_<8 hex>` stands for.
    async fn find(&self, ws: WorkspaceId, reference: &str) -> Result<i64>;
    async fn incident(&self, ws: WorkspaceId, id: i64) -> Result<(StoredIncident, Vec<Note>, Vec<Execution>)>;
    /// Changes status or severity; ending an active incident leaves the node an order, given back with its node.
    async fn change(
        &self,
        ws: WorkspaceId,
        id: i64,
        change: OperatorChange,
        author: &str,
        fact: Fact,
    ) -> Result<(StoredIncident, Option<NodeCommand>)>;
    async fn note(&self, ws: WorkspaceId, id: i64, author: &str, text: &str, fact: Fact) -> Result<Note>;
}

/// A node's upload, when one of its chunks is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub quota: Quota,
    /// Uploads of the node that were forgotten to give this one a place.
    pub evicted: Vec<Uuid>,
    pub under_way: UnderWay,
}

/// How far an upload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnderWay {
    /// Its chunks lie under this key.
    Key(Uuid),
    /// It is complete.
    Done(Pcap),
}

/// A file that was put together of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assembled {
    pub format: PcapFormat,
    pub bytes: u64,
    pub sha256: [u8; 32],
}

/// Captures: what is known of them. Their bytes lie in [`files::CaptureFiles`].
#[async_trait]
pub trait Pcaps {
    /// Begins or goes on with a node's upload; all uploads under way may take `room` bytes.
    async fn open_upload(&self, node: Uuid, chunk: &NewChunk, room: u64, now: Timestamp) -> Result<Opened>;
    /// Ends an upload: its file is there. The same capture again gives the one that is kept.
    async fn keep_pcap(&self, key: Uuid, chunk: &NewChunk, file: &Assembled, fact: Fact) -> Result<Pcap>;
    async fn forget_upload(&self, key: Uuid) -> Result<()>;
    /// Forgets uploads that stand still since `before`.
    async fn forget_uploads(&self, before: Timestamp) -> Result<Vec<Uuid>>;
    async fn pcaps(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Pcap>>;
    /// Those of one incident, by part.
    async fn pcaps_of(&self, ws: WorkspaceId, incident: i64) -> Result<Vec<Pcap>>;
    /// A capture and its hash.
    async fn pcap(&self, ws: WorkspaceId, id: i64) -> Result<(Pcap, [u8; 32])>;
    async fn delete_pcap(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<()>;
    /// Deletes those kept since before `before`, and the oldest of those that are more than `max_bytes` together.
    async fn prune_pcaps(&self, before: Timestamp, max_bytes: u64) -> Result<u64>;
    /// The keys of uploads under way and the hashes of captures: what may lie in the folder.
    async fn pcap_files(&self) -> Result<(Vec<Uuid>, Vec<[u8; 32]>)>;
}

/// Firewall rules.
#[async_trait]
pub trait Rules {
    async fn rules(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Rule>>;
    async fn rule(&self, ws: WorkspaceId, id: i64) -> Result<Rule>;
    async fn create_rule(&self, ws: WorkspaceId, new: NewRule, fact: Fact) -> Result<(Rule, Changed)>;
    /// Replaces the rule by what `edit` makes of it, read and written in one transaction.
    async fn edit_rule(&self, ws: WorkspaceId, id: i64, edit: Edit<'_>, fact: Fact) -> Result<(Rule, Changed)>;
    async fn delete_rule(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<Changed>;
    async fn executions(&self, ws: WorkspaceId, rule: i64, page: Page) -> Result<Listed<Execution>>;
}

/// What to make of a rule.
pub type Edit<'a> = Box<dyn FnOnce(&Rule) -> Result<NewRule, Problem> + Send + 'a>;

/// The allowlist.
#[async_trait]
pub trait Allowlist {
    /// With `node`: the workspace's entries and that node's.
    async fn allowlist(&self, ws: WorkspaceId, node: Option<Uuid>, page: Page) -> Result<Listed<AllowlistEntry>>;
    /// Every entry that holds on some node of the workspace, for guards.
    async fn all_allowed(&self, ws: WorkspaceId) -> Result<Vec<AllowlistEntry>>;
    async fn allow(&self, ws: WorkspaceId, new: NewAllowlistEntry, fact: Fact) -> Result<(AllowlistEntry, Changed)>;
    async fn disallow(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<Changed>;
}

/// Thresholds of single hosts.
#[async_trait]
pub trait Thresholds {
    async fn thresholds(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Threshold>>;
    /// Creates the threshold, or replaces the one of the same target.
    async fn save_threshold(&self, ws: WorkspaceId, new: NewThreshold, fact: Fact) -> Result<(Threshold, Changed)>;
    async fn delete_threshold(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<Changed>;
}

/// The audit chain.
#[async_trait]
pub trait Audits {
    async fn audit(&self, ws: WorkspaceId, filter: &AuditFilter, page: Page) -> Result<Listed<AuditRecord>>;
    /// The next records of an export, by falling number below `before`.
    async fn export_audit(&self, ws: WorkspaceId, filter: &AuditFilter, before: i64) -> Result<Vec<AuditRecord>>;
    /// Keeps a fact that changed nothing else, such as a refusal.
    async fn append(&self, ws: WorkspaceId, fact: Fact) -> Result<()>;
    /// Walks the whole chain.
    async fn verify(&self, ws: WorkspaceId) -> Result<(Verifier, Option<Broken>)>;
}

/// A first answer that the same request gets again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub request_hash: [u8; 32],
    pub status: u16,
    /// Sealed; the store cannot read it.
    pub answer: Vec<u8>,
}

/// How long a key stays taken without an answer. Whoever takes it over early does no harm: the change of the one before
/// is not made any more.
pub const CLAIM_SECS: i64 = 10;

/// How long the answer to a change may follow its commit.
pub const ANSWER_SECS: i64 = 5;

/// An `Idempotency-Key` and the request that it came with.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub hash: [u8; 32],
    pub request_hash: [u8; 32],
}

/// What became of the wish to answer a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is ours to answer.
    Taken,
    /// It was answered.
    Answered(Answered),
    /// Another process is about to answer it.
    UnderWay,
    /// It was done, and the process died before it kept the answer.
    Done {
        request_hash: [u8; 32],
        /// What it was done to, as in the audit record, such as `rule/7`.
        object: String,
    },
}

/// Answers by `Idempotency-Key`.
#[async_trait]
pub trait Idempotency {
    /// Takes the key for a request that is about to be answered, unless it is answered or taken already. Keys taken by
    /// processes that died are free again after [`CLAIM_SECS`].
    async fn claim(&self, actor: &str, key: &Key, now: Timestamp, since: Timestamp) -> Result<Claim>;
    async fn remember(&self, actor: &str, key_hash: [u8; 32], answered: &Answered, now: Timestamp) -> Result<()>;
    /// Gives a key that was taken and not answered free.
    async fn release(&self, actor: &str, key_hash: [u8; 32]) -> Result<()>;
    async fn forget_answers(&self, before: Timestamp) -> Result<u64>;
}

/// What became of an import.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    pub created: u64,
    pub updated: u64,
    /// In the order of the call.
    pub indicators: Vec<Indicator>,
}

/// Imported indicators.
#[async_trait]
pub trait Indicators {
    /// Keeps all of them or none: a value that the allowlist holds refuses the call. The same value of the same source
    /// again replaces what was said of it.
    async fn import_indicators(&self, ws: WorkspaceId, new: &[NewIndicator], fact: Fact) -> Result<Imported>;
    async fn indicators(&self, ws: WorkspaceId, filter: &IndicatorFilter, page: Page) -> Result<Listed<Indicator>>;
    async fn delete_indicator(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<()>;
    /// At most `most` of those seen since `since` that hold at `now`, the surest first.
    async fn surest_indicators(
        &self,
        ws: WorkspaceId,
        since: Timestamp,
        now: Timestamp,
        most: u32,
    ) -> Result<Vec<Indicator>>;
    /// Deletes those that hold no more.
    async fn forget_indicators(&self, now: Timestamp) -> Result<u64>;
}

/// Whose feed token it is.
#[derive(Clone, Debug)]
pub struct KnownFeed {
    pub id: i64,
    pub workspace: WorkspaceId,
    pub hash: SecretHash,
    pub expires_at: Option<Timestamp>,
}

/// Feeds: their tokens, and the numbers that their rules keep.
#[async_trait]
pub trait Feeds {
    async fn feed_tokens(&self, ws: WorkspaceId, page: Page) -> Result<Listed<FeedToken>>;
    async fn create_feed_token(
        &self,
        ws: WorkspaceId,
        new: &NewFeedToken,
        hash: &SecretHash,
        fact: Fact,
    ) -> Result<FeedToken>;
    async fn revoke_feed_token(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<FeedToken>;
    /// The unrevoked tokens whose hash begins like this one; the caller compares the whole.
    async fn feed_token_candidates(&self, hash: &SecretHash) -> Result<Vec<KnownFeed>>;
    /// The number of each value, given to it the first time and never to another.
    async fn sids(&self, ws: WorkspaceId, values: &[String], now: Timestamp) -> Result<HashMap<String, i64>>;
    /// Forgets the numbers that no feed had since `before`.
    async fn forget_sids(&self, before: Timestamp) -> Result<u64>;
}

/// Maintenance windows.
#[async_trait]
pub trait Windows {
    /// With `node`: the workspace's windows and that node's.
    async fn windows(&self, ws: WorkspaceId, node: Option<Uuid>, page: Page) -> Result<Listed<MaintenanceWindow>>;
    /// Every enabled window.
    async fn all_windows(&self, ws: WorkspaceId) -> Result<Vec<MaintenanceWindow>>;
    async fn window(&self, ws: WorkspaceId, id: i64) -> Result<MaintenanceWindow>;
    async fn create_window(&self, ws: WorkspaceId, new: NewWindow, fact: Fact) -> Result<MaintenanceWindow>;
    /// Replaces the window by what `edit` makes of it, read and written in one transaction.
    async fn edit_window(
        &self,
        ws: WorkspaceId,
        id: i64,
        edit: EditWindow<'_>,
        fact: Fact,
    ) -> Result<MaintenanceWindow>;
    async fn delete_window(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<()>;
}

/// What to make of a maintenance window.
pub type EditWindow<'a> = Box<dyn FnOnce(&MaintenanceWindow) -> Result<NewWindow, Problem> + Send + 'a>;

/// Other control planes on the same database.
#[async_trait]
pub trait Peers {
    /// Tells every process that listens, this one included, in order; at most 7,999 bytes each.
    async fn tell(&self, notices: &[String]) -> Result<()>;
    /// Hears what is told from now on; none where no other process can serve this database.
    async fn listen(&self) -> Result<Option<Box<dyn Listener>>>;
    /// Whether this process is the one that does the jobs of all, now.
    async fn lead(&self) -> Result<bool>;
    /// Frees the deliveries, mitigation rules and executions of runbooks that a process which died had claimed, where
    /// only one process serves the database; elsewhere it says that this process lives.
    async fn take_over(&self) -> Result<()>;
    /// Frees what processes that live no more had claimed, where several serve the database and this one leads: at the
    /// second look that misses them. Says how many claims.
    async fn free_claims(&self) -> Result<u64>;
}

/// Hears what processes tell each other.
#[async_trait]
pub trait Listener: Send {
    /// The next notice; none where some may have been lost.
    ///
    /// # Errors
    /// The connection is gone and does not come again by itself.
    async fn next(&mut self) -> Result<Option<String>>;
}
