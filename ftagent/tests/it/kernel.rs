//! A model of the datapath: counts, samples and carries out rules as the kernel does, and feeds the engine every 50 ms.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ftagent::engine::{
    Command, CounterReading, EnforceResult, Engine, EngineState, Input, Matches, Now, PacketSample, Payload, Rule,
    RuleId, RuleSet, Settings, Verdict,
};
use ftagent_common::abi::{Rate, Reason, SourceCounters, TargetCounters};
use ftagent_common::api::IncidentReport;
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Checks, Fragment, Kind, Packet, parse_into};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::frames::Dice;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SEC: u64 = 1_000_000_000;
pub(crate) const TICK: u64 = 50 * MS;

/// The engine, the kernel below it, and everything it said.
pub(crate) struct Kernel {
    pub(crate) engine: Engine,
    pub(crate) now_ns: u64,
    next_tick: u64,
    targets: BTreeMap<IpAddr, TargetCounters>,
    sources: HashMap<IpAddr, SourceCounters>,
    pub(crate) rules: RuleSet,
    buckets: HashMap<RuleId, (Rate, u64)>,
    samples: Vec<PacketSample>,
    /// One frame in so many is sampled.
    pub(crate) one_in: u32,
    dice: Dice,
    sample_rate: Rate,
    sample_state: u64,
    /// The newest report of each incident.
    pub(crate) reports: BTreeMap<Uuid, IncidentReport>,
    /// Every command but reports, as words.
    pub(crate) log: Vec<String>,
    pub(crate) persisted: Option<EngineState>,
    pub(crate) passed: u64,
    pub(crate) dropped: u64,
    /// When the first automatic rule was asked for.
    pub(crate) first_rule_ns: Option<u64>,
    pub(crate) first_open_ns: Option<u64>,
    pub(crate) first_drop_ns: Option<u64>,
}

pub(crate) fn at(mono_ns: u64) -> Now {
    let wall = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000) + Duration::nanoseconds(mono_ns as i64);
    Now { mono_ns, wall }
}

impl Kernel {
    pub(crate) fn new(settings: Settings) -> Self {
        let start = 1_000 * SEC;
        let mut kernel = Self {
            engine: Engine::new(settings, at(start)),
            now_ns: start,
            next_tick: start + TICK,
            targets: BTreeMap::new(),
            sources: HashMap::new(),
            rules: RuleSet::default(),
            buckets: HashMap::new(),
            samples: Vec::new(),
            one_in: 1,
            dice: Dice(0x2545_f491_4f6c_dd1d),
            sample_rate: Rate::packets(10_000, 500),
            sample_state: 0,
            reports: BTreeMap::new(),
            log: Vec::new(),
            persisted: None,
            passed: 0,
            dropped: 0,
            first_rule_ns: None,
            first_open_ns: None,
            first_drop_ns: None,
        };
        kernel.engine.on(Input::Counters(CounterReading::default()), at(start));
        kernel.carry_out();
        kernel
    }

    /// Gives the engine an input now.
    pub(crate) fn tell(&mut self, input: Input) {
        self.engine.on(input, at(self.now_ns));
        self.carry_out();
    }

    /// Lets time pass up to `ns`, with ticks and deadlines.
    pub(crate) fn run_until(&mut self, ns: u64) {
        while self.next_tick <= ns {
            self.now_ns = self.next_tick;
            self.next_tick += TICK;
            let samples = std::mem::take(&mut self.samples);
            self.engine.on(Input::Samples(samples), at(self.now_ns));
            let reading = CounterReading {
                interfaces: Vec::new(),
                targets: self.targets.iter().map(|(ip, c)| (*ip, *c)).collect(),
                sources: self
                    .sources
                    .iter()
                    .filter(|(_, c)| c.flow.total().packets > 500)
                    .map(|(ip, c)| (*ip, *c))
                    .collect(),
            };
            self.engine.on(Input::Counters(reading), at(self.now_ns));
            self.carry_out();
        }
        self.now_ns = self.now_ns.max(ns);
        while self.engine.next_deadline().is_some_and(|due| due <= self.now_ns) {
            self.engine.on_deadline(at(self.now_ns));
            self.carry_out();
        }
    }

    pub(crate) fn run_for(&mut self, ns: u64) {
        self.run_until(self.now_ns + ns);
    }

