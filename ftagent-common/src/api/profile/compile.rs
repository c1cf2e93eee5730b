//! From neutral words to a suite's: what is the same in all of them.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    CustomRule, LimitBy, MAX_PROFILE_RULES, ProfileMatch, ProfileRule, ProfileVerdict, Suite, TrackedState,
    TrafficPath, custom, firewalld, iptables, nftables, ufw,
};
use crate::api::Protocol;

/// A rule that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct ProfileError {
    /// Such as `rules[2].cmd`.
    pub field: String,
    pub message: String,
}

impl ProfileError {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// What must never be cut off, whatever a profile says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Kept {
    /// TCP ports by which the node is managed.
    pub ports: Vec<u16>,
    /// Such as the control plane and the machines of operators.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
}

impl Default for Kept {
    fn default() -> Self {
        Self { ports: vec![22], sources: Vec::new() }
    }
}

/// One rule as the suite has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompiledRule {
    pub title: String,
    pub reason: String,
    /// Rules of the suite, IPv4 and IPv6.
    pub lines: Vec<String>,
}

/// One thing that the node does; steps are undone from the last to the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
// Runbooks have steps too, and the document knows a name once.
#[cfg_attr(feature = "openapi", schema(as = ProfileStep))]
pub struct Step {
    /// The argument vector; empty where the step is a change of a file alone.
    pub command: Vec<String>,
    /// What the command reads, or the block that the file gets.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub input: String,
    /// The file that gets the block, in its table `filter`: before the line `COMMIT` that ends it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// Empty: the file loses the block again, or there is nothing to undo.
    pub undo: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub undo_input: String,
}

/// A profile in a suite's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Compiled {
    pub suite: Suite,
    pub rules: Vec<CompiledRule>,
    pub steps: Vec<Step>,
    pub warnings: Vec<String>,
}

/// The most ports that one rule of iptables takes.
const PORTS_OF_A_RULE: usize = 15;

/// Our chains of iptables, with what they hang below; the second is for what is forwarded.
pub const CHAINS: [(TrafficPath, &str, &str); 2] =
    [(TrafficPath::ToNode, "INPUT", "FTAGENT-PROFILE"), (TrafficPath::Through, "FORWARD", "FTAGENT-FORWARD")];

/// Compiles `rules` and, behind them, `own` for a suite; what `kept` names comes before both.
///
/// # Errors
/// A rule that no suite can express, or one of the operator's own that is not just one rule.
pub fn compile(suite: Suite, rules: &[ProfileRule], own: &[CustomRule], kept: &Kept) -> Result<Compiled, ProfileError> {
    for (count, field) in [(rules.len(), "profile"), (own.len(), "rules")] {
        if count > MAX_PROFILE_RULES {
            return Err(ProfileError::new(field, format!("at most {MAX_PROFILE_RULES} rules, got {count}")));
        }
    }
    let mut all = keeping(kept, rules.iter().any(|r| r.path == TrafficPath::Through));
    for (at, rule) in rules.iter().enumerate() {
        check(rule).map_err(|message| ProfileError::new(format!("profile[{at}]"), message))?;
        all.push(rule.clone());
    }
    let own = own.iter().enumerate().map(|(at, rule)| custom::read(suite, at, rule)).collect::<Result<Vec<_>, _>>()?;
    let mut compiled = match suite {
        Suite::Iptables => iptables::compile(&all, &own),
        Suite::Nftables => nftables::compile(&all, &own),
        Suite::Ufw => ufw::compile(&all, &own),
        Suite::Firewalld => firewalld::compile(&all, &own),
    };
    warn(rules, &mut compiled.warnings);
    Ok(compiled)
}

