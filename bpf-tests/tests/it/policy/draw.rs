//! Random rule sets and packets over few addresses and ports, so that they meet.

use std::net::IpAddr;

use bpf_tests::packet::{FragmentPosition, PacketBuilder};
use ftagent::engine::{Matches, Origin, Point, Rule, RuleId, Verdict};
use ftagent::xdp::compile::FailSafe;
use ftagent_common::abi::Reason;
use ftagent_common::vocab::Mode;
use ipnet::IpNet;

use super::model::{Arrival, ENDED, Facts, TIGHT_BPS, WIDE_PPS, World};
use super::random::Random;
use super::{gate, lists};
use crate::datapath::net;
use crate::disguise;

pub(crate) const SOURCES: [&str; 15] = [
    "198.51.100.1",
    "198.51.100.2",
    "198.51.100.200",
    "198.51.101.1",
    "203.0.113.5",
    "192.0.2.9",
    "8.8.8.8",
    "10.99.0.2",
    "2001:db8:1:2::1",
    "2001:db8:1:2::2",
    "2001:db8:1:3::1",
    "2001:db8:1:2ff::1",
    "2001:db8:2::1",
    "2001:db9::1",
    "fe80::1",
];
pub(crate) const TARGETS: [&str; 6] =
    ["10.99.0.1", "10.99.0.77", "192.0.2.200", "fd99::1", "fd99::77", "2001:db8:ffff::1"];
const LENGTHS4: [u8; 12] = [0, 8, 15, 16, 17, 23, 24, 25, 30, 31, 32, 32];
const LENGTHS6: [u8; 16] = [0, 16, 31, 32, 47, 48, 49, 55, 56, 60, 63, 64, 64, 65, 128, 128];
pub(crate) const PORTS: [u16; 7] = [22, 53, 80, 443, 9, 179, 40_000];
const DSCPS: [u8; 4] = [0, 10, 46, 63];
/// What half of the packets carry; the others' payload is zero.
const PAYLOAD: &[u8; 16] = b"GET /wp-login.ph";
const PROTOCOLS: [u8; 6] = [6, 17, 1, 58, 47, 50];
/// Rules of a set at most; a target can have no more than sixteen.
const RULES: usize = 24;
const ON_TARGETS: usize = 12;

pub(crate) fn address(random: &mut Random, among: &[&str]) -> IpAddr {
    random.pick(among).parse().expect("an address")
}

pub(crate) fn prefix(random: &mut Random, among: &[&str]) -> IpNet {
    let address = address(random, among);
    // Everything is rare: it leaves nothing for the others.
    let len = if address.is_ipv4() { random.pick(&LENGTHS4) } else { random.pick(&LENGTHS6) };
    let len = if len < 8 && !random.one_in(8) { 32 } else { len };
    IpNet::new(address, len).expect("a length of the family").trunc()
}

/// Everything that is in force in one round.
pub(crate) fn world(random: &mut Random) -> World {
    let count = random.below(RULES + 1);
    let mut on_targets = 0;
    // An operator's block that has ended hides an automatic one around it until user space takes it away, which no test
    // here waits for: either nothing of operators has ended, or there is nothing automatic.
    let operators_end = random.one_in(2);
    let mut rules: Vec<Rule> = (1..=count as u64)
        .map(|id| {
            let is_on_target = random.one_in(3) && on_targets < ON_TARGETS;
            on_targets += usize::from(is_on_target);
            rule(random, id, is_on_target, operators_end)
        })
        .collect();
    // An odd id keeps its slot of counters from set to set; shuffled ids take others.
    if random.one_in(2) {
        let shift = random.below(20_000) as u64;
        for rule in &mut rules {
            rule.id = RuleId(rule.id.0 + shift);
        }
    }
    let some = |random: &mut Random, most: usize| 0..random.below(most + 1);
    let lists = lists::draw(random);
    World {
        rules,
        lists,
        gate: gate::draw(random),
        allow: some(random, 3).map(|_| prefix(random, &SOURCES)).collect(),
        fail_safe: some(random, 3).map(|_| fail_safe(random)).collect(),
        protected: some(random, 4).map(|_| prefix(random, &TARGETS)).collect(),
        mode: random.pick(&[Mode::Enforce, Mode::Enforce, Mode::Enforce, Mode::Enforce, Mode::Evaluate, Mode::Bypass]),
        is_orphaned: random.one_in(4),
        passes_malformed: random.one_in(4),
        used: Default::default(),
    }
}

fn fail_safe(random: &mut Random) -> FailSafe {
    let ports = if random.one_in(2) { Vec::new() } else { vec![random.pick(&PORTS[..4]), random.pick(&PORTS[..4])] };
    FailSafe { prefix: prefix(random, &SOURCES), ports }
}

