//! The audit chain.

use super::App;
use crate::domain::{Actor, AuditFilter, AuditRecord, Broken, Listed, Page, Verifier, WorkspaceId};
use crate::store::Result;

impl App {
    pub async fn audit(&self, actor: &Actor, filter: &AuditFilter, page: Page) -> Result<Listed<AuditRecord>> {
        self.store.audit(actor.workspace(), filter, page).await
    }

    /// The next records of an export, newest first; empty at the end.
    pub async fn export_audit(
        &self,
        workspace: WorkspaceId,
        filter: &AuditFilter,
        before: i64,
    ) -> Result<Vec<AuditRecord>> {
        self.store.export_audit(workspace, filter, before).await
    }

    /// Walks the whole chain; where it breaks, if it does.
    pub async fn verify_audit(&self, actor: &Actor) -> Result<(Verifier, Option<Broken>)> {
        self.store.verify(actor.workspace()).await
    }
}
