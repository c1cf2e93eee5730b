//! PURE: the course of a profile on this node, and what of it lies on disk.
//!
//! ```text
//!             apply                in force               confirmed
//! (nothing) ────────> applying ──────────────> trial ──────────────────> confirmed
//!     ^                  │ refused, killed       │ over, stopped, rebooted    │
//!     └────── past <── taking back <─────────────┴────────── rolled back ─────┘
//! ```
//!
//! One profile at a time. Each step is on disk before it is carried out, so that whoever starts next knows what to put
//! right. What has ended is remembered for a while: the control plane repeats what nobody acknowledged.

use std::collections::VecDeque;

use ftagent_common::api::{CustomRule, Kept, ProfileRule, ProfileState, Step, Suite};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Ended applications that are remembered.
const REMEMBERED: usize = 32;
const SEC: u64 = 1_000_000_000;

/// What is on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Journal {
    pub current: Option<Current>,
    /// Oldest first.
    #[serde(default)]
    pub past: VecDeque<Past>,
}

/// The order that a profile came with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub application: Uuid,
    /// Its name; may be empty.
    pub profile: String,
    pub suite: Suite,
    pub rules: Vec<ProfileRule>,
    pub custom: Vec<CustomRule>,
    pub keep: Kept,
    pub confirm_secs: u32,
}

/// The profile that this node has, or is about to have or to lose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Current {
    pub wanted: Wanted,
    pub phase: Phase,
    /// What it was compiled with.
    pub kept: Kept,
    /// Of that, operators who were connected at any time since.
    #[serde(default = "nobody")]
    pub in_use: Kept,
    pub steps: Vec<Step>,
    /// What the tools' own dumps showed of it when it was put in force.
    #[serde(default)]
    pub seen: String,
    /// What ufw noted of the operator's own rules.
    #[serde(default)]
    pub noted: Vec<String>,
}

const fn nobody() -> Kept {
    Kept { ports: Vec::new(), sources: Vec::new() }
}

/// Where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Applying,
    Trial { began: Moment },
    Confirmed,
    TakingBack { end: End, reason: String },
}

/// Both clocks, and the boot that the first belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moment {
    pub boot: String,
    pub mono_ns: u64,
    pub wall_ns: i64,
}

/// How an application ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// It never was in force as a whole.
    Failed,
    /// Nobody confirmed it while that could be.
    Lapsed,
    RolledBack,
}

/// An application that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Past {
    pub application: Uuid,
    pub end: End,
    pub reason: String,
    /// Whether the control plane was told, or knows by an acknowledgement.
    #[serde(default)]
    pub told: bool,
}

/// What is done about an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: this is the answer.
    Answer(Result<String, String>),
    /// The profile is to be put in force.
    Apply,
    /// The journal is saved; then this is the answer.
    Keep(String),
    /// What is in force is taken back.
    TakeBack,
}

impl Current {
    /// Seconds until it is taken back unless it is confirmed; none where it is not on trial.
    pub(super) fn left_secs(&self, now: &Moment) -> Option<u64> {
        self.left_ns(now).map(|left| left.div_ceil(SEC))
    }

    /// The same in nanoseconds.
    pub(super) fn left_ns(&self, now: &Moment) -> Option<u64> {
        let Phase::Trial { began } = &self.phase else { return None };
        Some(left_ns(began, now, self.wanted.confirm_secs))
    }

    fn is_over(&self, now: &Moment) -> bool {
        self.left_ns(now) == Some(0)
    }
}

/// Nanoseconds by the clock that has fewer left. A wall clock that was put back has more, and does not count; after a
/// reboot nothing is left: the other clock began anew, and whoever is locked out has this way.
fn left_ns(began: &Moment, now: &Moment, secs: u32) -> u64 {
    if began.boot != now.boot {
        return 0;
    }
    let all = u64::from(secs) * SEC;
    let of_wall = now.wall_ns.saturating_sub(began.wall_ns).max(0).unsigned_abs();
    all.saturating_sub(now.mono_ns.saturating_sub(began.mono_ns).max(of_wall))
}

impl Journal {
    /// What to do about an order to apply.
    pub(super) fn on_apply(&self, wanted: &Wanted) -> Next {
        let id = wanted.application;
        if let Some(past) = self.past(id) {
            return Next::Answer(Err(past.words()));
        }
        match &self.current {
            None => Next::Apply,
            Some(current) if current.wanted.application == id => Next::Answer(match &current.phase {
                Phase::Applying => Err("it is being applied".to_owned()),
                Phase::Trial { .. } | Phase::Confirmed => Ok("it is in force".to_owned()),
                Phase::TakingBack { reason, .. } => Err(format!("it is being taken back: {reason}")),
            }),
            Some(current) => Next::Answer(Err(format!(
                "this node has a profile already (application {}, {}): roll it back first",
                current.wanted.application,
                current.phase.as_str()
            ))),
        }
    }

