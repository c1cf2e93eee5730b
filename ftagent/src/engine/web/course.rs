//! Incidents of web floods: opened by findings, corroborated with what packets say, ended when neither requests nor
//! what is dropped of them are left.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ftagent_common::api::{Action, PreviewContext, SourceShare, VectorShare, preview};
use ftagent_common::vocab::AttackFamily;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::settings::WebResponse;
use super::verdict::Finding;
use crate::engine::Engine;
use crate::engine::detect::{self, Excess};
use crate::engine::incident::{Deed, Incident};
use crate::engine::input::Now;
use crate::engine::rules::{Matches, Origin, Point, RuleId, Verdict};
use crate::engine::sample::{MS, SEC};

/// The key of the response to web floods among an incident's deeds.
pub(in crate::engine) const DEED: &str = "web sources";
/// What sets these words apart from those on packets.
const SEEN: &str = "seen by the server: ";
/// No web flood is over sooner, however short the hold-down is.
const LEAST_HOLD_NS: u64 = 5 * SEC;
/// Most sources that were ever accused in one incident.
const MAX_NAMED: usize = 2_000;

/// What logs or connections say of an incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub finding: Finding,
    pub excess: Excess,
    /// Everybody who was accused since the opening.
    pub named: BTreeSet<IpNet>,
    /// When there was too much of it last, arriving or being dropped.
    pub last_ns: u64,
    /// Packets that the response's rules met so far.
    #[serde(default)]
    pub hits: u64,
}

impl Engine {
    /// What requests or connections of `target` are now: an excess with a finding, or one that is none.
    pub(super) fn on_finding(&mut self, target: IpAddr, excess: Excess, finding: Option<Finding>, now: Now) {
        let net = IpNet::from(target);
        let is_same =
            |i: &&Incident| i.is_active() && i.web.as_ref().is_some_and(|w| w.excess.quantity == excess.quantity);
        let known = self.incidents.values().filter(|i| i.target == net).find(is_same).map(|i| i.uuid);
        let Some(finding) = finding else {
            if let Some(web) = known.and_then(|uuid| self.incidents.get_mut(&uuid)?.web.as_mut())
                && excess.ratio >= detect::CALM
            {
                web.last_ns = now.mono_ns;
            }
            return;
        };
        // What packets call a flood of requests, or cannot name, is the same attack.
        let flood = self.incidents.values().find(|i| {
            i.is_active() && i.target == net && i.excess.quantity.is_of_packets() && i.family == AttackFamily::HttpFlood
        });
        let Some(uuid) = known.or(flood.map(|i| i.uuid)).or_else(|| self.open_web(net, excess, now)) else { return };
        let pps = |ip: &IpAddr, rps: f64| match self.heavy.get(ip) {
            Some((_, rate)) if *rate > rps => *rate as u64,
            // Every request is at least one packet.
            _ => rps as u64,
        };
        let top: Vec<SourceShare> = finding
            .top
            .iter()
            .map(|(ip, rps, share)| SourceShare { ip: *ip, pps: pps(ip, *rps), share: *share })
            .collect();
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        let before = incident.web.take();
        let mut named = before.as_ref().map(|w| w.named.clone()).unwrap_or_default();
        let room = MAX_NAMED.saturating_sub(named.len());
        named.extend(finding.accused.iter().take(room).copied());
        let told = before.as_ref().map(|w| (w.finding.subtype.as_str(), w.finding.confidence));
        let grown = told.is_none_or(|(subtype, c)| subtype != finding.subtype || (c - finding.confidence).abs() >= 0.2);
        // Once something was seen it stays seen: what is dropped shows no signs any more.
        let best = match before.as_ref().map(|w| &w.finding).filter(|f| f.confidence > finding.confidence) {
            Some(better) => Finding { accused: finding.accused, spared: finding.spared, ..better.clone() },
            None => finding,
        };
        let hits = before.map_or(0, |w| w.hits);
        if grown {
            let text = format!("classified as http_flood/{}, confidence {:.2}", best.subtype, best.confidence);
            incident.note(if incident.reported_ns.is_none() { "note" } else { "updated" }, text, now);
        }
        if !incident.excess.quantity.is_of_packets() {
            incident.raise(excess.ratio, 0, 0);
        }
        incident.source_count = incident.source_count.max(best.sources);
        incident.top_sources = top;
        incident.web = Some(Evidence { finding: best, excess, named, last_ns: now.mono_ns, hits });
        incident.corroborate();
        self.respond_to_web(uuid, now);
        let certain = self.incidents.get(&uuid).is_some_and(|i| i.confidence >= self.effective.response.min_confidence);
        if certain {
            self.fire(uuid, now);
        }
    }