/// What comes first, always: nobody is locked out by what comes behind.
fn keeping(kept: &Kept, forwards: bool) -> Vec<ProfileRule> {
    let rule = |title: &str, reason: &str, matches| ProfileRule {
        title: title.to_owned(),
        reason: reason.to_owned(),
        path: TrafficPath::ToNode,
        matches,
        verdict: ProfileVerdict::Accept {},
    };
    let mut rules = Vec::new();
    let ports: BTreeSet<u16> = kept.ports.iter().copied().collect();
    let ports: Vec<_> = ports.into_iter().map(|p| (p, p)).collect();
    for ports in ports.chunks(PORTS_OF_A_RULE) {
        let ports = ports.to_vec();
        let matches = ProfileMatch { protocol: Some(Protocol::Tcp), ports, ..ProfileMatch::default() };
        rules.push(rule("Management", "Whoever applies a profile stays connected.", matches));
    }
    // A set of nftables takes no prefix within another.
    let sources = IpNet::aggregate(&kept.sources);
    if !sources.is_empty() {
        let matches = ProfileMatch { sources, ..ProfileMatch::default() };
        rules.push(rule("Trusted sources", "Operators and the control plane are never cut off.", matches.clone()));
        if forwards {
            rules.push(ProfileRule {
                path: TrafficPath::Through,
                ..rule("Trusted sources", "What they send through the node neither.", matches)
            });
        }
    }
    rules
}

fn check(rule: &ProfileRule) -> Result<(), String> {
    let ProfileMatch { protocol, ports, source_ports, sources, flags, .. } = &rule.matches;
    let has_ports = !ports.is_empty() || !source_ports.is_empty();
    if has_ports && !matches!(protocol, Some(Protocol::Tcp | Protocol::Udp)) {
        return Err("ports need the protocol tcp or udp".to_owned());
    }
    if flags.is_some() && *protocol != Some(Protocol::Tcp) {
        return Err("flags need the protocol tcp".to_owned());
    }
    for list in [ports, source_ports] {
        if list.iter().any(|(from, to)| *from == 0 || from > to) {
            return Err("a range of ports must rise from 1 or more".to_owned());
        }
        // What one rule of iptables takes: a range counts twice.
        if list.iter().map(|(from, to)| if from == to { 1 } else { 2 }).sum::<usize>() > PORTS_OF_A_RULE {
            return Err("at most 15 ports, a range counts as two".to_owned());
        }
    }
    if sources.len() > 64 || sources.iter().any(|s| s.prefix_len() == 0) {
        return Err("at most 64 sources, none of them everybody".to_owned());
    }
    match rule.verdict {
        ProfileVerdict::Limit { pps, burst, .. }
            if !(1..=1_000_000).contains(&pps) || !(1..=1_000_000).contains(&burst) =>
        {
            Err("pps and burst must be 1 to 1000000".to_owned())
        }
        ProfileVerdict::Connections { most } if *protocol != Some(Protocol::Tcp) || most == 0 || most > 100_000 => {
            Err("connections are of tcp, 1 to 100000".to_owned())
        }
        _ => Ok(()),
    }
}

fn warn(rules: &[ProfileRule], warnings: &mut Vec<String>) {
    warnings.push(
        "established connections, loopback, neighbour discovery, and what is kept for management come first; other ports \
         that the node's programs listen on are known only to the node"
            .to_owned(),
    );
    for rule in rules {
        let m = &rule.matches;
        let whole = m.ports.is_empty() && m.source_ports.is_empty() && m.sources.is_empty() && m.flags.is_none();
        match (rule.verdict, m.state) {
            (ProfileVerdict::Drop {}, Some(TrackedState::New)) if whole => {
                warnings.push(format!("\"{}\" drops everything new that no rule before it accepts", rule.title));
            }
            (ProfileVerdict::Drop {}, None) if whole => {
                warnings.push(format!("\"{}\" drops a whole protocol, wanted traffic included", rule.title));
            }
            (ProfileVerdict::Limit { by: LimitBy::Target, .. }, _) => {
                warnings
                    .push(format!("\"{}\" limits all sources together: wanted traffic shares the loss", rule.title));
            }
            _ => {}
        }
    }
}
