//! Runbooks: what operators do with them, and the worker that carries executions on.
//!
//! ```text
//! commit of an incident --> due --> claim one execution (65 s) --> its steps, each settled --> a wait or the end: give back
//!                                     |
//!                          a worker that dies leaves a claim that ends; the next one begins with the step that is not settled
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ftagent_common::vocab::IncidentStatus;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};
use uuid::Uuid;

use super::App;
use crate::domain::{
    Actor, Attack, Deed, EventKind, IncidentSummary, Listed, NewRunbook, Page, RUN_LEASE_SECS, RunStatus, RunTrigger,
    Runbook, RunbookExecution, RunbookPatch, StepOutcome, Timestamp, excerpt, parse_url, plan, runbook_body,
};
use crate::outbound::Outgoing;
use crate::store::{ClaimedExecution, Result};

/// Executions that one process carries on at a time.
const AT_ONCE: usize = 16;
/// How long executions are kept after their end: 30 days.
const KEEP_SECS: i64 = 30 * 86_400;

impl App {
    pub async fn runbooks(&self, actor: &Actor, page: Page) -> Result<Listed<Runbook>> {
        self.store.runbooks(actor.workspace(), page).await
    }

    pub async fn runbook(&self, actor: &Actor, id: i64) -> Result<Runbook> {
        self.store.runbook(actor.workspace(), id).await
    }

    pub async fn create_runbook(&self, actor: &Actor, new: NewRunbook) -> Result<Runbook> {
        let new = new.check(self.sending.outbound.allows_private())?;
        let fact = self.fact(actor, "runbook.create", "runbook").with(json!({
            "name": new.name, "description": new.description, "trigger_conditions": new.trigger_conditions,
            "steps": new.steps, "active": new.active,
        }));
        let made = self.store.create_runbook(actor.workspace(), new, fact).await?;
        self.events.announce(actor.workspace(), "runbook", json!({ "what": "created", "runbook": made }));
        Ok(made)
    }

    pub async fn patch_runbook(&self, actor: &Actor, id: i64, patch: RunbookPatch) -> Result<Runbook> {
        let fact = self.fact(actor, "runbook.update", format!("runbook/{id}")).with(json!({
            "name": patch.name, "description": patch.description, "trigger_conditions": patch.trigger_conditions,
            "steps": patch.steps, "active": patch.active,
        }));
        let allow_private = self.sending.outbound.allows_private();
        let edit = Box::new(move |kept: &Runbook| Ok(patch.applied_to(kept).check(allow_private)?));
        let saved = self.store.edit_runbook(actor.workspace(), id, edit, fact).await?;
        self.events.announce(actor.workspace(), "runbook", json!({ "what": "updated", "runbook": saved }));
        Ok(saved)
    }

    pub async fn toggle_runbook(&self, actor: &Actor, id: i64) -> Result<Runbook> {
        let fact = self.fact(actor, "runbook.toggle", format!("runbook/{id}"));
        let edit = Box::new(|kept: &Runbook| {
            let patch = RunbookPatch { active: Some(!kept.active), ..RunbookPatch::default() };
            Ok(patch.applied_to(kept))
        });
        let saved = self.store.edit_runbook(actor.workspace(), id, edit, fact).await?;
        self.events.announce(actor.workspace(), "runbook", json!({ "what": "updated", "runbook": saved }));
        Ok(saved)
    }

    /// Deletes a runbook; what is under way goes on.
    pub async fn delete_runbook(&self, actor: &Actor, id: i64) -> Result<()> {
        let fact = self.fact(actor, "runbook.delete", format!("runbook/{id}"));
        self.store.delete_runbook(actor.workspace(), id, fact).await?;
        self.events.announce(actor.workspace(), "runbook", json!({ "what": "deleted", "id": id }));
        Ok(())
    }

    /// Starts a runbook for the newest active incident of `node`, or for an attack that is made up.
    pub async fn run_runbook(&self, actor: &Actor, id: i64, node: Option<Uuid>) -> Result<RunbookExecution> {
        let fact = self.fact(actor, "runbook.run", format!("runbook/{id}"));
        let made = self.store.run_runbook(actor.workspace(), id, node, fact).await?;
        self.runbooks_due.notify_one();
        self.events.announce(actor.workspace(), "runbook", json!({ "what": "started", "execution": made }));
        Ok(made)
    }

