//! Threat intelligence.

use serde_json::json;

use super::App;
use crate::domain::{Actor, GivenIndicator, Indicator, IndicatorFilter, Listed, Page, Problem, check_import};
use crate::store::{Imported, Result, StoreError};

impl App {
    /// Keeps all the indicators of a call or none. A call that names what the allowlist holds is refused and the refusal
    /// audited.
    pub async fn import_indicators(&self, actor: &Actor, given: Vec<GivenIndicator>) -> Result<Imported> {
        let ws = actor.workspace();
        let new = check_import(given, self.now())?;
        let sources: std::collections::BTreeSet<_> = new.iter().map(|i| i.source.as_str()).collect();
        let detail = json!({ "indicators": new.len(), "sources": sources });
        let fact = self.fact(actor, "indicator.import", "indicator").with(detail);
        let imported = match self.store.import_indicators(ws, &new, fact.clone()).await {
            Err(StoreError::Problem(Problem::Invalid(fields))) => {
                let fact = fact.with(json!({ "indicators": new.len(), "refused": fields })).result("refused");
                self.store.append(ws, fact).await?;
                return Err(Problem::Invalid(fields).into());
            }
            other => other?,
        };
        let data = json!({ "what": "imported", "created": imported.created, "updated": imported.updated });
        self.events.announce(ws, "indicator", data);
        Ok(imported)
    }

    pub async fn indicators(&self, actor: &Actor, filter: &IndicatorFilter, page: Page) -> Result<Listed<Indicator>> {
        self.store.indicators(actor.workspace(), filter, page).await
    }

    pub async fn delete_indicator(&self, actor: &Actor, id: i64) -> Result<()> {
        let fact = self.fact(actor, "indicator.delete", format!("indicator/{id}"));
        self.store.delete_indicator(actor.workspace(), id, fact).await?;
        self.events.announce(actor.workspace(), "indicator", json!({ "what": "deleted", "id": id }));
        Ok(())
    }
}
