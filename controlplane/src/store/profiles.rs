//! Attack profiles on nodes: the trait.

use async_trait::async_trait;
use ftagent_common::api::ProfileReport;
use uuid::Uuid;

use super::Result;
use crate::domain::{Application, Fact, Listed, NewApplication, Page, Timestamp, Verdict, WorkspaceId};

/// Profiles on trial, kept and taken back.
#[async_trait]
pub trait Profiles {
    /// Leaves each node the order, all or none; a node that has a profile already refuses the call.
    async fn apply_profile(&self, ws: WorkspaceId, new: &NewApplication, fact: Fact) -> Result<Vec<Application>>;
    /// Takes down what a node did without an order; false: that was known.
    async fn note_profile(&self, node: Uuid, report: &ProfileReport, fact: Fact) -> Result<bool>;
    /// With `node`: those of that node.
    async fn applications(
        &self,
        ws: WorkspaceId,
        node: Option<Uuid>,
        page: Page,
        now: Timestamp,
    ) -> Result<Listed<Application>>;
    async fn application(&self, ws: WorkspaceId, id: i64, now: Timestamp) -> Result<Application>;
    /// Keeps a profile that is on trial or takes it back; refused where it is too late.
    async fn decide_application(&self, ws: WorkspaceId, id: i64, verdict: Verdict, fact: Fact) -> Result<Application>;
}