    pub async fn runbook_executions(&self, actor: &Actor, id: i64, page: Page) -> Result<Listed<RunbookExecution>> {
        self.store.runbook_executions(actor.workspace(), id, page).await
    }

    /// Forgets executions that ended long ago.
    pub(super) async fn prune_executions(&self, now: Timestamp) -> Result<u64> {
        self.store.prune_executions(now.plus_secs(-KEEP_SECS)).await
    }

    /// Carries executions on until the server drains; steps that are under way then are finished.
    pub async fn execute(self: Arc<Self>, mut draining: watch::Receiver<bool>) {
        let mut busy = JoinSet::new();
        loop {
            while busy.len() < AT_ONCE {
                match self.store.claim_execution(self.now()).await {
                    Ok(Some(claimed)) => {
                        let (app, draining) = (self.clone(), draining.clone());
                        busy.spawn(async move { app.carry_on(claimed, &draining).await });
                    }
                    Ok(None) => break,
                    Err(fault) => {
                        warn!(error = %fault, "executions of runbooks cannot be claimed: it will be tried again");
                        break;
                    }
                }
            }
            tokio::select! {
                Some(done) = busy.join_next() => {
                    if let Err(fault) = done {
                        warn!(panicked = fault.is_panic(), "a step was not settled: it is tried again when its claim ends");
                    }
                }
                () = self.runbooks_due.notified() => {}
                () = tokio::time::sleep(self.sending.look_every) => {}
                _ = draining.wait_for(|d| *d) => break,
            }
        }
        while busy.join_next().await.is_some() {}
    }

    /// Carries on what is due now, and gives the number of executions that had a turn.
    ///
    /// # Errors
    /// The database cannot answer.
    pub async fn execute_due(self: &Arc<Self>) -> Result<usize> {
        let (_drain, draining) = watch::channel(false);
        let mut turns = 0;
        while let Some(claimed) = self.store.claim_execution(self.now()).await? {
            self.clone().carry_on(claimed, &draining).await;
            turns += 1;
        }
        Ok(turns)
    }

    async fn carry_on(self: Arc<Self>, claimed: ClaimedExecution, draining: &watch::Receiver<bool>) {
        if let Err(fault) = self.steps(&claimed, draining).await {
            let id = claimed.execution.id;
            warn!(execution = id, error = %fault, "a step of a runbook cannot be kept yet: it will be tried again");
        }
    }

    async fn steps(&self, claimed: &ClaimedExecution, draining: &watch::Receiver<bool>) -> Result<()> {
        let mut claimed = claimed.clone();
        let is_over = claimed.incident.as_ref().is_some_and(|incident| incident.status() != IncidentStatus::Active);
        let RunbookExecution { trigger, run, .. } = &claimed.execution;
        if run.status == RunStatus::Queued && *trigger == RunTrigger::Incident && is_over {
            let ended = self.store.cancel(&claimed, "the incident was over before it could begin", self.now()).await?;
            self.tell_of(&claimed, ended.as_ref());
            return Ok(());
        }
        loop {
            let now = self.now();
            let Some(record) = claimed.execution.run.current() else {
                let looked = self.store.confirm(&claimed, now).await?;
                self.tell_of(&claimed, looked.as_ref().filter(|execution| !execution.run.status.is_live()));
                return Ok(());
            };
            // A process that stood still since it claimed must not act when others may.
            if now >= claimed.until.plus_secs(-RUN_LEASE_SECS / 2) || *draining.borrow() {
                return self.store.release_execution(&claimed).await;
            }
            let attack = match (&claimed.incident, claimed.execution.incident_id) {
                (Some(incident), _) => Some(Attack::of(incident)),
                (None, None) => Some(Attack::made_up(&claimed.conditions, claimed.execution.node)),
                (None, Some(_)) => None,
            };
            let deed = match &attack {
                None => Deed::Over(StepOutcome::Failed("the incident is gone, with its node".to_owned())),
                Some(attack) => {
                    let allowed = self.store.all_allowed(claimed.ws).await?;
                    match plan(&record.step, attack, claimed.execution.incident_id, &allowed) {
                        Deed::Call { url, timeout_secs } => {
                            Deed::Over(self.call(&claimed, attack, &url, timeout_secs, now).await)
                        }
                        deed => deed,
                    }
                }
            };
            let done = self.now();
            let Some(carried) = self.store.carry_out(&claimed, &deed, done).await? else {
                warn!(execution = claimed.execution.id, "another process took the execution over");
                return Ok(());
            };
            self.wake(&carried.changed);
            match deed {
                Deed::Tell { .. } => self.sending.wake(),
                Deed::Announce(_) => self.mitigation_due.notify_one(),
                _ => {}
            }
            if let Some(rule) = carried.rule {
                self.events.announce(claimed.ws, "rule", json!({ "what": "updated", "rule": rule }));
            }
            if let Some(rule) = carried.mitigation {
                self.events.announce(claimed.ws, "mitigation", json!({ "what": "created", "rule": rule }));
            }
            if let Some(changed) = carried.incident {
                self.sending.wake();
                let summary = IncidentSummary::from(&changed);
                self.events.announce(claimed.ws, "incident", json!({ "what": "updated", "incident": summary }));
                claimed.incident = Some(changed);
            }
            self.tell_of(&claimed, Some(&carried.execution));
            claimed.execution = carried.execution;
            match claimed.execution.run.next_at {
                None => return Ok(()),
                Some(next) if next > done => return Ok(()),
                Some(_) => {}
            }
        }
    }

