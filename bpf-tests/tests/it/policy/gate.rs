//! Reflectors and the TCP gate in the model: sets of flows, asked for the very flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ftagent_common::abi::Reason;
use ipnet::IpNet;

use super::draw::{PORTS, SOURCES, TARGETS, address, prefix, target_of};
use super::model::{ENDED, Facts};
use super::random::Random;

/// Protocol, remote address, local address, remote and local port.
pub(crate) type Ends = (u8, IpAddr, IpAddr, [u16; 2]);

/// What every segment here acknowledges, and what none does.
pub(crate) const ACKNOWLEDGED: u32 = 0;
const NOBODYS: u32 = 1;

/// A target behind the gate.
#[derive(Clone, Debug)]
pub(crate) struct Gated {
    pub(crate) prefix: IpNet,
    pub(crate) ends: u64,
    pub(crate) is_automatic: bool,
    pub(crate) evaluate: bool,
    /// An address of this node, whose sockets are asked while flows are young. There are none.
    pub(crate) is_local: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Gate {
    pub(crate) judges_answers: bool,
    pub(crate) judges_segments: bool,
    /// Nothing was learnt for long enough yet, of queries and of connections.
    pub(crate) are_queries_young: bool,
    pub(crate) are_flows_young: bool,
    /// UDP ports that answers come from, and those that are served here.
    pub(crate) reflectors: Vec<u16>,
    pub(crate) served: Vec<u16>,
    pub(crate) queries: BTreeSet<Ends>,
    pub(crate) targets: Vec<Gated>,
    pub(crate) flows: BTreeSet<Ends>,
    /// SYN-ACKs of ours, by the number that acknowledges them.
    pub(crate) half_open: BTreeSet<(Ends, u32)>,
    /// Who sent a SYN some seconds ago.
    pub(crate) waited: BTreeSet<Ends>,
    /// Who sent the first one in this round, and when.
    pub(crate) sent: BTreeMap<Ends, Instant>,
}

/// What the gate has against a packet.
pub(crate) enum Answer {
    Nothing,
    Drop(Reason),
    Perhaps(Reason),
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// A SYN that comes again within this is no repetition; later it may be one.
const TOO_SOON: Duration = Duration::from_millis(250);

fn ends_of(facts: &Facts) -> Ends {
    (facts.protocol, facts.src, facts.dst, facts.ports)
}

impl Gate {
    /// Whether the packet, which is towards a protected destination, is an answer that nobody asked for.
    pub(crate) fn is_reflection(&self, facts: &Facts) -> bool {
        let is_answer = match facts.protocol {
            17 => self.reflectors.contains(&facts.ports[0]) && !self.served.contains(&facts.ports[1]),
            1 => facts.icmp_type == 0,
            58 => facts.icmp_type == 129,
            _ => false,
        };
        let is_judged = self.judges_answers && !self.are_queries_young && facts.carrier.is_none() && !facts.is_later;
        is_judged && is_answer && !self.queries.contains(&ends_of(facts))
    }

    /// A flow of which something is known.
    pub(crate) fn some(&self, random: &mut Random) -> Option<Ends> {
        fn nth(random: &mut Random, mut of: impl ExactSizeIterator<Item = Ends>) -> Option<Ends> {
            let at = random.below(of.len().max(1));
            of.nth(at)
        }
        match random.below(5) {
            0 => nth(random, self.queries.iter().copied()),
            1 => nth(random, self.flows.iter().copied()),
            2 => nth(random, self.half_open.iter().map(|(ends, _)| *ends)),
            3 => nth(random, self.waited.iter().copied()),
            _ => nth(random, self.sent.keys().copied()),
        }
    }

    /// Of two targets around the destination the narrower one counts, whether it is in force or not.
    fn target_of(&self, facts: &Facts, is_orphaned: bool) -> Option<&Gated> {
        if !self.judges_segments || facts.protocol != 6 || facts.is_fragment || facts.carrier.is_some() {
            return None;
        }
        let around = self.targets.iter().filter(|target| target.prefix.contains(&facts.dst));
        let target = around.max_by_key(|target| target.prefix.prefix_len())?;
        let has_ended = target.ends == ENDED || (is_orphaned && target.is_automatic);
        (!has_ended).then_some(target)
    }

