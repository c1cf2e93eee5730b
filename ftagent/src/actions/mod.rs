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
mod record;
mod repair;
pub mod runner;
mod undo;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::cloud::{CLOUDS, CloudKeeper, Clouds};
use self::journal::Journal;
use self::keeper::Keeper;
use self::lane::Lane;
use self::runner::System;
use crate::clock;
use crate::engine::{Acted, ActionSet};
use crate::persist::{self, PersistError};

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
}

impl Actions {
    /// Begins with the journals below `state_dir`, and says where results come out: at most a few for each action.
    ///
    /// # Errors
    /// When the folder of the journals cannot be made.
    pub fn open(
        state_dir: &Path,
        boot: &str,
        name: &str,
        clouds: Clouds,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Vec<Acted>>), PersistError> {
        let dir = state_dir.join(DIR);
        persist::make_dir(&dir)?;
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
        };
        for tool in all_tools() {
            if journal_of(&actions.dir, tool).exists() {
                actions.start(tool);
            }
        }
        Ok((actions, receiver))
    }

    /// Brings the tools to `set`; what became of it comes back later.
    pub fn act(&mut self, set: &ActionSet) {
        for tool in all_tools() {
            let wanted: Vec<_> = set.wanted.iter().filter(|w| w.tool == tool).cloned().collect();
            let ending: Vec<_> = set.ending.iter().filter(|e| e.tool == tool).map(|e| e.task).collect();
            let is_needed = !wanted.is_empty() || !ending.is_empty();
            let is_dead = self.lanes.get(tool).is_some_and(Lane::is_dead);
            if is_dead || is_needed && !self.lanes.contains_key(tool) {
                self.start(tool);
            }
            if let Some(lane) = self.lanes.get(tool) {
                lane.set(wanted, ending);
            }
        }
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
        self.status().into_iter().flat_map(of).chain(self.faults.values().cloned()).collect()
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
    for tool in TOOLS {
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
    left
}
