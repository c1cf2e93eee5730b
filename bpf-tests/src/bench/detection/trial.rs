//! One attack on a node that has just started, and what the engine made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ftagent::engine::{Command, Engine, Settings};
use ftagent::replay::{Kernel, Limits, START_NS, Sampling, Watch};
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::{AttackFamily, IncidentStatus};
use ipnet::IpNet;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

pub(super) const MS: u64 = 1_000_000;
pub(super) const SEC: u64 = 1_000_000_000;
/// The agent's tick with default settings.
const TICK_MS: u64 = 50;

/// What the engine asked for in the course of a run.
#[derive(Default)]
pub(super) struct Diary {
    /// Each incident at its most certain.
    pub(super) surest: BTreeMap<Uuid, IncidentReport>,
    /// Sources that an automatic rule named.
    pub(super) blocked: BTreeSet<IpNet>,
    /// How often automatic rules came into force where there were none.
    pub(super) deployments: u64,
    in_force: usize,
}

impl Watch for Diary {
    fn saw(&mut self, command: &Command, _engine: &Engine, _now_ns: u64) {
        match command {
            Command::Report(report) => {
                let known = self.surest.get(&report.uuid);
                if known.is_none_or(|known| report.confidence >= known.confidence) {
                    self.surest.insert(report.uuid, (**report).clone());
                }
            }
            Command::Enforce(set) => {
                let automatic = set.rules.values().filter(|rule| rule.origin.is_automatic());
                let sources: Vec<Option<IpNet>> = automatic.map(|rule| rule.matches.source).collect();
                self.deployments += u64::from(self.in_force == 0 && !sources.is_empty());
                self.in_force = sources.len();
                self.blocked.extend(sources.into_iter().flatten());
            }
            Command::Act(_) | Command::Persist | Command::Ack(_) | Command::Answer(_) => {}
        }
    }
}

impl Diary {
    /// Incidents that were held to be attacks.
    pub(super) fn sure(&self) -> impl Iterator<Item = &IncidentReport> {
        self.surest.values().filter(|report| report.confidence >= 0.5)
    }
}

/// A node with these settings that protects every destination and has just started.
pub(super) fn node(settings: Settings, sampling: Sampling) -> Kernel<Diary> {
    let began = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
    let mut kernel = Kernel::new(settings, Limits::default(), TICK_MS, began, Diary::default());
    kernel.datapath.sampling = sampling;
    kernel
}

/// How an attack is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Play {
    pub(super) pps: u64,
    pub(super) one_in: u32,
    pub(super) lasts_ms: u64,
    /// When in the agent's tick it begins.
    pub(super) phase_ms: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Of the incident with most packets; `Unknown` where there is none.
    pub(super) family: AttackFamily,
    pub(super) confidence: f64,
    pub(super) targets: BTreeSet<IpAddr>,
    /// The most certain of all incidents.
    pub(super) surest: f64,
    /// Milliseconds from the first packet, on the simulated clock.
    pub(super) opened_ms: Option<f64>,
    pub(super) ruled_ms: Option<f64>,
    /// The engine's own words.
    pub(super) explanation: Vec<String>,
}

/// Plays the frames that `next` makes, each with its length on the wire, towards a node.
pub(super) fn play<'a>(play: Play, mut next: impl FnMut() -> (std::borrow::Cow<'a, [u8]>, usize)) -> Found {
    let mut kernel = node(Settings::default(), Sampling::OneIn(play.one_in));
    // Some ticks of nothing, as before most attacks.
    kernel.run_until(START_NS + 2 * SEC + play.phase_ms * MS);
    let start = kernel.now_ns;
    for i in 0..play.pps * play.lasts_ms / 1_000 {
        let (frame, wire_len) = next();
        kernel.frame(&frame, wire_len, start + i * SEC / play.pps);
    }
    kernel.run_until(start + play.lasts_ms * MS + 2 * TICK_MS * MS);
    let began = kernel.at(start).wall;
    let reports = kernel.engine.view().incidents;
    let active: Vec<&IncidentReport> = reports.iter().filter(|r| r.status == IncidentStatus::Active).collect();
    let main = active.iter().max_by_key(|report| report.packets);
    let opened = active.iter().map(|report| (report.started_at - began).as_seconds_f64() * 1e3);
    Found {
        family: main.map_or(AttackFamily::Unknown, |report| report.family),
        confidence: main.map_or(0.0, |report| report.confidence),
        targets: active.iter().map(|report| report.target.addr()).collect(),
        surest: active.iter().map(|report| report.confidence).fold(0.0, f64::max),
        opened_ms: opened.reduce(f64::min),
        ruled_ms: kernel.first_rule_ns.map(|ns| (ns - start) as f64 / 1e6),
        explanation: main.map_or_else(|| vec!["no incident".to_owned()], |report| report.explanation.clone()),
    }
}
