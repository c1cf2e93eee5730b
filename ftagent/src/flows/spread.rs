//! From what exporters tell, late and in lumps, to counters that grow as the kernel's would: PURE.
//!
//! A sampled packet stands for many, and a flow record for minutes. Counted at once, either would be a peak that never
//! was. So each amount is laid out over a span of time:
//!
//! ```text
//! flow record   first ──────── last        export      arrival = now
//!                                 └── age ──┘
//! laid out      the same duration, begun at now: records of one long flow follow each other without gap or overlap.
//!               Of an exporter that is silent between lumps, short flows begin later, by as much as the oldest ages
//!               exceed their own and at most the silence: the flows of a lump keep their times
//! sampled       at least so long that one sample alone moves no rate by more than 1/32 of a threshold
//! ```
//!
//! Everything is bounded: targets, spans, and the changes that wait. Times are rounded down to a 32nd of the span, so that
//! changes of one target meet in few places; amounts stay exact.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ftagent_common::abi::{Counter, TargetCounters};
use ftagent_common::vocab::TrafficClass;

use crate::engine::sample::{MS, SEC};

/// Addresses that one exporter can tell of; as many as an engine watches.
const MAX_TARGETS: usize = 8_192;
/// Changes of rates that wait for their time.
const MAX_CHANGES: usize = 262_144;
/// A target that nothing came for is forgotten, a little after the engine forgets it.
const FORGET_NS: u64 = 3_700 * SEC;
/// Times are no finer than this.
const GRID_NS: u64 = 50 * MS;
/// Interfaces that are remembered of a target.
const MAX_INPUTS: usize = 8;

/// Rates are kept in 10^-6 a second and sums in 10^-15, so that one packet in an hour is not rounded away.
const MICRO: i128 = 1_000_000;
const UNIT: i128 = MICRO * SEC as i128;

/// Packets and bytes: amounts, or rates, or changes of rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pair {
    packets: i128,
    bytes: i128,
}

impl Pair {
    fn add(&mut self, other: Self, times: i128) {
        self.packets = self.packets.saturating_add(other.packets.saturating_mul(times));
        self.bytes = self.bytes.saturating_add(other.bytes.saturating_mul(times));
    }
}

#[derive(Debug)]
struct Target {
    ip: IpAddr,
    /// Up to when `sums` are complete.
    at_ns: u64,
    busy_ns: u64,
    sums: [Pair; TrafficClass::COUNT],
    rates: [Pair; TrafficClass::COUNT],
    /// Interfaces (ifIndex) by which packets to it came, with how many; halved now and then.
    inputs: Vec<(u32, u64)>,
}

impl Target {
    fn run_to(&mut self, ns: u64) {
        let span = i128::from(ns.saturating_sub(self.at_ns));
        if span > 0 {
            for (sum, rate) in self.sums.iter_mut().zip(&self.rates) {
                sum.add(*rate, span);
            }
            self.at_ns = ns;
        }
    }
}

/// What is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) target: IpAddr,
    pub(super) class: TrafficClass,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// From the first packet to the last.
    pub(super) over_ns: u64,
    /// From the last packet to the export.
    pub(super) age_ns: u64,
    /// The shortest span that it may be laid out over.
    pub(super) least_ns: u64,
    pub(super) input: u32,
}

/// Growing counters of every target that one exporter tells of.
#[derive(Debug, Default)]
pub(super) struct Spread {
    ids: HashMap<IpAddr, u32>,
    targets: BTreeMap<u32, Target>,
    next_id: u32,
    changes: BTreeMap<(u64, u32, u8), Pair>,
    ages: Highest,
    /// Times between datagrams.
    gaps: Highest,
    arrived_ns: Option<u64>,
    first_ns: u64,
    swept_ns: u64,
    /// Amounts that found no room.
    pub(super) unplaced: u64,
}

/// The highest of the newest values; each is remembered for one period at least, for two at most.
#[derive(Debug, Default)]
struct Highest {
    before: u64,
    newest: u64,
    since_ns: u64,
}

/// For how long an exporter's habits are remembered.
const HABIT_NS: u64 = 120 * SEC;

impl Highest {
    fn take(&mut self, value: u64, now_ns: u64) -> u64 {
        if now_ns.saturating_sub(self.since_ns) > HABIT_NS {
            (self.before, self.newest, self.since_ns) = (self.newest, 0, now_ns);
        }
        self.newest = self.newest.max(value);
        self.before.max(self.newest)
    }
}

