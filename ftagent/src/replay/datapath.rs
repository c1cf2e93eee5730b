//! A model of the datapath: counts, samples and carries out rules as the kernel does, without one.
//!
//! Frames go through the very parser that the kernel runs. What the model leaves out: lists of files, reflectors and
//! the TCP gate (they need the traffic that leaves), and a limit's races between CPUs.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ftagent_common::abi::{PAYLOAD_BYTES, Rate, Reason, SAMPLE_BYTES, TargetCounters};
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Checks, Fragment, Ip, Kind, Malformed, Packet, Tunnel, parse_into};
use ftagent_common::vocab::Mode;
use ipnet::IpNet;

use super::sources::{Sources, hash};
use crate::engine::{CounterReading, Matches, PacketSample, Payload, RuleId, RuleSet, Verdict};
use crate::xdp::compile::FailSafe;
use crate::xdp::samples::read_sampled;

/// log2 of an epoch of distinct sources in nanoseconds, as in the kernel.
pub(super) const EPOCH_SHIFT: u32 = 30;

/// How many frames one sample stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// As the agent sets it at every tick: as many as make `samples_per_sec`.
    Adaptive,
    /// Always so many.
    OneIn(u32),
}

/// What of the agent's configuration the datapath knows.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Destinations that are counted; empty: all.
    pub protect: Vec<IpNet>,
    /// Sources that no rule drops.
    pub management: Vec<FailSafe>,
    pub pass_malformed: bool,
    pub max_targets: usize,
    pub max_sources: usize,
    pub samples_per_sec: u32,
    /// Packets in about a second that make a source heavy.
    pub promote_pps: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            protect: Vec::new(),
            management: Vec::new(),
            pass_malformed: false,
            max_targets: 4_096,
            max_sources: 8_192,
            samples_per_sec: 10_000,
            promote_pps: 500,
        }
    }
}

/// The counters, the rules in force, and the samples that wait for the next tick.
pub struct Datapath {
    limits: Limits,
    pub rules: RuleSet,
    pub sampling: Sampling,
    targets: BTreeMap<IpAddr, TargetCounters>,
    sources: Sources,
    buckets: HashMap<RuleId, (Rate, u64)>,
    samples: Vec<PacketSample>,
    /// What a sample stands for where that is adaptive.
    adaptive_one_in: u32,
    random: u64,
    sample_rate: Rate,
    sample_state: u64,
    /// Frames since the last tick, and when that was.
    since_tick: u64,
    ticked_ns: u64,
    /// IP packets to protected destinations.
    pub passed: u64,
    pub dropped: u64,
    pub first_drop_ns: Option<u64>,
    /// Frames that are not IP, cannot be read, or go somewhere else.
    pub not_ip: u64,
    pub unreadable: u64,
    pub elsewhere: u64,
    /// Packets of destinations beyond the most that are counted.
    pub uncounted: u64,
}

impl Datapath {
    /// One that has seen nothing.
    pub fn new(limits: Limits) -> Self {
        let samples = u64::from(limits.samples_per_sec);
        Self {
            sources: Sources::new(limits.promote_pps, limits.max_sources),
            limits,
            rules: RuleSet::default(),
            sampling: Sampling::Adaptive,
            targets: BTreeMap::new(),
            buckets: HashMap::new(),
            samples: Vec::new(),
            adaptive_one_in: 1,
            random: 0x2545_f491_4f6c_dd1d,
            sample_rate: Rate::packets(samples, samples / 10),
            sample_state: 0,
            since_tick: 0,
            ticked_ns: 0,
            passed: 0,
            dropped: 0,
            first_drop_ns: None,
            not_ip: 0,
            unreadable: 0,
            elsewhere: 0,
            uncounted: 0,
        }
    }

    /// What the agent reads at a tick: samples first, then the counters.
    pub(super) fn tick(&mut self, now_ns: u64) -> (Vec<PacketSample>, CounterReading) {
        let span_ns = now_ns.saturating_sub(self.ticked_ns).max(1);
        let pps = u128::from(std::mem::take(&mut self.since_tick)) * 1_000_000_000 / u128::from(span_ns);
        self.ticked_ns = now_ns;
        let one_in = pps.div_ceil(u128::from(self.limits.samples_per_sec.max(1))).clamp(1, 1 << 20);
        self.adaptive_one_in = u32::try_from(one_in).unwrap_or(1);
        let reading = CounterReading {
            interfaces: Vec::new(),
            targets: self.targets.iter().map(|(ip, counters)| (*ip, *counters)).collect(),
            sources: self.sources.heavy(now_ns),
        };
        (std::mem::take(&mut self.samples), reading)
    }

