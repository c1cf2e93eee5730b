//! What readings and deadlines cause: meters, baselines, openings, verdicts, resolutions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ftagent_common::abi::{Flow, TargetCounters};
use ftagent_common::vocab::{IncidentStatus, TrafficClass};
use ipnet::IpNet;
use uuid::Uuid;

use super::Engine;
use super::baseline::{Baseline, BaselineState};
use super::classify::{self, ENOUGH};
use super::detect::{self, Excess, Thresholds, Watch};
use super::incident::{Incident, UPDATE_EVERY_NS};
use super::input::{CounterReading, Now};
use super::sample::{Delta, MS, Meter, OPEN_WINDOW_NS, Quantity, SEC, SMOOTH_WINDOW_NS, delta};

/// Addresses watched by themselves; those beyond are counted as untracked.
const MAX_TARGETS: usize = 8_192;
/// Incidents that may be active at once.
const MAX_INCIDENTS: usize = 256;
/// A target without traffic for this long is forgotten.
const FORGET_NS: u64 = 3_600 * SEC;
/// How long a first verdict may wait for enough samples, and for any.
const WAIT_NS: u64 = 100 * MS;
const WAIT_ANY_NS: u64 = SEC;
/// How often a settled verdict is looked at again.
const REVIEW_NS: u64 = SEC;
/// A verdict on fewer samples than this is none.
const FEWEST: usize = 5;
/// A resolved incident waits this long for the news that its rules are gone.
const CLOSE_NS: u64 = 10 * SEC;
/// An attack that returns within this time is held down twice as long as before.
const FLAP_NS: u64 = 300 * SEC;

/// One protected address.
#[derive(Debug, Default)]
pub(super) struct Target {
    last: TargetCounters,
    pub(super) meter: Meter,
    pub(super) baseline: Option<Baseline>,
    watch: Watch,
    observed_ns: u64,
    busy_ns: u64,
    /// Whether the newest reading had it.
    present: bool,
}

/// The addresses of one neighbourhood together; exists where more than one is busy.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) meter: Meter,
    pub(super) baseline: Option<Baseline>,
    watch: Watch,
    observed_ns: u64,
    busy_ns: u64,
}

impl Engine {
    /// Takes a reading of the kernel's counters.
    pub(super) fn on_counters(&mut self, reading: CounterReading, now: Now) {
        let from_ns = self.read_ns.replace(now.mono_ns).unwrap_or(now.mono_ns);
        let first = from_ns == now.mono_ns;
        let mut groups: BTreeMap<IpNet, (Delta, u32)> = BTreeMap::new();
        let mut total = [Flow::default(); TrafficClass::COUNT];
        for target in self.targets.values_mut() {
            target.present = false;
        }
        for (ip, counters) in &reading.targets {
            let full = self.targets.len() >= MAX_TARGETS;
            let change = match self.targets.get_mut(ip) {
                Some(target) => {
                    let change = delta(&target.last, counters);
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
                    let new = Target { last: *counters, present: true, baseline, busy_ns, ..Target::default() };
                    self.targets.insert(*ip, new);
                    // What the first reading shows came before us; later targets counted from nothing.
                    if first { [Flow::default(); TrafficClass::COUNT] } else { counters.classes }
                }
            };
            if change.iter().any(|f| f.total().packets > 0) {
                let (sum, active) = groups.entry(detect::neighbourhood(*ip)).or_insert_with(Default::default);
                add(sum, &change);
                add(&mut total, &change);
                *active += 1;
            }
            if first {
                continue;
            }
            let Some(target) = self.targets.get_mut(ip) else { continue };
            if change.iter().any(|f| f.total().packets > 0) {
                target.busy_ns = now.mono_ns;
                for incident in self.incidents.values_mut() {
                    if incident.is_active() && incident.target.contains(ip) {
                        incident.count(&change);
                    }
                }
            }
            target.meter.push(from_ns, now.mono_ns, &change);
        }
        if first {
            return;
        }
        let none = [Flow::default(); TrafficClass::COUNT];
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
            if self.is_attacked(net) {
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
            let Some(excess) = found.filter(|_| !self.is_attacked(net)) else { continue };
            self.open(net, false, excess, now);
        }
    }

