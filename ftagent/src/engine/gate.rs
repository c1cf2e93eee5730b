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

    /// Takes the gate away from before the incident's target; whether there was one.
    pub(super) fn ungate(&mut self, uuid: Uuid, now: Now) -> bool {
        let Some(incident) = self.incidents.get(&uuid) else { return false };
        let Some(ends_ns) = incident.gate_ends_ns else { return false };
        let targets: Vec<String> = self.gated_by(incident, ends_ns).map(|(target, _)| target.to_string()).collect();
        let Some(incident) = self.incidents.get_mut(&uuid) else { return false };
        incident.gate_ends_ns = None;
        if !targets.is_empty() {
            let text = format!("the TCP gate no longer stands before {}", targets.join(", "));
            incident.note("undone", text, now);
        }
        self.rules_changed = true;
        true
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

#[cfg(test)]
mod tests {
    use ftagent_common::vocab::{IncidentStatus, Mode};
    use time::OffsetDateTime;

    use super::super::classify::{self, testing::Flood};
    use super::super::detect::{Excess, Threshold, ThresholdOrigin};
    use super::super::input::{Command, Input};
    use super::super::policy::{Plan, Situation, Width, plan};
    use super::super::sample::Quantity;
    use super::super::settings::Settings;
    use super::super::window::Seen;
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect(text)
    }

    fn at(secs: u64) -> Now {
        Now { mono_ns: secs * SEC, wall: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(secs as i64) }
    }

    fn settings() -> Settings {
        let mut settings = Settings::default();
        settings.guard.own = ["192.0.2.1/32", "192.0.2.9/32", "2001:db8::1/128"].map(net).to_vec();
        settings.response.ttl_secs = 60;
        settings
    }

    /// An engine with incidents on `targets`, and what they are called.
    fn engine(settings: Settings, targets: &[&str]) -> (Engine, Vec<Uuid>) {
        let mut engine = Engine::new(settings, at(1));
        let threshold = Threshold { value: 1_000.0, origin: ThresholdOrigin::Static };
        let open = |target: &&str| {
            let excess = Excess { quantity: Quantity::TcpSynPps, rate: 9_000.0, threshold, ratio: 9.0 };
            Incident::open(net(target), false, excess, SEC, 10_000, at(1))
        };
        let uuids = targets.iter().map(open).map(|incident| {
            let uuid = incident.uuid;
            engine.incidents.insert(uuid, incident);
            uuid
        });
        let uuids = uuids.collect();
        (engine, uuids)
    }

    fn gated(engine: &Engine) -> Vec<(String, bool, u64)> {
        engine.desired().gated.iter().map(|(net, g)| (net.to_string(), g.local, g.ends_ns / SEC)).collect()
    }

    fn notes(engine: &Engine, uuid: Uuid) -> Vec<(String, String)> {
        let timeline = &engine.incidents[&uuid].timeline;
        timeline.iter().filter(|e| e.text.contains("gate")).map(|e| (e.kind.clone(), e.text.clone())).collect()
    }

    #[test]
    fn the_gate_stands_before_the_target_while_its_incident_is_active_and_not_longer() {
        let (mut engine, uuids) = engine(settings(), &["192.0.2.1/32"]);
        assert_eq!(gated(&engine), [], "an incident alone gates nothing");
        engine.gate(uuids[0], at(10));
        assert_eq!(gated(&engine), [("192.0.2.1/32".to_owned(), true, 70)]);
        // Asked again it is the same gate, with the same end and no second note.
        engine.gate(uuids[0], at(20));
        assert_eq!(gated(&engine), [("192.0.2.1/32".to_owned(), true, 70)]);
        engine.resolve(uuids[0], IncidentStatus::Resolved, at(30));
        assert_eq!(gated(&engine), []);
        assert!(engine.rules_changed, "the kernel is told");
        let text = |what: &str| format!("the TCP gate {what}");
        assert_eq!(
            notes(&engine, uuids[0]),
            [
                ("mitigated".to_owned(), text("stands before 192.0.2.1/32: segments of no connection are dropped")),
                ("undone".to_owned(), text("no longer stands before 192.0.2.1/32"))
            ]
        );
    }

    #[test]
    fn each_target_has_a_gate_of_its_own() {
        let (mut engine, uuids) = engine(settings(), &["192.0.2.1/32", "192.0.2.9/32"]);
        engine.gate(uuids[0], at(10));
        engine.gate(uuids[1], at(20));
        assert_eq!(gated(&engine).len(), 2);
        engine.resolve(uuids[0], IncidentStatus::Resolved, at(30));
        assert_eq!(gated(&engine), [("192.0.2.9/32".to_owned(), true, 80)], "the other one stays");
    }

    #[test]
    fn of_two_incidents_around_one_address_the_gate_lasts_as_long_as_the_later_one() {
        let (mut engine, uuids) = engine(settings(), &["192.0.2.0/24", "192.0.2.1/32"]);
        engine.gate(uuids[0], at(10));
        engine.gate(uuids[1], at(20));
        let both = [("192.0.2.1/32".to_owned(), true, 80), ("192.0.2.9/32".to_owned(), true, 70)];
        assert_eq!(gated(&engine), both, "a network stands for the node's addresses in it");
        engine.resolve(uuids[1], IncidentStatus::Resolved, at(30));
        assert_eq!(gated(&engine).len(), 2);
        engine.resolve(uuids[0], IncidentStatus::Resolved, at(31));
        assert_eq!(gated(&engine), []);
    }

    #[test]
    fn forwarded_targets_are_gated_only_where_that_is_asked_for() {
        for forwarded in [false, true] {
            let mut settings = settings();
            settings.response.gate_forwarded = forwarded;
            let (mut engine, uuids) = engine(settings, &["198.51.100.7/32", "192.0.2.1/32"]);
            uuids.iter().for_each(|uuid| engine.gate(*uuid, at(10)));
            let own = ("192.0.2.1/32".to_owned(), true, 70);
            let through = ("198.51.100.7/32".to_owned(), false, 70);
            let expected = if forwarded { vec![own, through] } else { vec![own] };
            assert_eq!(gated(&engine), expected, "forwarded {forwarded}");
            assert_eq!(notes(&engine, uuids[0]).len(), usize::from(forwarded), "no word of a gate that is not there");
        }
    }

    #[test]
    fn a_gate_is_renewed_before_it_ends_and_not_after_its_incident() {
        let (mut engine, uuids) = engine(settings(), &["192.0.2.1/32"]);
        engine.gate(uuids[0], at(10));
        assert_eq!(engine.gate_renewals().collect::<Vec<_>>(), [40 * SEC], "at half of its life");
        engine.renew_gates(at(39));
        assert_eq!(gated(&engine)[0].2, 70, "not yet");
        engine.renew_gates(at(40));
        assert_eq!(gated(&engine)[0].2, 100);
        engine.resolve(uuids[0], IncidentStatus::Resolved, at(50));
        engine.renew_gates(at(99));
        assert_eq!((gated(&engine).len(), engine.gate_renewals().count()), (0, 0));
    }

    #[test]
    fn settings_that_change_take_the_gate_away_at_once() {
        let off = |change: fn(&mut Settings)| {
            let (mut engine, uuids) = engine(settings(), &["192.0.2.1/32"]);
            engine.gate(uuids[0], at(10));
            engine.on(Input::Settings(Box::new(settings())), at(11));
            while engine.poll_command().is_some() {}
            let mut fresh = settings();
            change(&mut fresh);
            engine.on(Input::Settings(Box::new(fresh)), at(12));
            let mut told = None;
            while let Some(command) = engine.poll_command() {
                if let Command::Enforce(set) = command {
                    told = Some(set.gated.len());
                }
            }
            told
        };
        assert_eq!(off(|_| {}), None, "nothing changed");
        assert_eq!(off(|s| s.response.gate = false), Some(0));
        assert_eq!(off(|s| s.guard.own.clear()), Some(0), "the address is not this node's any more");
    }

    #[test]
    fn a_restarted_agent_keeps_the_gate_and_one_after_a_reboot_has_none() {
        let (mut engine, uuids) = engine(settings(), &["192.0.2.1/32"]);
        engine.gate(uuids[0], at(10));
        let saved = serde_json::to_string(&engine.state()).expect("JSON");
        let restored =
            |same_boot| Engine::restore(settings(), serde_json::from_str(&saved).expect("a state"), at(20), same_boot);
        assert_eq!(gated(&restored(true)), gated(&engine));
        let mut heir = restored(true);
        heir.resolve(uuids[0], IncidentStatus::Resolved, at(30));
        assert_eq!(gated(&heir), [], "the heir undoes what it did not do");
        assert_eq!(gated(&restored(false)), []);
    }

    #[test]
    fn the_mode_is_told_with_the_gate() {
        // In evaluate and in bypass the kernel drops nothing; the gate stays where it is for when that ends.
        for mode in [Mode::Evaluate, Mode::Bypass] {
            let (mut engine, uuids) = engine(Settings { mode, ..settings() }, &["192.0.2.1/32"]);
            engine.gate(uuids[0], at(10));
            let set = engine.desired();
            assert_eq!((set.mode, set.gated.len()), (Some(mode), 1));
        }
    }

    fn planned(flood: &Flood, clean: &[Seen], width: Width) -> Plan {
        let vectors = classify::classify(&flood.samples(500), clean, 50_000.0).vectors;
        let situation = Situation {
            target: net("192.0.2.1/32"),
            width,
            max_sources: 1_000,
            normal_pps: &|_| 100,
            target_pps: 1_000,
            is_known: &|_| false,
        };
        plan(&vectors, &situation)
    }

    #[test]
    fn only_forged_segments_that_nothing_narrower_stops_are_a_reason() {
        let wide = Width::Class;
        assert!(!planned(&Flood::syn(), &[], Width::Narrow).gate, "a signature stops it and costs nobody anything");
        assert!(planned(&Flood::syn(), &[], wide).gate, "the signature did not hold it");
        assert!(planned(&Flood::syn(), &Flood::syn().samples(50), Width::Narrow).gate, "as clients send them");
        assert!(!planned(&Flood::udp(), &[], wide).gate, "no segments");
        let few = Flood { sources: Some(3), ttls: (50, 60), ..Flood::syn() };
        let plan = planned(&few, &[], wide);
        assert!(!plan.gate && plan.sources.len() == 3, "three hosts are blocked by name: {plan:?}");
    }
}
