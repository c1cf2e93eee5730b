//! What the control plane knows and decides: pure types and rules.
//!
//! Nothing here knows a clock, a task, a socket, a file or a database; whoever calls passes `now`. `app` calls this,
//! `store` keeps it, `http` shows it (which is why the types that leave the server carry their OpenAPI schema).

mod adapter;
mod address;
mod allowlist;
mod audit;
mod certificate;
mod circuit;
mod config;
mod country;
mod delivery;
mod destination;
mod escalation;
mod feed;
mod incident;
mod indicator;
mod maintenance;
mod metrics;
mod mitigation;
mod node;
mod operator;
mod page;
mod pcap;
mod problem;
mod profile;
mod rule;
mod runbook;
mod scrubbing;
mod staged;
mod threshold;
mod timestamp;
mod workspace;

pub use adapter::{
    Adapter, AdapterConfig, AdapterStatus, AdapterType, Checked, CheckedAdapter, NewAdapter, check_auth_token,
};
pub use address::{no_destination, parse_url};
pub use allowlist::{AllowlistEntry, AllowlistScope, NewAllowlistEntry};
pub use audit::{AuditFilter, AuditRecord, Broken, Fact, GENESIS, Verifier};
pub use certificate::{
    BACKDATE_SECS, CERTIFICATES_A_DAY, ENROLL_SECS, Fingerprint, NODE_SECS, NodeCertificate, NotAdmitted, ROOT_SECS,
    Root, RootState, SERVER_SECS, Standing as CertificateStanding, TRUSTED_ROOTS, admit, may_enroll, renew_after,
};
pub use circuit::{Circuit, CircuitState};
pub use config::{SharedConfig, VersionedConfig};
pub use delivery::{
    Attempt, Delivery, DeliveryStatus, EventKind, Patience, Standing, WEBHOOK_PATIENCE, excerpt, incident_body,
    next_attempt, parse_retry_after, runbook_body, test_body,
};
pub use destination::{
    Destination, DestinationKind, DestinationPatch, DestinationStatus, Duty, Health, MAX_DESTINATIONS, NewDestination,
    Secrets, Setting, Settings, secrets_set,
};
pub use escalation::{BaselineMode, Escalation, EscalationChange, GeoAction, GeoLockdown};
pub use feed::{FeedEntry, FeedFormat, FeedQuery, FeedToken, MAX_ENTRIES, NewFeedToken, Sightings, assemble_feed};
pub use incident::{
    Closing, Incident, IncidentFilter, IncidentSummary, Note, OperatorChange, StoredIncident, accept_report,
    check_report,
};
pub use indicator::{
    GivenIndicator, Indicator, IndicatorFilter, IndicatorKind, IndicatorValue, NewIndicator, check_allowed,
    check_confidence, check_import,
};
pub use maintenance::{MaintenanceWindow, NewWindow, Schedule, Weekday, WindowPatch, held_until};
pub use metrics::{MetricsPoint, MetricsWindow, check_batch};
pub use mitigation::{
    COOLDOWN_SECS, Course, Ending, Intent, LEASE_SECS, MAX_LIVE_RULES, MitigationRule, MitigationStatus, NewMitigation,
    Outcome, Pace, WINDOW_SECS, refusal,
};
pub use node::{Deployment, HEARTBEAT_GRACE_SECS, Node, NodeFilter, NodePatch, node_status};
pub(crate) use operator::hex;
pub use operator::{Actor, NewToken, Role, Secret, SecretHash, Token};
pub use page::{Listed, Page};
pub use pcap::{
    CHUNK_BYTES, MAX_UNDER_WAY, NewChunk, Pcap, PcapFormat, Quota, UPLOADS_PER_HOUR, parse_sha256, sha256_text,
};
pub use problem::{Field, Problem};
pub use profile::{Application, ApplicationStatus, NewApplication, Profile, ProfileId, Verdict, Word, compile_profile};
pub use rule::{Execution, NewRule, Rule, RulePatch, RuleScope, check_trigger, example_context};
pub use runbook::{
    Attack, Confirmation, Deed, HandedOver, HandedOverKind, MAX_LIVE_RUNS, MAX_RUNBOOKS, MAX_RUNS_AN_HOUR, NewRunbook,
    RUN_LEASE_SECS, Run, RunStatus, RunTrigger, Runbook, RunbookExecution, RunbookPatch, Step, StepOutcome, StepRecord,
    StepStatus, TriggerConditions, plan,
};
pub use scrubbing::{NewScrubbing, Provider, Scrubbing, ScrubbingPatch, ScrubbingStatus, check_credentials};
pub use staged::{Decision, MAX_STAGED, StagedRule, StagedStatus, Staging, action_to_stage, preview_staged};
pub use threshold::{NewThreshold, Threshold};
pub use timestamp::Timestamp;
pub use workspace::{Subscription, Workspace, WorkspaceId, WorkspacePatch};