    /// Whether the next tick has nothing new to tell.
    pub(super) fn is_quiet(&self) -> bool {
        self.samples.is_empty() && self.since_tick == 0
    }

    /// `count` equal frames arrive at `now_ns`; how many of them passed.
    ///
    /// `bytes` is what is known of a frame of `wire_len` bytes.
    pub fn frames(&mut self, bytes: &[u8], wire_len: usize, count: u64, now_ns: u64) -> u64 {
        let wire_len = wire_len.max(bytes.len());
        self.since_tick += count;
        let mut packet = Packet::EMPTY;
        let refused = match parse_into(&Frame::new(bytes), wire_len, Checks::ALL, &mut packet) {
            Kind::Ip | Kind::Tunnel => None,
            Kind::NotIp => {
                self.not_ip += count;
                return count;
            }
            Kind::Malformed(why) if !why.has_target() => {
                self.unreadable += count;
                let passes = self.limits.pass_malformed || self.rules.mode.is_some_and(|m| m != Mode::Enforce);
                return if passes { count } else { 0 };
            }
            // What no host can have sent is counted for its target all the same.
            Kind::Malformed(why) => Some(self.refusal(why)),
        };
        if refused.is_none()
            && let Some(closed) = self.closed(&packet, bytes, wire_len)
        {
            packet = closed;
        }
        let (src, dst) = (IpAddr::from(packet.src), IpAddr::from(packet.dst));
        if !self.is_protected(packet.dst) {
            self.elsewhere += count;
            return count;
        }
        let payload = bytes.get(usize::from(packet.payload_offset)..).unwrap_or(&[]);
        let noted = hash(packet.src);
        let full = self.targets.len() >= self.limits.max_targets && !self.targets.contains_key(&dst);
        self.uncounted += if full { count } else { 0 };
        let mut sampled = Sampled { bytes, wire_len, now_ns, is_closed: packet.tunnel == Tunnel::Closed };
        let mut passed = 0;
        for _ in 0..count {
            let verdict = match refused {
                Some(why) if !self.is_trusted(src, packet.dst_port) => why,
                _ => self.verdict(&packet, payload, wire_len, now_ns),
            };
            let is_dropped = verdict.is_drop() && self.rules.mode.is_none_or(|mode| mode == Mode::Enforce);
            if is_dropped {
                self.dropped += 1;
                self.first_drop_ns.get_or_insert(now_ns);
            } else {
                self.passed += 1;
                passed += 1;
            }
            if !full {
                let counters = self.targets.entry(dst).or_default();
                let flow = &mut counters.classes[packet.class.index()];
                if is_dropped {
                    flow.dropped.add(wire_len as u64)
                } else {
                    flow.passed.add(wire_len as u64)
                }
                // Blocks stand before the sketch.
                if !matches!(verdict, Reason::BlockedSource | Reason::BlockedPrefix) {
                    counters.note_source(noted, (now_ns >> EPOCH_SHIFT) as u32);
                }
            }
            self.sources.count(packet.src, wire_len as u64, is_dropped, now_ns);
            self.sample(&mut sampled, verdict);
        }
        passed
    }

    fn is_protected(&self, dst: Ip) -> bool {
        let dst = IpAddr::from(dst);
        self.limits.protect.is_empty() || self.limits.protect.iter().any(|net| net.contains(&dst))
    }

    /// The packet around one of a tunnel, if that one alone is for a protected destination: as the kernel judges it, a
    /// flood of tunnels is one on whom they are for.
    fn closed(&self, packet: &Packet, bytes: &[u8], wire_len: usize) -> Option<Packet> {
        if !packet.tunnel.is_open() || self.is_protected(packet.dst) {
            return None;
        }
        let around = read_sampled(bytes, wire_len, true)?;
        let is_trusted = self.is_trusted(packet.src.into(), packet.dst_port);
        (self.is_protected(around.dst) && !is_trusted).then_some(around)
    }

    /// What the sanity checks say of such a packet.
    fn refusal(&self, why: Malformed) -> Reason {
        match why {
            _ if self.limits.pass_malformed => Reason::MalformedPassed,
            Malformed::MartianSource => Reason::MartianSource,
            Malformed::Land => Reason::Land,
            Malformed::PortZero => Reason::PortZero,
            Malformed::ImpossibleFlags => Reason::ImpossibleFlags,
            Malformed::BadLength => Reason::BadLength,
            _ => Reason::Malformed,
        }
    }

    fn is_trusted(&self, src: IpAddr, dst_port: u16) -> bool {
        let is_for = |ports: &[u16]| ports.is_empty() || ports.contains(&dst_port);
        self.limits.management.iter().any(|m| m.prefix.contains(&src) && is_for(&m.ports))
            || self.rules.allow.iter().any(|entry| entry.prefix.contains(&src))
    }

