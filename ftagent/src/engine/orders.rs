//! What people order: operators at the node and the control plane. Each order is answered.

use std::collections::VecDeque;

use ftagent_common::api::{AckStatus, Action, AllowEntry, CommandAck, NodeCommand, Order, PreviewContext, preview};
use ftagent_common::vocab::{IncidentStatus, Mode};
use ipnet::IpNet;
use uuid::Uuid;

use super::Engine;
use super::firewall::{expand, rate};
use super::guard::{self, Friends};
use super::incident::{Deed, ORDER};
use super::input::{Command, Now, OperatorOrder, OrderOutcome};
use super::rules::{Matches, Origin, Point, Rule, Verdict};
use super::sample::SEC;
use super::task::Why;
use super::words;

/// Commands of the control plane that are remembered, so that a repeated one is acknowledged and not repeated.
const REMEMBERED: usize = 256;

/// Keeps an answer for when the command is repeated.
pub(super) fn remember(answered: &mut VecDeque<(Uuid, CommandAck)>, ack: CommandAck) {
    if answered.len() >= REMEMBERED {
        answered.pop_front();
    }
    answered.push_back((ack.command_id, ack));
}

impl Engine {
    /// Carries out an operator's order.
    pub(super) fn on_operator(&mut self, order: OperatorOrder, now: Now) {
        let done = match order {
            OperatorOrder::Block { source, ttl_secs, pps, bps } => {
                let verdict = rate(pps, bps, None);
                self.block(source.trunc(), ttl_secs, verdict, Origin::Operator, now)
            }
            OperatorOrder::Unblock { source } => self.unblock(source.trunc(), now),
            OperatorOrder::AddRule { target, matches, ttl_secs, verdict, evaluate } => {
                let matches = Matches { target: None, ..matches };
                if verdict == Verdict::Drop && matches == Matches::default() && !evaluate {
                    Err(format!("this drops everything for {target}, what is wanted too: name what to match, or limit"))
                } else {
                    let matches = Matches { target: Some(target.trunc()), ..matches };
                    let what = (verdict, evaluate, Point::Datapath);
                    Ok(self.order_rule(matches, ttl_secs, what, Origin::Operator, now))
                }
            }
            OperatorOrder::DeleteRule { target, matches } => self.delete_rule(target.trunc(), &matches, now),
            OperatorOrder::Allow { prefix, label } => self.allow_prefix(prefix.trunc(), label, now),
            OperatorOrder::Disallow { prefix } => self.disallow(prefix.trunc()),
            OperatorOrder::Resolve { incident, false_positive } => self.resolve_by_hand(incident, false_positive, now),
        };
        let outcome = match done {
            Ok(detail) => OrderOutcome::Done { detail },
            Err(why) => OrderOutcome::Refused { why },
        };
        self.commands.push_back(Command::Answer(outcome));
    }

    /// Carries out a command of the control plane and acknowledges it; a repeated one is only acknowledged.
    pub(super) fn on_command(&mut self, command: NodeCommand, now: Now) {
        let id = command.command_id;
        let known = self.answered.iter().find(|(known, _)| *known == id).map(|(_, ack)| ack.clone());
        if known.is_none() && self.tasks.contains_key(&id) {
            // It is being carried out, and answered when that is done.
            return;
        }
        let ack = known.or_else(|| {
            let done = match command.order {
                Order::Block { source, ttl_secs } if !(1..=86_400).contains(&ttl_secs) => {
                    Err(format!("block of {source}: ttl_secs must be 1 to 86400, got {ttl_secs}"))
                }
                Order::Block { source, ttl_secs } => {
                    let origin = Origin::ControlPlane { command: id };
                    self.block(source.trunc(), Some(ttl_secs), Verdict::Drop, origin, now)
                }
                Order::Unblock { source } => self.unblock(source.trunc(), now),
                Order::Apply { action, incident, undo_at_resolve, ttl_secs } => {
                    match self.apply(id, &action, incident, (undo_at_resolve, ttl_secs), now).transpose() {
                        Some(done) => done,
                        None => return None,
                    }
                }
                // The daemon gives them to the thread of the profiles; engines of exporters have no firewall.
                Order::ApplyProfile { .. } | Order::ConfirmProfile { .. } | Order::RollBackProfile { .. } => {
                    Err("unsupported: nothing here applies attack profiles, nothing was done".to_owned())
                }
                Order::ResolveIncident { incident, false_positive } => {
                    self.resolve_by_hand(incident, false_positive, now)
                }
            };
            let ack = match done {
                Ok(output) => CommandAck { command_id: id, status: AckStatus::Applied, error: String::new(), output },
                Err(error) => CommandAck { command_id: id, status: AckStatus::Failed, error, output: String::new() },
            };
            remember(&mut self.answered, ack.clone());
            Some(ack)
        });
        self.state_changed = true;
        self.commands.extend(ack.map(Command::Ack));
    }

