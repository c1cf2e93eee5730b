//! Scrubbing integrations. No provider has a driver yet: they are kept, and every call says so.

use std::collections::BTreeMap;

use serde_json::json;

use super::App;
use super::vault::Purpose;
use crate::domain::{Actor, Fact, Listed, NewScrubbing, Page, Problem, Scrubbing, ScrubbingPatch, check_credentials};
use crate::store::{Result, SealedChange};

impl App {
    pub async fn scrubbings(&self, actor: &Actor, page: Page) -> Result<Listed<Scrubbing>> {
        self.store.scrubbings(actor.workspace(), page).await
    }

    pub async fn scrubbing(&self, actor: &Actor, id: i64) -> Result<Scrubbing> {
        self.store.scrubbing(actor.workspace(), id).await
    }

    pub async fn create_scrubbing(
        &self,
        actor: &Actor,
        new: NewScrubbing,
        credentials: BTreeMap<String, String>,
    ) -> Result<Scrubbing> {
        let new = new.check()?;
        check_credentials(new.provider, &credentials)?;
        let sealed = self.sending.vault.seal(Purpose::Scrubbing, &credentials)?;
        let fact = self.fact(actor, "scrubbing.create", "scrubbing").with(json!({
            "name": new.name, "provider": new.provider, "prefixes": new.prefixes,
        }));
        let made = self.store.create_scrubbing(actor.workspace(), new, sealed, fact).await?;
        self.events.announce(actor.workspace(), "scrubbing", json!({ "what": "created", "integration": made }));
        Ok(made)
    }

    pub async fn patch_scrubbing(
        &self,
        actor: &Actor,
        id: i64,
        patch: ScrubbingPatch,
        credentials: Option<BTreeMap<String, String>>,
    ) -> Result<Scrubbing> {
        let provider = self.store.scrubbing(actor.workspace(), id).await?.provider;
        let sealed = match &credentials {
            None => SealedChange::Keep,
            Some(credentials) => {
                check_credentials(provider, credentials)?;
                SealedChange::Set(self.sending.vault.seal(Purpose::Scrubbing, credentials)?)
            }
        };
        let fact = self.fact(actor, "scrubbing.update", format!("scrubbing/{id}")).with(json!({
            "name": patch.name, "prefixes": patch.prefixes, "credentials_given": credentials.is_some(),
        }));
        let saved = self.store.patch_scrubbing(actor.workspace(), id, patch, sealed, fact).await?;
        self.events.announce(actor.workspace(), "scrubbing", json!({ "what": "updated", "integration": saved }));
        Ok(saved)
    }

    pub async fn delete_scrubbing(&self, actor: &Actor, id: i64) -> Result<()> {
        let fact = self.fact(actor, "scrubbing.delete", format!("scrubbing/{id}"));
        self.store.delete_scrubbing(actor.workspace(), id, fact).await?;
        self.events.announce(actor.workspace(), "scrubbing", json!({ "what": "deleted", "id": id }));
        Ok(())
    }

    /// Refuses to divert traffic, or to end that: there is nothing that could do it. The wish is on record.
    pub async fn divert(&self, actor: &Actor, id: i64, action: &'static str) -> Result<Problem> {
        let kept = self.store.scrubbing(actor.workspace(), id).await?;
        let why = kept.provider.not_connected();
        let fact: Fact = self.fact(actor, action, format!("scrubbing/{id}")).result("refused");
        self.store.append(actor.workspace(), fact.with(json!({ "error": why }))).await?;
        Ok(Problem::field("provider", why))
    }
}
