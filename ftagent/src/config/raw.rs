//! What people write in the file, with its defaults; unknown keys are errors.

use std::net::SocketAddr;
use std::path::PathBuf;

use ftagent_common::abi::stage;
use ftagent_common::api::{Action, HostThreshold, Trigger, default_cooldown};
use ftagent_common::vocab::Mode;
use ipnet::IpNet;
use serde::Deserialize;

use super::SynChoice;
use crate::actions::cloud::RawClouds;
use crate::crowdsec::RawCrowdsec;
use crate::enforce::ladder::Rung;
use crate::engine::{Detection, Response};
use crate::flows::RawFlowExporter;
use crate::lists::RawList;
use crate::pcap::config::RawPcap;
use crate::weblog::{RawAccessLog, RawHttp};
use crate::xdp::program::{AttachChoice, MapSizes};

/// The file as people write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(default)]
    pub(super) agent: RawAgent,
    #[serde(default)]
    pub(super) interface: Vec<RawInterface>,
    #[serde(default)]
    pub(super) protect: RawProtect,
    #[serde(default)]
    pub(super) management: RawManagement,
    #[serde(default)]
    pub(super) detection: RawDetection,
    #[serde(default)]
    pub(super) response: RawResponse,
    #[serde(default)]
    pub(super) datapath: RawDatapath,
    pub(super) control_plane: Option<RawControlPlane>,
    pub(super) metrics: Option<RawMetrics>,
    #[serde(default)]
    pub(super) rule: Vec<RawRule>,
    #[serde(default)]
    pub(super) allow: Vec<RawAllow>,
    #[serde(default)]
    pub(super) lists: Vec<RawList>,
    #[serde(default)]
    pub(super) threshold: Vec<HostThreshold>,
    #[serde(default)]
    pub(super) http: RawHttp,
    #[serde(default)]
    pub(super) access_log: Vec<RawAccessLog>,
    #[serde(default)]
    pub(super) pcap: RawPcap,
    #[serde(default)]
    pub(super) flow_exporter: Vec<RawFlowExporter>,
    pub(super) crowdsec: Option<RawCrowdsec>,
    #[serde(default)]
    pub(super) cloud: RawClouds,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAgent {
    pub(super) name: Option<String>,
    pub(super) location: String,
    pub(super) state_dir: PathBuf,
    pub(super) runtime_dir: PathBuf,
    pub(super) bpffs: PathBuf,
    pub(super) tick_ms: u64,
    pub(super) mode: Mode,
    pub(super) dead_man_secs: u64,
}

