//! Staged rules: what the iptables integration proposes about an incident, until an operator decides on it.

use std::collections::BTreeSet;

use ftagent_common::api::{Action, IptablesDropSource, Order, Preview, PreviewContext, preview};
use ftagent_common::vocab::IncidentStatus;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::destination::{Setting, Settings};
use super::{AllowlistEntry, StoredIncident, Timestamp};

/// The most rules that one integration stages about one incident.
pub const MAX_STAGED: usize = 8;
/// The most sources of one staged rule: each is a rule of iptables, which every packet passes.
const MAX_SOURCES: usize = 256;

/// What became of a staged rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StagedStatus {
    /// Nobody decided yet.
    Pending,
    /// It was approved; the node did not answer yet.
    Approved,
    Rejected,
    /// Nobody decided in time, or the incident ended before.
    Expired,
    /// The node carried it out.
    Applied,
    /// The node could not carry it out, or did not answer within a day: see `error`.
    Failed,
}

impl StagedStatus {
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Approved, Self::Rejected, Self::Expired, Self::Applied, Self::Failed];

    /// The spelling on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Applied => "applied",
            Self::Failed => "failed",
        }
    }
}

/// A staged rule as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct StagedRule {
    pub id: i64,
    /// The integration that staged it.
    pub integration: i64,
    pub incident: Uuid,
    pub node: Uuid,
    pub action: Action,
    /// The commands of the node, exactly as it will run them.
    pub preview: Preview,
    pub status: StagedStatus,
    /// Whether the node undoes it when the incident ends; else after `ttl_secs` alone.
    pub undo_at_resolve: bool,
    /// Seconds until the node undoes it in any case.
    pub ttl_secs: u32,
    pub created_at: Timestamp,
    /// Until when it can be decided on.
    pub expires_at: Timestamp,
    pub decided_at: Option<Timestamp>,
    /// Who decided; `auto_apply` for an integration that asks nobody.
    pub decided_by: String,
    /// Why it expired.
    pub reason: String,
    /// The node's order, once it is approved.
    pub command_id: Option<Uuid>,
    /// The node's words, if it could not carry it out.
    pub error: String,
}

impl StagedRule {
    /// The order that an approval leaves the node.
    pub fn order(&self) -> Order {
        Order::Apply {
            action: self.action.clone(),
            incident: self.incident,
            undo_at_resolve: self.undo_at_resolve,
            ttl_secs: self.ttl_secs,
        }
    }
}

/// What an operator makes of a staged rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Approve,
    Reject,
}

/// How an iptables integration is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging {
    /// Nodes are told at once; else an operator decides.
    pub auto_apply: bool,
    pub undo_at_resolve: bool,
    pub ttl_secs: u32,
    pub approve_secs: i64,
}

impl Staging {
    pub fn of(settings: &Settings) -> Self {
        let flag = |name, default| match settings.get(name) {
            Some(Setting::Flag(flag)) => *flag,
            _ => default,
        };
        let number = |name, default| match settings.get(name) {
            Some(Setting::Number(number)) => *number,
            _ => default,
        };
        Self {
            auto_apply: flag("auto_apply", false),
            undo_at_resolve: flag("remove_on_resolve", true),
            ttl_secs: u32::try_from(number("ttl_secs", 3_600)).unwrap_or(3_600),
            approve_secs: number("approve_within_minutes", 60).saturating_mul(60),
        }
    }
}

/// The action to stage about an incident, or none: over, forged, or nothing new since what was staged before.
pub fn action_to_stage(
    incident: &StoredIncident,
    staged: &BTreeSet<IpNet>,
    allowed: &[AllowlistEntry],
) -> Option<Action> {
    if incident.status() != IncidentStatus::Active || incident.report.spoofed {
        return None;
    }
    let found = incident.report.top_sources.iter().map(|s| IpNet::from(s.ip));
    let new: BTreeSet<IpNet> =
        found.filter(|s| !staged.contains(s) && !allowed.iter().any(|e| e.overlaps(s))).collect();
    if new.is_empty() {
        return None;
    }
    let sources = new.into_iter().take(MAX_SOURCES).collect();
    Some(Action::IptablesDropSource(IptablesDropSource { sources }))
}

/// The commands of an action whose sources are named.
pub fn preview_staged(action: &Action, target: IpNet) -> Preview {
    preview(action, &PreviewContext::of(target))
}

#[cfg(test)]
mod tests {
    use super::super::AllowlistScope;
    use super::*;

    fn incident(change: impl FnOnce(&mut serde_json::Value)) -> StoredIncident {
        let mut report = serde_json::json!({
            "uuid": Uuid::nil(), "revision": 1, "status": "active", "target": "203.0.113.5/32", "family": "udp_flood",
            "severity": "high", "confidence": 0.9, "spoofed": false, "started_at": "2026-05-12T14:29:00Z",
            "updated_at": "2026-05-12T14:29:30Z", "peak_pps": 1, "peak_bps": 1, "current_pps": 1, "current_bps": 1,
            "threshold": { "quantity": "pps", "value": 1, "origin": "floor", "ratio": 5.0 }, "packets": 1,
            "dropped_packets": 0, "source_count": 2,
            "top_sources": [{ "ip": "198.51.100.7", "pps": 1, "share": 0.5 }, { "ip": "2001:db8::7", "pps": 1, "share": 0.5 }],
        });
        change(&mut report);
        let report = serde_json::from_value(report).expect("a report");
        StoredIncident { id: 1, node: Uuid::nil(), node_name: String::new(), report, closing: None, severity: None }
    }

    fn sources(action: Option<Action>) -> Vec<String> {
        let named = action.and_then(|a| a.sources().map(<[IpNet]>::to_vec)).unwrap_or_default();
        named.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_new_sources_of_attacks_under_way_are_staged() {
        let both = BTreeSet::from(["198.51.100.7/32".parse().expect("a prefix")]);
        let none = BTreeSet::new();
        let open = incident(|_| ());
        assert_eq!(sources(action_to_stage(&open, &none, &[])), ["198.51.100.7/32", "2001:db8::7/128"]);
        assert_eq!(sources(action_to_stage(&open, &both, &[])), ["2001:db8::7/128"]);
        let entry = AllowlistEntry {
            id: 1,
            ip_address: "2001:db8::/32".parse().expect("a prefix"),
            label: String::new(),
            scope: AllowlistScope::Workspace,
            node: None,
            created_at: Timestamp::from_secs(0),
        };
        assert_eq!(action_to_stage(&open, &both, &[entry]), None);
        assert_eq!(action_to_stage(&incident(|r| r["spoofed"] = true.into()), &none, &[]), None);
        assert_eq!(action_to_stage(&incident(|r| r["status"] = "resolved".into()), &none, &[]), None);
        assert_eq!(action_to_stage(&incident(|r| r["top_sources"] = serde_json::json!([])), &none, &[]), None);
    }

    #[test]
    fn settings_have_defaults() {
        let expected = Staging { auto_apply: false, undo_at_resolve: true, ttl_secs: 3_600, approve_secs: 3_600 };
        assert_eq!(Staging::of(&Settings::new()), expected);
        let set = Settings::from([
            ("auto_apply".to_owned(), Setting::Flag(true)),
            ("remove_on_resolve".to_owned(), Setting::Flag(false)),
            ("ttl_secs".to_owned(), Setting::Number(60)),
            ("approve_within_minutes".to_owned(), Setting::Number(2)),
        ]);
        let expected = Staging { auto_apply: true, undo_at_resolve: false, ttl_secs: 60, approve_secs: 120 };
        assert_eq!(Staging::of(&set), expected);
    }
}
