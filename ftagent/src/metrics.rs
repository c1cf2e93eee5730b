//! The Prometheus endpoint: what the daemon knows, in the text format 0.0.4.
//!
//! The daemon publishes a [`Snapshot`] over a watch channel; every scrape writes the newest one. Written by hand, since
//! OpenMetrics writers name a counter's help without `_total`, which `promtool check metrics` then misses.

mod crowdsec;
mod flows;
mod sight;
mod text;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ftagent_common::abi::{Flow, Health, InterfaceCounters, Reason};
use ftagent_common::api::{BaselineReport, InterfaceReport, MapReport};
use ftagent_common::vocab::{AttackFamily, Mode, TrafficClass};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::text::{Kind, Text};
use crate::actions::ToolStatus;
use crate::crowdsec::CrowdsecStatus;
use crate::engine::InterfaceTraffic;
use crate::engine::web::SiteView;
use crate::flows::ListenerStatus;
use crate::lists::ListStatus;
use crate::pcap::CapturesStatus;
use crate::pcap::upload::Progress;
use crate::sync::LinkStatus;
use crate::weblog::LogStatus;

/// Everything that is shown; counters count from the start of what they belong to and only grow.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub version: &'static str,
    pub mode: Option<Mode>,
    pub interfaces: Vec<(String, InterfaceCounters)>,
    /// How their frames reach the datapath.
    pub attached: Vec<InterfaceReport>,
    /// Which interfaces see frames.
    pub traffic: Vec<InterfaceTraffic>,
    pub baseline: BaselineReport,
    /// How many targets are counted one by one.
    pub targets: u64,
    /// The busiest of them, at most [`TOP_TARGETS`] are shown.
    pub top_targets: Vec<(IpAddr, Flow)>,
    /// Distinct sources of the busiest targets in about a second.
    pub target_sources: Vec<(IpAddr, u64)>,
    pub incidents_active: Vec<(AttackFamily, u64)>,
    pub incidents_opened: Vec<(AttackFamily, u64)>,
    /// By origin, such as `operator` or `response`.
    pub rules: Vec<(&'static str, u64)>,
    pub rules_failed: u64,
    /// Other tools that actions were asked of.
    pub tools: Vec<ToolStatus>,
    pub lists: Vec<ListStatus>,
    /// Absent where no decisions are asked for.
    pub crowdsec: Option<CrowdsecStatus>,
    pub access_logs: Vec<LogStatus>,
    pub sites: Vec<SiteView>,
    /// Absent where there are none.
    pub captures: Option<CapturesStatus>,
    pub maps: Vec<MapReport>,
    pub health: Vec<(Health, u64)>,
    /// Absent when the node works alone.
    pub link: Option<LinkStatus>,
    pub ticks: TickTimes,
    /// Empty where no router exports to this node.
    pub flow_exporters: Vec<ListenerStatus>,
}

/// Targets shown one by one: each is a time series of its own in the scraper's memory.
pub const TOP_TARGETS: usize = 50;

/// Upper bounds of [`TickTimes`] in microseconds.
const TICK_BOUNDS_US: [u64; 10] = [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 1_000_000];

/// How long the daemon's ticks took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TickTimes {
    /// By bound, and one more for what took longer.
    buckets: [u64; TICK_BOUNDS_US.len() + 1],
    sum_us: u64,
}

impl TickTimes {
    /// Counts one tick.
    pub fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = TICK_BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(TICK_BOUNDS_US.len());
        self.buckets[bucket] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }
}

/// The whole page.
pub fn page(snapshot: &Snapshot) -> String {
    let mut text = Text::default();
    build(&mut text, snapshot);
    traffic(&mut text, snapshot);
    sight::sight(&mut text, snapshot);
    decisions(&mut text, snapshot);
    if !snapshot.lists.is_empty() {
        lists(&mut text, &snapshot.lists);
    }
    if let Some(status) = &snapshot.crowdsec {
        crowdsec::crowdsec(&mut text, status);
    }
    if !snapshot.access_logs.is_empty() {
        web(&mut text, snapshot);
    }
    if let Some(status) = &snapshot.captures {
        captures(&mut text, status);
    }
    if !snapshot.flow_exporters.is_empty() {
        flows::exporters(&mut text, &snapshot.flow_exporters);
    }
    if let Some(link) = &snapshot.link {
        control_plane(&mut text, link);
    }
    text.finish()
}

