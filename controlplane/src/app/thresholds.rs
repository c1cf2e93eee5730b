//! Thresholds of single hosts.

use serde_json::json;

use super::App;
use crate::domain::{Actor, Listed, NewThreshold, Page, Threshold};
use crate::store::Result;

impl App {
    pub async fn thresholds(&self, actor: &Actor, page: Page) -> Result<Listed<Threshold>> {
        self.store.thresholds(actor.workspace(), page).await
    }

    pub async fn save_threshold(&self, actor: &Actor, new: NewThreshold) -> Result<Threshold> {
        let fact = self.fact(actor, "threshold.save", "threshold").with(json!({
            "target_ip": new.target, "label": new.label, "thresholds": new.thresholds,
        }));
        let (threshold, changed) = self.store.save_threshold(actor.workspace(), new, fact).await?;
        self.wake(&changed);
        self.events.announce(actor.workspace(), "threshold", json!({ "what": "saved", "threshold": threshold }));
        Ok(threshold)
    }

    pub async fn delete_threshold(&self, actor: &Actor, id: i64) -> Result<()> {
        let fact = self.fact(actor, "threshold.delete", format!("threshold/{id}"));
        let changed = self.store.delete_threshold(actor.workspace(), id, fact).await?;
        self.wake(&changed);
        self.events.announce(actor.workspace(), "threshold", json!({ "what": "deleted", "id": id }));
        Ok(())
    }
}
