//! Maintenance windows.

use serde_json::json;
use uuid::Uuid;

use super::App;
use crate::domain::{
    Actor, Listed, MaintenanceWindow, NewWindow, Page, Timestamp, WindowPatch, WorkspaceId, held_until,
};
use crate::store::Result;

impl App {
    /// Until when notifications and automatic actions for `node` (or the workspace as a whole) are held; none if they
    /// are not. Whoever waits asks again then: another window may have opened.
    pub async fn held_until(&self, workspace: WorkspaceId, node: Option<Uuid>) -> Result<Option<Timestamp>> {
        Ok(held_until(&self.store.all_windows(workspace).await?, node, self.now()))
    }

    pub async fn windows(&self, actor: &Actor, node: Option<Uuid>, page: Page) -> Result<Listed<MaintenanceWindow>> {
        self.store.windows(actor.workspace(), node, page).await
    }

    pub async fn window(&self, actor: &Actor, id: i64) -> Result<MaintenanceWindow> {
        self.store.window(actor.workspace(), id).await
    }

    pub async fn create_window(&self, actor: &Actor, new: NewWindow) -> Result<MaintenanceWindow> {
        let new = new.check(self.now())?;
        let fact = self.fact(actor, "maintenance.create", "maintenance").with(json!({
            "name": new.name, "node": new.node, "schedule": new.schedule, "enabled": new.enabled,
        }));
        let window = self.store.create_window(actor.workspace(), new, fact).await?;
        self.events.announce(actor.workspace(), "maintenance", json!({ "what": "created", "window": window }));
        Ok(window)
    }

    pub async fn patch_window(&self, actor: &Actor, id: i64, patch: WindowPatch) -> Result<MaintenanceWindow> {
        let fact = self.fact(actor, "maintenance.update", format!("maintenance/{id}")).with(json!({
            "name": patch.name, "schedule": patch.schedule, "enabled": patch.enabled,
        }));
        let now = self.now();
        let edit = Box::new(move |window: &MaintenanceWindow| patch.applied_to(window, now));
        let window = self.store.edit_window(actor.workspace(), id, edit, fact).await?;
        self.events.announce(actor.workspace(), "maintenance", json!({ "what": "updated", "window": window }));
        Ok(window)
    }

    pub async fn delete_window(&self, actor: &Actor, id: i64) -> Result<()> {
        let fact = self.fact(actor, "maintenance.delete", format!("maintenance/{id}"));
        self.store.delete_window(actor.workspace(), id, fact).await?;
        self.events.announce(actor.workspace(), "maintenance", json!({ "what": "deleted", "id": id }));
        Ok(())
    }
}
