//! One attack on one target from its opening to its end: what is known of it, what was done, and its reports.
//!
//! ```text
//! open ──(samples)──▶ classified ──(below the threshold for the hold-down)──▶ resolved ──(rules gone)──▶ closed
//!   ▲                                                                            │                         │
//!   └────────────────────────(back within five minutes: reopened)────────────────┴─────────────────────────┘
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use ftagent_common::abi::Flow;
use ftagent_common::api::{
    Action, ClassShare, ExecutionOutcome, IncidentReport, PortShare, RuleExecution, Signature, SourceShare,
    ThresholdReport, TimelineEntry, VectorShare,
};
use ftagent_common::vocab::{AttackFamily, IncidentStatus, Severity, TrafficClass};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::classify::{ENOUGH, Verdict};
use super::detect::Excess;
use super::input::Now;
use super::policy::Width;
use super::rules::RuleId;
use super::sample::{Delta, SEC};
use super::steps::Steps;
use super::window::Seen;

/// Bounds of what a report carries.
const MAX_TIMELINE: usize = 100;
pub(super) const MAX_EXPLANATION: usize = 24;
const MAX_EXECUTIONS: usize = 64;
/// At most one update in this time.
pub(super) const UPDATE_EVERY_NS: u64 = 5 * SEC;

/// The namespace of the ids that incidents and executions derive from what they are.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1a_9c52_4a0e_4b7d_9d3c_51c6_0a7e_2f10);

/// What the keys of orders of the control plane begin with.
pub(super) const ORDER: &str = "order ";

/// Something that was done about an incident: one firewall rule's action, or one kind of the agent's own response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deed {
    /// What it is; of those in force unique within the incident.
    pub key: String,
    /// How many deeds of the same key came before it in the same incident.
    #[serde(default)]
    pub again: u32,
    /// Its rules were taken back: what is done next is a deed of its own.
    #[serde(default)]
    pub withdrawn: bool,
    /// 0 for the agent's own response.
    pub rule_id: i64,
    pub action: Action,
    pub rules: BTreeSet<RuleId>,
    pub commands: Vec<Vec<String>>,
    pub undo: Vec<Vec<String>>,
    /// When it took effect, and how long after the opening.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub applied_at: Option<OffsetDateTime>,
    pub latency_us: u64,
    /// The tool's words when a part of it failed.
    pub failed: Option<String>,
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub undone_at: Option<OffsetDateTime>,
    /// The step of the response that it belongs to, and goes with.
    #[serde(default)]
    pub width: Width,
    /// The action of another tool that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Uuid>,
    /// What the tool said when it was done, and when it was undone.
    #[serde(default)]
    pub output: String,
    #[serde(default)]
    pub undo_output: String,
}

impl Deed {
    /// Whether it is the agent's own response, and neither a firewall rule's nor an order's.
    pub(super) fn is_response(&self) -> bool {
        self.rule_id == 0 && self.task.is_none() && !self.key.starts_with(ORDER)
    }

    /// Whether its rules are meant to be in force.
    pub fn stands(&self) -> bool {
        !self.withdrawn && self.undone_at.is_none()
    }

    /// What tells its executions from those of other deeds of the incident.
    fn name(&self) -> String {
        if self.again == 0 { self.key.clone() } else { format!("{}/{}", self.key, self.again) }
    }
}