fn build(text: &mut Text, snapshot: &Snapshot) {
    text.family("ftagent_build_info", Kind::Gauge, "Version of the agent; always 1.");
    text.row(&[("version", snapshot.version)], 1);
    text.family("ftagent_mode_info", Kind::Gauge, "1 for the mode of the datapath, 0 for the others.");
    for mode in Mode::ALL {
        text.row(&[("mode", mode.as_str())], u64::from(snapshot.mode == Some(*mode)));
    }
    text.family("ftagent_interface_info", Kind::Gauge, "How frames of an interface reach the datapath; always 1.");
    for interface in &snapshot.attached {
        let labels = [
            ("interface", interface.name.as_str()),
            ("mode", interface.mode.as_str()),
            ("program", interface.program.as_str()),
        ];
        text.row(&labels, 1);
    }
    let seconds = |us: u64| text::decimal(us, 6);
    let bounds = TICK_BOUNDS_US.map(seconds);
    let name = "ftagent_tick_duration_seconds";
    text.family(name, Kind::Histogram, "Time of one tick: counters read, engine asked, commands handed on.");
    text.histogram(&bounds, &snapshot.ticks.buckets, &seconds(snapshot.ticks.sum_us));
}

fn traffic(text: &mut Text, snapshot: &Snapshot) {
    let verdict = |reason: Reason| if reason.is_drop() { "drop" } else { "pass" };
    for (name, help, bytes) in [
        ("ftagent_verdict_packets_total", "Frames by interface and reason of their verdict; each frame once.", false),
        ("ftagent_verdict_bytes_total", "Bytes of frames by interface and reason of their verdict.", true),
    ] {
        text.family(name, Kind::Counter, help);
        for (interface, counters) in &snapshot.interfaces {
            for reason in Reason::ALL {
                let counter = counters.reasons[reason.index()];
                let labels =
                    [("interface", interface.as_str()), ("reason", reason.as_str()), ("verdict", verdict(*reason))];
                text.row(&labels, if bytes { counter.bytes } else { counter.packets });
            }
        }
    }
    for (name, help, bytes) in [
        ("ftagent_class_packets_total", "Frames by interface, traffic class and fate; each frame once.", false),
        ("ftagent_class_bytes_total", "Bytes of frames by interface, traffic class and fate.", true),
    ] {
        text.family(name, Kind::Counter, help);
        for (interface, counters) in &snapshot.interfaces {
            for class in TrafficClass::ALL {
                let flow = counters.classes[class.index()];
                for (fate, counter) in [("passed", flow.passed), ("dropped", flow.dropped)] {
                    let labels = [("interface", interface.as_str()), ("class", class.as_str()), ("fate", fate)];
                    text.row(&labels, if bytes { counter.bytes } else { counter.packets });
                }
            }
        }
    }
    text.family("ftagent_targets", Kind::Gauge, "Protected addresses that are counted one by one.");
    text.row(&[], snapshot.targets);
    let help = "Frames to the busiest protected addresses, by fate; the others are in the classes alone.";
    text.family("ftagent_target_packets_total", Kind::Counter, help);
    for (target, flow) in snapshot.top_targets.iter().take(TOP_TARGETS) {
        let target = target.to_string();
        text.row(&[("target", &target), ("fate", "passed")], flow.passed.packets);
        text.row(&[("target", &target), ("fate", "dropped")], flow.dropped.packets);
    }
    let help =
        "Distinct sources of the busiest protected addresses in about a second, estimated over all their frames.";
    text.family("ftagent_target_sources", Kind::Gauge, help);
    for (target, sources) in snapshot.target_sources.iter().take(TOP_TARGETS) {
        text.row(&[("target", &target.to_string())], *sources);
    }
    text.family("ftagent_datapath_events_total", Kind::Counter, "What the datapath could not do as it should.");
    for (event, count) in &snapshot.health {
        text.row(&[("event", event.as_str())], *count);
    }
    let rows = |text: &mut Text, value: fn(&MapReport) -> u64| {
        for map in &snapshot.maps {
            text.row(&[("map", &map.name)], value(map));
        }
    };
    text.family("ftagent_map_entries", Kind::Gauge, "Entries in a kernel map.");
    rows(text, |map| map.entries);
    text.family("ftagent_map_capacity_entries", Kind::Gauge, "Entries that a kernel map can have.");
    rows(text, |map| map.max_entries);
    text.family("ftagent_map_memory_bytes", Kind::Gauge, "Memory of a kernel map.");
    rows(text, |map| map.bytes);
}

