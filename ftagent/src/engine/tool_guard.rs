//! From an action of another tool to its steps, past the guard.
//!
//! Sources that are never blocked are taken out. What concerns everybody is given the prefixes to spare, which the plan
//! of each tool puts before its rule. What would lock the node out all the same is refused.

use std::collections::BTreeSet;

use ftagent_common::api::{Action, AllowEntry, PortProtocol, PreviewContext, Protocol, ToolStep, UfwProtocol, preview};
use ipnet::IpNet;

use super::guard::{Friends, Refusal};
use super::settings::{Guard, Settings};

/// Actions of other tools that may be in force at once, and the steps of all of them together.
pub(super) const MAX_TASKS: usize = 64;
pub(super) const MAX_STEPS: usize = 4_096;
/// Members that all of them together have in sets.
pub(super) const MAX_MEMBERS: usize = 262_144;
/// Sources left out that are told one by one.
pub(super) const MAX_TOLD: usize = 32;
/// New ones in a minute: each is a few runs of a program.
pub(super) const TASKS_PER_MINUTE: u32 = 30;
/// SSH, where no management ports are configured.
const SSH: u16 = 22;

/// Why an action is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ToolRefusal {
    #[error(transparent)]
    Guard(#[from] Refusal),
    #[error("none of its {count} sources may be blocked: {first}")]
    NobodyLeft { count: usize, first: Refusal },
    #[error("{0}")]
    LocksOut(&'static str),
    /// The plan's own words.
    #[error("{0}")]
    Plan(String),
    #[error("{0} actions of other tools are in force: no room for more")]
    Quota(usize),
    #[error("{0} commands of other tools are in force: no room for {1} more")]
    Steps(usize, usize),
    #[error("{0} members are in sets of other tools: no room for {1} more, {MAX_MEMBERS} is the most")]
    Members(usize, usize),
    #[error("more than {TASKS_PER_MINUTE} new actions of other tools in a minute")]
    TooFast,
}

/// What is to be run, and what was asked for and is not.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ToolPlan {
    /// Without the sources that are never blocked.
    pub(super) action: Action,
    pub(super) steps: Vec<ToolStep>,
    /// The first of them.
    pub(super) excluded: Vec<Refusal>,
    /// How many more there are.
    pub(super) more_excluded: usize,
}

/// Plans `asked`, whose sources are named, against `target`; `spared` are sources that an operator unblocked.
///
/// # Errors
/// Why nothing of it may be done.
pub(super) fn plan(
    asked: &Action,
    target: IpNet,
    settings: &Settings,
    allow: &[AllowEntry],
    spared: &[IpNet],
) -> Result<ToolPlan, ToolRefusal> {
    if let Some(why) = &settings.guard.unreadable {
        return Err(Refusal::Unreadable(why.clone()).into());
    }
    let mut action = asked.clone();
    let (most, addresses_only) = (asked.max_sources(), matches!(asked, Action::Fail2banBan(_)));
    let (mut excluded, mut more_excluded) = (Vec::new(), 0);
    if let Some(sources) = action.sources_mut() {
        let count = sources.len();
        let nobody = Friends::of(settings, allow);
        let spared: BTreeSet<&IpNet> = spared.iter().collect();
        sources.retain(|source| match nobody.check(source, settings, allow) {
            Ok(()) => {
                let is_address = source.prefix_len() == source.max_prefix_len();
                !spared.contains(source) && (is_address || !addresses_only)
            }
            Err(_) if excluded.len() >= MAX_TOLD => {
                more_excluded += 1;
                false
            }
            Err(why) => {
                excluded.push(why);
                false
            }
        });
        sources.truncate(most);
        if let (true, Some(first)) = (sources.is_empty(), excluded.first()) {
            return Err(ToolRefusal::NobodyLeft { count, first: first.clone() });
        }
        if sources.is_empty() {
            return Err(ToolRefusal::Plan("there is no source that it could act on".to_owned()));
        }
    } else if let Some(why) = locks_out(&action, &settings.guard) {
        return Err(ToolRefusal::LocksOut(why));
    }
    action.validate().map_err(|why| ToolRefusal::Plan(why.to_string()))?;
    let context = PreviewContext {
        target,
        sources: Vec::new(),
        spoofed: false,
        spared: friends(&settings.guard, allow),
        node: settings.node.clone(),
    };
    let shown = preview(&action, &context);
    if let Some(why) = shown.refused {
        return Err(ToolRefusal::Plan(why));
    }
    Ok(ToolPlan { steps: shown.steps(), action, excluded, more_excluded })
}

