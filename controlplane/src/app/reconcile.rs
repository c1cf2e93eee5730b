//! Makes what is announced be what should be: takes rules that are due, calls their adapters, keeps what came of it.
//!
//! ```text
//!   every second, and when a rule was made or withdrawn:
//!     sweep: time over, target allowlisted, adapter to be deleted --> withdrawing
//!     claim one rule at a time, for this process alone ----> call its adapter ----> settle
//! ```
//! All of it is in the database: what a process that dies had claimed is freed by its peers, or ends, and whoever
//! claims the rule next repeats the call with the same idempotency key. Sixteen calls run at once and four to one
//! adapter, so that a receiver that hangs holds up its own rules alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use super::App;
use super::adapters::millis;
use crate::adapters::Announcement;
use crate::domain::{Checked, LEASE_SECS, MitigationRule, MitigationStatus, Outcome, Problem};
use crate::store::{ClaimedRule, Result, StoreError};

/// Calls at once.
const AT_ONCE: usize = 16;
/// Calls at once to one adapter.
const PER_ADAPTER: usize = 4;

/// Calls that are under way.
#[derive(Default)]
struct Work {
    tasks: JoinSet<()>,
    adapters: HashMap<Id, i64>,
}

impl Work {
    fn busy(&self) -> Vec<i64> {
        let mut counts: HashMap<i64, usize> = HashMap::new();
        for adapter in self.adapters.values() {
            *counts.entry(*adapter).or_default() += 1;
        }
        counts.into_iter().filter(|(_, count)| *count >= PER_ADAPTER).map(|(adapter, _)| adapter).collect()
    }

    fn finished(&mut self, done: Result<(Id, ()), JoinError>) {
        let id = match done {
            Ok((id, ())) => id,
            Err(fault) => {
                error!(error = %fault, "a call of an adapter panicked: the rule is tried again when its claim ends");
                fault.id()
            }
        };
        self.adapters.remove(&id);
    }
}

impl App {
    /// Reconciles until the server drains; what is under way then is finished.
    pub async fn reconcile(self: Arc<Self>, mut draining: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work = Work::default();
        loop {
            let sweeps = tokio::select! {
                _ = ticks.tick() => true,
                () = self.mitigation_due.notified() => false,
                Some(done) = work.tasks.join_next_with_id() => {
                    work.finished(done);
                    false
                }
                _ = draining.wait_for(|d| *d) => break,
            };
            if let Err(fault) = self.take_due(&mut work, sweeps).await {
                warn!(error = %fault, "mitigation rules cannot be looked at: it will be tried again");
            }
        }
        while let Some(done) = work.tasks.join_next_with_id().await {
            work.finished(done);
        }
    }

    /// Does what is due now, and gives the number of calls.
    ///
    /// # Errors
    /// The database cannot answer.
    pub async fn reconcile_due(self: &Arc<Self>) -> Result<usize> {
        let mut work = Work::default();
        let mut calls = 0;
        loop {
            let before = work.tasks.len();
            self.take_due(&mut work, true).await?;
            calls += work.tasks.len() - before;
            match work.tasks.join_next_with_id().await {
                Some(done) => work.finished(done),
                None => return Ok(calls),
            }
        }
    }

    async fn take_due(self: &Arc<Self>, work: &mut Work, sweeps: bool) -> Result<()> {
        if sweeps {
            for (ws, rule, ending) in self.store.sweep_mitigations(self.now()).await? {
                info!(rule = rule.id, target = %rule.target_ip, ending = ending.as_str(), "a mitigation rule ends");
                self.events.announce(ws, "mitigation", json!({ "what": "withdraw", "rule": rule }));
            }
        }
        while work.tasks.len() < AT_ONCE {
            let Some(claimed) = self.store.claim_mitigation(self.now(), &work.busy()).await? else { break };
            let adapter = claimed.rule.adapter_id;
            let app = self.clone();
            let task = work.tasks.spawn(async move {
                if let Err(fault) = app.attempt(&claimed).await {
                    warn!(rule = claimed.rule.id, error = %fault, "what came of a mitigation rule cannot be kept yet");
                }
            });
            work.adapters.insert(task.id(), adapter);
        }
        Ok(())
    }

    /// Announces or withdraws one rule.
    async fn attempt(&self, claimed: &ClaimedRule) -> Result<()> {
        let ClaimedRule { ws, rule, .. } = claimed;
        let began = self.now();
        let outcome = match self.store.adapter(*ws, rule.adapter_id).await {
            Ok(kept) => match self.driver(kept) {
                // A process that stood still since it claimed must not speak when others may.
                Ok(_) if began >= claimed.until.plus_secs(-LEASE_SECS / 2) => {
                    Outcome::Failed("the server stood still too long".to_owned())
                }
                Ok(driver) => {
                    let announcement = announcement(rule);
                    let outcome = match rule.status {
                        MitigationStatus::Withdrawing => driver.withdraw(&announcement, began).await,
                        _ => driver.announce(&announcement, began).await,
                    };
                    let error = match &outcome {
                        Outcome::Done => String::new(),
                        Outcome::Refused(why) | Outcome::Failed(why) => why.clone(),
                    };
                    let checked = Checked { at: self.now(), error, latency_ms: millis(began, self.now()) };
                    self.store.note_adapter(*ws, rule.adapter_id, &checked, None).await?;
                    outcome
                }
                Err(why) => Outcome::Failed(why),
            },
            Err(StoreError::Problem(Problem::NotFound(_))) => Outcome::Failed("its adapter is gone".to_owned()),
            Err(fault) => return Err(fault),
        };
        let settled = self.store.settle_mitigation(claimed, rule.status, &outcome, self.now()).await?;
        let Some(after) = settled else {
            warn!(rule = rule.id, "another process took the rule over: what came of this try is dropped");
            return Ok(());
        };
        if after.status != rule.status {
            info!(rule = rule.id, target = %rule.target_ip, before = rule.status.as_str(), now = after.status.as_str(),
                error = after.last_error, "a mitigation rule's status changed");
            self.events.announce(*ws, "mitigation", json!({ "what": "status", "rule": after }));
        }
        Ok(())
    }
}

fn announcement(rule: &MitigationRule) -> Announcement {
    Announcement {
        rule_id: rule.id,
        rule_uuid: rule.uuid,
        target: rule.target_ip,
        intent: rule.intent_type,
        ttl_secs: rule.ttl,
        expires_at: rule.expires_at,
        reason: rule.reason.clone(),
    }
}
