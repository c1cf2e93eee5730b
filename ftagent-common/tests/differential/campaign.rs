//! Frames by the million through both parsers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ftagent_common::frame::Frame;
use ftagent_common::packet::{Checks, Fragment, Kind, Malformed, Packet, Plain, Tunnel, parse_into, parse_outer};

use super::frames::Built;
use super::random::Random;
use super::reference::{Case, Judgement, Piece, Refusal, Seen, judge};

/// Bytes that contradict most things.
const EDGES: [u8; 12] = [0, 1, 2, 4, 5, 8, 0x3f, 0x40, 0x7f, 0x80, 0xfe, 0xff];

/// A frame that the two see differently.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) bytes: Vec<u8>,
    pub(crate) wire_len: usize,
    pub(crate) sanity: bool,
    pub(crate) tunnels: bool,
    pub(crate) ours: Judgement,
    pub(crate) theirs: Judgement,
}

#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) executions: u64,
    pub(crate) differences: Vec<Difference>,
    /// How often each kind of answer was given, by the reference.
    pub(crate) answers: BTreeMap<String, u64>,
}

/// What the datapath's parser makes of a frame, in the reference's words.
pub(crate) fn ours(case: &Case<'_>) -> Judgement {
    let mut packet = Packet::EMPTY;
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    let checks = Checks(bit(case.sanity, Checks::SANITY) | bit(case.tunnels, Checks::TUNNELS));
    let frame = Frame::new(case.bytes);
    let kind = parse_into(&frame, case.wire_len, checks, &mut packet);
    if let Some(plain) = Plain::parse(&frame, case.wire_len, checks) {
        let mut filled = Packet::EMPTY;
        plain.fill(&mut filled);
        assert_eq!((filled, plain.address_fault.kind()), (packet, kind), "the short way: {:02x?}", case.bytes);
    }
    let mut closed = Packet::EMPTY;
    if packet.tunnel.is_open() && parse_outer(&frame, case.wire_len, checks, &mut closed) == Kind::Tunnel {
        closed.close();
        let mut around = Packet::EMPTY;
        let kind = parse_into(&frame, case.wire_len, Checks(bit(case.sanity, Checks::SANITY)), &mut around);
        around.tunnel = Tunnel::Closed;
        assert_eq!((closed, Kind::Ip), (around, kind), "a tunnel closed again: {:02x?}", case.bytes);
    }
    match kind {
        Kind::Ip => Judgement::Ip(seen(&packet)),
        Kind::NotIp => Judgement::NotIp(packet.ether_type),
        Kind::Tunnel => unreachable!("parse_into opens what parse_outer finds"),
        Kind::Malformed(why) => Judgement::Refused(refusal(why)),
    }
}

fn refusal(why: Malformed) -> Refusal {
    match why {
        Malformed::Truncated => Refusal::Truncated,
        Malformed::BadHeader => Refusal::BadHeader,
        Malformed::TooDeep => Refusal::TooDeep,
        Malformed::TinyFragment => Refusal::TinyFragment,
        Malformed::MartianSource => Refusal::MartianSource,
        Malformed::Land => Refusal::Land,
        Malformed::PortZero => Refusal::PortZero,
        Malformed::ImpossibleFlags => Refusal::ImpossibleFlags,
        Malformed::BadLength => Refusal::BadLength,
    }
}

fn seen(packet: &Packet) -> Seen {
    Seen {
        src: packet.src.octets(),
        dst: packet.dst.octets(),
        outer_src: packet.outer_src.octets(),
        class: packet.class.as_str(),
        tunnel: match packet.tunnel {
            Tunnel::None => "none",
            Tunnel::Gre => "gre",
            Tunnel::Ipip => "ipip",
            Tunnel::SixIn => "six_in",
            Tunnel::Closed => unreachable!("the parser closes none"),
        },
        version: packet.version,
        protocol: packet.protocol,
        ttl: packet.ttl,
        dscp: packet.dscp,
        piece: match packet.fragment {
            Fragment::Whole => Piece::Whole,
            Fragment::First => Piece::First,
            Fragment::Middle => Piece::Middle,
            Fragment::Last => Piece::Last,
        },
        tcp_flags: packet.tcp_flags,
        icmp: [packet.icmp_type, packet.icmp_code],
        ports: [packet.src_port, packet.dst_port],
        ip_len: packet.ip_len.into(),
        l3_offset: packet.l3_offset.into(),
        l4_offset: packet.l4_offset.into(),
        l4_room: packet.l4_room.into(),
        payload_offset: packet.payload_offset.into(),
        vlan_tags: packet.vlan_tags,
        ether_type: packet.ether_type,
    }
}

