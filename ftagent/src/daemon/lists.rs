//! Lists beside the loop: files are read and tables made in a thread that may wait, one job after the other.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::Daemon;
use crate::clock;
use crate::crowdsec::Decided;
use crate::lists::{Change, Keeper, ListConfig, ListSet, ListStatus, LoadError, Look, Order, Spared, look};
use crate::xdp::prefixes::tables::{ListTables, ListTablesError};

/// The maps that lists are in.
pub(super) const LISTED_IN: [&str; 5] = ["LISTS4", "LIST_RULES", "BLOCK6", "BLOCK6_NET", "BLOCK6_PREFIX"];

/// How long lists may take to load while the program of an earlier agent enforces the rules that it has.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks whether a file that was just written has come to rest.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Daemon {
    /// Loads the lists before the program that is attached is replaced by one on maps without them. Where nothing is
    /// attached yet, or what is attached uses these maps already, the interfaces must not wait for files.
    pub(super) async fn await_lists(&mut self) {
        if self.config.lists.is_empty() && self.config.crowdsec.is_none() {
            return;
        }
        if timeout(PATIENCE, self.load_lists()).await.is_err() {
            warn!(seconds = PATIENCE.as_secs(), "lists take too long to load: going on without them for now");
        }
    }

    /// Does every job that is due, and waits for files that are being written to.
    async fn load_lists(&mut self) {
        loop {
            self.look_at_lists();
            if self.lists.is_idle() && self.lists.is_awaiting() {
                let decided = self.crowdsec.decided().await;
                self.lists.take_decisions(decided);
                continue;
            }
            if self.lists.is_idle() {
                if !self.lists.is_settling(clock::mono_ns()) {
                    return;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            let done = self.lists.done().await;
            if let Some(tables) = self.lists.on_done(done, clock::mono_ns()) {
                self.datapath.take_lists(tables);
            }
        }
    }
}

/// A job that ended.
pub(super) enum Done {
    Looked(Box<Order>, Result<Look, LoadError>),
    Made {
        result: Result<ListTables, ListTablesError>,
        /// Why the decisions are not in them.
        without: Option<String>,
        began_ns: u64,
    },
    /// The job's thread panicked.
    Broken(String),
}

/// The lists of the configuration and the job that is being done for them.
pub(super) struct Lists {
    keeper: Keeper,
    jobs: JoinSet<Done>,
    /// What the look that is being made is for.
    looking: Option<Order>,
    /// Other lists are in force than the newest tables are of.
    stale: bool,
    /// Why the newest tables could not be made.
    not_made: Option<String>,
    /// Bytes that the IPv4 table may take.
    max_bytes: u64,
    /// What of CrowdSec's decisions should be in force.
    decided: Arc<Decided>,
    /// Until then no tables are made without decisions, so that those of an earlier agent stay in force.
    awaited_until_ns: Option<u64>,
    /// Other decisions should be in force than the newest tables are of.
    decisions_stale: bool,
    /// Tables for decisions alone are not made before then.
    not_before_ns: u64,
    /// Why decisions are not in the newest tables.
    without: Option<String>,
}

/// After tables were made, decisions alone wait this many times as long as that took before the next ones: they may change
/// every second, and an operator's lists in the same tables may be large.
const REST: u64 = 4;
/// But no longer than this.
const LONGEST_REST_NS: u64 = 5_000_000_000;

impl Lists {
    pub(super) fn new(configs: Vec<ListConfig>, max_bytes: u64) -> Self {
        let keeper = Keeper::new(configs);
        Self {
            keeper,
            jobs: JoinSet::new(),
            looking: None,
            stale: false,
            not_made: None,
            max_bytes,
            decided: Arc::default(),
            awaited_until_ns: None,
            decisions_stale: false,
            not_before_ns: 0,
            without: None,
        }
    }

    /// Makes no tables before the first decisions are known, or the lists have waited long enough for them.
    pub(super) fn await_decisions(&mut self, now_ns: u64) {
        self.awaited_until_ns = Some(now_ns.saturating_add(PATIENCE.as_nanos() as u64));
    }

    /// Whether the first decisions are waited for.
    pub(super) fn is_awaiting(&self) -> bool {
        self.awaited_until_ns.is_some()
    }

    /// Takes what should be in force of CrowdSec's decisions.
    pub(super) fn take_decisions(&mut self, decided: Arc<Decided>) {
        self.decided = decided;
        self.decisions_stale = true;
        self.awaited_until_ns = None;
    }

    /// Begins the next job, unless one is being done: a look that is due, else the tables of what was loaded since the
    /// last ones. `wall_ns`: nanoseconds since 1970.
    pub(super) fn begin(&mut self, spared: impl FnOnce() -> Vec<Spared>, now_ns: u64, wall_ns: i128) {
        if !self.jobs.is_empty() {
            return;
        }
        if let Some(order) = self.keeper.due(now_ns) {
            self.looking = Some(order.clone());
            let spared = spared();
            self.jobs.spawn_blocking(move || {
                let result = look(&order.config, order.known.as_ref(), &spared, wall_ns);
                Done::Looked(Box::new(order), result)
            });
            return;
        }
        self.awaited_until_ns = self.awaited_until_ns.filter(|until_ns| *until_ns > now_ns);
        let is_due = self.stale || self.decisions_stale && now_ns >= self.not_before_ns;
        if !is_due || self.is_awaiting() {
            return;
        }
        (self.stale, self.decisions_stale) = (false, false);
        let (lists, decided, max_bytes) = (self.set(), Arc::clone(&self.decided), self.max_bytes);
        self.jobs.spawn_blocking(move || {
            let (result, without) = make(&lists, &decided, max_bytes);
            Done::Made { result, without, began_ns: now_ns }
        });
    }

    /// Whether no job is being done.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Whether a list is neither loaded nor refused: its file may still be written to.
    pub(super) fn is_settling(&self, now_ns: u64) -> bool {
        self.status(now_ns).iter().any(|list| !list.loaded && list.last_error.is_none())
    }

    /// Waits for the job that is being done; for ever while there is none. Giving the wait up loses nothing.
    pub(super) async fn done(&mut self) -> Done {
        match self.jobs.join_next().await {
            Some(Ok(done)) => done,
            Some(Err(error)) => Done::Broken(error.to_string()),
            None => std::future::pending().await,
        }
    }

    /// Takes a job's result: tables that are to be put into force, once they are made.
    pub(super) fn on_done(&mut self, done: Done, now_ns: u64) -> Option<ListTables> {
        let looking = self.looking.take();
        match done {
            Done::Looked(order, result) => self.on_looked(&order, result, now_ns),
            Done::Made { result, without, began_ns } => {
                let took_ns = now_ns.saturating_sub(began_ns);
                self.not_before_ns = now_ns + took_ns.saturating_mul(REST).min(LONGEST_REST_NS);
                if let Some(why) = without.as_ref().filter(|_| self.without != without) {
                    error!(error = %why, "decisions of CrowdSec are not in force");
                }
                self.without = without;
                match result {
                    Ok(tables) => {
                        self.not_made = None;
                        return Some(tables);
                    }
                    Err(error) => self.on_not_made(error.to_string()),
                }
            }
            Done::Broken(why) => match looking {
                Some(order) => self.on_looked(&order, Err(LoadError::Thread(why)), now_ns),
                None => self.on_not_made(why),
            },
        }
        None
    }

    fn on_looked(&mut self, order: &Order, result: Result<Look, LoadError>, now_ns: u64) {
        let change = self.keeper.on_look(order, result, now_ns);
        let name = &order.config.name;
        let Some(list) = self.status(now_ns).into_iter().find(|list| list.name == *name) else { return };
        match change {
            Change::None => {}
            Change::Failed => {
                let error = list.last_error.unwrap_or_default();
                warn!(list = %name, %error, "list not loaded: what was loaded before stays in force");
            }
            Change::Loaded => {
                info!(
                    list = %name, v4 = list.v4, v6 = list.v6, duplicates = list.duplicates, covered = list.covered,
                    skipped = list.skipped, spared = list.spared, "list loaded"
                );
                self.stale = true;
            }
        }
    }

    fn on_not_made(&mut self, why: String) {
        error!(error = %why, "the tables of the lists are not made: those before stay in force");
        self.not_made = Some(why);
    }

    /// Takes the lists of a configuration that was read again.
    pub(super) fn configure(&mut self, configs: Vec<ListConfig>) {
        self.stale |= self.keeper.configure(configs);
    }

    /// What should be in force.
    pub(super) fn set(&self) -> ListSet {
        self.keeper.set()
    }

    pub(super) fn status(&self, now_ns: u64) -> Vec<ListStatus> {
        self.keeper.status(now_ns)
    }

    /// What an operator should know.
    pub(super) fn warnings(&self, now_ns: u64) -> Vec<String> {
        let failed = self.status(now_ns).into_iter().filter_map(|list| {
            let state = if list.loaded { "what was loaded before stays in force" } else { "nothing of it is in force" };
            list.last_error.map(|error| format!("list {}: {error}; {state}", list.name))
        });
        let not_made = self.not_made.iter().map(|why| format!("lists: {why}; those before stay in force"));
        let without = self.without.iter().map(|why| format!("crowdsec: decisions are not in force: {why}"));
        failed.chain(not_made).chain(without).collect()
    }
}

/// The tables of both, or of the operator's lists alone where both are too large: decisions must not keep a list of theirs
/// from being refreshed.
fn make(lists: &ListSet, decided: &Decided, max_bytes: u64) -> (Result<ListTables, ListTablesError>, Option<String>) {
    let all = ListSet { lists: lists.lists.iter().chain(&decided.lists).cloned().collect() };
    match ListTables::make(&all, max_bytes) {
        Err(error @ ListTablesError::TooLarge(_)) if !decided.lists.is_empty() => {
            (ListTables::make(lists, max_bytes), Some(error.to_string()))
        }
        result => (result, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lists::{Pick, Widest, file_as_list};

    /// Long after any file of a test was written.
    const LATER: i128 = i128::MAX / 2;
    const MINUTE_NS: u64 = 60_000_000_000;

    fn lists() -> (tempfile::NamedTempFile, Lists) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "198.51.100.0/24\n").expect("room");
        let lists = Lists::new(vec![file_as_list(file.path(), &Pick::default(), Widest::default())], 1_000);
        (file, lists)
    }

    async fn step(lists: &mut Lists, now_ns: u64) -> Option<ListTables> {
        lists.begin(Vec::new, now_ns, LATER);
        let done = lists.done().await;
        lists.on_done(done, now_ns)
    }

    #[tokio::test]
    async fn a_list_is_loaded_and_its_tables_made_beside_the_loop() {
        let (_file, mut lists) = lists();
        assert!(step(&mut lists, 0).await.is_none());
        assert_eq!(lists.set().v4().collect::<Vec<_>>(), [("198.51.100.0/24".parse().expect("a prefix"), 1)]);
        // The limit of the test is too low for a table: that is said, and what was in force would stay.
        assert!(step(&mut lists, 0).await.is_none());
        let warnings = lists.warnings(0);
        assert!(warnings.iter().any(|w| w.contains("datapath.max_memory_bytes")), "{warnings:?}");
        // Nothing is due, so nothing is waited for.
        lists.begin(Vec::new, 1, LATER);
        assert!(timeout(Duration::from_millis(20), lists.done()).await.is_err(), "no job is done");
    }

    #[tokio::test]
    async fn tables_are_handed_over_once_they_are_made() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: making maps needs root");
            return;
        }
        let (_file, mut lists) = lists();
        lists.max_bytes = u64::MAX;
        assert!(step(&mut lists, 0).await.is_none());
        let tables = step(&mut lists, 0).await.expect("made");
        assert!(tables.v4.is_some() && tables.prefixes == 1);
        lists.configure(Vec::new());
        let tables = step(&mut lists, 0).await.expect("without lists");
        assert!(tables.v4.is_none() && tables.rules.is_empty());
    }

    #[tokio::test]
    async fn a_missing_file_leaves_the_loaded_list_in_force() {
        let (file, mut lists) = lists();
        step(&mut lists, 0).await;
        drop(file);
        step(&mut lists, MINUTE_NS).await;
        assert_eq!(lists.set().lists.len(), 1);
        let status = lists.status(MINUTE_NS).remove(0);
        assert!(status.loaded && status.last_error.is_some_and(|e| e.contains("No such file")));
        assert!(lists.warnings(MINUTE_NS)[0].ends_with("what was loaded before stays in force"));
    }
}
