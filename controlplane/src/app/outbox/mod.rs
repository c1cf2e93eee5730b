//! Channels and integrations: what operators do with them, and the worker that sends.

mod worker;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use uuid::Uuid;

use super::App;
use super::nodes::fresh_secret;
use super::vault::{Purpose, Vault};
use crate::domain::{
    Actor, Attempt, Delivery, Destination, DestinationKind, DestinationPatch, Duty, EventKind, Listed, NewDestination,
    Page, Problem, Secrets, Settings, Timestamp, excerpt, parse_retry_after, test_body,
};
use crate::outbound::{Outbound, webhook};
use crate::store::{Draft, Result, Sealed, TestMade};

/// Samples that may be under way at a time.
const TESTS: usize = 8;

/// What sending needs, to destinations and adapters alike.
pub struct Sending {
    pub(super) vault: Vault,
    pub(super) outbound: Arc<Outbound>,
    /// How often the worker looks for what others wrote or what is due again.
    pub(super) look_every: Duration,
    wake: Notify,
    tests: Semaphore,
}

impl Sending {
    pub fn new(vault: Vault, outbound: Outbound, look_every: Duration) -> Self {
        Self { vault, outbound: Arc::new(outbound), look_every, wake: Notify::new(), tests: Semaphore::new(TESTS) }
    }

    /// Seals and opens what is kept in the database.
    pub(super) const fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Looks for what is due, soon.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    fn draft(&self, new: NewDestination) -> Result<Draft> {
        let NewDestination { kind, name, enabled, min_severity, settings, secrets } = new;
        let sealed = self.vault.seal(Purpose::Destination, &secrets)?;
        Ok(Draft { kind, name, enabled, min_severity, settings, secret_names: secrets.names(), sealed })
    }

    fn open(&self, sealed: &[u8]) -> Result<Secrets, Problem> {
        let secrets = self.vault.open(Purpose::Destination, sealed);
        secrets.ok_or_else(|| Problem::field("secrets", "cannot be opened: they were sealed with another key"))
    }

    /// Tries once.
    async fn attempt(
        &self,
        kind: DestinationKind,
        settings: &Settings,
        sealed: &[u8],
        what: (Uuid, &str, &str),
        clock: &dyn crate::clock::Clock,
    ) -> Attempt {
        let failed = |error: String| Attempt { error, ..Attempt::default() };
        if !kind.is_connected() {
            return failed(not_connected(kind));
        }
        let Some(secrets) = self.vault.open::<Secrets>(Purpose::Destination, sealed) else {
            return failed("its secrets cannot be opened: they were sealed with another key".to_owned());
        };
        let (delivery, event, body) = what;
        let begun = clock.now();
        let allowed = self.outbound.allows_private();
        let outgoing = match webhook(settings, &secrets, delivery, event, body, allowed, begun) {
            Ok(outgoing) => outgoing,
            Err(error) => return failed(error),
        };
        let answered = self.outbound.post(&outgoing).await;
        let now = clock.now();
        let latency_ms = now.micros().saturating_sub(begun.micros()) / 1_000;
        match answered {
            Err(fault) => Attempt { latency_ms, ..failed(excerpt(fault.to_string().as_bytes(), secrets.values())) },
            Ok(answered) => Attempt {
                error: fault_of(answered.status),
                http_status: Some(answered.status),
                latency_ms,
                answer: excerpt(&answered.body, secrets.values()),
                retry_after_secs: answered.retry_after.and_then(|text| parse_retry_after(&text, now)),
            },
        }
    }
}

/// Why a status is no success; empty if it is one.
fn fault_of(status: u16) -> String {
    match status {
        200..=299 => String::new(),
        300..=399 => format!("it answered {status}: redirects are not followed"),
        _ => format!("it answered {status}"),
    }
}

fn not_connected(kind: DestinationKind) -> String {
    format!("not_connected: this version keeps destinations of the kind {}, but cannot send to them", kind.as_str())
}

/// A destination that was made.
pub struct Made {
    pub destination: Destination,
    /// The secret that was made for it, shown this once.
    pub signing_secret: Option<String>,
}

const fn action(duty: Duty, channel: &'static str, integration: &'static str) -> &'static str {
    match duty {
        Duty::Channel => channel,
        Duty::Integration => integration,
    }
}

impl App {
    pub async fn destinations(&self, actor: &Actor, duty: Duty, page: Page) -> Result<Listed<Destination>> {
        self.store.destinations(actor.workspace(), duty, page, self.now()).await
    }

    pub async fn destination(&self, actor: &Actor, duty: Duty, id: i64) -> Result<Destination> {
        Ok(self.store.destination(actor.workspace(), duty, id, self.now()).await?.destination)
    }

