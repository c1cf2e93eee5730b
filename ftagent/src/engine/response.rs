//! From a plan to rules: every automatic rule is made here, past the guard, with an end and an origin.

use std::collections::BTreeSet;

use ftagent_common::api::{Action, NodeMeans, PreviewContext, preview};
use ftagent_common::packet::Ip;
use ftagent_common::vocab::TrafficClass;
use ipnet::IpNet;
use uuid::Uuid;

use super::Engine;
use super::classify::features::slash64;
use super::firewall::refused;
use super::guard::{self, Friends, Refusal};
use super::incident::{Deed, Incident};
use super::input::{EnforceResult, Now};
use super::policy::{self, Plan, Planned, Situation, Width};
use super::rules::{Matches, Origin, Point, Rule, RuleId, Verdict};
use super::sample::{Quantity, SEC};
use super::tool_guard::MAX_TOLD;

impl Engine {
    /// Installs what the policy plans for an incident, if it may act by itself.
    ///
    /// `anew`: the verdict or the width changed. Otherwise only further sources are added, since a filter that is
    /// measured again a second later is never quite the same.
    pub(super) fn respond(&mut self, uuid: Uuid, anew: bool, now: Now) {
        let Some(incident) = self.incidents.get(&uuid) else { return };
        let response = &self.effective.response;
        if !response.automatic || incident.confidence < response.min_confidence {
            return;
        }
        let Some(plan) = self.plan(incident) else { return };
        let ttl = response.ttl_secs;
        if plan.gate {
            self.gate(uuid, now);
        }
        let origin = Origin::Response { incident: uuid };
        let before = incident_width(self, uuid);
        for Planned { matches, verdict, width, .. } in plan.target.into_iter().filter(|_| anew) {
            let (add, delete) = policy::commands(&matches, verdict, ttl);
            let action = policy::action_of(&matches, verdict, ttl);
            let deed = Deed { width, ..Deed::new(add.join(" "), 0, action, vec![add], vec![delete]) };
            self.install(uuid, deed, vec![(matches, verdict, Point::Datapath)], &origin, ttl, now);
        }
        if incident_width(self, uuid) > before
            && let Some(incident) = self.incidents.get_mut(&uuid)
        {
            incident.steps.widened();
        }
        let sources = plan.sources;
        if !sources.is_empty() {
            let action = Action::XdpDropSource { sources: sources.clone(), ttl_secs: ttl };
            let shown = preview(
                &action,
                &PreviewContext {
                    target: incident_target(self, uuid),
                    sources: vec![],
                    spoofed: false,
                    spared: vec![],
                    node: NodeMeans::default(),
                },
            );
            let deed = Deed::new("sources".to_owned(), 0, action, shown.do_, shown.undo);
            let rules = sources.into_iter().map(|s| (Matches::source(s), Verdict::Drop, Point::Datapath)).collect();
            self.install(uuid, deed, rules, &origin, ttl, now);
        }
        if let Some(incident) = self.incidents.get_mut(&uuid).filter(|_| anew) {
            incident.responded_ns = Some(now.mono_ns);
        }
    }

    /// What should be in force against an incident at its width; nothing without a verdict.
    pub(super) fn plan(&self, incident: &Incident) -> Option<Plan> {
        let known: BTreeSet<Ip> = incident.clean.iter().flat_map(|s| [s.src, slash64(s.src)]).collect();
        let normal_pps = |class: TrafficClass| self.normal_pps(incident.target, class);
        let situation = Situation {
            target: incident.target,
            width: incident.width,
            max_sources: self.effective.response.max_sources,
            normal_pps: &normal_pps,
            target_pps: self.threshold_pps(incident.target),
            is_known: &|ip| known.contains(&ip),
        };
        incident.verdict.as_ref().map(|verdict| policy::plan(&verdict.vectors, &situation))
    }

