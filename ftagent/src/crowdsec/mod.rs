//! XDP as a CrowdSec bouncer: decisions of a CrowdSec LAPI, in force in the kernel until they end.
//!
//! ```text
//! LAPI ─> client: GET /v1/decisions/stream ─> stream: JSON ─> Keeper (PURE): known, until when ─> force (PURE): guard,
//!         one task of the thread                                 │                               nested ones, buckets of ends
//!                                                                └─> file: crowdsec.bin          └─> daemon/lists.rs: tables
//! ```
//!
//! Decisions lie in the kernel beside the operator's lists, in the same tables and under a rule of their own: one look-up,
//! whatever their number. Each bucket of ends is a list that the kernel itself lets go of, so that nobody stays banned
//! for longer because LAPI or the agent are away. Nothing here knows the kernel.

mod client;
mod config;
mod duration;
mod file;
mod force;
mod guarded;
mod keeper;
mod status;
mod stream;
mod worker;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::engine::RuleId;
use crate::lists::{ListAction, rule_of};
use crate::sync::Secret;

pub use config::{RawCrowdsec, check_crowdsec};
pub use force::Decided;
pub use status::CrowdsecStatus;
pub use worker::{Handle, Worker};

/// Decisions that are known at most, whatever the configuration says: the file has 33 bytes for each.
pub const MAX_DECISIONS: u32 = 500_000;

/// The rule that counts the frames of decisions. No list can be called so: their names have no spaces.
pub fn rule() -> RuleId {
    rule_of("decisions of CrowdSec")
}

/// `[crowdsec]` of the configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrowdsecConfig {
    pub url: String,
    pub key: Key,
    /// PEM; trusted in place of the system's authorities.
    pub ca_certificate: Option<PathBuf>,
    /// Between two questions.
    pub poll_secs: u32,
    pub filter: Filter,
    /// At most [`MAX_DECISIONS`].
    pub max_decisions: u32,
    pub action: ListAction,
}

/// Where the bouncer's API key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Inline(Secret),
    /// Read again after every refusal, so that a new key needs no restart.
    File(PathBuf),
}

/// Which decisions are enforced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those about single addresses.
    pub addresses: bool,
    /// Those about prefixes.
    pub ranges: bool,
    /// Empty: of every origin, such as `crowdsec`, `cscli`, `CAPI` or `lists`.
    pub origins: Vec<String>,
    /// Empty: whatever the scenario; else one of these must be in its name.
    pub scenarios_containing: Vec<String>,
    /// None of these may be.
    pub scenarios_not_containing: Vec<String>,
}

/// Whom decisions may not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spared {
    /// What the node itself is is not known at the moment: nothing new comes into force.
    pub unreadable: bool,
    /// The allowlist. It outranks lists in the kernel too, so that a ban around one of these still holds for the others.
    pub allow: Vec<IpNet>,
    /// The node's addresses, gateways, resolvers, control plane, management: a ban that touches one is refused whole.
    pub own: Vec<IpNet>,
}

/// What the thread of the decisions hears from LAPI.
#[derive(Debug)]
enum Told {
    /// An answer, and where LAPI was found.
    Reading { reading: stream::Reading, peers: Vec<IpAddr> },
    /// None, and where LAPI would be.
    Failed { failure: client::Failure, peers: Vec<IpAddr> },
}
