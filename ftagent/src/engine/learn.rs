//! What is learnt of calm targets, kept of silent ones, and remembered across restarts.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Engine;
use super::baseline::{Baseline, BaselineState, Terms};
use super::detect;
use super::input::Now;
use super::sample::{SEC, SMOOTH_WINDOW_NS};
use super::week::{Hour, MAX_ROWS};

impl Engine {
    /// Shows calm targets' last second to their baselines.
    pub(super) fn learn(&mut self, now: Now) {
        let due: Vec<IpNet> = self
            .targets
            .iter()
            .filter(|(_, t)| !t.meter.is_idle() && t.observed_ns + SEC <= now.mono_ns)
            .map(|(ip, _)| IpNet::from(*ip))
            .chain(
                self.groups
                    .iter()
                    .filter(|(_, g)| !g.meter.is_idle() && g.observed_ns + SEC <= now.mono_ns)
                    .map(|(net, _)| *net),
            )
            .collect();
        let terms = self.terms(now);
        let mut room = self.week_room;
        for net in due {
            let thresholds = self.thresholds_of(net);
            let attacked = self.is_attacked(net);
            let (meter, baseline, watch, observed_ns) = match (net.prefix_len() == net.max_prefix_len(), net.addr()) {
                (true, ip) => match self.targets.get_mut(&ip) {
                    Some(t) => (&t.meter, &mut t.baseline, &t.watch, &mut t.observed_ns),
                    None => continue,
                },
                (false, _) => match self.groups.get_mut(&net) {
                    Some(g) => (&g.meter, &mut g.baseline, &g.watch, &mut g.observed_ns),
                    None => continue,
                },
            };
            *observed_ns = now.mono_ns;
            let rates = meter.rates(SMOOTH_WINDOW_NS);
            let above = detect::excess(&rates, &thresholds).is_some_and(|e| e.ratio > 1.0);
            if attacked || above || watch.is_over() {
                continue;
            }
            let baseline = baseline.get_or_insert_with(Baseline::default);
            baseline.observe(&rates, &terms, &mut room);
        }
        self.week_room = room;
    }

    /// What baselines learn by.
    pub(super) fn terms(&self, now: Now) -> Terms {
        let detection = &self.effective.detection;
        Terms {
            window_secs: detection.window_secs,
            learning_secs: detection.learning_secs,
            free: detect::free_rates(detection),
            wall: now.wall,
        }
    }

    /// Notes which hour of the week it is; in a new one, counts what weeks take.
    pub(super) fn note_hour(&mut self, now: Now) {
        let hour = Hour::of(now.wall);
        if hour == self.hour {
            return;
        }
        self.hour = hour;
        let baselines = || {
            let targets = self.targets.values().filter_map(|t| t.baseline.as_ref());
            targets.chain(self.groups.values().filter_map(|g| g.baseline.as_ref()))
        };
        let taken: usize = baselines().map(|b| b.week().rows()).sum();
        // Who comes now goes before who has not come for long.
        let mut resting: Vec<(i64, IpNet, usize)> =
            self.restored.iter().map(|(net, b)| (b.week().touched(), *net, b.week().rows())).collect();
        resting.sort_unstable();
        let mut rest: usize = resting.iter().map(|(_, _, rows)| rows).sum();
        for (_, net, rows) in resting {
            if taken + rest <= MAX_ROWS - MAX_ROWS / 8 || rows == 0 {
                continue;
            }
            rest -= rows;
            self.restored.remove(&net);
        }
        self.week_room = MAX_ROWS.saturating_sub(taken + rest);
    }

    pub(super) fn baseline(&self, net: IpNet) -> Option<&Baseline> {
        if net.prefix_len() == net.max_prefix_len() {
            self.targets.get(&net.addr()).and_then(|t| t.baseline.as_ref())
        } else {
            self.groups.get(&net).and_then(|g| g.baseline.as_ref())
        }
    }

    /// An operator says that what an address receives is no attack.
    pub(super) fn accept_as_normal(&mut self, net: IpNet, now: Now) {
        let terms = self.terms(now);
        let mut room = self.week_room;
        let Some(rates) = self.meter(net).map(|m| m.rates(SMOOTH_WINDOW_NS)) else { return };
        let baseline = if net.prefix_len() == net.max_prefix_len() {
            self.targets.get_mut(&net.addr()).map(|t| &mut t.baseline)
        } else {
            self.groups.get_mut(&net).map(|g| &mut g.baseline)
        };
        if let Some(baseline) = baseline {
            baseline.get_or_insert_with(Baseline::default).accept(&rates, &terms, &mut room);
        }
        self.week_room = room;
    }

    pub(super) fn baseline_states(&self) -> Vec<(IpNet, BaselineState)> {
        let targets = self.targets.iter().filter_map(|(ip, t)| Some((IpNet::from(*ip), t.baseline.as_ref()?.state())));
        let groups = self.groups.iter().filter_map(|(net, g)| Some((*net, g.baseline.as_ref()?.state())));
        targets.chain(groups).chain(self.restored.iter().map(|(net, b)| (*net, b.state()))).collect()
    }
}

