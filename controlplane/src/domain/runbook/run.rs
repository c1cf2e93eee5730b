//! How an execution goes from its first step to its end: every transition, without clock, database or network.
//!
//! ```text
//!   queued --first step--> running --last step--> (running: what was handed over is not confirmed) --> succeeded | failed
//!      \--- the incident ended in a maintenance window, too many are under way --> cancelled
//! ```
//! A step that fails does not keep the next ones back: a dead receiver must not prevent a block. An execution has failed
//! if any of its steps has.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Step;
use crate::domain::Timestamp;
use crate::domain::mitigation::words;

/// For how long one process alone may carry a step out, seconds; twice what a step takes at most.
pub const RUN_LEASE_SECS: i64 = 65;
/// Executions of a workspace that are under way; further ones are cancelled.
pub const MAX_LIVE_RUNS: i64 = 200;
/// Executions of one runbook that incidents start within an hour; further ones are cancelled.
pub const MAX_RUNS_AN_HOUR: i64 = 200;
/// Tries of a call.
const MAX_TRIES: u32 = 3;
/// How long nodes and destinations may take to confirm: a day, in seconds, after which orders are given up anyway.
const CONFIRM_SECS: i64 = 86_400;

/// How far an execution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// It has not begun.
    Queued,
    /// It waits, works, or what it handed over is not confirmed yet.
    Running,
    /// No step failed.
    Succeeded,
    /// A step failed, or was of what is not connected.
    Failed,
    /// It never began: `error` says why.
    Cancelled,
}
words!(RunStatus {
    Queued = "queued", Running = "running", Succeeded = "succeeded", Failed = "failed", Cancelled = "cancelled",
});

impl RunStatus {
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Queued | Self::Running)
    }
}

/// Who started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunTrigger {
    /// An incident that met the conditions.
    Incident,
    /// An operator.
    Manual,
}
words!(RunTrigger { Incident = "incident", Manual = "manual" });

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Its turn has not come.
    Pending,
    /// It waits, or is tried again.
    Running,
    /// A node or a destination was given it and has not confirmed it.
    Queued,
    Succeeded,
    Failed,
    /// It is of what this version has no driver for: nothing was done.
    NotConnected,
    /// A condition that does not hold.
    NotMet,
    /// Not carried out, because of a condition, or because the incident is over or of another family.
    Skipped,
    /// Not carried out, because the attack is made up; `message` says what would be.
    Simulated,
}

/// What was given to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HandedOverKind {
    /// A message in the history of a channel or an integration.
    Delivery,
    /// An order to a node.
    Command,
    /// A rule that is to be announced.
    MitigationRule,
}

/// Something that is confirmed elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HandedOver {
    pub kind: HandedOverKind,
    pub uuid: Uuid,
}

/// What became of something that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmation {
    Pending,
    Done,
    Failed(String),
}

/// What came of a step's turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    Succeeded(String),
    Failed(String),
    NotConnected(String),
    NotMet(String),
    Skipped(String),
    Simulated(String),
    HandedOver(String, Vec<HandedOver>),
    /// It goes on at this time.
    Wait(Timestamp),
    /// It may succeed if it is tried again.
    Again(String),
}

/// A step of an execution, as it was when that began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StepRecord {
    #[serde(flatten)]
    pub step: Step,
    pub status: StepStatus,
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handed_over: Vec<HandedOver>,
}

/// How far an execution is, and what came of its steps.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Run {
    pub status: RunStatus,
    /// Why it was cancelled; empty if it was not.
    pub error: String,
    pub steps: Vec<StepRecord>,
    /// The step whose turn it is, from 0; the number of steps once all had theirs.
    pub position: u32,
    /// Tries of that step, or looks at what was handed over.
    #[serde(skip)]
    pub tries: u32,
    /// When it goes on, while it is queued or running.
    pub next_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
}

/// An execution as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct RunbookExecution {
    pub id: i64,
    pub uuid: Uuid,
    pub runbook_id: i64,
    /// Its name when the execution was made.
    pub runbook_name: String,
    pub trigger: RunTrigger,
    /// The attack is made up: nodes, incidents and upstream are left alone.
    pub test: bool,
    pub incident_id: Option<i64>,
    pub node: Option<Uuid>,
    pub created_at: Timestamp,
    #[serde(flatten)]
    pub run: Run,
}

impl Run {
    /// One that begins at `at`.
    pub fn queued(steps: &[Step], at: Timestamp) -> Self {
        let record = |step: &Step| StepRecord {
            step: step.clone(),
            status: StepStatus::Pending,
            message: String::new(),
            started_at: None,
            ended_at: None,
            handed_over: Vec::new(),
        };
        Self {
            status: RunStatus::Queued,
            error: String::new(),
            steps: steps.iter().map(record).collect(),
            position: 0,
            tries: 0,
            next_at: Some(at),
            started_at: None,
            ended_at: None,
        }
    }

