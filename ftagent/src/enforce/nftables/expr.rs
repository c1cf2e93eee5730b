//! A rule's matches and verdict as nf_tables expressions: pure.

use ipnet::IpNet;

use super::place::Place;
use super::wire::{Attributes, attribute};
use crate::engine::{Matches, Verdict};

/// What the kernel does with a packet that met all expressions before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Accept,
    Drop,
    /// Counted alone: the mode is `evaluate`.
    Count,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

const IPV4: u8 = 2;
const IPV6: u8 = 10;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const FRAGMENT_HEADER: u8 = 44;
const IPV6_HEADER: u16 = 40;

const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// The one register everything is loaded into; 16 bytes.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const LESS: u32 = 2;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The word in set names.
    pub(super) fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    pub(super) fn address_bytes(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    pub(super) fn max_prefix_len(self) -> u8 {
        self.address_bytes() * 8
    }

    fn number(self) -> u8 {
        match self {
            Self::V4 => IPV4,
            Self::V6 => IPV6,
        }
    }

    fn ether_type(self) -> u16 {
        match self {
            Self::V4 => 0x0800,
            Self::V6 => 0x86dd,
        }
    }

    fn source_offset(self) -> u32 {
        match self {
            Self::V4 => 12,
            Self::V6 => 8,
        }
    }

    fn target_offset(self) -> u32 {
        match self {
            Self::V4 => 16,
            Self::V6 => 24,
        }
    }
}

/// The network address of `net` in network order.
pub(super) fn key(net: &IpNet) -> Vec<u8> {
    match net.trunc() {
        IpNet::V4(net) => net.addr().octets().to_vec(),
        IpNet::V6(net) => net.addr().octets().to_vec(),
    }
}

/// A list of expressions, in the order the kernel asks them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expressions {
    list: Attributes,
    /// Before the IP stack a packet's family is the device's: it has to be told by its frame's type.
    by_frame: bool,
}

/// The kernel's rules for one of ours; several where protocol or family are left open but the match needs them.
pub(super) fn of_rule(place: &Place, matches: &Matches, verdict: Verdict, evaluate: bool) -> Vec<Expressions> {
    let mut all = Vec::new();
    if matches.payload.is_some() || matches.dscp.is_some() {
        // Left out rather than widened: the datapath alone compares these.
        return all;
    }
    let mut whole = matches.clone();
    if verdict == Verdict::Pass && reads_transport(matches) {
        if matches.fragment == Some(true) {
            return all;
        }
        // It is asked before later fragments are told apart: their payload would be read as a header.
        whole.fragment = Some(false);
    }
    let matches = &whole;
    for family in families(matches) {
        for protocol in protocols(matches, family) {
            let Some(matched) = matching(place, matches, family, protocol) else { continue };
            let limited = match verdict {
                Verdict::Drop => matched,
                Verdict::LimitPps { pps, burst } => matched.over_limit(pps.max(1), burst.max(1), false),
                Verdict::LimitBps { bps, burst } => matched.over_limit((bps / 8).max(1), burst / 8, true),
                Verdict::Pass => matched,
                Verdict::Sample | Verdict::Mark { .. } => continue,
            };
            let outcome = match verdict {
                _ if evaluate => Outcome::Count,
                Verdict::Pass => Outcome::Accept,
                _ => Outcome::Drop,
            };
            all.push(limited.counted().outcome(outcome));
        }
    }
    all
}

/// The expressions that look the source, cut to `prefix_len`, up in `set`.
pub(super) fn source_in_set(place: &Place, family: Family, prefix_len: u8, set: &str, outcome: Outcome) -> Expressions {
    let found = Expressions::at(place).family(family).address(family, family.source_offset(), prefix_len);
    let lookup = Attributes::default().text(1, set).u32(2, REGISTER);
    found.push("lookup", &lookup).counted().outcome(outcome)
}

/// The expressions that go on in another chain.
pub(super) fn jump(chain: &str) -> Expressions {
    const JUMP: u32 = -3_i32 as u32;
    Expressions::default().verdict(&Attributes::default().u32(1, JUMP).text(2, chain))
}

