//! What a frame is, said a second time: the specification read off `etherparse` where it says the same, and written
//! plainly where it does not. Nothing of `ftagent_common` is used here, neither code nor tables.
//!
//! Where the datapath deviates from `etherparse`, and why:
//!
//! * Lengths are judged against the datagram and against the frame on the wire, not against the bytes at hand: a frame
//!   may be cut by a snap length or lie in several buffers. `etherparse` refuses what is not there.
//! * IPv4 of total length 0 above 64 KiB and IPv6 of payload length 0 before a hop-by-hop header are offload buffers and
//!   jumbograms; `etherparse` knows neither.
//! * Extension headers: Mobility, HIP and Shim6 belong to the chain wherever they stand, the order is free, eight are
//!   the limit, an Authentication Header of length 0 is eight bytes as in Linux (`ipv6_authlen`), four bytes of each
//!   must be readable. `etherparse` wants RFC 8200's order and whole headers.
//! * Of TCP the first twenty bytes are read and the options only counted; of ICMP four bytes, where `etherparse` wants
//!   eight.
//! * No header begins beyond [`LAST_OFFSET`]: the BPF verifier needs a bound.

use etherparse::{
    EtherType, Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6HeaderSlice, SingleVlanHeaderSlice, TcpHeaderSlice,
    UdpHeaderSlice, err,
};

/// The last byte of a frame at which a header may begin.
pub(crate) const LAST_OFFSET: usize = 2_047;

/// Why a frame is refused, in the order in which the datapath looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Truncated,
    BadHeader,
    TooDeep,
    TinyFragment,
    MartianSource,
    Land,
    PortZero,
    ImpossibleFlags,
    BadLength,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Whole,
    First,
    Middle,
    Last,
}

/// Everything that is told of an IP packet; addresses in network order, IPv4 mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
    pub(crate) outer_src: [u8; 16],
    pub(crate) class: &'static str,
    pub(crate) tunnel: &'static str,
    pub(crate) version: u8,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) dscp: u8,
    pub(crate) piece: Piece,
    pub(crate) tcp_flags: u8,
    pub(crate) icmp: [u8; 2],
    pub(crate) ports: [u16; 2],
    pub(crate) ip_len: usize,
    pub(crate) l3_offset: usize,
    pub(crate) l4_offset: usize,
    pub(crate) l4_room: usize,
    pub(crate) payload_offset: usize,
    pub(crate) vlan_tags: u8,
    pub(crate) ether_type: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    Ip(Seen),
    NotIp(u16),
    Refused(Refusal),
}

/// A frame as the wire and the buffer have it, and which of the optional checks are on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case<'a> {
    pub(crate) bytes: &'a [u8],
    /// At least as many as `bytes`.
    pub(crate) wire_len: usize,
    pub(crate) sanity: bool,
    pub(crate) tunnels: bool,
}

/// Judges a frame.
pub(crate) fn judge(case: &Case<'_>) -> Judgement {
    match frame(case) {
        Ok(judgement) => judgement,
        Err(refusal) => Judgement::Refused(refusal),
    }
}

/// What a network header says.
struct Network {
    src: [u8; 16],
    dst: [u8; 16],
    version: u8,
    protocol: u8,
    ttl: u8,
    dscp: u8,
    piece: Piece,
    /// Of the whole datagram.
    length: usize,
    begins: usize,
    /// Where the transport header is, and how much of the datagram lies behind that place.
    at: usize,
    room: usize,
    /// What is wrong with the addresses: said after everything else, and before any tunnel is opened.
    fault: Option<Refusal>,
}

