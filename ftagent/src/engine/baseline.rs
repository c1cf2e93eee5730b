//! What is normal for one target: the 99th percentile over a sliding window, with a fast and a slow moving average.
//!
//! One observation a second. What lies above the threshold, or was seen under attack, is never shown to a baseline:
//! nobody can teach it a flood. What the threshold rests on moves at most by [`DRIFT_PER_HOUR`] either way, so that a
//! slow ramp does not drag it along and a quiet night does not make the morning an attack. Hours of the week that were
//! seen before have a rate of their own ([`super::week`]): it is normal at once, and the window grows no further than
//! [`GROWTH`] times what it was.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::sample::{PerQuantity, Quantity};
use super::week::{GROWTH, Hour, Week, WeekState};

/// How many times the baseline may grow or shrink in an hour once it has been learnt.
pub const DRIFT_PER_HOUR: f64 = 2.0;
/// The window is forgotten in this many steps.
const PARTS: u32 = 10;
/// Seconds of the moving averages.
const FAST_SECS: f64 = 10.0;
const SLOW_SECS: f64 = 300.0;

/// The part of a window: how often a rate fell into each logarithmic bucket.
#[derive(Clone, Debug, Default)]
struct Part {
    seconds: u32,
    /// Sparse: `(bucket, observations)`, in order; a steady rate needs a handful.
    counts: PerQuantity<Vec<(u16, u16)>>,
}

/// Eight buckets an octave: a percentile is right within 9 %.
const PER_OCTAVE: f64 = 8.0;

fn bucket(rate: f64) -> u16 {
    // 2^40 bits/s is bucket 320: far from u16's end.
    (rate.max(1.0).log2() * PER_OCTAVE).ceil().min(1_000.0) as u16
}

fn upper_end(bucket: u16) -> f64 {
    if bucket == 0 { 0.0 } else { (f64::from(bucket) / PER_OCTAVE).exp2() }
}

/// The normal rates of one target.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    parts: VecDeque<Part>,
    learnt_secs: u64,
    fast: PerQuantity<f64>,
    slow: PerQuantity<f64>,
    p99: PerQuantity<f64>,
    used: PerQuantity<f64>,
    week: Week,
}

/// What all baselines learn by.
#[derive(Clone, Debug)]
pub struct Terms {
    pub window_secs: u32,
    pub learning_secs: u32,
    /// Below these rates a baseline changes no threshold.
    pub free: PerQuantity<f64>,
    pub wall: OffsetDateTime,
}

/// What survives a restart: the numbers, not the histograms behind them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BaselineState {
    pub learnt_secs: u64,
    pub fast: PerQuantity<f64>,
    pub slow: PerQuantity<f64>,
    pub used: PerQuantity<f64>,
    #[serde(default, skip_serializing_if = "WeekState::is_empty")]
    pub week: WeekState,
}

impl Baseline {
    /// Continues from what was saved.
    pub fn restore(state: &BaselineState) -> Self {
        Self {
            learnt_secs: state.learnt_secs,
            fast: state.fast,
            slow: state.slow,
            p99: state.used,
            used: state.used,
            week: Week::restore(&state.week),
            ..Self::default()
        }
    }

    /// What is kept of a target that nothing comes for any more: its week, if there is anything in it.
    pub fn rest(self) -> Option<Self> {
        (self.week.rows() > 0).then(|| Self { learnt_secs: self.learnt_secs, week: self.week, ..Self::default() })
    }

    /// What to save.
    pub fn state(&self) -> BaselineState {
        BaselineState {
            learnt_secs: self.learnt_secs,
            fast: self.fast,
            slow: self.slow,
            used: self.used,
            week: self.week.state(),
        }
    }