    fn open(&mut self, target: IpNet, carpet: bool, excess: Excess, now: Now) {
        if self.incidents.values().filter(|i| i.is_active()).count() >= MAX_INCIDENTS {
            self.refusals = self.refusals.saturating_add(1);
            return;
        }
        let onset = self.meter(target).and_then(|m| m.onset(excess.quantity, excess.threshold.value * 0.5));
        let onset_ns = onset.unwrap_or(now.mono_ns.saturating_sub(OPEN_WINDOW_NS));
        let base = self.effective.detection.hold_down_ms;
        let hold_down_ms = match self.ended.get(&target) {
            Some((at, before)) if now.mono_ns.saturating_sub(*at) < FLAP_NS => {
                before.saturating_mul(2).min(base.saturating_mul(8))
            }
            _ => base,
        };
        let mut incident = Incident::open(target, carpet, excess, onset_ns, hold_down_ms, now);
        incident.clean = self.window.before(onset_ns, |dst| target.contains(&IpAddr::from(dst)));
        incident.normal = self.baseline(target).map(|b| b.normal(excess.quantity) as u64).filter(|n| *n > 0);
        let uuid = incident.uuid;
        if carpet {
            let parts: Vec<Uuid> = self
                .incidents
                .values()
                .filter(|i| i.is_active() && i.target != target && target.contains(&i.target))
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
        self.update_rates(uuid);
    }

    /// Shows calm targets' last second to their baselines.
    fn learn(&mut self, now: Now) {
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
        let detection = self.effective.detection.clone();
        let free = detect::free_rates(&detection);
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
            baseline.observe(&rates, detection.window_secs, detection.learning_secs, &free);
        }
    }

    fn forget(&mut self, now: Now) {
        let old = |busy_ns: u64| busy_ns + FORGET_NS < now.mono_ns;
        for target in self.targets.values_mut().filter(|t| old(t.busy_ns)) {
            target.baseline = None;
        }
        self.targets.retain(|_, t| t.present || !old(t.busy_ns));
        self.groups.retain(|_, g| !old(g.busy_ns));
        self.ended.retain(|_, (at, _)| *at + FLAP_NS > now.mono_ns);
        self.cooldowns.retain(|_, until| *until > now.mono_ns);
        self.window.forget(now.mono_ns);
        let (targets, incidents) = (&self.targets, &self.incidents);
        self.window.settle(now.mono_ns, |dst| {
            let ip = IpAddr::from(dst);
            targets.get(&ip).is_none_or(|t| !t.watch.is_over())
                && !incidents.values().any(|i| i.is_active() && i.target.contains(&ip))
        });
    }

    /// Everything that may be due: verdicts, responses, renewals, resolutions, updates.
    pub(super) fn advance(&mut self, now: Now) {
        let active: Vec<Uuid> = self.incidents.values().filter(|i| i.is_active()).map(|i| i.uuid).collect();
        for uuid in active {
            self.update_rates(uuid);
            self.classify_if_due(uuid, now);
            self.contain(uuid, now);
            if self.is_over(uuid, now) {
                self.resolve(uuid, IncidentStatus::Resolved, now);
            } else {
                self.update_if_due(uuid, now);
            }
        }
        self.renew(now);
        self.close(now);
    }

    fn update_rates(&mut self, uuid: Uuid) {
        let Some(incident) = self.incidents.get(&uuid) else { return };
        let Some(meter) = self.meter(incident.target) else { return };
        let (now, second) = (meter.rates(OPEN_WINDOW_NS), meter.rates(SMOOTH_WINDOW_NS));
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        incident.current_pps = second[Quantity::Pps.index()] as u64;
        incident.current_bps = second[Quantity::Bps.index()] as u64;
        let ratio = now[incident.excess.quantity.index()] / incident.excess.threshold.value;
        incident.raise(ratio, now[Quantity::Pps.index()] as u64, now[Quantity::Bps.index()] as u64);
    }

