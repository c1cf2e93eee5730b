//! The allowlist.

use serde_json::json;
use uuid::Uuid;

use super::App;
use crate::domain::{Actor, AllowlistEntry, Listed, NewAllowlistEntry, Page};
use crate::store::Result;

impl App {
    pub async fn allowlist(&self, actor: &Actor, node: Option<Uuid>, page: Page) -> Result<Listed<AllowlistEntry>> {
        self.store.allowlist(actor.workspace(), node, page).await
    }

    pub async fn allow(&self, actor: &Actor, new: NewAllowlistEntry) -> Result<AllowlistEntry> {
        let fact = self.fact(actor, "allowlist.add", "allowlist").with(json!({
            "ip_address": new.prefix, "label": new.label, "node": new.node,
        }));
        let (entry, changed) = self.store.allow(actor.workspace(), new, fact).await?;
        self.wake(&changed);
        self.events.announce(actor.workspace(), "allowlist", json!({ "what": "added", "entry": entry }));
        Ok(entry)
    }

    pub async fn disallow(&self, actor: &Actor, id: i64) -> Result<()> {
        let fact = self.fact(actor, "allowlist.remove", format!("allowlist/{id}"));
        let changed = self.store.disallow(actor.workspace(), id, fact).await?;
        self.wake(&changed);
        self.events.announce(actor.workspace(), "allowlist", json!({ "what": "removed", "id": id }));
        Ok(())
    }
}