/// Whom nothing automated blocks, without those that others of them contain.
fn friends(guard: &Guard, allow: &[AllowEntry]) -> Vec<IpNet> {
    let sessions = guard.sessions.iter().map(|session| IpNet::from(session.peer));
    let all = allow.iter().map(|e| e.prefix).chain(guard.infrastructure.iter().map(|(prefix, _)| *prefix));
    let all = all.chain(sessions);
    IpNet::aggregate(&all.map(|prefix| prefix.trunc()).collect())
}

/// Why an action on everybody would cut off those who are not to be named beforehand.
fn locks_out(action: &Action, guard: &Guard) -> Option<&'static str> {
    let ssh = [SSH];
    let ports = if guard.management_ports.is_empty() { &ssh[..] } else { &guard.management_ports };
    let all_tcp = match action {
        Action::IptablesDropProtocol(p) => p.protocol == Protocol::Tcp,
        Action::IptablesRejectProtocol(p) => p.protocol == Protocol::Tcp,
        Action::UfwDenyProtocol(p) => p.protocol == UfwProtocol::Tcp,
        Action::IptablesDropPort(p) => p.protocol == PortProtocol::Tcp && ports.contains(&p.port),
        _ => false,
    };
    let all_icmpv6 = match action {
        Action::IptablesDropProtocol(p) => p.protocol == Protocol::Icmpv6,
        Action::IptablesRejectProtocol(p) => p.protocol == Protocol::Icmpv6,
        _ => false,
    };
    if all_icmpv6 {
        return Some(
            "without neighbour discovery the node loses IPv6, and with it everybody who is never to be blocked",
        );
    }
    if all_tcp && !guard.has_management() {
        return Some(
            "it would cut operators off, and no management sources are configured that could be spared: name them under \
             management.sources",
        );
    }
    None
}

impl Guard {
    /// Whether it is known from where people manage the node.
    fn has_management(&self) -> bool {
        self.infrastructure.iter().any(|(_, name)| name == MANAGEMENT)
    }
}

