//! What the server counts of itself, in Prometheus' text format.

use std::sync::atomic::{AtomicI64, AtomicU64};

use axum::http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    method: String,
    /// The route's pattern, never the path: paths are the callers' to invent.
    route: String,
    status: u16,
}

/// What became of a TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Done,
    /// The other side spoke no TLS, or showed a certificate that is not accepted.
    Failed,
    TimedOut,
    /// Too many others were under way.
    Refused,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        let word = match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
        };
        word.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handshake {
    outcome: Outcome,
}

/// Counts handshakes.
#[derive(Clone)]
pub struct Handshakes(Family<Handshake, Counter<u64, AtomicU64>>);

impl Handshakes {
    pub(crate) fn note(&self, outcome: Outcome) {
        self.0.get_or_create(&Handshake { outcome }).inc();
    }
}

/// Counters and gauges.
pub(crate) struct Telemetry {
    registry: Registry,
    answers: Family<Answer, Counter<u64, AtomicU64>>,
    streams: Gauge<i64, AtomicI64>,
    handshakes: Handshakes,
}

impl Default for Telemetry {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("ftagent_controlplane");
        let answers = Family::default();
        registry.register("http_answers", "HTTP answers by method, route and status", answers.clone());
        let streams = Gauge::default();
        registry.register("agent_streams", "Agent streams that are open", streams.clone());
        let handshakes = Family::default();
        registry.register("tls_handshakes", "TLS handshakes by outcome", handshakes.clone());
        Self { registry, answers, streams, handshakes: Handshakes(handshakes) }
    }
}

impl Telemetry {
    pub(crate) fn answered(&self, method: &Method, route: &str, status: StatusCode) {
        let method = match method.as_str() {
            known @ ("GET" | "POST" | "PATCH" | "DELETE" | "HEAD") => known,
            _ => "other",
        };
        let answer = Answer { method: method.to_owned(), route: route.to_owned(), status: status.as_u16() };
        self.answers.get_or_create(&answer).inc();
    }

    pub(crate) fn handshakes(&self) -> Handshakes {
        self.handshakes.clone()
    }

    /// The text, with the gauges set to what is so now.
    pub(crate) fn render(&self, streams: usize) -> String {
        self.streams.set(i64::try_from(streams).unwrap_or(i64::MAX));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("a String takes every write");
        text
    }
}