    /// Carries out an action that an operator approved. None: another tool is asked, and the answer waits for it.
    fn apply(
        &mut self,
        command: Uuid,
        action: &Action,
        incident: Uuid,
        (undo_at_resolve, ttl_secs): (bool, u32),
        now: Now,
    ) -> Result<Option<String>, String> {
        if !(1..=86_400).contains(&ttl_secs) {
            return Err(format!("ttl_secs must be 1 to 86400, got {ttl_secs}"));
        }
        action.validate().map_err(|why| why.to_string())?;
        if action.sources().is_some_and(<[_]>::is_empty) {
            return Err("the order names no sources: what was shown is what is run".to_owned());
        }
        let target = match self.incidents.get(&incident).filter(|i| i.is_active()) {
            Some(open) => open.target,
            None if undo_at_resolve => return Err(format!("incident {incident} is over or unknown: nothing was done")),
            None => action.target().unwrap_or_default(),
        };
        if self.effective.mode != Mode::Enforce {
            return Err(format!("in mode {} nothing is done", self.effective.mode));
        }
        if !action.is_native() {
            let why = Why::Order { command, undo_at_resolve, answered: false };
            let key = format!("{ORDER}{command}");
            let begun = self.begin((incident, target), key, why, action, ttl_secs, now);
            return begun.map(|()| None).map_err(|why| why.to_string());
        }
        let context = PreviewContext::of(target);
        let rules = expand(action, &context);
        let friends = Friends::of(&self.effective, &self.allow);
        for (matches, verdict, _) in &rules {
            guard::check(matches, *verdict, &self.effective, &self.allow).map_err(|why| why.to_string())?;
            for source in &matches.sources {
                friends.check(source, &self.effective, &self.allow).map_err(|why| why.to_string())?;
            }
            guard::check_elements(self.rules.values(), matches).map_err(|why| why.to_string())?;
        }
        let count: usize = rules.iter().map(|(matches, ..)| matches.all_sources().count().max(1)).sum();
        if undo_at_resolve {
            let shown = preview(action, &context);
            let deed = Deed::new(format!("{ORDER}{command}"), 0, action.clone(), shown.do_, shown.undo);
            let origin = Origin::Response { incident };
            let (made, refusal) = self.install(incident, deed, rules, &origin, ttl_secs, now);
            return match refusal {
                _ if made >= count => Ok(Some(format!("{count} rule(s) for {ttl_secs} s"))),
                Some(why) if made == 0 => Err(format!("none of {count} rule(s) was made: {why}")),
                None if made == 0 => Err(format!("none of {count} rule(s) was made")),
                why => Ok(Some(format!(
                    "{made} of {count} rule(s) for {ttl_secs} s, not the others: {}",
                    why.unwrap_or_default()
                ))),
            };
        }
        for (matches, verdict, point) in rules {
            self.order_rule(matches, Some(ttl_secs), (verdict, false, point), Origin::ControlPlane { command }, now);
        }
        Ok(Some(format!("{count} rule(s) for {ttl_secs} s")))
    }

    fn block(
        &mut self,
        source: IpNet,
        ttl_secs: Option<u32>,
        verdict: Verdict,
        origin: Origin,
        now: Now,
    ) -> Result<String, String> {
        guard::check_operator(&source, &self.effective, &self.allow).map_err(|why| why.to_string())?;
        let what = (verdict, false, Point::Datapath);
        let end = self.order_rule(Matches::source(source), ttl_secs, what, origin, now);
        let what = if verdict == Verdict::Drop { "blocked" } else { "limited" };
        Ok(format!("{source} is {what}: {end}"))
    }

