//! Incidents: what nodes report, and what operators make of it.

use ftagent_common::api::{IncidentReport, RuleExecution, TimelineEntry};
use ftagent_common::vocab::{AttackFamily, IncidentStatus, Severity};
use ipnet::IpNet;
use serde::Serialize;
use uuid::Uuid;

use super::allowlist::serialize_prefix;
use super::problem::Check;
use super::{Pcap, Problem, Timestamp};

/// Longest lists of a report that are kept; what a node adds beyond is cut, not refused: a refusal would lose it all.
const MAX_LIST: usize = 1_000;

/// An operator's word on an incident, which the node's later reports do not undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    pub at: Timestamp,
    pub false_positive: bool,
}

/// An incident as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredIncident {
    pub id: i64,
    pub node: Uuid,
    pub node_name: String,
    /// The newest report, under the uuid that the incident was opened with.
    pub report: IncidentReport,
    pub closing: Option<Closing>,
    /// An operator's, instead of the node's.
    pub severity: Option<Severity>,
}

impl StoredIncident {
    /// The status that counts: an operator's before the node's.
    pub fn status(&self) -> IncidentStatus {
        effective_status(self.closing, self.report.status)
    }

    /// The severity that counts: an operator's before the node's.
    pub fn severity(&self) -> Severity {
        self.severity.unwrap_or(self.report.severity)
    }

    /// Takes the node's next report, if it brings something new; whether it does.
    ///
    /// An attack that comes back after its end lifts an operator's word that it is over, but not that it is none.
    pub fn take(&mut self, report: IncidentReport) -> bool {
        let Some(newer) = accept_report(Some(&self.report), report) else { return false };
        let is_back = self.report.status != IncidentStatus::Active && newer.status == IncidentStatus::Active;
        if is_back {
            self.closing = self.closing.filter(|closing| closing.false_positive);
        }
        self.report = newer;
        true
    }

    /// When it ended, by the node's clock if the node said so.
    pub fn resolved_at(&self) -> Option<Timestamp> {
        self.report.resolved_at.map(Timestamp::from).or(self.closing.map(|c| c.at))
    }
}

fn effective_status(closing: Option<Closing>, reported: IncidentStatus) -> IncidentStatus {
    match closing {
        Some(Closing { false_positive: true, .. }) => IncidentStatus::FalsePositive,
        Some(Closing { false_positive: false, .. }) => IncidentStatus::Resolved,
        None => reported,
    }
}

/// Cuts a report to what is kept; never refuses one, because a node drops what is refused.
pub fn check_report(mut report: IncidentReport) -> IncidentReport {
    report.confidence = report.confidence.clamp(0.0, 1.0);
    report.vectors.truncate(MAX_LIST);
    report.top_sources.truncate(MAX_LIST);
    report.top_src_ports.truncate(MAX_LIST);
    report.top_dst_ports.truncate(MAX_LIST);
    report.protocols.truncate(MAX_LIST);
    report.explanation.truncate(MAX_LIST);
    report.timeline.truncate(MAX_LIST);
    report.executions.truncate(MAX_LIST);
    report.target = report.target.trunc();
    report
}

/// What becomes of a report when `kept` is the newest one so far: the one to keep, or none if it brings nothing new.
///
/// The highest revision wins; severity and peaks never fall, and an incident keeps the uuid it was opened with.
pub fn accept_report(kept: Option<&IncidentReport>, new: IncidentReport) -> Option<IncidentReport> {
    let Some(kept) = kept else { return Some(new) };
    if new.revision <= kept.revision {
        return None;
    }
    Some(IncidentReport {
        uuid: kept.uuid,
        started_at: kept.started_at,
        severity: new.severity.max(kept.severity),
        peak_pps: new.peak_pps.max(kept.peak_pps),
        peak_bps: new.peak_bps.max(kept.peak_bps),
        ..new
    })
}

