//! One exporter: its datagrams become counters and samples, and these an engine's incidents.
//!
//! Each has an engine of its own, so that a packet which two routers saw is not counted twice, and so that what a router
//! sees is never mixed with what passes this node. That engine has no response and no rules: its traffic is elsewhere.

use std::net::IpAddr;
use std::sync::Arc;

use ftagent_common::abi::Reason;
use ftagent_common::api::{IncidentReport, NodeCommand, NodeConfig};
use ftagent_common::packet::Packet;

use super::config::{ListenerConfig, Protocol};
use super::health::{ExporterStatus, Health};
use super::incident::{self, Witness};
use super::netflow::Netflow;
use super::record::Counts;
use super::sflow;
use super::spread::{Amount, Spread};
use crate::engine::sample::SEC;
use crate::engine::{
    Command, CounterReading, Engine, EngineState, Input, Now, OperatorOrder, OrderOutcome, PacketSample, Payload,
    Settings, ThresholdMode,
};

/// One sample alone moves no rate by more than this part of a threshold.
const SAMPLES_AT_THRESHOLD: u64 = 32;
/// But it is not laid out over more than this, whatever the sampling rate.
const MAX_LEAST_NS: u64 = 60 * SEC;
/// Agents may hold samples back for a second, and write the times of flows in seconds.
const MIN_LEAST_NS: u64 = SEC;
/// Samples that an engine is given at a time; the others of the same moment are counted alone.
const MAX_SAMPLES: usize = 4_096;

/// What the engine of an exporter said.
#[derive(Debug)]
pub(super) enum Said {
    Report(Box<IncidentReport>),
    Ack(ftagent_common::api::CommandAck),
    Answer(OrderOutcome),
}

pub(super) struct Exporter {
    address: IpAddr,
    config: Arc<ListenerConfig>,
    netflow: Netflow,
    spread: Spread,
    engine: Engine,
    pub(super) health: Health,
    waiting: Vec<PacketSample>,
    start_ns: u64,
    is_flows: bool,
}

impl Exporter {
    /// # Errors
    /// When the parser refuses its bounds.
    pub(super) fn new(
        address: IpAddr,
        config: Arc<ListenerConfig>,
        settings: Settings,
        state: Option<(EngineState, bool)>,
        now: Now,
    ) -> Result<Self, netflow_parser::ConfigError> {
        let mut engine = match state {
            Some((state, same_boot)) => Engine::restore(settings, state, now, same_boot),
            None => Engine::new(settings, now),
        };
        // The first reading shows what was before: nothing.
        engine.on(Input::Counters(CounterReading::default()), now);
        Ok(Self {
            address,
            netflow: Netflow::new(config.protocol, config.sampling_rate)?,
            config,
            spread: Spread::default(),
            engine,
            health: Health::default(),
            waiting: Vec::new(),
            start_ns: now.mono_ns,
            is_flows: false,
        })
    }

    /// Takes one datagram.
    pub(super) fn on_datagram(&mut self, bytes: &[u8], floors: Floors, now: Now) {
        self.health.counts.datagrams += 1;
        self.health.counts.bytes += bytes.len() as u64;
        self.health.seen_ns = Some(now.mono_ns);
        self.spread.on_arrival(now.mono_ns);
        let is_sflow = bytes.starts_with(&[0, 0, 0, 5]);
        let is_read = match (self.config.protocol, is_sflow) {
            (Protocol::Auto, _) => true,
            (Protocol::Sflow, is_sflow) => is_sflow,
            (Protocol::Netflow | Protocol::Ipfix, is_sflow) => !is_sflow,
        };
        if !is_read {
            self.health.counts.malformed += 1;
        } else if is_sflow {
            self.on_sflow(bytes, floors, now);
        } else {
            self.on_netflow(bytes, floors, now);
        }
    }

    fn on_sflow(&mut self, bytes: &[u8], floors: Floors, now: Now) {
        let Ok(datagram) = sflow::parse(bytes) else {
            self.health.counts.malformed += 1;
            return;
        };
        self.health.protocol = "sflow5";
        self.is_flows = false;
        self.health.on_sequence((1, datagram.sub_agent), datagram.sequence, Counts::Datagrams, Some(1));
        self.health.counts.skipped += datagram.skipped;
        for sample in datagram.samples {
            let one_in = match sample.one_in {
                0 => self.config.sampling_rate,
                said => said.min(super::config::MAX_SAMPLING_RATE),
            };
            let observed = Observed {
                packet: sample.packet,
                payload: sample.payload,
                packets: one_in.into(),
                bytes: u64::from(sample.wire_len) * u64::from(one_in),
                over_ns: 0,
                age_ns: 0,
                one_in,
                input: sample.input,
                is_egress: sample.is_egress,
            };
            self.observe(&observed, floors, now);
        }
    }