    /// Learns the rates of one second; never called with what is above a threshold. `room` is how many rows of weeks
    /// there may still be.
    pub fn observe(&mut self, rates: &PerQuantity<f64>, terms: &Terms, room: &mut usize) {
        let Terms { free, .. } = terms;
        self.week.observe(rates, free, terms.wall, room);
        let hour = Hour::of(terms.wall);
        self.learnt_secs += 1;
        let part_secs = (terms.window_secs / PARTS).max(1);
        if self.parts.back().is_none_or(|p| p.seconds >= part_secs) {
            self.parts.push_back(Part::default());
            while self.parts.len() > PARTS as usize {
                self.parts.pop_front();
            }
        }
        if let Some(part) = self.parts.back_mut() {
            part.seconds += 1;
        }
        let learning = self.is_learning(terms.learning_secs);
        let first = self.learnt_secs == 1;
        let drift = DRIFT_PER_HOUR.powf(1.0 / 3_600.0);
        for quantity in Quantity::ALL {
            let i = quantity.index();
            let rate = rates[i];
            self.fast[i] = if first { rate } else { self.fast[i] + (rate - self.fast[i]) / FAST_SECS };
            self.slow[i] = if first { rate } else { self.slow[i] + (rate - self.slow[i]) / SLOW_SECS };
            if rate == 0.0 && self.p99[i] == 0.0 && self.used[i] == 0.0 {
                continue;
            }
            // Zeros are not stored: what is missing from a part's seconds is one.
            if let Some(part) = self.parts.back_mut().filter(|_| rate > 0.0) {
                count(&mut part.counts[i], bucket(rate));
            }
            self.p99[i] = self.percentile(i);
            // Below `free` a baseline changes no threshold, so that new traffic may start without a ramp.
            let grown = self.used[i].max(free[i]) * drift;
            let ceiling = self.week.usual(quantity, hour).map_or(f64::INFINITY, |usual| usual.max(free[i]) * GROWTH);
            self.used[i] =
                if learning { self.p99[i] } else { self.p99[i].min(grown).min(ceiling).max(self.used[i] / drift) };
        }
    }

    /// The rate at or below which 99 % of the window's seconds lie.
    fn percentile(&self, i: usize) -> f64 {
        let seconds: u32 = self.parts.iter().map(|p| p.seconds).sum();
        let mut above = seconds / 100;
        let mut heads: Vec<(u16, u32)> =
            self.parts.iter().flat_map(|p| &p.counts[i]).map(|(b, n)| (*b, u32::from(*n))).collect();
        heads.sort_unstable_by(|a, b| b.cmp(a));
        for (bucket, n) in heads {
            if n > above {
                return upper_end(bucket);
            }
            above -= n;
        }
        0.0
    }

    /// Whether thresholds still rest on the floor alone.
    pub fn is_learning(&self, learning_secs: u32) -> bool {
        self.learnt_secs < u64::from(learning_secs)
    }

    /// Seconds of traffic it rests on.
    pub fn learnt_secs(&self) -> u64 {
        self.learnt_secs
    }

    /// The normal rate that thresholds rest on.
    pub fn normal(&self, quantity: Quantity, hour: Option<Hour>) -> f64 {
        self.used[quantity.index()].max(self.usual(quantity, hour))
    }

    /// What was normal in this hour of the weeks before; 0 while that is not known.
    pub fn usual(&self, quantity: Quantity, hour: Option<Hour>) -> f64 {
        self.week.usual(quantity, hour).unwrap_or(0.0)
    }

    /// What it knows of the hours of the week.
    pub const fn week(&self) -> &Week {
        &self.week
    }

    /// The fast average over the slow one: how quickly the traffic changes.
    pub fn trend(&self, quantity: Quantity) -> f64 {
        let i = quantity.index();
        if self.slow[i] < 1.0 { 1.0 } else { self.fast[i] / self.slow[i] }
    }

    /// An operator says that `rates` are normal: they are from now on.
    pub fn accept(&mut self, rates: &PerQuantity<f64>, terms: &Terms, room: &mut usize) {
        self.learnt_secs = self.learnt_secs.max(u64::from(terms.learning_secs));
        self.week.accept(rates, &terms.free, terms.wall, room);
        for (i, &rate) in rates.iter().enumerate() {
            self.used[i] = self.used[i].max(rate);
            self.slow[i] = self.slow[i].max(rate);
        }
    }
}

