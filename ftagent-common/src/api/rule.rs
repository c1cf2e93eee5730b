//! Firewall rules: trigger, action, scope, cooldown.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Action;
use crate::vocab::{AttackFamily, Severity, TriggerGroup};

/// A family, or a group of families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FamilyOrGroup {
    Family(AttackFamily),
    Group(TriggerGroup),
}

/// When a rule fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Trigger {
    /// At every incident.
    Any {},
    /// When an incident's peak is above a number of packets per second.
    PpsThreshold {
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000_000))]
        pps: u64,
    },
    /// When an incident is at least this severe.
    Severity { at_least: Severity },
    /// When an incident is of the family, or of a family in the group.
    AttackFamily { family: FamilyOrGroup },
}

impl Trigger {
    /// Whether an incident with these properties fires the rule.
    pub fn matches(&self, family: AttackFamily, severity: Severity, peak_pps: u64) -> bool {
        match *self {
            Self::Any {} => true,
            Self::PpsThreshold { pps } => peak_pps > pps,
            Self::Severity { at_least } => severity >= at_least,
            Self::AttackFamily { family: FamilyOrGroup::Family(wanted) } => family == wanted,
            Self::AttackFamily { family: FamilyOrGroup::Group(group) } => group.contains(family),
        }
    }
}

/// A firewall rule as a node needs it: those of other nodes and disabled ones are not sent to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FirewallRule {
    /// The control plane's id; rules of the node's own file have ids from 2^31.
    pub id: i64,
    pub name: String,
    pub trigger: Trigger,
    pub action: Action,
    /// Minutes between two firings for the same target, 1 to 1,440.
    #[serde(default = "default_cooldown")]
    pub cooldown_minutes: u32,
}

/// Five minutes, counted per rule, node and target.
pub const fn default_cooldown() -> u32 {
    5
}

/// An address or prefix that nothing automated may block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AllowEntry {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub prefix: IpNet,
    #[serde(default)]
    pub label: String,
}

/// A threshold of one host or prefix, before every other threshold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostThreshold {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub target: IpNet,
    #[serde(default)]
    pub pps: Option<u64>,
    #[serde(default)]
    pub bps: Option<u64>,
}

/// A rule fired and what became of it; every execution is audited by the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RuleExecution {
    /// Makes repeats harmless.
    pub uuid: Uuid,
    /// 0 for what the agent's own response did without a rule.
    pub rule_id: i64,
    pub incident: Uuid,
    /// An `Action` as its rule had it. What a node did is kept as it is, whatever a rule may be made with today.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub action: Action,
    pub outcome: ExecutionOutcome,
    /// The tool's own words, or why the guard refused; at most 4 KiB.
    #[serde(default)]
    pub output: String,
    /// The equivalent commands, one argument vector each.
    #[serde(default)]
    pub commands: Vec<Vec<String>>,
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub at: time::OffsetDateTime,
    /// Microseconds from the incident's opening to the effect.
    #[serde(default)]
    pub latency_us: u64,
}

/// What became of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ExecutionOutcome {
    Applied,
    Undone,
    Failed,
    /// The guard said no.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_on_a_group_matches_every_family_in_it() {
        let table = [
            (r#"{"type":"any"}"#, AttackFamily::Unknown, Severity::Low, 1, true),
            (r#"{"type":"pps_threshold","pps":50000}"#, AttackFamily::UdpFlood, Severity::Low, 50_000, false),
            (r#"{"type":"pps_threshold","pps":50000}"#, AttackFamily::UdpFlood, Severity::Low, 50_001, true),
            (r#"{"type":"severity","at_least":"high"}"#, AttackFamily::UdpFlood, Severity::Medium, 1, false),
            (r#"{"type":"severity","at_least":"high"}"#, AttackFamily::UdpFlood, Severity::Critical, 1, true),
            (r#"{"type":"attack_family","family":"udp"}"#, AttackFamily::NtpAmplification, Severity::Low, 1, true),
            (
                r#"{"type":"attack_family","family":"udp_flood"}"#,
                AttackFamily::NtpAmplification,
                Severity::Low,
                1,
                false,
            ),
        ];
        for (json, family, severity, peak, expected) in table {
            let trigger: Trigger = serde_json::from_str(json).expect(json);
            assert_eq!(trigger.matches(family, severity, peak), expected, "{json} on {family}");
        }
    }
}
