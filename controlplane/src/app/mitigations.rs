//! Mitigation rules and the escalation policy: what operators wish. `reconcile` does it.

use serde_json::json;

use super::App;
use crate::domain::{Actor, Escalation, EscalationChange, Listed, MitigationRule, NewMitigation, Page};
use crate::store::Result;

impl App {
    /// Those that have not ended, or all.
    pub async fn mitigations(&self, actor: &Actor, live: bool, page: Page) -> Result<Listed<MitigationRule>> {
        self.store.mitigations(actor.workspace(), live, page).await
    }

    pub async fn create_mitigation(&self, actor: &Actor, new: NewMitigation) -> Result<MitigationRule> {
        let fact = self.fact(actor, "mitigation.create", "mitigation").with(json!({
            "target_ip": new.target, "intent_type": new.intent, "adapter_id": new.adapter_id, "ttl": new.ttl_secs,
            "reason": new.reason,
        }));
        let rule = self.store.create_mitigation(actor.workspace(), new, fact).await?;
        self.mitigation_due.notify_one();
        self.events.announce(actor.workspace(), "mitigation", json!({ "what": "created", "rule": rule }));
        Ok(rule)
    }

    pub async fn withdraw_mitigation(&self, actor: &Actor, id: i64) -> Result<MitigationRule> {
        let fact = self.fact(actor, "mitigation.withdraw", format!("mitigation/{id}"));
        let rule = self.store.withdraw_mitigation(actor.workspace(), id, fact).await?;
        self.mitigation_due.notify_one();
        self.events.announce(actor.workspace(), "mitigation", json!({ "what": "withdraw", "rule": rule }));
        Ok(rule)
    }

    pub async fn escalation(&self, actor: &Actor) -> Result<Escalation> {
        self.store.escalation(actor.workspace()).await
    }

    pub async fn save_escalation(&self, actor: &Actor, change: EscalationChange) -> Result<Escalation> {
        let fact = self.fact(actor, "escalation.save", "escalation").with(json!({
            "thresholds": change.thresholds, "ttl": change.ttl, "baseline_mode": change.baseline_mode,
            "geo_lockdown": change.geo_lockdown, "dry_run": change.dry_run,
        }));
        let edit = Box::new(move |policy: &Escalation| change.applied_to(policy));
        self.store.save_escalation(actor.workspace(), edit, fact).await
    }
}
