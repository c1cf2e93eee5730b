//! The engine: everything the agent decides, as a pure function of state, input and `now`.
//!
//! Called by the daemon's one loop; knows no clock, task, socket or file. Rates become baselines, an excess becomes
//! an incident, an incident becomes rules, and the rules leave when the attack does.
//!
//! ```text
//! Input -> sample -> baseline -> detect -> classify -> incident -> policy -> guard -> rules -> Command
//! ```
//!
//! `tick` reads counters and opens incidents, `learn` shows calm targets to their baselines, `web` judges requests and
//! connections, `life` leads incidents to their end, `reopen` brings them back. `response` turns plans into rules,
//! `contain` looks whether they hold the attack, `steps` says when wide ones go, `gate` says which targets stand behind
//! the TCP gate, `firewall` fires the operator's rules, `tool_guard` and `tasks` those that other tools carry
//! out, `orders` does what people ask for. `silence` knows which
//! interfaces see nothing any more.

pub mod baseline;
pub mod classify;
mod contain;
pub mod detect;
mod distinct;
mod firewall;
mod gate;
pub mod guard;
mod incident;
mod input;
mod learn;
mod life;
mod orders;
pub mod policy;
mod reopen;
pub mod response;
mod rules;
pub mod sample;
mod settings;
mod silence;
mod state;
mod steps;
mod task;
mod tasks;
mod tick;
mod tool_guard;
mod view;
pub mod web;
pub mod week;
pub mod window;
pub mod words;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use ftagent_common::api::{AllowEntry, CommandAck, IncidentReport, NodeConfig};
use ipnet::IpNet;
use uuid::Uuid;

use baseline::Baseline;
pub use gate::Gated;
pub use incident::{Deed, Incident};
pub use input::*;
pub use rules::*;
use sample::Meter;
pub use settings::*;
pub use silence::InterfaceTraffic;
pub use state::EngineState;
pub use task::{Acted, ActionSet, Ending, Outcome, Task, TaskState, TaskView, Wanted, Why};
use tick::{Group, Target};
pub use tool_guard::MANAGEMENT;
pub use view::*;

/// Resolved incidents that are shown for a while.
const RECENT: usize = 50;

/// Everything the agent knows and decides.
pub struct Engine {
    /// The newest time that any input carried.
    now_ns: u64,
    local: Settings,
    remote: Option<NodeConfig>,
    /// `local` with `remote` laid over it.
    effective: Settings,
    operator_allow: Vec<AllowEntry>,
    /// Everybody's allow entries together.
    allow: Vec<AllowEntry>,

    /// When counters were read last; absent before the first reading.
    read_ns: Option<u64>,
    silence: silence::Silence,
    total: Meter,
    targets: BTreeMap<IpAddr, Target>,
    groups: BTreeMap<IpNet, Group>,
    /// Baselines from before a restart, until their targets are seen again.
    restored: BTreeMap<IpNet, Baseline>,
    untracked: u64,
    /// The hour of the week, where the clock is set.
    hour: Option<week::Hour>,
    /// Rows that weeks may still make, counted anew in each hour.
    week_room: usize,
    /// Rates of heavy sources in packets per second, and the count they come from.
    heavy: BTreeMap<IpAddr, (u64, f64)>,
    window: window::Window,
    web: web::Web,

    incidents: BTreeMap<Uuid, Incident>,
    /// Resolved incidents whose rules are not known to be gone, with when they were resolved.
    closing: BTreeMap<Uuid, u64>,
    /// Resolved incidents that the same attack would open again, the newest last.
    dormant: VecDeque<Incident>,
    /// When a target's last incident ended and how long it was held down, against flapping.
    ended: BTreeMap<IpNet, (u64, u32)>,
    recent: VecDeque<IncidentReport>,
    cooldowns: BTreeMap<(i64, IpNet), u64>,

    rules: BTreeMap<RuleId, Rule>,
    next_rule: u64,
    /// Actions of other tools, with those whose undoing is not confirmed.
    tasks: BTreeMap<Uuid, Task>,
    /// They changed since the last [`Command::Act`].
    tasks_changed: bool,
    task_pace: tasks::TaskPace,
    pace: guard::Pace,
    refusals: u64,
    /// The desired rules or what stands above them changed since the last [`Command::Enforce`].
    rules_changed: bool,
    /// What must survive a killed agent changed since the last [`Command::Persist`].
    state_changed: bool,
    /// The rules that were persisted last, by their ids.
    persisted: Vec<RuleId>,
    answered: VecDeque<(Uuid, CommandAck)>,
    commands: VecDeque<Command>,
    reports: VecDeque<IncidentReport>,
}

impl Engine {
    /// An engine that knows nothing yet. Its first command is the set that should be in force.
    pub fn new(settings: Settings, now: Now) -> Self {
        let mut engine = Self {
            now_ns: now.mono_ns,
            effective: settings.clone(),
            local: settings,
            remote: None,
            operator_allow: Vec::new(),
            allow: Vec::new(),
            read_ns: None,
            silence: silence::Silence::default(),
            total: Meter::default(),
            targets: BTreeMap::new(),
            groups: BTreeMap::new(),
            restored: BTreeMap::new(),
            untracked: 0,
            hour: None,
            week_room: 0,
            heavy: BTreeMap::new(),
            window: window::Window::default(),
            web: web::Web::default(),
            incidents: BTreeMap::new(),
            closing: BTreeMap::new(),
            dormant: VecDeque::new(),
            ended: BTreeMap::new(),
            recent: VecDeque::new(),
            cooldowns: BTreeMap::new(),
            rules: BTreeMap::new(),
            next_rule: 1,
            tasks: BTreeMap::new(),
            tasks_changed: true,
            task_pace: tasks::TaskPace::default(),
            pace: guard::Pace::default(),
            refusals: 0,
            rules_changed: true,
            state_changed: false,
            persisted: Vec::new(),
            answered: VecDeque::new(),
            commands: VecDeque::new(),
            reports: VecDeque::new(),
        };
        engine.merge_settings(now);
        engine
    }