    fn classify_if_due(&mut self, uuid: Uuid, now: Now) {
        let Some(incident) = self.incidents.get(&uuid) else { return };
        let age = now.mono_ns.saturating_sub(incident.opened_ns);
        let since_last = incident.classified_ns.map(|at| now.mono_ns.saturating_sub(at));
        let settled = incident.samples >= ENOUGH;
        // Until a verdict rests on enough samples, all of the attack's count; then the last second's.
        let from_ns = if settled { now.mono_ns.saturating_sub(REVIEW_NS) } else { incident.onset_ns };
        let due = match since_last {
            None => true,
            Some(since) if settled => since >= REVIEW_NS,
            Some(since) => since >= WAIT_NS,
        };
        if !due {
            return;
        }
        let target = incident.target;
        let samples = self.window.since(from_ns, |dst| target.contains(&IpAddr::from(dst)));
        let enough = samples.len() >= ENOUGH
            || samples.len() >= FEWEST && age >= WAIT_NS && !settled
            || samples.len() >= 20 && settled;
        if !enough {
            return;
        }
        let pps = self.meter(target).map_or(0.0, |m| m.rates(OPEN_WINDOW_NS)[Quantity::Pps.index()]);
        let verdict = classify::classify(&samples, &incident.clean, pps);
        let heavy = std::mem::take(&mut self.heavy);
        let rate_of = |ip: IpAddr, share: f64| match heavy.get(&ip) {
            Some((_, rate)) if *rate > 0.0 => *rate as u64,
            _ => (pps * share) as u64,
        };
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        let first = incident.verdict.is_none();
        let below = incident.confidence < self.effective.response.min_confidence;
        let changed = incident.take(verdict, rate_of, now);
        incident.classified_ns = Some(now.mono_ns);
        let rises = below && incident.confidence >= self.effective.response.min_confidence;
        incident.raise(0.0, 0, 0);
        self.heavy = heavy;
        self.respond(uuid, first || changed || rises, now);
        self.fire(uuid, now);
    }

    /// Whether the attack stayed away for the hold-down; remembers since when it is away.
    fn is_over(&mut self, uuid: Uuid, now: Now) -> bool {
        let Some(incident) = self.incidents.get(&uuid) else { return false };
        let thresholds = self.thresholds_of(incident.target);
        let ratio = self
            .meter(incident.target)
            .and_then(|m| detect::excess(&m.rates(OPEN_WINDOW_NS), &thresholds))
            .map_or(0.0, |e| e.ratio);
        let Some(incident) = self.incidents.get_mut(&uuid) else { return false };
        if ratio >= detect::CALM {
            incident.calm_since = None;
            return false;
        }
        let since = *incident.calm_since.get_or_insert(now.mono_ns);
        now.mono_ns.saturating_sub(since) >= u64::from(incident.hold_down_ms) * MS
    }

    fn update_if_due(&mut self, uuid: Uuid, now: Now) {
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        let due = match incident.reported_ns {
            // The first report waits for the name of the attack, but not for long.
            None => incident.verdict.is_some() || now.mono_ns.saturating_sub(incident.opened_ns) >= WAIT_ANY_NS,
            Some(at) => now.mono_ns.saturating_sub(at) >= UPDATE_EVERY_NS && (incident.changed || incident.has_grown()),
        };
        if due {
            let report = incident.report(now);
            self.reports.push_back(report);
        }
    }

    /// Ends an incident: its rules leave the desired set at once.
    pub(super) fn resolve(&mut self, uuid: Uuid, status: IncidentStatus, now: Now) {
        let Some(incident) = self.incidents.get_mut(&uuid).filter(|i| i.is_active()) else { return };
        incident.status = status;
        incident.resolved_at = Some(now.wall);
        let rules: Vec<_> = self.rules.values().filter(|r| r.origin.incident() == Some(uuid)).map(|r| r.id).collect();
        let text = format!("the attack is over; {} rule(s) are withdrawn", rules.len());
        incident.note("resolved", text, now);
        self.ended.insert(incident.target, (now.mono_ns, incident.hold_down_ms));
        let report = incident.report(now);
        self.reports.push_back(report);
        for id in &rules {
            self.rules.remove(id);
        }
        self.rules_changed |= !rules.is_empty();
        self.closing.insert(uuid, now.mono_ns);
        // An incident that ends must not open again when the agent is killed now.
        self.persisted.clear();
        self.rules_changed = true;
    }

    /// Sends the last report of resolved incidents once their rules are known to be gone, or the wait is over.
    fn close(&mut self, now: Now) {
        let done: Vec<(Uuid, u64)> = self.closing.iter().map(|(uuid, at)| (*uuid, *at)).collect();
        for (uuid, at) in done {
            let Some(incident) = self.incidents.get_mut(&uuid) else {
                self.closing.remove(&uuid);
                continue;
            };
            let waiting = incident.deeds.iter().any(|d| d.applied_at.is_some() && d.undone_at.is_none());
            if waiting && now.mono_ns.saturating_sub(at) < CLOSE_NS {
                continue;
            }
            if incident.changed {
                let report = incident.report(now);
                self.reports.push_back(report);
            }
            let report = incident.snapshot();
            self.remember(report);
            self.incidents.remove(&uuid);
            self.closing.remove(&uuid);
        }
    }

