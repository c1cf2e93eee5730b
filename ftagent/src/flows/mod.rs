//! sFlow v5, NetFlow v5 and v9, and IPFIX: routers that cannot run the agent tell it what they see.
//!
//! ```text
//! UDP socket ──> Exporter: sflow | netflow ──> spread (counters) ─┐
//!   (worker)                              └──> samples ───────────┴─> an engine of its own ──> reports
//! ```
//!
//! `Flows` is PURE: datagrams and times in, reports and status out. `worker` has the sockets and the thread, so that no
//! exporter delays the datapath's loop. What exporters tell never makes a rule: their traffic does not pass this node.

mod config;
mod exporter;
mod fields;
mod health;
mod incident;
mod netflow;
mod packet;
mod record;
mod sflow;
mod spread;
mod worker;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ftagent_common::api::{IncidentReport, NodeCommand, NodeConfig};
use uuid::Uuid;

pub use config::{ListenerConfig, RawFlowExporter, check_flow_exporters};
use exporter::{Exporter, Floors, Said};
pub use health::{ExporterCounts, ExporterStatus, ListenerStatus};
pub use worker::{Event, FlowOrder, ListenError, Worker, WorkerHandle};

use crate::engine::{EngineState, Now, OperatorOrder, Settings};

/// Exporters of all sockets together; each has an engine, so they are not for nothing.
const MAX_EXPORTERS: usize = 64;

/// What is saved of one exporter.
pub(crate) type SavedExporters = BTreeMap<String, EngineState>;

/// All exporters at one moment.
#[derive(Clone, Debug, Default)]
pub struct FlowsStatus {
    pub listeners: Vec<ListenerStatus>,
    /// Incidents of all exporters.
    pub incidents: Vec<IncidentReport>,
}

impl FlowsStatus {
    /// Whether an exporter saw this incident.
    pub fn has_incident(&self, uuid: Uuid) -> bool {
        self.incidents.iter().any(|report| report.uuid == uuid)
    }

    /// How many attacks go on.
    pub fn active_incidents(&self) -> u32 {
        let exporters = self.listeners.iter().flat_map(|listener| &listener.exporters);
        exporters.fold(0, |sum, exporter| sum.saturating_add(exporter.active_incidents))
    }

    /// What an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let exporters = self.listeners.iter().flat_map(|l| l.exporters.iter().map(move |e| (l.listen, e)));
        exporters.flat_map(|(listen, exporter)| warnings(listen, exporter)).collect()
    }
}

fn warnings(listen: SocketAddr, exporter: &ExporterStatus) -> Vec<String> {
    let name = format!("exporter {} at {listen}", exporter.address);
    let mut warnings = Vec::new();
    match (exporter.silent, exporter.last_seen_secs) {
        (true, Some(secs)) => {
            warnings.push(format!("{name}: silent for {secs} s, nothing is seen of its traffic"));
        }
        (true, None) => warnings.push(format!("{name}: never sent anything, nothing is seen of its traffic")),
        (false, _) => {}
    }
    // Where there are none, either it sends no flows or their template is still to come.
    if exporter.counts.unknown_templates > 0 && exporter.templates == 0 {
        warnings.push(format!("{name}: no template yet, its records cannot be read"));
    }
    if let Some(skew) = exporter.clock_skew_secs.filter(|skew| skew.unsigned_abs() > 60) {
        warnings.push(format!("{name}: its clock is {skew} s from ours"));
    }
    if exporter.longest_flow_secs > 300 {
        warnings.push(format!(
            "{name}: flow records of up to {} s, an attack in a flow shows only then: set its active timeout to 60 s",
            exporter.longest_flow_secs
        ));
    }
    warnings
}

/// What comes of an input.
#[derive(Debug, Default)]
struct Outcome {
    said: Vec<Said>,
}

/// Everything that is known of exporters.
struct Flows {
    listeners: Vec<Arc<ListenerConfig>>,
    refused: Vec<u64>,
    exporters: BTreeMap<(usize, IpAddr), Exporter>,
    settings: Settings,
    remote: Option<NodeConfig>,
    floors: Floors,
    saved: SavedExporters,
    same_boot: bool,
    silent: BTreeSet<(usize, IpAddr)>,
}

impl Flows {
    /// `saved` is what was known before a restart, and `same_boot` whether the machine ran on meanwhile.
    fn new(
        listeners: Vec<ListenerConfig>,
        settings: &Settings,
        saved: SavedExporters,
        same_boot: bool,
        now: Now,
    ) -> Self {
        let mut flows = Self {
            refused: vec![0; listeners.len()],
            listeners: listeners.into_iter().map(Arc::new).collect(),
            exporters: BTreeMap::new(),
            settings: observing(settings),
            remote: None,
            floors: Floors::of(settings, None),
            saved,
            same_boot,
            silent: BTreeSet::new(),
        };
        let expected: Vec<(usize, IpAddr)> =
            flows.listeners.iter().enumerate().flat_map(|(n, l)| l.expected().map(move |ip| (n, ip))).collect();
        for key in expected {
            flows.know(key, now);
        }
        flows
    }

