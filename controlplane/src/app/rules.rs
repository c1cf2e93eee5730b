//! Firewall rules.

use ftagent_common::api::{Action, NodeMeans, Preview, PreviewContext, Spans, Trigger, effective_sources, preview};
use serde_json::json;
use uuid::Uuid;

use super::App;
use crate::domain::{
    Actor, Execution, Listed, NewRule, Page, Problem, Rule, RulePatch, StoredIncident, check_trigger, example_context,
};
use crate::store::Result;

/// What a rule would do.
pub struct Shown {
    pub preview: Preview,
    pub context: PreviewContext,
    /// Whether the trigger would fire, if a trigger and a real incident were given.
    pub fires: Option<bool>,
}

impl App {
    pub async fn rules(&self, actor: &Actor, page: Page) -> Result<Listed<Rule>> {
        self.store.rules(actor.workspace(), page).await
    }

    pub async fn rule(&self, actor: &Actor, id: i64) -> Result<Rule> {
        self.store.rule(actor.workspace(), id).await
    }

    pub async fn create_rule(&self, actor: &Actor, new: NewRule) -> Result<Rule> {
        let new = new.check()?;
        let fact = self.fact(actor, "rule.create", "rule").with(json!({
            "name": new.name, "trigger": new.trigger, "action": new.action.brief(), "scope": new.scope,
            "cooldown_minutes": new.cooldown_minutes, "enabled": new.enabled,
        }));
        let (rule, changed) = self.store.create_rule(actor.workspace(), new, fact).await?;
        self.wake(&changed);
        self.announce_rule(actor, "created", &rule);
        Ok(rule)
    }

    pub async fn patch_rule(&self, actor: &Actor, id: i64, patch: RulePatch) -> Result<Rule> {
        let fact = self.fact(actor, "rule.update", format!("rule/{id}")).with(json!({
            "name": patch.name, "trigger": patch.trigger, "action": patch.action.as_ref().map(Action::brief),
            "scope": patch.scope,
            "cooldown_minutes": patch.cooldown_minutes, "enabled": patch.enabled,
        }));
        let edit = Box::new(move |rule: &Rule| patch.applied_to(rule).check());
        let (rule, changed) = self.store.edit_rule(actor.workspace(), id, edit, fact).await?;
        self.wake(&changed);
        self.announce_rule(actor, "updated", &rule);
        Ok(rule)
    }

    pub async fn toggle_rule(&self, actor: &Actor, id: i64) -> Result<Rule> {
        let fact = self.fact(actor, "rule.toggle", format!("rule/{id}"));
        let edit = Box::new(|rule: &Rule| {
            let patch = RulePatch { enabled: Some(!rule.enabled), ..RulePatch::default() };
            Ok(patch.applied_to(rule))
        });
        let (rule, changed) = self.store.edit_rule(actor.workspace(), id, edit, fact).await?;
        self.wake(&changed);
        self.announce_rule(actor, "updated", &rule);
        Ok(rule)
    }

    /// Tells of a rule, with the first of its sources: everybody who listens gets a copy.
    fn announce_rule(&self, actor: &Actor, what: &str, rule: &Rule) {
        let brief = Rule { action: rule.action.brief(), ..rule.clone() };
        self.events.announce(actor.workspace(), "rule", json!({ "what": what, "rule": brief }));
    }

    pub async fn delete_rule(&self, actor: &Actor, id: i64) -> Result<()> {
        let fact = self.fact(actor, "rule.delete", format!("rule/{id}"));
        let changed = self.store.delete_rule(actor.workspace(), id, fact).await?;
        self.wake(&changed);
        self.events.announce(actor.workspace(), "rule", json!({ "what": "deleted", "id": id }));
        Ok(())
    }

    pub async fn executions(&self, actor: &Actor, rule: i64, page: Page) -> Result<Listed<Execution>> {
        self.store.executions(actor.workspace(), rule, page).await
    }

    /// Shows what an action would do, for an incident by id, uuid or short id, for an example given, or for a built-in
    /// one; by the means of `node`, or of the incident's. Nothing is stored.
    pub async fn preview_rule(
        &self,
        actor: &Actor,
        action: &Action,
        trigger: Option<Trigger>,
        incident: Option<&str>,
        example: Option<PreviewContext>,
        node: Option<Uuid>,
    ) -> Result<Shown> {
        action.validate().map_err(|e| Problem::field(format!("action.{}", e.field), e.message))?;
        trigger.as_ref().map_or(Ok(()), check_trigger)?;
        let mut fires = None;
        let mut incidents_node = None;
        let mut context = match (incident, example) {
            (Some(_), Some(_)) => return Err(Problem::field("example", "give incident or example, not both").into()),
            (None, example) => example.unwrap_or_else(example_context),
            (Some(reference), None) => {
                let id = self.store.find(actor.workspace(), reference).await?;
                let (incident, _, _) = self.store.incident(actor.workspace(), id).await?;
                let report = &incident.report;
                fires = trigger.map(|t| t.matches(report.family, incident.severity(), report.peak_pps));
                incidents_node = Some(incident.node);
                context_of(&incident)
            }
        };
        let means = async |uuid| -> Result<NodeMeans> {
            let node = self.store.node(actor.workspace(), uuid, self.now()).await?;
            Ok(node.heartbeat.and_then(|heartbeat| heartbeat.means).unwrap_or_default())
        };
        context.node = match (node, incidents_node) {
            (Some(uuid), _) => means(uuid).await?,
            // It may have been removed since.
            (None, Some(uuid)) => means(uuid).await.unwrap_or_default(),
            (None, None) => NodeMeans::default(),
        };
        if context.sources.len() > ftagent_common::api::MAX_SOURCES {
            return Err(Problem::field("example.sources", "must be at most 1024 addresses").into());
        }
        let mut preview = preview(action, &context);
        let sources = Spans::of(&effective_sources(action, &context));
        for entry in self.store.all_allowed(actor.workspace()).await? {
            if sources.touch(&entry.ip_address) {
                preview.warnings.push(format!("{} is allowlisted: nodes refuse to block it", entry.ip_address));
            }
        }
        Ok(Shown { preview, context, fires })
    }
}

fn context_of(incident: &StoredIncident) -> PreviewContext {
    let report = &incident.report;
    PreviewContext {
        target: report.target,
        sources: report.top_sources.iter().map(|s| s.ip).collect(),
        spoofed: report.spoofed,
        spared: Vec::new(),
        node: NodeMeans::default(),
    }
}
