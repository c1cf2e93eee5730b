//! Attack profiles: shown, put in force on trial, kept or taken back.

use ftagent_common::api::{Compiled, CustomRule, Kept, ProfileReport, Suite};
use serde_json::json;
use uuid::Uuid;

use super::App;
use crate::domain::{Actor, Application, Listed, NewApplication, Page, Problem, ProfileId, Verdict, compile_profile};
use crate::store::Result;

impl App {
    /// What nodes would do; nothing is stored.
    pub fn preview_profile(
        &self,
        profile: ProfileId,
        suite: Suite,
        own: &[CustomRule],
        kept: &Kept,
    ) -> Result<Compiled, Problem> {
        compile_profile(profile, suite, own, kept)
    }

    /// Orders nodes to put a profile in force on trial.
    pub async fn apply_profile(&self, actor: &Actor, new: &NewApplication) -> Result<Vec<Application>> {
        let fact = self.fact(actor, "profile.apply", format!("profile/{}", new.profile.as_str())).with(json!({
            "suite": new.suite, "nodes": new.nodes, "custom": new.custom, "confirm_secs": new.confirm_secs,
            "keep": new.keep,
        }));
        let made = self.store.apply_profile(actor.workspace(), new, fact).await?;
        let nodes: Vec<Uuid> = made.iter().map(|a| a.node).collect();
        self.pushes.wake(&nodes);
        let data = json!({ "what": "ordered", "profile": new.profile, "suite": new.suite, "nodes": nodes.len() });
        self.events.announce(actor.workspace(), "profile", data);
        Ok(made)
    }

    pub async fn applications(&self, actor: &Actor, node: Option<Uuid>, page: Page) -> Result<Listed<Application>> {
        self.store.applications(actor.workspace(), node, page, self.now()).await
    }

    pub async fn application(&self, actor: &Actor, id: i64) -> Result<Application> {
        self.store.application(actor.workspace(), id, self.now()).await
    }

    /// A node says what became of its profile without an order; repeats are harmless.
    pub async fn note_profile(&self, actor: &Actor, node: Uuid, report: &ProfileReport) -> Result<()> {
        let reason = report.reason.chars().take(4_096).collect();
        let report = ProfileReport { reason, ..report.clone() };
        let fact = self.fact(actor, "profile.report", format!("node/{node}")).with(&report);
        if self.store.note_profile(node, &report, fact).await? {
            let data = json!({ "what": report.state, "application": report.application, "node": node });
            self.events.announce(actor.workspace(), "profile", data);
        }
        Ok(())
    }

    pub async fn decide_application(&self, actor: &Actor, id: i64, verdict: Verdict) -> Result<Application> {
        let action = match verdict {
            Verdict::Confirm => "profile.confirm",
            Verdict::RollBack => "profile.roll_back",
        };
        let fact = self.fact(actor, action, format!("application/{id}"));
        let decided = self.store.decide_application(actor.workspace(), id, verdict, fact).await?;
        self.pushes.wake(&[decided.node]);
        let data = json!({ "what": decided.status, "id": id, "node": decided.node });
        self.events.announce(actor.workspace(), "profile", data);
        Ok(decided)
    }
}
