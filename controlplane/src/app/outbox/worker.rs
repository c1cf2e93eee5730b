//! The worker: claims destinations that something is due for, sends, settles.
//!
//! ```text
//! commit of an incident --> wake --> claim (60 s) --> send, each at most 30 s --> settle --> look again
//!                                      |                                           |
//!                         a worker that dies leaves a claim that ends        decided in domain
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rand::TryRngCore as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::app::App;
use crate::domain::{CircuitState, Health, WEBHOOK_PATIENCE, next_attempt};
use crate::store::{Claimed, Settled};

/// Destinations that are sent to at a time.
const DESTINATIONS: usize = 32;
/// Deliveries to one destination at a time, each about another incident.
const WIDTH: u32 = 8;
/// How long a claim lasts, seconds: more than twice the longest try.
const CLAIM_SECS: i64 = 65;
/// How long what is under way may take when the server ends; the rest is sent by the next one.
const FAREWELL: Duration = Duration::from_secs(5);

/// 0 to 1; the middle where the operating system gives no random numbers.
fn jitter() -> f64 {
    rand::rngs::OsRng.try_next_u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX))
}

impl App {
    /// Sends what is due until the server drains.
    pub async fn deliver(self: Arc<Self>, mut draining: watch::Receiver<bool>) {
        let mut busy = JoinSet::new();
        loop {
            let room = DESTINATIONS.saturating_sub(busy.len());
            if room > 0 {
                let now = self.now();
                let most = u32::try_from(room).unwrap_or(1);
                match self.store.claim_deliveries(most, WIDTH, now, now.plus_secs(CLAIM_SECS)).await {
                    Ok(claims) => claims.into_iter().for_each(|claimed| {
                        busy.spawn(self.clone().send_claimed(claimed));
                    }),
                    Err(fault) => warn!(error = %fault, "deliveries cannot be claimed: it will be tried again"),
                }
            }
            tokio::select! {
                Some(done) = busy.join_next() => {
                    if let Err(fault) = done {
                        warn!(panicked = fault.is_panic(), "deliveries were not settled: they will be sent again");
                    }
                }
                () = self.sending.wake.notified() => {}
                () = tokio::time::sleep(self.sending.look_every) => {}
                _ = draining.wait_for(|d| *d) => break,
            }
        }
        let ending = async { while busy.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, ending).await.is_err() {
            info!(left = busy.len(), "deliveries are left under way: they will be sent again");
        }
    }

    async fn send_claimed(self: Arc<Self>, claimed: Claimed) {
        let tries = claimed.waiting.iter().map(async |waiting| {
            let what = (waiting.uuid, waiting.event.as_str(), waiting.body.as_str());
            self.sending.attempt(claimed.kind, &claimed.settings, &claimed.sealed, what, &*self.clock).await
        });
        let attempts = join_all(tries).await;
        let now = self.now();
        let mut health = claimed.health;
        let mut settled = Vec::new();
        for (waiting, attempt) in claimed.waiting.iter().zip(attempts) {
            let mut next_at = None;
            if attempt.succeeded() {
                health = Health { circuit: health.circuit.after_success(), delivered_at: Some(now), ..health };
            } else {
                let (tried, jitter) = (waiting.attempts.saturating_add(1), jitter());
                let asked = attempt.retry_after_secs;
                next_at = next_attempt(WEBHOOK_PATIENCE, tried, waiting.created_at, asked, jitter, now);
                let rest = asked.map(|secs| now.plus_secs(secs));
                let circuit = if attempt.is_busy() { health.circuit } else { health.circuit.after_failure(now) };
                health =
                    Health { circuit, failed_at: Some(now), paused_until: health.paused_until.max(rest), ..health };
                // No error holds a URL or a secret.
                warn!(destination = claimed.id, delivery = %waiting.uuid, tried, error = attempt.error,
                      again = next_at.is_some(), "a delivery failed");
            }
            settled.push(Settled { id: waiting.id, attempt, next_at });
        }
        let (before, after) = (claimed.health.circuit.state(now), health.circuit.state(now));
        if before != after && after != CircuitState::HalfOpen {
            info!(destination = claimed.id, ?before, ?after, "a circuit changed");
        }
        if let Err(fault) = self.store.settle(&claimed, &settled, health, now).await {
            warn!(destination = claimed.id, error = %fault, "deliveries were not settled: they will be sent again");
        }
    }
}