/// Accepts neighbour discovery of this link: no router forwards a hop limit of 255 unchanged (RFC 4861 section 6.1.1),
/// and hosts refuse fragments of it (RFC 6980).
pub(super) fn neighbour_discovery(place: &Place) -> Expressions {
    let icmp = Expressions::at(place).family(Family::V6).meta(16).compare(EQUAL, &[ICMPV6]);
    let of_link = icmp.payload(NETWORK, 7, 1).compare(EQUAL, &[255]).fragment(Family::V6, false);
    of_link.payload(TRANSPORT, 0, 1).range(&[[133], [137]]).outcome(Outcome::Accept)
}

/// Accepts every part of a datagram but the first, which alone has the transport header.
pub(super) fn later_fragment(place: &Place, family: Family) -> Expressions {
    let offset = match family {
        Family::V4 => Expressions::at(place).family(family).payload(NETWORK, 6, 2).masked(&[0x1f, 0xff]),
        Family::V6 => {
            let header = Attributes::default().u32(1, REGISTER).u8(2, FRAGMENT_HEADER).u32(3, 2).u32(4, 2);
            Expressions::at(place).family(family).push("exthdr", &header).masked(&[0xff, 0xf8])
        }
    };
    offset.compare(NOT_EQUAL, &[0, 0]).outcome(Outcome::Accept)
}

/// Whether the match looks at what later fragments lack.
pub(super) fn reads_transport(matches: &Matches) -> bool {
    matches.src_port.is_some()
        || matches.dst_port.is_some()
        || matches.icmp_type.is_some()
        || matches.tcp_flags.is_some()
}

/// `None` stands for both; it is split only where the header's layout matters.
fn families(matches: &Matches) -> Vec<Option<Family>> {
    let of = |net: &Option<IpNet>| net.as_ref().map(Family::of);
    let by_protocol = match matches.protocol {
        Some(ICMP) => Some(Family::V4),
        Some(ICMPV6) => Some(Family::V6),
        _ => None,
    };
    let named: Vec<Family> = [of(&matches.source), of(&matches.target), by_protocol].into_iter().flatten().collect();
    let needs_layout = matches.length.is_some()
        || matches.ttl.is_some()
        || matches.fragment.is_some()
        || (matches.icmp_type.is_some() && matches.protocol.is_none());
    match named.split_first() {
        // A source of one family to a target of the other: no packet is that.
        Some((first, rest)) if rest.iter().any(|f| f != first) => Vec::new(),
        Some((first, _)) => vec![Some(*first)],
        None if needs_layout => Family::BOTH.map(Some).into(),
        None => vec![None],
    }
}

fn protocols(matches: &Matches, family: Option<Family>) -> Vec<Option<u8>> {
    let ports = matches.src_port.is_some() || matches.dst_port.is_some();
    match matches.protocol {
        Some(protocol) => vec![Some(protocol)],
        None if matches.tcp_flags.is_some() => vec![Some(TCP)],
        None if matches.icmp_type.is_some() => match family {
            Some(Family::V6) => vec![Some(ICMPV6)],
            _ => vec![Some(ICMP)],
        },
        // FlowSpec's ports are those of TCP and UDP.
        None if ports => vec![Some(TCP), Some(UDP)],
        None => vec![None],
    }
}

/// Nothing if no packet of this family and protocol can match.
fn matching(place: &Place, matches: &Matches, family: Option<Family>, protocol: Option<u8>) -> Option<Expressions> {
    let mut out = Expressions::at(place);
    if let Some(family) = family {
        out = out.family(family);
        if let Some(source) = &matches.source {
            out = out.prefix(family, family.source_offset(), source);
        }
        if let Some(target) = &matches.target {
            out = out.prefix(family, family.target_offset(), target);
        }
        if let Some(range) = matches.length {
            out = out.length(family, range)?;
        }
        if let Some(range) = matches.ttl {
            let offset = if family == Family::V4 { 8 } else { 7 };
            out = out.payload(NETWORK, offset, 1).range(&range.map(|n| [n]));
        }
        if let Some(fragment) = matches.fragment {
            out = out.fragment(family, fragment);
        }
    }
    if let Some(protocol) = protocol {
        out = out.meta(16).compare(EQUAL, &[protocol]);
    }
    if let Some(range) = matches.src_port {
        out = out.payload(TRANSPORT, 0, 2).range(&range.map(u16::to_be_bytes));
    }
    if let Some(range) = matches.dst_port {
        out = out.payload(TRANSPORT, 2, 2).range(&range.map(u16::to_be_bytes));
    }
    if let Some(range) = matches.icmp_type {
        out = out.payload(TRANSPORT, 0, 1).range(&range.map(|n| [n]));
    }
    if let Some([mask, value]) = matches.tcp_flags {
        out = out.payload(TRANSPORT, 13, 1).masked(&[mask]).compare(EQUAL, &[value & mask]);
    }
    Some(out)
}