    /// Makes a destination; a webhook without a secret gets one.
    pub async fn create_destination(&self, actor: &Actor, duty: Duty, mut new: NewDestination) -> Result<Made> {
        let mut signing_secret = None;
        if new.kind == DestinationKind::Webhook && new.secrets.value("secret").is_none() {
            let value = fresh_secret()?.reveal().to_owned();
            new.secrets.set("secret", value.clone());
            signing_secret = Some(value);
        }
        let new = new.check(duty, self.sending.outbound.allows_private())?;
        let name = action(duty, "channel.create", "integration.create");
        let fact = self.fact(actor, name, duty.as_str()).with(json!({
            "name": new.name, "kind": new.kind, "enabled": new.enabled, "min_severity": new.min_severity,
            "settings": new.settings, "secrets": new.secrets.names(),
        }));
        let draft = self.sending.draft(new)?;
        let destination = self.store.create_destination(actor.workspace(), duty, draft, fact).await?;
        Ok(Made { destination, signing_secret })
    }

    /// Changes a destination; what failed before is forgotten, and what waits is tried at its time.
    pub async fn patch_destination(
        &self,
        actor: &Actor,
        duty: Duty,
        id: i64,
        patch: DestinationPatch,
    ) -> Result<Destination> {
        let name = action(duty, "channel.update", "integration.update");
        let fact = self.fact(actor, name, format!("{}/{id}", duty.as_str())).with(json!({
            "name": patch.name, "enabled": patch.enabled, "min_severity": patch.min_severity,
            "settings": patch.settings, "secrets": patch.secrets.keys().collect::<Vec<_>>(),
            "headers": patch.headers.as_ref().map(|headers| headers.keys().collect::<Vec<_>>()),
        }));
        let sending = &self.sending;
        let edit = Box::new(move |kept: &Sealed| {
            let new = patch.applied_to(&kept.destination, sending.open(&kept.sealed)?);
            sending.draft(new.check(duty, sending.outbound.allows_private())?)
        });
        let destination = self.store.edit_destination(actor.workspace(), duty, id, edit, fact).await?;
        self.sending.wake();
        Ok(destination)
    }

    /// Deletes a destination with what waits for it.
    pub async fn delete_destination(&self, actor: &Actor, duty: Duty, id: i64) -> Result<()> {
        let name = action(duty, "channel.delete", "integration.delete");
        let fact = self.fact(actor, name, format!("{}/{id}", duty.as_str()));
        self.store.delete_destination(actor.workspace(), duty, id, fact).await
    }

    pub async fn deliveries(&self, actor: &Actor, duty: Duty, id: i64, page: Page) -> Result<Listed<Delivery>> {
        self.store.deliveries(actor.workspace(), duty, id, page).await
    }

    /// Sends a sample now, once, and says what became of it.
    pub async fn test_destination(&self, actor: &Actor, duty: Duty, id: i64) -> Result<Delivery> {
        let kept = self.store.destination(actor.workspace(), duty, id, self.now()).await?;
        let Destination { kind, settings, .. } = kept.destination;
        if kind.is_local() {
            let message = "nothing is sent to it: `POST /firewall-rules/preview` shows what nodes would do".to_owned();
            return Err(Problem::field("kind", message).into());
        }
        if !kind.is_connected() {
            return Err(Problem::field("kind", not_connected(kind)).into());
        }
        let Ok(_turn) = self.sending.tests.try_acquire() else {
            return Err(Problem::TooMany { what: "tests under way", wait_secs: 30 }.into());
        };
        let (uuid, sent_at) = (Uuid::new_v4(), self.now());
        let body = test_body(uuid, sent_at);
        let what = (uuid, EventKind::Test.as_str(), body.as_str());
        let attempt = self.sending.attempt(kind, &settings, &kept.sealed, what, &*self.clock).await;
        let name = action(duty, "channel.test", "integration.test");
        let result = if attempt.succeeded() { "ok" } else { "failed" };
        let fact = self.fact(actor, name, format!("{}/{id}", duty.as_str())).result(result);
        let fact = fact.with(json!({ "delivery": uuid, "error": attempt.error }));
        let test = TestMade { uuid, body, sent_at, attempt };
        self.store.keep_test(actor.workspace(), duty, id, test, fact).await
    }

    /// Gives up what waits for too long, forgets what ended long ago.
    pub(super) async fn prune_deliveries(&self, now: Timestamp) -> Result<u64> {
        let waiting_since = now.plus_secs(-crate::domain::WEBHOOK_PATIENCE.age_secs);
        let ended_before = now.plus_secs(-KEEP_SECS);
        self.store.prune_deliveries(waiting_since, ended_before, KEEP_EACH, now).await
    }
}

/// How long the history of deliveries is kept: 30 days.
const KEEP_SECS: i64 = 30 * 86_400;
/// Deliveries that ended which are kept for one destination.
const KEEP_EACH: i64 = 10_000;
