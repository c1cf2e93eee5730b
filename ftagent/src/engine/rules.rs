//! The rules that should be in force, and the difference to those that are.

use std::collections::BTreeMap;

use ftagent_common::api::{AllowEntry, Protocol};
use ftagent_common::vocab::Mode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A rule's name for as long as it lives, across restarts; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleId(pub u64);

/// What a packet must be to meet the rule; absent parts match everything, ranges are inclusive (FlowSpec's model, RFC
/// 8955 section 4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matches {
    pub source: Option<IpNet>,
    pub target: Option<IpNet>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    pub src_port: Option<[u16; 2]>,
    pub dst_port: Option<[u16; 2]>,
    /// Length of the IP datagram in bytes.
    pub length: Option<[u16; 2]>,
    pub ttl: Option<[u8; 2]>,
    pub icmp_type: Option<[u8; 2]>,
    /// `[mask, value]`.
    pub tcp_flags: Option<[u8; 2]>,
    /// Fragments alone, or whole datagrams alone.
    pub fragment: Option<bool>,
    /// Differentiated services code point, 0 to 63.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<[u8; 2]>,
    /// The first bytes after the transport header, at most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Vec<u8>>,
    /// More sources beside `source`, in order: nftables alone carries them, in its sets. Whoever knows nothing of them
    /// does too little, never too much.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<IpNet>,
}

impl Matches {
    /// Matches everything that comes from `source`.
    pub fn source(source: IpNet) -> Self {
        Self { source: Some(source), ..Self::default() }
    }

    /// Matches everything that comes from one of `sources`; none: there is none.
    pub fn any_source(mut sources: Vec<IpNet>) -> Option<Self> {
        sources.sort_unstable();
        sources.dedup();
        let first = *sources.first()?;
        sources.remove(0);
        Some(Self { sources, ..Self::source(first) })
    }

    /// All sources that are named.
    pub fn all_sources(&self) -> impl Iterator<Item = &IpNet> {
        self.source.iter().chain(&self.sources)
    }

    /// Whether `source` is one of them.
    pub fn names_source(&self, source: &IpNet) -> bool {
        self.source.as_ref() == Some(source) || self.sources.binary_search(source).is_ok()
    }

    /// Whether nothing but sources is named, one or more.
    pub fn is_sources_only(&self) -> bool {
        let Self { source, target, protocol, src_port, dst_port, length, ttl, icmp_type, tcp_flags, fragment, .. } =
            self;
        let ranges =
            src_port.is_none() && dst_port.is_none() && length.is_none() && ttl.is_none() && icmp_type.is_none();
        let rest = tcp_flags.is_none() && fragment.is_none() && self.dscp.is_none() && self.payload.is_none();
        source.is_some() && target.is_none() && protocol.is_none() && ranges && rest
    }

    /// Matches everything that goes to `target`.
    pub fn target(target: IpNet) -> Self {
        Self { target: Some(target), ..Self::default() }
    }

    /// The same, of one protocol.
    pub fn protocol(self, protocol: Protocol) -> Self {
        Self { protocol: Some(protocol.number()), ..self }
    }

    /// Whether nothing but the source is named, so that an exact or prefix block expresses it.
    pub fn is_source_only(&self) -> bool {
        self.source.is_some() && *self == Self { source: self.source, ..Self::default() }
    }
}

/// What happens to what matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Verdict {
    Drop,
    /// Packets per second over which packets are dropped.
    LimitPps {
        pps: u64,
        burst: u64,
    },
    /// Bits per second.
    LimitBps {
        bps: u64,
        burst: u64,
    },
    /// Asks no further rule.
    Pass,
    /// Copies every such packet to user space.
    Sample,
    /// Sets the differentiated services code point, 0 to 63.
    Mark {
        dscp: u8,
    },
}

/// Who carries the rule out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// XDP or tc; nftables where neither could be attached.
    Datapath,
    Nftables,
}

/// Who wanted the rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Origin {
    /// An operator at the node; the rule outlives incidents.
    Operator,
    /// A command of the control plane.
    ControlPlane { command: Uuid },
    /// A firewall rule that an incident fired.
    FirewallRule { rule: i64, name: String, incident: Uuid },
    /// The agent's own response to an incident.
    Response { incident: Uuid },
}

impl Origin {
    /// Whether nobody decided this very rule: it ends with its incident, and in the kernel with a silent agent.
    pub fn is_automatic(&self) -> bool {
        matches!(self, Self::FirewallRule { .. } | Self::Response { .. })
    }

    /// The origin's name in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::ControlPlane { .. } => "control_plane",
            Self::FirewallRule { .. } => "firewall_rule",
            Self::Response { .. } => "response",
        }
    }

    /// The incident that the rule belongs to.
    pub fn incident(&self) -> Option<Uuid> {
        match self {
            Self::FirewallRule { incident, .. } | Self::Response { incident } => Some(*incident),
            Self::Operator | Self::ControlPlane { .. } => None,
        }
    }
}

/// One rule that should be in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub id: RuleId,
    pub matches: Matches,
    pub verdict: Verdict,
    pub point: Point,
    pub origin: Origin,
    /// Nanoseconds of `CLOCK_MONOTONIC`; absent only for rules of operators.
    pub expires_at_ns: Option<u64>,
    /// Hits are counted and sampled, nothing is done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub evaluate: bool,
}

/// Everything that should be in force on the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleSet {
    pub rules: BTreeMap<RuleId, Rule>,
    /// Outranks every rule.
    pub allow: Vec<AllowEntry>,
    /// Enforce, evaluate or bypass.
    pub mode: Option<Mode>,
    /// Targets behind the TCP gate.
    pub gated: BTreeMap<IpNet, super::Gated>,
}

/// One step from what is in force to what should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Install(Rule),
    Remove(Rule),
    /// The same rule with another end.
    Extend(Rule),
}

impl RuleSet {
    /// The steps that make `self` into `desired`: removals last, so that no packet passes between an old rule and the
    /// one that replaces it.
    pub fn changes_to(&self, desired: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, wanted) in &desired.rules {
            match self.rules.get(id) {
                None => changes.push(Change::Install(wanted.clone())),
                Some(there) if there == wanted => {}
                Some(there) if Rule { expires_at_ns: wanted.expires_at_ns, ..there.clone() } == *wanted => {
                    changes.push(Change::Extend(wanted.clone()));
                }
                Some(there) => {
                    changes.push(Change::Install(wanted.clone()));
                    changes.push(Change::Remove(there.clone()));
                }
            }
        }
        let gone = self.rules.iter().filter(|(id, _)| !desired.rules.contains_key(id));
        changes.extend(gone.map(|(_, rule)| Change::Remove(rule.clone())));
        changes
    }
}
