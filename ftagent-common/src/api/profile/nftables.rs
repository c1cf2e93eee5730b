//! Profiles for nftables: a table of our own, made anew by one transaction.

use ipnet::IpNet;

use super::compile::{Compiled, CompiledRule, Step};
use super::custom::Custom;
use super::iptables::used;
use super::{LimitBy, ProfileRule, ProfileVerdict, Suite, TcpFlags, TrackedState, TrafficPath};
use crate::api::Protocol;

/// Apart from the agent's own table, which is rewritten all the time.
pub const TABLE: &str = "ftagent_profile";

pub(super) fn compile(rules: &[ProfileRule], own: &[Custom]) -> Compiled {
    let mut sets = String::new();
    let mut chains = String::new();
    let mut shown: Vec<CompiledRule> = Vec::new();
    for (path, hook) in [(TrafficPath::ToNode, "input"), (TrafficPath::Through, "forward")] {
        if !used(rules, own, path) {
            continue;
        }
        chains.push_str(&format!("\tchain {hook} {{\n\t\ttype filter hook {hook} priority -5; policy accept;\n"));
        if path == TrafficPath::ToNode {
            chains.push_str("\t\tiifname \"lo\" accept\n");
        }
        chains.push_str("\t\tct state established,related accept\n");
        if path == TrafficPath::ToNode {
            // Router and neighbour discovery: without them there is no IPv6.
            chains.push_str("\t\ticmpv6 type { 133, 134, 135, 136 } accept\n");
        }
        for (at, rule) in rules.iter().enumerate().filter(|(_, r)| r.path == path) {
            let lines = rule_lines(rule, at, &mut sets);
            chains.extend(lines.iter().map(|line| format!("\t\t{line}\n")));
            shown.push(CompiledRule { title: rule.title.clone(), reason: rule.reason.clone(), lines });
        }
        for custom in own.iter().filter(|c| c.path == path) {
            chains.push_str(&format!("\t\t{}\n", custom.line));
            shown.push(custom.shown());
        }
        chains.push_str("\t}\n");
    }
    // Made before it is deleted, so that deleting never fails.
    let text = format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{sets}{chains}}}\n");
    let command = vec!["nft".to_owned(), "-f".to_owned(), "-".to_owned()];
    let undo = format!("table inet {TABLE}\ndelete table inet {TABLE}\n");
    let step = Step { undo: command.clone(), command, input: text, undo_input: undo, file: String::new() };
    Compiled { suite: Suite::Nftables, rules: shown, steps: vec![step], warnings: Vec::new() }
}

/// One rule, or two where the families need sets or sources of their own.
fn rule_lines(rule: &ProfileRule, at: usize, sets: &mut String) -> Vec<String> {
    let m = &rule.matches;
    let mut words = String::new();
    match m.protocol {
        Some(protocol @ (Protocol::Tcp | Protocol::Udp)) => {
            let name = protocol.as_str();
            if m.ports.is_empty() && m.source_ports.is_empty() && m.flags.is_none() {
                words.push_str(&format!("meta l4proto {name} "));
            }
            for (side, list) in [("sport", &m.source_ports), ("dport", &m.ports)] {
                if !list.is_empty() {
                    let list: Vec<_> =
                        list.iter().map(|(f, t)| if f == t { f.to_string() } else { format!("{f}-{t}") }).collect();
                    words.push_str(&format!("{name} {side} {{ {} }} ", list.join(", ")));
                }
            }
        }
        Some(Protocol::Icmpv6) => words.push_str("meta l4proto ipv6-icmp "),
        Some(Protocol::Icmp) => words.push_str("meta nfproto ipv4 meta l4proto icmp "),
        Some(other) => words.push_str(&format!("meta l4proto {} ", other.as_str())),
        None => {}
    }
    words.push_str(match m.flags {
        None => "",
        Some(TcpFlags::Syn) => "tcp flags & (fin|syn|rst|ack) == syn ",
        Some(TcpFlags::None) => "tcp flags & (fin|syn|rst|psh|ack|urg) == 0x0 ",
        Some(TcpFlags::All) => "tcp flags & (fin|syn|rst|psh|ack|urg) == fin|syn|rst|psh|ack|urg ",
        Some(TcpFlags::SynFin) => "tcp flags & (syn|fin) == syn|fin ",
        Some(TcpFlags::SynRst) => "tcp flags & (syn|rst) == syn|rst ",
    });
    words.push_str(match m.state {
        None => "",
        Some(TrackedState::New) => "ct state new ",
        Some(TrackedState::Invalid) => "ct state invalid ",
    });
    let counted = match rule.verdict {
        ProfileVerdict::Accept {} | ProfileVerdict::Drop {} => {
            let verdict = if rule.verdict == (ProfileVerdict::Drop {}) { "counter drop" } else { "accept" };
            if m.sources.is_empty() {
                return vec![format!("{words}{verdict}")];
            }
            None
        }
        ProfileVerdict::Limit { pps, burst, by } => {
            let side = match by {
                LimitBy::Source => "saddr",
                LimitBy::Target => "daddr",
            };
            Some((
                side,
                format!("limit rate over {pps}/second burst {burst} packets"),
                "flags dynamic,timeout; timeout 60s;",
            ))
        }
        ProfileVerdict::Connections { most } => {
            words.push_str(if m.state.is_none() { "ct state new " } else { "" });
            Some(("saddr", format!("ct count over {most}"), "flags dynamic;"))
        }
    };
    let mut lines = Vec::new();
    for (v6, family, kind) in [(false, "ip", "ipv4_addr"), (true, "ip6", "ipv6_addr")] {
        if matches!((m.protocol, v6), (Some(Protocol::Icmp), true) | (Some(Protocol::Icmpv6), false)) {
            continue;
        }
        let mine: Vec<_> =
            m.sources.iter().filter(|s| matches!(s, IpNet::V6(_)) == v6).map(|s| s.trunc().to_string()).collect();
        if !m.sources.is_empty() && mine.is_empty() {
            continue;
        }
        let from = if mine.is_empty() { String::new() } else { format!("{family} saddr {{ {} }} ", mine.join(", ")) };
        lines.push(match &counted {
            None if rule.verdict == (ProfileVerdict::Drop {}) => format!("{from}{words}counter drop"),
            None => format!("{from}{words}accept"),
            Some((side, what, flags)) => {
                let set = format!("counted{at}_{family}");
                sets.push_str(&format!("\tset {set} {{ type {kind}; size 65535; {flags} }}\n"));
                let verb = if flags.contains("timeout") { "update" } else { "add" };
                format!("{from}{words}{verb} @{set} {{ {family} {side} {what} }} counter drop")
            }
        });
    }
    lines
}