    /// What the gate says of a packet towards a protected destination.
    pub(crate) fn judge(&self, facts: &Facts, is_orphaned: bool, now: Instant) -> Answer {
        match self.target_of(facts, is_orphaned) {
            Some(target) if !target.evaluate => self.segment(target, facts, now),
            _ => Answer::Nothing,
        }
    }

    fn segment(&self, target: &Gated, facts: &Facts, now: Instant) -> Answer {
        let ends = ends_of(facts);
        if self.flows.contains(&ends) {
            return Answer::Nothing;
        }
        if is_syn(facts) {
            return match self.sent.get(&ends) {
                _ if self.waited.contains(&ends) => Answer::Nothing,
                Some(at) if now.duration_since(*at) >= TOO_SOON => Answer::Perhaps(Reason::SynGate),
                _ => Answer::Drop(Reason::SynGate),
            };
        }
        if self.completes(facts) || (self.are_flows_young && !target.is_local) {
            return Answer::Nothing;
        }
        Answer::Drop(Reason::UnsolicitedTcp)
    }

    /// Whether the segment acknowledges a SYN-ACK of ours.
    fn completes(&self, facts: &Facts) -> bool {
        let is_acknowledgement = facts.tcp_flags & (SYN | RST | ACK) == ACK;
        is_acknowledgement && self.half_open.contains(&(ends_of(facts), ACKNOWLEDGED))
    }

    /// Takes note of a packet that came as far as the gate.
    pub(crate) fn note(&mut self, facts: &Facts, is_orphaned: bool, now: Instant) {
        let ends = ends_of(facts);
        if self.target_of(facts, is_orphaned).is_none() || self.flows.contains(&ends) {
            return;
        }
        if is_syn(facts) {
            self.sent.entry(ends).or_insert(now);
        } else if self.completes(facts) {
            self.flows.insert(ends);
        }
    }
}

fn is_syn(facts: &Facts) -> bool {
    facts.tcp_flags & (SYN | ACK | RST | FIN) == SYN
}

/// What was learnt, asked and gated in one round.
pub(crate) fn draw(random: &mut Random) -> Gate {
    let mut targets = BTreeMap::new();
    for _ in 0..1 + random.below(5) {
        let prefix = prefix(random, &TARGETS);
        let gated = Gated {
            prefix,
            ends: random.pick(&[0, u64::MAX, u64::MAX, ENDED]),
            is_automatic: !random.one_in(3),
            evaluate: random.one_in(6),
            is_local: random.one_in(2),
        };
        // All of IPv6 would be IPv4 as well.
        if prefix.prefix_len() >= 8 {
            targets.insert(prefix, gated);
        }
    }
    let number = |random: &mut Random| random.pick(&[ACKNOWLEDGED, NOBODYS]);
    Gate {
        judges_answers: !random.one_in(6),
        judges_segments: !random.one_in(6),
        are_queries_young: random.one_in(5),
        are_flows_young: random.one_in(4),
        reflectors: if random.one_in(2) { vec![53] } else { vec![53, 9] },
        served: (0..random.below(2)).map(|_| random.pick(&PORTS)).collect(),
        queries: (0..120).map(|_| question(random)).collect(),
        targets: targets.into_values().collect(),
        flows: (0..150).map(|_| ends(random, 6)).collect(),
        half_open: (0..300).map(|_| (ends(random, 6), number(random))).collect(),
        waited: (0..150).map(|_| ends(random, 6)).collect(),
        sent: BTreeMap::new(),
    }
}

fn ends(random: &mut Random, protocol: u8) -> Ends {
    let remote = address(random, &SOURCES);
    (protocol, remote, target_of(random, remote), [random.pick(&PORTS), random.pick(&PORTS)])
}

fn question(random: &mut Random) -> Ends {
    let (_, remote, local, ports) = ends(random, 17);
    match random.below(4) {
        0 => (if remote.is_ipv4() { 1 } else { 58 }, remote, local, [0, 0]),
        1 => (17, remote, local, ports),
        _ => (17, remote, local, [53, ports[1]]),
    }
}
