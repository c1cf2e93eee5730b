//! What a reading of the counters causes: rates, baselines, openings.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ftagent_common::abi::{Flow, TargetCounters};
use ftagent_common::vocab::{IncidentStatus, TrafficClass};
use ipnet::IpNet;
use uuid::Uuid;

use super::Engine;
use super::baseline::Baseline;
use super::detect::{self, Excess, Thresholds, Watch};
use super::distinct::Distinct;
use super::incident::Incident;
use super::input::{CounterReading, Now};
use super::learn::lay_to_rest;
use super::reopen::FLAP_NS;
use super::sample::{Delta, Meter, OPEN_WINDOW_NS, Quantity, SEC, delta};

/// Addresses watched by themselves; those beyond are counted as untracked.
const MAX_TARGETS: usize = 8_192;
/// Incidents that may be active at once.
const MAX_INCIDENTS: usize = 256;
/// A target without traffic for this long is forgotten.
const FORGET_NS: u64 = 3_600 * SEC;

/// One protected address.
#[derive(Debug, Default)]
pub(super) struct Target {
    last: TargetCounters,
    pub(super) distinct: Distinct,
    pub(super) meter: Meter,
    pub(super) baseline: Option<Baseline>,
    pub(super) watch: Watch,
    pub(super) observed_ns: u64,
    busy_ns: u64,
    /// Whether the newest reading had it.
    present: bool,
}

impl Target {
    /// The newest reading.
    pub(super) fn last(&self) -> &TargetCounters {
        &self.last
    }
}

/// The addresses of one neighbourhood together; exists where more than one is busy.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) meter: Meter,
    pub(super) baseline: Option<Baseline>,
    pub(super) watch: Watch,
    pub(super) observed_ns: u64,
    busy_ns: u64,
}

impl Engine {
    /// Takes a reading of the kernel's counters.
    pub(super) fn on_counters(&mut self, reading: CounterReading, now: Now) {
        self.silence.observe(&reading.interfaces, now.mono_ns);
        let first = self.read_ns.is_none();
        let from_ns = self.read_ns.replace(now.mono_ns).unwrap_or(now.mono_ns);
        let none = [Flow::default(); TrafficClass::COUNT];
        self.untracked = 0;
        let mut groups: BTreeMap<IpNet, (Delta, u32)> = BTreeMap::new();
        let mut total = [Flow::default(); TrafficClass::COUNT];
        for target in self.targets.values_mut() {
            target.present = false;
        }
        for (ip, counters) in &reading.targets {
            let full = self.targets.len() >= MAX_TARGETS;
            let change = match self.targets.get_mut(ip) {
                Some(target) if target.last == *counters => {
                    target.present = true;
                    target.meter.push(from_ns, now.mono_ns, &none);
                    continue;
                }
                Some(target) => {
                    if target.baseline.is_none() {
                        target.baseline = self.restored.remove(&IpNet::from(*ip));
                    }
                    let change = delta(&target.last, counters);
                    target.distinct.observe(&target.last, counters);
                    target.last = *counters;
                    target.present = true;
                    change
                }
                None if full => {
                    self.untracked = self.untracked.saturating_add(1);
                    continue;
                }
                None => {
                    let baseline = self.restored.remove(&IpNet::from(*ip));
                    let busy_ns = now.mono_ns;
                    // Baselines learn once a second each: not all in the same tick.
                    let observed_ns = now.mono_ns.saturating_sub(self.targets.len() as u64 % 20 * (SEC / 20));
                    let new =
                        Target { last: *counters, present: true, baseline, busy_ns, observed_ns, ..Target::default() };
                    self.targets.insert(*ip, new);
                    // What the first reading shows came before us; later targets counted from nothing.
                    if first { none } else { counters.classes }
                }
            };
            let (sum, active) = groups.entry(detect::neighbourhood(*ip)).or_insert((none, 0));
            add(sum, &change);
            add(&mut total, &change);
            *active += 1;
            if first {
                continue;
            }
            let Some(target) = self.targets.get_mut(ip) else { continue };
            target.busy_ns = now.mono_ns;
            target.meter.push(from_ns, now.mono_ns, &change);
            for incident in self.incidents.values_mut().filter(|i| i.is_active() && i.target.contains(ip)) {
                incident.count(&change);
            }
        }
        if first {
            return;
        }
        for target in self.targets.values_mut().filter(|t| !t.present) {
            target.meter.push(from_ns, now.mono_ns, &none);
        }
        for (net, group) in &mut self.groups {
            if !groups.contains_key(net) {
                group.meter.push(from_ns, now.mono_ns, &none);
            }
        }
        for (net, (change, active)) in groups {
            if active < 2 && !self.groups.contains_key(&net) {
                continue;
            }
            let restored = &mut self.restored;
            let group =
                self.groups.entry(net).or_insert_with(|| Group { baseline: restored.remove(&net), ..Group::default() });
            group.busy_ns = now.mono_ns;
            group.meter.push(from_ns, now.mono_ns, &change);
        }
        self.total.push(from_ns, now.mono_ns, &total);
        self.read_sources(&reading, now.mono_ns.saturating_sub(from_ns));
        self.detect(now);
        self.count_sources(now);
        self.learn(now);
        self.forget(now);
    }

