//! What a frame says about addresses, ports and protocols.
//!
//! The datapath's own parser reads it, so that a packet is here what it was in the kernel. What that refuses is
//! described as far as its first headers go: people look at captures to see just such packets.

use std::net::IpAddr;

use ftagent_common::frame::Frame as Bytes;
use ftagent_common::packet::{Checks, Fragment, Ip, Kind, Malformed, Packet, parse_into, proto};
use ftagent_common::vocab::TrafficClass;

use super::frames::Frame;
use super::link::{self, Place};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// VLAN tags that are listed; the parser follows two.
const MAX_TAGS: usize = 8;

/// What was read of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The parser understood all of it.
    Ip,
    /// Its addresses, and ports where they are, are known.
    Malformed(Malformed),
    /// The network header itself cannot be read.
    Unreadable,
    NotIp,
    /// Of a link layer that is not read.
    Undecoded,
}

/// A frame that was looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoded<'a> {
    pub(super) reading: Reading,
    /// Addresses, protocol and ports hold for `Ip` and `Malformed`, `ether_type` for `NotIp` as well.
    pub(super) packet: Packet,
    /// The payload's first bytes.
    pub(super) payload: &'a [u8],
    /// All of its bytes, as the headers say.
    pub(super) payload_len: u32,
    tags: [u16; MAX_TAGS],
    tag_count: usize,
}

impl Decoded<'_> {
    pub(super) const fn has_addresses(&self) -> bool {
        matches!(self.reading, Reading::Ip | Reading::Malformed(_))
    }

    /// The ids of its VLANs, outermost first.
    pub(super) fn vlans(&self) -> &[u16] {
        &self.tags[..self.tag_count]
    }

    /// Whether it carries ports.
    pub(super) fn has_ports(&self) -> bool {
        let p = &self.packet;
        self.has_addresses()
            && matches!(p.protocol, proto::TCP | proto::UDP)
            && matches!(p.fragment, Fragment::Whole | Fragment::First)
            && (self.reading == Reading::Ip || p.src_port != 0 || p.dst_port != 0)
    }

    pub(super) fn src(&self) -> IpAddr {
        self.packet.src.into()
    }

    pub(super) fn dst(&self) -> IpAddr {
        self.packet.dst.into()
    }
}

/// Looks at frames; keeps memory for those that need a header put before them.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    ethernet: Vec<u8>,
}

impl Decoder {
    /// Looks at one frame.
    pub(super) fn decode<'a>(&'a mut self, frame: &'a Frame<'_>) -> Decoded<'a> {
        let mut decoded = Decoded {
            reading: Reading::Undecoded,
            packet: Packet::EMPTY,
            payload: &[],
            payload_len: 0,
            tags: [0; MAX_TAGS],
            tag_count: 0,
        };
        let wire_len = frame.wire_len as usize;
        let (bytes, wire_len) = match link::place(frame.link, frame.head) {
            Place::Undecoded => return decoded,
            Place::Unreadable => {
                decoded.reading = Reading::Unreadable;
                return decoded;
            }
            Place::Ethernet => (frame.head, wire_len),
            Place::At { ether_type, at } => {
                let rest = frame.head.get(at..).unwrap_or_default();
                self.ethernet.clear();
                self.ethernet.extend([0; 12]);
                self.ethernet.extend(ether_type.to_be_bytes());
                self.ethernet.extend(rest);
                (self.ethernet.as_slice(), (14 + wire_len.saturating_sub(at)).max(self.ethernet.len()))
            }
        };
        parse(bytes, wire_len, &mut decoded);
        decoded
    }
}

