//! What a node says of itself: deployment, heartbeat, metrics.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::NodeMeans;
use crate::vocab::{AttachMode, Mode};

/// `POST /api/deploy`, with the deploy token: a machine becomes a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeployRequest {
    /// 1 to 128 characters; unique in the workspace.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128))]
    pub name: String,
    #[serde(default)]
    pub ip: String,
    /// At most 128 characters.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 128))]
    pub location: String,
    /// At most 128 characters.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 128))]
    pub os: String,
    /// At most 64 characters.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 64))]
    pub interface: String,
}

/// The answer to a deployment; the key is shown this once.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeployResponse {
    pub ok: bool,
    pub node_uuid: Uuid,
    /// 64 hex characters.
    pub api_key: String,
}

/// `POST /agent/certificate`: the node asks for a client certificate. Its private key stays where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CertificateRequest {
    /// A PKCS #10 request, PEM, at most 8 KiB; of it only the public key is used.
    #[cfg_attr(feature = "openapi", schema(max_length = 8192))]
    pub csr: String,
}

/// The certificate that a node got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IssuedCertificate {
    /// PEM.
    pub certificate: String,
    /// Hexadecimal.
    pub serial: String,
    /// By the control plane's clock, as the other times.
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub issued_at: OffsetDateTime,
    /// When the node should ask for the next one.
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub renew_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub not_after: OffsetDateTime,
    /// The roots that the node should trust from now on, PEM.
    pub roots: String,
}

/// `POST /agent/heartbeat`, every 30 s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Heartbeat {
    pub protocol_version: u32,
    pub agent_version: String,
    #[serde(default)]
    pub kernel: String,
    #[serde(default)]
    pub uptime_secs: u64,
    pub mode: Mode,
    #[serde(default)]
    pub interfaces: Vec<InterfaceReport>,
    #[serde(default)]
    pub baseline: BaselineReport,
    #[serde(default)]
    pub maps: Vec<MapReport>,
    /// Messages that wait on the node's disk for the control plane.
    #[serde(default)]
    pub queued: u64,
    /// Messages lost because the queue was full.
    #[serde(default)]
    pub queue_dropped: u64,
    /// Highest rate over threshold of any target, 0 without traffic.
    #[serde(default)]
    pub threshold_ratio: f64,
    #[serde(default)]
    pub active_incidents: u32,
    /// The configuration version that is in force.
    #[serde(default)]
    pub config_version: u64,
    /// What needs an operator's look, such as a map that is full.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// On what it depends how actions are done on the node. Absent from agents that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub means: Option<NodeMeans>,
}

/// How frames of one device reach the datapath, and why not better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InterfaceReport {
    /// The device that the program is at.
    pub name: String,
    /// Interfaces of the node's configuration whose frames come this way: the device itself, VLANs on it, the bond that
    /// it is a port of. Empty from agents that do not say.
    #[serde(default)]
    pub serves: Vec<String>,
    pub mode: AttachMode,
    /// The program in the path: `ftagent_xdp`, `ftagent_xdp_frags` for frames in several buffers, or `ftagent_tc`; empty
    /// where there is none.
    #[serde(default)]
    pub program: String,
    /// Why a better mode was not possible; empty for `native`.
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub link_id: Option<u32>,
    #[serde(default)]
    pub program_id: Option<u32>,
}

/// How much is known of what is normal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BaselineReport {
    /// Whether thresholds still rest on the floor alone.
    pub learning: bool,
    pub learnt_secs: u64,
    pub pps: u64,
    pub bps: u64,
    /// Targets with traffic that something is known of.
    pub targets: u32,
    /// Those whose thresholds rest on the floor alone, since too little is known.
    #[serde(default)]
    pub learning_targets: u32,
    /// Seconds of calm traffic until the last of them has learnt; absent when all have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_left_secs: Option<u64>,
    /// Hours of the week, 0 to 168, of which the target known best has a rate of its own.
    #[serde(default)]
    pub known_hours: u32,
}

/// How full one kernel map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MapReport {
    pub name: String,
    pub entries: u64,
    pub max_entries: u64,
    pub bytes: u64,
}

/// `POST /agent/metrics`: samples of one second each, sent every 5 s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MetricsBatch {
    /// 1 to 300 samples.
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 300))]
    pub samples: Vec<MetricsSample>,
}

/// One second of a node's traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MetricsSample {
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub at: OffsetDateTime,
    /// Packets and bits per second received, dropped ones included.
    pub pps: u64,
    pub bps: u64,
    pub dropped_pps: u64,
    #[serde(default)]
    pub tcp_pps: u64,
    #[serde(default)]
    pub udp_pps: u64,
    #[serde(default)]
    pub icmp_pps: u64,
    #[serde(default)]
    pub other_pps: u64,
}
