//! The life of an incident between its opening and its end: verdicts, responses, updates, resolution.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ftagent_common::vocab::{AttackFamily, IncidentStatus, TrafficClass};
use uuid::Uuid;

use super::Engine;
use super::classify::{self, ENOUGH};
use super::detect;
use super::incident::UPDATE_EVERY_NS;
use super::input::Now;
use super::sample::{MS, OPEN_WINDOW_NS, Quantity, SEC, SMOOTH_WINDOW_NS};
use super::task::TaskState;

/// How long a first verdict may wait for enough samples, and for any.
const WAIT_NS: u64 = 100 * MS;
const WAIT_ANY_NS: u64 = SEC;
/// How often a settled verdict is looked at again.
const REVIEW_NS: u64 = SEC;
/// More samples than this add cost and no certainty.
const MOST: usize = 3_000;
/// A verdict on fewer samples than this is none.
const FEWEST: usize = 5;
/// A resolved incident waits this long for the news that its rules are gone.
const CLOSE_NS: u64 = 10 * SEC;
/// And this long while other tools still undo.
const CLOSE_TOOLS_NS: u64 = 300 * SEC;

impl Engine {
    /// Everything that may be due: verdicts, responses, renewals, resolutions, updates.
    pub(super) fn advance(&mut self, now: Now) {
        let active: Vec<Uuid> = self.incidents.values().filter(|i| i.is_active()).map(|i| i.uuid).collect();
        for uuid in active {
            self.update_rates(uuid);
            self.classify_if_due(uuid, now);
            self.contain(uuid, now);
            if self.is_over(uuid, now) {
                self.resolve(uuid, IncidentStatus::Resolved, now);
                self.rest(uuid, now);
            } else {
                self.update_if_due(uuid, now);
            }
        }
        self.renew(now);
        self.close(now);
    }

    pub(super) fn update_rates(&mut self, uuid: Uuid) {
        let Some(incident) = self.incidents.get(&uuid) else { return };
        let Some(meter) = self.meter(incident.target) else { return };
        let (now, second) = (meter.rates(OPEN_WINDOW_NS), meter.rates(SMOOTH_WINDOW_NS));
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        incident.current_pps = second[Quantity::Pps.index()] as u64;
        incident.current_bps = second[Quantity::Bps.index()] as u64;
        let quantity = incident.excess.quantity;
        // What packets did not open they do not make worse.
        let ratio =
            if quantity.is_of_packets() { now[quantity.index()] / incident.excess.threshold.value } else { 0.0 };
        incident.raise(ratio, now[Quantity::Pps.index()] as u64, now[Quantity::Bps.index()] as u64);
    }

