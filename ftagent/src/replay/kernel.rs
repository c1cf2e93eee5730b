//! The engine above a model of the datapath, on a clock that is told the time: as fast as the machine computes, and
//! the same every time.

use std::collections::BTreeMap;

use ftagent_common::api::IncidentReport;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::datapath::{Datapath, Limits};
use crate::engine::sample::SEC;
use crate::engine::{Acted, Change, Command, EnforceResult, Engine, Input, Now, Outcome, Rule, Settings, Wanted};

/// The monotonic clock when a run begins.
pub const START_NS: u64 = 1_000 * SEC;
/// Incidents whose reports are kept.
const MAX_REPORTS: usize = 10_000;
/// After so long without a frame no rate is left that a tick could show.
const QUIET_NS: u64 = 3 * SEC;

/// Hears everything that the engine asks for.
pub trait Watch {
    /// `command` is about to be carried out.
    fn saw(&mut self, command: &Command, engine: &Engine, now_ns: u64);
}

impl Watch for () {
    fn saw(&mut self, _: &Command, _: &Engine, _: u64) {}
}

/// The engine, the datapath below it, and what came of the incidents.
pub struct Kernel<W = ()> {
    pub engine: Engine,
    pub datapath: Datapath,
    pub watch: W,
    /// Nanoseconds of the monotonic clock.
    pub now_ns: u64,
    began: OffsetDateTime,
    tick_ns: u64,
    next_tick: u64,
    last_frame_ns: u64,
    /// The engine's next deadline, asked for after each of its inputs: with many rules the answer takes a while.
    due_ns: Option<u64>,
    /// The newest report of each incident, and reports of incidents beyond the most that are kept.
    pub reports: BTreeMap<Uuid, IncidentReport>,
    pub forgotten: u64,
    /// When the first automatic rule was asked for.
    pub first_rule_ns: Option<u64>,
    /// When the first incident was reported.
    pub first_open_ns: Option<u64>,
    /// Automatic rules that were put into force.
    pub installed: u64,
    /// Actions of other tools that are in force.
    pub actions: Vec<Wanted>,
}

impl<W: Watch> Kernel<W> {
    /// Begins at `began` on the wall clock. `tick_ms` is the agent's.
    pub fn new(settings: Settings, limits: Limits, tick_ms: u64, began: OffsetDateTime, watch: W) -> Self {
        let tick_ns = tick_ms.max(1) * 1_000_000;
        let now = Now { mono_ns: START_NS, wall: began };
        let mut kernel = Self {
            engine: Engine::new(settings, now),
            datapath: Datapath::new(limits),
            watch,
            now_ns: START_NS,
            began,
            tick_ns,
            next_tick: START_NS + tick_ns,
            last_frame_ns: START_NS,
            due_ns: None,
            reports: BTreeMap::new(),
            forgotten: 0,
            first_rule_ns: None,
            first_open_ns: None,
            installed: 0,
            actions: Vec::new(),
        };
        let (_, reading) = kernel.datapath.tick(START_NS);
        kernel.tell(Input::Counters(reading));
        kernel
    }

    /// Both clocks at `mono_ns`.
    pub fn at(&self, mono_ns: u64) -> Now {
        let since = i64::try_from(mono_ns.saturating_sub(START_NS)).unwrap_or(i64::MAX);
        let wall = self.began.checked_add(Duration::nanoseconds(since)).unwrap_or(self.began);
        Now { mono_ns, wall }
    }

    /// Gives the engine an input now.
    pub fn tell(&mut self, input: Input) {
        self.engine.on(input, self.at(self.now_ns));
        self.carry_out();
    }

    /// Lets time pass up to `ns`, with ticks and deadlines.
    pub fn run_until(&mut self, ns: u64) {
        while self.next_tick <= ns {
            if self.is_idle() {
                // The ticks between would show nothing: the last of them does for all.
                self.next_tick += (ns - self.next_tick) / self.tick_ns * self.tick_ns;
            }
            self.now_ns = self.next_tick;
            self.next_tick += self.tick_ns;
            let (samples, reading) = self.datapath.tick(self.now_ns);
            if !samples.is_empty() {
                self.engine.on(Input::Samples(samples), self.at(self.now_ns));
            }
            self.tell(Input::Counters(reading));
        }
        self.now_ns = self.now_ns.max(ns);
        while self.due_ns.is_some_and(|due| due <= self.now_ns) {
            self.engine.on_deadline(self.at(self.now_ns));
            self.carry_out();
        }
    }

