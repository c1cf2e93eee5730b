//! The only way into the engine, and the only way out.

use std::net::IpAddr;

use ftagent_common::abi::{InterfaceCounters, Reason, SourceCounters, TargetCounters};
use ftagent_common::api::{CommandAck, IncidentReport, NodeCommand, NodeConfig};
use ftagent_common::packet::Packet;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::rules::{Matches, RuleId, RuleSet, Verdict};
use super::settings::Settings;
use super::task::{Acted, ActionSet};
use super::web::{ConnectionReading, RequestBatch};

/// The time of an input: both clocks, read together by the caller.
///
/// Every duration and deadline is monotonic; the wall clock goes into reports alone and may jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Nanoseconds of `CLOCK_MONOTONIC`, the clock of expiry times in the kernel.
    pub mono_ns: u64,
    pub wall: OffsetDateTime,
}

/// One read of the kernel's counters; all of them count from the maps' creation and only grow.
#[derive(Clone, Debug, Default)]
pub struct CounterReading {
    pub interfaces: Vec<(String, InterfaceCounters)>,
    /// Destinations inside the protected prefixes, summed over interfaces and CPUs.
    pub targets: Vec<(IpAddr, TargetCounters)>,
    /// Sources that the sketch found heavy.
    pub sources: Vec<(IpAddr, SourceCounters)>,
}

/// A sampled frame that was IP.
#[derive(Clone, Debug)]
pub struct PacketSample {
    pub time_ns: u64,
    pub packet: Packet,
    /// Length of the frame in bytes.
    pub wire_len: u32,
    /// How many frames it stands for.
    pub one_in: u32,
    pub reason: Reason,
    /// The first bytes after the transport header, as many as were sampled; at most [`PAYLOAD_BYTES`].
    pub payload: Payload,
}

/// Payload bytes kept of a sample.
pub const PAYLOAD_BYTES: usize = 32;

/// The beginning of a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Payload {
    pub bytes: [u8; PAYLOAD_BYTES],
    pub len: u8,
}

impl Payload {
    /// The first bytes of `all`.
    pub fn of(all: &[u8]) -> Self {
        let mut payload = Self::default();
        let len = all.len().min(PAYLOAD_BYTES);
        payload.bytes[..len].copy_from_slice(&all[..len]);
        payload.len = u8::try_from(len).unwrap_or(0);
        payload
    }

    /// The bytes that are there.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len).min(PAYLOAD_BYTES)]
    }
}

/// Everything that can wake the engine.
#[derive(Clone, Debug)]
pub enum Input {
    Counters(CounterReading),
    Samples(Vec<PacketSample>),
    /// The node's own configuration, read again.
    Settings(Box<Settings>),
    /// What the control plane wants, whole.
    Remote(Box<NodeConfig>),
    Command(NodeCommand),
    /// An operator at the node.
    Operator(OperatorOrder),
    /// What became of the rules in the last [`Command::Enforce`].
    Enforced(Vec<EnforceResult>),
    /// What other tools did about the last [`Command::Act`].
    Acted(Vec<Acted>),
    /// New lines of access logs.
    Requests(RequestBatch),
    Connections(ConnectionReading),
    /// Packets that each of [`Engine::rules_of_web_floods`](super::Engine::rules_of_web_floods) met so far.
    Hits(Vec<(RuleId, u64)>),
}

/// What an operator can ask for on the node itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum OperatorOrder {
    /// Blocks or limits a source.
    Block {
        source: ipnet::IpNet,
        /// Absent: until it is unblocked.
        ttl_secs: Option<u32>,
        #[serde(default)]
        pps: Option<u64>,
        #[serde(default)]
        bps: Option<u64>,
    },
    /// Lifts blocks and limits of exactly this source, whoever made them.
    Unblock { source: ipnet::IpNet },
    /// Does something to what matches on its way to a target. `matches` does not name the target.
    AddRule {
        target: ipnet::IpNet,
        matches: Matches,
        /// Absent: until it is deleted.
        ttl_secs: Option<u32>,
        verdict: Verdict,
        /// Count and sample what would be done, and do nothing.
        #[serde(default)]
        evaluate: bool,
    },
    /// Takes exactly this rule of a target away, whoever made it.
    DeleteRule { target: ipnet::IpNet, matches: Matches },
    /// Puts a prefix on the node's own allowlist.
    Allow { prefix: ipnet::IpNet, label: String },
    /// Takes it off again.
    Disallow { prefix: ipnet::IpNet },
    /// Ends an incident and undoes what was done.
    Resolve { incident: uuid::Uuid, false_positive: bool },
}

/// The answer to an [`OperatorOrder`], for the one who asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderOutcome {
    Done { detail: String },
    Refused { why: String },
}

/// What became of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnforceResult {
    pub rule: RuleId,
    /// Whether it was to be installed or removed.
    pub installed: bool,
    /// The tool's own words when it failed.
    pub result: Result<(), String>,
    /// When it took effect.
    pub at_mono_ns: u64,
}

/// Everything that the engine can ask for.
#[derive(Clone, Debug)]
pub enum Command {
    /// The whole set that should be in force from now on; the newest one is enough.
    Enforce(RuleSet),
    /// All that should be in force in other tools from now on; the newest one is enough.
    Act(ActionSet),
    /// To the spool, then to the control plane.
    Report(Box<IncidentReport>),
    Ack(CommandAck),
    /// The answer to the operator's last order.
    Answer(OrderOutcome),
    /// [`Engine::state`](super::Engine::state) must reach the disk before what was asked for after it is carried out.
    Persist,
}