    /// Takes one input.
    pub fn on(&mut self, input: Input, now: Now) {
        self.now_ns = self.now_ns.max(now.mono_ns);
        self.note_hour(now);
        match input {
            Input::Counters(reading) => self.on_counters(reading, now),
            Input::Samples(samples) => self.window.extend(&samples),
            Input::Settings(settings) => {
                self.local = *settings;
                self.merge_settings(now);
            }
            Input::Remote(config) => {
                self.remote = Some(*config);
                self.state_changed = true;
                self.merge_settings(now);
            }
            Input::Command(command) => self.on_command(command, now),
            Input::Operator(order) => self.on_operator(order, now),
            Input::Enforced(results) => self.on_enforced(&results, now),
            Input::Acted(results) => self.on_acted(results, now),
            Input::Requests(batch) => self.on_requests(&batch, now),
            Input::Connections(reading) => self.on_connections(&reading, now),
            Input::Hits(hits) => self.on_hits(&hits, now),
        }
        self.advance(now);
        self.finish(now);
    }

    /// Does what is due at `now`.
    pub fn on_deadline(&mut self, now: Now) {
        self.now_ns = self.now_ns.max(now.mono_ns);
        self.note_hour(now);
        self.advance(now);
        self.finish(now);
    }

    /// The next thing to do; poll until there is none.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Lays the control plane's configuration over the node's own and applies what changed.
    fn merge_settings(&mut self, now: Now) {
        let mut merged = self.local.clone();
        if let Some(remote) = &self.remote {
            let o = &remote.detection;
            merged.mode = o.mode.unwrap_or(merged.mode);
            merged.detection.floor_pps = o.floor_pps.unwrap_or(merged.detection.floor_pps);
            merged.detection.floor_bps = o.floor_bps.unwrap_or(merged.detection.floor_bps);
            // What the API's own checks keep out must not disarm the node either.
            merged.detection.multiplier =
                o.multiplier.filter(|m| (1.1..=100.0).contains(m)).unwrap_or(merged.detection.multiplier);
            merged.response.automatic = o.auto_respond.unwrap_or(merged.response.automatic);
            merged.rules.extend(remote.rules.iter().chain(&remote.tool_rules).cloned());
            merged.thresholds.extend(remote.thresholds.iter().cloned());
        }
        if merged.mode != self.effective.mode {
            self.rules_changed = true;
        }
        // Whom nothing cuts off stands above the rules.
        self.rules_changed |= merged.guard != self.effective.guard;
        let gated = self.gated();
        self.effective = merged;
        // Whether there is a gate at all, and before which of the node's addresses, is a matter of settings.
        self.rules_changed |= self.gated() != gated;
        self.merge_allow();
        self.recheck_rules(now);
        self.recheck_tasks(now);
    }

    /// Everybody's allow entries together.
    pub fn allowlist(&self) -> &[AllowEntry] {
        &self.allow
    }

    fn merge_allow(&mut self) {
        let remote = self.remote.iter().flat_map(|r| &r.allowlist);
        let mut all: Vec<AllowEntry> =
            self.local.allow.iter().chain(remote).chain(&self.operator_allow).cloned().collect();
        for entry in &mut all {
            entry.prefix = entry.prefix.trunc();
        }
        all.sort_by(|a, b| (a.prefix, &a.label).cmp(&(b.prefix, &b.label)));
        all.dedup_by(|later, first| later.prefix == first.prefix);
        if all != self.allow {
            self.allow = all;
            self.rules_changed = true;
        }
    }

    fn next_rule_id(&mut self) -> RuleId {
        let id = RuleId(self.next_rule);
        self.next_rule += 1;
        id
    }

    /// Queues a report.
    fn send(&mut self, incident: &mut Incident, now: Now) {
        self.reports.push_back(incident.report(now));
    }

    fn remember(&mut self, report: IncidentReport) {
        self.recent.retain(|r| r.uuid != report.uuid);
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(report);
    }

    /// Turns what changed into commands: the state to disk, then the rules, then the reports.
    fn finish(&mut self, now: Now) {
        self.forget_expired(now);
        self.expire_tasks(now);
        let act = std::mem::take(&mut self.tasks_changed);
        self.state_changed |= act;
        let enforce = std::mem::take(&mut self.rules_changed);
        let ids: Vec<RuleId> = self.rules.keys().copied().collect();
        if std::mem::take(&mut self.state_changed) || ids != self.persisted {
            self.persisted = ids;
            self.commands.push_back(Command::Persist);
        }
        if enforce {
            self.commands.push_back(Command::Enforce(self.desired()));
        }
        if act {
            self.commands.push_back(Command::Act(self.desired_actions()));
        }
        self.commands.extend(self.reports.drain(..).map(|r| Command::Report(Box::new(r))));
    }

    /// The rules that should be in force.
    pub fn desired(&self) -> RuleSet {
        RuleSet {
            rules: self.rules.clone(),
            allow: self.allow.clone(),
            mode: Some(self.effective.mode),
            gated: self.gated(),
        }
    }
}
