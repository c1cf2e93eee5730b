//! What the operator configured, as the engine needs it: checked, with every default filled in.

use std::net::IpAddr;

use ftagent_common::api::{AllowEntry, FirewallRule, HostThreshold, NodeMeans};
use ftagent_common::vocab::Mode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::web::WebSettings;

/// The engine's settings from the node's own file; the control plane's overrides are laid over them.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub mode: Mode,
    pub detection: Detection,
    pub response: Response,
    pub web: WebSettings,
    pub guard: Guard,
    /// What the node has.
    pub node: NodeMeans,
    /// Firewall rules of the node's own file; ids from 2^31.
    pub rules: Vec<FirewallRule>,
    /// The node's own allowlist.
    pub allow: Vec<AllowEntry>,
    pub thresholds: Vec<HostThreshold>,
}

/// When traffic is an attack.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    pub threshold: ThresholdMode,
    /// Packets per second and bits per second below which nothing is an attack.
    pub floor_pps: u64,
    pub floor_bps: u64,
    /// How many times the baseline is too much, 1.1 to 100.
    pub multiplier: f64,
    /// Sliding window of the baseline in seconds.
    pub window_secs: u32,
    /// Seconds before the baseline counts; until then the floor rules.
    pub learning_secs: u32,
    /// How long a threshold must be exceeded before an incident opens, unless it is exceeded five times over.
    pub confirm_ms: u32,
    /// How long traffic must stay below the threshold before an incident is resolved.
    pub hold_down_ms: u32,
    /// How many addresses of one /24 (or /64) must be attacked at once to be one incident on the prefix.
    pub carpet_targets: u32,
    /// Seconds without a frame after which an interface that had traffic is reported; 0: never.
    pub silent_secs: u32,
}

/// Where the threshold comes from, unless the host has one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThresholdMode {
    /// `max(floor, multiplier × baseline)`.
    Dynamic,
    /// The same numbers always.
    Static { pps: u64, bps: u64 },
}

/// What the agent does by itself when an incident opens.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Off: only firewall rules act.
    pub automatic: bool,
    /// No automatic response below this confidence.
    pub min_confidence: f64,
    /// Seconds until an automatic rule ends by itself in the kernel; renewed while the incident lasts.
    pub ttl_secs: u32,
    /// Sources one incident may block.
    pub max_sources: u32,
    /// Automatic rules that may be in force at once.
    pub max_rules: u32,
    /// Targets of forged TCP floods are put behind the TCP gate.
    pub gate: bool,
    /// Also those that this node only forwards to.
    pub gate_forwarded: bool,
}

/// Who is never blocked by anything automated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Guard {
    /// The node's own addresses.
    pub own: Vec<IpNet>,
    /// Default gateways, resolvers, the control plane, management sources.
    pub infrastructure: Vec<(IpNet, String)>,
    /// Operators who are connected.
    pub sessions: Vec<Session>,
    /// Ports by which people manage the node; empty: that of SSH.
    pub management_ports: Vec<u16>,
    /// Set when one of the lists could not be read: everything automated is refused until it can.
    pub unreadable: Option<String>,
}

/// Where an operator is connected from, who proved at the node who they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub peer: IpAddr,
    /// The node's ports that the connections lead to, in order.
    pub ports: Vec<u16>,
    pub user: String,
    /// Seconds since 1970 when the first of the logins began.
    pub since: i64,
}

impl Session {
    /// Who, and by which ports.
    pub fn who(&self) -> String {
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        format!("{} (port {})", self.user, ports.join(", "))
    }
}

impl Default for Detection {
    fn default() -> Self {
        Self {
            threshold: ThresholdMode::Dynamic,
            floor_pps: 10_000,
            floor_bps: 50_000_000,
            multiplier: 3.0,
            window_secs: 300,
            learning_secs: 300,
            confirm_ms: 300,
            hold_down_ms: 10_000,
            carpet_targets: 8,
            silent_secs: 60,
        }
    }
}

impl Default for Response {
    fn default() -> Self {
        Self {
            automatic: true,
            min_confidence: 0.5,
            ttl_secs: 300,
            max_sources: 1_000,
            max_rules: 4_000,
            gate: true,
            gate_forwarded: false,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            detection: Detection::default(),
            response: Response::default(),
            web: WebSettings::default(),
            guard: Guard::default(),
            node: NodeMeans::default(),
            rules: Vec::new(),
            allow: Vec::new(),
            thresholds: Vec::new(),
        }
    }
}