/// No exporter holds a flow that is over for longer.
const MAX_AGE_NS: u64 = 300 * SEC;

impl Spread {
    /// A datagram came.
    pub(super) fn on_arrival(&mut self, now_ns: u64) {
        match self.arrived_ns.replace(now_ns) {
            Some(before) => _ = self.gaps.take(now_ns.saturating_sub(before), now_ns),
            None => self.first_ns = now_ns,
        }
    }

    /// Lays `amount` out from `now_ns` on.
    pub(super) fn add(&mut self, amount: &Amount, now_ns: u64) {
        let Some(id) = self.id_of(amount.target, now_ns) else {
            self.unplaced = self.unplaced.saturating_add(1);
            return;
        };
        let late_ns = self.delay(amount.age_ns.min(MAX_AGE_NS), now_ns);
        let over_ns = amount.over_ns.max(amount.least_ns).max(GRID_NS);
        // Begun where it was, as far as that is not over.
        let start_ns = (now_ns + late_ns).saturating_sub(amount.over_ns).max(now_ns);
        let grid = grid(over_ns, self.changes.len());
        let start_ns = if start_ns < now_ns + grid { now_ns } else { start_ns / grid * grid };
        // Rounded down: the next record of the same flow must not overlap this one.
        let end_ns = ((start_ns + over_ns) / grid * grid).max(start_ns + GRID_NS);
        if self.changes.len() >= MAX_CHANGES {
            self.unplaced = self.unplaced.saturating_add(1);
            return;
        }
        let span = i128::from(end_ns - start_ns);
        let rate =
            Pair { packets: i128::from(amount.packets) * UNIT / span, bytes: i128::from(amount.bytes) * UNIT / span };
        // What the division lost is added at once: sums stay exact.
        let lost = Pair {
            packets: i128::from(amount.packets) * UNIT - rate.packets * span,
            bytes: i128::from(amount.bytes) * UNIT - rate.bytes * span,
        };
        let class = amount.class.index();
        if let Some(target) = self.targets.get_mut(&id) {
            target.run_to(now_ns);
            target.busy_ns = target.busy_ns.max(end_ns);
            target.sums[class].add(lost, 1);
            if start_ns == now_ns {
                target.rates[class].add(rate, 1);
            }
            note_input(&mut target.inputs, amount.input, amount.packets);
        }
        let key = class as u8;
        if start_ns != now_ns {
            self.changes.entry((start_ns, id, key)).or_default().add(rate, 1);
        }
        self.changes.entry((end_ns, id, key)).or_default().add(rate, -1);
    }

    /// How long a record of this age has to wait for those of the same time that are not here yet.
    fn delay(&mut self, age_ns: u64, now_ns: u64) -> u64 {
        let oldest = self.ages.take(age_ns, now_ns);
        // What is sent without a pause is in no lump. Before a habit shows, everything may be one.
        let is_new = now_ns.saturating_sub(self.first_ns) < HABIT_NS;
        let pause = if is_new { u64::MAX } else { self.gaps.take(0, now_ns) };
        (oldest - age_ns).min(pause)
    }

