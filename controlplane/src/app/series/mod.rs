//! Time series on their way to a receiver of Prometheus' remote-write protocol.
//!
//! ```text
//! a node's samples --> queue (bounded, never waited for) --> one task: batches, in the order of each node's seconds --> receiver
//!                        full: dropped and counted            refused for good, or late: dropped and counted
//! ```

mod batch;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ftagent_common::api::MetricsSample;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use self::batch::Batch;
use super::App;
use crate::domain::WorkspaceId;
use crate::outbound::{Outbound, Outgoing, RemoteWrite, SERIES};

/// How long samples wait for others to share a request.
const GATHER: Duration = Duration::from_secs(1);
/// First and longest wait between two tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// The longest wait that a receiver may ask for.
const MOST_PATIENCE: Duration = Duration::from_secs(300);
/// How long what is queued may take to leave when the server ends.
const LAST_CHANCE: Duration = Duration::from_secs(5);

/// What a node measured.
struct Measured {
    workspace: WorkspaceId,
    node: Uuid,
    samples: Vec<MetricsSample>,
}

/// How much went where, since the start. All of it counts samples of single series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeriesCounts {
    pub queued: u64,
    pub sent: u64,
    /// There was no room in the queue, or the server ended.
    pub dropped: u64,
    /// Older than what was sent of the same node: receivers take no second order.
    pub late: u64,
    /// The receiver refused them for good.
    pub refused: u64,
}

#[derive(Default)]
struct Counters {
    queued: AtomicU64,
    sent: AtomicU64,
    dropped: AtomicU64,
    late: AtomicU64,
    refused: AtomicU64,
}

/// How much waits and how much goes at once, in samples of single series.
#[derive(Clone, Copy, Debug)]
pub struct SeriesLimits {
    pub queue: u64,
    pub batch: usize,
}

/// The way out for time series.
pub struct Series {
    write: RemoteWrite,
    limits: SeriesLimits,
    /// Whether the database keeps them too.
    kept: bool,
    outbound: Outbound,
    queue: mpsc::UnboundedSender<Measured>,
    /// Taken by the task that sends.
    waiting: Mutex<mpsc::UnboundedReceiver<Measured>>,
    counters: Counters,
}

impl Series {
    /// `kept` says whether the database keeps them too.
    pub fn new(write: RemoteWrite, limits: SeriesLimits, kept: bool) -> Self {
        // Bounded by `limits.queue`, in samples rather than in messages.
        let (queue, waiting) = mpsc::unbounded_channel();
        // The receiver is named by whoever configures the server, not by operators of the API.
        let outbound = Outbound::new(true);
        Self { write, limits, kept, outbound, queue, waiting: Mutex::new(waiting), counters: Counters::default() }
    }

    pub(super) const fn kept(&self) -> bool {
        self.kept
    }

