//! When traffic is too much: thresholds, and the state between "above" and "an attack".

use std::net::IpAddr;

use ftagent_common::api::HostThreshold;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::baseline::Baseline;
use super::sample::{MS, Meter, OPEN_WINDOW_NS, PerQuantity, Quantity};
use super::settings::{Detection, ThresholdMode};
use super::week::Hour;

/// Above this many thresholds an incident opens without waiting for the confirmation.
const AT_ONCE: f64 = 5.0;
/// Below this share of the threshold the traffic counts as calm again: the gap keeps an attack that hovers around
/// the threshold from opening and closing.
pub const CALM: f64 = 0.9;

/// Where a threshold comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdOrigin {
    Host,
    Static,
    Floor,
    Baseline,
    /// The baseline of the same hour of the weeks before, which is above that of the last minutes.
    HourOfWeek,
}

impl ThresholdOrigin {
    /// The spelling in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Static => "static",
            Self::Floor => "floor",
            Self::Baseline => "baseline",
            Self::HourOfWeek => "hour_of_week",
        }
    }
}

/// One quantity's threshold; packets or bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    pub value: f64,
    pub origin: ThresholdOrigin,
}

/// The thresholds of one target; what has none is never exceeded.
pub type Thresholds = PerQuantity<Option<Threshold>>;

/// The thresholds of `target`: its own, else static ones, else `max(floor, multiplier × baseline)`.
///
/// Numbers that people set are about the whole traffic, so that only the dynamic mode judges protocols apart.
pub fn thresholds(
    target: IpNet,
    hosts: &[HostThreshold],
    detection: &Detection,
    baseline: Option<&Baseline>,
    hour: Option<Hour>,
) -> Thresholds {
    let host = hosts.iter().filter(|h| h.target.contains(&target)).max_by_key(|h| h.target.prefix_len());
    let mut all = [None; Quantity::COUNT];
    for quantity in Quantity::ALL {
        let set_by_host = match quantity {
            Quantity::Pps => host.and_then(|h| h.pps),
            Quantity::Bps => host.and_then(|h| h.bps),
            _ => None,
        };
        all[quantity.index()] = match (set_by_host, detection.threshold) {
            (Some(value), _) => Some(Threshold { value: value.max(1) as f64, origin: ThresholdOrigin::Host }),
            // A host with a threshold of its own is not judged by the parts of what was set.
            (None, _) if host.is_some() && !matches!(quantity, Quantity::Pps | Quantity::Bps) => None,
            (None, ThresholdMode::Static { pps, bps }) => {
                let value = match quantity {
                    Quantity::Pps => pps,
                    Quantity::Bps => bps,
                    _ => continue,
                };
                Some(Threshold { value: value.max(1) as f64, origin: ThresholdOrigin::Static })
            }
            (None, ThresholdMode::Dynamic) => Some(dynamic(quantity, detection, baseline, hour)),
        };
    }
    all
}

fn dynamic(quantity: Quantity, detection: &Detection, baseline: Option<&Baseline>, hour: Option<Hour>) -> Threshold {
    let floor = if quantity == Quantity::Bps { detection.floor_bps } else { detection.floor_pps }.max(1) as f64;
    let baseline = baseline.filter(|b| !b.is_learning(detection.learning_secs));
    let normal = baseline.map_or(0.0, |b| b.normal(quantity, hour));
    let value = normal * detection.multiplier;
    if value <= floor {
        return Threshold { value: floor, origin: ThresholdOrigin::Floor };
    }
    let by_hour = baseline.is_some_and(|b| b.normal(quantity, None) < normal);
    let origin = if by_hour { ThresholdOrigin::HourOfWeek } else { ThresholdOrigin::Baseline };
    Threshold { value, origin }
}

/// Below this a baseline changes no threshold; see [`Baseline::observe`].
pub fn free_rates(detection: &Detection) -> PerQuantity<f64> {
    Quantity::ALL.map(|q| {
        let floor = if q == Quantity::Bps { detection.floor_bps } else { detection.floor_pps };
        floor as f64 / detection.multiplier
    })
}

/// The quantity that is furthest above its threshold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Excess {
    pub quantity: Quantity,
    pub rate: f64,
    pub threshold: Threshold,
    /// Rate over threshold.
    pub ratio: f64,
}

/// The highest rate over threshold, or nothing where there is no traffic.
pub fn excess(rates: &PerQuantity<f64>, thresholds: &Thresholds) -> Option<Excess> {
    let mut worst: Option<Excess> = None;
    for quantity in Quantity::ALL {
        let Some(threshold) = thresholds[quantity.index()] else { continue };
        let rate = rates[quantity.index()];
        let ratio = rate / threshold.value;
        // Of equal ones the first: the whole before its parts.
        if ratio > 0.0 && worst.is_none_or(|w| ratio > w.ratio) {
            worst = Some(Excess { quantity, rate, threshold, ratio });
        }
    }
    worst
}