    fn on_netflow(&mut self, bytes: &[u8], floors: Floors, now: Now) {
        let datagram = self.netflow.parse(bytes);
        self.health.counts.malformed += u64::from(datagram.error.is_some());
        for message in datagram.messages {
            self.health.protocol = match message.version {
                5 => "netflow5",
                9 => "netflow9",
                _ => "ipfix",
            };
            self.is_flows = true;
            let stream = (message.version, message.domain);
            self.health.on_sequence(stream, message.sequence, message.counts, message.grows_by);
            self.health.counts.unknown_templates += message.unknown_templates;
            self.health.counts.skipped += message.cut;
            let unix_secs = i64::try_from(message.unix_secs).unwrap_or(i64::MAX);
            self.health.skew_secs = Some(unix_secs.saturating_sub(now.wall.unix_timestamp()));
            for flow in message.flows {
                self.health.longest_ns = self.health.longest_ns.max(flow.over_ns);
                let observed = Observed {
                    packet: flow.packet,
                    payload: Payload::default(),
                    packets: flow.packets,
                    bytes: flow.bytes,
                    over_ns: flow.over_ns.min(u64::from(self.config.active_timeout_secs) * SEC),
                    age_ns: flow.age_ns,
                    one_in: flow.one_in,
                    input: flow.input,
                    is_egress: flow.is_egress,
                };
                self.observe(&observed, floors, now);
            }
        }
    }

    fn observe(&mut self, observed: &Observed, floors: Floors, now: Now) {
        let counts = &mut self.health.counts;
        counts.records += 1;
        self.health.sampling_rate = Some(observed.one_in);
        let inputs = &self.config.input_interfaces;
        if observed.is_egress && !self.config.egress || !inputs.is_empty() && !inputs.contains(&observed.input) {
            counts.other_interfaces += 1;
            return;
        }
        let target = IpAddr::from(observed.packet.dst);
        if observed.packets == 0 || !self.config.prefixes.iter().any(|net| net.contains(&target)) {
            return;
        }
        counts.counted += 1;
        let amount = Amount {
            target,
            class: observed.packet.class,
            packets: observed.packets,
            bytes: observed.bytes,
            over_ns: observed.over_ns,
            age_ns: observed.age_ns,
            least_ns: floors.least_ns(observed.one_in, observed.bytes / observed.packets),
            input: observed.input,
        };
        self.spread.add(&amount, now.mono_ns);
        if self.waiting.len() < MAX_SAMPLES {
            self.waiting.push(PacketSample {
                time_ns: now.mono_ns,
                packet: observed.packet,
                wire_len: u32::try_from(observed.bytes / observed.packets).unwrap_or(u32::MAX),
                one_in: u32::try_from(observed.packets).unwrap_or(u32::MAX),
                reason: Reason::Clean,
                payload: observed.payload,
            });
        }
    }

    /// Lets the engine see what came.
    pub(super) fn on_tick(&mut self, now: Now) -> Vec<Said> {
        if !self.waiting.is_empty() {
            self.engine.on(Input::Samples(std::mem::take(&mut self.waiting)), now);
        }
        let targets = self.spread.reading(now.mono_ns);
        self.engine.on(Input::Counters(CounterReading { targets, ..CounterReading::default() }), now);
        self.said()
    }

    pub(super) fn on_settings(&mut self, settings: Settings, now: Now) -> Vec<Said> {
        self.engine.on(Input::Settings(Box::new(settings)), now);
        self.said()
    }

    pub(super) fn on_remote(&mut self, config: NodeConfig, now: Now) -> Vec<Said> {
        self.engine.on(Input::Remote(Box::new(config)), now);
        self.said()
    }

    pub(super) fn on_order(&mut self, order: OperatorOrder, now: Now) -> Vec<Said> {
        self.engine.on(Input::Operator(order), now);
        self.said()
    }

    pub(super) fn on_command(&mut self, command: NodeCommand, now: Now) -> Vec<Said> {
        self.engine.on(Input::Command(command), now);
        self.said()
    }

