//! The agent's configuration file: what people write, checked, into what the parts need.
//!
//! What the file does not say has the default that its field states. Unknown keys are errors. The file is named by
//! `--config` or the environment's `FTAGENT_CONFIG`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ftagent_common::abi::{SKETCH_MAX, stage};
use ftagent_common::api::{Action, AllowEntry, FirewallRule, HostThreshold, Trigger, default_cooldown};
use ftagent_common::vocab::Mode;
use ipnet::IpNet;
use serde::Deserialize;

use crate::below::Wanted;
use crate::engine::{Detection, Response, Settings, ThresholdMode};
use crate::flows::{ListenerConfig, RawFlowExporter, check_flow_exporters};
use crate::lists::{ListConfig, RawList, check_lists};
use crate::pcap::config::{PcapConfig, RawPcap, check_pcap};
use crate::sync::Secret;
use crate::weblog::{AccessLog, HttpConfig, RawAccessLog, RawHttp, check_access_logs, check_http};
use crate::xdp::compile::FailSafe;
use crate::xdp::program::{AttachChoice, MapSizes};

/// Where the configuration is looked for unless a flag says otherwise.
pub const DEFAULT_PATH: &str = "/etc/ftagent/ftagent.toml";

/// The largest file that is read.
const MAX_BYTES: u64 = 4 << 20;

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

