//! Staged rules: the trait. They are not written here but with the incident, in its transaction ([`super::Incidents`]).

use async_trait::async_trait;
use uuid::Uuid;

use super::Result;
use crate::domain::{Decision, Fact, Listed, Page, StagedRule, StagedStatus, Timestamp, WorkspaceId};

/// Rules that wait for a decision, and what became of the others.
#[async_trait]
pub trait Staged {
    async fn staged_rules(
        &self,
        ws: WorkspaceId,
        status: Option<StagedStatus>,
        incident: Option<Uuid>,
        page: Page,
    ) -> Result<Listed<StagedRule>>;
    async fn staged_rule(&self, ws: WorkspaceId, id: i64) -> Result<StagedRule>;
    /// Decides on a rule that waits; of two decisions the first counts and the second is refused. An approval leaves
    /// its node an order.
    async fn decide_staged(
        &self,
        ws: WorkspaceId,
        id: i64,
        decision: Decision,
        by: &str,
        fact: Fact,
    ) -> Result<StagedRule>;
    /// Ends what nobody decided on in time.
    async fn expire_staged(&self, now: Timestamp) -> Result<u64>;
}
