//! What a site's requests are like when nobody attacks it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::window::Features;
use crate::engine::baseline::{Baseline, BaselineState, Terms};
use crate::engine::sample::{PerQuantity, Quantity};
use crate::engine::week::Hour;

/// Seconds that the averages look back.
const MEMORY_SECS: f64 = 120.0;
/// Seconds before they count.
const LEARNT_SECS: u64 = 60;
/// Fewer requests in a window say nothing of their kind.
const FEWEST: u64 = 5;
/// Busy sources whose rates are remembered.
const MAX_REGULARS: usize = 64;

/// Averages over calm seconds; shares are 0 to 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Calm {
    pub(super) learnt_secs: u64,
    pub(super) errors: f64,
    pub(super) posts: f64,
    pub(super) busting: f64,
    pub(super) cancelled: f64,
    pub(super) assets: f64,
    pub(super) nameless: f64,
    pub(super) top_path: f64,
    pub(super) top_agent: f64,
    /// Requests per second of the busiest sources: who always asked this much is no attacker.
    pub(super) regulars: BTreeMap<IpAddr, f64>,
}

impl Calm {
    /// Learns one second.
    pub(super) fn observe(&mut self, f: &Features) {
        if f.sum.requests < FEWEST {
            return;
        }
        self.learnt_secs += 1;
        let weight = (1.0 / self.learnt_secs as f64).max(1.0 / MEMORY_SECS);
        let learn = |average: &mut f64, value: f64| *average += (value - *average) * weight;
        learn(&mut self.errors, f.sum.share(f.sum.errors));
        learn(&mut self.posts, f.sum.share(f.sum.posts));
        learn(&mut self.busting, f.busting);
        learn(&mut self.cancelled, f.sum.share(f.sum.cancelled));
        learn(&mut self.assets, f.sum.share(f.sum.assets));
        learn(&mut self.nameless, f.nameless);
        learn(&mut self.top_path, f.paths.top);
        learn(&mut self.top_agent, f.agents.top);
        for (ip, rate) in &mut self.regulars {
            let now = f.sources.iter().take(MAX_REGULARS).find(|(s, _)| s == ip).map_or(0, |(_, t)| t.requests);
            learn(rate, f.per_sec(now));
        }
        self.regulars.retain(|_, rate| *rate >= 0.5);
        for (ip, tally) in f.sources.iter().take(MAX_REGULARS) {
            let rate = f.per_sec(tally.requests);
            if rate >= 1.0 && self.regulars.len() < MAX_REGULARS {
                // Beginners grow into their rate: one busy second makes nobody a regular.
                self.regulars.entry(*ip).or_insert(rate * weight.max(1.0 / 30.0));
            }
        }
    }

    /// Whether it rests on enough to be compared with.
    pub(super) fn is_learnt(&self) -> bool {
        self.learnt_secs >= LEARNT_SECS
    }
}

/// A site's usual rate of requests, learnt as packet rates are.
#[derive(Clone, Debug, Default)]
pub(super) struct UsualRate(Baseline);

impl UsualRate {
    /// Learns one calm second; `free` changes no threshold.
    pub(super) fn observe(&mut self, rps: f64, terms: &Terms) {
        // One row for each of a bounded number of sites.
        self.0.observe(&only(rps), terms, &mut 1);
    }

    /// Requests per second, once enough was seen.
    pub(super) fn normal(&self, learning_secs: u32, hour: Option<Hour>) -> Option<f64> {
        (!self.0.is_learning(learning_secs)).then(|| self.0.normal(Quantity::Pps, hour))
    }

    /// Whether the hour of the week says more than the last minutes.
    pub(super) fn is_by_hour(&self, hour: Option<Hour>) -> bool {
        self.0.normal(Quantity::Pps, hour) > self.0.normal(Quantity::Pps, None)
    }

    pub(super) fn accept(&mut self, rps: f64, terms: &Terms) {
        self.0.accept(&only(rps), terms, &mut 1);
    }

    pub(super) fn state(&self) -> BaselineState {
        self.0.state()
    }

    pub(super) fn restore(state: &BaselineState) -> Self {
        Self(Baseline::restore(state))
    }
}

/// A baseline knows nine rates: requests stand in the place of packets, the others stay 0.
pub(super) fn only(rps: f64) -> PerQuantity<f64> {
    let mut rates = [0.0; Quantity::COUNT];
    rates[Quantity::Pps.index()] = rps;
    rates
}