    /// When [`Self::on_deadline`] is to be called next; monotonic nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        let mut times: BTreeSet<u64> = BTreeSet::new();
        let ttl = u64::from(self.effective.response.ttl_secs.max(1)) * SEC;
        for rule in self.rules.values() {
            if let Some(end) = rule.expires_at_ns {
                times.insert(if rule.origin.is_automatic() { end.saturating_sub(ttl / 2) } else { end });
            }
        }
        for incident in self.incidents.values().filter(|i| i.is_active()) {
            if let Some(since) = incident.calm_since {
                times.insert(since + u64::from(incident.hold_down_ms) * MS);
            }
            times.insert(match incident.reported_ns {
                None => incident.opened_ns + WAIT_ANY_NS,
                Some(at) if incident.changed => at + UPDATE_EVERY_NS,
                Some(_) => u64::MAX,
            });
            times.extend(Self::contain_deadline(incident).filter(|at| *at > self.now_ns));
        }
        times.extend(self.closing.values().map(|at| at + CLOSE_NS));
        // What is overdue was looked at and waits for an input; a deadline in the past would spin.
        times.into_iter().find(|at| *at != u64::MAX).map(|at| at.max(self.now_ns + MS))
    }

    /// Drops rules whose time is over.
    pub(super) fn forget_expired(&mut self, now: Now) {
        let before = self.rules.len();
        self.rules.retain(|_, r| r.expires_at_ns.is_none_or(|end| end > now.mono_ns));
        self.rules_changed |= self.rules.len() != before;
    }

    /// The meter of an address or a neighbourhood.
    pub(super) fn meter(&self, net: IpNet) -> Option<&Meter> {
        if net.prefix_len() == net.max_prefix_len() {
            self.targets.get(&net.addr()).map(|t| &t.meter)
        } else {
            self.groups.get(&net).map(|g| &g.meter)
        }
    }

    pub(super) fn baseline(&self, net: IpNet) -> Option<&Baseline> {
        if net.prefix_len() == net.max_prefix_len() {
            self.targets.get(&net.addr()).and_then(|t| t.baseline.as_ref())
        } else {
            self.groups.get(&net).and_then(|g| g.baseline.as_ref())
        }
    }

    pub(super) fn thresholds_of(&self, net: IpNet) -> Thresholds {
        detect::thresholds(net, &self.effective.thresholds, &self.effective.detection, self.baseline(net))
    }

    /// Whether an active incident covers `net`.
    pub(super) fn is_attacked(&self, net: IpNet) -> bool {
        self.incidents.values().any(|i| i.is_active() && i.target.contains(&net))
    }

    /// An operator says that what an address receives is no attack.
    pub(super) fn accept_as_normal(&mut self, net: IpNet) {
        let learning_secs = self.effective.detection.learning_secs;
        let Some(rates) = self.meter(net).map(|m| m.rates(SMOOTH_WINDOW_NS)) else { return };
        let baseline = if net.prefix_len() == net.max_prefix_len() {
            self.targets.get_mut(&net.addr()).map(|t| &mut t.baseline)
        } else {
            self.groups.get_mut(&net).map(|g| &mut g.baseline)
        };
        if let Some(baseline) = baseline {
            baseline.get_or_insert_with(Baseline::default).accept(&rates, learning_secs);
        }
    }

    pub(super) fn baseline_states(&self) -> Vec<(IpNet, BaselineState)> {
        let targets = self.targets.iter().filter_map(|(ip, t)| Some((IpNet::from(*ip), t.baseline.as_ref()?.state())));
        let groups = self.groups.iter().filter_map(|(net, g)| Some((*net, g.baseline.as_ref()?.state())));
        targets.chain(groups).chain(self.restored.iter().map(|(net, b)| (*net, b.state()))).collect()
    }
}

fn add(sum: &mut Delta, more: &Delta) {
    for (sum, part) in sum.iter_mut().zip(more) {
        *sum += *part;
    }
}
