//! The agent's configuration file: what people write, checked, into what the parts need.
//!
//! What the file does not say has the default that its field states. Unknown keys are errors. The file is named by
//! `--config` or the environment's `FTAGENT_CONFIG`.

mod check;
mod raw;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ftagent_common::api::{AllowEntry, FirewallRule};
use ipnet::IpNet;
use serde::Deserialize;

use crate::actions::cloud::Clouds;
use crate::below::Wanted;
use crate::crowdsec::{CrowdsecConfig, check_crowdsec};
use crate::enforce::ladder::Rung;
use crate::engine::{Detection, Response, Settings, ThresholdMode};
use crate::flows::{ListenerConfig, check_flow_exporters};
use crate::lists::{ListConfig, check_lists};
use crate::pcap::config::{PcapConfig, check_pcap};
use crate::sync::{ClientFiles, Secret};
use crate::weblog::{AccessLog, HttpConfig, check_access_logs, check_http};
use crate::xdp::compile::FailSafe;
use crate::xdp::program::{AttachChoice, MapSizes};

use check::Check;
use raw::{Raw, RawThresholdMode};

/// Where the configuration is looked for unless a flag says otherwise.
pub const DEFAULT_PATH: &str = "/etc/ftagent/ftagent.toml";

/// The largest file that is read.
const MAX_BYTES: u64 = 8 << 20;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}; dist/ftagent.toml is an example to start from, --config names another place")]
    Read { path: String, source: std::io::Error },
    #[error("{path} has {bytes} bytes: a configuration has at most {MAX_BYTES}")]
    TooLarge { path: String, bytes: u64 },
    #[error("{path}: {message}")]
    Syntax { path: String, message: String },
    #[error("{path}: {key}: {message}")]
    Value { path: String, key: String, message: String },
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    pub name: String,
    pub location: String,
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub bpffs: PathBuf,
    pub tick_ms: u64,
    /// 0: automatic rules never end for a silent agent.
    pub dead_man_secs: u64,
    pub interfaces: Vec<(String, AttachChoice)>,
    /// Those of `interfaces` whose program goes where they are, whatever lies below them.
    pub at_own_device: BTreeSet<String>,
    /// Empty: the addresses of the interfaces.
    pub protect: Vec<IpNet>,
    pub management: Vec<FailSafe>,
    pub datapath: DatapathConfig,
    pub control_plane: Option<ControlPlaneConfig>,
    pub metrics: Option<SocketAddr>,
    pub lists: Vec<ListConfig>,
    pub access_logs: Vec<AccessLog>,
    /// Looks at connections of web servers.
    pub http: HttpConfig,
    /// Absent: no captures.
    pub pcap: Option<PcapConfig>,
    pub flow_exporters: Vec<ListenerConfig>,
    /// What carries rules where no program can be attached, in the order in which it is tried.
    pub fallback: Vec<Rung>,
    /// Absent: no decisions of CrowdSec.
    pub crowdsec: Option<CrowdsecConfig>,
    /// Where the keys of clouds are.
    pub clouds: Clouds,
    /// The engine's part; the guard's lists are filled in by the daemon.
    pub settings: Settings,
}

/// The datapath's part.
#[derive(Clone, Debug, PartialEq)]
pub struct DatapathConfig {
    pub sizes: MapSizes,
    /// The stages that `sizes` leaves out, as the file names them.
    pub left_out: Vec<String>,
    pub samples_per_sec: u32,
    /// Packets per second that make a source heavy.
    pub promote_pps: u32,
    /// 0: heavy sources are counted, not limited.
    pub source_limit_pps: u64,
    pub not_ip_pps: u64,
    pub pass_malformed: bool,
    pub max_memory_bytes: u64,
    pub gate: GateConfig,
}

/// What is dropped for not having been asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateConfig {
    /// Answers of reflectors that nobody asked for are dropped.
    pub reflectors: bool,
    pub wanted: crate::xdp::gate::Wanted,
    pub syn: SynChoice,
}

/// How the TCP gate treats SYNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SynChoice {
    /// Cookies where they work, else drop-first.
    Auto,
    /// Cookies even where the agent cannot tell whether frames can be sent back.
    Cookies,
    DropFirst,
    /// No target is ever behind the gate.
    Off,
}

/// Where the control plane is, and what lets this node in.
#[derive(Clone, Debug)]
pub struct ControlPlaneConfig {
    /// At least one; the first is used while it is well.
    pub urls: Vec<String>,
    pub deploy_token: Option<Secret>,
    /// PEM; trusted in place of the system's authorities.
    pub ca_certificate: Option<PathBuf>,
    /// Absent: the node asks the control plane for a certificate.
    pub client: Option<ClientFiles>,
}

