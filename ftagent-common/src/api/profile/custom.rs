//! An operator's own rules: read word by word against a short list of what may stand there, never run as they came.
//!
//! What is not on the list is refused: other tables and chains, flushes, policies, jumps, and everything of a shell.

use std::net::IpAddr;

use ipnet::IpNet;

use super::compile::{CompiledRule, ProfileError};
use super::nftables::TABLE;
use super::{CustomRule, Suite, TrafficPath};

/// A rule that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Custom {
    pub(super) title: String,
    pub(super) path: TrafficPath,
    /// The family it is for, if not for both.
    pub(super) v6: Option<bool>,
    /// The rule alone, without the command that adds it.
    pub(super) line: String,
}

impl Custom {
    pub(super) fn shown(&self) -> CompiledRule {
        CompiledRule {
            title: self.title.clone(),
            reason: "the operator's own rule".to_owned(),
            lines: vec![self.line.clone()],
        }
    }
}

/// Reads the rule at this place of the operator's list.
///
/// # Errors
/// It is not just one rule in the suite's words; says which word.
pub(super) fn read(suite: Suite, at: usize, rule: &CustomRule) -> Result<Custom, ProfileError> {
    let fail = |name: &str, message: String| ProfileError::new(format!("rules[{at}].{name}"), message);
    let length = rule.title.chars().count();
    if !(1..=128).contains(&length) || rule.title.chars().any(char::is_control) {
        return Err(fail("title", "must be 1 to 128 characters, none of them a control character".to_owned()));
    }
    if rule.cmd.len() > 512 {
        return Err(fail("cmd", "must be at most 512 bytes".to_owned()));
    }
    let words: Vec<&str> = rule.cmd.split(' ').filter(|w| !w.is_empty()).collect();
    let (path, v6, line) = match suite {
        Suite::Iptables => iptables(&words),
        Suite::Nftables => nftables(&words),
        Suite::Ufw => ufw(&words),
        Suite::Firewalld => firewalld(&words),
    }
    .map_err(|message| fail("cmd", message))?;
    Ok(Custom { title: rule.title.clone(), path, v6, line })
}

type Read = Result<(TrafficPath, Option<bool>, String), String>;

fn chain(word: &str) -> Result<TrafficPath, String> {
    match word {
        "INPUT" | "input" => Ok(TrafficPath::ToNode),
        "FORWARD" | "forward" => Ok(TrafficPath::Through),
        other => Err(format!("{other:?}: rules go into the chains INPUT and FORWARD")),
    }
}

fn iptables(words: &[&str]) -> Read {
    let [program @ ("iptables" | "ip6tables"), "-A" | "-I", name, rest @ ..] = words else {
        return Err("must begin with iptables or ip6tables, -A or -I, and INPUT or FORWARD".to_owned());
    };
    let v6 = *program == "ip6tables";
    Ok((chain(name)?, Some(v6), iptables_words(rest, v6)?))
}

fn firewalld(words: &[&str]) -> Read {
    let ["firewall-cmd", "--direct", "--add-rule", family @ ("ipv4" | "ipv6"), "filter", name, place, rest @ ..] =
        words
    else {
        return Err("must begin with firewall-cmd --direct --add-rule ipv4 (or ipv6) filter INPUT (or FORWARD) and a \
                    priority"
            .to_owned());
    };
    if place.parse::<i32>().is_err() {
        return Err(format!("{place:?} is no priority"));
    }
    let v6 = *family == "ipv6";
    Ok((chain(name)?, Some(v6), iptables_words(rest, v6)?))
}