/// What an operator changes of an incident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperatorChange {
    pub status: Option<IncidentStatus>,
    pub severity: Option<Severity>,
}

impl OperatorChange {
    /// Checks the change against the incident's status.
    ///
    /// # Errors
    /// Nothing to change, or an ended incident to be made active: only traffic can do that.
    pub fn check(self, current: IncidentStatus) -> Result<Self, Problem> {
        let mut check = Check::default();
        check.that(self.status.is_some() || self.severity.is_some(), "status", || "give status or severity".to_owned());
        check.that(self.status != Some(IncidentStatus::Active) || current == IncidentStatus::Active, "status", || {
            format!("an incident that is {current} cannot be made active: a new attack opens a new one")
        });
        check.done().map(|()| self)
    }

    /// Whether the node must be told to end the incident.
    pub fn ends(self, current: IncidentStatus) -> bool {
        current == IncidentStatus::Active && self.status.is_some_and(|s| s != IncidentStatus::Active)
    }
}

/// What somebody wrote about an incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Note {
    pub id: i64,
    pub at: Timestamp,
    /// `note`, `status`, `severity` or `runbook`.
    pub kind: String,
    pub author: String,
    pub text: String,
}

impl Note {
    /// # Errors
    /// Text of other than 1 to 4,096 characters, or with control characters other than line breaks and tabs.
    pub fn check(text: &str) -> Result<(), Problem> {
        let mut check = Check::default();
        let length = text.chars().count();
        check.that((1..=4_096).contains(&length) && !text.trim().is_empty(), "text", || {
            format!("must be 1 to 4096 characters, got {length}")
        });
        check.that(!text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "text", || {
            "must not contain control characters".to_owned()
        });
        check.done()
    }
}

/// An incident in a list.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct IncidentSummary {
    pub id: i64,
    pub uuid: Uuid,
    /// `inc_` and the first 8 hex digits of the uuid.
    pub short_id: String,
    /// The node that saw it.
    pub node: Uuid,
    pub node_name: String,
    /// The attacked address or prefix.
    #[serde(serialize_with = "serialize_prefix")]
    #[schema(value_type = String)]
    pub target: IpNet,
    pub status: IncidentStatus,
    pub severity: Severity,
    pub attack_family: AttackFamily,
    pub subtype: Option<String>,
    /// 0 to 1.
    pub confidence: f64,
    pub spoofed: bool,
    pub carpet_bombing: bool,
    pub started_at: Timestamp,
    pub updated_at: Timestamp,
    pub resolved_at: Option<Timestamp>,
    pub peak_pps: u64,
    pub peak_bps: u64,
    pub packets: u64,
    pub dropped_packets: u64,
    /// Number of attacking sources, estimated from samples.
    pub source_count: u64,
    /// Most distinct sources of anything towards the target in about a second, as the node's kernel estimated; absent
    /// where it did not.
    pub distinct_sources: Option<u64>,
    /// The node's revision that this is.
    pub revision: u32,
}

impl From<&StoredIncident> for IncidentSummary {
    fn from(stored: &StoredIncident) -> Self {
        let report = &stored.report;
        Self {
            id: stored.id,
            uuid: report.uuid,
            short_id: format!("inc_{}", &report.uuid.simple().to_string()[..8]),
            node: stored.node,
            node_name: stored.node_name.clone(),
            target: report.target,
            status: stored.status(),
            severity: stored.severity(),
            attack_family: report.family,
            subtype: report.subtype.clone(),
            confidence: (report.confidence * 100.0).round() / 100.0,
            spoofed: report.spoofed,
            carpet_bombing: report.carpet_bombing,
            started_at: report.started_at.into(),
            updated_at: report.updated_at.into(),
            resolved_at: stored.resolved_at(),
            peak_pps: report.peak_pps,
            peak_bps: report.peak_bps,
            packets: report.packets,
            dropped_packets: report.dropped_packets,
            source_count: report.source_count,
            distinct_sources: report.distinct_sources,
            revision: report.revision,
        }
    }
}

