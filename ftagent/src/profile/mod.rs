//! Attack profiles on this node: put in force on trial, kept or taken back, observed and repaired.
//!
//! ```text
//! control plane's orders ─┐                ┌─> journal on disk, before anything is run
//! `ftagent profile` ──────┼─> one thread ──┼─> iptables-restore, nft, ufw's files, firewall-cmd
//! what the node keeps ────┘                └─> acknowledgements, what ended by itself
//! ```
//! Everything of ours has a chain or table of its own and is found again by its name, so that what is taken back is
//! what is there, however it came to be so.

mod course;
#[cfg(test)]
mod course_tests;
mod firewalld;
mod kept;
mod run;
mod suites;
mod tools;
mod ufw;
mod worker;
mod xtables;

use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ftagent_common::api::{CommandAck, Kept, NodeCommand, Order, ProfileReport, Suite};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use self::course::Journal;
use self::worker::{Asked, Worker};
use crate::engine::OrderOutcome;
use crate::persist::PersistError;

pub(crate) use self::kept::ssh_ports;
pub use self::tools::{Hook, Tools};

/// Orders that wait while one is carried out; the control plane repeats those for which there was no room.
const WAITING: usize = 64;

/// What an operator may order at the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileOrder {
    Confirm,
    RollBack,
}

/// What there is to tell the control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Ack(CommandAck),
    /// Something that it did not order.
    Report(ProfileReport),
}

/// The profile of this node, as `ftagent profile` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileStatus {
    pub application: Uuid,
    /// May be empty.
    pub profile: String,
    pub suite: Suite,
    /// `applying`, `trial`, `confirmed` or `taking_back`.
    pub phase: String,
    /// On trial: seconds until it is taken back.
    pub left_secs: Option<u64>,
    pub rules: usize,
    /// The operator's own, behind those of the profile.
    pub custom: usize,
    /// What comes before all of them.
    pub kept: Kept,
    /// How often somebody else's change was put right since the agent started.
    pub repairs: u64,
    /// Why it is not as it should be.
    pub fault: Option<String>,
}

/// Whom no profile cuts off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Friends {
    /// Control planes and management sources: whoever is taken from them is kept no longer.
    pub kept: Kept,
    /// The allowlist: the same, and of one that is too long its beginning.
    pub allow: Vec<IpNet>,
    /// Operators who are connected, and their ports: who goes stays kept for as long as the profile has no other reason
    /// to change.
    pub in_use: Kept,
}

/// Where profiles are kept and what the node is.
pub struct Options {
    pub state_dir: PathBuf,
    /// The kernel's id of this boot.
    pub boot: String,
    pub friends: Friends,
    /// The folder of the SSH server's configuration.
    pub ssh: PathBuf,
    pub tools: Tools,
}

/// The daemon's side of the thread; the thread ends when it is dropped or stopped.
pub struct Profiles {
    asked: Option<SyncSender<Asked>>,
    events: mpsc::UnboundedReceiver<Event>,
    status: Arc<Mutex<Option<ProfileStatus>>>,
    unsaved: Arc<Mutex<Option<String>>>,
    friends: Friends,
    thread: Option<JoinHandle<()>>,
}

impl Profiles {
    /// Puts right what the last agent left half done, and waits for orders.
    ///
    /// # Errors
    /// When there can be no thread. A journal that cannot be read refuses what is new, and is a warning.
    pub fn start(options: Options) -> Result<Self, PersistError> {
        let (asked, questions) = std::sync::mpsc::sync_channel(WAITING);
        // At most an acknowledgement for each order and a report for each end.
        let (events_in, events) = mpsc::unbounded_channel();
        let status = Arc::new(Mutex::new(None));
        let unsaved = Arc::new(Mutex::new(None));
        let path = journal_file(&options.state_dir);
        let mut worker = Worker {
            journal: Journal::default(),
            path: path.clone(),
            boot: options.boot,
            tools: options.tools,
            friends: options.friends.clone(),
            ssh: options.ssh,
            events: events_in,
            status: Arc::clone(&status),
            next_look_ns: 0,
            repairs: 0,
            fault: None,
            unsaved: Arc::clone(&unsaved),
            is_unread: false,
        };
        worker.try_open();
        worker.publish();
        let thread = std::thread::Builder::new().name("profiles".to_owned());
        let thread = thread
            .spawn(move || worker.run(&questions))
            .map_err(|source| PersistError::io(&path, "start the thread for", source))?;
        Ok(Self { asked: Some(asked), events, status, unsaved, friends: options.friends, thread: Some(thread) })
    }

    /// Takes an order about profiles; false: it is about something else.
    pub fn take_command(&self, command: &NodeCommand) -> bool {
        let is_ours = matches!(
            command.order,
            Order::ApplyProfile { .. } | Order::ConfirmProfile { .. } | Order::RollBackProfile { .. }
        );
        if is_ours && self.ask(Asked::Command(Box::new(command.clone()))).is_err() {
            tracing::warn!("too many orders about profiles wait: the control plane repeats this one");
        }
        is_ours
    }

    /// Carries out an operator's order; what came of it comes by the channel.
    pub fn order(&self, order: ProfileOrder) -> oneshot::Receiver<OrderOutcome> {
        let (answer, outcome) = oneshot::channel();
        if let Err(Asked::Operator(_, answer)) = self.ask(Asked::Operator(order, answer)) {
            drop(answer.send(OrderOutcome::Refused { why: "too many orders wait: try again".to_owned() }));
        }
        outcome
    }

    /// Follows whom the node keeps.
    pub fn set_friends(&mut self, friends: &Friends) {
        if self.friends != *friends && self.ask(Asked::Friends(friends.clone())).is_ok() {
            self.friends = friends.clone();
        }
    }

    /// The next thing to tell the control plane.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The profile on this node, if there is one.
    pub fn status(&self) -> Option<ProfileStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let amiss = self.status().and_then(|status| {
            let fault = status.fault?;
            Some(format!("profile {} (application {}): {fault}", status.profile, status.application))
        });
        let unsaved = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unsaved = unsaved.map(|why| format!("a restart would not know what became of attack profiles: {why}"));
        amiss.into_iter().chain(unsaved).collect()
    }

    /// Takes back what is on trial, and waits for it.
    pub fn stop(mut self) -> Vec<Event> {
        self.asked = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the profiles failed");
        }
        let mut events = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            events.push(event);
        }
        events
    }

    fn ask(&self, asked: Asked) -> Result<(), Asked> {
        use std::sync::mpsc::TrySendError::{Disconnected, Full};
        let Some(sender) = &self.asked else { return Err(asked) };
        sender.try_send(asked).map_err(|error| match error {
            Full(asked) | Disconnected(asked) => asked,
        })
    }
}

/// Takes this node's profile back where no agent runs; answers what it was. The caller holds the state directory.
///
/// # Errors
/// The tool's own words; the profile is then still in force, or part of it.
pub fn take_back_alone(state_dir: &Path) -> Result<Option<Uuid>, String> {
    let past = worker::take_back_alone(journal_file(state_dir), Tools::default())?;
    Ok(past.map(|past| past.application))
}

fn journal_file(state_dir: &Path) -> PathBuf {
    state_dir.join("profile.json")
}