    fn id_of(&mut self, ip: IpAddr, now_ns: u64) -> Option<u32> {
        if let Some(id) = self.ids.get(&ip) {
            return Some(*id);
        }
        if self.ids.len() >= MAX_TARGETS {
            return None;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.ids.insert(ip, id);
        let none = [Pair::default(); TrafficClass::COUNT];
        let inputs = Vec::new();
        self.targets.insert(id, Target { ip, at_ns: now_ns, busy_ns: now_ns, sums: none, rates: none, inputs });
        Some(id)
    }

    /// The counters as they are at `now_ns`.
    pub(super) fn reading(&mut self, now_ns: u64) -> Vec<(IpAddr, TargetCounters)> {
        while let Some(entry) = self.changes.first_entry() {
            let (at_ns, id, class) = *entry.key();
            if at_ns > now_ns {
                break;
            }
            let change = entry.remove();
            if let Some(target) = self.targets.get_mut(&id) {
                target.run_to(at_ns.max(target.at_ns));
                target.rates[usize::from(class)].add(change, 1);
            }
        }
        if now_ns.saturating_sub(self.swept_ns) > 10 * SEC {
            self.swept_ns = now_ns;
            self.sweep(now_ns);
        }
        self.targets
            .values_mut()
            .map(|target| {
                target.run_to(now_ns);
                let mut counters = TargetCounters::default();
                for (flow, sum) in counters.classes.iter_mut().zip(&target.sums) {
                    flow.passed = Counter { packets: whole(sum.packets), bytes: whole(sum.bytes) };
                }
                (target.ip, counters)
            })
            .collect()
    }

    fn sweep(&mut self, now_ns: u64) {
        for target in self.targets.values_mut() {
            target.inputs.iter_mut().for_each(|(_, packets)| *packets /= 2);
            target.inputs.retain(|(_, packets)| *packets > 0);
        }
        let old: Vec<u32> =
            self.targets.iter().filter(|(_, t)| t.busy_ns + FORGET_NS < now_ns).map(|(id, _)| *id).collect();
        for id in old {
            if let Some(target) = self.targets.remove(&id) {
                self.ids.remove(&target.ip);
            }
        }
    }

    /// Interfaces by which packets to the addresses in `is_target` came lately, with their shares, largest first.
    pub(super) fn inputs(&self, is_target: impl Fn(IpAddr) -> bool) -> Vec<(u32, f64)> {
        let mut sums: BTreeMap<u32, u64> = BTreeMap::new();
        for (input, packets) in self.targets.values().filter(|t| is_target(t.ip)).flat_map(|t| &t.inputs) {
            let sum = sums.entry(*input).or_default();
            *sum = sum.saturating_add(*packets);
        }
        let total: f64 = sums.values().map(|packets| *packets as f64).sum();
        let mut shares: Vec<(u32, f64)> =
            sums.into_iter().map(|(input, packets)| (input, packets as f64 / total.max(1.0))).collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        shares
    }
}

/// To what times of a span are rounded: a 32nd of it, and half of it where many wait already.
fn grid(over_ns: u64, waiting: usize) -> u64 {
    let part = if waiting > MAX_CHANGES / 2 { over_ns / 2 } else { over_ns / 32 };
    let power = 1u64 << part.max(1).ilog2();
    power.max(GRID_NS)
}

fn whole(sum: i128) -> u64 {
    u64::try_from((sum / UNIT).max(0)).unwrap_or(u64::MAX)
}

fn note_input(inputs: &mut Vec<(u32, u64)>, input: u32, packets: u64) {
    if let Some((_, sum)) = inputs.iter_mut().find(|(known, _)| *known == input) {
        *sum = sum.saturating_add(packets);
    } else if inputs.len() < MAX_INPUTS {
        inputs.push((input, packets));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000 * SEC;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([203, 0, 113, last])
    }

    fn amount(packets: u64, over_secs: u64) -> Amount {
        Amount {
            target: ip(5),
            class: TrafficClass::Udp,
            packets,
            bytes: packets.saturating_mul(100),
            over_ns: over_secs * SEC,
            age_ns: 0,
            least_ns: SEC,
            input: 7,
        }
    }

    fn packets(spread: &mut Spread, now_ns: u64) -> u64 {
        let reading = spread.reading(now_ns);
        reading.iter().map(|(_, c)| c.classes[TrafficClass::Udp.index()].passed.packets).sum()
    }

    /// Packets of each second from `NOW` on.
    fn by_second(spread: &mut Spread, secs: u64) -> Vec<u64> {
        let mut before = packets(spread, NOW);
        let seconds = (1..=secs).map(|second| {
            let sum = packets(spread, NOW + second * SEC);
            let grown = sum - before;
            before = sum;
            grown
        });
        seconds.collect()
    }

    #[test]
    fn a_long_flow_is_no_peak_and_no_packet_of_it_is_lost() {
        let mut spread = Spread::default();
        spread.add(&amount(60_000, 60), NOW);
        let seconds = by_second(&mut spread, 80);
        let most = seconds.iter().max().copied().unwrap_or(0);
        assert!((1_000..=1_040).contains(&most), "a thousand a second: {seconds:?}");
        assert_eq!(seconds.iter().sum::<u64>(), 60_000, "exact in the end");
        assert_eq!(seconds[70..].iter().sum::<u64>(), 0, "and over");
    }

    #[test]
    fn records_of_one_flow_follow_each_other_without_a_gap() {
        let mut spread = Spread::default();
        let mut rates = Vec::new();
        let mut before = 0;
        for second in 0..240u64 {
            if second % 60 == 0 {
                spread.add(&amount(60_000, 60), NOW + second * SEC);
            }
            let sum = packets(&mut spread, NOW + (second + 1) * SEC);
            rates.push(sum - before);
            before = sum;
        }
        // Rounding leaves a gap of a second at most; a peak would be 60,000.
        assert!(rates.iter().all(|r| *r <= 1_100), "{rates:?}");
        let mean = rates[60..].iter().sum::<u64>() / 180;
        assert!((950..=1_050).contains(&mean), "{mean}");
    }

    #[test]
    fn flows_that_were_held_back_keep_their_times() {
        // An exporter that sends once a minute: a flow of a thousand packets ended in every second of it.
        let mut spread = Spread::default();
        for lump in 0..4 {
            let now_ns = NOW + lump * 60 * SEC;
            spread.on_arrival(now_ns);
            for second in 0..60 {
                let age_ns = (60 - second) * SEC;
                spread.add(&Amount { age_ns, ..amount(1_000, 0) }, now_ns);
            }
            let mut before = packets(&mut spread, now_ns);
            let mut seconds = Vec::new();
            for second in 1..=60 {
                let sum = packets(&mut spread, now_ns + second * SEC);
                seconds.push(sum - before);
                before = sum;
            }
            assert!(seconds.iter().all(|r| *r <= 3_000), "no peak of lump {lump}: {seconds:?}");
        }
        assert_eq!(packets(&mut spread, NOW + 400 * SEC), 4 * 60_000);
    }

    #[test]
    fn what_is_sent_without_a_pause_is_not_held_back() {
        let mut spread = Spread::default();
        // Flows that wait for their timeout, and for minutes some of them each second.
        for second in 0..200 {
            spread.on_arrival(NOW + second * SEC);
            spread.add(&Amount { age_ns: 15 * SEC, ..amount(10, 0) }, NOW + second * SEC);
        }
        let now_ns = NOW + 200 * SEC;
        let before = packets(&mut spread, now_ns);
        spread.on_arrival(now_ns);
        spread.add(&amount(50_000, 0), now_ns);
        assert!(packets(&mut spread, now_ns + 2 * SEC) - before >= 49_000, "a flood that ends at once shows at once");
    }

    #[test]
    fn a_flood_begins_to_show_at_once() {
        let mut spread = Spread::default();
        spread.add(&amount(600_000, 10), NOW);
        assert!(packets(&mut spread, NOW + 100 * MS) >= 4_500);
    }

    #[test]
    fn one_packet_in_half_an_hour_is_one_packet() {
        let mut spread = Spread::default();
        spread.add(&amount(1, 1_800), NOW);
        assert_eq!(packets(&mut spread, NOW + 4_000 * SEC), 1);
    }

    #[test]
    fn everything_is_bounded() {
        let mut spread = Spread::default();
        for n in 0..20_000u32 {
            let target = IpAddr::from(n.to_be_bytes());
            for over in [0, 30, 600, 1_800] {
                spread.add(&Amount { target, input: n, ..amount(u64::MAX, over) }, NOW + u64::from(n) * MS);
            }
        }
        assert_eq!(spread.targets.len(), MAX_TARGETS);
        assert!(spread.changes.len() <= MAX_CHANGES + 1 && spread.unplaced > 0);
        // Numbers beyond all measure saturate.
        spread.reading(NOW + 100_000 * SEC);
        spread.reading(NOW + 200_000 * SEC);
        assert!(spread.targets.is_empty() && spread.ids.is_empty() && spread.changes.is_empty(), "forgotten");
    }

    #[test]
    fn the_interfaces_of_a_target_are_remembered() {
        let mut spread = Spread::default();
        spread.add(&Amount { input: 3, ..amount(900, 1) }, NOW);
        spread.add(&Amount { input: 4, ..amount(100, 1) }, NOW);
        spread.add(&Amount { input: 9, target: ip(6), ..amount(100, 1) }, NOW);
        let inputs = spread.inputs(|target| target == ip(5));
        assert_eq!(inputs.iter().map(|(input, _)| *input).collect::<Vec<_>>(), [3, 4]);
        assert!((inputs[0].1 - 0.9).abs() < 0.01);
        for input in 0..100 {
            spread.add(&Amount { input, ..amount(1, 1) }, NOW);
        }
        assert_eq!(spread.inputs(|target| target == ip(5)).len(), MAX_INPUTS);
    }
}