impl Default for RawAgent {
    fn default() -> Self {
        Self {
            name: None,
            location: String::new(),
            state_dir: "/var/lib/ftagent".into(),
            runtime_dir: "/run/ftagent".into(),
            bpffs: "/sys/fs/bpf".into(),
            tick_ms: 50,
            mode: Mode::Enforce,
            dead_man_secs: 900,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawInterface {
    pub(super) name: String,
    #[serde(default = "auto")]
    pub(super) attach: AttachChoice,
    #[serde(default)]
    pub(super) at_own_device: bool,
}

pub(super) fn auto() -> AttachChoice {
    AttachChoice::Auto
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProtect {
    #[serde(default)]
    pub(super) prefixes: Vec<IpNet>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawManagement {
    #[serde(default)]
    pub(super) sources: Vec<IpNet>,
    #[serde(default)]
    pub(super) ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDetection {
    pub(super) mode: RawThresholdMode,
    pub(super) static_pps: Option<u64>,
    pub(super) static_bps: Option<u64>,
    pub(super) floor_pps: u64,
    pub(super) floor_bps: u64,
    pub(super) multiplier: f64,
    pub(super) window_secs: u32,
    pub(super) learning_secs: u32,
    pub(super) confirm_ms: u32,
    pub(super) hold_down_ms: u32,
    pub(super) carpet_targets: u32,
    pub(super) silent_secs: u32,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawThresholdMode {
    Dynamic,
    Static,
}

impl Default for RawDetection {
    fn default() -> Self {
        let d = Detection::default();
        Self {
            mode: RawThresholdMode::Dynamic,
            static_pps: None,
            static_bps: None,
            floor_pps: d.floor_pps,
            floor_bps: d.floor_bps,
            multiplier: d.multiplier,
            window_secs: d.window_secs,
            learning_secs: d.learning_secs,
            confirm_ms: d.confirm_ms,
            hold_down_ms: d.hold_down_ms,
            carpet_targets: d.carpet_targets,
            silent_secs: d.silent_secs,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawResponse {
    pub(super) automatic: bool,
    pub(super) min_confidence: f64,
    pub(super) ttl_secs: u32,
    pub(super) max_sources: u32,
    pub(super) max_rules: u32,
}

impl Default for RawResponse {
    fn default() -> Self {
        let r = Response::default();
        Self {
            automatic: r.automatic,
            min_confidence: r.min_confidence,
            ttl_secs: r.ttl_secs,
            max_sources: r.max_sources,
            max_rules: r.max_rules,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDatapath {
    pub(super) max_targets: u32,
    pub(super) max_sources: u32,
    pub(super) max_blocks: u32,
    pub(super) max_prefixes: u32,
    pub(super) sample_buffer_bytes: u32,
    pub(super) samples_per_sec: u32,
    pub(super) promote_pps: u32,
    pub(super) source_limit_pps: u64,
    pub(super) not_ip_pps: u64,
    pub(super) pass_malformed: bool,
    pub(super) without: Vec<Stage>,
    pub(super) fallback: Vec<Rung>,
    pub(super) max_memory_bytes: u64,
    pub(super) gate: RawGate,
}

/// `[datapath.gate]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawGate {
    pub(super) reflectors: bool,
    pub(super) reflector_ports: Vec<u16>,
    pub(super) served_ports: Vec<u16>,
    pub(super) syn: SynChoice,
    pub(super) forwarded: bool,
    pub(super) warmup_secs: u64,
}

impl Default for RawGate {
    fn default() -> Self {
        Self {
            reflectors: true,
            reflector_ports: Vec::new(),
            served_ports: Vec::new(),
            syn: SynChoice::Auto,
            forwarded: false,
            warmup_secs: 300,
        }
    }
}

/// A stage of the datapath that can be left out of the programs altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// What no host can have sent is judged like the rest.
    Sanity,
    /// Tunnels are classes of the outer packet.
    Tunnels,
    Lists,
    /// Rules of targets.
    Rules,
    /// Heavy sources are not counted.
    Sources,
    /// Distinct sources of a target are not estimated.
    Distinct,
    /// Without samples the agent detects nothing that needs a packet's contents.
    Samples,
}

impl Stage {
    /// As it is written in the file.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Sanity => "sanity",
            Self::Tunnels => "tunnels",
            Self::Lists => "lists",
            Self::Rules => "rules",
            Self::Sources => "sources",
            Self::Distinct => "distinct",
            Self::Samples => "samples",
        }
    }

    pub(super) const fn bit(self) -> u32 {
        match self {
            Self::Sanity => stage::SANITY,
            Self::Tunnels => stage::TUNNELS,
            Self::Lists => stage::LISTS,
            Self::Rules => stage::SIGNATURES,
            Self::Sources => stage::SOURCES,
            Self::Distinct => stage::DISTINCT,
            Self::Samples => stage::SAMPLES,
        }
    }
}

impl Default for RawDatapath {
    fn default() -> Self {
        let sizes = MapSizes::default();
        Self {
            max_targets: sizes.targets,
            max_sources: sizes.sources,
            max_blocks: sizes.blocks,
            max_prefixes: sizes.prefixes,
            sample_buffer_bytes: sizes.samples,
            samples_per_sec: 10_000,
            promote_pps: 500,
            source_limit_pps: 0,
            not_ip_pps: 1_000,
            without: Vec::new(),
            fallback: Rung::ALL.to_vec(),
            pass_malformed: false,
            max_memory_bytes: 256 << 20,
            gate: RawGate::default(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawControlPlane {
    pub(super) url: Option<String>,
    #[serde(default)]
    pub(super) urls: Vec<String>,
    pub(super) deploy_token: Option<String>,
    pub(super) deploy_token_file: Option<PathBuf>,
    #[serde(alias = "ca_file")]
    pub(super) ca_certificate: Option<PathBuf>,
    pub(super) client_certificate: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMetrics {
    pub(super) listen: SocketAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRule {
    pub(super) name: String,
    pub(super) trigger: Trigger,
    pub(super) action: Action,
    #[serde(default = "default_cooldown")]
    pub(super) cooldown_minutes: u32,
    #[serde(default = "yes")]
    pub(super) enabled: bool,
}

pub(super) const fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAllow {
    pub(super) prefix: IpNet,
    #[serde(default)]
    pub(super) label: String,
}
