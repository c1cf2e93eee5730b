//! The one loop: inputs to the engine, its commands to those who carry them out. The only file that knows everybody.
//!
//! ```text
//! every tick: ring of samples, counters ─┐                      ┌─> datapath (at once)
//! control socket, link, host changes ────┼─> Engine ─> Commands ┼─> state file ─> nftables (one worker, in order)
//! results of nftables, of other tools ────┘                      ├─> other tools, a thread each
//!                                                                └─> link (spool on disk), answers
//! lists' files ─> tables, in a thread that waits
//! decisions of CrowdSec, from a thread that asks for them ─> the same tables
//! routers' datagrams ─> engines of their own, in a thread ─> reports
//! ```

mod attach;
mod captures;
mod crowdsec;
mod flows;
mod lists;
mod profiles;
mod report;
mod sessions;
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ftagent_common::abi::{Flow, InterfaceCounters, TargetCounters};
use ftagent_common::api::{AckStatus, CommandAck, DeployRequest, IncidentReport, MetricsSample};
use ftagent_common::vocab::AttackFamily;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use crate::actions::Actions;
use crate::clock;
use crate::config::Config;
use crate::control::{Answer, Asked, Control, Question};
use crate::enforce::datapath::Datapath;
use crate::enforce::gate::Gate;
use crate::enforce::worker::{Worker, WorkerHandle};
use crate::engine::{
    Acted, Command, CounterReading, EnforceResult, Engine, EngineState, Input, Now, OrderOutcome, RuleId, Settings,
};
use crate::ground::Host;
use crate::metrics::{Endpoint, Snapshot, TOP_TARGETS, TickTimes};
use crate::pcap::Captures;
use crate::persist::{self, Loaded, StateLock};
use crate::profile::Profiles;
use crate::status::TickReport;
use crate::sync::spool::Limits;
use crate::sync::{Incoming, Link, LinkConfig, LinkStatus, Outgoing, Timing};
use crate::xdp::counters;
use crate::xdp::maps::Maps;
use crate::xdp::pins::Pins;
use crate::xdp::program::{self, Attached};
use crate::xdp::samples::Samples;
use attach::Attachment;
use crowdsec::Crowdsec;
use flows::Exporters;
use lists::{Done, LISTED_IN, Lists};
use web::Web;

/// Between two looks whether the maps are as they should be.
const REPAIR: Duration = Duration::from_secs(10);
/// For the first trial of how the kernel limits an interface, which began when the agent did.
const TRIAL_PATIENCE: Duration = Duration::from_secs(2);
/// Between two saves of what changed without anybody asking, such as baselines.
const SAVE: Duration = Duration::from_secs(30);
/// What the link may take to deliver when the agent stops.
const GRACE: Duration = Duration::from_secs(2);

/// Everything that the loop owns.
struct Daemon {
    config: Config,
    started_mono_ns: u64,
    kernel: String,
    engine: Engine,
    datapath: Datapath,
    samples: Samples,
    attached: Vec<Attached>,
    attachment: Attachment,
    host: Host,
    lists: Lists,
    crowdsec: Crowdsec,
    web: Web,
    sessions: sessions::Watch,
    /// Absent where `pcap.enabled` is false.
    captures: Option<Captures>,
    flows: Exporters,
    profiles: Profiles,
    worker: WorkerHandle,
    /// Other tools.
    actions: Actions,
    link: Option<Link>,
    link_status: Option<watch::Receiver<LinkStatus>>,
    /// The engine's answer to the order that is being carried out.
    outcome: Option<OrderOutcome>,
    /// Acknowledgements that wait until what they acknowledge is in the kernel.
    acks: Vec<CommandAck>,
    /// Frames and bytes at the last tick and at the last metrics sample.
    last_tick: (u64, u64),
    /// Frames at the last look whether the maps are as they should be.
    seen_at_repair: u64,
    last_reading: Option<CounterReading>,
    last_sample: (u64, MetricsCounters),
    tick: TickReport,
    tick_times: TickTimes,
    /// The busiest targets at the last tick.
    busiest: Vec<(IpAddr, Flow)>,
    /// Incidents opened since the start, by the family they were first reported with.
    opened: BTreeMap<AttackFamily, u64>,
    rules_failed: u64,
    /// Rules without room in the maps, as the worker knows them.
    overflow: BTreeSet<RuleId>,
    snapshots: watch::Sender<Snapshot>,
    warnings: Vec<String>,
}

