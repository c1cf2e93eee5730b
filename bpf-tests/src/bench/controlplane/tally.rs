//! Counts and times of many tasks at once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Parts of each doubling: a quantile is off by at most 3 %.
const PARTS: u64 = 32;
/// From 1 µs to more than an hour.
const BUCKETS: usize = 32 * PARTS as usize;

/// Times, as many as there are.
pub(super) struct Times(Vec<AtomicU64>);

impl Default for Times {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Times {
    pub(super) fn add(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }

    /// The time in milliseconds that this share does not exceed; none without any.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        let rank = ((share * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let found = self.0.iter().position(|n| {
            seen += n.load(Ordering::Relaxed);
            seen >= rank
        });
        found.filter(|_| count > 0).map(|bucket| upper(bucket) / 1_000.0)
    }

    pub(super) fn clear(&self) {
        self.0.iter().for_each(|n| n.store(0, Ordering::Relaxed));
    }
}

fn bucket(micros: u64) -> usize {
    if micros < PARTS {
        return usize::try_from(micros).expect("below 32");
    }
    let shift = micros.ilog2() - PARTS.ilog2();
    let place = u64::from(shift + 1) * PARTS + (micros >> shift) - PARTS;
    usize::try_from(place).map_or(BUCKETS - 1, |place| place.min(BUCKETS - 1))
}

/// The end of a bucket in microseconds.
fn upper(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    if bucket < PARTS {
        return (bucket + 1) as f64;
    }
    let (shift, part) = (bucket / PARTS - 1, bucket % PARTS);
    ((PARTS + part + 1) as f64) * 2_f64.powi(i32::try_from(shift).unwrap_or(0))
}

/// What the fleet heard and waited for.
#[derive(Default)]
pub(super) struct Tally {
    /// Of agents: heartbeats, samples, polls.
    pub(super) agents: Times,
    /// Of operators reading.
    pub(super) operators: Times,
    /// From the moment an order, or a change for all, is sent off to where it has arrived.
    pub(super) orders: Times,
    pub(super) changes: Times,
    /// The same at real links of the agent, and how many of those have a configuration.
    pub(super) links: Times,
    pub(super) linked: AtomicU64,
    /// Reports of nodes that were acknowledged: samples, heartbeats, incidents.
    pub(super) reports: AtomicU64,
    /// Requests that were answered well, those that were not, and those that were not answered.
    pub(super) good: AtomicU64,
    pub(super) bad: AtomicU64,
    pub(super) lost: AtomicU64,
    /// The bad ones by status.
    statuses: Mutex<BTreeMap<u16, u64>>,
    /// Seconds of nodes' traffic that were taken.
    pub(super) samples: AtomicU64,
    /// Streams that are open.
    pub(super) streams: AtomicU64,
}

impl Tally {
    pub(super) fn clear(&self) {
        for times in [&self.agents, &self.operators, &self.orders, &self.changes, &self.links] {
            times.clear();
        }
        for count in [&self.good, &self.bad, &self.lost, &self.samples, &self.reports] {
            count.store(0, Ordering::Relaxed);
        }
        self.statuses.lock().expect("nobody panics with it").clear();
    }

    /// What the bad answers were, as ` (503: 12, 429: 3)`; nothing without any.
    pub(super) fn statuses(&self) -> String {
        let statuses = self.statuses.lock().expect("nobody panics with it");
        let each: Vec<_> = statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
        if each.is_empty() { String::new() } else { format!(" ({})", each.join(", ")) }
    }

    /// Counts an answer of `status`; whether it was a good one.
    pub(super) fn answered(&self, status: u16) -> bool {
        let good = matches!(status, 200 | 304);
        let count = if good { &self.good } else { &self.bad };
        count.fetch_add(1, Ordering::Relaxed);
        if !good {
            *self.statuses.lock().expect("nobody panics with it").entry(status).or_default() += 1;
        }
        good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_off_by_little() {
        let times = Times::default();
        assert_eq!(times.quantile(0.5), None);
        for micros in 1..=100_000 {
            times.add(Duration::from_micros(micros));
        }
        for (share, expected) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 0.1)] {
            let found = times.quantile(share).expect("there are some");
            assert!((found / expected - 1.0).abs() < 0.04, "{share}: {found} ms");
        }
        times.add(Duration::from_secs(1_000_000));
        assert_eq!(times.count(), 100_001);
    }
}