    fn classify_if_due(&mut self, uuid: Uuid, now: Now) {
        let Some(incident) = self.incidents.get(&uuid) else { return };
        if !incident.excess.quantity.is_of_packets() {
            return;
        }
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
        // What comes after an attack says nothing of it.
        if !due || settled && incident.calm_since.is_some() {
            return;
        }
        let target = incident.target;
        let mut samples = self.window.since(from_ns, |dst| target.contains(&IpAddr::from(dst)));
        if samples.len() > MOST {
            let step = samples.len().div_ceil(MOST);
            samples = samples.into_iter().step_by(step).collect();
        }
        let enough = samples.len() >= ENOUGH
            || samples.len() >= FEWEST && age >= WAIT_NS && !settled
            || samples.len() >= 20 && settled;
        if !enough {
            if age >= WAIT_ANY_NS && incident.verdict.is_none() {
                self.guess(uuid);
            }
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
        let answered = incident.deeds.iter().any(|d| d.is_response() && d.stands());
        let below = incident.confidence < self.effective.response.min_confidence;
        let changed = incident.take(verdict, rate_of, now);
        incident.classified_ns = Some(now.mono_ns);
        let rises = below && incident.confidence >= self.effective.response.min_confidence;
        incident.raise(0.0, 0, 0);
        self.heavy = heavy;
        // A restored incident has its response already.
        let anew = first && !answered || changed || rises;
        self.respond(uuid, anew, now);
        self.fire(uuid, now);
        self.absorb_web(uuid, now);
    }

    /// Names an attack that no samples came of by its counters alone: enough for a report, too little to act on.
    fn guess(&mut self, uuid: Uuid) {
        let Some(incident) = self.incidents.get_mut(&uuid).filter(|i| i.family == AttackFamily::Unknown) else {
            return;
        };
        let total: u64 = incident.classes.iter().sum();
        let classes = TrafficClass::ALL.iter().zip(incident.classes);
        let Some((class, packets)) = classes.max_by_key(|(_, packets)| *packets) else { return };
        if packets * 5 < total * 4 {
            return;
        }
        incident.family = match class {
            TrafficClass::TcpSyn => AttackFamily::SynFlood,
            TrafficClass::TcpSynAck => AttackFamily::SynAckFlood,
            TrafficClass::TcpAck => AttackFamily::AckFlood,
            TrafficClass::TcpRst => AttackFamily::RstFlood,
            TrafficClass::TcpFin | TrafficClass::TcpOdd => AttackFamily::TcpFlood,
            TrafficClass::Udp | TrafficClass::Reflector => AttackFamily::UdpFlood,
            TrafficClass::DnsQuery => AttackFamily::DnsFlood,
            TrafficClass::Icmp | TrafficClass::Icmpv6 => AttackFamily::IcmpFlood,
            TrafficClass::Gre => AttackFamily::GreFlood,
            TrafficClass::Fragment => AttackFamily::FragmentFlood,
            TrafficClass::Esp | TrafficClass::OtherIp | TrafficClass::NotIp => AttackFamily::ProtocolFlood,
        };
        incident.confidence = 0.3;
        incident.changed = true;
        incident.explanation.push(format!(
            "no samples came: {} of {total} counted packets are {class}; nothing acts on counters alone",
            packets
        ));
    }

    /// Whether the attack stayed away for the hold-down; remembers since when it is away.
    fn is_over(&mut self, uuid: Uuid, now: Now) -> bool {
        let Some(incident) = self.incidents.get(&uuid) else { return false };
        if !incident.excess.quantity.is_of_packets() {
            return self.is_web_over(uuid, now);
        }
        if self.read_ns.is_none() {
            // After a restart: that nobody looked is no sign of calm.
            return false;
        }
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
            None => {
                incident.verdict.is_some()
                    || incident.web.is_some()
                    || now.mono_ns.saturating_sub(incident.opened_ns) >= WAIT_ANY_NS
            }
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
        // What an order wants to outlast the incident stays.
        let stays = |id: &Uuid| self.tasks.get(id).is_some_and(|t| !t.ends_with_incident());
        incident.deeds.iter_mut().filter(|d| !d.task.as_ref().is_some_and(stays)).for_each(|d| d.withdrawn = true);
        let text = format!("the attack is over; {} rule(s) are withdrawn", rules.len());
        incident.note("resolved", text, now);
        let was_gated = self.ungate(uuid, now);
        self.retract(|t| t.incident == uuid && t.ends_with_incident(), "the incident is over", now);
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        self.ended.insert(incident.target, (now.mono_ns, incident.hold_down_ms));
        let report = incident.report(now);
        self.reports.push_back(report);
        for id in &rules {
            self.rules.remove(id);
        }
        self.rules_changed |= was_gated || !rules.is_empty();
        self.closing.insert(uuid, now.mono_ns);
        self.state_changed = true;
    }

    /// Sends the last report of resolved incidents once their rules are known to be gone, or the wait is over.
    fn close(&mut self, now: Now) {
        let done: Vec<(Uuid, u64)> = self.closing.iter().map(|(uuid, at)| (*uuid, *at)).collect();
        for (uuid, at) in done {
            let wait = self.close_wait(uuid);
            let Some(incident) = self.incidents.get_mut(&uuid) else {
                self.closing.remove(&uuid);
                continue;
            };
            let waiting = incident.deeds.iter().any(|d| d.applied_at.is_some() && d.undone_at.is_none());
            if waiting && now.mono_ns.saturating_sub(at) < wait {
                continue;
            }
            if incident.changed {
                let report = incident.report(now);
                self.reports.push_back(report);
            }
            let report = incident.snapshot();
            self.remember(report);
            self.closing.remove(&uuid);
            if let Some(closed) = self.incidents.remove(&uuid) {
                self.lay_aside(closed);
            }
        }
    }

    /// How long a resolved incident waits for the news that everything is undone: other tools may take their time.
    fn close_wait(&self, uuid: Uuid) -> u64 {
        if self.has_ending(uuid) { CLOSE_TOOLS_NS } else { CLOSE_NS }
    }

    /// When [`Self::on_deadline`] is to be called next; monotonic nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        // Those of active incidents are renewed before they end.
        let mut times: BTreeSet<u64> = self.renewals().chain(self.gate_renewals()).collect();
        let ends = self.rules.values().filter(|r| r.origin.incident().is_none_or(|i| !self.is_active(i)));
        times.extend(ends.filter_map(|r| r.expires_at_ns));
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
        times.extend(self.closing.iter().map(|(uuid, at)| at + self.close_wait(*uuid)));
        times.extend(self.tasks.values().filter(|t| t.state != TaskState::Ending).map(|t| t.expires_at_ns));
        // What is overdue was looked at and waits for an input; a deadline in the past would spin.
        times.into_iter().find(|at| *at != u64::MAX).map(|at| at.max(self.now_ns + MS))
    }

    /// Drops rules whose time is over.
    pub(super) fn forget_expired(&mut self, now: Now) {
        let before = self.rules.len();
        self.rules.retain(|_, r| r.expires_at_ns.is_none_or(|end| end > now.mono_ns));
        self.rules_changed |= self.rules.len() != before;
    }
}
