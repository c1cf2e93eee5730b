//! Traits of what is announced outside of the nodes: adapters, mitigation rules, the escalation policy, scrubbing.

use async_trait::async_trait;
use uuid::Uuid;

use super::Result;
use crate::domain::{
    Adapter, Checked, CheckedAdapter, Ending, Escalation, Fact, Listed, MitigationRule, MitigationStatus,
    NewMitigation, NewScrubbing, Outcome, Page, Problem, Scrubbing, ScrubbingPatch, Timestamp, WorkspaceId,
};

/// What becomes of a sealed secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealedChange {
    Keep,
    Remove,
    Set(Vec<u8>),
}

/// An adapter with its sealed token, for its driver.
#[derive(Clone, Debug)]
pub struct KeptAdapter {
    pub adapter: Adapter,
    pub auth_token: Option<Vec<u8>>,
}

/// What became of the wish to delete an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Rules that are withdrawn first; at 0 the adapter is gone.
    pub withdrawing: u64,
    /// The rules whose status this changed.
    pub rules: Vec<MitigationRule>,
}

/// Adapters.
#[async_trait]
pub trait Adapters {
    async fn adapters(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Adapter>>;
    async fn adapter(&self, ws: WorkspaceId, id: i64) -> Result<KeptAdapter>;
    /// Creates the adapter, or replaces the one of the same name, unless that has rules and would go elsewhere.
    async fn save_adapter(
        &self,
        ws: WorkspaceId,
        new: CheckedAdapter,
        token: SealedChange,
        fact: Fact,
    ) -> Result<Adapter>;
    /// Keeps what a call told; with a fact where somebody asked for it.
    async fn note_adapter(&self, ws: WorkspaceId, id: i64, checked: &Checked, fact: Option<Fact>) -> Result<()>;
    /// Withdraws the adapter's rules, and deletes it when none is left.
    async fn delete_adapter(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<Deleted>;
}

/// A rule that this process alone tries now.
#[derive(Clone, Debug)]
pub struct ClaimedRule {
    pub ws: WorkspaceId,
    pub rule: MitigationRule,
    /// Which claim it is: what comes of a lost one is not taken.
    pub claim: Uuid,
    /// Until when others leave it alone.
    pub until: Timestamp,
}

/// What to make of a policy.
pub type PolicyEdit<'a> = Box<dyn FnOnce(&Escalation) -> Result<Escalation, Problem> + Send + 'a>;

/// Mitigation rules, and the policy by which they will be made one day.
#[async_trait]
pub trait Mitigations {
    /// Those that have not ended, or all.
    async fn mitigations(&self, ws: WorkspaceId, live: bool, page: Page) -> Result<Listed<MitigationRule>>;
    /// Makes a rule, unless the guard refuses it; the adapter, the allowlist and the quota are looked at in the same
    /// transaction.
    async fn create_mitigation(&self, ws: WorkspaceId, new: NewMitigation, fact: Fact) -> Result<MitigationRule>;
    /// Wishes the end of a rule; a rule that is ending or has ended stays as it is.
    async fn withdraw_mitigation(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<MitigationRule>;
    /// Takes the rule that is due for longest, of none of the adapters in `busy`, for this process alone.
    async fn claim_mitigation(&self, now: Timestamp, busy: &[i64]) -> Result<Option<ClaimedRule>>;
    /// Keeps what came of a claim; none if the claim was lost. `tried` is the rule's status when it was claimed.
    async fn settle_mitigation(
        &self,
        claimed: &ClaimedRule,
        tried: MitigationStatus,
        outcome: &Outcome,
        now: Timestamp,
    ) -> Result<Option<MitigationRule>>;
    /// Ends what must not be announced any more, because its time is over or its target is allowlisted by now, and
    /// deletes adapters whose last rule has ended. Gives the rules whose status this changed.
    async fn sweep_mitigations(&self, now: Timestamp) -> Result<Vec<(WorkspaceId, MitigationRule, Ending)>>;
    async fn escalation(&self, ws: WorkspaceId) -> Result<Escalation>;
    async fn save_escalation(&self, ws: WorkspaceId, edit: PolicyEdit<'_>, fact: Fact) -> Result<Escalation>;
}

/// Scrubbing integrations.
#[async_trait]
pub trait Scrubbings {
    async fn scrubbings(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Scrubbing>>;
    async fn scrubbing(&self, ws: WorkspaceId, id: i64) -> Result<Scrubbing>;
    async fn create_scrubbing(
        &self,
        ws: WorkspaceId,
        new: NewScrubbing,
        credentials: Vec<u8>,
        fact: Fact,
    ) -> Result<Scrubbing>;
    async fn patch_scrubbing(
        &self,
        ws: WorkspaceId,
        id: i64,
        patch: ScrubbingPatch,
        credentials: SealedChange,
        fact: Fact,
    ) -> Result<Scrubbing>;
    async fn delete_scrubbing(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<()>;
}
