//! Reports, acknowledgements, metrics and heartbeats on their way up.

use std::sync::Arc;
use std::time::Duration;

use ftagent_common::api::{Heartbeat, IncidentReport, MetricsBatch, MetricsSample};
use ftagent_common::vocab::IncidentStatus;
use hyper::Method;
use hyper::header::{HeaderMap, RETRY_AFTER};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::answer::{Fate, fate};
use super::http::{Call, Connection};
use super::spool::Message;
use super::{Outgoing, Shared};

/// Answers to reports are short.
const ANSWER_BYTES: usize = 256 << 10;
/// The protocol's bound of one metrics batch.
const SAMPLES_AT_MOST: usize = 300;

/// Takes the daemon's messages to disk until the daemon closes the channel.
pub(super) async fn intake(shared: Arc<Shared>, mut outgoing: mpsc::Receiver<Outgoing>) {
    let mut samples: Vec<MetricsSample> = Vec::new();
    let mut due = interval(shared.config.timing.metrics);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    due.reset();
    loop {
        let message = tokio::select! {
            message = outgoing.recv() => match message {
                Some(Outgoing::Incident(report)) => Message::Incident(report),
                Some(Outgoing::Ack(ack)) => Message::Ack(ack),
                Some(Outgoing::Profile(report)) => Message::Profile(report),
                Some(Outgoing::Metrics(sample)) => {
                    samples.push(sample);
                    if samples.len() < SAMPLES_AT_MOST {
                        continue;
                    }
                    Message::Metrics(MetricsBatch { samples: std::mem::take(&mut samples) })
                }
                None => break,
            },
            () = shared.stop.notified() => {
                // What is in the channel is still taken; after it comes the end.
                outgoing.close();
                continue;
            }
            _ = due.tick() => {
                if samples.is_empty() {
                    // Also the moment to see whether a full disk has room again.
                    shared.with_spool(|spool| if spool.status().fault.is_some() { spool.retry_disk() }).await;
                    continue;
                }
                Message::Metrics(MetricsBatch { samples: std::mem::take(&mut samples) })
            }
        };
        shared.with_spool(move |spool| spool.push(&message)).await;
        shared.wake.notify_one();
    }
    if !samples.is_empty() {
        shared.with_spool(move |spool| spool.push(&Message::Metrics(MetricsBatch { samples }))).await;
        shared.wake.notify_one();
    }
}

/// One message out of the queue, ready to be sent.
struct Parcel {
    numbers: Vec<u64>,
    path: String,
    body: Vec<u8>,
    what: &'static str,
}

/// Sends what waits, reports before metrics, each in order, again and again until it is delivered or refused.
pub(super) async fn send_reports(shared: &Arc<Shared>, headers: &HeaderMap) {
    let mut connection = shared.connection();
    let mut backoff = shared.backoff();
    loop {
        let Some(parcel) = shared.with_spool(next_parcel).await else {
            shared.wake.notified().await;
            continue;
        };
        let (fate, unreachable) = post(&mut connection, headers, &parcel.path, parcel.body.clone()).await;
        let wait = match fate {
            Fate::Delivered => {
                backoff.reset();
                settle(shared, parcel.numbers, true).await;
                continue;
            }
            Fate::Refused { why } => {
                shared.trouble(&format!("a message ({}) was refused and is dropped: {why}", parcel.what), false);
                settle(shared, parcel.numbers, false).await;
                continue;
            }
            Fate::Credentials { why } => {
                shared.trouble(&key_refused(shared, &why), false);
                shared.wait_for_operator(connection.route()).await;
                continue;
            }
            Fate::Retry { after, why } => {
                shared.trouble(&format!("{} not delivered: {why}", parcel.what), unreachable);
                let wait = backoff.next();
                match after {
                    // An order to wait is kept even if the connection comes and goes meanwhile.
                    Some(after) => {
                        sleep(after.max(wait)).await;
                        continue;
                    }
                    None => wait,
                }
            }
        };
        wait_or_reachable(shared, wait).await;
    }
}