    /// The same, which never begins.
    pub fn cancelled(mut self, why: &str, now: Timestamp) -> Self {
        self.end(RunStatus::Cancelled, now);
        self.error = why.to_owned();
        for record in &mut self.steps {
            record.status = StepStatus::Skipped;
        }
        self
    }

    /// The step whose turn it is; none once all had theirs.
    pub fn current(&self) -> Option<&StepRecord> {
        self.steps.get(self.position as usize)
    }

    /// What follows from a turn of the current step.
    pub fn after(mut self, outcome: StepOutcome, now: Timestamp) -> Self {
        self.status = RunStatus::Running;
        self.started_at.get_or_insert(now);
        let tries = self.tries + 1;
        let position = self.position as usize;
        let Some(record) = self.steps.get_mut(position) else { return self };
        record.started_at.get_or_insert(now);
        let (status, message) = match outcome {
            StepOutcome::Wait(until) => {
                record.status = StepStatus::Running;
                self.next_at = Some(until);
                self.tries = tries;
                return self;
            }
            StepOutcome::Again(why) if tries < MAX_TRIES => {
                record.status = StepStatus::Running;
                record.message = why;
                self.next_at = Some(now.plus_secs(1 << (2 * tries - 1)));
                self.tries = tries;
                return self;
            }
            StepOutcome::HandedOver(message, handed_over) => {
                record.handed_over = handed_over;
                (StepStatus::Queued, message)
            }
            StepOutcome::Succeeded(message) => (StepStatus::Succeeded, message),
            StepOutcome::Failed(message) | StepOutcome::Again(message) => (StepStatus::Failed, message),
            StepOutcome::NotConnected(message) => (StepStatus::NotConnected, message),
            StepOutcome::NotMet(message) => (StepStatus::NotMet, message),
            StepOutcome::Skipped(message) => (StepStatus::Skipped, message),
            StepOutcome::Simulated(message) => (StepStatus::Simulated, message),
        };
        (record.status, record.message) = (status, message);
        if status != StepStatus::Queued {
            record.ended_at = Some(now);
        }
        self.position += 1;
        self.tries = 0;
        self.next_at = Some(now);
        if status == StepStatus::NotMet {
            for later in &mut self.steps[position + 1..] {
                later.status = StepStatus::Skipped;
                later.message = format!("the condition in step {} does not hold", position + 1);
            }
            self.position = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        }
        self.end_if_all_is_known(now);
        self
    }

    /// What was handed over and is not confirmed.
    pub fn unconfirmed(&self) -> impl Iterator<Item = &HandedOver> {
        self.steps.iter().filter(|record| record.status == StepStatus::Queued).flat_map(|record| &record.handed_over)
    }

    /// What follows from a look at what was handed over, once all steps had their turn.
    pub fn confirmed(mut self, of: impl Fn(&HandedOver) -> Confirmation, now: Timestamp) -> Self {
        for record in self.steps.iter_mut().filter(|record| record.status == StepStatus::Queued) {
            let all: Vec<_> = record.handed_over.iter().map(&of).collect();
            let failed = all.iter().find_map(|one| if let Confirmation::Failed(why) = one { Some(why) } else { None });
            let pending = all.contains(&Confirmation::Pending);
            let late = record.started_at.is_none_or(|since| now.secs_since(since) >= CONFIRM_SECS);
            record.status = match failed {
                _ if pending && !late => continue,
                Some(why) => {
                    record.message = why.clone();
                    StepStatus::Failed
                }
                None if pending => {
                    "nobody confirmed it within a day".clone_into(&mut record.message);
                    StepStatus::Failed
                }
                None => StepStatus::Succeeded,
            };
            record.ended_at = Some(now);
        }
        self.tries = self.tries.saturating_add(1);
        self.next_at = Some(now.plus_secs(i64::from(self.tries.min(6) * 10)));
        self.end_if_all_is_known(now);
        self
    }

    fn end_if_all_is_known(&mut self, now: Timestamp) {
        let is = |wanted: &[StepStatus]| self.steps.iter().any(|record| wanted.contains(&record.status));
        if is(&[StepStatus::Pending, StepStatus::Running, StepStatus::Queued]) {
            return;
        }
        let failed = is(&[StepStatus::Failed, StepStatus::NotConnected]);
        self.end(if failed { RunStatus::Failed } else { RunStatus::Succeeded }, now);
    }

    fn end(&mut self, status: RunStatus, now: Timestamp) {
        self.status = status;
        self.next_at = None;
        self.ended_at = Some(now);
    }
}
