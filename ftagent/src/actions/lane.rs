//! The thread of one tool: takes the newest set, works, looks every few seconds, and says what came of it.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use super::ToolStatus;
use super::journal::Journal;
use super::keeper::Keeper;
use super::runner::System;
use crate::clock;
use crate::engine::{Acted, Outcome, Wanted};

/// Between two looks at what is in force.
const LOOK: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Waiting {
    set: Option<(Vec<Wanted>, Vec<Uuid>)>,
    closed: bool,
    status: ToolStatus,
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

/// The daemon's side; dropped, everything is undone and the thread waited for.
pub(super) struct Lane {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Lane {
    pub(super) fn start(
        tool: &'static str,
        path: PathBuf,
        boot: String,
        cookies: PathBuf,
        results: UnboundedSender<Vec<Acted>>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.waiting().status.tool = tool.to_owned();
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(format!("act-{tool}")).spawn(move || {
            let keeper = Keeper::new(System, Journal::open(&path), &boot, Some(cookies), clock::mono_ns());
            run(&own, keeper, &results);
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes the newest set; one that waits is replaced.
    pub(super) fn set(&self, wanted: Vec<Wanted>, ending: Vec<Uuid>) {
        self.shared.waiting().set = Some((wanted, ending));
        self.shared.more.notify_one();
    }

    pub(super) fn status(&self) -> ToolStatus {
        self.shared.waiting().status.clone()
    }

    /// Whether its thread panicked.
    pub(super) fn is_dead(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Begins to undo everything.
    pub(super) fn close(&self) {
        self.shared.waiting().closed = true;
        self.shared.more.notify_one();
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a tool panicked; its journal is undone at the next start");
        }
    }
}

fn run(shared: &Shared, mut keeper: Keeper<System>, results: &UnboundedSender<Vec<Acted>>) {
    // Until the engine has said what is wanted, nothing is known not to be.
    let mut is_told = false;
    loop {
        let (set, closed) = {
            let mut waiting = shared.waiting();
            while waiting.set.is_none() && !waiting.closed {
                if !is_told || keeper.is_idle() {
                    waiting = shared.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                } else {
                    let (again, timeout) =
                        shared.more.wait_timeout(waiting, LOOK).unwrap_or_else(PoisonError::into_inner);
                    waiting = again;
                    if timeout.timed_out() {
                        break;
                    }
                }
            }
            (waiting.set.take(), waiting.closed)
        };
        if closed {
            keeper.set(Vec::new(), []);
            keeper.work(clock::mono_ns());
            return;
        }
        let is_new = set.is_some();
        if let Some((wanted, ending)) = set {
            keeper.set(wanted, ending);
            is_told = true;
        }
        let mut acted = keeper.work(clock::mono_ns());
        if !is_new {
            acted.extend(keeper.repair(clock::mono_ns()));
        }
        let mut waiting = shared.waiting();
        keeper.describe(&mut waiting.status);
        let count = |outcome: fn(&Outcome) -> bool| acted.iter().filter(|a| outcome(&a.outcome)).count() as u64;
        waiting.status.applied += count(|o| matches!(o, Outcome::Applied));
        waiting.status.failed += count(|o| matches!(o, Outcome::Failed(_)));
        waiting.status.undone += count(|o| matches!(o, Outcome::Undone));
        drop(waiting);
        if !acted.is_empty() && results.send(acted).is_err() {
            // The daemon is going: it closes the lane next.
            tracing::debug!("nobody hears what the tools did any more");
        }
    }
}