fn frame(case: &Case<'_>) -> Result<Judgement, Refusal> {
    let bytes = case.bytes;
    let ethernet = Ethernet2HeaderSlice::from_slice(bytes).map_err(|_| Refusal::Truncated)?;
    let mut ether_type = ethernet.ether_type();
    let mut tags = 0;
    let mut at = 14;
    while matches!(
        ether_type,
        EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING | EtherType::VLAN_DOUBLE_TAGGED_FRAME
    ) {
        if tags == 2 {
            return Err(Refusal::TooDeep);
        }
        let tag = SingleVlanHeaderSlice::from_slice(&bytes[at..]).map_err(|_| Refusal::Truncated)?;
        ether_type = tag.ether_type();
        tags += 1;
        at += 4;
    }
    let outer = match ether_type {
        EtherType::IPV4 => ipv4(case, at, case.wire_len)?,
        EtherType::IPV6 => ipv6(case, at, case.wire_len)?,
        other => return Ok(Judgement::NotIp(other.0)),
    };
    let inside = if case.tunnels && outer.fault.is_none() { tunnel(bytes, &outer)? } else { None };
    let (network, tunnel, outer_src) = match inside {
        None => (outer, "none", [0; 16]),
        Some(Inside { kind, version, at }) => {
            let end = outer.at + outer.room;
            let inner = if version == 4 { ipv4(case, at, end)? } else { ipv6(case, at, end)? };
            (inner, kind, outer.src)
        }
    };
    let transport = transport(case, &network)?;
    if let Some(fault) = network.fault {
        return Err(fault);
    }
    Ok(Judgement::Ip(Seen {
        src: network.src,
        dst: network.dst,
        outer_src,
        class: if network.piece == Piece::Whole { class(network.protocol, &transport) } else { "fragment" },
        tunnel,
        version: network.version,
        protocol: network.protocol,
        ttl: network.ttl,
        dscp: network.dscp,
        piece: network.piece,
        tcp_flags: transport.flags,
        icmp: transport.icmp,
        ports: transport.ports,
        ip_len: network.length,
        l3_offset: network.begins,
        l4_offset: network.at,
        l4_room: network.room,
        payload_offset: network.at + transport.length,
        vlan_tags: tags,
        ether_type: ether_type.0,
    }))
}

/// `len` bytes from `at` on, if they are at hand and may be looked at.
fn readable(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], Refusal> {
    if at > LAST_OFFSET {
        return Err(Refusal::Truncated);
    }
    bytes.get(at..at + len).ok_or(Refusal::Truncated)
}

fn mapped(v4: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets()
}

fn ipv4(case: &Case<'_>, at: usize, end: usize) -> Result<Network, Refusal> {
    readable(case.bytes, at, 20)?;
    let header = Ipv4HeaderSlice::from_slice(&case.bytes[at..]).map_err(|error| match error {
        err::ipv4::HeaderSliceError::Len(_) => Refusal::Truncated,
        err::ipv4::HeaderSliceError::Content(_) => Refusal::BadHeader,
    })?;
    let own = header.slice().len();
    readable(case.bytes, at + own - 1, 1)?;
    let there = end.saturating_sub(at);
    let length = match usize::from(header.total_len()) {
        0 if there > 65_535 => 65_535,
        stated => stated,
    };
    if length < own {
        return Err(Refusal::BadHeader);
    }
    if length > there {
        return Err(Refusal::Truncated);
    }
    let (src, dst) = (header.source_addr(), header.destination_addr());
    let mut fault = None;
    if case.sanity {
        // RFC 6890: these blocks are never a source, but for a host that has no address yet and speaks to groups.
        let nobody = src.octets()[0] == 0 || src.is_loopback() || src.is_multicast() || src.octets()[0] >= 240;
        let to_groups = dst.is_multicast() || dst.octets()[0] >= 240;
        if nobody && !(src.is_unspecified() && to_groups) {
            fault = Some(Refusal::MartianSource);
        } else if src == dst {
            fault = Some(Refusal::Land);
        }
    }
    let offset = header.fragments_offset().value();
    if header.protocol().0 == 6 && offset == 1 {
        return Err(Refusal::TinyFragment);
    }
    Ok(Network {
        src: mapped(src.octets()),
        dst: mapped(dst.octets()),
        version: 4,
        protocol: header.protocol().0,
        ttl: header.ttl(),
        dscp: header.dcp().value(),
        piece: piece(offset, header.more_fragments()),
        length,
        begins: at,
        at: at + own,
        room: length - own,
        fault,
    })
}

fn piece(offset: u16, more: bool) -> Piece {
    if offset == 0 {
        if more { Piece::First } else { Piece::Whole }
    } else if more {
        Piece::Middle
    } else {
        Piece::Last
    }
}

/// Kinds of headers that stand between IPv6 and its transport (IANA "IPv6 Extension Header Types", but for ESP, which
/// nobody can look through, and the two experimental numbers).
const CHAIN: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

