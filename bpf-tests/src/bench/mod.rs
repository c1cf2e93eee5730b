//! `cargo xtask bench`: every goal of the datapath's specification, measured on this machine.
//!
//! The speed of a machine moves from second to second. So every scenario has its turn once in every round, the floor (a
//! program that drops everything and looks at nothing) among them, and what counts is the difference to the floor of
//! the same round.

pub mod agent;
pub mod controlplane;
pub mod datapath;
pub mod detection;
pub mod history;
pub mod ladder;
pub mod latency;
mod live;
pub mod plots;
pub mod report;
mod stats;
pub mod svg;
pub mod swap;
mod under_test;

/// One goal of the specification, measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Goal {
    /// As the specification names it, with a letter where a goal has several figures: `P4c`.
    pub id: &'static str,
    pub what: String,
    /// Absent: not measured, `detail` says why.
    pub value: Option<f64>,
    pub unit: &'static str,
    /// The bare `XDP_DROP` of the same rounds.
    pub floor: Option<f64>,
    /// Such as "xdp-filter 45 ns".
    pub peer: Option<String>,
    /// The best peer's figure in the same rounds and the same unit, where there is one: runs are compared by the ratio.
    pub peer_value: Option<f64>,
    /// Such as "<= floor + 30 ns".
    pub goal: String,
    pub met: Option<bool>,
    pub minimum: Option<f64>,
    pub median: Option<f64>,
    pub rounds: u32,
    pub detail: String,
}

/// How much is measured.
pub struct Options {
    pub quick: bool,
    /// Turns of every scenario.
    pub rounds: u32,
    /// Of the simulated fleet; that of the goals without it.
    pub nodes: Option<u32>,
}

impl Goal {
    /// A goal that has no figure here, and why.
    pub(crate) fn missing(id: &'static str, what: &str, unit: &'static str, goal: &str, why: &str) -> Self {
        Self {
            id,
            what: what.to_owned(),
            value: None,
            unit,
            floor: None,
            peer: None,
            peer_value: None,
            goal: goal.to_owned(),
            met: None,
            minimum: None,
            median: None,
            rounds: 0,
            detail: why.to_owned(),
        }
    }
}
