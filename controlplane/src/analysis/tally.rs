//! What is counted of a capture while it is read once through. Memory is bounded by the constants here: about 20 MB.

use std::io::{self, Read};

use ftagent_common::abi::Reason;
use ftagent_common::packet::{Fragment, Ip, proto};
use ftagent_common::vocab::{AttackFamily, TrafficClass};

use super::Budget;
use super::decode::{Decoded, Decoder, Reading};
use super::frames::{Flaws, Frame, Frames};
use super::heavy::{Distinct, Heavy};
use super::mark::PacketVerdict;
use super::payload::{Shape, shape};

/// Up to twice as many sources are counted exactly.
const SOURCES: usize = 32_768;
const TARGETS: usize = 512;
/// All that there are.
const PORTS: usize = 65_536;
const PROTOCOLS: usize = 256;
const LINKS: usize = 64;
/// Upper ends of the frame sizes that are told apart, in bytes; what is larger is the last.
pub(super) const SIZES: [u32; 7] = [63, 127, 255, 511, 1_023, 1_518, 9_216];

const FAMILIES: usize = AttackFamily::ALL.len();

/// What packets have in common: of all, or of those to one address.
#[derive(Clone, Debug)]
pub(super) struct Features {
    /// Packets in the file.
    pub(super) seen: u64,
    /// Packets that they stand for, as everything that follows.
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) classes: [u64; TrafficClass::COUNT],
    /// Answers of reflected services, by family.
    pub(super) answers: [u64; FAMILIES],
    /// Datagrams from their ports that are not known to be answers.
    pub(super) from_ports: [u64; FAMILIES],
    /// Bytes of both.
    pub(super) reflected_bytes: u64,
    /// First fragments among them.
    pub(super) reflected_firsts: u64,
    /// Whole datagrams of UDP that are none of these, and no DNS queries.
    pub(super) plain_udp: u64,
    /// Later fragments of UDP.
    pub(super) udp_fragments: u64,
    pub(super) requests: u64,
    pub(super) header_lines: u64,
    pub(super) hellos: u64,
    /// TCP segments with data.
    pub(super) tcp_data: u64,
    pub(super) sources: Distinct<8>,
    /// Ports that they go to.
    pub(super) ports: Distinct<8>,
    /// Packets from this address.
    pub(super) sent: u64,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            seen: 0,
            packets: 0,
            bytes: 0,
            classes: [0; TrafficClass::COUNT],
            answers: [0; FAMILIES],
            from_ports: [0; FAMILIES],
            reflected_bytes: 0,
            reflected_firsts: 0,
            plain_udp: 0,
            udp_fragments: 0,
            requests: 0,
            header_lines: 0,
            hellos: 0,
            tcp_data: 0,
            sources: Distinct::default(),
            ports: Distinct::default(),
            sent: 0,
        }
    }
}

/// A packet as features count it.
struct Counted {
    weight: u64,
    bytes: u64,
    shape: Shape,
}

impl Features {
    fn add(&mut self, decoded: &Decoded<'_>, counted: &Counted) {
        let (p, weight) = (&decoded.packet, counted.weight);
        let more = |count: &mut u64| *count = count.saturating_add(weight);
        self.seen += 1;
        more(&mut self.packets);
        self.bytes = self.bytes.saturating_add(counted.bytes);
        more(&mut self.classes[p.class.index()]);
        self.sources.add(&p.src);
        if decoded.has_ports() {
            self.ports.add(&p.dst_port);
        }
        if p.protocol == proto::UDP && matches!(p.fragment, Fragment::Middle | Fragment::Last) {
            more(&mut self.udp_fragments);
        }
        if p.class.is_tcp() && decoded.payload_len > 0 {
            more(&mut self.tcp_data);
        }
        match counted.shape {
            Shape::Answer(family) => more(&mut self.answers[family as usize]),
            Shape::FromPort(family) => more(&mut self.from_ports[family as usize]),
            Shape::HttpRequest => more(&mut self.requests),
            Shape::HttpHeaderLine => more(&mut self.header_lines),
            Shape::TlsHello => more(&mut self.hellos),
            Shape::Other if matches!(p.class, TrafficClass::Udp | TrafficClass::Reflector) => more(&mut self.plain_udp),
            Shape::Other => {}
        }
        if matches!(counted.shape, Shape::Answer(_) | Shape::FromPort(_)) {
            if p.fragment == Fragment::First {
                more(&mut self.reflected_firsts);
            }
            self.reflected_bytes = self.reflected_bytes.saturating_add(counted.bytes);
        }
    }

    pub(super) const fn class(&self, class: TrafficClass) -> u64 {
        self.classes[class.index()]
    }
}

/// A protocol, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Protocol {
    Ip(u8),
    Ether(u16),
    /// Of a link layer that is not read.
    Link(u32),
    Unreadable,
}

/// What the agent's marks say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdicts {
    pub(super) passed: u64,
    pub(super) dropped: u64,
    pub(super) would_drop: u64,
    pub(super) answered: u64,
    /// Packets without a mark.
    pub(super) unmarked: u64,
    /// By reason's index.
    pub(super) reasons: [u64; Reason::SLOTS],
}