    /// Makes room for an exporter; whether there is one.
    fn know(&mut self, key: (usize, IpAddr), now: Now) -> bool {
        if self.exporters.contains_key(&key) {
            return true;
        }
        let Some(config) = self.listeners.get(key.0).filter(|_| self.exporters.len() < MAX_EXPORTERS) else {
            return false;
        };
        let state = self.saved.remove(&name(config.listen, key.1)).map(|state| (state, self.same_boot));
        let Ok(mut exporter) = Exporter::new(key.1, Arc::clone(config), self.settings.clone(), state, now) else {
            return false;
        };
        if let Some(remote) = &self.remote {
            // What it says comes with the next tick.
            drop(exporter.on_remote(remote.clone(), now));
        }
        self.exporters.insert(key, exporter);
        true
    }

    /// Takes a datagram that came to one of the sockets.
    fn on_datagram(&mut self, listener: usize, from: IpAddr, bytes: &[u8], now: Now) {
        let from = from.to_canonical();
        let is_allowed = self.listeners.get(listener).is_some_and(|config| config.is_allowed(from));
        if !is_allowed || !self.know((listener, from), now) {
            if let Some(refused) = self.refused.get_mut(listener) {
                *refused = refused.saturating_add(1);
            }
            return;
        }
        if let Some(exporter) = self.exporters.get_mut(&(listener, from)) {
            exporter.on_datagram(bytes, self.floors, now);
        }
    }

    fn on_tick(&mut self, now: Now) -> Outcome {
        self.each(|exporter| exporter.on_tick(now))
    }

    fn on_settings(&mut self, settings: &Settings, now: Now) -> Outcome {
        self.settings = observing(settings);
        self.floors = Floors::of(&self.settings, self.remote.as_ref());
        let settings = self.settings.clone();
        self.each(|exporter| exporter.on_settings(settings.clone(), now))
    }

    fn on_remote(&mut self, mut config: NodeConfig, now: Now) -> Outcome {
        // Rules would be fired, and their blocks claimed, where no packet of these attacks passes.
        config.rules.clear();
        config.tool_rules.clear();
        config.detection.auto_respond = Some(false);
        self.floors = Floors::of(&self.settings, Some(&config));
        self.remote = Some(config.clone());
        self.each(|exporter| exporter.on_remote(config.clone(), now))
    }

    /// Gives an order about an incident to the exporter whose incident it is.
    fn on_order(&mut self, incident: Uuid, order: &OperatorOrder, now: Now) -> Outcome {
        let said = self.whose(incident).map(|exporter| exporter.on_order(order.clone(), now));
        Outcome { said: said.unwrap_or_default() }
    }

    fn on_command(&mut self, incident: Uuid, command: &NodeCommand, now: Now) -> Outcome {
        let said = self.whose(incident).map(|exporter| exporter.on_command(command.clone(), now));
        Outcome { said: said.unwrap_or_default() }
    }

    fn whose(&mut self, incident: Uuid) -> Option<&mut Exporter> {
        self.exporters.values_mut().find(|e| e.incidents().iter().any(|report| report.uuid == incident))
    }

    fn each(&mut self, mut tell: impl FnMut(&mut Exporter) -> Vec<Said>) -> Outcome {
        Outcome { said: self.exporters.values_mut().flat_map(&mut tell).collect() }
    }

    /// Exporters that fell silent or spoke again since the last call: name, and whether it is silent now.
    fn changes_of_silence(&mut self, now: Now) -> Vec<(String, bool)> {
        let silent: BTreeSet<(usize, IpAddr)> =
            self.exporters.iter().filter(|(_, e)| e.is_silent(now)).map(|(key, _)| *key).collect();
        let before = std::mem::replace(&mut self.silent, silent);
        before.symmetric_difference(&self.silent).map(|key| (key.1.to_string(), self.silent.contains(key))).collect()
    }

    fn status(&self, now: Now) -> FlowsStatus {
        let of = |listener: usize| {
            let exporters = self.exporters.range((listener, IpAddr::from([0; 4]))..);
            exporters.take_while(move |((n, _), _)| *n == listener).map(|(_, exporter)| exporter.status(now)).collect()
        };
        let listeners =
            self.listeners.iter().zip(&self.refused).enumerate().map(|(n, (config, refused))| ListenerStatus {
                listen: config.listen,
                protocol: config.protocol.as_str().to_owned(),
                refused: *refused,
                exporters: of(n),
            });
        FlowsStatus {
            listeners: listeners.collect(),
            incidents: self.exporters.values().flat_map(Exporter::incidents).collect(),
        }
    }

    /// What should survive a restart.
    fn state(&self) -> SavedExporters {
        let states = self.exporters.iter().filter_map(|((listener, address), exporter)| {
            Some((name(self.listeners.get(*listener)?.listen, *address), exporter.state()))
        });
        states.collect()
    }
}

fn name(listen: SocketAddr, exporter: IpAddr) -> String {
    format!("{listen} {exporter}")
}

/// The node's settings for engines that only watch.
fn observing(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    settings.response.automatic = false;
    settings.response.gate = false;
    settings.rules = Vec::new();
    settings
}
