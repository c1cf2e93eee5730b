//! The order of the checks, said a second time and as plainly as it goes: lists of rules, asked one after the other.
//! No table, no bitmap, no bit vector, no longest match, and no parser: a packet is what it was built from.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ftagent::engine::{Rule, RuleId, Verdict};
use ftagent::xdp::compile::FailSafe;
use ftagent_common::abi::Reason;
use ftagent_common::vocab::Mode;
use ipnet::IpNet;

use super::gate::{Answer, Gate};
use super::lists::{self, List};

/// What a packet was built as; of a tunnel, the packet inside.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// The source of the packet around, if there is one.
    pub(crate) carrier: Option<IpAddr>,
    /// The packet around as it would be judged if nobody looked inside, if there is one.
    pub(crate) around: Option<Box<Facts>>,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) length: u16,
    /// 0 where there are none.
    pub(crate) ports: [u16; 2],
    pub(crate) tcp_flags: u8,
    pub(crate) icmp_type: u8,
    pub(crate) is_fragment: bool,
    /// A fragment after the first one: it carries no ports.
    pub(crate) is_later: bool,
    pub(crate) dscp: u8,
    /// What follows the transport header, or the network header where there is none.
    pub(crate) payload: Vec<u8>,
}

/// What arrives.
#[derive(Clone, Debug)]
pub(crate) enum Arrival {
    Packet(Facts),
    /// Refused before any rule is asked.
    Refused(Reason),
    NotIp,
}

/// Everything that is in force.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) rules: Vec<Rule>,
    pub(crate) lists: Vec<List>,
    /// What was learnt, and who stands behind the gate.
    pub(crate) gate: Gate,
    pub(crate) allow: Vec<IpNet>,
    pub(crate) fail_safe: Vec<FailSafe>,
    pub(crate) protected: Vec<IpNet>,
    pub(crate) mode: Mode,
    /// User space is silent, so that nothing automatic counts.
    pub(crate) is_orphaned: bool,
    pub(crate) passes_malformed: bool,
    /// When a frame was let through by a limit that then has no room for a while.
    pub(crate) used: BTreeMap<RuleId, Instant>,
}

/// The expiry of rules that have ended; others end at the end of time.
pub(crate) const ENDED: u64 = 1;
/// A limit that lets one frame of the smallest size through and then none for longer than [`CLOSED`]: in bits a second.
pub(crate) const TIGHT_BPS: u64 = 1_000;
/// A frame of 42 bytes takes 0.33 s of it.
const CLOSED: Duration = Duration::from_millis(250);
/// A limit that nothing here exceeds.
pub(crate) const WIDE_PPS: u64 = 1_000_000_000;

impl World {
    /// The reasons that may be given, and nothing else. There are several only where a limit may or may not have room.
    pub(crate) fn judge(&self, arrival: &Arrival, now: Instant) -> Vec<Reason> {
        if self.mode == Mode::Bypass {
            return vec![Reason::Bypassed];
        }
        match arrival {
            Arrival::NotIp => vec![Reason::NotIp],
            Arrival::Refused(Reason::Malformed | Reason::TinyFragment) if self.passes_malformed => {
                vec![Reason::MalformedPassed]
            }
            Arrival::Refused(reason) => vec![*reason],
            Arrival::Packet(facts) => self.packet(self.seen(facts), now),
        }
    }

