//! The samples that are remembered: the newest of all for classification, and a few per target from calm times, so
//! that what a filter would hit besides the attack can be measured.

use std::collections::{HashMap, VecDeque};

use ftagent_common::packet::{Fragment, Ip, Tunnel, proto};
use ftagent_common::vocab::{AttackFamily, TrafficClass};

use super::classify::Shape;
use super::classify::payload;
use super::input::PacketSample;
use super::sample::{MS, SEC};

/// What is kept of a sample.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub time_ns: u64,
    pub src: Ip,
    pub dst: Ip,
    /// How many packets it stands for.
    pub weight: u32,
    pub src_port: u16,
    pub dst_port: u16,
    pub ip_len: u16,
    pub payload_len: u16,
    /// Hash of the first eight payload bytes; of DNS, of the name that is asked for.
    pub prefix: u32,
    /// The first label of a DNS query's name.
    pub label: Label,
    pub class: TrafficClass,
    pub shape: Shape,
    pub fragment: Fragment,
    pub version: u8,
    pub protocol: u8,
    pub ttl: u8,
    pub tcp_flags: u8,
    pub icmp_type: u8,
    /// In what it was carried, and who carried it.
    pub tunnel: Tunnel,
    pub outer_src: Ip,
}

impl Seen {
    /// Keeps of `sample` what decisions need.
    pub fn of(sample: &PacketSample) -> Self {
        let p = &sample.packet;
        // Of what a tunnel carries the header inside; records of flows have none, and end after their Ethernet header.
        let l3 = if p.l3_offset > 0 { u32::from(p.l3_offset) } else { 14 + 4 * u32::from(p.vlan_tags) };
        let headers = u32::from(p.payload_offset).saturating_sub(l3);
        let payload_len = u16::try_from(u32::from(p.ip_len).saturating_sub(headers)).unwrap_or(u16::MAX);
        let later_fragment = matches!(p.fragment, Fragment::Middle | Fragment::Last);
        let bytes = sample.payload.as_slice();
        let bytes = &bytes[..bytes.len().min(usize::from(payload_len))];
        let shape = if later_fragment {
            Shape::Other
        } else {
            payload::shape(p.protocol, p.src_port, p.dst_port, bytes, usize::from(payload_len))
        };
        let is_named = matches!(shape, Shape::DnsQuery | Shape::Answer(AttackFamily::DnsAmplification));
        let name = bytes.get(payload::DNS_HEADER..).filter(|name| is_named && !name.is_empty());
        Self {
            time_ns: sample.time_ns,
            src: p.src,
            dst: p.dst,
            weight: sample.one_in.max(1),
            src_port: p.src_port,
            dst_port: p.dst_port,
            ip_len: p.ip_len,
            payload_len,
            prefix: match name {
                Some(name) => fnv(name),
                None if bytes.is_empty() && payload_len > 0 => unseen(p),
                None => fnv(&bytes[..bytes.len().min(8)]),
            },
            label: name.filter(|_| shape == Shape::DnsQuery).map_or_else(Label::default, Label::of),
            class: p.class,
            shape,
            fragment: p.fragment,
            version: p.version,
            protocol: p.protocol,
            ttl: p.ttl,
            tcp_flags: p.tcp_flags,
            icmp_type: p.icmp_type,
            tunnel: p.tunnel,
            outer_src: p.outer_src,
        }
    }

    /// Bytes of options in the headers of a TCP segment.
    pub fn tcp_options(&self) -> u16 {
        let headers = if self.version == 4 { 40 } else { 60 };
        self.ip_len.saturating_sub(self.payload_len).saturating_sub(headers)
    }

    /// Whether the segment carries no TCP options.
    pub fn is_bare_tcp(&self) -> bool {
        self.protocol == proto::TCP && self.tcp_options() == 0
    }
}

/// What the first label of a name looks like, as far as it was sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Its length in bytes, 0 where there is none.
    pub len: u8,
    /// Its letters that were sampled, and how many of them are vowels.
    pub letters: u8,
    pub vowels: u8,
    /// Its first byte.
    pub first: u8,
}

