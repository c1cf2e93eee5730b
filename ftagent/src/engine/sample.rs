//! From cumulative counters to rates: one meter per target.
//!
//! Readings come at irregular intervals. A meter keeps the differences of a little more than a second, so that the
//! rate over any window up to that can be read: 100 ms to open an incident, a second for display and baselines.

use std::collections::VecDeque;

use ftagent_common::abi::{Flow, TargetCounters};
use ftagent_common::vocab::TrafficClass;
use serde::{Deserialize, Serialize};

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SEC: u64 = 1_000_000_000;

/// The shortest window a rate is judged over: a burst shorter than this is spread over it.
pub const OPEN_WINDOW_NS: u64 = 100 * MS;
/// The window of displayed rates and of what the baseline learns.
pub const SMOOTH_WINDOW_NS: u64 = SEC;
/// What a meter remembers.
const KEPT_NS: u64 = 1_300 * MS;
/// Readings closer together than this share a slot, so that a meter's memory is bounded.
const SLOT_NS: u64 = 40 * MS;

/// What is measured of a target and compared with a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    Pps,
    Bps,
    TcpPps,
    TcpSynPps,
    UdpPps,
    IcmpPps,
    FragmentPps,
    GrePps,
    OtherPps,
    /// Of access logs; see [`Quantity::is_of_packets`].
    RequestsPerSec,
    /// Of the kernel's connections.
    SlowConnections,
}

/// One number per [`Quantity`] of packets, in declaration order.
pub type PerQuantity<T> = [T; Quantity::COUNT];

impl Quantity {
    /// How many there are of packets.
    pub const COUNT: usize = 9;
    /// Those of packets, in declaration order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Pps,
        Self::Bps,
        Self::TcpPps,
        Self::TcpSynPps,
        Self::UdpPps,
        Self::IcmpPps,
        Self::FragmentPps,
        Self::GrePps,
        Self::OtherPps,
    ];

    /// The spelling in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pps => "pps",
            Self::Bps => "bps",
            Self::TcpPps => "tcp_pps",
            Self::TcpSynPps => "tcp_syn_pps",
            Self::UdpPps => "udp_pps",
            Self::IcmpPps => "icmp_pps",
            Self::FragmentPps => "fragment_pps",
            Self::GrePps => "gre_pps",
            Self::OtherPps => "other_pps",
            Self::RequestsPerSec => "requests_per_sec",
            Self::SlowConnections => "slow_connections",
        }
    }

    /// Whether it is measured of packets and has a place in [`PerQuantity`].
    pub const fn is_of_packets(self) -> bool {
        (self as usize) < Self::COUNT
    }

    /// The index into [`PerQuantity`]; only quantities of packets have one.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether packets of `class` belong to it.
    pub const fn holds(self, class: TrafficClass) -> bool {
        match self {
            Self::Pps | Self::Bps => true,
            Self::TcpPps => class.is_tcp(),
            Self::TcpSynPps => matches!(class, TrafficClass::TcpSyn),
            Self::UdpPps => class.is_udp(),
            Self::IcmpPps => matches!(class, TrafficClass::Icmp | TrafficClass::Icmpv6),
            Self::FragmentPps => matches!(class, TrafficClass::Fragment),
            Self::GrePps => matches!(class, TrafficClass::Gre),
            Self::OtherPps => matches!(class, TrafficClass::Esp | TrafficClass::OtherIp),
            Self::RequestsPerSec | Self::SlowConnections => false,
        }
    }
}

/// What came for a target between two readings, by class.
pub type Delta = [Flow; TrafficClass::COUNT];

/// The difference of two readings; a smaller value means that the kernel's map is a fresh one and counts from 0.
pub fn delta(before: &TargetCounters, after: &TargetCounters) -> Delta {
    let mut delta = [Flow::default(); TrafficClass::COUNT];
    for (out, (old, new)) in delta.iter_mut().zip(before.classes.iter().zip(&after.classes)) {
        out.passed.packets = since(old.passed.packets, new.passed.packets);
        out.passed.bytes = since(old.passed.bytes, new.passed.bytes);
        out.dropped.packets = since(old.dropped.packets, new.dropped.packets);
        out.dropped.bytes = since(old.dropped.bytes, new.dropped.bytes);
    }
    delta
}