fn tools(text: &mut Text, tools: &[ToolStatus]) {
    if tools.is_empty() {
        return;
    }
    text.family("ftagent_tool_actions", Kind::Gauge, "Actions of another tool that are in force.");
    tools.iter().for_each(|t| text.row(&[("tool", &t.tool)], t.actions as u64));
    text.family("ftagent_tool_objects_stuck", Kind::Gauge, "Objects in another tool that could not be undone yet.");
    tools.iter().for_each(|t| text.row(&[("tool", &t.tool)], t.stuck.len() as u64));
    text.family("ftagent_tool_executions_total", Kind::Counter, "Actions of another tool by what became of them.");
    for tool in tools {
        for (outcome, count) in [("applied", tool.applied), ("failed", tool.failed), ("undone", tool.undone)] {
            text.row(&[("tool", &tool.tool), ("outcome", outcome)], count);
        }
    }
}

fn decisions(text: &mut Text, snapshot: &Snapshot) {
    let by_family = |text: &mut Text, counts: &[(AttackFamily, u64)]| {
        for (family, count) in counts {
            text.row(&[("family", family.as_str())], *count);
        }
    };
    text.family("ftagent_incidents_active", Kind::Gauge, "Incidents that are open now.");
    by_family(text, &snapshot.incidents_active);
    text.family("ftagent_incidents_opened_total", Kind::Counter, "Incidents opened since the agent's start.");
    by_family(text, &snapshot.incidents_opened);
    text.family("ftagent_rules", Kind::Gauge, "Rules that should be in force, by who wanted them.");
    for (origin, count) in &snapshot.rules {
        text.row(&[("origin", origin)], *count);
    }
    text.family("ftagent_rule_failures_total", Kind::Counter, "Rules that an enforcer could not install or remove.");
    text.row(&[], snapshot.rules_failed);
    tools(text, &snapshot.tools);
}

fn lists(text: &mut Text, lists: &[ListStatus]) {
    let rows = |text: &mut Text, value: fn(&ListStatus) -> u64| {
        for list in lists {
            text.row(&[("list", &list.name), ("action", list.action.as_str())], value(list));
        }
    };
    text.family("ftagent_list_packets_total", Kind::Counter, "Frames from listed sources, dropped or only evaluated.");
    rows(text, |list| list.packets);
    text.family("ftagent_list_bytes_total", Kind::Counter, "Bytes of frames from listed sources.");
    rows(text, |list| list.bytes);
    text.family("ftagent_list_loaded", Kind::Gauge, "1 while the list is in force.");
    rows(text, |list| list.loaded.into());
    text.family("ftagent_list_fault", Kind::Gauge, "1 while the newest look at the list's file failed.");
    rows(text, |list| list.last_error.is_some().into());
    text.family("ftagent_list_age_seconds", Kind::Gauge, "Time since the list was loaded; 0 while it is not.");
    rows(text, |list| list.age_secs.unwrap_or(0));
    text.family("ftagent_list_prefixes", Kind::Gauge, "Prefixes of the list that are in force, by family.");
    for list in lists {
        for (family, count) in [("ipv4", list.v4), ("ipv6", list.v6)] {
            text.row(&[("list", &list.name), ("action", list.action.as_str()), ("family", family)], count);
        }
    }
    text.family("ftagent_list_skipped_lines", Kind::Gauge, "Lines of the list's file that are no prefix.");
    rows(text, |list| list.skipped);
}

fn web(text: &mut Text, snapshot: &Snapshot) {
    let help = "Lines of an access log by what became of them.";
    text.family("ftagent_access_log_lines_total", Kind::Counter, help);
    for log in &snapshot.access_logs {
        let path = log.path.display().to_string();
        for (fate, count) in [
            ("whole", log.counts.lines),
            ("malformed", log.malformed),
            ("too_long", log.counts.too_long),
            ("unread", log.unread),
        ] {
            text.row(&[("path", &path), ("fate", fate)], count);
        }
    }
    let help = "Bytes of an access log that were skipped because too many waited.";
    text.family("ftagent_access_log_skipped_bytes_total", Kind::Counter, help);
    for log in &snapshot.access_logs {
        text.row(&[("path", &log.path.display().to_string())], log.counts.skipped_bytes);
    }
    text.family("ftagent_access_log_fault", Kind::Gauge, "1 while an access log cannot be read.");
    for log in &snapshot.access_logs {
        text.row(&[("path", &log.path.display().to_string())], log.problem.is_some().into());
    }
    text.family("ftagent_http_requests_per_second", Kind::Gauge, "Requests to an address, from its access logs.");
    for site in &snapshot.sites {
        text.row(&[("target", &site.target.to_string())], site.rps);
    }
}

