//! Profiles for iptables: chains of our own, loaded by `iptables-restore --noflush`, each in one transaction.

use ipnet::IpNet;

use super::compile::{CHAINS, Compiled, CompiledRule, Step};
use super::custom::Custom;
use super::{LimitBy, ProfileRule, ProfileVerdict, Suite, TcpFlags, TrackedState, TrafficPath};
use crate::api::Protocol;

/// The two programs; `true` is IPv6.
const FAMILIES: [(bool, &str); 2] = [(false, "iptables-restore"), (true, "ip6tables-restore")];

pub(super) fn compile(rules: &[ProfileRule], own: &[Custom]) -> Compiled {
    let mut compiled =
        Compiled { suite: Suite::Iptables, rules: shown(rules, own), steps: Vec::new(), warnings: Vec::new() };
    for (v6, program) in FAMILIES {
        let mut text = String::from("*filter\n");
        let mut undo = text.clone();
        text.push_str(&chains(rules, own, v6));
        for (path, parent, chain) in CHAINS {
            if used(rules, own, path) {
                text.push_str(&format!("-I {parent} -m comment --comment ftagent -j {chain}\n"));
                undo.push_str(&format!(
                    "-D {parent} -m comment --comment ftagent -j {chain}\n-F {chain}\n-X {chain}\n"
                ));
            }
        }
        text.push_str("COMMIT\n");
        undo.push_str("COMMIT\n");
        let command = vec![program.to_owned(), "--wait=5".to_owned(), "--noflush".to_owned()];
        compiled.steps.push(Step {
            undo: command.clone(),
            command,
            input: text,
            undo_input: undo,
            file: String::new(),
        });
    }
    compiled
}

/// Whether there is anything on this path.
pub(super) fn used(rules: &[ProfileRule], own: &[Custom], path: TrafficPath) -> bool {
    rules.iter().any(|r| r.path == path) || own.iter().any(|c| c.path == path)
}

/// Our chains of one family as `iptables-restore` reads them, without what leads into them.
pub(super) fn chains(rules: &[ProfileRule], own: &[Custom], v6: bool) -> String {
    let mut text = String::new();
    for (path, _, chain) in CHAINS {
        if used(rules, own, path) {
            text.push_str(&format!(":{chain} - [0:0]\n"));
            for line in lines(rules, own, path, v6) {
                text.push_str(&format!("-A {chain} {line}\n"));
            }
        }
    }
    text
}

/// The rules of one chain.
pub(super) fn lines(rules: &[ProfileRule], own: &[Custom], path: TrafficPath, v6: bool) -> Vec<String> {
    let mut lines = vec!["-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN".to_owned()];
    if path == TrafficPath::ToNode {
        lines.insert(0, "-i lo -j RETURN".to_owned());
        if v6 {
            // Router and neighbour discovery: without them there is no IPv6.
            lines.extend((133..=136).map(|kind| format!("-p ipv6-icmp --icmpv6-type {kind} -j RETURN")));
        }
    }
    for (at, rule) in rules.iter().enumerate().filter(|(_, r)| r.path == path) {
        lines.extend(rule_lines(rule, at, v6));
    }
    let mine = own.iter().filter(|c| c.path == path && c.v6.is_none_or(|six| six == v6));
    lines.extend(mine.map(|c| c.line.clone()));
    lines
}

/// Every rule with its lines in both families.
pub(super) fn shown(rules: &[ProfileRule], own: &[Custom]) -> Vec<CompiledRule> {
    let of = |(at, rule): (usize, &ProfileRule)| {
        let four = rule_lines(rule, at, false).into_iter().map(|l| format!("iptables: {l}"));
        let six = rule_lines(rule, at, true).into_iter().map(|l| format!("ip6tables: {l}"));
        CompiledRule { title: rule.title.clone(), reason: rule.reason.clone(), lines: four.chain(six).collect() }
    };
    rules.iter().enumerate().map(of).chain(own.iter().map(Custom::shown)).collect()
}

/// The rules of one family, a rule for each source.
fn rule_lines(rule: &ProfileRule, at: usize, v6: bool) -> Vec<String> {
    let m = &rule.matches;
    let mut words = String::new();
    match m.protocol {
        Some(Protocol::Icmp) if v6 => return Vec::new(),
        Some(Protocol::Icmpv6) if !v6 => return Vec::new(),
        Some(Protocol::Icmpv6) => words.push_str("-p ipv6-icmp "),
        Some(protocol) => words.push_str(&format!("-p {} ", protocol.as_str())),
        None => {}
    }
    for (list, one, many) in [(&m.source_ports, "--sport", "--sports"), (&m.ports, "--dport", "--dports")] {
        match list.as_slice() {
            [] => {}
            [(from, to)] if from == to => words.push_str(&format!("{one} {from} ")),
            [(from, to)] => words.push_str(&format!("{one} {from}:{to} ")),
            _ => {
                let list: Vec<_> =
                    list.iter().map(|(f, t)| if f == t { f.to_string() } else { format!("{f}:{t}") }).collect();
                words.push_str(&format!("-m multiport {many} {} ", list.join(",")));
            }
        }
    }
    words.push_str(match m.flags {
        None => "",
        Some(TcpFlags::Syn) => "--tcp-flags FIN,SYN,RST,ACK SYN ",
        Some(TcpFlags::None) => "--tcp-flags ALL NONE ",
        Some(TcpFlags::All) => "--tcp-flags ALL ALL ",
        Some(TcpFlags::SynFin) => "--tcp-flags SYN,FIN SYN,FIN ",
        Some(TcpFlags::SynRst) => "--tcp-flags SYN,RST SYN,RST ",
    });
    words.push_str(match m.state {
        None => "",
        Some(TrackedState::New) => "-m conntrack --ctstate NEW ",
        Some(TrackedState::Invalid) => "-m conntrack --ctstate INVALID ",
    });
    match rule.verdict {
        ProfileVerdict::Accept {} => words.push_str("-j RETURN"),
        ProfileVerdict::Drop {} => words.push_str("-j DROP"),
        ProfileVerdict::Limit { pps, burst, by } => {
            let mode = match by {
                LimitBy::Source => "srcip",
                LimitBy::Target => "dstip",
            };
            // The kernel keeps one table for a name, at most 15 bytes, with the first rule's numbers.
            words.push_str(&format!(
                "-m hashlimit --hashlimit-above {pps}/sec --hashlimit-burst {burst} --hashlimit-mode {mode} \
                 --hashlimit-name p{at}.{pps:x}.{burst:x} -j DROP"
            ));
        }
        ProfileVerdict::Connections { most } => {
            let mask = if v6 { 128 } else { 32 };
            words.push_str(&format!(
                "-m conntrack --ctstate NEW -m connlimit --connlimit-above {most} --connlimit-mask {mask} \
                 --connlimit-saddr -j DROP"
            ));
        }
    }
    if m.sources.is_empty() {
        return vec![words];
    }
    let mine = m.sources.iter().filter(|s| matches!(s, IpNet::V6(_)) == v6);
    mine.map(|source| format!("-s {} {words}", source.trunc())).collect()
}
