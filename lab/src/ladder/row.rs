//! One line of the ladder, from the rounds of one peer.

use std::time::Duration;

use serde::Serialize;

use super::measure::Measured;
use super::peer::{Holds, Peer};

/// Where a flood comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sources {
    /// One blocked source.
    Hot,
    /// Another blocked source with every packet, even over all of them.
    Random,
}

/// What one peer cost.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub peer: String,
    pub title: String,
    /// How many sources it blocked; 0 where it holds none.
    pub entries: u32,
    pub sources: Sources,
    /// Whether it meant to drop.
    pub is_defence: bool,
    pub rounds: u32,
    /// Packets that reached it, in all rounds.
    pub packets: u64,
    /// Packets of these that came as far as the UDP layer.
    pub leaked: u64,
    /// Nanoseconds of the receiver for a packet.
    pub ns_min: f64,
    pub ns_median: f64,
    /// Median over the rounds of what it cost more than the floor just before.
    pub over_floor_ns: f64,
    /// Its cost as a multiple of the floor's just before: median, smallest, largest.
    pub ratio: f64,
    pub ratio_min: f64,
    pub ratio_max: f64,
    /// Million packets a second that one core can drop when it does nothing else: of the median.
    pub mpps: f64,
    /// Million packets a second of one core that generates them as well: of the fastest round.
    pub mpps_generated: f64,
    /// How long its lists took to load.
    pub setup_ms: f64,
    /// Why there are no figures, or fewer rounds than asked for.
    pub error: Option<String>,
}

impl Row {
    /// A peer that could not be measured.
    pub(super) fn missing(peer: &dyn Peer, entries: u32, sources: Sources, why: &str) -> Self {
        let mut collected = Collected::new(Duration::ZERO);
        collected.fail(format!("not available: {why}"));
        collected.row(peer, entries, sources)
    }
}

/// The rounds of one peer so far.
pub(super) struct Collected {
    setup: Duration,
    packets: u64,
    leaked: u64,
    ns: Vec<f64>,
    over: Vec<f64>,
    ratios: Vec<f64>,
    wall_ns: f64,
    error: Option<String>,
}

impl Collected {
    pub(super) fn new(setup: Duration) -> Self {
        Self {
            setup,
            packets: 0,
            leaked: 0,
            ns: Vec::new(),
            over: Vec::new(),
            ratios: Vec::new(),
            wall_ns: f64::INFINITY,
            error: None,
        }
    }

    /// One round, and the floor just before it.
    pub(super) fn add(&mut self, measured: &Measured, floor: &Measured) {
        self.packets += measured.arrived;
        self.leaked += measured.leaked;
        self.ns.push(measured.receive_ns);
        self.over.push(measured.receive_ns - floor.receive_ns);
        self.ratios.push(measured.receive_ns / floor.receive_ns.max(f64::MIN_POSITIVE));
        self.wall_ns = self.wall_ns.min(measured.wall_ns);
    }

    /// The first failure is the one that is told.
    pub(super) fn fail(&mut self, why: String) {
        self.error.get_or_insert(why);
    }

    pub(super) fn row(self, peer: &dyn Peer, entries: u32, sources: Sources) -> Row {
        let ns_median = median(&self.ns);
        let smallest = |values: &[f64]| values.iter().copied().reduce(f64::min).unwrap_or(0.0);
        Row {
            peer: peer.name().to_owned(),
            title: peer.title().to_owned(),
            entries: if peer.holds() == Holds::Everything { 0 } else { entries },
            sources,
            is_defence: peer.is_defence(),
            rounds: self.ns.len() as u32,
            packets: self.packets,
            leaked: self.leaked,
            ns_min: smallest(&self.ns),
            ns_median,
            over_floor_ns: median(&self.over),
            ratio: median(&self.ratios),
            ratio_min: smallest(&self.ratios),
            ratio_max: self.ratios.iter().copied().fold(0.0, f64::max),
            mpps: per_second(ns_median),
            mpps_generated: per_second(self.wall_ns),
            setup_ms: self.setup.as_secs_f64() * 1e3,
            error: self.error,
        }
    }
}

/// Million a second; 0 without figures.
fn per_second(ns: f64) -> f64 {
    if ns.is_finite() && ns > 0.0 { 1e3 / ns } else { 0.0 }
}

/// The middle value, or the mean of both middle ones; 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (len, middle) if len % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::programs;

    fn measured(receive_ns: f64) -> Measured {
        Measured { arrived: 1_000, leaked: 0, receive_ns, wall_ns: receive_ns + 100.0 }
    }

    #[test]
    fn a_row_compares_with_the_floor_of_the_same_moment() {
        let mut collected = Collected::new(Duration::from_millis(3));
        // The machine slows down by half in the last round: the ratio stays.
        for (ns, floor) in [(80.0, 40.0), (90.0, 45.0), (160.0, 80.0)] {
            collected.add(&measured(ns), &measured(floor));
        }
        let row = collected.row(&programs::floor(), 7, Sources::Hot);
        assert_eq!((row.ns_min, row.ns_median, row.ratio, row.over_floor_ns), (80.0, 90.0, 2.0, 45.0));
        assert_eq!((row.rounds, row.packets, row.entries), (3, 3_000, 0));
        assert!((row.mpps - 1e3 / 90.0).abs() < 1e-9 && (row.mpps_generated - 1e3 / 180.0).abs() < 1e-9);
    }

    #[test]
    fn a_peer_that_is_missing_has_a_reason_and_no_figures() {
        let row = Row::missing(&programs::floor(), 1, Sources::Random, "it is not installed");
        assert_eq!(row.error.as_deref(), Some("not available: it is not installed"));
        assert_eq!((row.rounds, row.mpps, row.mpps_generated, row.ratio), (0, 0.0, 0.0, 0.0));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!((median(&[]), median(&[3.0]), median(&[9.0, 1.0, 2.0]), median(&[1.0, 3.0])), (0.0, 3.0, 2.0, 2.0));
    }
}
