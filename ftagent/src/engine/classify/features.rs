//! What a set of samples has in common: distributions of ports, lengths, TTLs, sources and payloads, all weighted by
//! how many packets each sample stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::net::IpAddr;

use ftagent_common::packet::Ip;
use ipnet::IpNet;

use super::payload::Shape;
use crate::engine::window::Seen;

/// Values with their weights, heaviest first; ties in the order of the values, so that results never depend on
/// hashing.
#[derive(Clone, Debug)]
pub struct Ranking<T> {
    pub items: Vec<(T, f64)>,
    total: f64,
}

impl<T> Default for Ranking<T> {
    fn default() -> Self {
        Self { items: Vec::new(), total: 0.0 }
    }
}

impl<T: Copy + Ord + Hash> Ranking<T> {
    /// Ranks what `value` says of every sample.
    pub fn of(samples: &[Seen], value: impl Fn(&Seen) -> T) -> Self {
        let mut pairs: Vec<(T, f64)> = samples.iter().map(|s| (value(s), f64::from(s.weight))).collect();
        pairs.sort_unstable_by_key(|p| p.0);
        let total = pairs.iter().map(|(_, w)| w).sum();
        let mut items: Vec<(T, f64)> = Vec::new();
        for (value, weight) in pairs {
            match items.last_mut() {
                Some((last, sum)) if *last == value => *sum += weight,
                _ => items.push((value, weight)),
            }
        }
        // Stable: values of equal weight stay in their order.
        items.sort_by(|a, b| b.1.total_cmp(&a.1));
        Self { items, total }
    }

    /// Number of distinct values.
    pub fn distinct(&self) -> usize {
        self.items.len()
    }

    /// The heaviest value.
    pub fn top(&self) -> Option<T> {
        self.items.first().map(|(v, _)| *v)
    }

    /// Share of the heaviest value, 0 to 1.
    pub fn top_share(&self) -> f64 {
        self.items.first().map_or(0.0, |(_, w)| w / self.total.max(1.0))
    }

    /// The `n` heaviest with their shares.
    pub fn shares(&self, n: usize) -> Vec<(T, f64)> {
        self.items.iter().take(n).map(|(v, w)| (*v, w / self.total.max(1.0))).collect()
    }

    /// How many of the heaviest values it takes to hold `share` of the whole.
    pub fn needed_for(&self, share: f64) -> usize {
        let mut sum = 0.0;
        let mut needed = 0;
        for (_, weight) in &self.items {
            if sum >= share * self.total {
                break;
            }
            sum += weight;
            needed += 1;
        }
        needed
    }
}

/// The statistics of one part of the traffic.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Samples.
    pub n: usize,
    /// Packets that they stand for.
    pub weight: f64,
    /// Addresses, or /64 networks of IPv6 where several addresses of one send: see `networks`.
    pub sources: Ranking<Ip>,
    /// Those of `sources` that stand for a /64: single addresses are free for an attacker.
    pub networks: BTreeSet<Ip>,
    pub src_ports: Ranking<u16>,
    pub dst_ports: Ranking<u16>,
    pub lengths: Ranking<u16>,
    pub ttls: Ranking<u8>,
    /// First payload bytes, hashed.
    pub prefixes: Ranking<u32>,
    pub flags: Ranking<u8>,
    pub protocols: Ranking<u8>,
    /// Distinct (source, source port, destination port).
    pub flows: usize,
    /// Distinct (source, source port).
    sockets: usize,
    pub mean_len: f64,
    empty: f64,
    application: f64,
}

impl Stats {
    /// Measures `samples`.
    pub fn of(samples: &[Seen]) -> Self {
        let weight: f64 = samples.iter().map(|s| f64::from(s.weight)).sum();
        let sum = |is: &dyn Fn(&Seen) -> f64| samples.iter().map(|s| f64::from(s.weight) * is(s)).sum::<f64>();
        let networks = shared_networks(samples);
        let unit = |s: &Seen| if networks.contains(&slash64(s.src)) { slash64(s.src) } else { s.src };
        let sockets: BTreeSet<_> = samples.iter().map(|s| (s.src, s.src_port)).collect();
        let flows: BTreeSet<_> = samples.iter().map(|s| (s.src, s.src_port, s.dst_port)).collect();
        Self {
            n: samples.len(),
            weight,
            sources: Ranking::of(samples, unit),
            src_ports: Ranking::of(samples, |s| s.src_port),
            dst_ports: Ranking::of(samples, |s| s.dst_port),
            lengths: Ranking::of(samples, |s| s.ip_len),
            ttls: Ranking::of(samples, |s| s.ttl),
            prefixes: Ranking::of(samples, |s| s.prefix),
            flags: Ranking::of(samples, |s| s.tcp_flags),
            protocols: Ranking::of(samples, |s| s.protocol),
            flows: flows.len(),
            sockets: sockets.len(),
            networks: networks.clone(),
            mean_len: sum(&|s| f64::from(s.ip_len)) / weight.max(1.0),
            empty: sum(&|s| f64::from(u8::from(s.payload_len == 0))) / weight.max(1.0),
            application: sum(&|s| f64::from(u8::from(s.shape == Shape::Application))) / weight.max(1.0),
        }
    }

    /// Share of packets without payload.
    pub fn empty_share(&self) -> f64 {
        self.empty
    }

