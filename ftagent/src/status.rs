//! What `ftagent status` shows: the truth about every part, as the daemon knows it at this moment.

use std::collections::BTreeMap;

use ftagent_common::abi::{Counter, InterfaceCounters, Reason};
use ftagent_common::api::{InterfaceReport, MapReport, NodeMeans};
use ftagent_common::vocab::{Mode, TrafficClass};
use serde::{Deserialize, Serialize};

use crate::actions::ToolStatus;
use crate::crowdsec::CrowdsecStatus;
use crate::enforce::gate::GateReport;
use crate::enforce::ladder::Chosen;
use crate::engine::{EngineView, Matches, Origin, RuleId, Session, Verdict};
use crate::flows::ListenerStatus;
use crate::lists::ListStatus;
use crate::pcap::CapturesStatus;
use crate::profile::ProfileStatus;
use crate::sync::LinkStatus;
use crate::weblog::LogStatus;
use crate::xdp::program::Attached;

/// The daemon and everything below it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub name: String,
    pub uptime_secs: u64,
    pub kernel: String,
    pub mode: Mode,
    pub ready: bool,
    pub interfaces: Vec<InterfaceReport>,
    /// By interface and reason; counted since the maps were made.
    pub verdicts: BTreeMap<String, BTreeMap<String, Count>>,
    /// By interface and traffic class.
    pub classes: BTreeMap<String, BTreeMap<String, PassedDropped>>,
    pub maps: Vec<MapReport>,
    pub health: BTreeMap<String, u64>,
    /// Absent where the agent works alone.
    pub link: Option<LinkReport>,
    /// Reflectors and the TCP gate.
    #[serde(default)]
    pub gate: Option<GateReport>,
    /// Microseconds that the last ticks took, from reading the counters to the last command.
    pub tick_us: TickReport,
    /// Lists of the configuration, in its order.
    #[serde(default)]
    pub lists: Vec<ListStatus>,
    /// Absent where no decisions of CrowdSec are asked for.
    #[serde(default)]
    pub crowdsec: Option<CrowdsecStatus>,
    /// Access logs and looks at connections.
    #[serde(default)]
    pub http: HttpReport,
    /// Absent where there are to be no captures; `ftagent captures` lists them.
    #[serde(default)]
    pub captures: Option<CapturesStatus>,
    /// Sockets for sFlow, NetFlow and IPFIX, with how each exporter does.
    #[serde(default)]
    pub flow_exporters: Vec<ListenerStatus>,
    /// Other tools that actions were asked of.
    #[serde(default)]
    pub tools: Vec<ToolStatus>,
    /// On what it depends how actions are done here.
    #[serde(default)]
    pub means: NodeMeans,
    /// What the programs go without.
    #[serde(default)]
    pub datapath: DatapathReport,
    /// Operators who are connected, whom nothing automated cuts off.
    #[serde(default)]
    pub sessions: Vec<Session>,
    /// The attack profile on this node, if there is one.
    #[serde(default)]
    pub profile: Option<ProfileStatus>,
    /// What needs an operator's look.
    pub warnings: Vec<String>,
    pub engine: EngineView,
}

/// What is seen of web servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpReport {
    pub logs: Vec<LogStatus>,
    /// Connections that the last look saw; absent while there are too few to look.
    pub connections: Option<u64>,
}

/// What is not in the path, by the operator's will or for want of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathReport {
    /// Stages that `datapath.without` leaves out.
    pub left_out: Vec<String>,
    /// What this kernel lacks, and what is done instead.
    pub lacking: Vec<String>,
    /// What carries the rules of interfaces without a program, and what is lost by it; absent where each has one.
    #[serde(default)]
    pub fallback: Option<Chosen>,
}

/// Frames and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

impl From<Counter> for Count {
    fn from(counter: Counter) -> Self {
        Self { packets: counter.packets, bytes: counter.bytes }
    }
}

/// What passed and what did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedDropped {
    pub passed: Count,
    pub dropped: Count,
}

/// The link to the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    pub url: String,
    #[serde(flatten)]
    pub status: LinkStatus,
}

/// How long ticks take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TickReport {
    pub last: u64,
    pub max: u64,
}

/// A rule that should be in force, and what it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleStatus {
    pub id: RuleId,
    pub matches: Matches,
    /// Sources of it beside that of `matches`.
    #[serde(default)]
    pub more_sources: usize,
    pub verdict: Verdict,
    /// Whether it only counts and samples what it would do.
    #[serde(default)]
    pub evaluate: bool,
    pub origin: Origin,
    pub point: crate::engine::Point,
    pub expires_in_secs: Option<u64>,
    pub packets: u64,
    pub bytes: u64,
    /// `CLOCK_MONOTONIC` of the first frame that it judged, at the resolution of the kernel's tick.
    pub first_hit_mono_ns: Option<u64>,
}

/// A device as heartbeat and status show it, with the interfaces that it `serves`.
pub fn interface(attached: &Attached, serves: Vec<String>) -> InterfaceReport {
    InterfaceReport {
        name: attached.interface.clone(),
        serves,
        mode: attached.mode,
        program: attached.program.to_owned(),
        reason: attached.reason.clone(),
        link_id: attached.link_id,
        program_id: attached.program_id,
    }
}

/// The verdicts of one interface; reasons that no frame met are left out.
pub fn verdicts(counters: &InterfaceCounters) -> BTreeMap<String, Count> {
    let all = Reason::ALL.iter().map(|r| (r, counters.reasons[r.index()])).filter(|(_, c)| c.packets > 0);
    all.map(|(reason, counter)| (reason.as_str().to_owned(), counter.into())).collect()
}

/// The classes of one interface; those that no frame was of are left out.
pub fn classes(counters: &InterfaceCounters) -> BTreeMap<String, PassedDropped> {
    let all = TrafficClass::ALL.iter().map(|c| (c, counters.classes[c.index()]));
    let seen = all.filter(|(_, flow)| flow.total().packets > 0);
    seen.map(|(class, flow)| {
        (class.as_str().to_owned(), PassedDropped { passed: flow.passed.into(), dropped: flow.dropped.into() })
    })
    .collect()
}