    /// The packet that is judged: of a tunnel the one inside, or the one around.
    fn seen<'a>(&self, facts: &'a Facts) -> &'a Facts {
        facts.around.as_deref().filter(|around| self.is_closed(facts, around)).unwrap_or(facts)
    }

    /// Whether only the packet around is for a protected destination, nothing is known of who sent the one inside, and
    /// who sent the one around is not fail-safe on the ports inside.
    fn is_closed(&self, inside: &Facts, around: &Facts) -> bool {
        let is_blocked = |rule: &Rule| {
            rule.verdict == Verdict::Drop
                && is_of_source(rule)
                && self.is_in_force(rule)
                && rule.matches.source.is_some_and(|s| s.contains(&inside.src))
        };
        !self.is_protected(inside.dst)
            && self.is_protected(around.dst)
            && !self.is_safe(inside.src, inside)
            && !self.is_safe(around.src, inside)
            && !self.allow.iter().any(|a| a.contains(&inside.src))
            && !self.rules.iter().any(is_blocked)
            && lists::around(&self.lists, inside.src).next().is_none()
    }

    fn packet(&self, facts: &Facts, now: Instant) -> Vec<Reason> {
        if is_neighbour_discovery(facts) {
            return vec![Reason::FailSafe];
        }
        // Both pass; of a tunnel the packet inside is asked first.
        for src in sources(facts) {
            if self.is_safe(src, facts) {
                return vec![Reason::FailSafe];
            }
            if self.allow.iter().any(|a| a.contains(&src)) {
                return vec![Reason::Allowlisted];
            }
        }
        if self.is_protected(facts.dst) && self.gate.is_reflection(facts) {
            return vec![Reason::Reflection];
        }
        let blocks = |src: IpAddr, exact: bool| {
            // A list of IPv6 prefixes is as many blocks.
            let mut listed = lists::around(&self.lists, src).filter(|prefix| prefix.addr().is_ipv6());
            let mut blocks = self.rules.iter().filter(|r| r.verdict == Verdict::Drop && self.is_in_force(r));
            blocks.any(|r| is_of_source(r) && r.matches.source.is_some_and(|s| covers(s, src, exact)))
                || listed.any(|prefix| covers(prefix, src, exact))
        };
        // The tunnel's end is asked first; who is inside, after it.
        for src in facts.carrier.into_iter().chain([facts.src]) {
            if blocks(src, true) {
                return vec![Reason::BlockedSource];
            }
            if blocks(src, false) {
                return vec![Reason::BlockedPrefix];
            }
            if src.is_ipv4() && lists::around(&self.lists, src).next().is_some() {
                return vec![Reason::Listed];
            }
        }
        let mut reasons = Vec::new();
        if self.is_protected(facts.dst) {
            match self.gate.judge(facts, self.is_orphaned, now) {
                Answer::Drop(reason) => return vec![reason],
                Answer::Perhaps(reason) => reasons.push(reason),
                Answer::Nothing => {}
            }
            // The rules of the destination first, then those of all; in each, the kind decides who is asked first.
            for is_global in [false, true] {
                let asked: Vec<&Rule> = self
                    .rules
                    .iter()
                    .filter(|r| {
                        r.matches.target.is_none() == is_global && self.matches(r, facts) && self.is_in_force(r)
                    })
                    .collect();
                if asked.iter().any(|r| r.verdict == Verdict::Pass) {
                    reasons.push(Reason::RulePassed);
                    return reasons;
                }
                if asked.iter().any(|r| r.verdict == Verdict::Drop) {
                    reasons.push(Reason::TargetRule);
                    return reasons;
                }
                for room in asked.iter().map(|r| self.room(r, now)) {
                    match room {
                        Room::Never => {
                            reasons.push(Reason::TargetLimit);
                            return reasons;
                        }
                        Room::Perhaps => reasons.push(Reason::TargetLimit),
                        Room::Always => {}
                    }
                }
            }
        }
        let (limit, is_hidden) = self.source_limit(facts.src);
        match limit.map(|r| self.room(r, now)) {
            // The kernel asks the limit of the longest prefix alone: where that one is not in force, it may hide this.
            Some(Room::Never) if !is_hidden => reasons.push(Reason::SourceLimit),
            Some(Room::Perhaps | Room::Never) => reasons.extend([Reason::SourceLimit, Reason::Clean]),
            Some(Room::Always) | None => reasons.push(Reason::Clean),
        }
        reasons
    }

    /// Whether the packet is from a fail-safe source and on one of its ports: nothing may drop it.
    pub(crate) fn is_fail_safe(&self, facts: &Facts) -> bool {
        sources(facts).any(|src| self.is_safe(src, facts))
    }

    fn is_safe(&self, src: IpAddr, facts: &Facts) -> bool {
        let of = |f: &FailSafe| f.ports.is_empty() || facts.ports.iter().any(|port| f.ports.contains(port));
        self.fail_safe.iter().any(|f| f.prefix.contains(&src) && of(f))
    }

    /// Remembers which limits let the packet through, now that the verdict is known.
    pub(crate) fn note(&mut self, arrival: &Arrival, verdict: Reason, now: Instant) {
        let Arrival::Packet(facts) = arrival else { return };
        let facts = &self.seen(facts).clone();
        if has_met_the_gate(verdict) && self.is_protected(facts.dst) {
            self.gate.note(facts, self.is_orphaned, now);
        }
        let mut used = Vec::new();
        if matches!(verdict, Reason::Clean | Reason::SourceLimit) && self.is_protected(facts.dst) {
            used.extend(self.rules.iter().filter(|r| self.matches(r, facts) && self.is_in_force(r)).map(|r| r.id));
        }
        if verdict == Reason::Clean {
            let (limit, is_hidden) = self.source_limit(facts.src);
            used.extend(limit.filter(|_| !is_hidden).map(|r| r.id));
        }
        for id in used {
            self.used.insert(id, now);
        }
    }

    fn is_in_force(&self, rule: &Rule) -> bool {
        !rule.evaluate && rule.expires_at_ns != Some(ENDED) && !(self.is_orphaned && rule.origin.is_automatic())
    }

    /// What has a rule of its own is protected too.
    fn is_protected(&self, dst: IpAddr) -> bool {
        let named = self.rules.iter().filter_map(|r| r.matches.target);
        self.protected.iter().copied().chain(named).any(|p| p.contains(&dst))
    }

    fn matches(&self, rule: &Rule, facts: &Facts) -> bool {
        let m = &rule.matches;
        !is_of_source(rule)
            && m.source.is_none_or(|s| s.contains(&facts.src))
            && m.target.is_none_or(|t| t.contains(&facts.dst))
            && m.protocol.is_none_or(|p| p == facts.protocol)
            && m.src_port.is_none_or(|[from, to]| (from..=to).contains(&facts.ports[0]))
            && m.dst_port.is_none_or(|[from, to]| (from..=to).contains(&facts.ports[1]))
            && m.length.is_none_or(|[from, to]| (from..=to).contains(&facts.length))
            && m.ttl.is_none_or(|[from, to]| (from..=to).contains(&facts.ttl))
            && m.icmp_type.is_none_or(|[from, to]| (from..=to).contains(&facts.icmp_type))
            && m.tcp_flags.is_none_or(|[mask, value]| facts.tcp_flags & mask == value & mask)
            && m.fragment.is_none_or(|wanted| wanted == facts.is_fragment)
            && m.dscp.is_none_or(|[from, to]| (from..=to).contains(&facts.dscp))
            && m.payload.as_ref().is_none_or(|bytes| facts.payload.starts_with(bytes))
    }

    /// The limit of the longest prefix around the source that is in force, of two of one prefix the tighter; and whether
    /// there is one of as long a prefix or a longer one that is not.
    fn source_limit(&self, src: IpAddr) -> (Option<&Rule>, bool) {
        let len = |r: &Rule| r.matches.source.map(|s| s.prefix_len());
        let limits = self.rules.iter().filter(|r| r.verdict != Verdict::Drop && is_of_source(r));
        let (there, not): (Vec<&Rule>, Vec<&Rule>) =
            limits.filter(|r| r.matches.source.is_some_and(|s| s.contains(&src))).partition(|r| self.is_in_force(r));
        let found = there.into_iter().max_by_key(|r| (len(r), is_tight(r)));
        (found, found.is_some_and(|found| not.iter().any(|r| len(r) >= len(found))))
    }

    fn room(&self, rule: &Rule, now: Instant) -> Room {
        if !is_tight(rule) {
            return Room::Always;
        }
        match self.used.get(&rule.id) {
            Some(at) if now.duration_since(*at) < CLOSED => Room::Never,
            _ => Room::Perhaps,
        }
    }
}

