//! What the control plane tells a node: the configuration as a whole, and commands.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Action, AllowEntry, CustomRule, FirewallRule, HostThreshold, Kept, ProfileRule, Suite};
use crate::vocab::Mode;

/// Everything that the control plane decides for one node. Always sent whole: the newest one is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeConfig {
    /// Grows with every change; also the `ETag` of `GET /agent/config`.
    pub version: u64,
    /// Firewall rules whose actions are native: XDP and nftables.
    #[serde(default)]
    pub rules: Vec<FirewallRule>,
    /// The other ones: apart, because an agent of protocol 1 that met one of them would refuse the whole configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_rules: Vec<FirewallRule>,
    #[serde(default)]
    pub allowlist: Vec<AllowEntry>,
    #[serde(default)]
    pub thresholds: Vec<HostThreshold>,
    /// Overrides of the node's own file; absent fields leave the file's value.
    #[serde(default)]
    pub detection: DetectionOverrides,
    /// Present where the control plane has an authority of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
}

/// Whom a node trusts for the control plane, besides what its own file says, and when it needs another certificate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Trust {
    /// The roots of the control plane's authority, PEM.
    pub roots: String,
    /// SHA-256 of roots that were retired, hexadecimal: not trusted any more, even if the node's file has them.
    #[serde(default)]
    pub retired: Vec<String>,
    /// A certificate issued before this moment is to be renewed now.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub renew_before: Option<OffsetDateTime>,
}

/// Detection settings that the control plane may override.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DetectionOverrides {
    #[serde(default)]
    pub mode: Option<Mode>,
    /// Packets and bits per second below which nothing is an attack.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000_000_000_u64))]
    pub floor_pps: Option<u64>,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000_000_000_u64))]
    pub floor_bps: Option<u64>,
    /// How many times the baseline is too much, 1.1 to 100.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 1.1, maximum = 100.0))]
    pub multiplier: Option<f64>,
    /// Whether the agent's own response may act without a rule.
    #[serde(default)]
    pub auto_respond: Option<bool>,
}

/// One line of `GET /agent/stream?from=VERSION` (newline-delimited JSON).
///
/// The first line is `config`, or `ping` when the node already has the newest version. Pings come at least every
/// 15 s; a node that hears nothing for 45 s opens a new stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum StreamMessage {
    Config { config: NodeConfig },
    Command { command: NodeCommand },
    Ping { version: u64 },
}

/// An order to one node, repeated until it is acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeCommand {
    pub command_id: Uuid,
    pub order: Order,
}

/// What a node can be told to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Order {
    /// Blocks a source now, for `ttl_secs` (1 to 86,400).
    Block {
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        source: ipnet::IpNet,
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
        ttl_secs: u32,
    },
    /// Lifts every block of exactly this source.
    Unblock {
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        source: ipnet::IpNet,
    },
    /// Ends an incident by hand and undoes what was done.
    ResolveIncident { incident: Uuid, false_positive: bool },
    /// Carries out an action that an operator approved. Needs protocol 2.
    Apply {
        /// Its sources are named: what was shown is what is run.
        action: Action,
        /// The incident that it is about.
        incident: Uuid,
        /// Whether it is undone when the incident ends, or only when `ttl_secs` are over.
        undo_at_resolve: bool,
        /// Seconds until it is undone in any case, 1 to 86,400.
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
        ttl_secs: u32,
    },
    /// Puts a profile in force on trial. Needs protocol 2.
    ApplyProfile {
        application: Uuid,
        /// The profile's name, to be shown; empty from control planes that do not say.
        #[serde(default)]
        profile: String,
        suite: Suite,
        rules: Vec<ProfileRule>,
        /// The operator's own, behind those of the profile.
        custom: Vec<CustomRule>,
        /// What comes before both. The node adds its control planes, management sources, allowlist and SSH's ports.
        #[serde(default)]
        keep: Kept,
        /// Seconds until it is rolled back unless it is confirmed, 30 to 3,600.
        #[cfg_attr(feature = "openapi", schema(minimum = 30, maximum = 3_600))]
        confirm_secs: u32,
    },
    /// Keeps a profile that is on trial. Needs protocol 2.
    ConfirmProfile { application: Uuid },
    /// Undoes a profile, on trial or kept. Needs protocol 2.
    RollBackProfile { application: Uuid },
}

impl Order {
    /// The protocol that the node's agent must speak to understand it.
    pub const fn needs_protocol(&self) -> u32 {
        match self {
            Self::Block { .. } | Self::Unblock { .. } | Self::ResolveIncident { .. } => 1,
            Self::Apply { .. }
            | Self::ApplyProfile { .. }
            | Self::ConfirmProfile { .. }
            | Self::RollBackProfile { .. } => 2,
        }
    }
}

/// `POST /agent/commands/ack`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CommandAck {
    pub command_id: Uuid,
    pub status: AckStatus,
    #[serde(default)]
    pub error: String,
    #[serde(default)]
    pub output: String,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AckStatus {
    Applied,
    Failed,
}

/// `POST /agent/profiles`: what became of a profile without an order, such as a trial that nobody ended in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProfileReport {
    pub application: Uuid,
    pub state: ProfileState,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}

/// Where a profile stands on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ProfileState {
    /// Confirmed at the node itself.
    Confirmed,
    /// Nobody confirmed it while it could be: the node took it back.
    Lapsed,
    /// Taken back at the node itself, or later than an order to do so could be carried out.
    RolledBack,
}

impl ProfileState {
    /// The spelling on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Lapsed => "lapsed",
            Self::RolledBack => "rolled_back",
        }
    }
}