const fn since(old: u64, new: u64) -> u64 {
    if new >= old { new - old } else { new }
}

/// Amounts of every quantity: packets, or bits for [`Quantity::Bps`].
fn amounts(delta: &Delta, passed_alone: bool) -> PerQuantity<u64> {
    let mut sums = [0u64; Quantity::COUNT];
    for (class, flow) in TrafficClass::ALL.iter().zip(delta) {
        let count = if passed_alone { flow.passed } else { flow.total() };
        if count.packets == 0 {
            continue;
        }
        for quantity in Quantity::ALL {
            let amount = match quantity {
                Quantity::Bps => count.bytes.saturating_mul(8),
                _ if quantity.holds(*class) => count.packets,
                _ => 0,
            };
            sums[quantity.index()] = sums[quantity.index()].saturating_add(amount);
        }
    }
    sums
}

#[derive(Clone, Debug)]
struct Slot {
    from_ns: u64,
    to_ns: u64,
    total: PerQuantity<u64>,
    passed: PerQuantity<u64>,
}

impl Slot {
    fn is_empty(&self) -> bool {
        self.total[Quantity::Pps.index()] == 0
    }

    fn rate(&self, quantity: Quantity) -> f64 {
        per_sec(self.total[quantity.index()], self.to_ns.saturating_sub(self.from_ns))
    }
}

fn per_sec(amount: u64, span_ns: u64) -> f64 {
    amount as f64 * SEC as f64 / span_ns.max(1) as f64
}

/// The recent past of one target.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    slots: VecDeque<Slot>,
}

impl Meter {
    /// Adds what came between two readings.
    pub fn push(&mut self, from_ns: u64, to_ns: u64, delta: &Delta) {
        if self.slots.is_empty() && delta.iter().all(|f| f.total().packets == 0) {
            return;
        }
        let total = amounts(delta, false);
        let passed = amounts(delta, true);
        match self.slots.back_mut() {
            Some(last) if to_ns.saturating_sub(last.from_ns) < SLOT_NS => {
                last.to_ns = to_ns;
                add(&mut last.total, &total);
                add(&mut last.passed, &passed);
            }
            _ => self.slots.push_back(Slot { from_ns, to_ns, total, passed }),
        }
        while self.slots.front().is_some_and(|s| s.to_ns + KEPT_NS < to_ns) {
            self.slots.pop_front();
        }
        if self.slots.iter().all(Slot::is_empty) {
            self.slots = VecDeque::new();
        }
    }

    /// Whether nothing came for more than a second.
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// Rates over the newest `window_ns`, dropped packets included; a shorter past is spread over the window.
    pub fn rates(&self, window_ns: u64) -> PerQuantity<f64> {
        self.over(window_ns, |slot| &slot.total)
    }

    /// The same for what passed alone.
    pub fn passed_rates(&self, window_ns: u64) -> PerQuantity<f64> {
        self.over(window_ns, |slot| &slot.passed)
    }

    fn over(&self, window_ns: u64, amounts: impl Fn(&Slot) -> &PerQuantity<u64>) -> PerQuantity<f64> {
        let mut sums = [0u64; Quantity::COUNT];
        let mut span = 0;
        if let Some(newest) = self.slots.back() {
            for slot in self.slots.iter().rev() {
                add(&mut sums, amounts(slot));
                span = newest.to_ns.saturating_sub(slot.from_ns);
                if span >= window_ns {
                    break;
                }
            }
        }
        sums.map(|amount| per_sec(amount, span.max(window_ns)))
    }

    /// Whether each of the two newest slots exceeds `limit` by itself: what tells an attack from a burst.
    pub fn persists(&self, quantity: Quantity, limit: f64) -> bool {
        let mut newest = self.slots.iter().rev().take(2);
        self.slots.len() >= 2 && newest.all(|slot| slot.rate(quantity) > limit)
    }

    /// When the run of slots above `limit` that leads up to now began.
    pub fn onset(&self, quantity: Quantity, limit: f64) -> Option<u64> {
        self.slots.iter().rev().take_while(|s| s.rate(quantity) > limit).last().map(|s| s.from_ns)
    }
}

