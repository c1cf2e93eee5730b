//! The one worker for what may take long: the state file, and nftables after it, in the order they were asked for.
//!
//! Runs on a thread of its own, so that a slow disk delays neither detection nor the datapath. Only the newest state
//! and the newest rules wait: both are whole.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::carriers::{Carriers, Devices};
use super::ladder::{Chosen, Rung};
use crate::clock;
use crate::daemon::SavedState;
use crate::engine::{EnforceResult, EngineState, RuleId, RuleSet};
use crate::persist;

/// What waits for the worker.
#[derive(Default)]
struct Waiting {
    state: Option<Box<EngineState>>,
    rules: Option<RuleSet>,
    devices: Option<Devices>,
    overflow: Option<BTreeSet<RuleId>>,
    /// The rung that carries the datapath's rules, where one has to.
    chosen: Option<Chosen>,
    repair: bool,
    /// Who wants to know when all that waits is done, and why the state could not be saved.
    told: Vec<oneshot::Sender<Option<String>>>,
    closed: bool,
    /// Why the state file is not written.
    fault: Option<String>,
}

impl Waiting {
    fn is_idle(&self) -> bool {
        let is_asked = self.state.is_some()
            || self.rules.is_some()
            || self.devices.is_some()
            || self.overflow.is_some()
            || self.repair
            || !self.told.is_empty();
        !is_asked && !self.closed
    }
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every change is one assignment: a panic cannot leave it half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker's own side.
pub struct Worker {
    shared: Arc<Shared>,
    path: PathBuf,
    boot: String,
    order: Vec<Rung>,
    results: mpsc::UnboundedSender<Vec<EnforceResult>>,
}

/// The daemon's side; the worker ends when it is dropped.
pub struct WorkerHandle {
    shared: Arc<Shared>,
}

impl Worker {
    /// A worker that saves to `path` and tries rungs in `order`, its handle, and where its results come out. Results are
    /// at most one for each rule that was asked for.
    pub fn new(
        path: PathBuf,
        boot: String,
        order: Vec<Rung>,
    ) -> (Self, WorkerHandle, mpsc::UnboundedReceiver<Vec<EnforceResult>>) {
        let shared = Arc::new(Shared::default());
        let (results, receiver) = mpsc::unbounded_channel();
        (Self { shared: Arc::clone(&shared), path, boot, order, results }, WorkerHandle { shared }, receiver)
    }

    /// Works until the handle is dropped and nothing waits.
    pub fn run(self) {
        let state_dir = self.path.parent().unwrap_or(&self.path);
        let mut carriers = Carriers::new(self.order.clone(), state_dir);
        self.work(&mut carriers);
        carriers.leave();
    }

    fn work(&self, carriers: &mut Carriers) {
        let mut rules = RuleSet::default();
        loop {
            let work = {
                let mut waiting = self.shared.waiting();
                while waiting.is_idle() {
                    waiting = self.shared.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                }
                let is_last = waiting.closed && waiting.state.is_none() && waiting.rules.is_none();
                if is_last {
                    return;
                }
                let repair = std::mem::take(&mut waiting.repair);
                let told = std::mem::take(&mut waiting.told);
                let changes = (waiting.devices.take(), waiting.overflow.take());
                (waiting.state.take(), waiting.rules.take(), changes, repair, told)
            };
            let (state, desired, (devices, overflow), repair, told) = work;
            if let Some(state) = state {
                self.save(*state);
            }
            let is_asked = desired.is_some() || devices.is_some() || overflow.is_some() || repair;
            if let Some(devices) = devices {
                carriers.set_devices(devices);
            }
            if let Some(overflow) = overflow {
                carriers.set_overflow(overflow);
            }
            if repair {
                carriers.look();
            }
            self.shared.waiting().chosen = carriers.chosen();
            if let Some(desired) = desired {
                rules = desired;
            }
            if is_asked {
                let results = carriers.reconcile(&rules, clock::now());
                // Now it is known which rules it cannot carry.
                self.shared.waiting().chosen = carriers.chosen();
                if !results.is_empty() && self.results.send(results).is_err() {
                    return;
                }
            }
            if !told.is_empty() {
                let fault = self.shared.waiting().fault.clone();
                // Who asked may have gone.
                told.into_iter().for_each(|told| drop(told.send(fault.clone())));
            }
        }
    }

    fn save(&self, state: EngineState) {
        let saved = SavedState { boot: self.boot.clone(), state };
        let fault = persist::save_json(&self.path, &saved).err().map(|error| error.to_string());
        if let Some(fault) = &fault {
            error!(%fault, "the state is not saved: after a crash the agent would start from the last one");
        }
        self.shared.waiting().fault = fault;
    }
}

impl WorkerHandle {
    /// Saves `state`, before any rules that are handed over later.
    pub fn save(&self, state: EngineState) {
        self.shared.waiting().state = Some(Box::new(state));
        self.shared.more.notify_one();
    }

    /// Saves `state`, and says why not when that failed, once it and the rules handed over before are done.
    pub fn save_and_tell(&self, state: EngineState) -> oneshot::Receiver<Option<String>> {
        let (told, done) = oneshot::channel();
        let mut waiting = self.shared.waiting();
        waiting.state = Some(Box::new(state));
        waiting.told.push(told);
        drop(waiting);
        self.shared.more.notify_one();
        done
    }

    /// Comes when all that was handed over before is done.
    pub fn done(&self) -> oneshot::Receiver<Option<String>> {
        let (told, done) = oneshot::channel();
        self.shared.waiting().told.push(told);
        self.shared.more.notify_one();
        done
    }

    /// Brings nftables, and the rung that carries rules of the datapath, to `rules`.
    pub fn enforce(&self, rules: RuleSet) {
        self.shared.waiting().rules = Some(rules);
        self.shared.more.notify_one();
    }

    /// Looks whether they are as they should be.
    pub fn repair(&self) {
        self.shared.waiting().repair = true;
        self.shared.more.notify_one();
    }

    /// The interfaces; rules of those without a program another rung of the ladder has to carry.
    pub fn set_devices(&self, devices: Devices) {
        self.shared.waiting().devices = Some(devices);
        self.shared.more.notify_one();
    }

    /// Rules that the datapath has no room for.
    pub fn set_overflow(&self, overflow: BTreeSet<RuleId>) {
        self.shared.waiting().overflow = Some(overflow);
        self.shared.more.notify_one();
    }

    /// The rung that carries the datapath's rules, where one has to.
    pub fn chosen(&self) -> Option<Chosen> {
        self.shared.waiting().chosen.clone()
    }

    /// Why the state file is not written, if it is not.
    pub fn warning(&self) -> Option<String> {
        self.shared.waiting().fault.clone()
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.shared.waiting().closed = true;
        self.shared.more.notify_one();
    }
}