/// The file as people write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    agent: RawAgent,
    #[serde(default)]
    interface: Vec<RawInterface>,
    #[serde(default)]
    protect: RawProtect,
    #[serde(default)]
    management: RawManagement,
    #[serde(default)]
    detection: RawDetection,
    #[serde(default)]
    response: RawResponse,
    #[serde(default)]
    datapath: RawDatapath,
    control_plane: Option<RawControlPlane>,
    metrics: Option<RawMetrics>,
    #[serde(default)]
    rule: Vec<RawRule>,
    #[serde(default)]
    allow: Vec<RawAllow>,
    #[serde(default)]
    lists: Vec<RawList>,
    #[serde(default)]
    threshold: Vec<HostThreshold>,
    #[serde(default)]
    http: RawHttp,
    #[serde(default)]
    access_log: Vec<RawAccessLog>,
    #[serde(default)]
    pcap: RawPcap,
    #[serde(default)]
    flow_exporter: Vec<RawFlowExporter>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAgent {
    name: Option<String>,
    location: String,
    state_dir: PathBuf,
    runtime_dir: PathBuf,
    bpffs: PathBuf,
    tick_ms: u64,
    mode: Mode,
    dead_man_secs: u64,
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
struct RawInterface {
    name: String,
    #[serde(default = "auto")]
    attach: AttachChoice,
    #[serde(default)]
    at_own_device: bool,
}

fn auto() -> AttachChoice {
    AttachChoice::Auto
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProtect {
    #[serde(default)]
    prefixes: Vec<IpNet>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManagement {
    #[serde(default)]
    sources: Vec<IpNet>,
    #[serde(default)]
    ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDetection {
    mode: RawThresholdMode,
    static_pps: Option<u64>,
    static_bps: Option<u64>,
    floor_pps: u64,
    floor_bps: u64,
    multiplier: f64,
    window_secs: u32,
    learning_secs: u32,
    confirm_ms: u32,
    hold_down_ms: u32,
    carpet_targets: u32,
    silent_secs: u32,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum RawThresholdMode {
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
struct RawResponse {
    automatic: bool,
    min_confidence: f64,
    ttl_secs: u32,
    max_sources: u32,
    max_rules: u32,
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
struct RawDatapath {
    max_targets: u32,
    max_sources: u32,
    max_blocks: u32,
    max_prefixes: u32,
    sample_buffer_bytes: u32,
    samples_per_sec: u32,
    promote_pps: u32,
    source_limit_pps: u64,
    not_ip_pps: u64,
    pass_malformed: bool,
    without: Vec<Stage>,
    max_memory_bytes: u64,
    gate: RawGate,
}

/// `[datapath.gate]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawGate {
    reflectors: bool,
    reflector_ports: Vec<u16>,
    served_ports: Vec<u16>,
    syn: SynChoice,
    forwarded: bool,
    warmup_secs: u64,
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
enum Stage {
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
    const fn as_str(self) -> &'static str {
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

    const fn bit(self) -> u32 {
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
            pass_malformed: false,
            max_memory_bytes: 256 << 20,
            gate: RawGate::default(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControlPlane {
    url: String,
    deploy_token: Option<String>,
    deploy_token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: SocketAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: String,
    trigger: Trigger,
    action: Action,
    #[serde(default = "default_cooldown")]
    cooldown_minutes: u32,
    #[serde(default = "yes")]
    enabled: bool,
}

const fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAllow {
    prefix: IpNet,
    #[serde(default)]
    label: String,
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
    pub url: String,
    pub deploy_token: Option<Secret>,
    pub ca_file: Option<PathBuf>,
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

/// Says what is wrong and where.
struct Check<'a> {
    path: &'a Path,
}

impl Check<'_> {
    fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::Value { path: self.path.display().to_string(), key: key.to_owned(), message: message.into() }
    }

    fn within<T: PartialOrd + std::fmt::Display>(
        &self,
        key: &str,
        value: T,
        low: T,
        high: T,
    ) -> Result<(), ConfigError> {
        if value < low || value > high {
            return Err(self.error(key, format!("must be {low} to {high}, got {value}")));
        }
        Ok(())
    }

    fn all(&self, raw: &Raw) -> Result<(), ConfigError> {
        self.within("agent.tick_ms", raw.agent.tick_ms, 10, 100)?;
        self.within("agent.dead_man_secs", raw.agent.dead_man_secs, 0, 86_400)?;
        if let Some(name) = &raw.agent.name
            && (name.is_empty() || name.chars().count() > 128)
        {
            return Err(self.error("agent.name", "must have 1 to 128 characters"));
        }
        self.interfaces(&raw.interface)?;
        if !raw.management.sources.is_empty() && raw.management.ports.is_empty() {
            return Err(
                self.error("management.ports", "name the ports that management.sources may always reach, such as [22]")
            );
        }
        if raw.management.sources.iter().any(|s| s.prefix_len() == 0) {
            return Err(self.error("management.sources", "a prefix of length 0 would trust everybody"));
        }
        if raw.management.ports.contains(&0) {
            return Err(self.error("management.ports", "must be 1 to 65535, got 0"));
        }
        self.detection(&raw.detection)?;
        self.within("response.min_confidence", raw.response.min_confidence, 0.0, 1.0)?;
        self.within("response.ttl_secs", raw.response.ttl_secs, 10, 86_400)?;
        self.within("response.max_sources", raw.response.max_sources, 1, 100_000)?;
        self.within("response.max_rules", raw.response.max_rules, 1, 8_000)?;
        self.datapath(&raw.datapath)?;
        for (i, rule) in raw.rule.iter().enumerate() {
            if rule.name.is_empty() || rule.name.chars().count() > 128 {
                return Err(self.error(&format!("rule[{i}].name"), "must have 1 to 128 characters"));
            }
            self.within(&format!("rule[{i}].cooldown_minutes"), rule.cooldown_minutes, 1, 1_440)?;
            rule.action.validate().map_err(|e| self.error(&format!("rule[{i}].action.{}", e.field), e.message))?;
        }
        for (i, threshold) in raw.threshold.iter().enumerate() {
            if threshold.pps.is_none() && threshold.bps.is_none() {
                return Err(self.error(&format!("threshold[{i}]"), "give pps, bps or both"));
            }
        }
        Ok(())
    }

    fn interfaces(&self, interfaces: &[RawInterface]) -> Result<(), ConfigError> {
        if interfaces.is_empty() {
            return Err(self.error("interface", "name at least one: [[interface]] with name = \"eth0\""));
        }
        self.within("interface", interfaces.len(), 1, ftagent_common::abi::MAX_INTERFACES as usize)?;
        for (i, interface) in interfaces.iter().enumerate() {
            let is_name = !interface.name.is_empty()
                && interface.name.len() < 16
                && !interface.name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            if !is_name {
                return Err(
                    self.error(&format!("interface[{i}].name"), format!("{:?} is no interface name", interface.name))
                );
            }
            if interfaces.iter().take(i).any(|other| other.name == interface.name) {
                return Err(self.error(&format!("interface[{i}].name"), format!("{} is named twice", interface.name)));
            }
        }
        Ok(())
    }

    fn detection(&self, d: &RawDetection) -> Result<(), ConfigError> {
        self.within("detection.floor_pps", d.floor_pps, 10, 1_000_000_000)?;
        self.within("detection.floor_bps", d.floor_bps, 10_000, 1_000_000_000_000)?;
        self.within("detection.multiplier", d.multiplier, 1.1, 100.0)?;
        self.within("detection.window_secs", d.window_secs, 10, 3_600)?;
        self.within("detection.learning_secs", d.learning_secs, 1, 86_400)?;
        self.within("detection.confirm_ms", d.confirm_ms, 0, 30_000)?;
        self.within("detection.hold_down_ms", d.hold_down_ms, 500, 3_600_000)?;
        self.within("detection.carpet_targets", d.carpet_targets, 2, 256)?;
        if d.silent_secs != 0 {
            self.within("detection.silent_secs", d.silent_secs, 5, 86_400)?;
        }
        let has_static = d.static_pps.is_some() || d.static_bps.is_some();
        if has_static != (d.mode == RawThresholdMode::Static) {
            return Err(self.error(
                "detection.mode",
                "static_pps and static_bps belong to mode = \"static\", which needs one of them",
            ));
        }
        Ok(())
    }

    fn datapath(&self, d: &RawDatapath) -> Result<(), ConfigError> {
        self.within("datapath.max_targets", d.max_targets, 16, 1 << 20)?;
        self.within("datapath.max_sources", d.max_sources, 16, 1 << 20)?;
        self.within("datapath.max_blocks", d.max_blocks, 16, 1 << 24)?;
        self.within("datapath.max_prefixes", d.max_prefixes, 16, 1 << 24)?;
        if !d.sample_buffer_bytes.is_power_of_two() || !(65_536..=1 << 28).contains(&d.sample_buffer_bytes) {
            return Err(self.error("datapath.sample_buffer_bytes", "must be a power of two from 65536 to 268435456"));
        }
        self.within("datapath.samples_per_sec", d.samples_per_sec, 100, 100_000)?;
        self.within("datapath.promote_pps", d.promote_pps, 10, SKETCH_MAX)?;
        self.within("datapath.not_ip_pps", d.not_ip_pps, 10, 10_000_000)?;
        self.within("datapath.gate.warmup_secs", d.gate.warmup_secs, 0, 86_400)?;
        let ports = d.gate.reflector_ports.iter().chain(&d.gate.served_ports);
        if ports.clone().any(|port| *port == 0) || ports.count() > 1_024 {
            return Err(self.error("datapath.gate.reflector_ports, served_ports", "must be at most 1024 ports from 1"));
        }
        if d.source_limit_pps != 0 && d.source_limit_pps < u64::from(d.promote_pps) {
            return Err(self.error(
                "datapath.source_limit_pps",
                format!(
                    "must be 0 or at least datapath.promote_pps ({}): only heavy sources are limited",
                    d.promote_pps
                ),
            ));
        }
        Ok(())
    }

    fn control_plane(&self, raw: Option<&RawControlPlane>) -> Result<Option<ControlPlaneConfig>, ConfigError> {
        let Some(raw) = raw else { return Ok(None) };
        if !raw.url.starts_with("http://") && !raw.url.starts_with("https://") {
            return Err(self.error("control_plane.url", "must begin with http:// or https://"));
        }
        let token = match (&raw.deploy_token, &raw.deploy_token_file) {
            (Some(_), Some(_)) => {
                return Err(
                    self.error("control_plane.deploy_token", "give deploy_token or deploy_token_file, not both")
                );
            }
            (Some(token), None) => Some(token.clone()),
            (None, Some(file)) => match std::fs::read_to_string(file) {
                Ok(text) => Some(text.trim().to_owned()),
                // Used once: afterwards the node has a key of its own and the file may be gone.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                Err(e) => {
                    return Err(self.error("control_plane.deploy_token_file", format!("{}: {e}", file.display())));
                }
            },
            (None, None) => None,
        };
        if let Some(token) = &token
            && (token.len() != 64 || !token.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Err(self.error("control_plane.deploy_token", "must be 64 hex characters"));
        }
        Ok(Some(ControlPlaneConfig {
            url: raw.url.trim_end_matches('/').to_owned(),
            deploy_token: token.as_deref().map(Secret::new),
            ca_file: raw.ca_file.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[[interface]]\nname = \"eth0\"\n";

    fn check(extra: &str, expected: Result<(), &str>) {
        let text = format!("{extra}\n{MINIMAL}");
        let got = Config::parse(&text, Path::new("t.toml")).map(|_| ()).map_err(|e| e.to_string());
        match expected {
            Ok(()) => assert_eq!(got, Ok(()), "{extra}"),
            Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{extra}: {got:?} lacks {part:?}"),
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key_and_bounds() {
        check("", Ok(()));
        check("[agent]\ncolour = \"red\"", Err("colour"));
        check("[agent]\ntick_ms = 5", Err("agent.tick_ms: must be 10 to 100, got 5"));
        check("[agent]\nmode = \"panic\"", Err("panic"));
        check("[detection]\nmultiplier = 0.5", Err("detection.multiplier"));
        check("[detection]\nstatic_pps = 5000", Err("detection.mode"));
        check("[detection]\nmode = \"static\"\nstatic_pps = 5000", Ok(()));
        check("[management]\nsources = [\"192.0.2.0/24\"]", Err("management.ports"));
        check("[management]\nsources = [\"0.0.0.0/0\"]\nports = [22]", Err("trust everybody"));
        check("[control_plane]\nurl = \"ftp://x\"", Err("control_plane.url"));
        check("[control_plane]\nurl = \"http://x\"\ndeploy_token = \"short\"", Err("64 hex"));
        check("[datapath]\nsample_buffer_bytes = 1000000", Err("power of two"));
        check("[datapath]\nsource_limit_pps = 5", Err("promote_pps"));
        check("[datapath]\npromote_pps = 20000", Err("promote_pps"));
        check("[datapath]\nwithout = [\"colour\"]", Err("colour"));
        check("[datapath]\nwithout = [\"distinct\", \"tunnels\"]", Ok(()));
        check("[protect]\nprefixes = [\"300.0.0.1/8\"]", Err("300.0.0.1"));
        check(
            "[[rule]]\nname = \"x\"\ntrigger = { type = \"any\" }\naction = { type = \"xdp_rate_limit_target\" }",
            Err("rule[0].action.pps"),
        );
        check("[[lists]]\nname = \"a\"\npath = \"a.txt\"", Err("lists[0].path: must be an absolute path"));
        check("[[threshold]]\ntarget = \"192.0.2.1/32\"", Err("threshold[0]"));
    }

    #[test]
    fn interfaces_are_named_once_and_rightly() {
        let parse = |text: &str| Config::parse(text, Path::new("t.toml")).map_err(|e| e.to_string());
        assert!(parse("").is_err_and(|e| e.contains("interface")));
        let twice = format!("{MINIMAL}{MINIMAL}");
        assert!(parse(&twice).is_err_and(|e| e.contains("twice")));
        assert!(parse("[[interface]]\nname = \"a/b\"\n").is_err_and(|e| e.contains("no interface name")));
        let own = format!("{MINIMAL}[[interface]]\nname = \"eth0.7\"\nat_own_device = true\n");
        let wanted = parse(&own).expect("valid").wanted();
        assert_eq!(
            wanted.iter().map(|w| (w.name.as_str(), w.at_own_device)).collect::<Vec<_>>(),
            [("eth0", false), ("eth0.7", true)]
        );
    }

    #[test]
    fn stages_that_are_left_out_keep_their_names() {
        const ALL: [&str; 7] = ["sanity", "tunnels", "lists", "rules", "sources", "distinct", "samples"];
        for name in ALL {
            let text = format!("{MINIMAL}[datapath]\nwithout = [{name:?}]\n");
            let datapath = Config::parse(&text, Path::new("t.toml")).expect(name).datapath;
            assert_eq!(datapath.left_out, [name]);
            assert_eq!(datapath.sizes.stages.count_zeros(), 1, "{name}");
        }
    }

    #[test]
    fn a_secret_never_shows() {
        let token = "ab".repeat(32);
        let text = format!("{MINIMAL}[control_plane]\nurl = \"http://x/\"\ndeploy_token = \"{token}\"\n");
        let config = Config::parse(&text, Path::new("t.toml")).expect("valid");
        assert!(!format!("{config:?}").contains(&token));
        assert_eq!(config.control_plane.expect("there").url, "http://x");
    }

    #[test]
    fn rules_of_the_file_have_ids_of_their_own() {
        let rule = "[[rule]]\nname = \"x\"\ntrigger = { type = \"any\" }\naction = { type = \"xdp_drop_source\" }\n";
        let config = Config::parse(&format!("{MINIMAL}{rule}{rule}"), Path::new("t.toml")).expect("valid");
        let ids: Vec<i64> = config.settings.rules.iter().map(|r| r.id).collect();
        assert_eq!(ids, [FIRST_LOCAL_RULE, FIRST_LOCAL_RULE + 1]);
    }
}
