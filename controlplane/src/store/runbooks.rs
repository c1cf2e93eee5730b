//! Runbooks and their executions: the trait, and what goes in and out of it.
//!
//! Executions that incidents start are not made here but with the incident, in its transaction ([`super::Incidents`]).

use async_trait::async_trait;
use uuid::Uuid;

use super::{Changed, Result};
use crate::domain::{
    Deed, Fact, Listed, MitigationRule, NewRunbook, Page, Rule, Runbook, RunbookExecution, StoredIncident, Timestamp,
    TriggerConditions, WorkspaceId,
};

/// What to make of a runbook.
pub type RunbookEdit<'a> = Box<dyn FnOnce(&Runbook) -> Result<NewRunbook> + Send + 'a>;

/// An execution that this process alone carries on now.
#[derive(Clone, Debug)]
pub struct ClaimedExecution {
    pub ws: WorkspaceId,
    pub execution: RunbookExecution,
    /// Those of the runbook when the execution was made.
    pub conditions: TriggerConditions,
    /// As it is now; none if the attack is made up, or the incident is gone.
    pub incident: Option<StoredIncident>,
    /// Which claim it is: what comes of a lost one is not taken.
    pub claim: Uuid,
    /// Until when others leave it alone.
    pub until: Timestamp,
}

/// What became of a step.
#[derive(Clone, Debug)]
pub struct CarriedOut {
    pub execution: RunbookExecution,
    /// Nodes that have something new to do.
    pub changed: Changed,
    /// The incident, if the step changed it.
    pub incident: Option<StoredIncident>,
    /// The firewall rule, if the step changed it.
    pub rule: Option<Rule>,
    /// The mitigation rule that the step made.
    pub mitigation: Option<MitigationRule>,
}

/// Runbooks.
#[async_trait]
pub trait Runbooks {
    async fn runbooks(&self, ws: WorkspaceId, page: Page) -> Result<Listed<Runbook>>;
    async fn runbook(&self, ws: WorkspaceId, id: i64) -> Result<Runbook>;
    async fn create_runbook(&self, ws: WorkspaceId, new: NewRunbook, fact: Fact) -> Result<Runbook>;
    async fn edit_runbook(&self, ws: WorkspaceId, id: i64, edit: RunbookEdit<'_>, fact: Fact) -> Result<Runbook>;
    /// Deletes a runbook; its executions go on.
    async fn delete_runbook(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<()>;
    async fn runbook_executions(&self, ws: WorkspaceId, id: i64, page: Page) -> Result<Listed<RunbookExecution>>;
    /// Starts a runbook by hand: for the newest active incident of `node`, or for an attack that is made up.
    async fn run_runbook(&self, ws: WorkspaceId, id: i64, node: Option<Uuid>, fact: Fact) -> Result<RunbookExecution>;
    /// Takes the execution that is due for longest, for this process alone.
    async fn claim_execution(&self, now: Timestamp) -> Result<Option<ClaimedExecution>>;
    /// Does what the current step asks for and keeps what came of it, both or neither; none if the claim was lost.
    /// The claim ends where the execution waits.
    async fn carry_out(&self, claimed: &ClaimedExecution, deed: &Deed, now: Timestamp) -> Result<Option<CarriedOut>>;
    /// Looks at what was handed over, and gives the claim back; none if it was lost.
    async fn confirm(&self, claimed: &ClaimedExecution, now: Timestamp) -> Result<Option<RunbookExecution>>;
    /// Ends an execution that has not begun; none if the claim was lost.
    async fn cancel(&self, claimed: &ClaimedExecution, why: &str, now: Timestamp) -> Result<Option<RunbookExecution>>;
    /// Gives a claim back.
    async fn release_execution(&self, claimed: &ClaimedExecution) -> Result<()>;
    /// Deletes what ended before.
    async fn prune_executions(&self, before: Timestamp) -> Result<u64>;
}