fn parse<'a>(bytes: &'a [u8], wire_len: usize, decoded: &mut Decoded<'a>) {
    let l3 = tags(bytes, decoded);
    let mut packet = Packet::EMPTY;
    let mut kind = parse_into(&Bytes::new(bytes), wire_len, Checks(Checks::TUNNELS), &mut packet);
    let mut refused = None;
    if let Kind::Malformed(why) = kind {
        // It may be what a tunnel carries that is at fault.
        refused = Some(why);
        packet = Packet::EMPTY;
        kind = parse_into(&Bytes::new(bytes), wire_len, Checks::NONE, &mut packet);
    }
    decoded.packet = packet;
    decoded.reading = match (kind, refused) {
        (Kind::Ip | Kind::Tunnel, None) => Reading::Ip,
        (Kind::Ip | Kind::Tunnel, Some(why)) => Reading::Malformed(why),
        (Kind::NotIp, _) => Reading::NotIp,
        (Kind::Malformed(why), _) => {
            decoded.packet = first_headers(bytes, l3);
            if decoded.packet.version == 0 { Reading::Unreadable } else { Reading::Malformed(why) }
        }
    };
    let p = &decoded.packet;
    if matches!(kind, Kind::Ip | Kind::Tunnel) {
        let header = p.payload_offset.saturating_sub(p.l4_offset);
        let len = usize::from(p.l4_room.saturating_sub(header));
        let at = usize::from(p.payload_offset).min(bytes.len());
        decoded.payload = &bytes[at..bytes.len().min(at + len)];
        decoded.payload_len = u32::try_from(len).expect("below 64 KiB");
    }
}

/// Collects the VLAN tags; where the network header begins, if it is IP's.
fn tags(bytes: &[u8], decoded: &mut Decoded<'_>) -> Option<(u16, usize)> {
    let be16 = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let mut at = 12;
    loop {
        let ether_type = be16(at)?;
        if !matches!(ether_type, 0x8100 | 0x88a8 | 0x9100) {
            return Some((ether_type, at + 2));
        }
        let slot = decoded.tags.get_mut(decoded.tag_count)?;
        *slot = be16(at + 2)? & 0x0fff;
        decoded.tag_count += 1;
        at += 4;
    }
}

/// Addresses, protocol and ports where they lie, whatever the lengths say; version 0 if there are no addresses.
fn first_headers(bytes: &[u8], l3: Option<(u16, usize)>) -> Packet {
    let mut packet = Packet::EMPTY;
    let Some((ether_type, at)) = l3 else { return packet };
    packet.ether_type = ether_type;
    let header = bytes.get(at..).unwrap_or_default();
    let (transport, whole) = match (ether_type, header) {
        (IPV4, h) if h.len() >= 20 && h[0] >> 4 == 4 => {
            packet.version = 4;
            packet.src = Ip::v4([h[12], h[13], h[14], h[15]]);
            packet.dst = Ip::v4([h[16], h[17], h[18], h[19]]);
            (packet.protocol, packet.ttl) = (h[9], h[8]);
            let fragment = u16::from_be_bytes([h[6], h[7]]);
            packet.fragment = match (fragment & 0x1fff, fragment & 0x2000) {
                (0, 0) => Fragment::Whole,
                (0, _) => Fragment::First,
                (_, 0) => Fragment::Last,
                _ => Fragment::Middle,
            };
            (usize::from(h[0] & 0x0f) * 4, fragment & 0x1fff == 0 && h[0] & 0x0f >= 5)
        }
        (IPV6, h) if h.len() >= 40 && h[0] >> 4 == 6 => {
            packet.version = 6;
            let address = |at: usize| Ip::v6(h[at..at + 16].try_into().expect("sixteen bytes were asked for"));
            (packet.src, packet.dst) = (address(8), address(24));
            (packet.protocol, packet.ttl) = (h[6], h[7]);
            (40, true)
        }
        _ => return packet,
    };
    packet.class = match packet.protocol {
        _ if packet.fragment != Fragment::Whole => TrafficClass::Fragment,
        proto::TCP => TrafficClass::TcpOdd,
        proto::UDP => TrafficClass::Udp,
        proto::ICMP => TrafficClass::Icmp,
        proto::ICMPV6 => TrafficClass::Icmpv6,
        proto::GRE => TrafficClass::Gre,
        proto::ESP => TrafficClass::Esp,
        _ => TrafficClass::OtherIp,
    };
    if let (true, Some(ports)) = (whole, header.get(transport..transport + 4))
        && matches!(packet.protocol, proto::TCP | proto::UDP)
    {
        packet.src_port = u16::from_be_bytes([ports[0], ports[1]]);
        packet.dst_port = u16::from_be_bytes([ports[2], ports[3]]);
    }
    packet
}

#[cfg(test)]
mod tests;
