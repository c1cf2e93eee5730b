//! Carries out the actions of other tools (iptables, ipset, ufw, firewalld, tc, routes, fail2ban, sysctl), and of clouds,
//! and undoes them.
//!
//! Called by the daemon's loop, which never waits for it: each tool has a thread of its own, a `lane`, with a
//! [`keeper`] that decides what to run, a [`journal`] on disk, and a [`runner`]. What should be in force, and whether it
//! may be, the engine says; nothing here asks why.
//!
//! ```text
//! Command::Act ─▶ Actions ─▶ lane of the tool ─▶ keeper: journal, look, run, undo ─▶ Input::Acted
//! ```

pub mod cloud;
pub mod journal;
pub mod keeper;
mod lane;
mod members;
pub mod own;
mod record;
mod repair;
pub mod runner;
pub mod trial;
mod undo;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::cloud::{CLOUDS, CloudKeeper, Clouds};
use self::journal::Journal;
use self::keeper::Keeper;
pub use self::lane::Closing;
use self::lane::Lane;
use self::runner::System;
use crate::clock;
use crate::engine::{Acted, ActionSet};
use crate::persist;

/// The tools of the machine that have lanes, as those of [`CLOUDS`] have; [`ftagent_common::api::Action::tool`] names
/// them so.
pub const TOOLS: [&str; 8] = ["fail2ban", "firewalld", "ipset", "iptables", "null_route", "sysctl", "tc", "ufw"];

fn all_tools() -> impl Iterator<Item = &'static str> {
    TOOLS.into_iter().chain(CLOUDS)
}

/// Where the journals lie, below the state directory.
const DIR: &str = "actions";
/// Where the TCP gate keeps the value that it goes back to, below the state directory.
const COOKIES: &str = "tcp_syncookies";

/// What is said of one tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolStatus {
    pub tool: String,
    /// Actions in force.
    pub actions: usize,
    /// Objects in the tool that are ours, or that we found there.
    pub objects: usize,
    /// What could not be undone yet, with the tool's words.
    pub stuck: Vec<String>,
    /// Why nothing new is begun.
    pub fault: Option<String>,
    pub applied: u64,
    pub failed: u64,
    pub undone: u64,
}

/// The lanes of all tools that were ever needed.
pub struct Actions {
    dir: PathBuf,
    cookies: PathBuf,
    boot: String,
    /// For people who read the marks of this node at a cloud.
    name: String,
    clouds: Clouds,
    lanes: BTreeMap<&'static str, Lane>,
    results: mpsc::UnboundedSender<Vec<Acted>>,
    /// Lanes that could not be started.
    faults: BTreeMap<&'static str, String>,
    /// How often the thread of a tool failed.
    panics: BTreeMap<&'static str, u32>,
}

impl Actions {
    /// Begins with the journals below `state_dir`, and says where results come out: at most a few for each action.
    ///
    /// Where there can be no journals, as on a full disk, each tool refuses whatever is new, and the datapath goes on.
    pub fn open(
        state_dir: &Path,
        boot: &str,
        name: &str,
        clouds: Clouds,
    ) -> (Self, mpsc::UnboundedReceiver<Vec<Acted>>) {
        let dir = state_dir.join(DIR);
        let (results, receiver) = mpsc::unbounded_channel();
        let cookies = state_dir.join(COOKIES);
        let mut actions = Self {
            dir,
            cookies,
            boot: boot.to_owned(),
            name: name.to_owned(),
            clouds,
            lanes: BTreeMap::new(),
            results,
            faults: BTreeMap::new(),
            panics: BTreeMap::new(),
        };
        actions.make_dir();
        for tool in all_tools() {
            if journal_of(&actions.dir, tool).exists() {
                actions.start(tool);
            }
        }
        (actions, receiver)
    }

    fn make_dir(&mut self) {
        match persist::make_dir(&self.dir) {
            Ok(()) => drop(self.faults.remove(DIR)),
            Err(error) => {
                tracing::error!(%error, "other tools are told nothing new");
                self.faults.insert(DIR, error.to_string());
            }
        }
    }