    fn verdict(&mut self, packet: &Packet, payload: &[u8], wire_len: usize, now_ns: u64) -> Reason {
        if self.rules.mode == Some(Mode::Bypass) {
            return Reason::Bypassed;
        }
        if self.is_trusted(packet.src.into(), packet.dst_port) {
            return Reason::Allowlisted;
        }
        for (id, rule) in &self.rules.rules {
            if rule.evaluate
                || rule.expires_at_ns.is_some_and(|end| end <= now_ns)
                || !meets(&rule.matches, packet, payload)
            {
                continue;
            }
            let rate = match rule.verdict {
                Verdict::Drop if rule.matches.source.is_some() => return Reason::BlockedSource,
                Verdict::Drop => return Reason::TargetRule,
                Verdict::LimitPps { pps, burst } => Rate::packets(pps, burst),
                Verdict::LimitBps { bps, burst } => Rate::bits(bps, burst),
                Verdict::Pass => return Reason::RulePassed,
                Verdict::Sample | Verdict::Mark { .. } => continue,
            };
            let bucket = self.buckets.entry(*id).or_insert((rate, 0));
            match rate.conform(bucket.1, now_ns.max(1), wire_len as u64) {
                Some(state) => bucket.1 = state,
                None => return Reason::TargetLimit,
            }
        }
        Reason::Clean
    }

    /// Takes rules into force; what the removed ones had counted is forgotten.
    pub(super) fn enforce(&mut self, rules: RuleSet) {
        self.buckets.retain(|id, _| rules.rules.contains_key(id));
        self.rules = rules;
    }

    /// Copies the frame for the agent if chance and the bound on samples say so.
    fn sample(&mut self, frame: &mut Sampled<'_>, reason: Reason) {
        let one_in = match self.sampling {
            Sampling::OneIn(one_in) => one_in.max(1),
            Sampling::Adaptive => self.adaptive_one_in,
        };
        // xorshift64, as in the kernel.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if (self.random >> 32) as u32 > u32::MAX / one_in {
            return;
        }
        let Some(state) = self.sample_rate.conform(self.sample_state, frame.now_ns, 0) else { return };
        self.sample_state = state;
        self.samples.extend(frame.read(one_in, reason));
    }
}

/// A frame that may be copied for the agent.
struct Sampled<'a> {
    bytes: &'a [u8],
    wire_len: usize,
    now_ns: u64,
    is_closed: bool,
}

impl Sampled<'_> {
    /// As the agent reads it out of the ring: of the first bytes alone, and without the checks.
    fn read(&self, one_in: u32, reason: Reason) -> Option<PacketSample> {
        let head = self.bytes.get(..self.bytes.len().min(SAMPLE_BYTES))?;
        let packet = read_sampled(head, self.wire_len, self.is_closed)?;
        let payload = head.get(usize::from(packet.payload_offset)..).unwrap_or(&[]);
        let wire_len = u32::try_from(self.wire_len).unwrap_or(u32::MAX);
        Some(PacketSample { time_ns: self.now_ns, packet, wire_len, one_in, reason, payload: Payload::of(payload) })
    }
}

/// Whether a packet meets a rule, as the datapath decides it.
pub fn meets(m: &Matches, p: &Packet, payload: &[u8]) -> bool {
    let ports = matches!(p.fragment, Fragment::Whole | Fragment::First) && matches!(p.protocol, 6 | 17);
    let within = |range: Option<[u16; 2]>, v: u16| range.is_none_or(|[low, high]| ports && (low..=high).contains(&v));
    let contains = |net: Option<IpNet>, ip: Ip| net.is_none_or(|net| net.contains(&IpAddr::from(ip)));
    contains(m.source, p.src)
        && contains(m.target, p.dst)
        && m.protocol.is_none_or(|n| n == p.protocol)
        && within(m.src_port, p.src_port)
        && within(m.dst_port, p.dst_port)
        && m.length.is_none_or(|[low, high]| (low..=high).contains(&p.ip_len))
        && m.ttl.is_none_or(|[low, high]| (low..=high).contains(&p.ttl))
        && m.icmp_type.is_none_or(|[low, high]| (low..=high).contains(&p.icmp_type))
        && m.tcp_flags.is_none_or(|[mask, value]| p.tcp_flags & mask == value)
        && m.fragment.is_none_or(|wanted| wanted == (p.fragment != Fragment::Whole))
        && m.dscp.is_none_or(|[low, high]| (low..=high).contains(&p.dscp))
        && m.payload.as_ref().is_none_or(|bytes| payload[..payload.len().min(PAYLOAD_BYTES)].starts_with(bytes))
}