    /// Makes the rules of one deed, as far as the guard lets them pass; answers how many of them are in force then, each
    /// source of a set for one, and why the first of the others is not.
    pub(super) fn install(
        &mut self,
        uuid: Uuid,
        deed: Deed,
        rules: Vec<(Matches, Verdict, Point)>,
        origin: &Origin,
        ttl_secs: u32,
        now: Now,
    ) -> (usize, Option<String>) {
        let expires = now.mono_ns + u64::from(ttl_secs.max(1)) * SEC;
        let mut made = BTreeSet::new();
        let (mut in_force, mut first_refusal) = (0, None);
        for (matches, verdict, point) in rules {
            let Some(matches) = self.part_that_may_be(uuid, &deed, matches, now) else { continue };
            let twin = self.rules.values().find(|r| {
                r.origin.incident() == Some(uuid) && r.matches == matches && r.point == point && r.verdict == verdict
            });
            let many = matches.all_sources().count().max(1);
            if twin.is_some() {
                in_force += many;
                continue;
            }
            let Some(incident) = self.incidents.get(&uuid) else { break };
            if let Some(source) = matches.source.filter(|s| incident.spared.contains(s)) {
                first_refusal.get_or_insert_with(|| format!("{source} was unblocked by an operator"));
                continue;
            }
            match self.accept(&matches, verdict, point, expires, now) {
                Ok(()) => {
                    let id = self.next_rule_id();
                    let expires_at_ns = Some(expires);
                    let rule =
                        Rule { id, matches, verdict, point, origin: origin.clone(), expires_at_ns, evaluate: false };
                    self.rules.insert(id, rule);
                    made.insert(id);
                    in_force += many;
                }
                // The next look at the attack tries again.
                Err(why @ Refusal::TooFast(_)) => {
                    first_refusal.get_or_insert_with(|| why.to_string());
                    break;
                }
                Err(why) => {
                    first_refusal.get_or_insert_with(|| why.to_string());
                    self.refuse(uuid, &deed, &why, now);
                }
            }
        }
        let in_force = (in_force, first_refusal);
        if made.is_empty() {
            return in_force;
        }
        self.rules_changed = true;
        let Some(incident) = self.incidents.get_mut(&uuid) else { return in_force };
        let what =
            format!("{} rule(s): {}", made.len(), deed.commands.first().map(|c| c.join(" ")).unwrap_or_default());
        match incident.deeds.iter_mut().find(|d| d.key == deed.key && d.stands()) {
            Some(known) => {
                known.rules.extend(made);
                known.action = deed.action;
                for (add, undo) in deed.commands.into_iter().zip(deed.undo) {
                    if known.commands.len() < 64 && !known.commands.contains(&add) {
                        known.commands.push(add);
                        known.undo.push(undo);
                    }
                }
            }
            None => incident.add_deed(Deed { rules: made, ..deed }),
        }
        incident.note("mitigated", what, now);
        in_force
    }

    /// Of a rule of many sources what the guard and an operator's word leave; none: nothing.
    fn part_that_may_be(&mut self, uuid: Uuid, deed: &Deed, matches: Matches, now: Now) -> Option<Matches> {
        if matches.sources.is_empty() {
            return Some(matches);
        }
        let spared: BTreeSet<IpNet> = self.incidents.get(&uuid)?.spared.iter().copied().collect();
        let (kept, refused) = self.split_sources(&matches, &spared);
        let more = refused.len().saturating_sub(MAX_TOLD);
        for why in refused.into_iter().take(MAX_TOLD) {
            self.refuse(uuid, deed, &why, now);
        }
        if more > 0
            && let Some(incident) = self.incidents.get_mut(&uuid)
        {
            let text = format!("{}: left out: {more} more sources that are never blocked", deed.action.kind());
            incident.refuse(None, text, now);
        }
        Matches::any_source(kept)
    }

    /// The sources of `matches` that may be blocked and are not `spared`, and why others may not.
    fn split_sources(&self, matches: &Matches, spared: &BTreeSet<IpNet>) -> (Vec<IpNet>, Vec<Refusal>) {
        let friends = Friends::of(&self.effective, &self.allow);
        let (mut kept, mut refused) = (Vec::new(), Vec::new());
        for source in matches.all_sources().filter(|source| !spared.contains(*source)) {
            match friends.check(source, &self.effective, &self.allow) {
                Ok(()) => kept.push(*source),
                Err(why) => refused.push(why),
            }
        }
        (kept, refused)
    }

