//! The attack that a runbook is carried out for.

use std::net::IpAddr;

use ftagent_common::api::FamilyOrGroup;
use ftagent_common::vocab::{AttackFamily, IncidentStatus, Severity};
use ipnet::IpNet;
use serde::Serialize;
use uuid::Uuid;

use super::TriggerConditions;
use crate::domain::StoredIncident;
use crate::domain::rule::example_context;

/// Sources that a message names.
const MAX_SOURCES: usize = 100;

/// An attack, of an incident or made up for a test.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attack {
    pub node: Option<Uuid>,
    pub target: IpNet,
    pub family: AttackFamily,
    pub severity: Severity,
    pub status: IncidentStatus,
    pub spoofed: bool,
    pub peak_pps: u64,
    pub peak_bps: u64,
    pub current_pps: u64,
    /// The heaviest first, at most 100.
    pub sources: Vec<IpAddr>,
}

impl Attack {
    pub fn of(incident: &StoredIncident) -> Self {
        let report = &incident.report;
        let mut sources: Vec<_> = report.top_sources.iter().collect();
        sources.sort_by_key(|source| std::cmp::Reverse(source.pps));
        Self {
            node: Some(incident.node),
            target: report.target,
            family: report.family,
            severity: incident.severity(),
            status: incident.status(),
            spoofed: report.spoofed,
            peak_pps: report.peak_pps,
            peak_bps: report.peak_bps,
            current_pps: report.current_pps,
            sources: sources.iter().take(MAX_SOURCES).map(|source| source.ip).collect(),
        }
    }

    /// One that meets `conditions`, between addresses reserved for documentation.
    pub fn made_up(conditions: &TriggerConditions, node: Option<Uuid>) -> Self {
        let family = match conditions.family {
            None => AttackFamily::UdpFlood,
            Some(FamilyOrGroup::Family(family)) => family,
            Some(FamilyOrGroup::Group(group)) => AttackFamily::ALL
                .iter()
                .copied()
                .find(|family| group.contains(*family))
                .unwrap_or(AttackFamily::UdpFlood),
        };
        let peak_pps = conditions.min_pps.unwrap_or(100_000);
        let example = example_context();
        Self {
            node: node.or_else(|| conditions.nodes.first().copied()),
            target: example.target,
            family,
            severity: conditions.severity.unwrap_or(Severity::Critical),
            status: IncidentStatus::Active,
            spoofed: false,
            peak_pps,
            peak_bps: peak_pps.saturating_mul(8 * 512),
            current_pps: peak_pps,
            sources: example.sources,
        }
    }
}