impl Expressions {
    fn at(place: &Place) -> Self {
        Self { by_frame: matches!(place, Place::Ingress(_)), ..Self::default() }
    }

    /// The list as the value of a rule's expressions attribute.
    pub(super) fn list(&self) -> &Attributes {
        &self.list
    }

    /// Tells two lists apart.
    pub(super) fn checksum(&self) -> u32 {
        crc32fast::hash(&self.list.bytes)
    }

    /// Stops matching at `until_secs` of the wall clock, also when nobody is left to remove the rule. Needs kernel 5.4.
    pub(super) fn until(self, until_secs: u64) -> Self {
        const TIME_NS: u32 = 30;
        const TO_BIG_ENDIAN: u32 = 1;
        let until_ns = until_secs.saturating_mul(1_000_000_000);
        let swap = Attributes::default().u32(1, REGISTER).u32(2, REGISTER).u32(3, TO_BIG_ENDIAN).u32(4, 8).u32(5, 8);
        let timed = Self::default().meta(TIME_NS).push("byteorder", &swap).compare(LESS, &until_ns.to_be_bytes());
        let mut bytes = timed.list.bytes;
        bytes.extend(self.list.bytes);
        Self { list: Attributes { bytes }, ..self }
    }

    fn push(self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::default().text(1, name).nested(2, data);
        Self { list: self.list.nested(attribute::LIST_ELEMENT, &expression), ..self }
    }

    fn meta(self, what: u32) -> Self {
        self.push("meta", &Attributes::default().u32(1, REGISTER).u32(2, what))
    }

    fn family(self, family: Family) -> Self {
        const PROTOCOL: u32 = 1;
        const NFPROTO: u32 = 15;
        if self.by_frame {
            return self.meta(PROTOCOL).compare(EQUAL, &family.ether_type().to_be_bytes());
        }
        self.meta(NFPROTO).compare(EQUAL, &[family.number()])
    }

    fn payload(self, base: u32, offset: u32, len: u32) -> Self {
        self.push("payload", &Attributes::default().u32(1, REGISTER).u32(2, base).u32(3, offset).u32(4, len))
    }

    fn compare(self, operator: u32, value: &[u8]) -> Self {
        self.push("cmp", &Attributes::default().u32(1, REGISTER).u32(2, operator).data(3, value))
    }

    fn range<const N: usize>(self, [low, high]: &[[u8; N]; 2]) -> Self {
        if low == high {
            return self.compare(EQUAL, low);
        }
        self.compare(AT_LEAST, low).compare(AT_MOST, high)
    }

