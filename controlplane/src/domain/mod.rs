//! What the control plane knows and decides: pure types and rules.
//!
//! Nothing here knows a clock, a task, a socket, a file or a database; whoever calls passes `now`. `app` calls this,
//! `store` keeps it, `http` shows it (which is why the types that leave the server carry their OpenAPI schema).

mod address;
mod allowlist;
mod audit;
mod circuit;
mod config;
mod delivery;
mod destination;
mod feed;
mod incident;
mod indicator;
mod maintenance;
mod metrics;
mod node;
mod operator;
mod page;
mod pcap;
mod problem;
mod rule;
mod threshold;
mod timestamp;
mod workspace;

pub use address::{is_public, parse_url};
pub use allowlist::{AllowlistEntry, AllowlistScope, NewAllowlistEntry};
pub use audit::{AuditFilter, AuditRecord, Broken, Fact, GENESIS, Verifier};
pub use circuit::{Circuit, CircuitState};
pub use config::{SharedConfig, VersionedConfig};
pub use delivery::{
    Attempt, Delivery, DeliveryStatus, EventKind, Patience, Standing, WEBHOOK_PATIENCE, excerpt, incident_body,
    next_attempt, parse_retry_after, test_body,
};
pub use destination::{
    Destination, DestinationKind, DestinationPatch, DestinationStatus, Duty, Health, MAX_DESTINATIONS, NewDestination,
    Secrets, Setting, Settings, secrets_set,
};
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
pub use node::{Deployment, HEARTBEAT_GRACE_SECS, Node, NodeFilter, NodePatch, node_status};
pub(crate) use operator::hex;
pub use operator::{Actor, NewToken, Role, Secret, SecretHash, Token};
pub use page::{Listed, Page};
pub use pcap::{
    CHUNK_BYTES, MAX_UNDER_WAY, NewChunk, Pcap, PcapFormat, Quota, UPLOADS_PER_HOUR, parse_sha256, sha256_text,
};
pub use problem::{Field, Problem};
pub use rule::{Execution, NewRule, Rule, RulePatch, RuleScope, example_context};
pub use threshold::{NewThreshold, Threshold};
pub use timestamp::Timestamp;
pub use workspace::{Subscription, Workspace, WorkspaceId, WorkspacePatch};