impl fmt::Display for World {
    /// One line for each rule, for the message of a failed run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            let Rule { id, matches, verdict, origin, expires_at_ns, .. } = rule;
            let parts: Vec<String> = [
                matches.source.map(|s| format!("from {s}")),
                matches.target.map(|t| format!("to {t}")),
                matches.protocol.map(|p| format!("protocol {p}")),
                matches.src_port.map(|p| format!("source port {p:?}")),
                matches.dst_port.map(|p| format!("port {p:?}")),
                matches.length.map(|l| format!("length {l:?}")),
                matches.ttl.map(|t| format!("ttl {t:?}")),
                matches.icmp_type.map(|t| format!("ICMP {t:?}")),
                matches.tcp_flags.map(|t| format!("flags {t:?}")),
                matches.fragment.map(|t| format!("fragment {t}")),
                matches.dscp.map(|d| format!("DSCP {d:?}")),
                matches.payload.as_ref().map(|p| format!("payload {:?}", String::from_utf8_lossy(p))),
                rule.evaluate.then(|| "evaluated".to_owned()),
            ]
            .into_iter()
            .flatten()
            .collect();
            let (origin, match_words) = (origin.as_str(), parts.join(", "));
            writeln!(f, "  rule {}: {match_words}: {verdict:?}, {origin}, ends {expires_at_ns:?}", id.0)?;
        }
        writeln!(f, "  allow {:?}, fail-safe {:?}, protected {:?}", self.allow, self.fail_safe, self.protected)?;
        for List { prefixes, evaluate } in &self.lists {
            writeln!(f, "  list {prefixes:?}, evaluated {evaluate}")?;
        }
        for target in &self.gate.targets {
            writeln!(f, "  behind the gate: {target:?}")?;
        }
        let Gate { judges_answers, judges_segments, are_queries_young, are_flows_young, .. } = &self.gate;
        writeln!(f, "  answers judged {judges_answers}, young {are_queries_young}, served {:?}", self.gate.served)?;
        writeln!(f, "  segments judged {judges_segments}, young {are_flows_young}")?;
        let Self { mode, is_orphaned, passes_malformed, .. } = self;
        writeln!(f, "  mode {mode}, orphaned {is_orphaned}, malformed frames pass {passes_malformed}")
    }
}

