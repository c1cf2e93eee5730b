//! What a step asks for in the face of an attack.

use ftagent_common::api::Order;
use ftagent_common::vocab::IncidentStatus;
use ipnet::IpNet;
use uuid::Uuid;

use super::step::NodeCommand;
use super::{Attack, NodeStepConfig, Step, StepOutcome};
use crate::domain::{AllowlistEntry, Duty, NewMitigation, OperatorChange, Problem};

/// Something to be done, or what came of a step that asks for nothing outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Deed {
    Over(StepOutcome),
    /// Seconds.
    Wait(u32),
    Orders {
        node: Uuid,
        orders: Vec<Order>,
        message: String,
    },
    /// Puts a firewall rule in or out of force.
    Rule {
        id: i64,
        enabled: bool,
    },
    /// Leaves a message for a destination.
    Tell {
        duty: Duty,
        destination: i64,
        message: String,
    },
    /// Posts the attack.
    Call {
        url: String,
        timeout_secs: u32,
    },
    /// Diverts through a scrubbing integration.
    Scrub {
        integration: i64,
    },
    Announce(NewMitigation),
    Change(OperatorChange),
    Note(String),
}

impl Deed {
    fn failed(why: impl Into<String>) -> Self {
        Self::Over(StepOutcome::Failed(why.into()))
    }
}

/// What `step` asks for. `incident` is none where the attack is made up: then nothing is done to nodes, incidents and
/// upstream, and the outcome says so; messages are sent, because that is what a test is for.
pub fn plan(step: &Step, attack: &Attack, incident: Option<i64>, allowed: &[AllowlistEntry]) -> Deed {
    let mitigates = match step {
        Step::CloudflareUam { .. } | Step::ScrubbingEnable { .. } | Step::MitigationRule { .. } => true,
        Step::Iptables(config) => {
            matches!(config.command(), Ok(NodeCommand::Block { .. } | NodeCommand::Rule { enabled: true, .. }))
        }
        _ => false,
    };
    if mitigates && attack.status != IncidentStatus::Active {
        return Deed::Over(StepOutcome::Skipped(format!("the incident is {}", attack.status)));
    }
    let deed = asked(step, attack, allowed);
    if incident.is_some() {
        return deed;
    }
    let would = match &deed {
        Deed::Orders { message, .. } => format!("would order the node: {message}"),
        Deed::Rule { id, enabled: true } => format!("would put firewall rule {id} in force"),
        Deed::Rule { id, enabled: false } => format!("would put firewall rule {id} out of force"),
        Deed::Announce(new) => format!("would announce {} by adapter {}", new.target, new.adapter_id),
        Deed::Change(_) => "would change the incident".to_owned(),
        Deed::Note(_) => "would write a note on the incident".to_owned(),
        _ => return deed,
    };
    Deed::Over(StepOutcome::Simulated(would))
}

fn asked(step: &Step, attack: &Attack, allowed: &[AllowlistEntry]) -> Deed {
    match step {
        Step::Wait { seconds } => Deed::Wait(*seconds),
        Step::Log { message } => Deed::Over(StepOutcome::Succeeded(message.clone())),
        Step::Condition(condition) => Deed::Over(match condition.unmet(attack) {
            None => StepOutcome::Succeeded("it holds".to_owned()),
            Some(why) => StepOutcome::NotMet(why),
        }),
        Step::Iptables(config) => on_node(config, attack, allowed),
        Step::NotifyChannel { channel_id, message } => {
            Deed::Tell { duty: Duty::Channel, destination: *channel_id, message: message.clone() }
        }
        Step::Webhook { integration_id: Some(id), .. } => {
            Deed::Tell { duty: Duty::Integration, destination: *id, message: String::new() }
        }
        Step::Webhook { url: Some(url), timeout_secs, .. } => {
            Deed::Call { url: url.clone(), timeout_secs: timeout_secs.unwrap_or(10) }
        }
        Step::Webhook { .. } => Deed::failed("it has neither url nor integration"),
        Step::CloudflareUam { .. } => Deed::Over(StepOutcome::NotConnected(
            "not connected: this version cannot turn Under Attack Mode on, so nothing was called".to_owned(),
        )),
        Step::ScrubbingEnable { integration_id } => Deed::Scrub { integration: *integration_id },
        Step::MitigationRule { adapter_id, intent_type, ttl } => {
            let (target, reason) = (attack.target.to_string(), format!("runbook: {}", attack.family));
            let new = NewMitigation::parse(&target, *intent_type, *adapter_id, ttl.unwrap_or(3_600), reason);
            new.map_or_else(|why: Problem| Deed::failed(why.to_string()), Deed::Announce)
        }
        Step::UpdateIncident { status, severity } => {
            Deed::Change(OperatorChange { status: *status, severity: *severity })
        }
        Step::AddNote { text } => Deed::Note(text.clone()),
    }
}

fn on_node(config: &NodeStepConfig, attack: &Attack, allowed: &[AllowlistEntry]) -> Deed {
    let command = match config.command() {
        Ok(command) => command,
        Err((field, why)) => return Deed::failed(format!("{field} {why}")),
    };
    let (block, most) = match command {
        NodeCommand::Rule { id, enabled } => return Deed::Rule { id, enabled },
        NodeCommand::Block { only: Some(family), .. } if family != attack.family => {
            return Deed::Over(StepOutcome::Skipped(format!("the family is {}, not {family}", attack.family)));
        }
        NodeCommand::Block { ttl_secs, most, .. } => (Some(ttl_secs), most),
        NodeCommand::Unblock { most } => (None, most),
    };
    if block.is_some() && attack.spoofed {
        return Deed::failed("the sources are judged forged: to block them would hit others");
    }
    let Some(node) = attack.node else {
        return Deed::Over(StepOutcome::Simulated("there is no node: it would block or unblock there".to_owned()));
    };
    let mut orders = Vec::new();
    let mut spared = 0;
    for source in attack.sources.iter().take(most).map(|source| IpNet::from(*source)) {
        match block {
            Some(_) if allowed.iter().any(|entry| entry.overlaps(&source)) => spared += 1,
            Some(ttl_secs) => orders.push(Order::Block { source, ttl_secs }),
            None => orders.push(Order::Unblock { source }),
        }
    }
    if orders.is_empty() {
        return Deed::failed(format!("no source is known that may be blocked: {spared} are allowlisted"));
    }
    let what = if block.is_some() { "blocks" } else { "lifts the blocks" };
    let message = format!("{what} of {} sources, {spared} allowlisted ones left out", orders.len());
    Deed::Orders { node, orders, message }
}
