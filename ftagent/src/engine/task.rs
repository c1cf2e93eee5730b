//! An action of another tool that should be in force: what the engine knows of it, says of it and hears of it.

use ftagent_common::api::{Action, ToolStep};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// Who wanted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Why {
    /// A firewall rule that an incident fired.
    Rule { id: i64, name: String },
    /// An order of the control plane, whose answer waits for the outcome.
    Order { command: Uuid, undo_at_resolve: bool, answered: bool },
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Asked for, not confirmed.
    Wanted,
    InForce,
    /// To be undone, not confirmed.
    Ending,
}

impl TaskState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::InForce => "in_force",
            Self::Ending => "ending",
        }
    }
}

/// One action of another tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: Uuid,
    pub why: Why,
    pub incident: Uuid,
    pub target: IpNet,
    /// As it was asked for, with its sources named. What the guard takes out is taken out anew whenever its lists change.
    pub asked: Action,
    /// Not saved: whoever goes on with it plans anew.
    #[serde(skip)]
    pub steps: Vec<ToolStep>,
    /// Of an action at a cloud, what is left of it past the guard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud: Option<Action>,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Its end in any case.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    pub expires_at_ns: u64,
    pub state: TaskState,
    /// What the tool said last when something was not as it should be.
    pub trouble: Option<String>,
}

/// All actions of other tools: those that should be in force, and those whose undoing is not confirmed. The newest set
/// is enough.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActionSet {
    pub wanted: Vec<Wanted>,
    pub ending: Vec<Ending>,
}

/// One that should be in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub task: Uuid,
    /// [`Action::tool`].
    pub tool: &'static str,
    pub steps: Vec<ToolStep>,
    /// Of an action at a cloud, what is to be done: its requests depend on what the provider answers.
    pub cloud: Option<Action>,
}

/// One that should not, and is not known to be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub task: Uuid,
    pub tool: &'static str,
}

/// What became of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acted {
    pub task: Uuid,
    pub outcome: Outcome,
    /// The commands that were run, looks aside.
    pub commands: Vec<Vec<String>>,
    /// How each ended and what it said; at most 4 KiB.
    pub output: String,
    pub at_mono_ns: u64,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    /// It could not be applied, for this reason; what had been of it is undone.
    Failed(String),
    Undone,
    /// It is not undone yet, for this reason; it is tried again.
    Stuck(String),
    /// A part of it was missing and cannot be made again, for this reason; none: all is well again.
    Amiss(Option<String>),
}

/// What people see of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskView {
    pub id: Uuid,
    pub tool: String,
    pub action: Action,
    /// The firewall rule, or the order.
    pub why: Why,
    pub incident: Uuid,
    pub commands: usize,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    pub state: TaskState,
    pub last_error: Option<String>,
}

impl Task {
    /// What people see of it.
    pub fn view(&self) -> TaskView {
        TaskView {
            id: self.id,
            tool: self.asked.tool().to_owned(),
            action: self.asked.brief(),
            why: self.why.clone(),
            incident: self.incident,
            commands: self.steps.len(),
            since: self.since,
            until: self.until,
            state: self.state,
            last_error: self.trouble.clone(),
        }
    }

    /// Whether it ends when its incident does.
    pub(super) fn ends_with_incident(&self) -> bool {
        matches!(self.why, Why::Rule { .. } | Why::Order { undo_at_resolve: true, .. })
    }
}