/// Keeps what is known of a target's week for its return.
pub(super) fn lay_to_rest(restored: &mut BTreeMap<IpNet, Baseline>, net: IpNet, baseline: Option<Baseline>) {
    if let Some(baseline) = baseline.and_then(Baseline::rest) {
        restored.insert(net, baseline);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ftagent_common::abi::TargetCounters;
    use ftagent_common::vocab::TrafficClass;
    use time::OffsetDateTime;

    use super::super::input::{CounterReading, Input};
    use super::super::sample::{MS, PerQuantity, Quantity};
    use super::super::settings::Settings;
    use super::super::week::{ENOUGH_SECS, Week};
    use super::super::{Engine, EngineState};
    use super::*;

    /// Monday, 2026-01-05, 00:00 UTC.
    const MONDAY: i64 = 1_767_571_200;
    const TARGET: &str = "203.0.113.5";

    fn now(mono_ns: u64, hour: i64) -> Now {
        let wall = OffsetDateTime::from_unix_timestamp(MONDAY + hour * 3_600).expect("a time");
        Now { mono_ns, wall: wall + std::time::Duration::from_nanos(mono_ns) }
    }

    /// What an agent saved that saw 20,000 packets a second between nine and ten on Monday, and 1,000 between four and five.
    fn saved() -> EngineState {
        let mut week = Week::default();
        let free = detect::free_rates(&Settings::default().detection);
        for (hour, pps) in [(4, 1_000.0), (9, 20_000.0)] {
            let mut rates: PerQuantity<f64> = [0.0; Quantity::COUNT];
            rates[Quantity::Pps.index()] = pps;
            rates[Quantity::TcpPps.index()] = pps;
            for second in 0..u64::from(ENOUGH_SECS) {
                week.observe(&rates, &free, now(second * SEC, hour).wall, &mut 9);
            }
            week.observe(&rates, &free, now(0, hour + 2).wall, &mut 9);
        }
        let baseline = BaselineState { learnt_secs: 10_000, week: week.state(), ..BaselineState::default() };
        EngineState {
            baselines: vec![(TARGET.parse::<IpAddr>().expect("an address").into(), baseline)],
            ..EngineState::default()
        }
    }

    /// Lets `secs` seconds at `pps` pass, from `from` seconds on.
    fn live(engine: &mut Engine, counters: &mut TargetCounters, from: u64, secs: u64, pps: u64, hour: i64) {
        for tick in 0..secs * 10 {
            let flow = &mut counters.classes[TrafficClass::TcpAck.index()].passed;
            flow.packets += pps / 10;
            flow.bytes += pps / 10 * 80;
            let targets = vec![(TARGET.parse().expect("an address"), *counters)];
            let reading = CounterReading { targets, ..CounterReading::default() };
            engine.on(Input::Counters(reading), now(from * SEC + tick * 100 * MS, hour));
        }
    }

    #[test]
    fn the_same_rate_is_normal_on_monday_at_nine_and_an_attack_at_four() {
        for (hour, origin, incidents) in [(9, "hour_of_week", 0), (4, "floor", 1)] {
            let start = now(SEC, hour);
            let mut engine = Engine::restore(Settings::default(), saved(), start, true);
            let mut counters = TargetCounters::default();
            live(&mut engine, &mut counters, 2, 3, 20_000, hour);
            let view = engine.view();
            assert_eq!(view.active_incidents, incidents, "{hour}: {:?}", view.incidents);
            assert_eq!(view.targets[0].origin, origin, "{hour}: {:?}", view.targets[0]);
            assert_eq!(view.baseline.known_hours, 2);
        }
    }

    #[test]
    fn a_week_outlives_hours_of_silence() {
        let mut engine = Engine::restore(Settings::default(), saved(), now(SEC, 6), true);
        let mut counters = TargetCounters::default();
        live(&mut engine, &mut counters, 2, 3, 500, 6);
        // Silent for over an hour, and still in the kernel's table.
        for at in [1_800, 3_000, 4_000, 9_000] {
            let reading = CounterReading {
                targets: vec![(TARGET.parse().expect("an address"), counters)],
                ..CounterReading::default()
            };
            engine.on(Input::Counters(reading), now(at * SEC, 6));
        }
        assert_eq!(engine.restored.len(), 1, "laid to rest");
        assert_eq!(engine.state().baselines.len(), 1);
        live(&mut engine, &mut counters, 3 * 3_600, 3, 20_000, 6);
        assert_eq!(engine.view().active_incidents, 0, "nine o'clock is known again");
        assert!(engine.restored.is_empty());
    }

    #[test]
    fn what_has_not_come_for_longest_gives_way() {
        let mut engine = Engine::new(Settings::default(), now(SEC, 0));
        let week = saved().baselines[0].1.clone();
        let rows = Baseline::restore(&week).week().rows();
        for n in 0..u32::try_from(MAX_ROWS / rows).expect("few") {
            let net = IpNet::from(IpAddr::from(n.to_be_bytes()));
            engine.restored.insert(net, Baseline::restore(&week));
        }
        engine.note_hour(now(SEC, 1));
        assert!((MAX_ROWS / 8 - rows..=MAX_ROWS / 8 + rows).contains(&engine.week_room), "{}", engine.week_room);
        assert_eq!(engine.restored.values().map(|b| b.week().rows()).sum::<usize>() + engine.week_room, MAX_ROWS);
    }
}