fn add(sums: &mut PerQuantity<u64>, more: &PerQuantity<u64>) {
    for (sum, part) in sums.iter_mut().zip(more) {
        *sum = sum.saturating_add(*part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(class: TrafficClass, passed: u64, dropped: u64) -> TargetCounters {
        let mut counters = TargetCounters::default();
        let flow = &mut counters.classes[class.index()];
        flow.passed.packets = passed;
        flow.passed.bytes = passed * 100;
        flow.dropped.packets = dropped;
        flow.dropped.bytes = dropped * 100;
        counters
    }

    /// A meter after readings of `(ms, packets so far)`.
    fn meter(readings: &[(u64, u64)]) -> Meter {
        let mut meter = Meter::default();
        let mut last = (0, TargetCounters::default());
        for &(ms, packets) in readings {
            let counters = of(TrafficClass::Udp, packets, 0);
            meter.push(last.0, ms * MS, &delta(&last.1, &counters));
            last = (ms * MS, counters);
        }
        meter
    }

    #[test]
    fn a_smaller_value_means_a_fresh_map() {
        let d = delta(&of(TrafficClass::Udp, 1_000, 0), &of(TrafficClass::Udp, 30, 0));
        assert_eq!(d[TrafficClass::Udp.index()].passed.packets, 30);
    }

    #[test]
    fn rates_follow_irregular_intervals() {
        type Row = (&'static str, &'static [(u64, u64)], u64, f64);
        let table: [Row; 4] = [
            ("steady", &[(50, 500), (100, 1_000), (150, 1_500)], OPEN_WINDOW_NS, 10_000.0),
            ("late reading", &[(50, 500), (250, 2_500)], OPEN_WINDOW_NS, 10_000.0),
            ("a burst is spread over the window", &[(50, 3_000)], OPEN_WINDOW_NS, 30_000.0),
            ("nothing", &[], OPEN_WINDOW_NS, 0.0),
        ];
        for (name, readings, window, expected) in table {
            let rate = meter(readings).rates(window)[Quantity::UdpPps.index()];
            assert!((rate - expected).abs() < 1.0, "{name}: {rate}");
        }
    }

    #[test]
    fn dropped_packets_count_apart() {
        let mut m = Meter::default();
        m.push(0, 100 * MS, &delta(&TargetCounters::default(), &of(TrafficClass::TcpSyn, 100, 900)));
        assert_eq!(m.rates(OPEN_WINDOW_NS)[Quantity::TcpSynPps.index()], 10_000.0);
        assert_eq!(m.passed_rates(OPEN_WINDOW_NS)[Quantity::TcpSynPps.index()], 1_000.0);
        assert_eq!(m.rates(OPEN_WINDOW_NS)[Quantity::Bps.index()], 8_000_000.0);
    }

    #[test]
    fn one_slot_does_not_persist_and_two_do() {
        assert!(!meter(&[(50, 6_000)]).persists(Quantity::Pps, 10_000.0));
        assert!(!meter(&[(50, 6_000), (100, 6_000)]).persists(Quantity::Pps, 10_000.0));
        assert!(meter(&[(50, 3_000), (100, 6_000)]).persists(Quantity::Pps, 10_000.0));
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut m = Meter::default();
        let one = delta(&TargetCounters::default(), &of(TrafficClass::Udp, 1, 0));
        for i in 0..10_000u64 {
            m.push(i * MS, (i + 1) * MS, &one);
        }
        assert!(m.slots.len() < 40, "{}", m.slots.len());
        let none = [Flow::default(); TrafficClass::COUNT];
        for i in 10_000..13_000u64 {
            m.push(i * MS, (i + 1) * MS, &none);
        }
        assert!(m.is_idle());
    }

    #[test]
    fn the_onset_is_where_the_run_above_the_limit_began() {
        let m = meter(&[(50, 10), (100, 20), (150, 2_000), (200, 4_000)]);
        assert_eq!(m.onset(Quantity::Pps, 10_000.0), Some(100 * MS));
        assert_eq!(m.onset(Quantity::Pps, 1_000_000.0), None);
    }
}