/// What stands behind the chain. A verdict that accepts leaves our chain alone, as profiles do.
fn iptables_words(words: &[&str], v6: bool) -> Result<String, String> {
    let mut out: Vec<String> = Vec::new();
    let mut verdict = false;
    let mut rest = words.iter().copied();
    while let Some(option) = rest.next() {
        if verdict && option != "--reject-with" {
            return Err(format!("{option:?} stands behind the verdict"));
        }
        let mut value = || rest.next().ok_or_else(|| format!("{option:?} needs a value"));
        let good = match option {
            "--syn" => {
                out.push(option.to_owned());
                continue;
            }
            "-p" => one_of(value()?, &["tcp", "udp", "icmp", "ipv6-icmp", "icmpv6", "gre", "esp", "ah", "sctp"]),
            "-s" | "-d" => prefix(value()?, v6),
            "-i" => name(value()?, 15),
            "--sport" | "--dport" => range(value()?, ':'),
            "--sports" | "--dports" => list(value()?, 15, |w| range(w, ':')),
            "-m" => {
                one_of(value()?, &["tcp", "udp", "multiport", "conntrack", "limit", "hashlimit", "connlimit", "icmp"])
            }
            "--ctstate" => list(value()?, 4, |w| one_of(w, &["NEW", "ESTABLISHED", "RELATED", "INVALID"])),
            "--limit" | "--hashlimit-above" | "--hashlimit-upto" => rate(value()?),
            "--limit-burst" | "--hashlimit-burst" | "--connlimit-above" => number(value()?, 1, 1_000_000),
            "--connlimit-mask" => number(value()?, 0, 128),
            "--hashlimit-mode" => list(value()?, 4, |w| one_of(w, &["srcip", "dstip", "srcport", "dstport"])),
            "--hashlimit-name" => name(value()?, 15),
            "-j" => {
                verdict = true;
                let word = one_of(value()?, &["DROP", "REJECT", "ACCEPT", "RETURN"])?;
                Ok(if word == "ACCEPT" { "RETURN".to_owned() } else { word })
            }
            "--reject-with" if verdict => {
                one_of(value()?, &["tcp-reset", "icmp-port-unreachable", "icmp6-port-unreachable"])
            }
            other => return Err(format!("{other:?} is not among what a rule may say here")),
        };
        out.extend([option.to_owned(), good.map_err(|e| format!("{option}: {e}"))?]);
    }
    if verdict { Ok(out.join(" ")) } else { Err("has no verdict: -j DROP, REJECT, ACCEPT or RETURN".to_owned()) }
}

/// The words of nftables that match, count and decide; none that jumps, sets policies or makes things.
const NFT_WORDS: &[&str] = &[
    "ip",
    "ip6",
    "tcp",
    "udp",
    "icmp",
    "icmpv6",
    "meta",
    "ct",
    "saddr",
    "daddr",
    "sport",
    "dport",
    "flags",
    "l4proto",
    "nfproto",
    "protocol",
    "nexthdr",
    "iifname",
    "lo",
    "type",
    "state",
    "count",
    "new",
    "established",
    "related",
    "invalid",
    "ipv4",
    "ipv6",
    "gre",
    "esp",
    "ah",
    "sctp",
    "ipv6-icmp",
    "fin",
    "syn",
    "rst",
    "psh",
    "ack",
    "urg",
    "limit",
    "rate",
    "over",
    "burst",
    "packets",
    "bytes",
    "counter",
    "echo-request",
    "{",
    "}",
    "&",
    "==",
    "!=",
    "|",
];

fn nftables(words: &[&str]) -> Read {
    let ["nft", "add" | "insert", "rule", "inet", table, name, rest @ .., verdict] = words else {
        return Err(format!("must begin with nft add rule inet {TABLE} input (or forward)"));
    };
    if *table != TABLE {
        return Err(format!("{table:?}: rules go into the table {TABLE}"));
    }
    one_of(verdict, &["accept", "drop", "reject", "return"]).map_err(|e| format!("the verdict comes last: {e}"))?;
    for word in rest {
        let bare = word.trim_end_matches(',');
        let known = NFT_WORDS.contains(&bare) || bare.is_empty() && *word == ",";
        let literal = bare.split(',').all(|w| {
            range(w, '-').is_ok() || rate(w).is_ok() || number(w, 0, u64::MAX).is_ok() || any_prefix(w).is_ok()
        });
        let flags = bare.split('|').all(|w| ["fin", "syn", "rst", "psh", "ack", "urg"].contains(&w));
        let states = bare.split(',').all(|w| ["new", "established", "related", "invalid"].contains(&w));
        if !known && !literal && !flags && !states {
            return Err(format!("{word:?} is not among what a rule may say here"));
        }
    }
    // A brace too many would end our chain and begin another.
    let mut depth = 0_i32;
    for brace in rest.iter().flat_map(|w| w.chars()).filter(|c| matches!(c, '{' | '}')) {
        depth += if brace == '{' { 1 } else { -1 };
        if !(0..=1).contains(&depth) {
            return Err("a brace without its other".to_owned());
        }
    }
    if depth != 0 {
        return Err("a brace without its other".to_owned());
    }
    Ok((chain(name)?, None, [rest, &[*verdict]].concat().join(" ")))
}