    fn accept(
        &mut self,
        matches: &Matches,
        verdict: Verdict,
        point: Point,
        expires: u64,
        now: Now,
    ) -> Result<(), Refusal> {
        guard::check(matches, verdict, &self.effective, &self.allow)?;
        guard::check_lifetime(Some(expires), now.mono_ns)?;
        guard::check_room(self.rules.values(), matches, point, self.effective.response.max_rules)?;
        guard::check_elements(self.rules.values(), matches)?;
        self.pace.take(now.mono_ns)
    }

    fn refuse(&mut self, uuid: Uuid, deed: &Deed, why: &Refusal, now: Now) {
        self.refusals = self.refusals.saturating_add(1);
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        let text = format!("{}: {why}", deed.action.kind());
        let id = incident.execution_uuid(&text, "refused");
        let execution = refused(id, deed.rule_id, uuid, &deed.action, &why.to_string(), now);
        incident.refuse(Some(execution), text, now);
    }

    /// Gives the rules of active incidents a new end when half of their life is over.
    pub(super) fn renew(&mut self, now: Now) {
        self.renew_gates(now);
        for incident in self.incidents.values().filter(|i| i.is_active()) {
            for deed in &incident.deeds {
                let ttl = lifetime(deed, self.effective.response.ttl_secs);
                for id in &deed.rules {
                    let Some(rule) = self.rules.get_mut(id) else { continue };
                    if rule.expires_at_ns.is_some_and(|end| end <= now.mono_ns + ttl / 2) {
                        rule.expires_at_ns = Some(now.mono_ns + ttl);
                        self.rules_changed = true;
                    }
                }
            }
        }
    }

    /// When rules of active incidents are to be renewed.
    pub(super) fn renewals(&self) -> impl Iterator<Item = u64> {
        let deeds = self.incidents.values().filter(|i| i.is_active()).flat_map(|i| &i.deeds);
        deeds.filter_map(|deed| {
            let half = lifetime(deed, self.effective.response.ttl_secs) / 2;
            let ends = deed.rules.iter().filter_map(|id| self.rules.get(id)?.expires_at_ns);
            ends.min().map(|end| end.saturating_sub(half))
        })
    }

    /// Records what became of rules.
    pub(super) fn on_enforced(&mut self, results: &[EnforceResult], now: Now) {
        for result in results {
            for incident in self.incidents.values_mut() {
                let opened = incident.opened_ns;
                let Some(deed) = incident.deeds.iter_mut().find(|d| d.rules.contains(&result.rule)) else { continue };
                match (&result.result, result.installed) {
                    (Ok(()), true) if deed.applied_at.is_none() => {
                        deed.applied_at = Some(now.wall);
                        deed.latency_us = result.at_mono_ns.saturating_sub(opened) / 1_000;
                        incident.changed = true;
                    }
                    (Err(why), true) if deed.failed.is_none() => {
                        let why: String = why.chars().take(4_096).collect();
                        deed.failed = Some(why.clone());
                        let text = format!("{} failed: {why}", deed.action.kind());
                        incident.note("note", text, now);
                    }
                    (Ok(()), false)
                        if deed.undone_at.is_none() && !deed.rules.iter().any(|id| self.rules.contains_key(id)) =>
                    {
                        deed.undone_at = Some(now.wall);
                        let text = format!("{} undone", deed.action.kind());
                        incident.note("undone", text, now);
                    }
                    (Err(why), false) => {
                        let text = format!("{} could not be undone: {why}", deed.action.kind());
                        if incident.told.insert(text.clone()) {
                            incident.note("note", text, now);
                        }
                    }
                    _ => {}
                }
                break;
            }
        }
    }