    fn open_web(&mut self, target: IpNet, excess: Excess, now: Now) -> Option<Uuid> {
        if !self.has_room() {
            return None;
        }
        let onset_ns = now.mono_ns.saturating_sub(u64::from(self.effective.web.confirm_ms) * MS);
        let known = self.reopen(target, &excess, onset_ns, now);
        let is_back = known.is_some();
        let mut incident = known.unwrap_or_else(|| {
            let hold_down_ms = self.hold_down_of(target, now);
            Incident::open(target, false, excess, onset_ns, hold_down_ms, now)
        });
        incident.family = AttackFamily::HttpFlood;
        incident.vectors = vec![VectorShare { family: AttackFamily::HttpFlood, share: 1.0 }];
        let uuid = incident.uuid;
        self.incidents.insert(uuid, incident);
        self.state_changed = true;
        self.update_rates(uuid);
        if is_back {
            self.report_return(uuid, now);
        }
        Some(uuid)
    }

    /// Blocks or limits who is accused, if the agent may act by itself.
    fn respond_to_web(&mut self, uuid: Uuid, now: Now) {
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        let Some(web) = &incident.web else { return };
        let (response, settings) = (&self.effective.response, &self.effective.web);
        let most = response.max_sources as usize;
        let sources: Vec<IpNet> = web.finding.accused.iter().take(most).copied().collect();
        let spared: Vec<(String, String)> =
            web.finding.spared.iter().map(|(net, why)| (format!("{net} is left alone: "), why.clone())).collect();
        for (who, why) in spared {
            // Once, since the numbers in it change every second.
            if !incident.told.iter().any(|text| text.starts_with(&who)) {
                incident.refuse(None, who + &why, now);
            }
        }
        if !response.automatic || incident.confidence < response.min_confidence {
            return;
        }
        let ttl_secs = response.ttl_secs;
        let (action, verdict) = match settings.response {
            WebResponse::Report => return,
            WebResponse::Block => (Action::XdpDropSource { sources: sources.clone(), ttl_secs }, Verdict::Drop),
            WebResponse::Limit => {
                let (pps, burst) = (settings.limit_pps, settings.limit_pps.max(1));
                let action = Action::XdpRateLimitSource {
                    sources: sources.clone(),
                    pps: Some(pps),
                    bps: None,
                    burst: Some(burst),
                    ttl_secs,
                };
                (action, Verdict::LimitPps { pps, burst })
            }
        };
        if sources.is_empty() {
            return;
        }
        let context = PreviewContext::of(incident.target);
        let shown = preview(&action, &context);
        let deed = Deed::new(DEED.to_owned(), 0, action, shown.do_, shown.undo);
        let rules = sources.into_iter().map(|s| (Matches::source(s), verdict, Point::Datapath)).collect();
        self.install(uuid, deed, rules, &Origin::Response { incident: uuid }, ttl_secs, now);
    }

    /// Rules whose hits tell whether a web flood still arrives, for [`super::super::Input::Hits`].
    pub fn rules_of_web_floods(&self) -> Vec<RuleId> {
        let web = self.incidents.values().filter(|i| i.is_active() && i.web.is_some());
        web.flat_map(|i| &i.deeds).filter(|d| d.key == DEED && d.stands()).flat_map(|d| &d.rules).copied().collect()
    }