impl Label {
    /// Of a name on the wire (RFC 1035 section 3.1).
    fn of(name: &[u8]) -> Self {
        let len = name.first().copied().unwrap_or(0);
        let label = name.get(1..).unwrap_or_default();
        let label = &label[..label.len().min(usize::from(len))];
        let count = |is: fn(&u8) -> bool| label.iter().filter(|c| is(c)).count().min(255) as u8;
        let is_vowel = |c: &u8| matches!(c.to_ascii_lowercase(), b'a' | b'e' | b'i' | b'o' | b'u' | b'y');
        let first = label.first().copied().unwrap_or(0);
        Self { len, letters: count(u8::is_ascii_alphabetic), vowels: count(is_vowel), first }
    }
}

/// A payload that nobody saw, as flow records have it, is not the same as all the others.
fn unseen(packet: &ftagent_common::packet::Packet) -> u32 {
    let ports = [packet.src_port.to_be_bytes(), packet.dst_port.to_be_bytes()].concat();
    fnv(&[&packet.src.octets()[..], &ports].concat())
}

/// FNV-1a; nothing here needs to resist an adversary.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

/// Samples of all targets that are kept for classification: a second's worth at the highest sampling rate.
const RECENT: usize = 10_000;
/// Samples from calm times per target, and targets that have some.
const CALM_PER_TARGET: usize = 64;
const CALM_TARGETS: usize = 2_048;
/// How old a sample must be before it may count as calm: long enough that an attack it began would be known.
const SETTLE_NS: u64 = SEC;
/// Calm samples older than this say little about now.
const CALM_AGE_NS: u64 = 1_800 * SEC;

/// Recent samples, and samples from calm times.
#[derive(Debug, Default)]
pub(super) struct Window {
    recent: VecDeque<Seen>,
    /// How many of `recent`, from the front, were offered to `calm` already.
    settled: usize,
    calm: HashMap<Ip, VecDeque<Seen>>,
}

impl Window {
    /// Adds samples in the order they came.
    pub(super) fn extend(&mut self, samples: &[PacketSample]) {
        for sample in samples {
            if self.recent.len() >= RECENT {
                self.recent.pop_front();
                self.settled = self.settled.saturating_sub(1);
            }
            self.recent.push_back(Seen::of(sample));
        }
    }

    /// Moves samples that turned out harmless into the calm ones, and forgets the old. `is_calm` is asked per target.
    pub(super) fn settle(&mut self, now_ns: u64, is_calm: impl Fn(Ip) -> bool) {
        while let Some(seen) = self.recent.get(self.settled) {
            if seen.time_ns + SETTLE_NS > now_ns {
                break;
            }
            let seen = *seen;
            self.settled += 1;
            if is_calm(seen.dst) && (self.calm.contains_key(&seen.dst) || self.calm.len() < CALM_TARGETS) {
                let kept = self.calm.entry(seen.dst).or_default();
                if kept.len() >= CALM_PER_TARGET {
                    kept.pop_front();
                }
                kept.push_back(seen);
            }
        }
        // Two seconds serve every classification; older ones only cost memory and time.
        while self.settled > 0 && self.recent.front().is_some_and(|s| s.time_ns + 2 * SEC < now_ns) {
            self.recent.pop_front();
            self.settled -= 1;
        }
    }

    /// Drops calm samples of targets that were quiet for long.
    pub(super) fn forget(&mut self, now_ns: u64) {
        self.calm.retain(|_, kept| kept.back().is_some_and(|s| s.time_ns + CALM_AGE_NS > now_ns));
    }

    /// Samples towards the targets for which `is_target` holds, from `from_ns` on.
    pub(super) fn since(&self, from_ns: u64, is_target: impl Fn(Ip) -> bool) -> Vec<Seen> {
        self.recent.iter().filter(|s| s.time_ns >= from_ns && is_target(s.dst)).copied().collect()
    }

    /// Samples towards the same targets from before `before_ns`, at most a few hundred.
    pub(super) fn before(&self, before_ns: u64, is_target: impl Fn(Ip) -> bool) -> Vec<Seen> {
        // What came in the last moment before the excess may already be its beginning.
        let before_ns = before_ns.saturating_sub(100 * MS);
        let mut targets: Vec<_> = self.calm.iter().filter(|(dst, _)| is_target(**dst)).collect();
        targets.sort_unstable_by_key(|(dst, _)| **dst);
        let mut clean: Vec<Seen> = targets.into_iter().flat_map(|(_, kept)| kept).take(512).copied().collect();
        let waiting = self.recent.iter().skip(self.settled);
        clean.extend(waiting.filter(|s| is_target(s.dst)).take(512));
        clean.retain(|s| s.time_ns < before_ns);
        clean
    }
}