/// One attack on one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Incident {
    pub uuid: Uuid,
    pub target: IpNet,
    pub carpet: bool,
    pub status: IncidentStatus,
    pub revision: u32,
    /// When it was opened, or opened again last.
    pub opened_ns: u64,
    /// When the excess began, the last time it did.
    pub onset_ns: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub resolved_at: Option<OffsetDateTime>,
    /// The quantity that opened it, with the threshold and the highest ratio since.
    pub excess: Excess,
    pub normal: Option<u64>,
    pub severity: Severity,
    pub peak_pps: u64,
    pub peak_bps: u64,
    pub current_pps: u64,
    pub current_bps: u64,
    pub packets: u64,
    pub dropped: u64,
    pub classes: [u64; TrafficClass::COUNT],
    pub family: AttackFamily,
    pub subtype: Option<String>,
    pub vectors: Vec<VectorShare>,
    pub confidence: f64,
    pub spoofed: bool,
    pub source_count: u64,
    /// Most distinct sources in about a second, as the kernel estimated them.
    #[serde(default)]
    pub distinct_sources: Option<u64>,
    pub top_sources: Vec<SourceShare>,
    pub top_src_ports: Vec<PortShare>,
    pub top_dst_ports: Vec<PortShare>,
    pub signature: Option<Signature>,
    pub explanation: Vec<String>,
    pub timeline: Vec<TimelineEntry>,
    pub deeds: Vec<Deed>,
    pub refused: Vec<RuleExecution>,
    /// Firewall rules that fired for it.
    pub fired: BTreeSet<i64>,
    /// Refusals that are in the timeline already.
    pub told: BTreeSet<String>,
    /// Sources that an operator unblocked: left alone.
    pub spared: Vec<IpNet>,
    pub width: Width,
    /// How the response came to its width, and when it may step back.
    #[serde(default)]
    pub steps: Steps,
    /// Until when its target stands behind the TCP gate.
    #[serde(default)]
    pub gate_ends_ns: Option<u64>,
    /// What access logs or connections say of it.
    #[serde(default)]
    pub web: Option<super::web::Evidence>,
    pub hold_down_ms: u32,
    /// Since when it is over, where the same attack coming back would be the same incident.
    #[serde(default)]
    pub rests_since_ns: Option<u64>,
    /// How often it was opened again.
    #[serde(default)]
    pub returns: u32,
    /// Samples that the verdict rests on.
    pub samples: usize,
    #[serde(skip)]
    pub verdict: Option<Verdict>,
    /// What the target received before.
    #[serde(skip)]
    pub clean: Vec<Seen>,
    #[serde(skip)]
    pub classified_ns: Option<u64>,
    /// A verdict that contradicts the one in force, waiting to be seen again.
    #[serde(skip)]
    pub doubt: Option<AttackFamily>,
    #[serde(skip)]
    pub calm_since: Option<u64>,
    /// When the newest response was asked for.
    #[serde(skip)]
    pub responded_ns: Option<u64>,
    pub reported_ns: Option<u64>,
    #[serde(skip)]
    pub reported_pps: u64,
    #[serde(skip)]
    pub reported_sources: u64,
    /// Something worth an update happened.
    #[serde(skip)]
    pub changed: bool,
}

impl Incident {
    /// Opens an incident on `target`.
    pub fn open(target: IpNet, carpet: bool, excess: Excess, onset_ns: u64, hold_down_ms: u32, now: Now) -> Self {
        let name = format!("{target} {} {}", now.wall.unix_timestamp_nanos(), now.mono_ns);
        let mut incident = Self {
            uuid: Uuid::new_v5(&NAMESPACE, name.as_bytes()),
            target,
            carpet,
            status: IncidentStatus::Active,
            revision: 0,
            opened_ns: now.mono_ns,
            onset_ns,
            started_at: now.wall,
            updated_at: now.wall,
            resolved_at: None,
            excess,
            normal: None,
            severity: Severity::from_ratio(excess.ratio),
            peak_pps: 0,
            peak_bps: 0,
            current_pps: 0,
            current_bps: 0,
            packets: 0,
            dropped: 0,
            classes: [0; TrafficClass::COUNT],
            family: AttackFamily::Unknown,
            subtype: None,
            vectors: Vec::new(),
            confidence: 0.0,
            spoofed: false,
            source_count: 0,
            distinct_sources: None,
            top_sources: Vec::new(),
            top_src_ports: Vec::new(),
            top_dst_ports: Vec::new(),
            signature: None,
            explanation: Vec::new(),
            timeline: Vec::new(),
            deeds: Vec::new(),
            refused: Vec::new(),
            fired: BTreeSet::new(),
            told: BTreeSet::new(),
            spared: Vec::new(),
            width: Width::default(),
            steps: Steps::default(),
            gate_ends_ns: None,
            web: None,
            hold_down_ms,
            rests_since_ns: None,
            returns: 0,
            samples: 0,
            verdict: None,
            clean: Vec::new(),
            classified_ns: None,
            doubt: None,
            calm_since: None,
            responded_ns: None,
            reported_ns: None,
            reported_pps: 0,
            reported_sources: 0,
            changed: true,
        };
        let text = incident.excess_text();
        incident.note("opened", text, now);
        incident
    }

    /// Adds a deed, named so that its executions are told from those of earlier ones.
    pub(super) fn add_deed(&mut self, deed: Deed) {
        let before = self.deeds.iter().filter(|d| d.key == deed.key).map(|d| d.again + 1).max();
        self.deeds.push(Deed { again: before.unwrap_or(0), ..deed });
    }

    /// How wide what is in force is; what was done by firewall rules is of no width.
    pub(super) fn widest(&self) -> Width {
        self.deeds.iter().filter(|d| d.stands()).map(|d| d.width).max().unwrap_or_default()
    }