    /// Puts a rule of people in force and says until when.
    fn order_rule(
        &mut self,
        matches: Matches,
        ttl_secs: Option<u32>,
        (verdict, evaluate, point): (Verdict, bool, Point),
        origin: Origin,
        now: Now,
    ) -> String {
        let expires_at_ns = ttl_secs.map(|secs| now.mono_ns + u64::from(secs.max(1)) * SEC);
        let end = ttl_secs.map_or_else(|| "until it is lifted".to_owned(), |secs| format!("for {secs} s"));
        let same = |r: &&mut Rule| {
            let is_same = r.matches == matches && r.verdict == verdict && r.evaluate == evaluate && r.point == point;
            !r.origin.is_automatic() && is_same
        };
        let id = match self.rules.values_mut().find(same) {
            // Twice is once: only the end moves.
            Some(known) => {
                known.expires_at_ns = expires_at_ns;
                known.id
            }
            None => {
                let id = self.next_rule_id();
                self.rules.insert(id, Rule { id, matches, verdict, point, origin, expires_at_ns, evaluate });
                id
            }
        };
        self.rules_changed = true;
        format!("rule {} {end}", id.0)
    }

    fn delete_rule(&mut self, target: IpNet, matches: &Matches, now: Now) -> Result<String, String> {
        let wanted = Matches { target: Some(target), ..matches.clone() };
        let ids: Vec<_> = self.rules.values().filter(|r| r.matches == wanted).map(|r| r.id).collect();
        if ids.is_empty() {
            return Err(format!(
                "{target} has no rule {:?}; `ftagent rules` lists those it has",
                words::words(matches)
            ));
        }
        for id in &ids {
            let Some(rule) = self.rules.remove(id) else { continue };
            if let Some(incident) = rule.origin.incident().and_then(|i| self.incidents.get_mut(&i)) {
                incident.note("undone", format!("rule {} was deleted by an operator", id.0), now);
            }
        }
        self.rules_changed = true;
        Ok(format!("{} rule(s) of {target} deleted", ids.len()))
    }

    fn unblock(&mut self, source: IpNet, now: Now) -> Result<String, String> {
        let is_named = |r: &&Rule| r.matches.is_sources_only() && r.matches.names_source(&source);
        let ids: Vec<_> = self.rules.values().filter(is_named).map(|r| r.id).collect();
        let lifted = self.lift_from_tasks(source, now);
        if ids.is_empty() && lifted == 0 {
            return Err(format!("nothing blocks or limits exactly {source}"));
        }
        for id in &ids {
            let Some(rule) = self.rules.get(id) else { continue };
            let incident = rule.origin.incident();
            let kept = rule.matches.all_sources().filter(|s| **s != source).copied().collect();
            self.keep_sources(*id, kept);
            if let Some(incident) = incident.and_then(|i| self.incidents.get_mut(&i)) {
                incident.spared.push(source);
                incident.note("undone", format!("{source} was unblocked by an operator"), now);
            }
        }
        self.rules_changed = true;
        let tools = if lifted == 0 { String::new() } else { format!(", and {lifted} action(s) of other tools") };
        Ok(format!("{} rule(s) of {source} lifted{tools}", ids.len()))
    }

    fn allow_prefix(&mut self, prefix: IpNet, label: String, now: Now) -> Result<String, String> {
        match self.operator_allow.iter_mut().find(|e| e.prefix == prefix) {
            Some(known) => known.label = label,
            None => self.operator_allow.push(AllowEntry { prefix, label }),
        }
        self.state_changed = true;
        self.merge_settings(now);
        Ok(format!("{prefix} is allowed"))
    }

    fn disallow(&mut self, prefix: IpNet) -> Result<String, String> {
        let before = self.operator_allow.len();
        self.operator_allow.retain(|e| e.prefix != prefix);
        if self.operator_allow.len() == before {
            let elsewhere = self.allow.iter().any(|e| e.prefix == prefix);
            let hint = if elsewhere { ": the entry is of the configuration or of the control plane" } else { "" };
            return Err(format!("no operator allowed exactly {prefix}{hint}"));
        }
        self.state_changed = true;
        self.merge_allow();
        Ok(format!("{prefix} is no longer allowed"))
    }

    fn resolve_by_hand(&mut self, uuid: Uuid, false_positive: bool, now: Now) -> Result<String, String> {
        let Some(incident) = self.incidents.get_mut(&uuid).filter(|i| i.is_active()) else {
            let hint = if self.forbid_return(uuid) { ": it is over, and what comes now is a new one" } else { "" };
            return Err(format!("no active incident {uuid}{hint}"));
        };
        let status = if false_positive { IncidentStatus::FalsePositive } else { IncidentStatus::Resolved };
        let target = incident.target;
        let words = if false_positive { "declared a false positive" } else { "resolved" };
        incident.note("note", format!("{words} by an operator"), now);
        if false_positive {
            self.accept_as_normal(target, now);
            self.accept_requests(target, now);
        }
        self.resolve(uuid, status, now);
        Ok(format!("incident {uuid} on {target} {words}"))
    }
}
