//! Whether what is in force holds an attack: wider while it does not, back by a step when narrower rules would.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ftagent_common::vocab::Mode;
use uuid::Uuid;

use super::Engine;
use super::classify::signature::meets;
use super::detect;
use super::incident::Incident;
use super::input::Now;
use super::policy::Width;
use super::rules::Matches;
use super::sample::{MS, SEC, SMOOTH_WINDOW_NS};
use super::window::Seen;

/// How long a response may work before it is judged, and the window it is judged over.
const CONTAIN_NS: u64 = 300 * MS;
const CONTAIN_WINDOW_NS: u64 = 200 * MS;
/// Samples that tell what narrower rules would hold: fewer tell nothing, more cost and tell no more.
const FEWEST: usize = 20;
const MOST: usize = 500;

impl Engine {
    /// Widens the response of incidents that are not contained by what is in force, and takes steps back that are no
    /// longer needed.
    pub(super) fn contain(&mut self, uuid: Uuid, now: Now) {
        if self.effective.mode != Mode::Enforce || !self.effective.response.automatic {
            return;
        }
        if self.narrow(uuid, now) {
            return;
        }
        let Some(incident) = self.incidents.get(&uuid) else { return };
        let Some(since) = incident.responded_ns else { return };
        let Some(wider) = incident.width.wider() else { return };
        // What the kernel has not confirmed may not have begun to work.
        // What hits single clients of a web server is never widened to everybody.
        let in_force = incident.deeds.iter().any(|d| d.stands() && d.applied_at.is_some() && d.key != super::web::DEED);
        if !in_force || now.mono_ns.saturating_sub(since) < CONTAIN_NS {
            return;
        }
        let thresholds = self.thresholds_of(incident.target);
        let passed = self.meter(incident.target).map(|m| m.passed_rates(CONTAIN_WINDOW_NS));
        let Some(left) = passed.and_then(|p| detect::excess(&p, &thresholds)).filter(|e| e.ratio > 1.0) else { return };
        if let Some(incident) = self.incidents.get_mut(&uuid) {
            incident.width = wider;
            let text = format!("{} of {:.0} still passes: the response is widened", left.quantity.as_str(), left.rate);
            incident.note("updated", text, now);
        }
        self.respond(uuid, true, now);
    }

    /// Takes the widest step of a response back if the narrower ones would hold what still arrives; whether it did.
    fn narrow(&mut self, uuid: Uuid, now: Now) -> bool {
        let Some(incident) = self.incidents.get(&uuid).filter(|i| i.steps.is_due(now.mono_ns)) else { return false };
        let Some(narrower) = incident.widest().narrower() else { return false };
        let would_pass = self.would_pass(incident, narrower, now);
        let Some(incident) = self.incidents.get_mut(&uuid) else { return false };
        if !incident.steps.may_narrow(would_pass, now.mono_ns) {
            return false;
        }
        let secs = incident.steps.wait_ns() / SEC;
        incident.steps.narrowed();
        incident.width = incident.width.min(narrower);
        incident.responded_ns = Some(now.mono_ns);
        let mut taken = BTreeSet::new();
        for deed in incident.deeds.iter_mut().filter(|d| d.stands() && d.width > narrower) {
            deed.withdrawn = true;
            taken.extend(deed.rules.iter().copied());
        }
        let text = format!("narrower rules suffice for {secs} s: {} wide rule(s) are taken back", taken.len());
        incident.note("narrowed", text, now);
        self.rules.retain(|id, _| !taken.contains(id));
        self.rules_changed = true;
        // The gate goes where it was a wider step; where nothing narrower helps, it stays.
        let plan = self.incidents.get(&uuid).and_then(|incident| self.plan(incident));
        if narrower == Width::Narrow && plan.is_some_and(|plan| !plan.gate) {
            self.ungate(uuid, now);
        }
        true
    }

    /// What would come through of what arrives, over the threshold, if nothing wider than `width` were in force.
    fn would_pass(&self, incident: &Incident, width: Width, now: Now) -> f64 {
        let target = incident.target;
        let rates = self.meter(target).map(|m| m.rates(SMOOTH_WINDOW_NS));
        let excess = rates.and_then(|rates| detect::excess(&rates, &self.thresholds_of(target)));
        let Some(arriving) = excess.map(|e| e.ratio) else { return 0.0 };
        let samples = self.window.since(now.mono_ns.saturating_sub(SEC), |dst| target.contains(&IpAddr::from(dst)));
        if samples.len() < FEWEST {
            return arriving;
        }
        let deeds = incident.deeds.iter().filter(|d| d.stands() && d.width <= width);
        let rules: Vec<&Matches> =
            deeds.flat_map(|d| &d.rules).filter_map(|id| self.rules.get(id)).map(|r| &r.matches).collect();
        let (mut all, mut held) = (0u64, 0u64);
        for seen in samples.iter().step_by(samples.len().div_ceil(MOST)) {
            all += u64::from(seen.weight);
            held += if rules.iter().any(|m| would_hit(m, seen)) { u64::from(seen.weight) } else { 0 };
        }
        arriving * (1.0 - held as f64 / all.max(1) as f64)
    }

    /// When the next containment check of an incident is due.
    pub(super) fn contain_deadline(incident: &Incident) -> Option<u64> {
        incident.width.wider()?;
        incident.responded_ns.map(|at| at + CONTAIN_NS)
    }
}

/// Whether a rule of the incident's target would judge what was `seen`. Of payloads and code points nothing is known.
fn would_hit(matches: &Matches, seen: &Seen) -> bool {
    matches.source.is_none_or(|source| source.contains(&IpAddr::from(seen.src)))
        && matches.payload.is_none()
        && matches.dscp.is_none()
        && meets(matches, seen)
}