/// An incident with all that is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Incident {
    #[serde(flatten)]
    pub summary: IncidentSummary,
    pub current_pps: u64,
    pub current_bps: u64,
    pub threshold: ftagent_common::api::ThresholdReport,
    pub vectors: Vec<ftagent_common::api::VectorShare>,
    pub top_sources: Vec<ftagent_common::api::SourceShare>,
    pub top_src_ports: Vec<ftagent_common::api::PortShare>,
    pub top_dst_ports: Vec<ftagent_common::api::PortShare>,
    pub protocols: Vec<ftagent_common::api::ClassShare>,
    pub signature: Option<ftagent_common::api::Signature>,
    pub explanation: Vec<String>,
    /// The node's entries and the operators', oldest first.
    pub timeline: Vec<TimelineEntry>,
    /// What was done about it on the node, and undone.
    pub mitigations: Vec<RuleExecution>,
    pub notes: Vec<Note>,
    /// Captures that the node uploaded, by part.
    pub pcaps: Vec<Pcap>,
}

impl Incident {
    /// Puts together what is kept in several places.
    pub fn assemble(
        stored: StoredIncident,
        notes: Vec<Note>,
        mitigations: Vec<RuleExecution>,
        pcaps: Vec<Pcap>,
    ) -> Self {
        let summary = IncidentSummary::from(&stored);
        let report = stored.report;
        let mut timeline = report.timeline;
        timeline.extend(notes.iter().map(|n| TimelineEntry {
            at: n.at.into(),
            kind: n.kind.clone(),
            text: format!("{}: {}", n.author, n.text),
        }));
        timeline.sort_by_key(|entry| entry.at);
        Self {
            summary,
            current_pps: report.current_pps,
            current_bps: report.current_bps,
            threshold: report.threshold,
            vectors: report.vectors,
            top_sources: report.top_sources,
            top_src_ports: report.top_src_ports,
            top_dst_ports: report.top_dst_ports,
            protocols: report.protocols,
            signature: report.signature,
            explanation: report.explanation,
            timeline,
            mitigations,
            notes: notes.into_iter().filter(|n| n.kind == "note").collect(),
            pcaps,
        }
    }
}

