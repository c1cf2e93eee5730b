//! Attack profiles: rule sets for a kind of site, told once in neutral words and compiled for each firewall suite.
//!
//! A profile only takes away: what it accepts goes on to the operator's own rules, and no policy of a chain is changed.
//! Everything of ours has a chain or table of its own, so that it goes as one.

mod compile;
mod custom;
mod firewalld;
mod iptables;
mod nftables;
#[cfg(test)]
mod tests;
mod ufw;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Protocol;
pub use compile::{CHAINS as PROFILE_CHAINS, Compiled, CompiledRule, Kept, ProfileError, Step, compile};
pub use nftables::TABLE as PROFILE_TABLE;

/// The most rules of a profile, and of an operator's own beside them.
pub const MAX_PROFILE_RULES: usize = 64;

/// What the rules are written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Suite {
    Iptables,
    Nftables,
    Ufw,
    Firewalld,
}

impl Suite {
    pub const ALL: [Self; 4] = [Self::Iptables, Self::Nftables, Self::Ufw, Self::Firewalld];

    /// The spelling on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ufw => "ufw",
            Self::Firewalld => "firewalld",
        }
    }
}

/// A rule in neutral words. Rules are asked in order; the first that accepts or drops decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProfileRule {
    pub title: String,
    /// Why it is there.
    pub reason: String,
    #[serde(default)]
    pub path: TrafficPath,
    #[serde(default, rename = "match")]
    pub matches: ProfileMatch,
    pub verdict: ProfileVerdict,
}

/// Which packets a rule is asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TrafficPath {
    /// Those to the node itself.
    #[default]
    ToNode,
    /// Those that it forwards.
    Through,
}

/// What a packet must be like; what is not given holds for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProfileMatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Destination ports, from and to, of TCP or UDP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<(u16, u16)>,
    /// Source ports, from and to, of TCP or UDP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ports: Vec<(u16, u16)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<TcpFlags>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TrackedState>,
}

/// Flags of TCP that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TcpFlags {
    /// The first segment of a connection.
    Syn,
    None,
    All,
    SynFin,
    SynRst,
}

/// What the kernel's connection tracking says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TrackedState {
    New,
    Invalid,
}

/// What becomes of a packet that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ProfileVerdict {
    /// The profile leaves it to the operator's own rules.
    Accept {},
    Drop {},
    /// What comes above the rate is dropped, and the rest goes on to the next rule.
    Limit {
        /// Packets per second.
        pps: u32,
        burst: u32,
        by: LimitBy,
    },
    /// New connections of a source that has as many are dropped.
    Connections {
        most: u32,
    },
}

/// What a rate is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LimitBy {
    Source,
    Target,
}

/// A rule of the operator's own, in the suite's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CustomRule {
    /// One command that adds one rule. It is read, never run as it stands: no shell, no flush, no policy.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 512))]
    pub cmd: String,
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128))]
    pub title: String,
}
