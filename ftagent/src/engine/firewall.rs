//! The operator's firewall rules: when they fire, and the rules that carry their actions out.

use std::collections::BTreeSet;

use ftagent_common::api::{
    Action, ExecutionOutcome, FirewallRule, NodeMeans, PortSide, PreviewContext, Protocol, RuleExecution,
    effective_sources, preview,
};
use ipnet::IpNet;
use uuid::Uuid;

use super::Engine;
use super::incident::Deed;
use super::input::Now;
use super::rules::{Matches, Origin, Point, Verdict};
use super::sample::SEC;

impl Engine {
    /// Fires the firewall rules whose triggers an incident meets, each once per incident and cooldown.
    pub(super) fn fire(&mut self, uuid: Uuid, now: Now) {
        let Some(incident) = self.incidents.get(&uuid) else { return };
        let due: Vec<FirewallRule> = self
            .effective
            .rules
            .iter()
            .filter(|r| !incident.fired.contains(&r.id))
            .filter(|r| r.trigger.matches(incident.family, incident.severity, incident.peak_pps))
            .filter(|r| self.cooldowns.get(&(r.id, incident.target)).is_none_or(|until| *until <= now.mono_ns))
            .cloned()
            .collect();
        for rule in due {
            self.fire_one(uuid, &rule, now);
        }
    }

    fn fire_one(&mut self, uuid: Uuid, rule: &FirewallRule, now: Now) {
        let max_sources = (self.effective.response.max_sources as usize).min(rule.action.max_sources());
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        incident.fired.insert(rule.id);
        let mut action = rule.action.clone();
        if let Some([]) = action.sources()
            && !incident.spoofed
        {
            let vectors = incident.verdict.iter().flat_map(|v| &v.vectors);
            let of_packets = vectors.flat_map(|v| v.stats.prefixes_of_sources(max_sources));
            // Logs and connections tell attackers from the others.
            let found = match &incident.web {
                Some(web) => web.named.iter().take(max_sources).copied().collect(),
                None => of_packets.collect(),
            };
            name_sources(&mut action, found);
        }
        let context = PreviewContext {
            target: incident.target,
            sources: Vec::new(),
            spoofed: incident.spoofed,
            spared: Vec::new(),
            node: NodeMeans::default(),
        };
        self.cooldowns.insert(
            (rule.id, incident.target),
            now.mono_ns + u64::from(rule.cooldown_minutes.clamp(1, 1_440)) * 60 * SEC,
        );
        let shown = preview(&action, &context);
        let key = format!("rule {}", rule.id);
        let execution_uuid = incident.execution_uuid(&key, "do");
        if let Some(why) = shown.refused {
            let text = format!("firewall rule {}: {why}", rule.name);
            let execution = refused(execution_uuid, rule.id, uuid, &action, &text, now);
            incident.refuse(Some(execution), text, now);
            return;
        }
        if !action.is_native() {
            self.begin_rule(uuid, (rule.id, &rule.name), key, &action, now);
            return;
        }
        let origin = Origin::FirewallRule { rule: rule.id, name: rule.name.clone(), incident: uuid };
        let ttl = action.ttl_secs().unwrap_or(self.effective.response.ttl_secs);
        let rules = expand(&action, &context);
        let mut deed = Deed::new(key, rule.id, action, shown.do_, shown.undo);
        if !shown.input.is_empty() {
            deed.output = shown.objects.join("; ").chars().take(1_024).collect();
        }
        self.install(uuid, deed, rules, &origin, ttl, now);
    }
}

pub(super) fn refused(uuid: Uuid, rule_id: i64, incident: Uuid, action: &Action, why: &str, now: Now) -> RuleExecution {
    RuleExecution {
        uuid,
        rule_id,
        incident,
        action: action.brief(),
        outcome: ExecutionOutcome::Refused,
        output: why.to_owned(),
        commands: Vec::new(),
        at: now.wall,
        latency_us: 0,
    }
}

/// Gives an action about the incident's sources their addresses; those of several vectors once each.
fn name_sources(action: &mut Action, found: BTreeSet<IpNet>) {
    let most = action.max_sources();
    if let Some(sources) = action.sources_mut() {
        sources.extend(found.into_iter().take(most));
    }
}

/// The rules that carry an action out, with the meaning that [`preview`] shows.
pub(super) fn expand(action: &Action, context: &PreviewContext) -> Vec<(Matches, Verdict, Point)> {
    let target = action.target().unwrap_or(context.target).trunc();
    let per_source = |verdict, point| {
        effective_sources(action, context).into_iter().map(|s| (Matches::source(s), verdict, point)).collect()
    };
    let port = |protocol: Protocol, port: u16, side| {
        let one = Some([port, port]);
        let to = Matches::target(target).protocol(protocol);
        match side {
            PortSide::Source => Matches { src_port: one, ..to },
            PortSide::Destination => Matches { dst_port: one, ..to },
        }
    };
    match action {
        Action::XdpDropSource { .. } => per_source(Verdict::Drop, Point::Datapath),
        Action::XdpRateLimitSource { pps, bps, burst, .. } => per_source(rate(*pps, *bps, *burst), Point::Datapath),
        Action::XdpDropProtocol { protocol, .. } => {
            vec![(Matches::target(target).protocol(*protocol), Verdict::Drop, Point::Datapath)]
        }
        Action::XdpDropPort { protocol, port: number, side, .. } => {
            vec![(port(protocol.protocol(), *number, *side), Verdict::Drop, Point::Datapath)]
        }
        Action::XdpRateLimitTarget { protocol, pps, bps, .. } => {
            let matches = protocol.map_or_else(|| Matches::target(target), |p| Matches::target(target).protocol(p));
            vec![(matches, rate(*pps, *bps, None), Point::Datapath)]
        }
        Action::NftDropProtocol { protocol, .. } => {
            vec![(Matches::target(target).protocol(*protocol), Verdict::Drop, Point::Nftables)]
        }
        Action::NftDropPort { protocol, port: number, side, .. } => {
            vec![(port(protocol.protocol(), *number, *side), Verdict::Drop, Point::Nftables)]
        }
        // One rule, however many there are: its sources are elements of sets.
        Action::NftDropSource { .. } => {
            let matches = Matches::any_source(effective_sources(action, context));
            matches.into_iter().map(|matches| (matches, Verdict::Drop, Point::Nftables)).collect()
        }
        Action::NftRateLimitSource { pps, burst, .. } => {
            let burst = burst.unwrap_or_else(|| pps.div_ceil(10).max(5));
            per_source(Verdict::LimitPps { pps: *pps, burst }, Point::Nftables)
        }
        // Refused before: see `fire_one`.
        _ => Vec::new(),
    }
}

/// A rate with a tenth of a second's burst unless one is given.
pub(super) fn rate(pps: Option<u64>, bps: Option<u64>, burst: Option<u64>) -> Verdict {
    match (pps, bps) {
        (Some(pps), _) => Verdict::LimitPps { pps, burst: burst.unwrap_or_else(|| (pps / 10).max(1)) },
        (None, Some(bps)) => Verdict::LimitBps { bps, burst: burst.unwrap_or_else(|| (bps / 10).max(1)) },
        (None, None) => Verdict::Drop,
    }
}