    /// Lets so much time pass.
    pub fn run_for(&mut self, ns: u64) {
        self.run_until(self.now_ns.saturating_add(ns));
    }

    fn is_idle(&self) -> bool {
        self.next_tick > self.last_frame_ns + QUIET_NS && self.datapath.is_quiet() && self.due_ns.is_none()
    }

    /// One frame arrives at `ns`; whether it passed. `bytes` is what is known of a frame of `wire_len` bytes.
    pub fn frame(&mut self, bytes: &[u8], wire_len: usize, ns: u64) -> bool {
        self.frames(bytes, wire_len, 1, ns) > 0
    }

    /// So many equal frames arrive at `ns`; how many of them passed.
    pub fn frames(&mut self, bytes: &[u8], wire_len: usize, count: u64, ns: u64) -> u64 {
        self.run_until(ns);
        self.last_frame_ns = ns;
        self.datapath.frames(bytes, wire_len, count, ns)
    }

    fn carry_out(&mut self) {
        while let Some(command) = self.engine.poll_command() {
            self.watch.saw(&command, &self.engine, self.now_ns);
            match command {
                Command::Enforce(set) => {
                    let changes = self.datapath.rules.changes_to(&set);
                    let new = changes.iter().filter(|c| matches!(c, Change::Install(r) if r.origin.is_automatic()));
                    let new = new.count() as u64;
                    self.installed += new;
                    if new > 0 {
                        self.first_rule_ns.get_or_insert(self.now_ns);
                    }
                    let done =
                        |rule, installed| EnforceResult { rule, installed, result: Ok(()), at_mono_ns: self.now_ns };
                    let results = changes.iter().filter_map(|change| match change {
                        Change::Install(rule) => Some(done(rule.id, true)),
                        Change::Remove(rule) => Some(done(rule.id, false)),
                        Change::Extend(_) => None,
                    });
                    let results = results.collect();
                    self.datapath.enforce(set);
                    self.engine.on(Input::Enforced(results), self.at(self.now_ns));
                }
                Command::Report(report) => {
                    self.first_open_ns.get_or_insert(self.now_ns);
                    if self.reports.len() < MAX_REPORTS || self.reports.contains_key(&report.uuid) {
                        self.reports.insert(report.uuid, *report);
                    } else {
                        self.forgotten += 1;
                    }
                }
                Command::Act(set) => {
                    // Every tool does at once what it is asked for.
                    let now_ns = self.now_ns;
                    let done = |task, outcome, commands| Acted {
                        task,
                        outcome,
                        commands,
                        output: String::new(),
                        at_mono_ns: now_ns,
                    };
                    let commands = |wanted: &Wanted| wanted.steps.iter().map(|s| s.run.clone()).collect();
                    let known = std::mem::take(&mut self.actions);
                    let new = set.wanted.iter().filter(|w| !known.contains(w));
                    let mut results: Vec<_> = new.map(|w| done(w.task, Outcome::Applied, commands(w))).collect();
                    results.extend(set.ending.iter().map(|e| done(e.task, Outcome::Undone, Vec::new())));
                    self.actions = set.wanted;
                    if !results.is_empty() {
                        self.engine.on(Input::Acted(results), self.at(self.now_ns));
                    }
                }
                // There is nobody to answer and nothing to keep.
                Command::Persist | Command::Ack(_) | Command::Answer(_) => {}
            }
        }
        self.due_ns = self.engine.next_deadline();
    }

    /// Rules that nobody decided by hand.
    pub fn automatic(&self) -> Vec<&Rule> {
        self.datapath.rules.rules.values().filter(|r| r.origin.is_automatic()).collect()
    }
}