    /// Share of packets that look like those of an ordinary application.
    pub fn application_share(&self) -> f64 {
        self.application
    }

    /// Distinct flows per sample: near 1 when every packet pretends to be a new conversation.
    pub fn flow_spread(&self) -> f64 {
        ratio(self.flows, self.n)
    }

    /// Whether few sources try ever other ports from the same ones: a scan, not a flood.
    pub fn is_scan(&self) -> bool {
        let ports = self.dst_ports.distinct();
        self.sources.needed_for(0.8) <= 4
            && self.n >= 5
            && (ports * 2 >= self.n || ports >= 64 && self.dst_ports.top_share() < 0.1)
    }

    /// The heaviest sources as prefixes, at most `most`.
    pub fn prefixes_of_sources(&self, most: usize) -> Vec<IpNet> {
        self.sources.items.iter().take(most).map(|(ip, _)| self.prefix_of(*ip)).collect()
    }

    /// The prefix that one of `sources` stands for.
    pub fn prefix_of(&self, source: Ip) -> IpNet {
        let host = IpNet::from(IpAddr::from(source));
        let len = if self.networks.contains(&source) { 64 } else { host.max_prefix_len() };
        IpNet::new(host.addr(), len).expect("64 is a length of IPv6, and only its addresses are networks").trunc()
    }

    /// Distinct sources per sample.
    pub fn source_spread(&self) -> f64 {
        ratio(self.sources.distinct(), self.n)
    }

    /// Whether few sources each pretend to hold many conversations.
    pub fn few_sources_many_flows(&self) -> bool {
        self.n >= 20 && self.flow_spread() >= 0.5 && self.sources.needed_for(0.9) * 10 <= self.flows
    }

    /// Whether few sources send from ever other ports of theirs. One port to many is what servers do.
    pub fn few_sources_many_sockets(&self) -> bool {
        self.n >= 20 && self.sockets * 2 >= self.n && self.sources.needed_for(0.9) * 10 <= self.sockets
    }

    /// Whether neither side keeps to its ports: no service is at the one end or the other.
    pub fn is_portless(&self) -> bool {
        let spread = |ports: &Ranking<u16>| ports.needed_for(0.9) * 3 >= self.n;
        self.n >= 20 && spread(&self.src_ports) && spread(&self.dst_ports)
    }

    /// Whether sources were met again often enough to know how many there are.
    pub fn sources_are_counted(&self) -> bool {
        self.n >= self.sources.distinct() + 5
    }

    /// Whether conversations last: those that were met were met again, and each has several packets a second. A flooder
    /// goes through all ports before it comes to one again.
    pub fn flows_last(&self, samples: &[Seen], pps: f64) -> bool {
        let flows = estimated(samples, |s| (s.src, s.src_port, s.dst_port));
        self.n >= flows.met + 5 && pps / flows.all.max(1.0) >= 5.0
    }

    /// Packets per second of an average source, where that can be told: `pps` is the rate of all.
    pub fn per_source(&self, samples: &[Seen], pps: f64) -> Option<f64> {
        self.sources_are_counted().then(|| pps / self.estimated_sources(samples).max(1) as f64)
    }

    /// Sources behind the samples, estimated from how many were seen once and twice (Chao's lower bound).
    pub fn estimated_sources(&self, samples: &[Seen]) -> u64 {
        let unit = |s: &Seen| {
            let network = slash64(s.src);
            if self.networks.contains(&network) { network } else { s.src }
        };
        estimated(samples, unit).all as u64
    }
}

/// How many different values there are.
pub struct Number {
    /// Those that were met.
    pub met: usize,
    /// About all of them, met or not.
    pub all: f64,
}

/// Estimates how many values there are from how many were met once and twice (Chao's lower bound).
pub fn estimated<T: Ord>(samples: &[Seen], value: impl Fn(&Seen) -> T) -> Number {
    let mut values: Vec<T> = samples.iter().map(value).collect();
    values.sort_unstable();
    let runs = values.chunk_by(|a, b| a == b).map(<[T]>::len);
    let (mut met, mut once, mut twice) = (0, 0.0f64, 0.0f64);
    for times in runs {
        met += 1;
        once += f64::from(u8::from(times == 1));
        twice += f64::from(u8::from(times == 2));
    }
    Number { met, all: met as f64 + once * (once - 1.0).max(0.0) / (2.0 * (twice + 1.0)) }
}

/// The /64 of an IPv6 address; an IPv4 address stays itself.
pub fn slash64(ip: Ip) -> Ip {
    if ip.is_v4() { ip } else { Ip([ip.0[0], ip.0[1], 0, 0]) }
}

/// IPv6 networks of which more than three addresses send.
fn shared_networks(samples: &[Seen]) -> BTreeSet<Ip> {
    let addresses: BTreeSet<Ip> = samples.iter().map(|s| s.src).filter(|ip| !ip.is_v4()).collect();
    let mut counts: BTreeMap<Ip, u32> = BTreeMap::new();
    for ip in addresses {
        *counts.entry(slash64(ip)).or_default() += 1;
    }
    counts.into_iter().filter(|(_, n)| *n > 3).map(|(network, _)| network).collect()
}

/// `part` of `whole`, 0 of nothing.
pub fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