/// Watches one target between readings.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    over_since: Option<u64>,
}

impl Watch {
    /// What a reading at `now_ns` means: the excess if it is an attack from now on.
    pub fn judge(&mut self, meter: &Meter, thresholds: &Thresholds, confirm_ms: u32, now_ns: u64) -> Option<Excess> {
        let rates = meter.rates(OPEN_WINDOW_NS);
        let Some(found) = excess(&rates, thresholds).filter(|e| e.ratio > 1.0) else {
            self.over_since = None;
            return None;
        };
        let since = *self.over_since.get_or_insert(now_ns);
        let at_once = found.ratio >= AT_ONCE && meter.persists(found.quantity, found.threshold.value);
        let confirmed = now_ns.saturating_sub(since) >= u64::from(confirm_ms) * MS;
        (at_once || confirmed).then_some(found)
    }

    /// Whether the threshold is being exceeded, confirmed or not.
    pub fn is_over(&self) -> bool {
        self.over_since.is_some()
    }
}

/// The prefix that carpet bombing is looked for in: /24, or /64 of IPv6.
pub fn neighbourhood(target: IpAddr) -> IpNet {
    let len = if target.is_ipv4() { 24 } else { 64 };
    IpNet::new(target, len).expect("24 and 64 are lengths of their families").trunc()
}

/// Whether the packet rates of a prefix's addresses are carpet bombing: at least `targets` of them carry a fair share
/// each, so that no single one is the target.
pub fn is_carpet(rates: &[f64], targets: u32) -> bool {
    let active = rates.iter().filter(|r| **r > 0.0).count();
    if active == 0 {
        return false;
    }
    let fair = rates.iter().sum::<f64>() / active as f64 / 4.0;
    let hit = rates.iter().filter(|r| **r >= fair.max(20.0)).count();
    hit >= targets.max(2) as usize
}

#[cfg(test)]
mod tests {
    use super::super::baseline::Terms;
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn a_host_threshold_comes_before_static_and_dynamic_ones() {
        let hosts = [
            HostThreshold { target: net("203.0.113.0/24"), pps: Some(70_000), bps: None },
            HostThreshold { target: net("203.0.113.5/32"), pps: Some(90_000), bps: Some(1_000) },
        ];
        let fixed = Detection { threshold: ThresholdMode::Static { pps: 5, bps: 6 }, ..Detection::default() };
        let dynamic = Detection::default();
        let mut learnt = Baseline::default();
        let terms = Terms {
            window_secs: 300,
            learning_secs: 300,
            free: free_rates(&dynamic),
            wall: time::OffsetDateTime::UNIX_EPOCH,
        };
        learnt.accept(&[20_000.0; Quantity::COUNT], &terms, &mut 0);
        let q = Quantity::Pps;
        // (name, target, detection, baseline, quantity, expected)
        let table = [
            ("longest match", "203.0.113.5/32", &fixed, None, q, Some((90_000.0, ThresholdOrigin::Host))),
            ("prefix", "203.0.113.6/32", &fixed, None, q, Some((70_000.0, ThresholdOrigin::Host))),
            ("host without bps", "203.0.113.6/32", &fixed, None, Quantity::Bps, Some((6.0, ThresholdOrigin::Static))),
            ("static", "198.51.100.1/32", &fixed, None, q, Some((5.0, ThresholdOrigin::Static))),
            ("static has no parts", "198.51.100.1/32", &fixed, None, Quantity::UdpPps, None),
            ("floor", "198.51.100.1/32", &dynamic, None, q, Some((10_000.0, ThresholdOrigin::Floor))),
            ("learnt", "198.51.100.1/32", &dynamic, Some(&learnt), q, Some((60_000.0, ThresholdOrigin::Baseline))),
            ("parts", "198.51.100.1/32", &dynamic, None, Quantity::UdpPps, Some((10_000.0, ThresholdOrigin::Floor))),
        ];
        for (name, target, detection, baseline, quantity, expected) in table {
            let got = thresholds(net(target), &hosts, detection, baseline, None)[quantity.index()];
            assert_eq!(got.map(|t| (t.value, t.origin)), expected, "{name}");
        }
    }

    #[test]
    fn carpet_bombing_needs_many_fair_shares() {
        let spread = vec![500.0; 256];
        assert!(is_carpet(&spread, 8));
        let mut one = vec![100.0; 30];
        one[7] = 100_000.0;
        assert!(!is_carpet(&one, 8), "one target among quiet neighbours");
        assert!(!is_carpet(&[5_000.0; 7], 8));
        assert!(!is_carpet(&[], 8));
    }

    #[test]
    fn neighbourhoods_are_slash_24_and_slash_64() {
        assert_eq!(neighbourhood("203.0.113.77".parse().expect("v4")), net("203.0.113.0/24"));
        assert_eq!(neighbourhood("2001:db8::7".parse().expect("v6")), net("2001:db8::/64"));
    }
}