/// Where a campaign ends, whatever comes first.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) executions: u64,
    pub(crate) time: Duration,
}

/// Differences that are kept: the first few say what is wrong.
const KEPT: usize = 8;

/// Runs one campaign of `subject` against the reference. The same seed and corpus give the same frames.
pub(crate) fn run(seed: u64, corpus: &[Vec<u8>], bounds: Bounds, subject: impl Fn(&Case<'_>) -> Judgement) -> Outcome {
    let mut random = Random::new(seed);
    let mut outcome = Outcome::default();
    let mut tally = Tally::default();
    let began = Instant::now();
    let mut built = Built::default();
    while outcome.executions < bounds.executions && outcome.differences.len() < KEPT {
        if random.one_in(1 << 10) && began.elapsed() >= bounds.time {
            break;
        }
        if !corpus.is_empty() && random.one_in(4) {
            built.knobs.clear();
            built.bytes.clear();
            built.bytes.extend(&corpus[random.below(corpus.len())]);
        } else {
            built.again(&mut random);
        }
        bend(&mut random, &mut built, &mut |case| {
            outcome.executions += 1;
            let theirs = judge(&case);
            tally.add(&theirs);
            let ours = subject(&case);
            if ours != theirs && outcome.differences.len() < KEPT {
                outcome.differences.push(minimise(&case, ours, theirs, &subject));
            }
        });
    }
    outcome.answers = tally.named();
    outcome
}

/// The frame itself, cut at places or everywhere, and with bytes of its headers changed.
fn bend(random: &mut Random, built: &mut Built, run: &mut dyn FnMut(Case<'_>)) {
    let bytes = &mut built.bytes;
    let len = bytes.len();
    let all = |bytes, wire_len| Case { bytes, wire_len, sanity: true, tunnels: true };
    run(all(bytes, len));
    for checks in 0..3 {
        run(Case { bytes, wire_len: len, sanity: checks & 1 != 0, tunnels: checks & 2 != 0 });
    }
    if random.one_in(128) {
        for cut in 0..len {
            // Cut on the wire, and cut by who captured it.
            run(all(&bytes[..cut], cut));
            run(all(&bytes[..cut], len));
        }
    }
    if len == 0 {
        return;
    }
    for _ in 0..16 {
        let (at, width) = if random.one_in(2) && !built.knobs.is_empty() {
            built.knobs[random.below(built.knobs.len())]
        } else {
            (random.below(len.min(160)), 1)
        };
        let before = [bytes[at], bytes[(at + 1).min(len - 1)]];
        let value = match random.below(4) {
            0 => random.byte(),
            1 => bytes[at] ^ 1 << random.below(8),
            2 => bytes[at].wrapping_add(random.pick(&[1, 0xff])),
            _ => random.pick(&EDGES),
        };
        // The low byte of a number of two bytes changes most of what it says.
        let place = if width == 2 && random.one_in(2) { at + 1 } else { at };
        bytes[place] = value;
        let sanity = !random.one_in(8);
        let tunnels = !random.one_in(8);
        match random.below(8) {
            0 => {
                let cut = random.below(len + 1);
                run(Case { bytes: &bytes[..cut], wire_len: cut, sanity, tunnels });
            }
            1 => {
                let cut = random.below(len + 1);
                run(Case { bytes: &bytes[..cut], wire_len: len, sanity, tunnels });
            }
            // More on the wire than in the buffer, up to what offload makes of it.
            2 => run(Case {
                bytes,
                wire_len: len + random.pick(&[1, 4, 1_500, 65_535, 70_000, 200_000]),
                sanity,
                tunnels,
            }),
            _ => run(Case { bytes, wire_len: len, sanity, tunnels }),
        }
        // One in four stays, and the next change comes on top of it.
        if !random.one_in(4) {
            bytes[at] = before[0];
            if at + 1 < len {
                bytes[at + 1] = before[1];
            }
        }
    }
}

/// The shortest frame with the fewest bytes that are not zero on which the two still differ.
fn minimise(
    case: &Case<'_>,
    ours: Judgement,
    theirs: Judgement,
    subject: impl Fn(&Case<'_>) -> Judgement,
) -> Difference {
    let mut bytes = case.bytes.to_vec();
    let beyond = case.wire_len - bytes.len();
    let differ = |bytes: &[u8]| {
        let case = Case { bytes, wire_len: bytes.len() + beyond, ..*case };
        let (ours, theirs) = (subject(&case), judge(&case));
        (ours != theirs).then_some((ours, theirs))
    };
    let mut last = (ours, theirs);
    while let Some(found) = bytes.len().checked_sub(1).and_then(|len| differ(&bytes[..len])) {
        last = found;
        bytes.pop();
    }
    for at in 0..bytes.len() {
        let before = std::mem::take(&mut bytes[at]);
        match differ(&bytes) {
            Some(found) => last = found,
            None => bytes[at] = before,
        }
    }
    let wire_len = bytes.len() + beyond;
    Difference { bytes, wire_len, sanity: case.sanity, tunnels: case.tunnels, ours: last.0, theirs: last.1 }
}

impl Difference {
    /// As a row of the regression file.
    pub(crate) fn row(&self) -> String {
        let hex: String = self.bytes.iter().map(|b| format!("{b:02x}")).collect();
        let word = |on: bool, word| if on { word } else { "-" };
        format!("{} {} {} {hex}", self.wire_len, word(self.sanity, "sanity"), word(self.tunnels, "tunnels"))
    }
}

/// Answers counted without a look-up for each: a campaign has a billion.
#[derive(Default)]
struct Tally {
    refused: [u64; 9],
    not_ip: u64,
    /// By version, tunnel and piece.
    ip: [[[u64; 4]; 4]; 2],
}

const TUNNELS: [&str; 4] = ["none", "gre", "ipip", "six_in"];

impl Tally {
    fn add(&mut self, judgement: &Judgement) {
        match judgement {
            Judgement::Ip(seen) => {
                let tunnel = TUNNELS.iter().position(|t| *t == seen.tunnel).unwrap_or(0);
                self.ip[usize::from(seen.version == 6)][tunnel][seen.piece as usize] += 1;
            }
            Judgement::NotIp(_) => self.not_ip += 1,
            Judgement::Refused(why) => self.refused[*why as usize] += 1,
        }
    }

    fn named(&self) -> BTreeMap<String, u64> {
        use Refusal as R;
        let refusals = [
            R::Truncated,
            R::BadHeader,
            R::TooDeep,
            R::TinyFragment,
            R::MartianSource,
            R::Land,
            R::PortZero,
            R::ImpossibleFlags,
            R::BadLength,
        ];
        let mut named = BTreeMap::from([("not ip".to_owned(), self.not_ip)]);
        named.extend(refusals.iter().map(|why| (format!("{why:?}"), self.refused[*why as usize])));
        for (version, of_version) in self.ip.iter().enumerate() {
            for (tunnel, of_tunnel) in of_version.iter().enumerate() {
                for (piece, count) in [Piece::Whole, Piece::First, Piece::Middle, Piece::Last].iter().zip(of_tunnel) {
                    // IPIP carries IPv4 alone, and 6in4 IPv6.
                    if (version, tunnel) == (0, 3) || (version, tunnel) == (1, 2) {
                        continue;
                    }
                    let version = if version == 0 { 4 } else { 6 };
                    named.insert(format!("IPv{version} in {} {piece:?}", TUNNELS[tunnel]), *count);
                }
            }
        }
        named
    }
}