    /// Keeps what is on trial.
    pub(super) fn on_confirm(&mut self, application: Uuid, now: &Moment) -> Next {
        if let Some(past) = self.past(application) {
            return Next::Answer(Err(past.words()));
        }
        let Some(current) = self.current.as_mut().filter(|c| c.wanted.application == application) else {
            return Next::Answer(Err(format!("this node has no application {application}: nothing is confirmed")));
        };
        if current.is_over(now) {
            return self.on_time(now).unwrap_or(Next::TakeBack);
        }
        match &current.phase {
            Phase::Trial { .. } => {
                current.phase = Phase::Confirmed;
                Next::Keep("confirmed: it stays in force".to_owned())
            }
            Phase::Confirmed => Next::Answer(Ok("it was confirmed before".to_owned())),
            Phase::Applying => Next::Answer(Err("it is being applied: nothing is confirmed".to_owned())),
            Phase::TakingBack { reason, .. } => Next::Answer(Err(format!("it is being taken back: {reason}"))),
        }
    }

    /// Undoes what this application did; what is gone already is as good.
    pub(super) fn on_roll_back(&mut self, application: Uuid, reason: &str) -> Next {
        if self.current.as_ref().is_some_and(|c| c.wanted.application == application) {
            self.begin_to_take_back(End::RolledBack, reason);
            return Next::TakeBack;
        }
        let words = match self.past(application) {
            Some(past) => format!("nothing is left of it: {}", past.words()),
            None => {
                // Its order to apply may come late.
                let reason = reason.to_owned();
                self.remember(Past { application, end: End::RolledBack, reason, told: true });
                return Next::Keep("it never was in force here".to_owned());
            }
        };
        Next::Answer(Ok(words))
    }

    /// Ends a trial whose time is over.
    pub(super) fn on_time(&mut self, now: &Moment) -> Option<Next> {
        let current = self.current.as_ref().filter(|c| c.is_over(now))?;
        let secs = current.wanted.confirm_secs;
        let reason = match &current.phase {
            Phase::Trial { began } if began.boot != now.boot => {
                "the machine was started again before it was confirmed".to_owned()
            }
            _ => format!("nobody confirmed it within {secs} s"),
        };
        self.begin_to_take_back(End::Lapsed, &reason);
        Some(Next::TakeBack)
    }

    /// What the last agent left half done.
    pub(super) fn on_start(&mut self, now: &Moment) -> Option<Next> {
        match &self.current.as_ref()?.phase {
            Phase::Applying => {
                self.begin_to_take_back(End::Failed, "the agent ended while it applied it");
                Some(Next::TakeBack)
            }
            Phase::TakingBack { .. } => Some(Next::TakeBack),
            Phase::Trial { .. } => self.on_time(now),
            Phase::Confirmed => None,
        }
    }

    /// An agent that goes must not leave behind what nobody confirmed: nobody would take it back.
    pub(super) fn on_stop(&mut self) -> Option<Next> {
        let on_trial = matches!(self.current.as_ref()?.phase, Phase::Trial { .. });
        on_trial.then(|| {
            self.begin_to_take_back(End::Lapsed, "the agent was stopped before it was confirmed");
            Next::TakeBack
        })
    }

    /// Marks what is current as going. The first reason counts: what failed or lapsed did so, whatever came later.
    pub(super) fn begin_to_take_back(&mut self, end: End, reason: &str) {
        if let Some(current) = &mut self.current
            && !matches!(current.phase, Phase::TakingBack { .. })
        {
            current.phase = Phase::TakingBack { end, reason: reason.to_owned() };
        }
    }

    /// Nothing of the current one is left.
    pub(super) fn taken_back(&mut self) -> Option<Past> {
        let current = self.current.take()?;
        let (end, reason) = match current.phase {
            Phase::TakingBack { end, reason } => (end, reason),
            Phase::Applying | Phase::Trial { .. } | Phase::Confirmed => (End::RolledBack, String::new()),
        };
        let past = Past { application: current.wanted.application, end, reason, told: false };
        self.remember(past.clone());
        Some(past)
    }

    pub(super) fn remember(&mut self, past: Past) {
        self.past.retain(|known| known.application != past.application);
        if self.past.len() >= REMEMBERED {
            self.past.pop_front();
        }
        self.past.push_back(past);
    }

    /// Ends that the control plane does not know of.
    pub(super) fn untold(&self) -> Vec<Past> {
        self.past.iter().filter(|past| !past.told && past.end.state().is_some()).cloned().collect()
    }

    /// Notes that it knows of this one.
    pub(super) fn tell(&mut self, application: Uuid) {
        self.past.iter_mut().filter(|past| past.application == application).for_each(|past| past.told = true);
    }

    fn past(&self, application: Uuid) -> Option<&Past> {
        self.past.iter().find(|past| past.application == application)
    }
}

impl Past {
    /// For people.
    pub(super) fn words(&self) -> String {
        match self.end {
            End::Failed => self.reason.clone(),
            End::Lapsed => format!("lapsed: {}", self.reason),
            End::RolledBack => format!("rolled back: {}", self.reason),
        }
    }
}

impl End {
    /// What the control plane is told, if it does not know from an acknowledgement.
    pub(super) const fn state(self) -> Option<ProfileState> {
        match self {
            Self::Failed => None,
            Self::Lapsed => Some(ProfileState::Lapsed),
            Self::RolledBack => Some(ProfileState::RolledBack),
        }
    }
}

impl Phase {
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Applying => "applying",
            Self::Trial { .. } => "trial",
            Self::Confirmed => "confirmed",
            Self::TakingBack { .. } => "taking_back",
        }
    }
}
