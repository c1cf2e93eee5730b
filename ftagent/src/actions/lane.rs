//! The thread of one tool: takes the newest set, works, looks every few seconds, and says what came of it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use super::ToolStatus;
use super::cloud::CloudConfig;
use super::keeper::Keeper;
use super::runner::Runner;
use crate::clock;
use crate::engine::{Acted, Outcome, Wanted};

/// Between two looks at what is in force.
const LOOK: Duration = Duration::from_secs(5);
/// What a provider may take when the agent stops, whatever was under way; what is left then waits in the journal.
const STOP_NS: u64 = 8_000_000_000;

/// Whether a lane closes, and when it has to be done.
#[derive(Debug, Default)]
pub struct Closing(AtomicU64);

impl Closing {
    /// From now on nothing new is begun, and nothing waited for after `deadline_ns` of the monotonic clock. The first
    /// word counts.
    pub(super) fn close(&self, deadline_ns: u64) {
        self.0.compare_exchange(0, deadline_ns.max(1), Ordering::Relaxed, Ordering::Relaxed).ok();
    }

    /// Whether nothing new may be begun.
    pub(super) fn is_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Whether nothing may be waited for any more.
    pub(super) fn is_over(&self, now_ns: u64) -> bool {
        let deadline_ns = self.0.load(Ordering::Relaxed);
        deadline_ns != 0 && now_ns >= deadline_ns
    }
}

/// What a lane's thread does.
pub(super) trait Work {
    /// Takes the newest word on what should be in force and on what should not.
    fn set(&mut self, wanted: Vec<Wanted>, ending: Vec<Uuid>);

    /// Does what is new and undoes what is not wanted.
    fn work(&mut self, now_ns: u64) -> Vec<Acted>;

    /// Looks whether what is in force is still so.
    fn repair(&mut self, now_ns: u64) -> Vec<Acted>;

    /// Whether there is anything to look after.
    fn is_idle(&self) -> bool;

    /// Writes into `status` what is in force and what is not as it should be.
    fn describe(&self, status: &mut ToolStatus);

    /// For how long there is nothing to do.
    fn rest(&self, _now_ns: u64) -> Duration {
        LOOK
    }

    /// Takes a configuration that was read anew.
    fn configure(&mut self, _config: Option<CloudConfig>) {}

    /// Undoes everything, for the last time.
    fn stop(&mut self) {
        self.set(Vec::new(), Vec::new());
        self.work(clock::mono_ns());
    }
}

impl<R: Runner> Work for Keeper<R> {
    fn set(&mut self, wanted: Vec<Wanted>, ending: Vec<Uuid>) {
        Self::set(self, wanted, ending);
    }

    fn work(&mut self, now_ns: u64) -> Vec<Acted> {
        Self::work(self, now_ns)
    }

    fn repair(&mut self, now_ns: u64) -> Vec<Acted> {
        Self::repair(self, now_ns)
    }

    fn is_idle(&self) -> bool {
        Self::is_idle(self)
    }

    fn describe(&self, status: &mut ToolStatus) {
        Self::describe(self, status);
    }
}

#[derive(Default)]
struct Waiting {
    set: Option<(Vec<Wanted>, Vec<Uuid>)>,
    config: Option<Option<CloudConfig>>,
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
    /// Set before the rest of the stop: what is under way has to hear of it.
    closing: Arc<Closing>,
    thread: Option<JoinHandle<()>>,
}

impl Lane {
    /// A thread that does what `make` makes there, which is told by a flag that the lane closes.
    pub(super) fn start<W: Work>(
        tool: &'static str,
        results: UnboundedSender<Vec<Acted>>,
        make: impl FnOnce(Arc<Closing>) -> W + Send + 'static,
    ) -> io::Result<Self> {
        let closing = Arc::new(Closing::default());
        let flag = Arc::clone(&closing);
        let shared = Arc::new(Shared::default());
        shared.waiting().status.tool = tool.to_owned();
        let own = Arc::clone(&shared);
        // The kernel's names end at 15 bytes.
        let name: String = format!("act-{tool}").chars().take(15).collect();
        let thread = std::thread::Builder::new().name(name).spawn(move || run(&own, make(flag), &results))?;
        Ok(Self { shared, closing, thread: Some(thread) })
    }

    /// Takes the newest set; one that waits is replaced.
    pub(super) fn set(&self, wanted: Vec<Wanted>, ending: Vec<Uuid>) {
        self.shared.waiting().set = Some((wanted, ending));
        self.shared.more.notify_one();
    }

    /// Takes a configuration that was read anew.
    pub(super) fn configure(&self, config: Option<CloudConfig>) {
        self.shared.waiting().config = Some(config);
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
        self.closing.close(clock::mono_ns() + STOP_NS);
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

fn run(shared: &Shared, mut keeper: impl Work, results: &UnboundedSender<Vec<Acted>>) {
    // Until the engine has said what is wanted, nothing is known not to be.
    let mut is_told = false;
    loop {
        let (set, config, closed) = {
            let mut waiting = shared.waiting();
            while waiting.set.is_none() && waiting.config.is_none() && !waiting.closed {
                if !is_told || keeper.is_idle() {
                    waiting = shared.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                } else {
                    let rest = keeper.rest(clock::mono_ns());
                    let (again, timeout) =
                        shared.more.wait_timeout(waiting, rest).unwrap_or_else(PoisonError::into_inner);
                    waiting = again;
                    if timeout.timed_out() {
                        break;
                    }
                }
            }
            (waiting.set.take(), waiting.config.take(), waiting.closed)
        };
        if let Some(config) = config {
            keeper.configure(config);
        }
        if closed {
            keeper.stop();
            return;
        }
        if !is_told && set.is_none() {
            continue;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Works until it hears that the lane closes.
    struct Busy(Arc<Closing>);

    impl Work for Busy {
        fn set(&mut self, _: Vec<Wanted>, _: Vec<Uuid>) {}

        fn work(&mut self, _: u64) -> Vec<Acted> {
            while !self.0.is_begun() {
                std::thread::sleep(Duration::from_millis(1));
            }
            Vec::new()
        }

        fn repair(&mut self, _: u64) -> Vec<Acted> {
            Vec::new()
        }

        fn is_idle(&self) -> bool {
            false
        }

        fn describe(&self, _: &mut ToolStatus) {}
    }

    #[test]
    fn the_time_of_a_stop_begins_when_it_is_asked_for_whatever_is_under_way() {
        let (results, _received) = tokio::sync::mpsc::unbounded_channel();
        let (sender, closing) = std::sync::mpsc::channel();
        let lane = Lane::start("tool", results, move |closing| {
            sender.send(Arc::clone(&closing)).expect("somebody listens");
            Busy(closing)
        });
        let lane = lane.expect("a thread");
        let closing = closing.recv().expect("a flag");
        lane.set(Vec::new(), Vec::new());
        let now_ns = clock::mono_ns();
        assert!(!closing.is_begun() && !closing.is_over(u64::MAX));
        lane.close();
        assert!(closing.is_begun() && !closing.is_over(now_ns));
        closing.close(now_ns + 100 * STOP_NS);
        assert!(closing.is_over(now_ns + 2 * STOP_NS), "the first word counts");
    }
}