    /// Packets per second of a class that a limit must let through.
    fn normal_pps(&self, target: IpNet, class: TrafficClass) -> u64 {
        let detection = &self.effective.detection;
        let quantity = match class {
            TrafficClass::TcpSyn => Quantity::TcpSynPps,
            c if c.is_tcp() => Quantity::TcpPps,
            c if c.is_udp() => Quantity::UdpPps,
            TrafficClass::Icmp | TrafficClass::Icmpv6 => Quantity::IcmpPps,
            TrafficClass::Gre => Quantity::GrePps,
            TrafficClass::Fragment => Quantity::FragmentPps,
            _ => Quantity::OtherPps,
        };
        let normal = self.baseline(target).map_or(0.0, |b| b.normal(quantity, self.hour) * detection.multiplier);
        (normal as u64).max(detection.floor_pps / 10).max(100)
    }

    fn threshold_pps(&self, target: IpNet) -> u64 {
        self.thresholds_of(target)[Quantity::Pps.index()]
            .map_or(self.effective.detection.floor_pps, |t| t.value as u64)
            .max(100)
    }

    /// Removes automatic rules that the lists forbid now; whether there were any.
    pub(super) fn recheck_rules(&mut self, now: Now) {
        self.recheck_many_sources(now);
        let forbidden: Vec<(_, Uuid, String)> = self
            .rules
            .values()
            .filter(|r| r.origin.is_automatic())
            .filter_map(|r| {
                let why = guard::check(&r.matches, r.verdict, &self.effective, &self.allow).err()?;
                Some((r.id, r.origin.incident()?, why.to_string()))
            })
            .collect();
        for (id, incident, why) in forbidden {
            self.rules.remove(&id);
            self.rules_changed = true;
            if let Some(incident) = self.incidents.get_mut(&incident) {
                incident.refuse(None, format!("rule withdrawn: {why}"), now);
            }
        }
    }
}

impl Engine {
    /// Takes out of automatic rules of many sources those that the lists forbid now.
    fn recheck_many_sources(&mut self, now: Now) {
        let many = self.rules.values().filter(|r| r.origin.is_automatic() && !r.matches.sources.is_empty());
        let ids: Vec<RuleId> = many.map(|rule| rule.id).collect();
        for id in ids {
            let Some(rule) = self.rules.get(&id) else { continue };
            let (kept, refused) = self.split_sources(&rule.matches, &BTreeSet::new());
            let Some(first) = refused.first() else { continue };
            let text = format!("{} source(s) of a rule withdrawn: {first}", refused.len());
            let incident = rule.origin.incident();
            self.keep_sources(id, kept);
            if let Some(incident) = incident.and_then(|uuid| self.incidents.get_mut(&uuid)) {
                incident.refuse(None, text, now);
            }
        }
    }

    /// Leaves a rule these of its sources; without any it goes.
    pub(super) fn keep_sources(&mut self, id: RuleId, kept: Vec<IpNet>) {
        self.rules_changed = true;
        match (Matches::any_source(kept), self.rules.get_mut(&id)) {
            (Some(matches), Some(rule)) => rule.matches = matches,
            _ => drop(self.rules.remove(&id)),
        }
    }
}

/// Nanoseconds that the rules of a deed live without being renewed.
fn lifetime(deed: &Deed, default_secs: u32) -> u64 {
    u64::from(deed.action.ttl_secs().unwrap_or(default_secs).max(1)) * SEC
}

fn incident_width(engine: &Engine, uuid: Uuid) -> Width {
    engine.incidents.get(&uuid).map_or_else(Width::default, Incident::widest)
}

fn incident_target(engine: &Engine, uuid: Uuid) -> IpNet {
    engine.incidents.get(&uuid).map_or_else(IpNet::default, |i| i.target)
}

impl Deed {
    pub(super) fn new(
        key: String,
        rule_id: i64,
        action: Action,
        commands: Vec<Vec<String>>,
        undo: Vec<Vec<String>>,
    ) -> Self {
        let action = action.brief();
        let (commands, undo) = (commands.into_iter().take(64).collect(), undo.into_iter().take(64).collect());
        Self {
            key,
            again: 0,
            withdrawn: false,
            rule_id,
            action,
            rules: BTreeSet::new(),
            commands,
            undo,
            applied_at: None,
            latency_us: 0,
            failed: None,
            undone_at: None,
            width: Width::default(),
            task: None,
            output: String::new(),
            undo_output: String::new(),
        }
    }
}
