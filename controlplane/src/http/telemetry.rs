//! What the server counts of itself, in Prometheus' text format.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use axum::http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::app::SeriesCounts;

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
    series: Family<Fate, Counter<u64, AtomicU64>>,
    series_queued: Gauge<i64, AtomicI64>,
}

/// What became of samples that leave.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fate {
    outcome: &'static str,
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
        let (series, series_queued) = (Family::default(), Gauge::default());
        let help = "Samples of time series by what became of them: sent, dropped (no room), late, refused";
        registry.register("remote_write_samples", help, series.clone());
        registry.register("remote_write_queued_samples", "Samples that wait to be sent", series_queued.clone());
        Self { registry, answers, streams, handshakes: Handshakes(handshakes), series, series_queued }
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
    pub(crate) fn render(&self, streams: usize, series: Option<SeriesCounts>) -> String {
        self.streams.set(i64::try_from(streams).unwrap_or(i64::MAX));
        if let Some(SeriesCounts { queued, sent, dropped, late, refused }) = series {
            for (outcome, count) in [("sent", sent), ("dropped", dropped), ("late", late), ("refused", refused)] {
                self.series.get_or_create(&Fate { outcome }).inner().store(count, Ordering::Relaxed);
            }
            self.series_queued.set(i64::try_from(queued).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("a String takes every write");
        text
    }
}
