//! Attacks that come back: what is over for less than five minutes is opened again instead of being a new incident.
//!
//! A pulse wave (seconds on, seconds off) would otherwise be as many incidents as it has pulses. Each return doubles the
//! hold-down, so that the rules outlast the pauses from then on.

use ftagent_common::vocab::IncidentStatus;
use ipnet::IpNet;
use uuid::Uuid;

use super::Engine;
use super::detect::Excess;
use super::incident::Incident;
use super::input::Now;
use super::policy::Width;
use super::sample::{Quantity, SEC};
use super::steps::Steps;

/// An attack that returns to its target within this time is the same, and is held down twice as long as before.
pub(super) const FLAP_NS: u64 = 300 * SEC;
/// The hold-down grows to this many times its setting.
const MAX_HOLD_DOWN: u32 = 8;
/// Resolved incidents that are remembered for a return; the oldest gives way.
const MAX_DORMANT: usize = 64;
/// Deeds of earlier times that an incident keeps when it comes back: they were reported.
const MAX_PAST_DEEDS: usize = 32;

impl Engine {
    /// How long a new incident's target must be calm; twice as long as last time when that is not long ago.
    pub(super) fn hold_down_of(&self, target: IpNet, now: Now) -> u32 {
        match self.ended.get(&target) {
            Some((at, before)) if now.mono_ns.saturating_sub(*at) < FLAP_NS => self.longer(*before),
            _ => self.effective.detection.hold_down_ms,
        }
    }

    /// The hold-down after one of `before` milliseconds was too short.
    fn longer(&self, before: u32) -> u32 {
        let base = self.effective.detection.hold_down_ms;
        before.saturating_mul(2).clamp(base, base.saturating_mul(MAX_HOLD_DOWN))
    }

    /// An incident came to its end by itself: it may come back.
    pub(super) fn rest(&mut self, uuid: Uuid, now: Now) {
        if let Some(incident) = self.incidents.get_mut(&uuid).filter(|i| !i.is_active()) {
            incident.rests_since_ns = Some(now.mono_ns);
        }
    }

    /// Keeps a closed incident for as long as it may come back.
    pub(super) fn lay_aside(&mut self, mut incident: Incident) {
        if incident.rests_since_ns.is_none() {
            return;
        }
        incident.clean = Vec::new();
        incident.verdict = None;
        if self.dormant.len() >= MAX_DORMANT {
            self.dormant.pop_front();
        }
        self.dormant.push_back(incident);
    }

    pub(super) fn forget_dormant(&mut self, now: Now) {
        self.dormant.retain(|i| i.may_return(now));
    }

    /// An operator had the last word on a resolved incident: what comes is a new one. Whether it was known.
    pub(super) fn forbid_return(&mut self, uuid: Uuid) -> bool {
        let closing = self.incidents.get_mut(&uuid).filter(|i| !i.is_active());
        let mut known = closing.is_some_and(|i| i.rests_since_ns.take().is_some());
        self.dormant.retain(|i| {
            known |= i.uuid == uuid;
            i.uuid != uuid
        });
        known
    }

    /// The resolved incident that an excess on `target` continues, active again; it is no longer among the others.
    pub(super) fn reopen(&mut self, target: IpNet, excess: &Excess, onset_ns: u64, now: Now) -> Option<Incident> {
        let is_same = |i: &Incident| i.target == target && i.may_return(now) && is_same_kind(i, excess.quantity);
        let closing = self.incidents.values().filter(|i| !i.is_active()).find(|i| is_same(i)).map(|i| i.uuid);
        let mut incident = match closing {
            Some(uuid) => {
                self.closing.remove(&uuid);
                self.incidents.remove(&uuid)?
            }
            None => {
                let at = self.dormant.iter().rposition(is_same)?;
                self.dormant.remove(at)?
            }
        };
        self.recent.retain(|r| r.uuid != incident.uuid);
        incident.hold_down_ms = self.longer(incident.hold_down_ms);
        incident.come_back(excess, onset_ns, now);
        Some(incident)
    }

    /// Tells of a return at once: until then everybody believes that the attack is over.
    pub(super) fn report_return(&mut self, uuid: Uuid, now: Now) {
        if let Some(incident) = self.incidents.get_mut(&uuid) {
            self.reports.push_back(incident.report(now));
        }
    }
}

/// Whether an excess of `quantity` is of the kind that opened the incident: packets, requests or connections.
fn is_same_kind(incident: &Incident, quantity: Quantity) -> bool {
    let of = incident.excess.quantity;
    of == quantity || of.is_of_packets() && quantity.is_of_packets()
}

impl Incident {
    /// Whether it is over for so short a time that the same attack would be the same incident.
    fn may_return(&self, now: Now) -> bool {
        self.rests_since_ns.is_some_and(|since| now.mono_ns.saturating_sub(since) < FLAP_NS)
    }

    /// Makes it active again. What was measured and done stays; what is to be done is decided anew.
    fn come_back(&mut self, excess: &Excess, onset_ns: u64, now: Now) {
        let paused_ns = self.rests_since_ns.take().map_or(0, |since| now.mono_ns.saturating_sub(since));
        self.status = IncidentStatus::Active;
        self.resolved_at = None;
        (self.opened_ns, self.onset_ns) = (now.mono_ns, onset_ns);
        self.returns = self.returns.saturating_add(1);
        if excess.ratio > self.excess.ratio {
            self.excess = *excess;
            self.raise(0.0, 0, 0);
        }
        (self.verdict, self.classified_ns, self.doubt, self.samples) = (None, None, None, 0);
        (self.calm_since, self.responded_ns, self.gate_ends_ns, self.web) = (None, None, None, None);
        (self.width, self.steps) = (Width::default(), Steps::default());
        self.fired.clear();
        let past = self.deeds.len().saturating_sub(MAX_PAST_DEEDS);
        self.deeds.drain(..past);
        let text = format!(
            "back after {} s: {}; return {}, the hold-down is {} s now",
            paused_ns / SEC,
            self.text_of(excess),
            self.returns,
            f64::from(self.hold_down_ms) / 1e3
        );
        self.note("reopened", text, now);
    }
}
