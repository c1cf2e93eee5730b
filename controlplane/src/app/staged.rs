//! Staged rules: what integrations propose, and operators' decisions.

use serde_json::json;
use uuid::Uuid;

use super::App;
use crate::domain::{Actor, Decision, Listed, Page, Problem, StagedRule, StagedStatus};
use crate::store::{Result, StoreError};

impl App {
    pub async fn staged_rules(
        &self,
        actor: &Actor,
        status: Option<StagedStatus>,
        incident: Option<Uuid>,
        page: Page,
    ) -> Result<Listed<StagedRule>> {
        self.store.staged_rules(actor.workspace(), status, incident, page).await
    }

    pub async fn staged_rule(&self, actor: &Actor, id: i64) -> Result<StagedRule> {
        self.store.staged_rule(actor.workspace(), id).await
    }

    /// Approves a staged rule, which its node is told at once, or rejects it. A refused approval is audited.
    pub async fn decide_staged(&self, actor: &Actor, id: i64, decision: Decision) -> Result<StagedRule> {
        let ws = actor.workspace();
        let action = match decision {
            Decision::Approve => "staged.approve",
            Decision::Reject => "staged.reject",
        };
        let fact = self.fact(actor, action, format!("staged/{id}"));
        let decided = self.store.decide_staged(ws, id, decision, &actor.to_string(), fact.clone()).await;
        if let Err(StoreError::Problem(problem @ Problem::Invalid(_))) = &decided {
            let fact = fact.result("refused").with(json!({ "why": problem.to_string() }));
            self.store.append(ws, fact).await?;
        }
        let rule = decided?;
        if rule.command_id.is_some() {
            self.pushes.wake(&[rule.node]);
        }
        self.events.announce(ws, "staged", json!({ "what": rule.status, "id": rule.id, "incident": rule.incident }));
        Ok(rule)
    }
}