fn ipv6(case: &Case<'_>, at: usize, end: usize) -> Result<Network, Refusal> {
    readable(case.bytes, at, 40)?;
    let header = Ipv6HeaderSlice::from_slice(&case.bytes[at..]).map_err(|error| match error {
        err::ipv6::HeaderSliceError::Len(_) => Refusal::Truncated,
        err::ipv6::HeaderSliceError::Content(_) => Refusal::BadHeader,
    })?;
    let there = end.saturating_sub(at);
    let is_jumbo = header.payload_length() == 0 && header.next_header().0 == 0;
    let length = if is_jumbo { there.min(65_535) } else { 40 + usize::from(header.payload_length()) };
    if length > there {
        return Err(Refusal::Truncated);
    }
    let (src, dst) = (header.source_addr(), header.destination_addr());
    let mut fault = None;
    if src.to_ipv4_mapped().is_some() || dst.to_ipv4_mapped().is_some() {
        fault = Some(Refusal::MartianSource);
    } else if case.sanity {
        if src.is_multicast() || src.is_loopback() || (src.is_unspecified() && !dst.is_multicast()) {
            fault = Some(Refusal::MartianSource);
        } else if src == dst {
            fault = Some(Refusal::Land);
        }
    }
    let mut next = header.next_header().0;
    let mut used = 40;
    let mut found = Piece::Whole;
    let mut headers = 0;
    while CHAIN.contains(&next) {
        if headers == 8 {
            return Err(Refusal::TooDeep);
        }
        let head = readable(case.bytes, at + used, 4)?;
        let own = match next {
            44 => 8,
            51 => (usize::from(head[1]) + 2) * 4,
            _ => (usize::from(head[1]) + 1) * 8,
        };
        if next == 44 {
            let word = u16::from(head[2]) << 8 | u16::from(head[3]);
            // A fragment header that says "whole" changes nothing (RFC 6946).
            if word & 0xfff9 != 0 {
                found = piece(word >> 3, word & 1 == 1);
            }
        }
        next = head[0];
        used += own;
        headers += 1;
        if used > length {
            return Err(Refusal::Truncated);
        }
        if matches!(found, Piece::Middle | Piece::Last) {
            break;
        }
    }
    Ok(Network {
        src: src.octets(),
        dst: dst.octets(),
        version: 6,
        protocol: next,
        ttl: header.hop_limit(),
        dscp: header.dscp().value(),
        piece: found,
        length: length.min(65_535),
        begins: at,
        at: at + used,
        room: length - used,
        fault,
    })
}

/// A packet in a packet.
struct Inside {
    kind: &'static str,
    version: u8,
    at: usize,
}

/// The packet inside, unless there is none that can be looked at.
fn tunnel(bytes: &[u8], outer: &Network) -> Result<Option<Inside>, Refusal> {
    if outer.piece != Piece::Whole {
        return Ok(None);
    }
    match outer.protocol {
        4 => Ok(Some(Inside { kind: "ipip", version: 4, at: outer.at })),
        41 => Ok(Some(Inside { kind: "six_in", version: 6, at: outer.at })),
        47 => gre(bytes, outer),
        _ => Ok(None),
    }
}

/// RFC 2784 with RFC 2890; other versions and source routing are nobody's to open.
fn gre(bytes: &[u8], outer: &Network) -> Result<Option<Inside>, Refusal> {
    if outer.room < 4 {
        return Err(Refusal::Truncated);
    }
    let head = readable(bytes, outer.at, 4)?;
    let (checksum, key, sequence) = (head[0] >> 7 & 1, head[0] >> 5 & 1, head[0] >> 4 & 1);
    let other = head[0] & 0b0100_1111 | head[1];
    let version = match [head[2], head[3]] {
        _ if other != 0 => return Ok(None),
        [0x08, 0x00] => 4,
        [0x86, 0xdd] => 6,
        _ => return Ok(None),
    };
    let own = 4 * (1 + usize::from(checksum) + usize::from(key) + usize::from(sequence));
    if own > outer.room {
        return Err(Refusal::Truncated);
    }
    Ok(Some(Inside { kind: "gre", version, at: outer.at + own }))
}

/// What a transport header says; all zero where there is none.
#[derive(Default)]
struct Transport {
    ports: [u16; 2],
    flags: u8,
    icmp: [u8; 2],
    length: usize,
}