    /// Brings the tools to `set`; what became of it comes back later.
    pub fn act(&mut self, set: &ActionSet) {
        for tool in all_tools() {
            let wanted: Vec<_> = set.wanted.iter().filter(|w| w.tool == tool).cloned().collect();
            let ending: Vec<_> = set.ending.iter().filter(|e| e.tool == tool).map(|e| e.task).collect();
            let is_needed = !wanted.is_empty() || !ending.is_empty();
            let is_dead = self.lanes.get(tool).is_some_and(Lane::is_dead);
            // A lane that could not have a journal may have one now.
            let is_mute = self.lanes.get(tool).is_some_and(Lane::is_mute);
            if is_dead {
                *self.panics.entry(tool).or_default() += 1;
            }
            if is_dead || is_needed && (is_mute || !self.lanes.contains_key(tool)) {
                self.make_dir();
                self.start(tool);
            }
            if let Some(lane) = self.lanes.get(tool) {
                lane.set(wanted, ending);
            }
        }
    }

    /// Whether the thread of some tool failed, so that [`Self::act`] has to start another one.
    pub fn has_dead(&self) -> bool {
        self.lanes.values().any(Lane::is_dead)
    }

    /// Takes the clouds of a configuration that was read anew.
    pub fn set_clouds(&mut self, clouds: Clouds) {
        self.clouds = clouds;
        for tool in CLOUDS {
            if let Some(lane) = self.lanes.get(tool) {
                lane.configure(self.clouds.of(tool).cloned());
            }
        }
    }

    /// Starts the thread of a tool, or another one in place of one that panicked.
    fn start(&mut self, tool: &'static str) {
        self.lanes.remove(tool);
        let path = journal_of(&self.dir, tool);
        let (dir, boot, name, cookies) = (self.dir.clone(), self.boot.clone(), self.name.clone(), self.cookies.clone());
        let config = self.clouds.of(tool).cloned();
        let results = self.results.clone();
        let started = if CLOUDS.contains(&tool) {
            Lane::start(tool, results, move |closing| {
                let mark = cloud::node_mark(&dir, &name).map_err(|error| error.to_string());
                CloudKeeper::new(tool, config, Journal::open(&path), mark, closing, clock::mono_ns())
            })
        } else {
            Lane::start(tool, results, move |_| {
                Keeper::new(System, Journal::open(&path), &boot, Some(cookies), clock::mono_ns())
            })
        };
        match started {
            Ok(lane) => {
                self.lanes.insert(tool, lane);
                self.faults.remove(tool);
            }
            Err(error) => drop(self.faults.insert(tool, format!("the thread for {tool} cannot be started: {error}"))),
        }
    }

    /// How each tool does.
    pub fn status(&self) -> Vec<ToolStatus> {
        self.lanes.values().map(Lane::status).collect()
    }

    /// What needs an operator's look.
    pub fn warnings(&self) -> Vec<String> {
        let of = |status: ToolStatus| {
            let stuck = status.stuck.into_iter().map(|why| format!("not undone: {why}"));
            status.fault.into_iter().chain(stuck).collect::<Vec<_>>()
        };
        let panics = self.panics.iter();
        let panics = panics.map(|(tool, n)| format!("the thread for {tool} failed {n} times, and was started again"));
        let lanes = self.status().into_iter().flat_map(of).chain(self.faults.values().cloned());
        lanes.chain(panics).chain(self.clouds.faults()).collect()
    }

    /// Undoes everything and waits for it; what cannot be undone stays in the journal for the next start.
    pub fn stop(self) {
        // All of them at once, then one after the other.
        self.lanes.values().for_each(Lane::close);
        drop(self);
    }
}

fn journal_of(dir: &Path, tool: &str) -> PathBuf {
    dir.join(format!("{tool}.journal"))
}