enum Room {
    Always,
    Perhaps,
    Never,
}

/// Whether the rule is a block or a limit of its source and of nothing else.
fn is_of_source(rule: &Rule) -> bool {
    let is_simple = !matches!(rule.verdict, Verdict::Pass | Verdict::Sample | Verdict::Mark { .. });
    is_simple && rule.matches.is_source_only()
}

fn is_tight(rule: &Rule) -> bool {
    matches!(rule.verdict, Verdict::LimitBps { bps: TIGHT_BPS, .. })
}

/// Whether a packet of this verdict came as far as the gate, which comes before the rules of targets.
fn has_met_the_gate(verdict: Reason) -> bool {
    use Reason as R;
    let later = [R::Clean, R::RulePassed, R::TargetRule, R::TargetLimit, R::SourceLimit];
    later.contains(&verdict) || matches!(verdict, R::SynGate | R::UnsolicitedTcp)
}

/// The packet's source, then that of the packet around it.
fn sources(facts: &Facts) -> impl Iterator<Item = IpAddr> {
    [Some(facts.src), facts.carrier].into_iter().flatten()
}

fn covers(prefix: IpNet, src: IpAddr, exact: bool) -> bool {
    prefix.contains(&src) && (prefix.prefix_len() == prefix.max_prefix_len()) == exact
}

/// RFC 4861: from this link alone, which a hop limit of 255 says, but not that of a packet in a tunnel. RFC 6980: never
/// in fragments.
fn is_neighbour_discovery(facts: &Facts) -> bool {
    facts.src.is_ipv6()
        && facts.protocol == 58
        && facts.ttl == 255
        && (133..=137).contains(&facts.icmp_type)
        && facts.carrier.is_none()
        && !facts.is_fragment
}
