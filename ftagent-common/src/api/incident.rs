//! An incident as the agent reports it: the whole of it each time, so that the last message is enough.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::RuleExecution;
use crate::vocab::{AttackFamily, IncidentStatus, Severity};

/// One attack on one target, as one node saw it up to `revision`.
///
/// Reports of one incident carry growing revisions; a receiver keeps the highest and ignores the rest, so that
/// repeats and reordering are harmless.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IncidentReport {
    pub uuid: Uuid,
    pub revision: u32,
    pub status: IncidentStatus,
    /// The attacked address or, in carpet bombing, prefix.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub target: IpNet,
    pub family: AttackFamily,
    /// Names what the family leaves open, such as `xmas` or `slow_rate`.
    #[serde(default)]
    pub subtype: Option<String>,
    /// The parts of a mixture with their shares of packets, largest first; one entry otherwise.
    #[serde(default)]
    pub vectors: Vec<VectorShare>,
    pub severity: Severity,
    /// 0 to 1.
    pub confidence: f64,
    /// The sources are judged forged.
    pub spoofed: bool,
    #[serde(default)]
    pub carpet_bombing: bool,
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub updated_at: OffsetDateTime,
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub resolved_at: Option<OffsetDateTime>,
    /// Packets and bits per second, dropped ones included.
    pub peak_pps: u64,
    pub peak_bps: u64,
    pub current_pps: u64,
    pub current_bps: u64,
    pub threshold: ThresholdReport,
    /// Packets towards the target since the opening, and how many of them were dropped.
    pub packets: u64,
    pub dropped_packets: u64,
    /// Number of attacking sources, estimated from samples.
    pub source_count: u64,
    /// Most distinct sources of anything towards the target in about a second, attackers or not: the kernel's estimate
    /// over all packets, with a standard error of 10 %. Packets that blocks and lists dropped are not in it. Absent where
    /// nothing was estimated.
    #[serde(default)]
    pub distinct_sources: Option<u64>,
    #[serde(default)]
    pub top_sources: Vec<SourceShare>,
    #[serde(default)]
    pub top_src_ports: Vec<PortShare>,
    #[serde(default)]
    pub top_dst_ports: Vec<PortShare>,
    /// Packets by traffic class, largest first.
    #[serde(default)]
    pub protocols: Vec<ClassShare>,
    #[serde(default)]
    pub signature: Option<Signature>,
    /// Which counter, which baseline, which families were considered and why they were rejected; for people.
    #[serde(default)]
    pub explanation: Vec<String>,
    #[serde(default)]
    pub timeline: Vec<TimelineEntry>,
    /// What was done about it, and undone.
    #[serde(default)]
    pub executions: Vec<RuleExecution>,
}

/// One part of an attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VectorShare {
    pub family: AttackFamily,
    /// Share of the attack's packets, 0 to 1.
    pub share: f64,
}

/// The quantity that was exceeded, and by what it was judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ThresholdReport {
    /// Such as `pps`, `bps`, `tcp_syn_pps`.
    pub quantity: String,
    pub value: u64,
    /// `host`, `static`, `floor` or `baseline`.
    pub origin: String,
    /// The normal rate of the same quantity, where one was learnt.
    #[serde(default)]
    pub baseline: Option<u64>,
    /// Peak over threshold.
    pub ratio: f64,
}

/// A source and its part of the sampled packets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SourceShare {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ip: IpAddr,
    /// Packets per second, estimated.
    pub pps: u64,
    pub share: f64,
}

/// A port and its part of the sampled packets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PortShare {
    pub port: u16,
    pub share: f64,
}

/// A traffic class and its part of the counted packets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClassShare {
    pub class: crate::vocab::TrafficClass,
    pub packets: u64,
    pub share: f64,
}

/// Something that happened in an incident's life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TimelineEntry {
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub at: OffsetDateTime,
    /// `opened`, `updated`, `mitigated`, `refused`, `undone`, `resolved`, `reopened`, `narrowed`, `note`.
    pub kind: String,
    pub text: String,
}

/// The narrowest filter that covers the attack, in FlowSpec's terms (RFC 8955 section 4); absent parts match all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Signature {
    /// IP protocol number.
    #[serde(default)]
    pub protocol: Option<u8>,
    /// Inclusive ranges.
    #[serde(default)]
    pub src_port: Option<[u16; 2]>,
    #[serde(default)]
    pub dst_port: Option<[u16; 2]>,
    /// Length of the IP datagram in bytes, inclusive.
    #[serde(default)]
    pub length: Option<[u16; 2]>,
    #[serde(default)]
    pub ttl: Option<[u8; 2]>,
    /// `[mask, value]` of the TCP flags.
    #[serde(default)]
    pub tcp_flags: Option<[u8; 2]>,
    /// Whether any fragment, or only whole datagrams, match.
    #[serde(default)]
    pub fragment: Option<bool>,
    /// Measured share of the attack that it covers, 0 to 1.
    pub coverage: f64,
    /// Measured share of the traffic before the attack that it would have hit, 0 to 1.
    pub collateral: f64,
}