    /// Leaves samples to be sent; never waits.
    pub(super) fn offer(&self, workspace: WorkspaceId, node: Uuid, samples: &[MetricsSample]) {
        let amount = amount(samples.len());
        let counters = &self.counters;
        let queued = counters.queued.fetch_add(amount, Ordering::Relaxed) + amount;
        let measured = Measured { workspace, node, samples: samples.to_vec() };
        if queued > self.limits.queue || self.queue.send(measured).is_err() {
            counters.queued.fetch_sub(amount, Ordering::Relaxed);
            counters.dropped.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// How much went where.
    pub fn counts(&self) -> SeriesCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { queued, sent, dropped, late, refused } = &self.counters;
        SeriesCounts {
            queued: read(queued),
            sent: read(sent),
            dropped: read(dropped),
            late: read(late),
            refused: read(refused),
        }
    }

    /// Counts what left the queue.
    fn settle(&self, batch: &Batch, counter: &AtomicU64) {
        self.counters.queued.fetch_sub(batch.samples() + batch.late(), Ordering::Relaxed);
        self.counters.late.fetch_add(batch.late(), Ordering::Relaxed);
        counter.fetch_add(batch.samples(), Ordering::Relaxed);
    }

    /// Sends until it is taken or refused for good.
    async fn deliver(&self, outgoing: &Outgoing, batch: &Batch) {
        let (mut wait, most) = BACKOFF;
        let mut told = false;
        loop {
            let (why, after) = match self.outbound.post(outgoing).await {
                Ok(answer) if (200..300).contains(&answer.status) => {
                    if told {
                        info!(receiver = self.write.place(), "time series are taken again");
                    }
                    return self.settle(batch, &self.counters.sent);
                }
                // Version 1.0: 5xx and 429 are tried again, other answers are not.
                Ok(answer) if answer.status >= 500 || answer.status == 429 => {
                    let after = answer.retry_after.as_deref().and_then(|text| text.trim().parse().ok());
                    let after = after.map(Duration::from_secs);
                    (format!("it answered {}", answer.status), after)
                }
                Ok(answer) => {
                    let said = String::from_utf8_lossy(&answer.body);
                    let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
                    warn!(
                        receiver = self.write.place(),
                        status = answer.status,
                        said,
                        "time series were refused and are dropped"
                    );
                    return self.settle(batch, &self.counters.refused);
                }
                Err(fault) => (fault.to_string(), None),
            };
            if !told {
                warn!(receiver = self.write.place(), why, "time series are not taken: it will be tried again");
                told = true;
            }
            sleep(after.map_or(wait, |after| after.clamp(wait, MOST_PATIENCE))).await;
            wait = (wait * 2).min(most);
        }
    }

    async fn run(&self, mut draining: watch::Receiver<bool>) {
        let mut waiting = self.waiting.lock().await;
        let mut last = HashMap::new();
        let sending = async {
            while let Some(first) = waiting.recv().await {
                let mut batch = Batch::default();
                batch.add(first, &mut last);
                let more = async {
                    while batch.samples() < amount(self.limits.batch.div_ceil(SERIES)) {
                        let Some(next) = waiting.recv().await else { return };
                        batch.add(next, &mut last);
                    }
                };
                // What is there after this time goes.
                drop(timeout(GATHER, more).await);
                if batch.samples() == 0 {
                    self.settle(&batch, &self.counters.sent);
                    continue;
                }
                self.deliver(&self.write.request(batch.by_node()), &batch).await;
            }
        };
        let ended = async {
            drop(draining.wait_for(|d| *d).await);
            // Requests under way still leave samples; then what is queued has a while to go.
            let empty = async {
                while self.counts().queued > 0 {
                    sleep(Duration::from_millis(50)).await;
                }
            };
            drop(timeout(LAST_CHANCE, empty).await);
        };
        tokio::select! {
            () = sending => {}
            () = ended => {}
        }
        let left = self.counters.queued.swap(0, Ordering::Relaxed);
        if left > 0 {
            warn!(samples = left, "time series are lost: the server ends before they were taken");
            self.counters.dropped.fetch_add(left, Ordering::Relaxed);
        }
    }
}

/// Samples of single series in so many of a node's seconds.
fn amount(seconds: usize) -> u64 {
    (seconds * SERIES) as u64
}

impl App {
    /// With a way out for time series.
    #[must_use]
    pub fn with_series(self, series: Series) -> Self {
        Self { series: Some(series), ..self }
    }

    /// What became of time series that leave; nothing where none do.
    pub fn series_counts(&self) -> Option<SeriesCounts> {
        self.series.as_ref().map(Series::counts)
    }

    /// Whether the database keeps time series.
    pub(crate) fn keeps_series(&self) -> bool {
        self.series.as_ref().is_none_or(Series::kept)
    }

    /// Sends time series until the server drains; at once done where none leave.
    pub async fn send_series(self: Arc<Self>, draining: watch::Receiver<bool>) {
        if let Some(series) = &self.series {
            series.run(draining).await;
        }
    }
}