/// Waits, but no longer than until the control plane is reachable again.
pub(super) async fn wait_or_reachable(shared: &Shared, wait: Duration) {
    let mut status = shared.status.subscribe();
    let was = status.borrow_and_update().connected;
    let came = async {
        // The sender lives in `shared`, so that the channel cannot close here.
        drop(status.wait_for(|s| s.connected && !was).await);
    };
    tokio::select! {
        () = sleep(wait) => {}
        () = came => {}
    }
}

pub(super) fn key_refused(shared: &Shared, why: &str) -> String {
    if why.contains("certificate") {
        return format!("the control plane refuses this node ({why}); messages are kept");
    }
    let file = super::credentials::file(&shared.config.state_dir);
    format!(
        "the node key in {} is not accepted ({why}); messages are kept; if the node was deleted, remove the file and give a deploy token",
        file.display()
    )
}

async fn settle(shared: &Arc<Shared>, numbers: Vec<u64>, delivered: bool) {
    let settle = move |spool: &mut super::Spool| {
        for number in numbers {
            if delivered { spool.acknowledge(number) } else { spool.refuse(number) }
        }
    };
    shared.with_spool(settle).await;
}

fn next_parcel(spool: &mut super::Spool) -> Option<Parcel> {
    if let Some((number, message)) = spool.next_report() {
        let numbers = vec![number];
        return Some(match message {
            Message::Incident(report) => {
                Parcel { numbers, path: path_of(&report), body: json(&report), what: "incident" }
            }
            Message::Ack(ack) => {
                Parcel { numbers, path: "/api/v1/agent/commands/ack".into(), body: json(&ack), what: "acknowledgement" }
            }
            Message::Profile(report) => {
                Parcel { numbers, path: "/api/v1/agent/profiles".into(), body: json(&report), what: "profile" }
            }
            Message::Metrics(batch) => metrics_parcel(numbers, &batch),
        });
    }
    let (numbers, batch) = spool.next_metrics(SAMPLES_AT_MOST)?;
    Some(metrics_parcel(numbers, &batch))
}

fn metrics_parcel(numbers: Vec<u64>, batch: &MetricsBatch) -> Parcel {
    Parcel { numbers, path: "/api/v1/agent/metrics".into(), body: json(batch), what: "metrics" }
}

/// Open, update or resolve, by what the report says of itself.
fn path_of(report: &IncidentReport) -> String {
    match report.status {
        IncidentStatus::Active if report.revision <= 1 => "/api/v1/agent/incidents".into(),
        IncidentStatus::Active => format!("/api/v1/agent/incidents/{}", report.uuid),
        IncidentStatus::Resolved | IncidentStatus::FalsePositive => {
            format!("/api/v1/agent/incidents/{}/resolve", report.uuid)
        }
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("it was JSON in the queue")
}

async fn post(connection: &mut Connection, headers: &HeaderMap, path: &str, body: Vec<u8>) -> (Fate, bool) {
    let call = Call { method: Method::POST, path, headers, body: Some(body.into()) };
    match connection.call(&call, ANSWER_BYTES).await {
        Ok(answer) => (fate(answer.status, answer.header(RETRY_AFTER), &answer.body), false),
        Err(error) => (Fate::Retry { after: None, why: error.to_string() }, true),
    }
}

/// Sends the newest heartbeat at its interval; one that fails is not repeated, the next is newer.
pub(super) async fn send_heartbeats(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    mut newest: watch::Receiver<Option<Heartbeat>>,
) {
    let mut connection = shared.connection();
    // The first one goes out as soon as the daemon has it.
    if newest.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut due = interval(shared.config.timing.heartbeat);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let Some(mut heartbeat) = newest.borrow().clone() else { continue };
        let spool = shared.status.borrow().spool.clone();
        heartbeat.queued = spool.queued;
        heartbeat.queue_dropped = spool.lost.messages();
        if let Some(fault) = spool.fault {
            heartbeat.warnings.push(format!("message queue: {fault}"));
        }
        match post(&mut connection, headers, "/api/v1/agent/heartbeat", json(&heartbeat)).await {
            (Fate::Delivered, _) => {}
            (Fate::Credentials { why }, _) => shared.trouble(&key_refused(shared, &why), false),
            (Fate::Refused { why } | Fate::Retry { why, .. }, unreachable) => {
                shared.trouble(&format!("heartbeat not delivered: {why}"), unreachable);
            }
        }
    }
}
