//! Which targets stand behind the TCP gate: those of forged TCP floods, for as long as their incident is active.

use std::collections::BTreeMap;

use ipnet::IpNet;
use uuid::Uuid;

use super::Engine;
use super::incident::Incident;
use super::input::Now;
use super::sample::SEC;

/// A target behind the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gated {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub ends_ns: u64,
    /// It is an address of this node, whose sockets can be asked.
    pub local: bool,
    /// What the gate drops counts as hits of this incident's first rule.
    pub incident: Uuid,
}

impl Engine {
    /// Puts the incident's target behind the gate.
    pub(super) fn gate(&mut self, uuid: Uuid, now: Now) {
        let ends_ns = now.mono_ns + self.gate_life_ns();
        let Some(incident) = self.incidents.get(&uuid) else { return };
        let targets: Vec<String> = self.gated_by(incident, ends_ns).map(|(target, _)| target.to_string()).collect();
        if targets.is_empty() || incident.gate_ends_ns.is_some() {
            return;
        }
        self.rules_changed = true;
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        incident.gate_ends_ns = Some(ends_ns);
        let text = format!("the TCP gate stands before {}: segments of no connection are dropped", targets.join(", "));
        incident.note("mitigated", text, now);
    }

    /// Every target behind the gate now.
    pub(super) fn gated(&self) -> BTreeMap<IpNet, Gated> {
        let mut all = BTreeMap::new();
        for incident in self.incidents.values().filter(|i| i.is_active()) {
            let Some(ends_ns) = incident.gate_ends_ns else { continue };
            for (target, gated) in self.gated_by(incident, ends_ns) {
                let there: &mut Gated = all.entry(target).or_insert(gated);
                there.ends_ns = there.ends_ns.max(gated.ends_ns);
            }
        }
        all
    }

    /// The node's own addresses under the incident's target, or the target itself where what passes through is gated
    /// too.
    fn gated_by(&self, incident: &Incident, ends_ns: u64) -> impl Iterator<Item = (IpNet, Gated)> {
        let (target, incident) = (incident.target, incident.uuid);
        let response = &self.effective.response;
        let own = self.effective.guard.own.iter().filter(move |own| target.contains(*own));
        let locals: Vec<IpNet> = own.copied().collect();
        let through = (response.gate_forwarded && !locals.contains(&target)).then_some(target);
        let all = locals.into_iter().map(|own| (own, true)).chain(through.map(|target| (target, false)));
        all.filter(|_| response.gate).map(move |(target, local)| (target, Gated { ends_ns, local, incident }))
    }

    fn gate_life_ns(&self) -> u64 {
        u64::from(self.effective.response.ttl_secs.max(1)) * SEC
    }

    /// Gives the gates of active incidents a new end when half of their life is over.
    pub(super) fn renew_gates(&mut self, now: Now) {
        let life = self.gate_life_ns();
        for incident in self.incidents.values_mut().filter(|i| i.is_active()) {
            if let Some(end) = incident.gate_ends_ns.as_mut().filter(|end| **end <= now.mono_ns + life / 2) {
                *end = now.mono_ns + life;
                self.rules_changed = true;
            }
        }
    }

    /// When gates are to be renewed.
    pub(super) fn gate_renewals(&self) -> impl Iterator<Item = u64> {
        let half = self.gate_life_ns() / 2;
        let active = self.incidents.values().filter(|i| i.is_active());
        active.filter_map(move |i| Some(i.gate_ends_ns?.saturating_sub(half)))
    }
}