    /// Rates of heavy sources, smoothed over about a second.
    fn read_sources(&mut self, reading: &CounterReading, span_ns: u64) {
        let mut heavy = BTreeMap::new();
        let keep = (span_ns as f64 / SEC as f64).min(1.0);
        for (ip, counters) in &reading.sources {
            let packets = counters.flow.total().packets;
            let rate = match self.heavy.get(ip) {
                Some((last, rate)) => {
                    let new = packets.checked_sub(*last).unwrap_or(packets) as f64 * SEC as f64 / span_ns.max(1) as f64;
                    if *rate == 0.0 { new } else { rate + (new - rate) * keep.max(0.2) }
                }
                None => 0.0,
            };
            heavy.insert(*ip, (packets, rate));
        }
        self.heavy = heavy;
    }

    /// Opens incidents, prefixes before the addresses in them.
    fn detect(&mut self, now: Now) {
        let confirm_ms = self.effective.detection.confirm_ms;
        let carpet_targets = self.effective.detection.carpet_targets;
        let nets: Vec<IpNet> = self.groups.iter().filter(|(_, g)| !g.meter.is_idle()).map(|(net, _)| *net).collect();
        for net in nets {
            let thresholds = self.thresholds_of(net);
            let Some(group) = self.groups.get_mut(&net) else { continue };
            let Some(excess) = group.watch.judge(&group.meter, &thresholds, confirm_ms, now.mono_ns) else { continue };
            if self.is_flooded(net) {
                continue;
            }
            let rates: Vec<f64> = self
                .targets
                .range(net.network()..=net.broadcast())
                .filter(|(_, t)| !t.meter.is_idle())
                .map(|(_, t)| t.meter.rates(OPEN_WINDOW_NS)[Quantity::Pps.index()])
                .collect();
            if detect::is_carpet(&rates, carpet_targets) {
                self.open(net, true, excess, now);
            }
        }
        let ips: Vec<IpAddr> = self.targets.iter().filter(|(_, t)| !t.meter.is_idle()).map(|(ip, _)| *ip).collect();
        for ip in ips {
            let net = IpNet::from(ip);
            let thresholds = self.thresholds_of(net);
            let Some(target) = self.targets.get_mut(&ip) else { continue };
            let found = target.watch.judge(&target.meter, &thresholds, confirm_ms, now.mono_ns);
            let Some(excess) = found.filter(|_| !self.is_flooded(net)) else { continue };
            self.open(net, false, excess, now);
        }
    }

    /// Whether one more incident may be active; a refusal is counted.
    pub(super) fn has_room(&mut self) -> bool {
        let full = self.incidents.values().filter(|i| i.is_active()).count() >= MAX_INCIDENTS;
        self.refusals = self.refusals.saturating_add(u64::from(full));
        !full
    }