fn rule(random: &mut Random, id: u64, is_on_target: bool, operators_end: bool) -> Rule {
    let matches = if is_on_target { on_target(random) } else { Matches::source(prefix(random, &SOURCES)) };
    let verdict = match random.below(8) {
        0 | 1 => Verdict::LimitBps { bps: TIGHT_BPS, burst: 0 },
        2 => Verdict::LimitPps { pps: WIDE_PPS, burst: WIDE_PPS },
        3 if is_on_target => random.pick(&[Verdict::Pass, Verdict::Pass, Verdict::Sample, Verdict::Mark { dscp: 46 }]),
        _ => Verdict::Drop,
    };
    // Also a rule without a target can turn out to be a block of its source and of nothing else.
    let may_hide = matches.is_source_only();
    let is_automatic = random.one_in(2) && (!may_hide || !operators_end);
    let origin = if is_automatic { Origin::Response { incident: uuid::Uuid::from_u128(7) } } else { Origin::Operator };
    let may_end = !may_hide || is_automatic || operators_end;
    let expires_at_ns = match random.pick(&[None, None, Some(ENDED), Some(u64::MAX), Some(u64::MAX)]) {
        Some(ENDED) if !may_end => None,
        ends => ends,
    };
    Rule { id: RuleId(id), matches, verdict, point: Point::Datapath, origin, expires_at_ns, evaluate: random.one_in(6) }
}

fn on_target(random: &mut Random) -> Matches {
    let mut matches = any_matches(random);
    if matches.source == Some(net("::/0")) && !matches.target.is_some_and(|t| t.addr().is_ipv6()) {
        // Refused: it would meet IPv4 packets too.
        matches.source = None;
    }
    matches
}

fn any_matches(random: &mut Random) -> Matches {
    fn maybe<T>(random: &mut Random, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
        random.one_in(4).then(|| value(random))
    }
    fn range<T: Ord + Copy>(random: &mut Random, among: &[T]) -> [T; 2] {
        let (a, b) = (random.pick(among), random.pick(among));
        [a.min(b), a.max(b)]
    }
    Matches {
        source: maybe(random, |r| prefix(r, &SOURCES)),
        target: (!random.one_in(8)).then(|| prefix(random, &TARGETS)),
        protocol: maybe(random, |r| r.pick(&PROTOCOLS)),
        src_port: maybe(random, |r| range(r, &PORTS)),
        dst_port: maybe(random, |r| range(r, &PORTS)),
        length: maybe(random, |r| range(r, &[0, 28, 29, 40, 48, 60, 61, 100, 1_500, u16::MAX])),
        ttl: maybe(random, |r| range(r, &[0, 1, 63, 64, 65, 254, 255])),
        icmp_type: maybe(random, |r| range(r, &[0, 3, 8, 128, 135, 255])),
        tcp_flags: maybe(random, |r| r.pick(&[[0x02, 0x02], [0x12, 0x02], [0x12, 0x12], [0x3f, 0x10], [0x04, 0x00]])),
        fragment: maybe(random, |r| r.one_in(2)),
        dscp: maybe(random, |r| range(r, &DSCPS)),
        payload: maybe(random, |r| PAYLOAD[..1 + r.below(16)].to_vec()),
        // The datapath carries one source a rule.
        sources: Vec::new(),
    }
}

/// A frame and what it is.
pub(crate) fn arrival(random: &mut Random, world: &World) -> (Arrival, Vec<u8>) {
    if random.one_in(40) {
        let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 2], &[0x08, 0x06], &[0; 28]].concat();
        return (Arrival::NotIp, frame);
    }
    let (mut facts, mut frame, tags) = packet(random, world);
    if tags == 0 && random.one_in(4) {
        let carrier = address(random, &SOURCES);
        let dst = target_of(random, carrier);
        let around = PacketBuilder::new(carrier, dst).ttl(9);
        frame = disguise::carried(around, random.pick(&disguise::CARRIERS), &frame).build();
        facts.carrier = Some(carrier);
        facts.around = Some(Box::new(around_of(carrier, dst, &frame)));
    }
    if random.one_in(40) {
        // Cut in the network header.
        return (Arrival::Refused(Reason::Malformed), frame[..30].to_vec());
    }
    (Arrival::Packet(facts), frame)
}

/// What the packet around is when nobody looks inside: an untagged one without options.
fn around_of(src: IpAddr, dst: IpAddr, frame: &[u8]) -> Facts {
    let (protocol, header) = if src.is_ipv4() { (frame[23], 20) } else { (frame[20], 40) };
    Facts {
        src,
        dst,
        carrier: None,
        around: None,
        protocol,
        ttl: 9,
        length: (frame.len() - 14) as u16,
        ports: [0, 0],
        tcp_flags: 0,
        icmp_type: 0,
        is_fragment: false,
        is_later: false,
        dscp: 0,
        payload: frame[14 + header..].to_vec(),
    }
}