/// Undoes what the journals below `state_dir` say was done, for when there is no agent; the tools' words on what is not
/// undone.
pub fn undo_all(state_dir: &Path, boot: &str, name: &str, clouds: &Clouds) -> Vec<String> {
    let mut left = Vec::new();
    for tool in TOOLS.into_iter().chain([trial::TRIAL]) {
        let path = journal_of(&state_dir.join(DIR), tool);
        if !path.exists() {
            continue;
        }
        let journal = Journal::open(&path);
        left.extend(journal.fault());
        let mut keeper = Keeper::new(System, journal, boot, Some(state_dir.join(COOKIES)), 0);
        // There is nobody any more whose commands could come late.
        keeper.work(u64::MAX / 2);
        left.extend(keeper.stuck());
    }
    // Last: a provider that does not answer takes its time.
    for tool in CLOUDS {
        let dir = state_dir.join(DIR);
        let path = journal_of(&dir, tool);
        if !path.exists() {
            continue;
        }
        let journal = Journal::open(&path);
        left.extend(journal.fault());
        let mark = cloud::node_mark(&dir, name).map_err(|error| error.to_string());
        let (config, closing) = (clouds.of(tool).cloned(), Arc::default());
        let mut keeper = CloudKeeper::new(tool, config, journal, mark, closing, 0);
        keeper.work(u64::MAX / 2);
        left.extend(keeper.stuck());
    }
    left
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::engine::{Outcome, Wanted};

    struct Bomb;

    impl lane::Work for Bomb {
        fn set(&mut self, _: Vec<Wanted>, _: Vec<Uuid>) {
            panic!("a fault of the tool's thread");
        }

        fn work(&mut self, _: u64) -> Vec<Acted> {
            Vec::new()
        }

        fn repair(&mut self, _: u64) -> Vec<Acted> {
            Vec::new()
        }

        fn is_idle(&self) -> bool {
            true
        }

        fn describe(&self, _: &mut ToolStatus) {}
    }

    #[tokio::test]
    async fn a_thread_that_failed_is_noticed_and_another_one_takes_its_place() {
        let state = tempfile::tempdir().expect("a folder");
        let (mut actions, mut results) = Actions::open(state.path(), "boot", "node", Clouds::default());
        let lane = Lane::start("iptables", actions.results.clone(), |_| Bomb).expect("a thread");
        actions.lanes.insert("iptables", lane);
        let wanted = vec![Wanted { task: Uuid::nil(), tool: "iptables", steps: Vec::new(), cloud: None }];
        let set = ActionSet { wanted, ending: Vec::new() };
        assert!(!actions.has_dead());
        actions.act(&set);
        while !actions.has_dead() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        actions.act(&set);
        assert_eq!(results.recv().await.expect("an outcome")[0].outcome, Outcome::Applied);
        assert!(!actions.has_dead() && actions.warnings()[0].contains("iptables failed 1 times"));
        actions.stop();
    }

    #[tokio::test]
    async fn without_room_for_journals_tools_refuse_what_is_new_until_there_is() {
        let state = tempfile::tempdir().expect("a folder");
        // As where the disk has no room for a folder.
        std::fs::write(state.path().join(DIR), "").expect("written");
        let (mut actions, mut results) = Actions::open(state.path(), "boot", "node", Clouds::default());
        assert!(!actions.warnings().is_empty());
        let wanted = |n| Wanted { task: Uuid::from_u128(n), tool: "iptables", steps: Vec::new(), cloud: None };
        let set = |n| ActionSet { wanted: vec![wanted(n)], ending: Vec::new() };
        actions.act(&set(1));
        let acted = results.recv().await.expect("an outcome");
        assert!(matches!(&acted[0].outcome, Outcome::Failed(why) if why.contains("iptables.journal")), "{acted:?}");
        std::fs::remove_file(state.path().join(DIR)).expect("removed");
        actions.act(&set(2));
        let acted = results.recv().await.expect("an outcome");
        assert_eq!((acted[0].task, &acted[0].outcome), (Uuid::from_u128(2), &Outcome::Applied));
        assert_eq!(actions.warnings(), Vec::<String>::new());
        actions.stop();
    }
}