    fn open(&mut self, target: IpNet, carpet: bool, excess: Excess, now: Now) {
        if !self.has_room() {
            return;
        }
        let onset = self.meter(target).and_then(|m| m.onset(excess.quantity, excess.threshold.value * 0.5));
        let onset_ns = onset.unwrap_or(now.mono_ns.saturating_sub(OPEN_WINDOW_NS));
        let clean = self.window.before(onset_ns, |dst| target.contains(&IpAddr::from(dst)));
        let normal = self.baseline(target).map(|b| b.normal(excess.quantity, self.hour) as u64).filter(|n| *n > 0);
        let known = self.reopen(target, &excess, onset_ns, now);
        let is_back = known.is_some();
        let mut incident = known.unwrap_or_else(|| {
            let hold_down_ms = self.hold_down_of(target, now);
            Incident::open(target, carpet, excess, onset_ns, hold_down_ms, now)
        });
        incident.clean = clean;
        incident.normal = normal.or(incident.normal);
        let uuid = incident.uuid;
        if carpet {
            let parts: Vec<Uuid> = self
                .incidents
                .values()
                .filter(|i| i.is_active() && i.target != target && target.contains(&i.target))
                .filter(|i| i.excess.quantity.is_of_packets())
                .map(|i| i.uuid)
                .collect();
            for part in parts {
                if let Some(part) = self.incidents.get_mut(&part) {
                    let text = format!("merged into incident {uuid}: the whole of {target} is attacked");
                    part.note("note", text, now);
                }
                incident.note("note", format!("takes over incident {part}"), now);
                self.resolve(part, IncidentStatus::Resolved, now);
            }
        }
        self.incidents.insert(uuid, incident);
        self.state_changed = true;
        self.update_rates(uuid);
        if is_back {
            self.report_return(uuid, now);
        }
    }

    fn forget(&mut self, now: Now) {
        let old = |busy_ns: u64| busy_ns + FORGET_NS < now.mono_ns;
        for (ip, target) in self.targets.iter_mut().filter(|(_, t)| old(t.busy_ns)) {
            lay_to_rest(&mut self.restored, IpNet::from(*ip), target.baseline.take());
        }
        self.targets.retain(|_, t| t.present || !old(t.busy_ns));
        for (net, group) in self.groups.iter_mut().filter(|(_, g)| old(g.busy_ns)) {
            lay_to_rest(&mut self.restored, *net, group.baseline.take());
        }
        self.groups.retain(|_, g| !old(g.busy_ns));
        self.ended.retain(|_, (at, _)| *at + FLAP_NS > now.mono_ns);
        self.cooldowns.retain(|_, until| *until > now.mono_ns);
        self.forget_dormant(now);
        self.window.forget(now.mono_ns);
        let (targets, incidents) = (&self.targets, &self.incidents);
        self.window.settle(now.mono_ns, |dst| {
            let ip = IpAddr::from(dst);
            targets.get(&ip).is_none_or(|t| !t.watch.is_over())
                && !incidents.values().any(|i| i.is_active() && i.target.contains(&ip))
        });
    }

    /// The meter of an address or a neighbourhood.
    pub(super) fn meter(&self, net: IpNet) -> Option<&Meter> {
        if net.prefix_len() == net.max_prefix_len() {
            self.targets.get(&net.addr()).map(|t| &t.meter)
        } else {
            self.groups.get(&net).map(|g| &g.meter)
        }
    }

    pub(super) fn thresholds_of(&self, net: IpNet) -> Thresholds {
        detect::thresholds(net, &self.effective.thresholds, &self.effective.detection, self.baseline(net), self.hour)
    }

    pub(super) fn is_active(&self, uuid: Uuid) -> bool {
        self.incidents.get(&uuid).is_some_and(Incident::is_active)
    }

    /// Whether an active incident that packets opened covers `net`: a flood beside slow connections is one more attack.
    fn is_flooded(&self, net: IpNet) -> bool {
        let floods = self.incidents.values().filter(|i| i.is_active() && i.excess.quantity.is_of_packets());
        floods.into_iter().any(|i| i.target.contains(&net))
    }

    /// Whether an active incident covers `net`.
    pub(super) fn is_attacked(&self, net: IpNet) -> bool {
        self.incidents.values().any(|i| i.is_active() && i.target.contains(&net))
    }
}

fn add(sum: &mut Delta, more: &Delta) {
    for (sum, part) in sum.iter_mut().zip(more) {
        *sum += *part;
    }
}
