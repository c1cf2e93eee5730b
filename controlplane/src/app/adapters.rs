//! Adapters.

use serde::Serialize;
use serde_json::json;

use super::App;
use super::vault::Purpose;
use crate::adapters::{Adapter as Driver, Settings, driver};
use crate::domain::{Actor, Adapter, AdapterStatus, Checked, Listed, NewAdapter, Page, Timestamp, check_auth_token};
use crate::store::{Deleted, KeptAdapter, Result, SealedChange};

/// What a test of an adapter or an integration found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TestResult {
    pub success: bool,
    /// Milliseconds until the answer; null if nothing was called.
    pub latency_ms: Option<u32>,
    /// The status of the answer, if there was one.
    pub http_status: Option<u16>,
    /// Why it failed; empty if it did not.
    pub message: String,
}

impl App {
    pub async fn adapters(&self, actor: &Actor, page: Page) -> Result<Listed<Adapter>> {
        self.store.adapters(actor.workspace(), page).await
    }

    /// Saves an adapter; `token` absent stays as it is, null goes.
    pub async fn save_adapter(&self, actor: &Actor, new: NewAdapter, token: Option<Option<String>>) -> Result<Adapter> {
        let new = new.check(self.sending.outbound.allows_private())?;
        let sealed = match &token {
            None => SealedChange::Keep,
            Some(None) => SealedChange::Remove,
            Some(Some(token)) => {
                check_auth_token(token)?;
                SealedChange::Set(self.sending.vault.seal(Purpose::Adapter, token)?)
            }
        };
        let fact = self.fact(actor, "adapter.save", "adapter").with(json!({
            "adapter_type": new.adapter_type, "name": new.name, "endpoint": new.endpoint, "config": new.config,
            "capabilities": new.capabilities, "auth_token_given": matches!(token, Some(Some(_))),
        }));
        let adapter = self.store.save_adapter(actor.workspace(), new, sealed, fact).await?;
        self.events.announce(actor.workspace(), "adapter", json!({ "what": "saved", "adapter": adapter }));
        Ok(adapter)
    }

    /// Withdraws the adapter's rules and deletes it after that.
    pub async fn delete_adapter(&self, actor: &Actor, id: i64) -> Result<u64> {
        let fact = self.fact(actor, "adapter.delete", format!("adapter/{id}"));
        let Deleted { withdrawing, rules } = self.store.delete_adapter(actor.workspace(), id, fact).await?;
        self.mitigation_due.notify_one();
        for rule in &rules {
            self.events.announce(actor.workspace(), "mitigation", json!({ "what": "withdraw", "rule": rule }));
        }
        self.events.announce(actor.workspace(), "adapter", json!({ "what": "deleted", "id": id }));
        Ok(withdrawing)
    }

    /// Calls the adapter; one that cannot be called is told, not tried.
    pub async fn test_adapter(&self, actor: &Actor, id: i64) -> Result<(AdapterStatus, TestResult)> {
        let kept = self.store.adapter(actor.workspace(), id).await?;
        let began = self.now();
        let kind = kept.adapter.adapter_type;
        let deleting = kept.adapter.status == AdapterStatus::Deleting;
        let fact = self.fact(actor, "adapter.test", format!("adapter/{id}"));
        if !kind.is_built() {
            let message =
                format!("not connected: this version has no driver for {}, so nothing was called", kind.as_str());
            self.store.append(actor.workspace(), fact.result("failed").with(json!({ "error": message }))).await?;
            let result = TestResult { success: false, latency_ms: None, http_status: None, message };
            return Ok((AdapterStatus::NotConnected, result));
        }
        let (error, http_status) = match self.driver(kept) {
            Ok(driver) => {
                let tested = driver.test(began).await;
                (tested.error.unwrap_or_default(), tested.http_status)
            }
            Err(why) => (why, None),
        };
        let checked = Checked { at: self.now(), latency_ms: millis(began, self.now()), error };
        let success = checked.error.is_empty();
        let fact = fact.result(if success { "ok" } else { "failed" }).with(json!({ "error": checked.error }));
        self.store.note_adapter(actor.workspace(), id, &checked, Some(fact)).await?;
        let status = AdapterStatus::of(kind, deleting, true, &checked.error);
        let latency_ms = http_status.map(|_| checked.latency_ms);
        Ok((status, TestResult { success, latency_ms, http_status, message: checked.error }))
    }

    /// The driver of an adapter.
    ///
    /// # Errors
    /// There is none for its type, or its token was sealed with another key.
    pub(super) fn driver(&self, kept: KeptAdapter) -> Result<Box<dyn Driver>, String> {
        let KeptAdapter { adapter, auth_token } = kept;
        let auth_token = match auth_token {
            None => None,
            Some(sealed) => Some(self.sending.vault.open(Purpose::Adapter, &sealed).ok_or_else(|| {
                "the adapter's token was sealed with another key than this server's: save it again".to_owned()
            })?),
        };
        let kind = adapter.adapter_type;
        let Adapter { id, name, endpoint, config, .. } = adapter;
        driver(kind, Settings { id, name, endpoint, auth_token, config }, self.sending.outbound.clone())
            .ok_or_else(|| format!("this version has no driver for {}", kind.as_str()))
    }
}

/// Milliseconds between two looks at the clock.
pub(super) fn millis(from: Timestamp, to: Timestamp) -> u32 {
    u32::try_from((to.micros() - from.micros()).max(0) / 1_000).unwrap_or(u32::MAX)
}
