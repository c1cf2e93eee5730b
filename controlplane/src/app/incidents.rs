//! Incidents as operators see them.

use serde_json::json;

use super::App;
use crate::domain::{
    Actor, Incident, IncidentFilter, IncidentSummary, Listed, Note, OperatorChange, Page, WorkspaceId,
};
use crate::store::Result;

impl App {
    pub async fn incidents(
        &self,
        actor: &Actor,
        filter: &IncidentFilter,
        page: Page,
    ) -> Result<Listed<IncidentSummary>> {
        let listed = self.store.incidents(actor.workspace(), filter, page).await?;
        Ok(listed.map(|incident| IncidentSummary::from(&incident)))
    }

    /// The next incidents of an export, newest ids first; empty at the end.
    pub async fn export(
        &self,
        workspace: WorkspaceId,
        filter: &IncidentFilter,
        before: i64,
    ) -> Result<Vec<IncidentSummary>> {
        let incidents = self.store.export(workspace, filter, before).await?;
        Ok(incidents.iter().map(IncidentSummary::from).collect())
    }

    /// An incident by id, uuid or short id.
    pub async fn incident(&self, actor: &Actor, reference: &str) -> Result<Incident> {
        let id = self.store.find(actor.workspace(), reference).await?;
        let (stored, notes, executions) = self.store.incident(actor.workspace(), id).await?;
        let pcaps = self.store.pcaps_of(actor.workspace(), id).await?;
        Ok(Incident::assemble(stored, notes, executions.into_iter().map(|e| e.execution).collect(), pcaps))
    }

    /// Changes status or severity. Ending an active incident orders its node to end it too and undo what was done.
    pub async fn change_incident(&self, actor: &Actor, reference: &str, change: OperatorChange) -> Result<Incident> {
        let ws = actor.workspace();
        let id = self.store.find(ws, reference).await?;
        let fact = self.fact(actor, "incident.update", format!("incident/{id}")).with(json!({
            "status": change.status, "severity": change.severity,
        }));
        let (stored, _) = self.store.change(ws, id, change, &actor.to_string(), fact).await?;
        self.sending.wake();
        self.runbooks_due.notify_one();
        // It may have an order now: to end the incident, or of an integration that asks nobody.
        self.pushes.wake(&[stored.node]);
        let summary = IncidentSummary::from(&stored);
        self.events.announce(ws, "incident", json!({ "what": "updated", "incident": summary }));
        self.incident(actor, &id.to_string()).await
    }

    pub async fn note(&self, actor: &Actor, reference: &str, text: &str) -> Result<Note> {
        Note::check(text)?;
        let ws = actor.workspace();
        let id = self.store.find(ws, reference).await?;
        let fact = self.fact(actor, "incident.note", format!("incident/{id}"));
        let note = self.store.note(ws, id, &actor.to_string(), text, fact).await?;
        self.events.announce(ws, "incident", json!({ "what": "noted", "id": id, "note": note }));
        Ok(note)
    }
}
