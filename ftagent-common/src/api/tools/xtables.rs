//! What the actions of iptables share: a rule of the chain INPUT, by the program of its address family.
//!
//! Rules are inserted first: behind a rule that accepts, they would be without effect. Each has the comment `ftagent`,
//! by which ours are known from others, so that undoing never takes a rule of somebody else.

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