fn captures(text: &mut Text, status: &CapturesStatus) {
    text.family("ftagent_captures", Kind::Gauge, "Captures on disk, by whether they still grow.");
    text.row(&[("state", "growing")], status.growing);
    text.row(&[("state", "finished")], (status.captures.len() as u64).saturating_sub(status.growing));
    text.family("ftagent_captures_size_bytes", Kind::Gauge, "Size of all captures on disk.");
    text.row(&[], status.bytes);
    text.family("ftagent_captures_memory_bytes", Kind::Gauge, "Memory of the samples of the last seconds.");
    text.row(&[], status.memory_bytes);
    let help = "Samples that no capture got to see, the disk being slower than they came.";
    text.family("ftagent_captures_lost_samples_total", Kind::Counter, help);
    text.row(&[], status.samples_lost);
    let help = "Incidents without a capture, for want of room on disk.";
    text.family("ftagent_captures_not_begun_total", Kind::Counter, help);
    text.row(&[], status.not_begun);
    if let Some(uploads) = &status.uploads {
        text.family("ftagent_captures_uploads", Kind::Gauge, "Captures by what became of their upload.");
        let count = |wanted| uploads.uploads.values().filter(|upload| upload.progress == wanted).count() as u64;
        text.row(&[("state", "waiting")], uploads.waiting);
        text.row(&[("state", "uploaded")], count(Progress::Uploaded));
        text.row(&[("state", "refused")], count(Progress::Refused));
        let help = "Bytes of captures that the control plane took.";
        text.family("ftagent_captures_uploaded_bytes_total", Kind::Counter, help);
        text.row(&[], uploads.sent_bytes);
    }
    text.family("ftagent_captures_fault", Kind::Gauge, "1 while the disk of captures does not do.");
    text.row(&[], status.fault.is_some().into());
}

fn control_plane(text: &mut Text, link: &LinkStatus) {
    text.family("ftagent_controlplane_connected", Kind::Gauge, "1 while the control plane is reachable.");
    text.row(&[], link.connected.into());
    let help = "Version of the newest configuration received; 0 before the first.";
    text.family("ftagent_controlplane_config_version", Kind::Gauge, help);
    text.row(&[], link.config_version.unwrap_or(0));
    text.family("ftagent_spool_messages", Kind::Gauge, "Messages that wait for the control plane.");
    text.row(&[], link.spool.queued);
    text.family("ftagent_spool_size_bytes", Kind::Gauge, "Size of the messages that wait.");
    text.row(&[], link.spool.bytes);
    text.family("ftagent_spool_fault", Kind::Gauge, "1 while messages wait in memory because the disk takes none.");
    text.row(&[], link.spool.fault.is_some().into());
    let lost = link.spool.lost;
    text.family("ftagent_spool_lost_messages_total", Kind::Counter, "Messages that never reached the control plane.");
    for (why, count) in [
        ("metrics_full", lost.metrics),
        ("superseded_full", lost.superseded),
        ("incident_full", lost.incidents),
        ("ack_full", lost.acks),
        ("refused", lost.refused),
    ] {
        text.row(&[("why", why)], count);
    }
}

/// Scrapers that may be connected at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 16;
/// Time to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection may live this long, however slowly it reads.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// After an accept that failed, as of too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The bound listener.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
}

/// Why the endpoint cannot be there.
#[derive(Debug, thiserror::Error)]
#[error("metrics: cannot listen on {address}: {source}; choose another address for the endpoint")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

impl Endpoint {
    /// Binds `address`; only then can the start-up say that it failed.
    ///
    /// # Errors
    /// Names the address.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let listener = TcpListener::bind(address).await.map_err(|source| ListenError { address, source })?;
        Ok(Self { listener })
    }

    /// The address, with the port that was chosen if it was 0.
    ///
    /// # Errors
    /// The socket's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers `GET /metrics` until it is dropped.
    pub async fn serve(self, snapshots: watch::Receiver<Snapshot>) {
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= CONNECTIONS {
                connections.join_next().await;
            }
            // Ended ones are forgotten as they come.
            while connections.try_join_next().is_some() {}
            let tcp = match self.listener.accept().await {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "metrics: a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let snapshots = snapshots.clone();
            connections.spawn(async move {
                let answering = service_fn(move |request| {
                    let response = answer(&request, &snapshots);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_buf_size(16 << 10)
                    .serve_connection(TokioIo::new(tcp), answering);
                // A scraper that goes away in the middle is its own trouble.
                drop(tokio::time::timeout(CONNECTION_TIMEOUT, connection).await);
            });
        }
    }
}

fn answer(request: &Request<Incoming>, snapshots: &watch::Receiver<Snapshot>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, page(&snapshots.borrow())),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into()),
        _ => (StatusCode::NOT_FOUND, "only /metrics\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = if status == StatusCode::OK { text::CONTENT_TYPE } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
    }
    response
}

#[cfg(test)]
mod tests;