fn count(counts: &mut Vec<(u16, u16)>, bucket: u16) {
    match counts.binary_search_by_key(&bucket, |(b, _)| *b) {
        Ok(at) => counts[at].1 = counts[at].1.saturating_add(1),
        Err(at) => counts.insert(at, (bucket, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: PerQuantity<f64> = [1_000.0; Quantity::COUNT];

    /// A clock that was never set: no hours.
    fn terms(wall: OffsetDateTime) -> Terms {
        Terms { window_secs: 300, learning_secs: 300, free: FREE, wall }
    }

    fn learn(baseline: &mut Baseline, secs: u32, rate: impl Fn(u32) -> f64) {
        for second in 0..secs {
            baseline.observe(&[rate(second); Quantity::COUNT], &terms(OffsetDateTime::UNIX_EPOCH), &mut 0);
        }
    }

    fn pps(baseline: &Baseline) -> f64 {
        baseline.normal(Quantity::Pps, None)
    }

    fn near(got: f64, expected: f64) -> bool {
        (got / expected - 1.0).abs() < 0.1
    }

    #[test]
    fn a_steady_rate_is_learnt_within_a_bucket() {
        let mut b = Baseline::default();
        learn(&mut b, 400, |_| 5_000.0);
        assert!(near(pps(&b), 5_000.0), "{}", pps(&b));
        assert!(!b.is_learning(300));
        assert!(near(b.trend(Quantity::Pps), 1.0));
    }

    #[test]
    fn the_99th_percentile_ignores_the_rarest_peaks() {
        let mut b = Baseline::default();
        learn(&mut b, 300, |s| if s % 150 == 149 { 90_000.0 } else { 2_000.0 });
        assert!(near(pps(&b), 2_000.0), "{}", pps(&b));
    }

    #[test]
    fn a_ramp_drags_it_no_faster_than_the_drift() {
        let mut b = Baseline::default();
        learn(&mut b, 600, |_| 5_000.0);
        learn(&mut b, 1_800, |s| 5_000.0 * (1.0 + 9.0 * f64::from(s) / 1_800.0));
        let grown = pps(&b) / 5_000.0;
        assert!(grown < 1.6, "{grown}");
    }

    #[test]
    fn a_quiet_night_does_not_make_the_morning_an_attack() {
        let mut b = Baseline::default();
        learn(&mut b, 600, |_| 20_000.0);
        learn(&mut b, 1_800, |_| 100.0);
        assert!(pps(&b) > 13_000.0, "{}", pps(&b));
    }

    #[test]
    fn it_survives_a_restart() {
        let mut b = Baseline::default();
        learn(&mut b, 400, |_| 5_000.0);
        let again = Baseline::restore(&b.state());
        assert_eq!(pps(&again), pps(&b));
        assert!(!again.is_learning(300));
    }

    #[test]
    fn what_an_operator_accepts_is_normal_at_once() {
        let mut b = Baseline::default();
        b.accept(&[40_000.0; Quantity::COUNT], &terms(OffsetDateTime::UNIX_EPOCH), &mut 0);
        assert_eq!(b.normal(Quantity::Bps, None), 40_000.0);
        assert!(!b.is_learning(300));
    }

    /// Monday, 2026-01-05, 00:00 UTC, and so many seconds.
    fn at(second: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_767_571_200 + second).expect("a time")
    }

    /// A week of quarters of an hour and a second: `rate` by the hour.
    fn week(baseline: &mut Baseline, week: i64, rate: impl Fn(i64) -> f64) {
        let mut room = 100;
        for hour in 0..168 {
            for second in 0..901 {
                let now = at(week * 604_800 + hour * 3_600 + second);
                baseline.observe(&[rate(hour); Quantity::COUNT], &terms(now), &mut room);
            }
        }
    }

    #[test]
    fn a_known_morning_is_normal_from_its_first_second() {
        let mut b = Baseline::default();
        let day = |hour: i64| if hour % 24 >= 9 { 40_000.0 } else { 3_000.0 };
        week(&mut b, 0, day);
        let night = at(604_800 + 3 * 3_600);
        learn(&mut b, 16_000, |_| 3_000.0);
        assert!(near(pps(&b), 3_000.0), "{}", pps(&b));
        let at_nine = Hour::of(at(604_800 + 9 * 3_600));
        assert!(b.normal(Quantity::Pps, at_nine) >= 40_000.0, "{}", b.normal(Quantity::Pps, at_nine));
        assert!(near(b.normal(Quantity::Pps, Hour::of(night)), 3_000.0), "and the night stays one");
        let kept = Baseline::restore(&b.state()).rest().expect("a week");
        assert_eq!(
            kept.normal(Quantity::Pps, at_nine),
            b.normal(Quantity::Pps, at_nine),
            "through silence and restart"
        );
        assert!(!kept.is_learning(300));
        assert_eq!(Baseline::default().rest().map(|b| b.learnt_secs()), None);
    }

    #[test]
    fn a_ramp_of_hours_ends_at_four_times_the_week_before() {
        let (mut known, mut unknown) = (Baseline::default(), Baseline::default());
        week(&mut known, 0, |_| 5_000.0);
        learn(&mut unknown, 600, |_| 5_000.0);
        let mut room = 100;
        for second in 0..12 * 3_600 {
            let rate = 5_000.0 * 1.000_1_f64.powi(second);
            known.observe(&[rate; Quantity::COUNT], &terms(at(604_800 + i64::from(second))), &mut room);
            unknown.observe(&[rate; Quantity::COUNT], &terms(OffsetDateTime::UNIX_EPOCH), &mut room);
        }
        // The ramp itself is learnt by the hours that it passes, each at most doubled.
        let (with, without) = (pps(&known), pps(&unknown));
        assert!(with <= 5_000.0 * 1.13 * 2.0 * GROWTH && with < without / 5.0, "{with} and {without}");
    }
}
