//! What the actions of iptables share: a rule of the chain INPUT, by the program of its address family.
//!
//! Rules are inserted first: behind a rule that accepts, they would be without effect. Each has the comment `ftagent`,
//! by which ours are known from others, so that undoing never takes a rule of somebody else.
//!
//! What concerns everybody stands in a chain of its own, behind those who are never blocked:
//!
//! ```text
//! INPUT ──(protocol, port)──▶ ftagent-… : from lo, from each spared prefix: RETURN
//!   ▲                                     the rule: DROP
//!   └─────────────────────────────────────┘ no rule of somebody else is passed over
//! ```

use ipnet::IpNet;

use super::is_v6;
use crate::api::Protocol;
use crate::api::preview::{Preview, argv};

/// The two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const fn of(prefix: &IpNet) -> Self {
        if is_v6(prefix) { Self::V6 } else { Self::V4 }
    }

    /// The family in which `protocol` means something: that of `target` unless it belongs to one.
    pub(super) const fn of_protocol(protocol: Protocol, target: &IpNet) -> Self {
        match protocol {
            Protocol::Icmp => Self::V4,
            Protocol::Icmpv6 => Self::V6,
            _ => Self::of(target),
        }
    }

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// The length of one address.
    pub(super) const fn whole(self) -> &'static str {
        match self {
            Self::V4 => "32",
            Self::V6 => "128",
        }
    }
}

/// iptables' name of a protocol.
pub(super) const fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Icmpv6 => "ipv6-icmp",
        other => other.as_str(),
    }
}

/// Adds the rule `matches` with its undo; waits for the lock of others for up to five seconds.
pub(super) fn rule(shown: &mut Preview, family: Family, matches: &[&str], verdict: &[&str]) {
    let words = |command: &str| {
        let mut words = argv(&[family.program(), "-w", "5", command, "INPUT"]);
        words.extend(argv(matches));
        words.extend(argv(&["-m", "comment", "--comment", "ftagent"]));
        words.extend(argv(verdict));
        words
    };
    let object = format!("rule of {} INPUT: {} {}", family.program(), matches.join(" "), verdict.join(" "));
    shown.step(words("-I"), words("-D"), object);
}

/// The most prefixes that a rule of iptables spares: every packet that it concerns is compared with each.
const MAX_SPARED: usize = 64;

/// Adds the rule `matches` against everybody but those who are `spared`, and but the node's own loopback. `narrow` is the
/// cheap part of `matches`, which says what goes through the chain at all.
///
/// The jump comes last and goes first, so that nobody meets half a chain.
pub(super) fn wide_rule(
    shown: &mut Preview,
    family: Family,
    spared: &[IpNet],
    narrow: &[&str],
    matches: &[&str],
    verdict: &[&str],
) {
    let spared: Vec<String> = spared.iter().filter(|s| Family::of(s) == family).map(ToString::to_string).collect();
    if spared.len() > MAX_SPARED {
        shown.refused = Some(format!(
            "{} prefixes must not be blocked, more than the {MAX_SPARED} that a rule of iptables can spare: use XDP, which \
             spares any number",
            spared.len()
        ));
        return;
    }
    let program = family.program();
    let chain = chain_name(&[&[program], matches, verdict].concat());
    let chain = chain.as_str();
    let words = |command: &[&str], matches: &[&str], verdict: &[&str]| {
        let comment = ["-m", "comment", "--comment", "ftagent"];
        argv(&[&[program, "-w", "5"], command, matches, comment.as_slice(), verdict].concat())
    };
    let make = |verb| argv(&[program, "-w", "5", verb, chain]);
    shown.step(make("-N"), make("-X"), format!("chain {chain} of {program}"));
    let own = ["-i", "lo"];
    let others = spared.iter().map(|prefix| ["-s", prefix]);
    for matches in std::iter::once(own).chain(others) {
        let line = |verb| words(&[verb, chain], &matches, &["-j", "RETURN"]);
        shown.step(line("-I"), line("-D"), format!("{} {} is left alone", matches[0], matches[1]));
    }
    let line = |verb| words(&[verb, chain], matches, verdict);
    shown.step(line("-A"), line("-D"), format!("rule of {program}: {} {}", matches.join(" "), verdict.join(" ")));
    let jump = |verb| words(&[verb, "INPUT"], narrow, &["-j", chain]);
    shown.step(jump("-I"), jump("-D"), format!("rule of {program} INPUT: to {chain}"));
    shown.warnings.push(
        "the node adds a line for every prefix that it never blocks: its allowlist, gateways, resolvers, control plane and \
         management sources"
            .to_owned(),
    );
}

/// The chain's name: 24 of the 28 bytes that a name may have, the same for the same rule.
fn chain_name(words: &[&str]) -> String {
    // FNV-1a: stable, and two rules of one node do not meet by chance.
    let hash = words
        .join(" ")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{CHAIN_PREFIX}{hash:016x}")
}

/// What the names of our chains begin with.
pub(super) const CHAIN_PREFIX: &str = "ftagent-";

/// The risk of touching a whole protocol on every address of the node.
pub(super) fn warn_protocol(shown: &mut Preview, protocol: Protocol, verb: &str) {
    shown.warnings.push(format!(
        "{verb} all {} to every address of the node, wanted traffic included{}",
        protocol.as_str(),
        match protocol {
            Protocol::Tcp => ": sessions of operators and the control plane's connection break",
            Protocol::Udp => ": answers of DNS and NTP servers too",
            Protocol::Icmpv6 => ": without neighbour discovery the node loses IPv6",
            _ => "",
        }
    ));
}