    /// What the kernel counted for [`Self::rules_of_web_floods`]: packets since each was made.
    pub(in crate::engine) fn on_hits(&mut self, hits: &[(RuleId, u64)], now: Now) {
        for incident in self.incidents.values_mut().filter(|i| i.is_active()) {
            let deeds = incident.deeds.iter().filter(|d| d.key == DEED && d.stands());
            let rules: BTreeSet<RuleId> = deeds.flat_map(|d| &d.rules).copied().collect();
            let Some(web) = &mut incident.web else { continue };
            let sum: u64 = hits.iter().filter(|(id, _)| rules.contains(id)).map(|(_, n)| n).sum();
            // A stray packet now and then of one of many sources keeps nothing alive.
            if sum > web.hits + rules.len() as u64 / 100 {
                web.last_ns = now.mono_ns;
            }
            web.hits = sum;
        }
    }

    /// Whether a web flood stayed away for the hold-down; remembers since when it is away.
    pub(in crate::engine) fn is_web_over(&mut self, uuid: Uuid, now: Now) -> bool {
        let Some(incident) = self.incidents.get_mut(&uuid) else { return false };
        let last_ns = incident.web.as_ref().map_or(incident.opened_ns, |w| w.last_ns);
        let hold_ns = u64::from(incident.hold_down_ms) * MS;
        // Sites are judged once a second, and connections and hits are not looked at more often.
        let since_ns = last_ns + LEAST_HOLD_NS.saturating_sub(hold_ns);
        incident.calm_since = (now.mono_ns > since_ns).then_some(since_ns);
        now.mono_ns.saturating_sub(since_ns) >= hold_ns
    }

    /// An incident that packets opened turns out to be the flood that logs or connections opened one for.
    pub(in crate::engine) fn absorb_web(&mut self, uuid: Uuid, now: Now) {
        let Some(incident) = self.incidents.get(&uuid) else { return };
        if incident.family != AttackFamily::HttpFlood
            || !incident.excess.quantity.is_of_packets()
            || incident.web.is_some()
        {
            return;
        }
        let target = incident.target;
        let twin = self
            .incidents
            .values_mut()
            .find(|i| i.is_active() && i.target == target && !i.excess.quantity.is_of_packets());
        let Some(twin) = twin else { return };
        let (from, web) = (twin.uuid, twin.web.take());
        let (deeds, past) = std::mem::take(&mut twin.deeds).into_iter().partition::<Vec<_>, _>(Deed::stands);
        twin.deeds = past;
        twin.note("note", format!("merged into incident {uuid}: its packets are too many as well"), now);
        for rule in self.rules.values_mut().filter(|r| r.origin.incident() == Some(from)) {
            if let Origin::Response { incident } | Origin::FirewallRule { incident, .. } = &mut rule.origin {
                *incident = uuid;
            }
        }
        self.hand_over_tasks(from, uuid);
        self.resolve(from, ftagent_common::vocab::IncidentStatus::Resolved, now);
        // Not an end: what goes on is not held down as if it had come back.
        self.ended.remove(&target);
        self.rules_changed = true;
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        incident.web = web;
        deeds.into_iter().for_each(|deed| incident.add_deed(deed));
        incident.note("note", format!("takes over incident {from}"), now);
        incident.corroborate();
    }
}

impl Incident {
    /// Lets what logs or connections say count, beside or instead of what packets say.
    pub(in crate::engine) fn corroborate(&mut self) {
        let Some(web) = &self.web else { return };
        if self.family != AttackFamily::HttpFlood {
            return;
        }
        if web.finding.confidence >= self.confidence || !self.excess.quantity.is_of_packets() {
            self.confidence = web.finding.confidence;
            self.subtype = Some(web.finding.subtype.clone());
        }
        let words = web.finding.reasons.iter().map(|why| format!("{SEEN}{why}"));
        if self.excess.quantity.is_of_packets() {
            self.explanation.retain(|text| !text.starts_with(SEEN));
            self.explanation.extend(words);
        } else {
            self.explanation = std::iter::once(self.excess_text()).chain(words).collect();
        }
        self.explanation.truncate(super::super::incident::MAX_EXPLANATION);
    }
}
