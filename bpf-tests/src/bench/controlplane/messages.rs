//! What the simulated agents say: the agent's own types, filled as a node of some size fills them.

use std::net::IpAddr;

use ftagent_common::api::{
    BaselineReport, ClassShare, CommandAck, Heartbeat, IncidentReport, InterfaceReport, MapReport, MetricsBatch,
    MetricsSample, NodeMeans, PROTOCOL_VERSION, PortShare, SourceShare, ThresholdReport, TimelineEntry,
};
use ftagent_common::vocab::{AttachMode, AttackFamily, IncidentStatus, Mode, Severity, TrafficClass};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::Moment;

/// Who a node is to the server.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) uuid: Uuid,
    pub(super) key: String,
}

/// A request of a node, as bytes.
pub(super) fn request(identity: &Identity, method: &str, path: &str, extra: &str, body: &[u8]) -> Vec<u8> {
    let Identity { uuid, key } = identity;
    let mut text = format!(
        "{method} /api/v1/agent{path} HTTP/1.1\r\nhost: controlplane\r\nuser-agent: ftagent/{}\r\n\
         authorization: Bearer {key}\r\nx-node-uuid: {uuid}\r\n{extra}",
        env!("CARGO_PKG_VERSION")
    );
    if !body.is_empty() {
        text += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    }
    text += "\r\n";
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A request of an operator, as bytes.
pub(super) fn operator(token: &str, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: controlplane\r\nauthorization: Bearer {token}\r\n");
    if !body.is_empty() {
        text += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    }
    text += "\r\n";
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("wire types have string keys and always serialise")
}

/// The wall clock.
pub(super) fn wall() -> OffsetDateTime {
    Moment::now().wall.into()
}

/// Two interfaces, eight maps: some 1.5 KB.
pub(super) fn heartbeat(version: u64) -> Heartbeat {
    let interface = |name: &str| InterfaceReport {
        name: name.to_owned(),
        serves: vec![name.to_owned()],
        mode: AttachMode::Native,
        program: "ftagent_xdp".to_owned(),
        reason: String::new(),
        link_id: Some(7),
        program_id: Some(21),
    };
    let map = |n: u64| MapReport { name: format!("MAP_{n}"), entries: n * 100, max_entries: 65_536, bytes: 1 << 20 };
    Heartbeat {
        protocol_version: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: "6.12.0-amd64".to_owned(),
        uptime_secs: 86_400,
        mode: Mode::Enforce,
        interfaces: vec![interface("eth0"), interface("eth1")],
        baseline: BaselineReport {
            learnt_secs: 86_400,
            pps: 40_000,
            bps: 300_000_000,
            targets: 12,
            ..Default::default()
        },
        maps: (0..8).map(map).collect(),
        queued: 0,
        queue_dropped: 0,
        threshold_ratio: 0.3,
        active_incidents: 0,
        config_version: version,
        warnings: Vec::new(),
        means: Some(NodeMeans::default()),
    }
}

/// The last `seconds` before `last`, one sample each.
pub(super) fn metrics(last: OffsetDateTime, seconds: u32, node: u32) -> MetricsBatch {
    let sample = |ago: u32| {
        let pps = 40_000 + u64::from(node % 1_000) * 7 + u64::from(ago) * 13;
        MetricsSample {
            at: last - time::Duration::seconds(ago.into()),
            pps,
            bps: pps * 6_000,
            dropped_pps: pps / 100,
            tcp_pps: pps * 8 / 10,
            udp_pps: pps / 10,
            icmp_pps: pps / 100,
            other_pps: 0,
        }
    };
    MetricsBatch { samples: (0..seconds).rev().map(sample).collect() }
}

/// A flood that goes on, at `revision`: some 2 KB.
pub(super) fn incident(uuid: Uuid, revision: u32, started: OffsetDateTime) -> IncidentReport {
    let source = |n: u8| SourceShare { ip: IpAddr::from([198, 51, 100, n]), pps: 4_000, share: 0.1 };
    let port = |port: u16| PortShare { port, share: 0.2 };
    IncidentReport {
        uuid,
        revision,
        status: IncidentStatus::Active,
        target: "203.0.113.5/32".parse().expect("an address"),
        family: AttackFamily::UdpFlood,
        subtype: None,
        vectors: Vec::new(),
        severity: Severity::High,
        confidence: 0.93,
        spoofed: false,
        carpet_bombing: false,
        started_at: started,
        updated_at: started + time::Duration::seconds(revision.into()),
        resolved_at: None,
        peak_pps: 900_000,
        peak_bps: 7_000_000_000,
        current_pps: 850_000,
        current_bps: 6_500_000_000,
        threshold: ThresholdReport {
            quantity: "pps".to_owned(),
            value: 100_000,
            origin: "baseline".to_owned(),
            baseline: Some(40_000),
            ratio: 9.0,
        },
        packets: 9_000_000,
        dropped_packets: 8_900_000,
        source_count: 400,
        distinct_sources: Some(420),
        top_sources: (0..10).map(source).collect(),
        top_src_ports: (0..5).map(port).collect(),
        top_dst_ports: (0..5).map(port).collect(),
        protocols: vec![ClassShare { class: TrafficClass::Udp, packets: 9_000_000, share: 1.0 }],
        signature: None,
        explanation: vec!["more than its baseline for two seconds".to_owned()],
        timeline: vec![TimelineEntry { at: started, kind: "opened".to_owned(), text: "seen".to_owned() }],
        executions: Vec::new(),
    }
}

/// What a node says when it did what it was told.
pub(super) fn acknowledgement(command_id: Uuid) -> CommandAck {
    CommandAck {
        command_id,
        status: ftagent_common::api::AckStatus::Applied,
        error: String::new(),
        output: String::new(),
    }
}