/// The sums that a metrics sample is the difference of.
#[derive(Clone, Copy, Default)]
struct MetricsCounters {
    packets: u64,
    bytes: u64,
    dropped: u64,
    tcp: u64,
    udp: u64,
    icmp: u64,
}

/// Runs the agent until a signal ends it. Enforcement stays attached when it ends.
///
/// # Errors
/// What keeps the agent from starting, with the remedy; nothing is left half done.
pub async fn run(config: Config) -> Result<()> {
    let started = clock::now();
    if !nix::unistd::geteuid().is_root() {
        warn!("not root: loading programs needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
    }
    persist::make_dir(&config.state_dir)?;
    let _lock = StateLock::take(&config.state_dir)?;
    let boot = boot_id();

    let mut host = Host::watch(&config, &boot).await?;
    // Beside the loading of the datapath, which takes longer.
    host.try_police(&config.state_dir, &boot);
    let sessions = sessions::Watch::start(&mut host);
    let settings = host.settings(&config.settings);
    let (engine, mut warnings) = start_engine(&config, settings, started, &boot)?;

    let pins = Pins::below(&config.bpffs)?;
    let links = host.facts().map(|facts| facts.interfaces.clone()).unwrap_or_default();
    let attachment = Attachment::plan(&config, &links, pins.clone())?;
    let needed = program::memory(&config.datapath.sizes)?;
    if needed > config.datapath.max_memory_bytes {
        bail!(
            "the maps would take {needed} bytes and datapath.max_memory_bytes is {}: raise it, or lower datapath.max_*",
            config.datapath.max_memory_bytes
        );
    }
    let has_attached = pins.has_attached();
    let loaded = attachment.load(&config)?;
    for name in &loaded.resized {
        warnings.push(format!("map {name} was made anew: its size or layout changed, its counters began at 0"));
    }
    let maps = Maps::open(&pins.maps())?;
    let mut ground = host.ground(&config).datapath();
    if config.lists.is_empty() && config.crowdsec.is_none() {
        // What an earlier configuration loaded goes; while there are lists, it stays until these are loaded.
        ground.lists = Some(Arc::default());
    }
    let mut datapath = Datapath::adopt(maps, config.datapath.clone(), config.dead_man_secs, ground)?;
    datapath.gate = Some(Gate::open(&pins.maps(), config.datapath.gate.clone(), &config.state_dir)?);

    let (worker, worker_handle, mut worker_results) =
        Worker::new(config.state_dir.join("engine.json"), boot.clone(), config.fallback.clone());
    let (actions, mut acted) = Actions::open(&config.state_dir, &boot, &config.name, config.clouds.clone());
    let samples = Samples::open(&pins.maps()).context("the ring of samples")?;
    let profiles = profiles::start(&config, &host, &engine, &boot)?;
    let mut daemon = Daemon {
        started_mono_ns: started.mono_ns,
        kernel: kernel(),
        engine,
        datapath,
        samples,
        attached: Vec::new(),
        attachment,
        host,
        // While a list is refreshed its old table and its new one are there.
        lists: Lists::new(config.lists.clone(), (config.datapath.max_memory_bytes - needed) / 2),
        crowdsec: Crowdsec::default(),
        web: Web::default(),
        sessions,
        captures: captures::start(&config)?,
        flows: Exporters::default(),
        profiles,
        worker: worker_handle,
        actions,
        link: None,
        link_status: None,
        outcome: None,
        acks: Vec::new(),
        last_tick: (0, 0),
        seen_at_repair: 0,
        last_reading: None,
        last_sample: (started.mono_ns, MetricsCounters::default()),
        tick: TickReport::default(),
        tick_times: TickTimes::default(),
        busiest: Vec::new(),
        opened: BTreeMap::new(),
        rules_failed: 0,
        overflow: BTreeSet::new(),
        snapshots: watch::Sender::new(Snapshot::default()),
        warnings,
        config,
    };
    daemon.start_crowdsec()?;
    if has_attached && !pins.are_in_use(&LISTED_IN) {
        daemon.await_lists().await;
    }
    // What the engine remembers goes into the maps before any program runs on them.
    daemon.carry_out();
    // The same again, for an engine that had nothing to say, and to read what was written.
    let results = daemon.datapath.repair(clock::mono_ns())?;
    daemon.note_failures(&results);
    daemon.engine.on(Input::Enforced(results), clock::now());
    daemon.carry_out();
    // Everything that may refuse to start comes before the interfaces are touched.
    let (questions, mut asked) = mpsc::channel(16);
    let control = Control::listen(&daemon.config.socket())
        .with_context(|| format!("control socket {}", daemon.config.socket().display()))?;
    let control = tokio::spawn(control.serve(questions));
    daemon.start_link().await?;
    daemon.look_at_web();
    let settings = daemon.host.settings(&daemon.config.settings);
    daemon.flows = Exporters::start(&daemon.config, &settings, &daemon.config.state_dir, &boot)?;
    if let Some(remote) = daemon.engine.state().remote {
        daemon.flows.set_remote(&remote);
    }
    let metrics = match daemon.config.metrics {
        Some(address) => {
            let endpoint = Endpoint::bind(address).await?;
            info!(address = %endpoint.address()?, "metrics");
            Some(tokio::spawn(endpoint.serve(daemon.snapshots.subscribe())))
        }
        None => None,
    };

    let attached = daemon.attachment.attach(loaded, &daemon.config, &links)?;
    daemon.take_attached(attached);
    crate::xdp::info::trim_memory();
    let worker = tokio::task::spawn_blocking(move || worker.run());
    // Ready means that rules are in force, also those that another rung carries for an interface without a program.
    if tokio::time::timeout(report::DISK_PATIENCE, daemon.worker.done()).await.is_err() {
        warn!(seconds = report::DISK_PATIENCE.as_secs(), "the state file or nftables takes long: going on meanwhile");
    }
    daemon.last_sample = (started.mono_ns, daemon.sums().1);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut tick = interval(Duration::from_millis(daemon.config.tick_ms));
    let mut second = interval(Duration::from_secs(1));
    let mut repair = interval(REPAIR);
    let mut save = interval(SAVE);
    if daemon.host.means().police.is_none() {
        // Once in a boot: with a plan that the kernel cannot carry out the first attack's action would fail.
        if tokio::time::timeout(TRIAL_PATIENCE, daemon.host.police_tried()).await.is_err() {
            warn!(seconds = TRIAL_PATIENCE.as_secs(), "how the kernel limits an interface takes long to find out");
        }
        daemon.apply_host();
    }
    println!("ready");
    crate::notify::ready();
    info!(version = env!("CARGO_PKG_VERSION"), "ready");

    loop {
        tokio::select! {
            biased;
            _ = tick.tick() => daemon.on_tick(),
            Some(results) = worker_results.recv() => daemon.on_results(results),
            Some(acted) = acted.recv() => daemon.on_acted(acted),
            Some(asked) = asked.recv() => daemon.on_question(asked),
            Some(incoming) = next(&mut daemon.link) => daemon.on_incoming(incoming),
            changed = daemon.host.changed() => daemon.on_host(changed).await,
            done = daemon.lists.done() => daemon.on_lists(done),
            decided = daemon.crowdsec.decided() => daemon.on_decided(decided),
            seen = daemon.web.seen() => daemon.on_web(seen),
            seen = daemon.sessions.seen() => daemon.on_sessions(seen),
            Some(event) = daemon.flows.next() => daemon.on_flows(event),
            Some(event) = daemon.profiles.next() => daemon.on_profile(event),
            _ = second.tick() => daemon.on_second(),
            _ = repair.tick() => daemon.on_repair(),
            _ = save.tick() => daemon.worker.save(daemon.engine.state()),
            _ = hangup.recv() => daemon.on_reload(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    info!("stopping; enforcement stays attached, `ftagent detach` removes it");
    crate::notify::stopping();
    drop(asked);
    daemon.worker.save(daemon.engine.state());
    let Daemon { worker: handle, link, web, captures, flows, crowdsec, actions, profiles, .. } = daemon;
    // Nothing would take back what other tools hold, or a profile on trial: they go first, whatever becomes of the rest,
    // and the actions come again with the next start. Neither waits for the other.
    let (undone, taken_back) = profiles::beside(|| actions.stop(), profiles::stop(profiles, link.as_ref())).await;
    drop(web);
    drop(handle);
    if let Some(captures) = captures {
        tokio::task::spawn_blocking(|| captures.stop()).await.context("the writer of captures")?;
    }
    flows.stop().await.context("the thread of the flow exporters")?;
    crowdsec.stop().await.context("the thread of CrowdSec's decisions")?;
    worker.await.context("the worker for the state file and nftables")?;
    if let Some(link) = link {
        link.shutdown(GRACE).await;
    }
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    control.await.context("the control socket's task")?;
    undone.and(taken_back)
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The link's next word; never, where the agent works alone.
async fn next(link: &mut Option<Link>) -> Option<Incoming> {
    match link {
        Some(link) => link.incoming.recv().await,
        None => std::future::pending().await,
    }
}

/// Restores the engine from its file, or starts it anew.
fn start_engine(config: &Config, settings: Settings, now: Now, boot: &str) -> Result<(Engine, Vec<String>)> {
    let path = config.state_dir.join("engine.json");
    let mut warnings = Vec::new();
    let engine = match persist::load_json::<SavedState>(&path, now.wall.unix_timestamp())? {
        Loaded::There(saved) => {
            let same_boot = saved.boot == boot;
            info!(
                same_boot,
                rules = saved.state.rules.len(),
                incidents = saved.state.incidents.len(),
                "state restored"
            );
            Engine::restore(settings, saved.state, now, same_boot)
        }
        Loaded::Missing => Engine::new(settings, now),
        Loaded::Corrupt { moved_to, why } => {
            let words = format!("{}: {why}; moved to {}, started anew", path.display(), moved_to.display());
            warn!("{words}");
            warnings.push(words);
            Engine::new(settings, now)
        }
    };
    Ok((engine, warnings))
}

/// The engine's state with the boot in which it is true.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct SavedState {
    pub(crate) boot: String,
    pub(crate) state: EngineState,
}

/// Names this boot of the machine.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

fn kernel() -> String {
    nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default()
}

impl Daemon {
    fn on_tick(&mut self) {
        let began_ns = clock::mono_ns();
        let samples = self.take_samples();
        if !samples.is_empty() {
            self.engine.on(Input::Samples(samples), clock::now());
        }
        // The time of a rate is when its counters were read, not when the tick began.
        let now = clock::now();
        match counters::read(&self.datapath.maps, &self.attached, self.last_reading.as_ref()) {
            Ok(reading) => {
                let pps = self.rate(&reading, now.mono_ns);
                self.datapath.seen = (reading.targets.len() as u64, reading.sources.len() as u64);
                if let Err(error) = self.datapath.heartbeat(pps, now.mono_ns) {
                    error!(%error, "heartbeat");
                }
                self.note_busiest(&reading);
                self.last_reading = Some(reading.clone());
                self.engine.on(Input::Counters(reading), now);
            }
            Err(error) => error!(%error, "counters cannot be read"),
        }
        self.carry_out();
        let took = Duration::from_nanos(clock::mono_ns().saturating_sub(began_ns));
        self.tick_times.record(took);
        self.tick.last = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.tick.max = self.tick.max.max(self.tick.last);
    }

    fn note_busiest(&mut self, reading: &CounterReading) {
        let total = |counters: &TargetCounters| {
            let mut sum = Flow::default();
            counters.classes.iter().for_each(|flow| sum += *flow);
            sum
        };
        self.busiest = reading.targets.iter().map(|(ip, counters)| (*ip, total(counters))).collect();
        self.busiest.sort_by_key(|(_, flow)| std::cmp::Reverse(flow.total().packets));
        self.busiest.truncate(TOP_TARGETS);
    }

    /// Packets per second since the last tick, all interfaces together.
    fn rate(&mut self, reading: &CounterReading, now_ns: u64) -> u64 {
        let packets: u64 = reading.interfaces.iter().map(|(_, c)| sum(c).packets).sum();
        let (then, before) = std::mem::replace(&mut self.last_tick, (now_ns, packets));
        let nanos = now_ns.saturating_sub(then).max(1);
        let grown = u128::from(packets.saturating_sub(before));
        if then == 0 { 0 } else { u64::try_from(grown * 1_000_000_000 / u128::from(nanos)).unwrap_or(u64::MAX) }
    }

    /// Carries out everything that the engine asks for, and returns what the kernel refused.
    fn carry_out(&mut self) -> Vec<String> {
        let mut results = Vec::new();
        let mut failures = Vec::new();
        loop {
            while let Some(command) = self.engine.poll_command() {
                self.carry_out_one(command, &mut results);
            }
            if results.is_empty() {
                break;
            }
            failures.extend(self.note_failures(&results));
            self.engine.on(Input::Enforced(std::mem::take(&mut results)), clock::now());
        }
        for mut ack in std::mem::take(&mut self.acks) {
            if let (AckStatus::Applied, Some(failure)) = (ack.status, failures.first()) {
                ack.status = AckStatus::Failed;
                ack.error = format!("not in the kernel: {failure}");
            }
            self.send(Outgoing::Ack(ack));
        }
        failures
    }

    fn note_failures(&mut self, results: &[EnforceResult]) -> Vec<String> {
        let mut failures = Vec::new();
        for result in results {
            if let Err(error) = &result.result {
                self.rules_failed += 1;
                error!(rule = result.rule.0, %error, "rule failed");
                failures.push(error.clone());
            }
        }
        failures
    }

    fn carry_out_one(&mut self, command: Command, results: &mut Vec<EnforceResult>) {
        match command {
            Command::Persist => self.worker.save(self.engine.state()),
            Command::Enforce(set) => {
                // The maps need no journal: they are read at start, and automatic entries end by themselves.
                results.extend(self.datapath.reconcile(&set, clock::mono_ns()));
                self.crowdsec.set_allow(&set.allow);
                self.worker.enforce(self.host.with_friends(set));
                self.tell_overflow();
            }
            Command::Act(set) => self.actions.act(&set),
            Command::Report(report) => {
                self.capture(&report);
                self.send_report(report);
            }
            Command::Ack(ack) => self.acks.push(ack),
            Command::Answer(outcome) => self.outcome = Some(outcome),
        }
    }

    fn send_report(&mut self, report: Box<IncidentReport>) {
        info!(
            incident = %report.uuid, revision = report.revision, target = %report.target, family = %report.family,
            status = %report.status, severity = %report.severity, confidence = report.confidence,
            peak_pps = report.peak_pps, dropped = report.dropped_packets, "incident"
        );
        if report.revision <= 1 {
            *self.opened.entry(report.family).or_default() += 1;
        }
        self.send(Outgoing::Incident(report));
    }

    fn send(&mut self, message: Outgoing) {
        let Some(link) = &self.link else { return };
        if let Err(error) = link.outgoing.try_send(message) {
            error!(%error, "the link takes no message: its disk is slower than the reports");
        }
    }

    fn on_results(&mut self, results: Vec<EnforceResult>) {
        self.note_failures(&results);
        self.engine.on(Input::Enforced(results), clock::now());
        self.carry_out();
    }

    fn on_acted(&mut self, acted: Vec<Acted>) {
        self.engine.on(Input::Acted(acted), clock::now());
        self.carry_out();
    }

    fn on_incoming(&mut self, incoming: Incoming) {
        let now = clock::now();
        match incoming {
            Incoming::Config(config) => {
                info!(
                    version = config.version,
                    rules = config.rules.len(),
                    allowlist = config.allowlist.len(),
                    "configuration of the control plane"
                );
                self.flows.set_remote(&config);
                self.engine.on(Input::Remote(config), now);
            }
            Incoming::Command(command) if self.flows.take_command(&command) => {}
            Incoming::Command(command) if self.profiles.take_command(&command) => {}
            Incoming::Command(command) => self.engine.on(Input::Command(command), now),
            Incoming::Status(status) => {
                info!(connected = status.connected, error = status.last_error.as_deref(), "control plane");
                if status.connected {
                    self.beat();
                }
            }
        }
        self.carry_out();
    }

    fn on_question(&mut self, mut asked: Asked) {
        if let Question::Order { order } = &asked.question {
            match self.flows.take_order(order, asked.answer) {
                Ok(()) => return,
                Err(answer) => asked.answer = answer,
            }
        }
        let answer = match asked.question {
            Question::Status {} => self.status().and_then(to_value).map(|status| Answer::Status { status }),
            Question::Incidents {} => to_value(self.all_incidents()).map(|incidents| Answer::Incidents { incidents }),
            Question::Captures {} => to_value(self.captures_status()).map(|captures| Answer::Captures { captures }),
            Question::Profile {} => to_value(self.profiles.status()).map(|profile| Answer::Profile { profile }),
            Question::ProfileOrder { order } => return self.order_profile(order, asked.answer),
            Question::Rules {} => to_value(self.rules()).map(|rules| Answer::Rules { rules }),
            Question::Order { order } => {
                self.engine.on(Input::Operator(order), clock::now());
                let failures = self.carry_out();
                match (self.outcome.take(), failures.first()) {
                    (Some(OrderOutcome::Done { .. }), Some(failure)) => {
                        Err(anyhow::anyhow!("the order was taken, but is not in the kernel: {failure}"))
                    }
                    (Some(OrderOutcome::Done { detail }), None) => {
                        let saved = self.worker.save_and_tell(self.engine.state());
                        tokio::spawn(report::answer_when_saved(detail, saved, asked.answer));
                        return;
                    }
                    (Some(outcome), _) => Ok(Answer::Order { outcome }),
                    (None, _) => Err(anyhow::anyhow!("the engine gave no answer")),
                }
            }
        };
        let answer = answer.unwrap_or_else(|error| Answer::Error { message: format!("{error:#}") });
        // Whoever asked may have gone.
        drop(asked.answer.send(answer));
    }

    async fn on_host(&mut self, changed: bool) {
        if !changed {
            warn!("changes of addresses and routes are no longer told: looking every 10 s instead");
        }
        self.host.look().await;
        self.follow_devices();
        self.apply_host();
    }

    /// Tells the gate how the interfaces are attached and where else packets may leave.
    fn tell_gate(&mut self) {
        let around = self.host.around(&self.config, self.attachment.devices());
        if let Some(gate) = &mut self.datapath.gate {
            gate.set_attached(&self.attached, around, clock::mono_ns());
        }
    }

    fn apply_host(&mut self) {
        let now = clock::now();
        let results = self.datapath.set_ground(self.host.ground(&self.config).datapath(), now.mono_ns);
        let settings = self.host.settings(&self.config.settings);
        self.flows.set_settings(&settings);
        self.crowdsec.set_guard(&settings.guard);
        self.engine.on(Input::Settings(Box::new(settings)), now);
        self.on_results(results);
        self.tell_gate();
    }

    fn on_reload(&mut self) {
        match Config::load(&self.config.path) {
            Ok(fresh) => {
                info!(
                    "configuration read again: thresholds, response, rules, lists and clouds take effect; interfaces, sizes, directories and crowdsec need a restart"
                );
                self.config.settings = fresh.settings;
                self.host.set_management(fresh.management.clone());
                self.config.management = fresh.management;
                self.config.protect = fresh.protect;
                self.config.lists = fresh.lists;
                self.config.access_logs = fresh.access_logs;
                self.config.http = fresh.http;
                self.config.clouds = fresh.clouds;
                self.actions.set_clouds(self.config.clouds.clone());
                self.apply_host();
                self.lists.configure(self.config.lists.clone());
                self.look_at_lists();
            }
            Err(error) => error!(%error, "configuration not read again: the old one stays in force"),
        }
    }

    fn on_second(&mut self) {
        let now = clock::now();
        let (_, sums) = self.sums();
        let (then, before) = std::mem::replace(&mut self.last_sample, (now.mono_ns, sums));
        let nanos = now.mono_ns.saturating_sub(then).max(1);
        let per_sec = |after: u64, before: u64| {
            let grown = u128::from(after.saturating_sub(before)) * 1_000_000_000 / u128::from(nanos);
            u64::try_from(grown).unwrap_or(u64::MAX)
        };
        let sample = MetricsSample {
            at: now.wall,
            pps: per_sec(sums.packets, before.packets),
            bps: per_sec(sums.bytes, before.bytes).saturating_mul(8),
            dropped_pps: per_sec(sums.dropped, before.dropped),
            tcp_pps: per_sec(sums.tcp, before.tcp),
            udp_pps: per_sec(sums.udp, before.udp),
            icmp_pps: per_sec(sums.icmp, before.icmp),
            other_pps: per_sec(
                sums.packets.saturating_sub(sums.tcp + sums.udp + sums.icmp),
                before.packets.saturating_sub(before.tcp + before.udp + before.icmp),
            ),
        };
        self.send(Outgoing::Metrics(sample));
        self.look_at_lists();
        self.look_at_web();
        self.look_at_sessions();
        self.tell_profiles();
        if self.actions.has_dead() {
            error!("the thread of a tool failed: another one takes its place");
            self.actions.act(&self.engine.desired_actions());
        }
        self.beat();
        crate::notify::alive();
        if self.snapshots.receiver_count() > 0 {
            self.snapshots.send_replace(self.snapshot());
        }
    }

    fn on_repair(&mut self) {
        let now_ns = clock::mono_ns();
        if let Some(gate) = &mut self.datapath.gate {
            let seen = self.last_tick.1;
            gate.refresh(std::mem::replace(&mut self.seen_at_repair, seen) == seen, now_ns);
        }
        match self.datapath.repair(now_ns) {
            Ok(results) => self.on_results(results),
            Err(error) => error!(%error, "the maps cannot be read"),
        }
        self.tell_overflow();
        self.worker.repair();
    }

    fn look_at_lists(&mut self) {
        let now = clock::now();
        let (config, host) = (&self.config, &self.host);
        let spared = || crate::lists::spared(config, host.facts());
        self.lists.begin(spared, now.mono_ns, now.wall.unix_timestamp_nanos());
    }

    fn on_lists(&mut self, done: Done) {
        if let Some(tables) = self.lists.on_done(done, clock::mono_ns()) {
            let results = self.datapath.set_lists(tables, clock::mono_ns());
            self.on_results(results);
        }
        // The next job, without waiting for the second to end.
        self.look_at_lists();
    }

    async fn start_link(&mut self) -> Result<()> {
        let Some(config) = &self.config.control_plane else { return Ok(()) };
        let link = Link::start(LinkConfig {
            urls: config.urls.clone(),
            ca_file: config.ca_certificate.clone(),
            client: config.client.clone(),
            state_dir: self.config.state_dir.clone(),
            deploy_token: config.deploy_token.clone(),
            deploy: DeployRequest {
                name: self.config.name.clone(),
                ip: self.host.first_address(&self.config).unwrap_or_default(),
                location: self.config.location.clone(),
                os: format!("Linux {}", self.kernel),
                interface: self.config.interfaces.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(","),
            },
            limits: Limits::default(),
            timing: Timing::default(),
            captures: self.uploads_wanted(),
            wall: clock::wall,
        })
        .await
        .context("link to the control plane")?;
        self.link_status = Some(link.status());
        self.link = Some(link);
        Ok(())
    }
}

fn sum(counters: &InterfaceCounters) -> ftagent_common::abi::Counter {
    let mut sum = ftagent_common::abi::Counter::default();
    for counter in &counters.reasons {
        sum += *counter;
    }
    sum
}

fn to_value<T: serde::Serialize>(value: T) -> Result<serde_json::Value> {
    serde_json::to_value(value).context("cannot be written as JSON")
}