pub(crate) fn target_of(random: &mut Random, src: IpAddr) -> IpAddr {
    loop {
        let dst = address(random, &TARGETS);
        if dst.is_ipv4() == src.is_ipv4() {
            return dst;
        }
    }
}

fn ends(random: &mut Random) -> (IpAddr, IpAddr) {
    let src = address(random, &SOURCES);
    (src, target_of(random, src))
}

/// Facts, frame, and how many tags it has.
fn packet(random: &mut Random, world: &World) -> (Facts, Vec<u8>, usize) {
    // Of all flows that there can be few are known: some packets must belong to them.
    let known = if random.one_in(4) { world.gate.some(random) } else { None };
    let (src, dst) = known.map_or_else(|| ends(random), |(_, src, dst, _)| (src, dst));
    let ttl = random.pick(&[1, 63, 64, 65, 128, 255]);
    let ports = known.map_or_else(|| [random.pick(&PORTS), random.pick(&PORTS)], |(_, _, _, ports)| ports);
    let mut facts = Facts {
        src,
        dst,
        carrier: None,
        around: None,
        protocol: 0,
        ttl,
        length: 0,
        ports: [0, 0],
        tcp_flags: 0,
        icmp_type: 0,
        is_fragment: false,
        is_later: false,
        dscp: random.pick(&DSCPS),
        payload: vec![0; 24 + random.below(80)],
    };
    if random.one_in(2) {
        facts.payload[..PAYLOAD.len()].copy_from_slice(PAYLOAD);
    }
    let mut packet = PacketBuilder::new(src, dst).ttl(ttl);
    let kind = match known {
        Some((6, ..)) => 0,
        Some((17, ..)) => 3,
        Some(_) => 6,
        None => random.below(8),
    };
    packet = match kind {
        0..=2 => {
            (facts.protocol, facts.ports) = (6, ports);
            facts.tcp_flags = random.pick(&[0x02, 0x12, 0x10, 0x18, 0x04, 0x11]);
            packet.tcp(ports[0], ports[1], facts.tcp_flags)
        }
        3..=5 => {
            (facts.protocol, facts.ports) = (17, ports);
            packet.udp(ports[0], ports[1])
        }
        6 => {
            facts.protocol = if src.is_ipv4() { 1 } else { 58 };
            facts.icmp_type = random.pick(&[0, 3, 8, 128, 129, 133, 135, 137]);
            packet.icmp(facts.icmp_type, 0)
        }
        _ => {
            facts.protocol = 50;
            packet.protocol(50)
        }
    };
    packet = packet.payload(&facts.payload);
    let (mut tags, mut is_later) = (0, false);
    while tags < 2 && random.one_in(4) {
        packet = packet.vlan(random.pick(&[0x8100, 0x88a8, 0x9100]), random.below(4_096) as u16);
        tags += 1;
    }
    if random.one_in(4) {
        if src.is_ipv4() {
            packet = packet.options(&vec![1; 4 * (1 + random.below(10))]);
        } else {
            for _ in 0..1 + random.below(4) {
                packet = packet.extension(random.pick(&[0, 43, 60, 51, 135]), &[0; 14]);
            }
        }
    }
    if random.one_in(8) {
        let (offset, more) = random.pick(&[(0, true), (185, true), (185, false)]);
        packet = packet.fragment(FragmentPosition { offset, more, id: 7 });
        facts.is_fragment = true;
        is_later = offset != 0;
        facts.is_later = is_later;
        if is_later {
            (facts.ports, facts.tcp_flags, facts.icmp_type) = ([0, 0], 0, 0);
        }
    }
    let mut frame = packet.build();
    let l3 = 14 + 4 * tags;
    facts.length = (frame.len() - l3) as u16;
    if src.is_ipv4() {
        frame[l3 + 1] = facts.dscp << 2;
    } else {
        frame[l3] = 0x60 | facts.dscp >> 2;
        frame[l3 + 1] = facts.dscp << 6;
    }
    // Of ICMP's header the first four bytes are the same in every message; later fragments have no header at all.
    let before = match facts.protocol {
        6 if is_later => 20,
        17 if is_later => 8,
        1 | 58 => {
            if is_later {
                8
            } else {
                4
            }
        }
        _ => 0,
    };
    facts.payload = frame[frame.len() - facts.payload.len() - before..].to_vec();
    (facts, frame, tags)
}