    pub(super) fn excess_text(&self) -> String {
        self.text_of(&self.excess)
    }

    pub(super) fn text_of(&self, e: &Excess) -> String {
        let normal = self.normal.map_or_else(String::new, |n| format!(", normal is {n}"));
        format!(
            "{} of {} at {:.0}, {:.1} times the threshold of {:.0} ({}{normal})",
            e.quantity.as_str(),
            self.target,
            e.rate,
            e.ratio,
            e.threshold.value,
            e.threshold.origin.as_str()
        )
    }

    /// What the kernel saw of the sources, which no sample misses.
    fn sources_text(&self) -> Option<String> {
        let sources = self.distinct_sources?;
        Some(format!("about {sources} distinct sources sent to {} within a second, attackers or not", self.target))
    }

    /// Whether its attack goes on.
    pub fn is_active(&self) -> bool {
        self.status == IncidentStatus::Active
    }

    /// Adds to the timeline; what is oldest after the opening gives way.
    pub fn note(&mut self, kind: &str, text: impl Into<String>, now: Now) {
        if self.timeline.len() >= MAX_TIMELINE {
            self.timeline.remove(1);
        }
        self.timeline.push(TimelineEntry { at: now.wall, kind: kind.to_owned(), text: text.into() });
        self.changed = true;
    }

    /// Records a refusal once, however often it is met.
    pub fn refuse(&mut self, execution: Option<RuleExecution>, text: String, now: Now) {
        if self.told.len() >= MAX_TIMELINE || !self.told.insert(text.clone()) {
            return;
        }
        if let Some(execution) = execution.filter(|_| self.refused.len() < MAX_EXECUTIONS) {
            self.refused.push(execution);
        }
        self.note("refused", text, now);
    }

    /// Adds what came since the last reading.
    pub fn count(&mut self, delta: &Delta) {
        for (sum, flow) in self.classes.iter_mut().zip(delta) {
            let all = Flow::total(flow).packets;
            *sum = sum.saturating_add(all);
            self.packets = self.packets.saturating_add(all);
            self.dropped = self.dropped.saturating_add(flow.dropped.packets);
        }
    }

    /// Raises the peak; the severity follows and never falls.
    pub fn raise(&mut self, ratio: f64, pps: u64, bps: u64) {
        self.peak_pps = self.peak_pps.max(pps);
        self.peak_bps = self.peak_bps.max(bps);
        self.excess.ratio = self.excess.ratio.max(ratio);
        let mut severity = Severity::from_ratio(self.excess.ratio);
        if self.family == AttackFamily::MultiVector {
            severity = severity.raised();
        }
        if severity > self.severity {
            self.severity = severity;
            self.changed = true;
        }
    }

    /// Takes a new verdict, unless it contradicts a good one for the first time. Whether the family changed.
    pub fn take(&mut self, verdict: Verdict, pps: impl Fn(IpAddr, f64) -> u64, now: Now) -> bool {
        let first = self.verdict.is_none();
        let changed = verdict.family != self.family;
        let settled = self.samples >= ENOUGH && self.confidence >= 0.5;
        if !first && changed && settled && (self.doubt != Some(verdict.family) || verdict.confidence < 0.5) {
            self.doubt = Some(verdict.family);
            return false;
        }
        self.doubt = None;
        self.classified_ns = Some(now.mono_ns);
        self.samples = verdict.samples;
        self.confidence = verdict.confidence;
        self.spoofed = verdict.spoofed;
        self.source_count = self.source_count.max(verdict.estimated_sources);
        self.vectors = verdict.vectors.iter().map(|v| VectorShare { family: v.family, share: v.share }).collect();
        self.signature = verdict.vectors.first().and_then(|v| v.signature.as_ref()).map(|m| m.signature.clone());
        self.top_sources = verdict
            .sources
            .iter()
            .map(|(ip, share)| SourceShare { ip: (*ip).into(), pps: pps((*ip).into(), *share), share: *share })
            .collect();
        let ports = |shares: &[(u16, f64)]| {
            shares.iter().map(|(port, share)| PortShare { port: *port, share: *share }).collect()
        };
        self.top_src_ports = ports(&verdict.src_ports);
        self.top_dst_ports = ports(&verdict.dst_ports);
        self.explanation = vec![self.excess_text()];
        self.explanation.extend(verdict.explanation.iter().take(MAX_EXPLANATION - 1).cloned());
        let subtype = verdict.subtype.clone();
        if changed || first {
            let name =
                subtype.as_ref().map_or_else(|| verdict.family.to_string(), |s| format!("{}/{s}", verdict.family));
            let kind = if first { "note" } else { "updated" };
            self.note(kind, format!("classified as {name}, confidence {:.2}", verdict.confidence), now);
        }
        self.subtype = subtype;
        self.family = verdict.family;
        self.verdict = Some(verdict);
        self.corroborate();
        changed
    }