/// The name of management sources among [`Guard::infrastructure`].
pub const MANAGEMENT: &str = "management source";

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn settings(management: bool) -> Settings {
        let mut infrastructure = vec![(net("203.0.113.1/32"), "default gateway".to_owned())];
        if management {
            infrastructure.push((net("192.0.2.0/24"), MANAGEMENT.to_owned()));
        }
        let own = vec![net("203.0.113.5/32")];
        Settings { guard: Guard { own, infrastructure, ..Guard::default() }, ..Settings::default() }
    }

    fn planned(json: &str, settings: &Settings) -> Result<ToolPlan, String> {
        let action: Action = serde_json::from_str(json).expect(json);
        let allow = [AllowEntry { prefix: net("198.51.100.0/28"), label: "office".to_owned() }];
        let spared = [net("198.51.100.99/32")];
        plan(&action, net("203.0.113.5/32"), settings, &allow, &spared).map_err(|e| e.to_string())
    }

    #[test]
    fn sources_that_are_never_blocked_are_taken_out_of_every_action_on_sources() {
        let sources = r#""sources":["198.51.100.7/32","198.51.100.77/32","203.0.113.1/32","203.0.113.5/32",
                         "198.51.100.99/32","192.0.2.9/32"]"#;
        let friends = r#""sources":["198.51.100.7/32","203.0.113.1/32"]"#;
        for (kind, more) in [
            ("iptables_drop_source", ""),
            ("ipset_ban", r#""set":"a","#),
            ("ufw_deny_source", ""),
            ("firewalld_drop_source", ""),
            ("null_route_source", ""),
            ("fail2ban_ban", r#""jail":"a","#),
            ("cloudflare_block", r#""zone":"0123456789abcdef0123456789abcdef","#),
        ] {
            let json = format!(r#"{{"type":"{kind}",{more}{sources}}}"#);
            let plan = planned(&json, &settings(true)).expect(kind);
            assert_eq!(plan.action.sources(), Some(&[net("198.51.100.77/32")][..]), "{kind}");
            assert_eq!(plan.excluded.len(), 4, "{kind}: {:?}", plan.excluded);
            let mut words: Vec<String> = plan.steps.iter().flat_map(|s| s.run.iter().chain(&s.undo)).cloned().collect();
            let members = plan.steps.iter().filter_map(|s| s.members.as_ref());
            let read: String = members.map(|m| m.to_add(&m.prefixes) + &m.to_delete(&m.prefixes)).collect();
            words.extend(read.split_whitespace().map(str::to_owned));
            let named = |ip: &str| {
                words.iter().any(|w| w == ip || w == &format!("{ip}/32") || w.contains(&format!("\"{ip}\"")))
            };
            assert!(named("198.51.100.77"), "{kind}: {words:?}");
            for friend in ["198.51.100.7", "203.0.113.1", "203.0.113.5", "198.51.100.99", "192.0.2.9"] {
                assert!(!named(friend), "{kind} names {friend}: {words:?}");
            }
            let why = planned(&format!(r#"{{"type":"{kind}",{more}{friends}}}"#), &settings(true)).expect_err(kind);
            assert!(why.contains("none of its 2 sources") && why.contains("office"), "{kind}: {why}");
        }
    }

    #[test]
    fn what_would_lock_people_out_is_refused() {
        // (action, with management sources, part of the refusal)
        let table = [
            (r#"{"type":"iptables_drop_protocol","protocol":"tcp"}"#, false, Some("management.sources")),
            (r#"{"type":"iptables_drop_protocol","protocol":"tcp"}"#, true, None),
            (r#"{"type":"iptables_reject_protocol","protocol":"tcp"}"#, false, Some("cut operators off")),
            (r#"{"type":"ufw_deny_protocol","protocol":"tcp"}"#, false, Some("cut operators off")),
            (r#"{"type":"iptables_drop_port","protocol":"tcp","port":22}"#, false, Some("cut operators off")),
            (r#"{"type":"iptables_drop_port","protocol":"tcp","port":22}"#, true, None),
            (r#"{"type":"iptables_drop_port","protocol":"tcp","port":80}"#, false, None),
            (r#"{"type":"iptables_drop_protocol","protocol":"icmpv6"}"#, true, Some("neighbour discovery")),
            (r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#, false, None),
            (r#"{"type":"syn_cookies"}"#, false, None),
            (r#"{"type":"iptables_drop_source","sources":["10.0.0.0/8"]}"#, true, Some("too broad")),
            (r#"{"type":"vultr_block","group_id":"0f9619ff-8b86-4011-b42d-00cf4fc964ff"}"#, true, Some("no source")),
        ];
        for (json, management, expected) in table {
            match (planned(json, &settings(management)), expected) {
                (Ok(plan), None) => assert!(!plan.steps.is_empty(), "{json}"),
                (Err(why), Some(part)) => assert!(why.contains(part), "{json}: {why}"),
                (got, _) => panic!("{json}: {got:?}"),
            }
        }
        let mut unreadable = settings(true);
        unreadable.guard.unreadable = Some("no netlink".to_owned());
        let refused = planned(r#"{"type":"syn_cookies"}"#, &unreadable).expect_err("refused");
        assert!(refused.contains("no netlink"), "{refused}");
    }

    #[test]
    fn actions_on_everybody_spare_the_allowlist_and_what_the_node_depends_on() {
        let plan = planned(r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#, &settings(true)).expect("a plan");
        let returns = |s: &&ToolStep| s.run.last().is_some_and(|w| w == "RETURN");
        let spared: Vec<&str> = plan.steps.iter().filter(returns).map(|s| s.run[6].as_str()).collect();
        assert_eq!(spared, ["lo", "192.0.2.0/24", "198.51.100.0/28", "203.0.113.1/32"]);
    }
}