/// Rules of the node's own file have ids from here on.
pub const FIRST_LOCAL_RULE: i64 = 1 << 31;

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The first thing that is wrong, with the key and the bounds.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display().to_string();
        let read = |source| ConfigError::Read { path: shown.clone(), source };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > MAX_BYTES {
            return Err(ConfigError::TooLarge { path: shown, bytes });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(read)?, path)
    }

    /// Checks `text`, which came from `path`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|e| ConfigError::Syntax {
            path: path.display().to_string(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        let check = Check { path };
        check.all(&raw)?;
        let clouds = check.clouds(&raw)?;
        let name = match &raw.agent.name {
            Some(name) => name.clone(),
            None => nix::sys::utsname::uname()
                .ok()
                .map(|u| u.nodename().to_string_lossy().into_owned())
                .filter(|n| !n.is_empty())
                .ok_or_else(|| check.error("agent.name", "the machine has no host name: give one"))?,
        };
        let management = raw
            .management
            .sources
            .iter()
            .map(|prefix| FailSafe { prefix: prefix.trunc(), ports: raw.management.ports.clone() });
        let d = &raw.datapath;
        let (web, http) = check_http(&raw.http).map_err(|(key, message)| check.error(&key, message))?;
        Ok(Self {
            path: path.to_owned(),
            name,
            location: raw.agent.location.clone(),
            state_dir: raw.agent.state_dir.clone(),
            runtime_dir: raw.agent.runtime_dir.clone(),
            bpffs: raw.agent.bpffs.clone(),
            tick_ms: raw.agent.tick_ms,
            dead_man_secs: raw.agent.dead_man_secs,
            interfaces: raw.interface.iter().map(|i| (i.name.clone(), i.attach)).collect(),
            at_own_device: raw.interface.iter().filter(|i| i.at_own_device).map(|i| i.name.clone()).collect(),
            protect: raw.protect.prefixes.iter().map(IpNet::trunc).collect(),
            management: management.collect(),
            datapath: DatapathConfig {
                sizes: MapSizes {
                    targets: d.max_targets,
                    sources: d.max_sources,
                    blocks: d.max_blocks,
                    prefixes: d.max_prefixes,
                    samples: d.sample_buffer_bytes,
                    stages: d.without.iter().fold(u32::MAX, |stages, left_out| stages & !left_out.bit()),
                },
                left_out: d.without.iter().map(|stage| stage.as_str().to_owned()).collect(),
                samples_per_sec: d.samples_per_sec,
                promote_pps: d.promote_pps,
                source_limit_pps: d.source_limit_pps,
                not_ip_pps: d.not_ip_pps,
                pass_malformed: d.pass_malformed,
                max_memory_bytes: d.max_memory_bytes,
                gate: GateConfig {
                    reflectors: d.gate.reflectors,
                    wanted: crate::xdp::gate::Wanted {
                        reflector_ports: d.gate.reflector_ports.clone(),
                        served_ports: d.gate.served_ports.clone(),
                        warmup_ns: d.gate.warmup_secs * 1_000_000_000,
                    },
                    syn: d.gate.syn,
                },
            },
            control_plane: check.control_plane(raw.control_plane.as_ref())?,
            metrics: raw.metrics.as_ref().map(|m| m.listen),
            lists: check_lists(&raw.lists).map_err(|(key, message)| check.error(&key, message))?,
            access_logs: check_access_logs(&raw.access_log).map_err(|(key, message)| check.error(&key, message))?,
            http,
            pcap: check_pcap(&raw.pcap).map_err(|(key, message)| check.error(key, message))?,
            crowdsec: check_crowdsec(raw.crowdsec.as_ref()).map_err(|(key, message)| check.error(key, message))?,
            clouds,
            fallback: d.fallback.clone(),
            settings: Settings { web, ..settings(&raw) },
            flow_exporters: check_flow_exporters(&raw.flow_exporter, &raw.protect.prefixes)
                .map_err(|(key, message)| check.error(&key, message))?,
        })
    }

    /// The interfaces, as what lies below them is looked for.
    pub fn wanted(&self) -> Vec<Wanted> {
        let one = |(name, choice): &(String, AttachChoice)| Wanted {
            name: name.clone(),
            choice: *choice,
            at_own_device: self.at_own_device.contains(name),
        };
        self.interfaces.iter().map(one).collect()
    }

    /// The control socket of the daemon.
    pub fn socket(&self) -> PathBuf {
        self.runtime_dir.join("ftagent.sock")
    }
}

fn settings(raw: &Raw) -> Settings {
    let d = &raw.detection;
    let threshold = match d.mode {
        RawThresholdMode::Dynamic => ThresholdMode::Dynamic,
        RawThresholdMode::Static => {
            ThresholdMode::Static { pps: d.static_pps.unwrap_or(d.floor_pps), bps: d.static_bps.unwrap_or(d.floor_bps) }
        }
    };
    let rules = raw.rule.iter().filter(|r| r.enabled).zip(FIRST_LOCAL_RULE..).map(|(rule, id)| FirewallRule {
        id,
        name: rule.name.clone(),
        trigger: rule.trigger,
        action: rule.action.clone(),
        cooldown_minutes: rule.cooldown_minutes,
    });
    Settings {
        mode: raw.agent.mode,
        detection: Detection {
            threshold,
            floor_pps: d.floor_pps,
            floor_bps: d.floor_bps,
            multiplier: d.multiplier,
            window_secs: d.window_secs,
            learning_secs: d.learning_secs,
            confirm_ms: d.confirm_ms,
            hold_down_ms: d.hold_down_ms,
            carpet_targets: d.carpet_targets,
            silent_secs: d.silent_secs,
        },
        response: Response {
            automatic: raw.response.automatic,
            min_confidence: raw.response.min_confidence,
            ttl_secs: raw.response.ttl_secs,
            max_sources: raw.response.max_sources,
            max_rules: raw.response.max_rules,
            gate: raw.datapath.gate.syn != SynChoice::Off,
            gate_forwarded: raw.datapath.gate.forwarded,
        },
        rules: rules.collect(),
        allow: raw.allow.iter().map(|a| AllowEntry { prefix: a.prefix.trunc(), label: a.label.clone() }).collect(),
        thresholds: raw.threshold.clone(),
        ..Settings::default()
    }
}

#[cfg(test)]
mod tests;
