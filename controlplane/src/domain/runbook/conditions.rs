//! Which attacks a runbook is for, and which go on past a condition.

use std::collections::BTreeSet;

use ftagent_common::api::FamilyOrGroup;
use ftagent_common::vocab::{AttackFamily, IncidentStatus, Severity};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::Attack;
use crate::domain::problem::Check;

/// Packets per second beyond what any node sees.
const MAX_PPS: u64 = 1_000_000_000_000;
/// The most nodes that a runbook names.
const MAX_NODES: usize = 1_000;

/// When a runbook starts: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TriggerConditions {
    /// A family such as `udp_flood`, or a group such as `udp`; `any` or absent: every one.
    #[serde(default, deserialize_with = "or_any", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub family: Option<FamilyOrGroup>,
    /// The least severity: `low`, `medium`, `high`, `critical`; `any` or absent: every one.
    #[serde(default, deserialize_with = "or_any", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub severity: Option<Severity>,
    /// The least peak in packets per second, 1 to 10^12.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000_000_000_u64)]
    pub min_pps: Option<u64>,
    /// The nodes that may have seen it, at most 1,000; every one if there are none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(max_items = 1_000)]
    pub nodes: BTreeSet<Uuid>,
}

impl TriggerConditions {
    pub(super) fn check(&self, check: &mut Check) {
        check_pps(check, "trigger_conditions.min_pps", self.min_pps);
        check
            .that(self.nodes.len() <= MAX_NODES, "trigger_conditions.nodes", || format!("must be at most {MAX_NODES}"));
    }

    /// Whether the attack is one that the runbook is for.
    pub fn hold(&self, attack: &Attack) -> bool {
        of_family(self.family, attack.family)
            && self.severity.is_none_or(|least| attack.severity >= least)
            && self.min_pps.is_none_or(|least| attack.peak_pps >= least)
            && (self.nodes.is_empty() || attack.node.is_some_and(|node| self.nodes.contains(&node)))
    }
}

/// What must hold for the steps after it, looked at when its turn comes; at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// As in `trigger_conditions`.
    #[serde(default, deserialize_with = "or_any", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub family: Option<FamilyOrGroup>,
    /// The least severity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// The least packets per second that the node reported last, dropped ones included; 1 to 10^12.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000_000_000_u64)]
    pub min_pps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<IncidentStatus>,
}

impl Condition {
    pub(super) fn check(&self, check: &mut Check, path: &str) {
        check.that(*self != Self::default(), path, || "must name family, severity, min_pps or status".to_owned());
        check_pps(check, &format!("{path}.min_pps"), self.min_pps);
    }

    /// What does not hold, for people; none if all of it does.
    pub fn unmet(&self, attack: &Attack) -> Option<String> {
        let Attack { family, severity, status, current_pps, .. } = attack;
        if !of_family(self.family, *family) {
            return Some(format!("the family is {family}"));
        }
        if self.severity.is_some_and(|least| *severity < least) {
            return Some(format!("the severity is {severity}"));
        }
        if self.status.is_some_and(|wanted| *status != wanted) {
            return Some(format!("the incident is {status}"));
        }
        let weak = self.min_pps.is_some_and(|least| *current_pps < least);
        weak.then(|| format!("there are {current_pps} packets/s"))
    }
}

pub(super) fn of_family(wanted: Option<FamilyOrGroup>, family: AttackFamily) -> bool {
    match wanted {
        None => true,
        Some(FamilyOrGroup::Family(wanted)) => wanted == family,
        Some(FamilyOrGroup::Group(group)) => group.contains(family),
    }
}

fn check_pps(check: &mut Check, path: &str, pps: Option<u64>) {
    check.that(pps.is_none_or(|pps| (1..=MAX_PPS).contains(&pps)), path, || format!("must be 1 to {MAX_PPS}"));
}

/// Reads `any` as nothing.
fn or_any<'de, D: Deserializer<'de>, T: Deserialize<'de>>(input: D) -> Result<Option<T>, D::Error> {
    #[derive(Deserialize)]
    enum Any {
        #[serde(rename = "any")]
        Any,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<T> {
        Any(Any),
        Word(T),
    }
    Ok(match Option::<Either<T>>::deserialize(input)? {
        None | Some(Either::Any(Any::Any)) => None,
        Some(Either::Word(word)) => Some(word),
    })
}