    /// One frame arrives at `ns`; whether it passed.
    pub(crate) fn frame(&mut self, bytes: &[u8], wire_len: usize, ns: u64) -> bool {
        self.run_until(ns);
        let mut packet = Packet::EMPTY;
        let refused = match parse_into(&Frame::new(bytes), wire_len, Checks::ALL, &mut packet) {
            Kind::Ip | Kind::Tunnel => None,
            Kind::NotIp => return true,
            Kind::Malformed(why) if !why.has_target() => return false,
            // What no host can have sent is dropped, and counted for its target as the kernel does: by class.
            Kind::Malformed(_) => {
                let class = packet.class;
                packet = Packet::EMPTY;
                assert_eq!(parse_into(&Frame::new(bytes), wire_len, Checks::NONE, &mut packet), Kind::Ip);
                packet.class = class;
                Some(Reason::MartianSource)
            }
        };
        let verdict = refused.unwrap_or_else(|| self.judge(&packet, wire_len));
        let dropped = verdict.is_drop();
        let flow = &mut self.targets.entry(packet.dst.into()).or_default().classes[packet.class.index()];
        let source = &mut self.sources.entry(packet.src.into()).or_default().flow;
        if dropped {
            self.dropped += 1;
            self.first_drop_ns.get_or_insert(ns);
            flow.dropped.add(wire_len as u64);
            source.dropped.add(wire_len as u64);
        } else {
            self.passed += 1;
            flow.passed.add(wire_len as u64);
            source.passed.add(wire_len as u64);
        }
        if self.dice.below(u64::from(self.one_in)) == 0
            && let Some(state) = self.sample_rate.conform(self.sample_state, ns, 0)
        {
            self.sample_state = state;
            let payload = bytes.get(usize::from(packet.payload_offset)..).unwrap_or(&[]);
            // The ring buffer carries the first bytes of a frame alone.
            let room = ftagent_common::abi::SAMPLE_BYTES.saturating_sub(usize::from(packet.payload_offset));
            self.samples.push(PacketSample {
                time_ns: ns,
                packet,
                wire_len: wire_len as u32,
                one_in: self.one_in,
                reason: verdict,
                payload: Payload::of(&payload[..payload.len().min(room)]),
            });
        }
        !dropped
    }

    fn judge(&mut self, packet: &Packet, wire_len: usize) -> Reason {
        let src = IpAddr::from(packet.src);
        if self.rules.allow.iter().any(|e| e.prefix.contains(&src)) {
            return Reason::Allowlisted;
        }
        for (id, rule) in &self.rules.rules {
            if !meets(&rule.matches, packet) || rule.expires_at_ns.is_some_and(|end| end <= self.now_ns) {
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
            match rate.conform(bucket.1, self.now_ns.max(1), wire_len as u64) {
                Some(state) => bucket.1 = state,
                None => return Reason::TargetLimit,
            }
        }
        Reason::Clean
    }

    fn carry_out(&mut self) {
        while let Some(command) = self.engine.poll_command() {
            match command {
                Command::Enforce(set) => {
                    self.log.push(format!("enforce {}", set.rules.len()));
                    let changes = self.rules.changes_to(&set);
                    if changes
                        .iter()
                        .any(|c| matches!(c, ftagent::engine::Change::Install(r) if r.origin.is_automatic()))
                    {
                        self.first_rule_ns.get_or_insert(self.now_ns);
                    }
                    let results = changes
                        .iter()
                        .filter_map(|change| match change {
                            ftagent::engine::Change::Install(rule) => Some((rule.id, true)),
                            ftagent::engine::Change::Remove(rule) => Some((rule.id, false)),
                            ftagent::engine::Change::Extend(_) => None,
                        })
                        .map(|(rule, installed)| EnforceResult {
                            rule,
                            installed,
                            result: Ok(()),
                            at_mono_ns: self.now_ns,
                        })
                        .collect();
                    self.rules = set;
                    self.engine.on(Input::Enforced(results), at(self.now_ns));
                }
                Command::Report(report) => {
                    self.first_open_ns.get_or_insert(self.now_ns);
                    self.log.push(format!("report {} {}", report.status, report.revision));
                    if let Some(older) = self.reports.get(&report.uuid) {
                        assert!(report.revision > older.revision, "revisions grow");
                        assert!(report.severity >= older.severity, "severity never falls");
                    }
                    self.reports.insert(report.uuid, *report);
                }
                Command::Persist => {
                    self.log.push("persist".to_owned());
                    self.persisted = Some(self.engine.state());
                }
                Command::Ack(ack) => self.log.push(format!("ack {:?} {}{}", ack.status, ack.output, ack.error)),
                Command::Answer(outcome) => self.log.push(format!("{outcome:?}")),
            }
        }
    }

    /// Rules that nobody decided by hand.
    pub(crate) fn automatic(&self) -> Vec<&Rule> {
        self.rules.rules.values().filter(|r| r.origin.is_automatic()).collect()
    }
}

/// Whether a packet meets a rule, as the datapath decides it.
pub(crate) fn meets(m: &Matches, p: &Packet) -> bool {
    let ports = matches!(p.fragment, Fragment::Whole | Fragment::First) && matches!(p.protocol, 6 | 17);
    let within = |range: Option<[u16; 2]>, v: u16| range.is_none_or(|[low, high]| ports && (low..=high).contains(&v));
    m.source.is_none_or(|s| s.contains(&IpAddr::from(p.src)))
        && m.target.is_none_or(|t| t.contains(&IpAddr::from(p.dst)))
        && m.protocol.is_none_or(|n| n == p.protocol)
        && within(m.src_port, p.src_port)
        && within(m.dst_port, p.dst_port)
        && m.length.is_none_or(|[low, high]| (low..=high).contains(&p.ip_len))
        && m.ttl.is_none_or(|[low, high]| (low..=high).contains(&p.ttl))
        && m.icmp_type.is_none_or(|[low, high]| (low..=high).contains(&p.icmp_type))
        && m.tcp_flags.is_none_or(|[mask, value]| p.tcp_flags & mask == value)
        && m.fragment.is_none_or(|wanted| wanted == (p.fragment != Fragment::Whole))
}
