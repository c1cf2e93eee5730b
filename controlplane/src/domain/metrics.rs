//! Time series of a node's traffic.

use ftagent_common::api::{MetricsBatch, MetricsSample};
use serde::Serialize;

use super::{Problem, Timestamp};

/// The most samples in one batch.
const MAX_SAMPLES: usize = 300;
/// The most points in one answer.
const MAX_POINTS: i64 = 2_000;
/// Samples further from the server's clock than this would distort the series: a day.
const MAX_SKEW_SECS: i64 = 86_400;

/// Which part of a series is wanted, and how finely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsWindow {
    pub from: Timestamp,
    pub to: Timestamp,
    /// Seconds per point.
    pub step: i64,
}

impl MetricsWindow {
    /// The window asked for; by default the last hour, in as many seconds per point as give some 500 points.
    ///
    /// # Errors
    /// `from` not before `to`, a step of other than 1 to 86,400 s, more than 2,000 points.
    pub fn new(
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        step: Option<i64>,
        now: Timestamp,
    ) -> Result<Self, Problem> {
        let to = to.unwrap_or(now);
        let from = from.unwrap_or_else(|| to.plus_secs(-3_600));
        if from >= to {
            return Err(Problem::parameter("from", "must be before to"));
        }
        let span = to.secs_since(from).max(1);
        let step = step.unwrap_or_else(|| (span + 499).div_euclid(500).clamp(1, 86_400));
        if !(1..=86_400).contains(&step) {
            return Err(Problem::parameter("step", format!("must be 1 to 86400 seconds, got {step}")));
        }
        // Points begin at multiples of the step: a window that begins between two has one more.
        let points = (to.secs() - 1).div_euclid(step) - from.secs().div_euclid(step) + 1;
        if points > MAX_POINTS {
            return Err(Problem::parameter("step", format!("gives more than {MAX_POINTS} points: take a longer step")));
        }
        Ok(Self { from, to, step })
    }
}

/// One point of a series: means over `step` seconds, and the highest second.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct MetricsPoint {
    /// The beginning of the step.
    pub at: Timestamp,
    pub pps: u64,
    pub bps: u64,
    pub dropped_pps: u64,
    pub tcp_pps: u64,
    pub udp_pps: u64,
    pub icmp_pps: u64,
    pub other_pps: u64,
    pub peak_pps: u64,
    pub peak_bps: u64,
}

/// The samples of a batch that can be kept: those of a clock that is off by more than a day are left out.
///
/// # Errors
/// An empty batch, or more than 300 samples.
pub fn check_batch(batch: MetricsBatch, now: Timestamp) -> Result<Vec<MetricsSample>, Problem> {
    let count = batch.samples.len();
    if !(1..=MAX_SAMPLES).contains(&count) {
        return Err(Problem::field("samples", format!("must be 1 to {MAX_SAMPLES} samples, got {count}")));
    }
    let near = |s: &MetricsSample| (Timestamp::from(s.at).secs() - now.secs()).abs() <= MAX_SKEW_SECS;
    Ok(batch.samples.into_iter().filter(near).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_bounded() {
        let now = Timestamp::from_secs(1_000_000);
        let at = |secs| Some(Timestamp::from_secs(secs));
        let table = [
            ("default", None, None, None, Some(8)),
            ("at most 500 by default", at(999_001), None, None, Some(2)),
            ("2,000 points", at(998_000), None, Some(1), Some(1)),
            ("2,001 points", at(997_999), None, Some(1), None),
            ("2,001 points, since it begins within a step", at(994_001), None, Some(3), None),
            ("2,000 points of three seconds", at(994_002), None, Some(3), Some(3)),
            ("an hour by the second", at(996_400), None, Some(2), Some(2)),
            ("too fine", at(900_000), None, Some(1), None),
            ("no step", at(999_000), None, Some(0), None),
            ("too long a step", at(999_000), None, Some(86_401), None),
            ("backwards", at(2_000_000), None, None, None),
            ("empty", at(5), at(5), None, None),
            ("everything", at(0), None, None, Some(2_000)),
        ];
        for (name, from, to, step, expected) in table {
            assert_eq!(MetricsWindow::new(from, to, step, now).ok().map(|w| w.step), expected, "{name}");
        }
    }
}