    fn masked(self, mask: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).expect("a mask fits a register");
        let data = Attributes::default().u32(1, REGISTER).u32(2, REGISTER).u32(3, len);
        self.push("bitwise", &data.data(4, mask).data(5, &vec![0; mask.len()]))
    }

    fn address(self, family: Family, offset: u32, prefix_len: u8) -> Self {
        let loaded = self.payload(NETWORK, offset, family.address_bytes().into());
        if prefix_len == family.max_prefix_len() {
            return loaded;
        }
        let bit = |n: u8| u8::from(n < prefix_len);
        let mask: Vec<u8> =
            (0..family.address_bytes()).map(|byte| (0..8).fold(0, |bits, n| bits << 1 | bit(byte * 8 + n))).collect();
        loaded.masked(&mask)
    }

    fn prefix(self, family: Family, offset: u32, net: &IpNet) -> Self {
        if net.prefix_len() == 0 {
            return self;
        }
        self.address(family, offset, net.prefix_len()).compare(EQUAL, &key(net))
    }

    /// Length of the datagram: IPv6 counts from behind its fixed header.
    fn length(self, family: Family, [low, high]: [u16; 2]) -> Option<Self> {
        let (offset, range) = match family {
            Family::V4 => (2, [low, high]),
            Family::V6 => (4, [low.saturating_sub(IPV6_HEADER), high.checked_sub(IPV6_HEADER)?]),
        };
        Some(self.payload(NETWORK, offset, 2).range(&range.map(u16::to_be_bytes)))
    }

    fn fragment(self, family: Family, fragment: bool) -> Self {
        match family {
            Family::V4 => {
                // More fragments, or an offset.
                let operator = if fragment { NOT_EQUAL } else { EQUAL };
                self.payload(NETWORK, 6, 2).masked(&[0x3f, 0xff]).compare(operator, &[0, 0])
            }
            Family::V6 => {
                const PRESENT: u32 = 1;
                let header = Attributes::default().u32(1, REGISTER).u8(2, FRAGMENT_HEADER).u32(3, 0).u32(4, 1);
                self.push("exthdr", &header.u32(5, PRESENT)).compare(EQUAL, &[u8::from(fragment)])
            }
        }
    }

    fn over_limit(self, rate: u64, burst: u64, bytes: bool) -> Self {
        const SECOND: u64 = 1;
        const OVER: u32 = 1;
        let burst = u32::try_from(burst).unwrap_or(u32::MAX);
        let limit = Attributes::default().u64(1, rate).u64(2, SECOND).u32(3, burst).u32(4, bytes.into());
        self.push("limit", &limit.u32(5, OVER))
    }

    fn counted(self) -> Self {
        self.push("counter", &Attributes::default().u64(1, 0).u64(2, 0))
    }

    fn outcome(self, outcome: Outcome) -> Self {
        match outcome {
            Outcome::Count => self,
            Outcome::Drop => self.verdict(&Attributes::default().u32(1, 0)),
            Outcome::Accept => self.verdict(&Attributes::default().u32(1, 1)),
        }
    }

    fn verdict(self, verdict: &Attributes) -> Self {
        const DATA_VERDICT: u16 = 2;
        let data = Attributes::default().nested(DATA_VERDICT, verdict);
        self.push("immediate", &Attributes::default().u32(1, VERDICT_REGISTER).nested(2, &data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel_rules(matches: Matches) -> usize {
        of_rule(&Place::Prerouting, &matches, Verdict::Drop, false).len()
    }

    #[test]
    fn open_protocols_and_families_are_split_only_where_the_header_differs() {
        let any = Matches::default;
        let table = [
            ("everything", any(), 1),
            ("udp of both families", Matches { protocol: Some(17), ..any() }, 1),
            ("ports of any protocol", Matches { dst_port: Some([53, 53]), ..any() }, 2),
            ("ports of udp", Matches { protocol: Some(17), dst_port: Some([53, 53]), ..any() }, 1),
            ("length", Matches { length: Some([100, 200]), ..any() }, 2),
            (
                "length of v4",
                Matches { length: Some([100, 200]), ..Matches::target("192.0.2.0/24".parse().unwrap()) },
                1,
            ),
            ("a length no IPv6 datagram has", Matches { length: Some([0, 39]), ..any() }, 1),
            ("icmp type", Matches { icmp_type: Some([8, 8]), ..any() }, 2),
            ("icmp echo", Matches { protocol: Some(1), icmp_type: Some([8, 8]), ..any() }, 1),
            ("a length and ports", Matches { length: Some([1, 99]), src_port: Some([1, 2]), ..any() }, 4),
        ];
        for (name, matches, expected) in table {
            assert_eq!(kernel_rules(matches), expected, "{name}");
        }
    }

    #[test]
    fn families_that_contradict_each_other_match_nothing() {
        let target = Some("192.0.2.0/24".parse().unwrap());
        let matches = Matches { target, ..Matches::source("2001:db8::/32".parse().unwrap()) };
        assert_eq!(kernel_rules(matches), 0);
        assert_eq!(kernel_rules(Matches { target, protocol: Some(58), ..Matches::default() }), 0);
    }

    #[test]
    fn a_prefix_is_masked_bit_by_bit() {
        let set = |len| source_in_set(&Place::Prerouting, Family::V4, len, "s", Outcome::Drop);
        let contains = |e: &Expressions, bytes: &[u8]| e.list.bytes.windows(bytes.len()).any(|w| w == bytes);
        assert!(contains(&set(20), &[255, 255, 240, 0]));
        assert!(!contains(&set(32), b"bitwise"));
    }
}