    /// The id of an execution, the same each time it is reported.
    pub fn execution_uuid(&self, key: &str, kind: &str) -> Uuid {
        Uuid::new_v5(&self.uuid, format!("{key}/{kind}").as_bytes())
    }

    fn executions(&self) -> Vec<RuleExecution> {
        let mut all = Vec::new();
        for deed in &self.deeds {
            let mut push = |kind: &str, outcome, output: String, commands: &Vec<Vec<String>>, at, latency_us| {
                all.push(RuleExecution {
                    uuid: self.execution_uuid(&deed.name(), kind),
                    rule_id: deed.rule_id,
                    incident: self.uuid,
                    action: deed.action.clone(),
                    outcome,
                    output,
                    commands: commands.iter().take(MAX_EXECUTIONS).cloned().collect(),
                    at,
                    latency_us,
                });
            };
            if let Some(why) = &deed.failed {
                push("do", ExecutionOutcome::Failed, why.clone(), &deed.commands, self.updated_at, deed.latency_us);
            } else if let Some(at) = deed.applied_at {
                push("do", ExecutionOutcome::Applied, deed.output.clone(), &deed.commands, at, deed.latency_us);
            }
            if let Some(at) = deed.undone_at {
                push("undo", ExecutionOutcome::Undone, deed.undo_output.clone(), &deed.undo, at, 0);
            }
        }
        all.extend(self.refused.iter().cloned());
        all.truncate(MAX_EXECUTIONS * 2);
        all
    }

    /// Whether the rate or the sources grew enough to be worth an update.
    pub fn has_grown(&self) -> bool {
        self.current_pps * 2 > self.reported_pps * 3 || self.source_count * 2 > self.reported_sources * 3
    }

    /// The next report; raises the revision.
    pub fn report(&mut self, now: Now) -> IncidentReport {
        self.revision += 1;
        self.updated_at = now.wall;
        self.reported_ns = Some(now.mono_ns);
        self.reported_pps = self.current_pps;
        self.reported_sources = self.source_count;
        self.changed = false;
        self.snapshot()
    }

    /// The report as of now, without sending it.
    pub fn snapshot(&self) -> IncidentReport {
        let counted: u64 = self.classes.iter().sum();
        let mut protocols: Vec<ClassShare> = TrafficClass::ALL
            .iter()
            .zip(self.classes)
            .filter(|(_, packets)| *packets > 0)
            .map(|(class, packets)| ClassShare { class: *class, packets, share: packets as f64 / counted as f64 })
            .collect();
        protocols.sort_by_key(|c| std::cmp::Reverse(c.packets));
        IncidentReport {
            uuid: self.uuid,
            revision: self.revision,
            status: self.status,
            target: self.target,
            family: self.family,
            subtype: self.subtype.clone(),
            vectors: self.vectors.clone(),
            severity: self.severity,
            confidence: self.confidence,
            spoofed: self.spoofed,
            carpet_bombing: self.carpet,
            started_at: self.started_at,
            updated_at: self.updated_at,
            resolved_at: self.resolved_at,
            peak_pps: self.peak_pps,
            peak_bps: self.peak_bps,
            current_pps: self.current_pps,
            current_bps: self.current_bps,
            threshold: ThresholdReport {
                quantity: self.excess.quantity.as_str().to_owned(),
                value: self.excess.threshold.value as u64,
                origin: self.excess.threshold.origin.as_str().to_owned(),
                baseline: self.normal,
                ratio: (self.excess.ratio * 100.0).round() / 100.0,
            },
            packets: self.packets,
            dropped_packets: self.dropped,
            source_count: self.source_count,
            distinct_sources: self.distinct_sources,
            top_sources: self.top_sources.clone(),
            top_src_ports: self.top_src_ports.clone(),
            top_dst_ports: self.top_dst_ports.clone(),
            protocols,
            signature: self.signature.clone(),
            explanation: self.explanation.iter().cloned().chain(self.sources_text()).collect(),
            timeline: self.timeline.clone(),
            executions: self.executions(),
        }
    }
}