    fn tell_of(&self, claimed: &ClaimedExecution, execution: Option<&RunbookExecution>) {
        let Some(execution) = execution else { return };
        if !execution.run.status.is_live() {
            info!(
                execution = execution.id,
                runbook = execution.runbook_name,
                status = execution.run.status.as_str(),
                "an execution of a runbook ended"
            );
        }
        let data = json!({
            "what": "execution", "runbook": execution.runbook_id, "execution": execution.id,
            "status": execution.run.status, "position": execution.run.position,
        });
        self.events.announce(claimed.ws, "runbook", data);
    }

    /// Posts the attack once.
    async fn call(
        &self,
        claimed: &ClaimedExecution,
        attack: &Attack,
        url: &str,
        timeout_secs: u32,
        now: Timestamp,
    ) -> StepOutcome {
        let execution = &claimed.execution;
        // The same for every try of the step, so that a receiver can drop repeats.
        let delivery = Uuid::new_v5(&execution.uuid, &execution.run.position.to_be_bytes());
        let outbound = &self.sending.outbound;
        let url = match parse_url(url, outbound.allows_private()) {
            Ok(url) => url,
            Err(why) => return StepOutcome::Failed(why),
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ftagent/", env!("CARGO_PKG_VERSION"))));
        let event = HeaderValue::from_static(EventKind::Runbook.as_str());
        headers.insert(HeaderName::from_static("x-ftagent-event"), event);
        let key = HeaderValue::try_from(delivery.to_string()).expect("a uuid is visible ASCII");
        headers.insert(HeaderName::from_static("x-ftagent-delivery"), key);
        let body = Bytes::from(runbook_body(delivery, execution, "", attack, claimed.incident.as_ref(), now));
        let timeout = Duration::from_secs(u64::from(timeout_secs));
        let answered = outbound.post(&Outgoing { url, headers, body, timeout }).await;
        let latency_ms = super::adapters::millis(now, self.now());
        match answered {
            Err(fault) => StepOutcome::Again(fault.to_string()),
            Ok(answered) => match answered.status {
                200..=299 => StepOutcome::Succeeded(format!("it answered {} after {latency_ms} ms", answered.status)),
                408 | 425 | 429 | 500..=599 => StepOutcome::Again(format!("it answered {}", answered.status)),
                status => {
                    let said = excerpt(&answered.body, std::iter::empty());
                    let said: String = said.chars().map(|c| if c == '\n' { ' ' } else { c }).take(200).collect();
                    StepOutcome::Failed(format!("it answered {status}: {said}").trim_end_matches([':', ' ']).to_owned())
                }
            },
        }
    }
}