/// `ufw deny [proto tcp] from ADDRESS [port N] to ADDRESS [port N]`.
fn ufw(words: &[&str]) -> Read {
    let ["ufw", verb, rest @ ..] = words else { return Err("must begin with ufw".to_owned()) };
    one_of(verb, &["allow", "deny", "reject", "limit"])?;
    let mut out = vec![(*verb).to_owned()];
    let mut rest = rest;
    if let ["proto", protocol, more @ ..] = rest {
        out.extend(["proto".to_owned(), one_of(protocol, &["tcp", "udp", "gre", "esp", "ah"])?]);
        rest = more;
    }
    for side in ["from", "to"] {
        let [word, address, more @ ..] = rest else { return Err(format!("{side:?} and an address are missing")) };
        if *word != side {
            return Err(format!("{word:?} stands where {side:?} must"));
        }
        let address = if *address == "any" { Ok("any".to_owned()) } else { any_prefix(address) }?;
        out.extend([side.to_owned(), address]);
        rest = more;
        if let ["port", port, more @ ..] = rest {
            out.extend(["port".to_owned(), list(port, 15, |w| range(w, ':'))?]);
            rest = more;
        }
    }
    match rest {
        [] => Ok((TrafficPath::ToNode, None, out.join(" "))),
        [word, ..] => Err(format!("{word:?} is not among what a rule may say here")),
    }
}

fn one_of(word: &str, words: &[&str]) -> Result<String, String> {
    if words.contains(&word) { Ok(word.to_owned()) } else { Err(format!("{word:?} is none of {}", words.join(", "))) }
}

fn number(word: &str, from: u64, to: u64) -> Result<String, String> {
    match word.parse::<u64>() {
        Ok(number) if (from..=to).contains(&number) => Ok(number.to_string()),
        _ => Err(format!("{word:?} is no number of {from} to {to}")),
    }
}

fn range(word: &str, between: char) -> Result<String, String> {
    let (from, to) = word.split_once(between).unwrap_or((word, word));
    match (from.parse::<u16>(), to.parse::<u16>()) {
        (Ok(from), Ok(to)) if from <= to && from > 0 => Ok(word.to_owned()),
        _ => Err(format!("{word:?} is no port and no range of ports")),
    }
}

fn rate(word: &str) -> Result<String, String> {
    let (many, per) = word.split_once('/').ok_or_else(|| format!("{word:?} is no rate such as 10/second"))?;
    number(many, 1, 1_000_000)?;
    one_of(per, &["sec", "second", "min", "minute", "hour", "day"])?;
    Ok(word.to_owned())
}

fn name(word: &str, most: usize) -> Result<String, String> {
    let good = word.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && word.len() <= most
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if good { Ok(word.to_owned()) } else { Err(format!("{word:?} is no name of 1 to {most} letters and digits")) }
}

fn list(word: &str, most: usize, each: impl Fn(&str) -> Result<String, String>) -> Result<String, String> {
    let parts: Vec<&str> = word.split(',').collect();
    if parts.len() > most {
        return Err(format!("at most {most} may be given, got {}", parts.len()));
    }
    Ok(parts.into_iter().map(each).collect::<Result<Vec<_>, _>>()?.join(","))
}

/// An address or prefix of either family, in our spelling.
fn any_prefix(word: &str) -> Result<String, String> {
    let read = word.parse::<IpNet>().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from));
    match read.map(|p| p.trunc()) {
        Some(prefix) if prefix.prefix_len() > 0 => Ok(prefix.to_string()),
        _ => Err(format!("{word:?} is no address and no prefix")),
    }
}

fn prefix(word: &str, v6: bool) -> Result<String, String> {
    let text = any_prefix(word)?;
    if text.contains(':') == v6 { Ok(text) } else { Err(format!("{word:?} is of the other family")) }
}
