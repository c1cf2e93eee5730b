//! Use cases: what callers may do. Each asks `domain`, writes through `store`, and then tells who waits.
//!
//! Nothing here names HTTP or SQL. What a commit changed is announced only after it, and nothing is awaited between
//! the two; a listener that misses an announcement (a process that died in between) finds the change by itself at its
//! next look, at most 10 s later. Other processes on the same database hear of it through `relay`.

mod access;
mod adapters;
mod agents;
mod allowlist;
mod analyses;
mod audit;
mod authorities;
mod events;
mod feeds;
mod incidents;
mod indicators;
mod maintenance;
mod mitigations;
mod nodes;
mod outbox;
mod pcaps;
mod profiles;
mod pushes;
mod rates;
mod reconcile;
mod relay;
mod rules;
mod runbooks;
mod scrubbing;
mod series;
mod staged;
mod thresholds;
mod upkeep;
mod vault;
mod workspaces;

use std::sync::Arc;

use rand::TryRngCore;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::domain::{Actor, Fact, NODE_SECS, Secret, Timestamp};
use crate::store::{Changed, Store};

pub use adapters::TestResult;
pub use agents::{STREAM_PING_SECS, StreamLine, StreamState};
pub use authorities::{ServerIdentity, Trusted};
pub use events::{Event, Events};
pub use outbox::{Made, Sending};
pub(crate) use pcaps::{Begun, Progress};
pub use pcaps::{CaptureLimits, Captures};
pub use pushes::{News, Pushes, Subscription};
pub(crate) use rates::WINDOW_SECS;
pub use rules::Shown;
pub use series::{Series, SeriesCounts, SeriesLimits};
pub use upkeep::Retention;
pub use vault::{KeyError, Vault};

/// What every use case needs.
pub struct App {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    pushes: Pushes,
    events: Events,
    captures: Captures,
    sending: Sending,
    relay: relay::Relay,
    /// Told after a commit that made a mitigation rule due.
    mitigation_due: Notify,
    /// Told after a commit that made an execution of a runbook due.
    runbooks_due: Notify,
    /// Seconds that a node's certificate holds.
    node_certificate_secs: i64,
    keys: access::Keys,
    series: Option<Series>,
}

impl App {
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, captures: Captures, sending: Sending) -> Self {
        let relay = relay::Relay::default();
        let (pushes, events) = (Pushes::new(relay.clone()), Events::new(relay.clone()));
        Self {
            store,
            clock,
            pushes,
            events,
            captures,
            sending,
            relay,
            mitigation_due: Notify::new(),
            runbooks_due: Notify::new(),
            node_certificate_secs: NODE_SECS,
            keys: access::Keys::default(),
            series: None,
        }
    }

    /// With another lifetime of nodes' certificates than usual.
    #[must_use]
    pub fn with_node_certificates_of(self, secs: i64) -> Self {
        Self { node_certificate_secs: secs, ..self }
    }

    /// The time as this server sees it.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Where changes are announced to browsers and scripts.
    pub const fn events(&self) -> &Events {
        &self.events
    }

    /// Where changes are announced to nodes.
    pub const fn pushes(&self) -> &Pushes {
        &self.pushes
    }

    fn fact(&self, actor: &Actor, action: &'static str, object: impl Into<String>) -> Fact {
        Fact::new(self.now(), actor, action, object)
    }

    fn wake(&self, changed: &Changed) {
        match changed {
            Changed::Nodes(nodes) => self.pushes.wake(nodes),
            Changed::Shared(workspace) => self.pushes.wake_shared(*workspace),
            Changed::All(workspace) => self.pushes.wake_workspace(*workspace),
        }
    }
}

/// A new secret from the operating system's generator.
///
/// # Errors
/// The generator is not ready or not there.
pub fn new_secret() -> Result<Secret, rand::rand_core::OsError> {
    let mut bytes = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes)?;
    Ok(Secret::from_random(bytes))
}