/// Which incidents are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IncidentFilter {
    pub node: Option<Uuid>,
    pub status: Option<IncidentStatus>,
    /// Exactly this severity.
    pub severity: Option<Severity>,
    pub family: Option<AttackFamily>,
    /// Begun at or after.
    pub from: Option<Timestamp>,
    /// Begun before.
    pub to: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn report(revision: u32, status: &str, severity: &str, peak: u64) -> IncidentReport {
        serde_json::from_value(serde_json::json!({
            "uuid": Uuid::from_u128(1), "revision": revision, "status": status, "target": "203.0.113.5/32",
            "family": "udp_flood", "severity": severity, "confidence": 0.9, "spoofed": false,
            "started_at": "2026-05-12T14:30:00Z", "updated_at": "2026-05-12T14:30:01Z",
            "peak_pps": peak, "peak_bps": peak * 500, "current_pps": 1, "current_bps": 1,
            "threshold": {"quantity": "pps", "value": 10, "origin": "floor", "ratio": 9.0},
            "packets": 5, "dropped_packets": 4, "source_count": 3
        }))
        .expect("a report")
    }

    #[test]
    fn only_a_higher_revision_brings_something_new() {
        let kept = report(5, "active", "high", 100);
        for revision in 0..=5 {
            assert_eq!(accept_report(Some(&kept), report(revision, "resolved", "low", 1)), None, "{revision}");
        }
        let next = accept_report(Some(&kept), report(6, "resolved", "low", 1)).expect("newer");
        assert_eq!((next.status, next.severity, next.peak_pps), (IncidentStatus::Resolved, Severity::High, 100));
    }

    #[test]
    fn replayed_and_reordered_reports_end_in_the_same_state() {
        let reports: Vec<_> =
            (1..=4).map(|n| report(n, if n == 4 { "resolved" } else { "active" }, "low", 9)).collect();
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 1, 0], [2, 3, 3, 2]] {
            let mut kept = None;
            for index in order {
                if let Some(new) = accept_report(kept.as_ref(), reports[index].clone()) {
                    kept = Some(new);
                }
            }
            assert_eq!(kept.map(|k| (k.revision, k.status)), Some((4, IncidentStatus::Resolved)), "{order:?}");
        }
    }

    #[test]
    fn an_attack_that_comes_back_is_active_again_unless_an_operator_said_that_it_is_none() {
        let at = Timestamp::from(report(1, "active", "low", 1).started_at);
        let closed = |false_positive| Some(Closing { at, false_positive });
        use IncidentStatus::{Active, FalsePositive, Resolved};
        // (the node said, the operator said, then the node says, the status)
        let table = [
            ("resolved", None, "active", Active),
            ("resolved", closed(false), "active", Active),
            ("resolved", closed(true), "active", FalsePositive),
            // The node has not heard of the operator's word yet.
            ("active", closed(false), "active", Resolved),
            ("active", closed(true), "active", FalsePositive),
            ("resolved", closed(false), "resolved", Resolved),
        ];
        for (before, closing, after, expected) in table {
            let report = |revision, status| report(revision, status, "low", 1);
            let mut kept = StoredIncident {
                id: 1,
                node: Uuid::nil(),
                node_name: String::new(),
                report: report(5, before),
                closing,
                severity: None,
            };
            assert!(!kept.take(report(4, "active")), "an older report");
            assert!(kept.take(report(6, after)));
            assert_eq!(kept.status(), expected, "{before}, {closing:?}, {after}");
        }
    }

    proptest::proptest! {
        #[test]
        fn the_newest_report_wins_in_whatever_order_and_number_they_come(
            revisions in proptest::collection::vec(0u32..20, 1..40),
        ) {
            let mut kept: Option<IncidentReport> = None;
            for revision in &revisions {
                // One revision says one thing, however often it is sent.
                let peak = u64::from(*revision) * 7 % 13;
                if let Some(new) = accept_report(kept.as_ref(), report(*revision, "active", "low", peak)) {
                    proptest::prop_assert!(kept.as_ref().is_none_or(|k| k.revision < new.revision));
                    proptest::prop_assert!(kept.as_ref().is_none_or(|k| k.peak_pps <= new.peak_pps));
                    kept = Some(new);
                }
            }
            let newest = revisions.iter().max().copied();
            proptest::prop_assert_eq!(kept.map(|k| k.revision), newest);
        }
    }

    #[test]
    fn an_operators_word_outlives_the_nodes_reports() {
        let closing = |false_positive| Some(Closing { at: Timestamp::from_secs(1), false_positive });
        for status in [IncidentStatus::Active, IncidentStatus::Resolved] {
            assert_eq!(effective_status(closing(true), status), IncidentStatus::FalsePositive);
            assert_eq!(effective_status(closing(false), status), IncidentStatus::Resolved);
            assert_eq!(effective_status(None, status), status);
        }
    }

    #[test]
    fn an_ended_incident_is_not_made_active() {
        use IncidentStatus::{Active, FalsePositive, Resolved};
        for (current, wanted, allowed) in [
            (Active, Active, true),
            (Active, Resolved, true),
            (Active, FalsePositive, true),
            (Resolved, FalsePositive, true),
            (FalsePositive, Resolved, true),
            (Resolved, Active, false),
            (FalsePositive, Active, false),
        ] {
            let change = OperatorChange { status: Some(wanted), severity: None };
            assert_eq!(change.check(current).is_ok(), allowed, "{current} to {wanted}");
        }
        assert!(OperatorChange::default().check(Active).is_err());
    }
}
