//! Runbooks: what is done, step by step, when an attack is of a certain kind.

mod attack;
mod conditions;
mod deed;
mod run;
mod step;

use serde::Serialize;

use super::problem::Check;
use super::{Problem, Timestamp};
pub use attack::Attack;
use conditions::Condition;
pub use conditions::TriggerConditions;
pub use deed::{Deed, plan};
pub use run::{
    Confirmation, HandedOver, HandedOverKind, MAX_LIVE_RUNS, MAX_RUNS_AN_HOUR, RUN_LEASE_SECS, Run, RunStatus,
    RunTrigger, RunbookExecution, StepOutcome, StepRecord, StepStatus,
};
use step::NodeStepConfig;
pub use step::Step;

/// The most runbooks of a workspace: each report of an active incident looks at all that are active.
pub const MAX_RUNBOOKS: i64 = 100;
/// The most steps of a runbook.
const MAX_STEPS: usize = 50;
/// The longest that all waits of a runbook take together, seconds: a day.
const MAX_WAITS: u64 = 86_400;

/// A runbook to be kept.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRunbook {
    pub name: String,
    pub description: String,
    pub trigger_conditions: TriggerConditions,
    pub steps: Vec<Step>,
    pub active: bool,
}

impl NewRunbook {
    /// `allow_private`: whether webhooks may have addresses that are not public.
    ///
    /// # Errors
    /// Names all fields that are out of bounds, such as `steps[2].action_config.seconds`.
    pub fn check(self, allow_private: bool) -> Result<Self, Problem> {
        let mut check = Check::default();
        check.line("name", &self.name, 1, 128);
        let length = self.description.chars().count();
        check.that(length <= 1_024, "description", || format!("must be at most 1024 characters, got {length}"));
        let readable = !self.description.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
        check.that(readable, "description", || "must not contain control characters".to_owned());
        self.trigger_conditions.check(&mut check);
        let count = self.steps.len();
        check.that((1..=MAX_STEPS).contains(&count), "steps", || format!("must be 1 to {MAX_STEPS}, got {count}"));
        for (index, step) in self.steps.iter().take(MAX_STEPS).enumerate() {
            step.check(&mut check, &format!("steps[{index}].action_config"), allow_private);
        }
        let waits =
            self.steps.iter().map(|step| if let Step::Wait { seconds } = step { u64::from(*seconds) } else { 0 });
        let waits: u64 = waits.sum();
        check.that(waits <= MAX_WAITS, "steps", || format!("must wait at most {MAX_WAITS} s in all, got {waits}"));
        check.done().map(|()| self)
    }
}

/// What to change of a runbook; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunbookPatch {
    pub name: Option<String>,
    pub description: Option<String>,
    pub trigger_conditions: Option<TriggerConditions>,
    /// All of them.
    pub steps: Option<Vec<Step>>,
    pub active: Option<bool>,
}

impl RunbookPatch {
    /// The runbook as it would be afterwards, not yet checked.
    pub fn applied_to(self, kept: &Runbook) -> NewRunbook {
        NewRunbook {
            name: self.name.unwrap_or_else(|| kept.name.clone()),
            description: self.description.unwrap_or_else(|| kept.description.clone()),
            trigger_conditions: self.trigger_conditions.unwrap_or_else(|| kept.trigger_conditions.clone()),
            steps: self.steps.unwrap_or_else(|| kept.steps.clone()),
            active: self.active.unwrap_or(kept.active),
        }
    }
}

/// A runbook as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Runbook {
    pub id: i64,
    pub name: String,
    pub description: String,
    pub trigger_conditions: TriggerConditions,
    pub steps: Vec<Step>,
    pub steps_count: u32,
    /// Whether incidents start it.
    pub active: bool,
    /// How often it was started, as far as the history goes back.
    pub execution_count: u64,
    pub last_executed_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[cfg(test)]
mod tests;