/// Everything that was counted.
pub(super) struct Tally {
    /// Packets in the file.
    pub(super) seen: u64,
    pub(super) captured_bytes: u64,
    /// Packets and bytes that they stand for, as all other counts.
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// A mark says that packets are samples.
    pub(super) is_sampled: bool,
    pub(super) first_ns: Option<u64>,
    pub(super) last_ns: Option<u64>,
    pub(super) whole: Features,
    pub(super) sources: Heavy<Ip, u64>,
    pub(super) distinct: Distinct<12>,
    pub(super) targets: Heavy<Ip, Features>,
    pub(super) src_ports: Heavy<(u8, u16), ()>,
    pub(super) dst_ports: Heavy<(u8, u16), ()>,
    pub(super) protocols: Heavy<Protocol, u64>,
    pub(super) links: Heavy<u32, ()>,
    pub(super) sizes: [u64; SIZES.len() + 1],
    pub(super) tcp_flags: [u64; 64],
    pub(super) ttls: [u64; 256],
    pub(super) fragments: u64,
    pub(super) malformed: u64,
    /// Not IP, or not to be read.
    pub(super) other: u64,
    pub(super) verdicts: Verdicts,
    pub(super) flaws: Flaws,
}

impl Tally {
    fn empty() -> Self {
        Self {
            seen: 0,
            captured_bytes: 0,
            packets: 0,
            bytes: 0,
            is_sampled: false,
            first_ns: None,
            last_ns: None,
            whole: Features::default(),
            sources: Heavy::keeping(SOURCES),
            distinct: Distinct::default(),
            targets: Heavy::keeping(TARGETS),
            src_ports: Heavy::keeping(PORTS),
            dst_ports: Heavy::keeping(PORTS),
            protocols: Heavy::keeping(PROTOCOLS),
            links: Heavy::keeping(LINKS),
            sizes: [0; SIZES.len() + 1],
            tcp_flags: [0; 64],
            ttls: [0; 256],
            fragments: 0,
            malformed: 0,
            other: 0,
            verdicts: Verdicts::default(),
            flaws: Flaws::default(),
        }
    }

    /// Counts a whole capture.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) fn of(reader: impl Read, budget: Budget<'_>) -> io::Result<Self> {
        let mut frames = Frames::open(reader, budget)?;
        let mut decoder = Decoder::default();
        let mut tally = Self::empty();
        while let Some(frame) = frames.next()? {
            let decoded = decoder.decode(&frame);
            tally.add(&frame, &decoded);
        }
        tally.flaws = frames.flaws().clone();
        Ok(tally)
    }

    fn add(&mut self, frame: &Frame<'_>, decoded: &Decoded<'_>) {
        let weight = frame.mark.weight();
        let bytes = weight.saturating_mul(frame.wire_len.into());
        let more = |count: &mut u64| *count = count.saturating_add(weight);
        self.seen += 1;
        self.captured_bytes = self.captured_bytes.saturating_add(frame.captured.into());
        more(&mut self.packets);
        self.bytes = self.bytes.saturating_add(bytes);
        self.is_sampled |= weight > 1;
        if let Some(at) = frame.time_ns {
            self.first_ns = Some(self.first_ns.map_or(at, |first| first.min(at)));
            self.last_ns = Some(self.last_ns.map_or(at, |last| last.max(at)));
        }
        self.links.add(frame.link, weight);
        more(&mut self.sizes[SIZES.partition_point(|end| *end < frame.wire_len)]);
        self.verdict(frame, weight);
        let protocol = match decoded.reading {
            Reading::Ip | Reading::Malformed(_) => Protocol::Ip(decoded.packet.protocol),
            Reading::NotIp => Protocol::Ether(decoded.packet.ether_type),
            Reading::Undecoded => Protocol::Link(frame.link),
            Reading::Unreadable => Protocol::Unreadable,
        };
        let of_protocol = self.protocols.add(protocol, weight);
        *of_protocol = of_protocol.saturating_add(bytes);
        if matches!(decoded.reading, Reading::Malformed(_) | Reading::Unreadable) {
            more(&mut self.malformed);
        }
        if decoded.has_addresses() { self.ip(decoded, weight, bytes) } else { more(&mut self.other) }
    }

    fn ip(&mut self, decoded: &Decoded<'_>, weight: u64, bytes: u64) {
        let p = &decoded.packet;
        let more = |count: &mut u64| *count = count.saturating_add(weight);
        let counted = Counted { weight, bytes, shape: shape(p, decoded.payload, decoded.payload_len) };
        self.whole.add(decoded, &counted);
        self.targets.add(p.dst, weight).add(decoded, &counted);
        if let Some(features) = self.targets.value_mut(&p.src) {
            more(&mut features.sent);
        }
        let of_source = self.sources.add(p.src, weight);
        *of_source = of_source.saturating_add(bytes);
        self.distinct.add(&p.src);
        more(&mut self.ttls[usize::from(p.ttl)]);
        if p.fragment != Fragment::Whole {
            more(&mut self.fragments);
        }
        if decoded.has_ports() {
            self.src_ports.add((p.protocol, p.src_port), weight);
            self.dst_ports.add((p.protocol, p.dst_port), weight);
            if p.protocol == proto::TCP && decoded.reading == Reading::Ip {
                more(&mut self.tcp_flags[usize::from(p.tcp_flags & 0x3f)]);
            }
        }
    }

    fn verdict(&mut self, frame: &Frame<'_>, weight: u64) {
        let v = &mut self.verdicts;
        let count = match frame.mark.verdict {
            Some(PacketVerdict::Passed) => &mut v.passed,
            Some(PacketVerdict::Dropped) => &mut v.dropped,
            Some(PacketVerdict::WouldDrop) => &mut v.would_drop,
            Some(PacketVerdict::Answered) => &mut v.answered,
            None => &mut v.unmarked,
        };
        *count = count.saturating_add(weight);
        if let Some(reason) = frame.mark.reason {
            let count = &mut v.reasons[reason.index()];
            *count = count.saturating_add(weight);
        }
    }
}
