//! A request of Prometheus' remote-write protocol, version 1.0: protobuf, compressed with snappy.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ftagent_common::api::MetricsSample;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use prost::Message;
use url::Url;
use uuid::Uuid;

use super::Outgoing;
use crate::domain::{Timestamp, WorkspaceId};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Series of a node.
pub const SERIES: usize = 7;

/// The name and the label of each.
const NAMES: [(&str, Option<&str>); SERIES] = [
    ("ftagent_node_packets_per_second", None),
    ("ftagent_node_bits_per_second", None),
    ("ftagent_node_dropped_packets_per_second", None),
    ("ftagent_node_protocol_packets_per_second", Some("tcp")),
    ("ftagent_node_protocol_packets_per_second", Some("udp")),
    ("ftagent_node_protocol_packets_per_second", Some("icmp")),
    ("ftagent_node_protocol_packets_per_second", Some("other")),
];

/// Where series go, and with whose credentials.
#[derive(Clone)]
pub struct RemoteWrite {
    url: Url,
    authorization: Option<HeaderValue>,
}

/// What shows a receiver who writes.
#[derive(Clone)]
pub enum Credentials {
    None,
    Basic { user: String, password: String },
    Bearer(String),
}

impl RemoteWrite {
    /// # Errors
    /// Credentials that no header can hold; the message does not repeat them.
    pub fn new(url: Url, credentials: Credentials) -> Result<Self, String> {
        let text = match credentials {
            Credentials::None => return Ok(Self { url, authorization: None }),
            Credentials::Basic { user, password } => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }
            Credentials::Bearer(token) => format!("Bearer {token}"),
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| "holds characters that no header can".to_owned())?;
        value.set_sensitive(true);
        Ok(Self { url, authorization: Some(value) })
    }

    /// Host and port, for messages.
    pub fn place(&self) -> String {
        self.url[url::Position::BeforeHost..url::Position::AfterPort].to_owned()
    }

    /// The request that carries `samples`, which are in the order of their nodes' seconds.
    pub fn request(&self, samples: &BTreeMap<(WorkspaceKey, Uuid), Vec<MetricsSample>>) -> Outgoing {
        let body =
            WriteRequest { timeseries: samples.iter().flat_map(|((ws, node), s)| series(*ws, *node, s)).collect() };
        let body = body.encode_to_vec();
        let body = snap::raw::Encoder::new().compress_vec(&body).expect("it is shorter than 4 GiB");
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (CONTENT_ENCODING, "snappy"),
            (CONTENT_TYPE, "application/x-protobuf"),
            (HeaderName::from_static("x-prometheus-remote-write-version"), "0.1.0"),
            (USER_AGENT, concat!("ftagent-controlplane/", env!("CARGO_PKG_VERSION"))),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Some(value) = &self.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        Outgoing { url: self.url.clone(), headers, body: body.into(), timeout: TIMEOUT }
    }
}

/// The number of a workspace, in the order of numbers.
pub type WorkspaceKey = i64;

/// The key of a workspace's samples.
pub const fn key_of(ws: WorkspaceId) -> WorkspaceKey {
    ws.0
}

fn series(ws: WorkspaceKey, node: Uuid, samples: &[MetricsSample]) -> impl Iterator<Item = TimeSeries> {
    let (workspace, node) = (ws.to_string(), node.to_string());
    NAMES.iter().enumerate().map(move |(n, (name, protocol))| {
        let label = |name: &str, value: &str| Label { name: name.to_owned(), value: value.to_owned() };
        // In the order of their names, as the protocol wants them.
        let mut labels = vec![label("__name__", name), label("job", "ftagent"), label("node", &node)];
        labels.extend(protocol.map(|protocol| label("protocol", protocol)));
        labels.push(label("workspace", &workspace));
        let samples =
            samples.iter().map(|s| Sample { value: value(s, n), timestamp: Timestamp::from(s.at).micros() / 1_000 });
        TimeSeries { labels, samples: samples.collect() }
    })
}

fn value(sample: &MetricsSample, series: usize) -> f64 {
    let MetricsSample { pps, bps, dropped_pps, tcp_pps, udp_pps, icmp_pps, other_pps, .. } = *sample;
    let values: [u64; SERIES] = [pps, bps, dropped_pps, tcp_pps, udp_pps, icmp_pps, other_pps];
    values[series] as f64
}

// prometheus/prompb: remote.proto and types.proto, as far as version 1.0 of the protocol needs them.

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    /// Milliseconds since the epoch.
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_holds_every_series_with_its_labels_in_order() {
        let credentials = Credentials::Basic { user: "u".to_owned(), password: "sesame".to_owned() };
        let url = "https://prometheus.example:9090/api/v1/write".parse().expect("a URL");
        let write = RemoteWrite::new(url, credentials).expect("header text");
        assert_eq!(write.place(), "prometheus.example:9090");
        let sample = |secs, pps| MetricsSample {
            at: Timestamp::from_secs(secs).into(),
            pps,
            bps: 2,
            dropped_pps: 3,
            tcp_pps: 4,
            udp_pps: 5,
            icmp_pps: 6,
            other_pps: 7,
        };
        let samples = BTreeMap::from([((1, Uuid::nil()), vec![sample(1_000, 1), sample(1_001, 11)])]);
        let outgoing = write.request(&samples);
        assert_eq!(outgoing.headers[AUTHORIZATION], "Basic dTpzZXNhbWU=");
        assert!(!format!("{:?}", outgoing.headers).contains("dTpz"));
        let body = snap::raw::Decoder::new().decompress_vec(&outgoing.body).expect("snappy");
        let request = WriteRequest::decode(body.as_slice()).expect("protobuf");
        assert_eq!(request.timeseries.len(), SERIES);
        for (n, series) in request.timeseries.iter().enumerate() {
            assert!(series.labels.is_sorted_by(|a, b| a.name < b.name), "{series:?}");
            let values: Vec<_> = series.samples.iter().map(|s| (s.timestamp, s.value)).collect();
            let first = if n == 0 { [1.0, 11.0] } else { [(n + 1) as f64; 2] };
            assert_eq!(values, [(1_000_000, first[0]), (1_001_000, first[1])], "{series:?}");
        }
        assert_eq!(request.timeseries[4].labels[3], Label { name: "protocol".to_owned(), value: "udp".to_owned() });
    }
}