fn transport(case: &Case<'_>, network: &Network) -> Result<Transport, Refusal> {
    if matches!(network.piece, Piece::Middle | Piece::Last) {
        return Ok(Transport::default());
    }
    let read = match network.protocol {
        6 => tcp(case, network),
        17 => udp(case, network),
        1 | 58 => header(case, network, 4).map(|head| Transport {
            icmp: [head[0], head[1]],
            length: 4,
            ..Transport::default()
        }),
        _ => Ok(Transport::default()),
    };
    match read {
        Err(Refusal::Truncated) if network.piece == Piece::First => Err(Refusal::TinyFragment),
        read => read,
    }
}

/// The first bytes of the transport header: they are the datagram's, and they are at hand.
fn header<'a>(case: &Case<'a>, network: &Network, len: usize) -> Result<&'a [u8], Refusal> {
    if network.room < len {
        return Err(Refusal::Truncated);
    }
    readable(case.bytes, network.at, len)
}

fn tcp(case: &Case<'_>, network: &Network) -> Result<Transport, Refusal> {
    let head = header(case, network, 20)?;
    let length = usize::from(head[12] >> 4) * 4;
    // Without its options, which need not be at hand.
    let mut bare = [0; 20];
    bare.copy_from_slice(head);
    bare[12] = 0x50 | head[12] & 0x0f;
    let tcp = TcpHeaderSlice::from_slice(&bare).expect("twenty bytes that say so");
    if length < 20 {
        return Err(Refusal::BadHeader);
    }
    if length > network.room {
        return Err(Refusal::Truncated);
    }
    let ports = [tcp.source_port(), tcp.destination_port()];
    let (fin, syn, rst, ack) = (tcp.fin(), tcp.syn(), tcp.rst(), tcp.ack());
    if case.sanity {
        // Each segment opens, ends, resets or acknowledges, and no two of the first three; an end acknowledges too.
        let deeds = u8::from(fin) + u8::from(syn) + u8::from(rst);
        let impossible = deeds > 1 || (fin && !ack) || (deeds == 0 && !ack);
        if impossible {
            return Err(Refusal::ImpossibleFlags);
        }
        if ports.contains(&0) {
            return Err(Refusal::PortZero);
        }
    }
    let bits = [fin, syn, rst, tcp.psh(), ack, tcp.urg()];
    let flags = bits.iter().rev().fold(0, |flags, bit| flags << 1 | u8::from(*bit));
    Ok(Transport { ports, flags, length, ..Transport::default() })
}

fn udp(case: &Case<'_>, network: &Network) -> Result<Transport, Refusal> {
    let udp = UdpHeaderSlice::from_slice(header(case, network, 8)?).expect("eight bytes");
    let ports = [udp.source_port(), udp.destination_port()];
    if case.sanity {
        let stated = usize::from(udp.length());
        // Zero: a jumbogram's (RFC 2675). A first fragment states more than it has.
        let fits = stated == 0 || stated >= 8 && (stated <= network.room || network.piece == Piece::First);
        if !fits {
            return Err(Refusal::BadLength);
        }
        if ports.contains(&0) {
            return Err(Refusal::PortZero);
        }
    }
    Ok(Transport { ports, length: 8, ..Transport::default() })
}

/// UDP services that are used for reflection, by the port that they answer from.
const REFLECTORS: [u16; 21] = [
    17, 19, 53, 69, 111, 123, 137, 138, 161, 389, 500, 520, 1_194, 1_900, 3_283, 3_702, 5_353, 5_683, 10_001, 11_211,
    37_810,
];

fn class(protocol: u8, transport: &Transport) -> &'static str {
    let [source, destination] = transport.ports;
    match protocol {
        6 => match transport.flags & 0b01_0111 {
            0b00_0010 => "tcp_syn",
            0b01_0010 => "tcp_syn_ack",
            0b01_0000 => "tcp_ack",
            0b00_0100 | 0b01_0100 => "tcp_rst",
            0b01_0001 => "tcp_fin",
            _ => "tcp_odd",
        },
        17 if REFLECTORS.contains(&source) => "reflector",
        17 if destination == 53 => "dns_query",
        17 => "udp",
        1 => "icmp",
        58 => "icmpv6",
        47 => "gre",
        50 => "esp",
        _ => "other_ip",
    }
}