    fn said(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        while let Some(command) = self.engine.poll_command() {
            match command {
                Command::Report(mut report) => {
                    self.dress(&mut report);
                    said.push(Said::Report(report));
                }
                Command::Ack(ack) => said.push(Said::Ack(ack)),
                Command::Answer(outcome) => said.push(Said::Answer(outcome)),
                // There are no rules to enforce here, and the state is saved by the clock.
                Command::Enforce(_) | Command::Act(_) | Command::Persist => {}
            }
        }
        said
    }

    fn dress(&self, report: &mut IncidentReport) {
        let target = report.target;
        let witness = Witness {
            exporter: format!("{} ({})", self.address, self.health.protocol),
            sampling_rate: self.health.sampling_rate,
            inputs: self.spread.inputs(|ip| target.contains(&ip)),
            is_flows: self.is_flows,
        };
        incident::dress(report, &witness);
    }

    /// Its incidents, active ones first.
    pub(super) fn incidents(&self) -> Vec<IncidentReport> {
        let mut incidents = self.engine.view().incidents;
        incidents.iter_mut().for_each(|report| self.dress(report));
        incidents
    }

    pub(super) fn state(&self) -> EngineState {
        self.engine.state()
    }

    pub(super) fn is_silent(&self, now: Now) -> bool {
        self.health.is_silent(self.config.silent_secs, self.start_ns, now.mono_ns)
    }

    pub(super) fn status(&self, now: Now) -> ExporterStatus {
        let view = self.engine.view();
        let mut counts = self.health.counts;
        counts.unplaced = self.spread.unplaced;
        ExporterStatus {
            address: self.address,
            protocol: self.health.protocol.to_owned(),
            last_seen_secs: self.health.seen_ns.map(|seen| now.mono_ns.saturating_sub(seen) / SEC),
            silent: self.is_silent(now),
            counts,
            sampling_rate: self.health.sampling_rate,
            told_sampling_rates: self.netflow.told_rates(),
            templates: self.netflow.templates() as u64,
            clock_skew_secs: self.health.skew_secs,
            longest_flow_secs: self.health.longest_ns / SEC,
            pps: view.totals.pps,
            bps: view.totals.bps,
            active_incidents: view.active_incidents,
        }
    }
}

/// One sampled packet or flow, from whatever protocol.
struct Observed {
    packet: Packet,
    payload: Payload,
    packets: u64,
    bytes: u64,
    over_ns: u64,
    age_ns: u64,
    one_in: u32,
    input: u32,
    is_egress: bool,
}

/// The lowest thresholds: what one sample's weight is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Floors {
    pub(super) pps: u64,
    pub(super) bps: u64,
}

impl Floors {
    pub(super) fn of(settings: &Settings, remote: Option<&NodeConfig>) -> Self {
        let detection = &settings.detection;
        let remote = remote.map(|r| &r.detection);
        let floors = Self {
            pps: remote.and_then(|r| r.floor_pps).unwrap_or(detection.floor_pps),
            bps: remote.and_then(|r| r.floor_bps).unwrap_or(detection.floor_bps),
        };
        match detection.threshold {
            ThresholdMode::Static { pps, bps } => Self { pps, bps },
            ThresholdMode::Dynamic => floors,
        }
    }

    /// Over how much time one sample that stands for `one_in` packets of `bytes` is laid out at least.
    pub(super) fn least_ns(self, one_in: u32, bytes: u64) -> u64 {
        let weight = u128::from(one_in) * u128::from(SAMPLES_AT_THRESHOLD) * u128::from(SEC);
        let by_packets = weight / u128::from(self.pps.max(1));
        let bits = u128::from(bytes).saturating_mul(8);
        let by_bits = weight.saturating_mul(bits) / u128::from(self.bps.max(1));
        u64::try_from(by_packets.max(by_bits)).unwrap_or(u64::MAX).clamp(MIN_LEAST_NS, MAX_LEAST_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sample_is_a_small_part_of_a_threshold() {
        let floors = Floors { pps: 10_000, bps: 50_000_000 };
        // (one in, bytes, seconds)
        for (one_in, bytes, secs) in [(1, 64, 1.0), (1_000, 64, 3.2), (1_000, 1_500, 7.68), (10_000, 64, 32.0)] {
            let least = floors.least_ns(one_in, bytes) as f64 / SEC as f64;
            assert!((least - secs).abs() < 0.01, "1 in {one_in} of {bytes}: {least}");
        }
        assert_eq!(floors.least_ns(u32::MAX, u64::MAX), MAX_LEAST_NS);
    }
}
