//! The Internet checksum (RFC 1071) over whole frames: verify it, or make it right.

use std::ops::Range;

use ftagent_common::frame::Frame;
use ftagent_common::packet::{Fragment, Packet, Parsed, parse, proto};

/// The ones' complement sum of big-endian words, folded to 16 bits; an odd last byte is padded with zero.
pub fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut total = u64::from(start);
    for pair in bytes.chunks(2) {
        total += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    // The loop above leaves at most 16 bits.
    total as u32
}

/// Whether the checksums of a frame are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// All that could be checked are right.
    Right,
    /// The IPv4 header's is wrong.
    WrongIp,
    /// The one of TCP, UDP, ICMP or ICMPv6 is wrong.
    WrongTransport,
    /// Not IP, malformed, or a fragment's, whose transport checksum covers bytes that are elsewhere.
    NotChecked,
}

/// Checks the checksums of an Ethernet frame. A UDP checksum of zero over IPv4 counts as right: there is none.
pub fn verify(frame: &[u8]) -> Verdict {
    let Some((packet, places)) = locate(frame) else { return Verdict::NotChecked };
    if packet.version == 4 && sum(&frame[places.ip_header.clone()], 0) != 0xffff {
        return Verdict::WrongIp;
    }
    let Some(at) = places.transport_sum else { return Verdict::NotChecked };
    if packet.protocol == proto::UDP && packet.version == 4 && frame[at] == 0 && frame[at + 1] == 0 {
        return Verdict::Right;
    }
    let start = pseudo_header(&packet, places.transport.len());
    if sum(&frame[places.transport], start) == 0xffff { Verdict::Right } else { Verdict::WrongTransport }
}

/// Computes all checksums of an Ethernet frame anew.
///
/// Leaves frames alone that are not IP or malformed, a UDP checksum of zero over IPv4, and those of fragments, of which
/// only the IPv4 header's is made right.
pub fn fill(frame: &mut [u8]) {
    let Some((packet, places)) = locate(frame) else { return };
    if packet.version == 4 {
        let at = places.ip_header.start + 10;
        frame[at..at + 2].fill(0);
        let value = !sum(&frame[places.ip_header], 0) as u16;
        frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }
    let Some(at) = places.transport_sum else { return };
    if packet.protocol == proto::UDP && packet.version == 4 && frame[at] == 0 && frame[at + 1] == 0 {
        return;
    }
    frame[at..at + 2].fill(0);
    let start = pseudo_header(&packet, places.transport.len());
    let value = match !sum(&frame[places.transport], start) as u16 {
        // Zero means "no checksum" in UDP (RFC 768).
        0 if packet.protocol == proto::UDP => 0xffff,
        value => value,
    };
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The part of a transport checksum that covers addresses, length and protocol (RFC 793, RFC 8200 section 8.1).
pub fn pseudo_header(packet: &Packet, transport_len: usize) -> u32 {
    if packet.protocol == proto::ICMP {
        return 0;
    }
    let mut start = u32::from(packet.protocol);
    // Datagrams are at most 65,575 bytes: both halves of the length fit.
    start += (transport_len as u32 >> 16) + (transport_len as u32 & 0xffff);
    let (src, dst) = (packet.src.octets(), packet.dst.octets());
    let skip = if packet.version == 4 { 12 } else { 0 };
    start = sum(&src[skip..], start);
    sum(&dst[skip..], start)
}

/// Where the parts of a parsed packet lie in its frame.
pub(crate) struct Places {
    pub(crate) l3: usize,
    pub(crate) ip_header: Range<usize>,
    pub(crate) transport: Range<usize>,
    /// Where the transport checksum lies; nothing for fragments and protocols without one.
    pub(crate) transport_sum: Option<usize>,
}

/// Parses a frame and finds its parts.
pub(crate) fn locate(frame: &[u8]) -> Option<(Packet, Places)> {
    let Parsed::Ip(packet) = parse(&Frame::new(frame), frame.len()) else { return None };
    let l3 = 14 + 4 * usize::from(packet.vlan_tags);
    let l4 = usize::from(packet.l4_offset);
    let end = (l3 + usize::from(packet.ip_len)).min(frame.len());
    let ip_header = if packet.version == 4 { l3..l4 } else { l3..l3 + 40 };
    let offset = match packet.protocol {
        proto::TCP => Some(16),
        proto::UDP => Some(6),
        proto::ICMP | proto::ICMPV6 => Some(2),
        _ => None,
    };
    let transport_sum = offset
        .filter(|_| packet.fragment == Fragment::Whole && !has_routing_header(frame, l3, &packet))
        .map(|offset| l4 + offset)
        .filter(|at| at + 2 <= end);
    Some((packet, Places { l3, ip_header, transport: l4..end.max(l4), transport_sum }))
}

/// A routing header may change the destination that the checksum was computed with (RFC 8200 section 8.1).
fn has_routing_header(frame: &[u8], l3: usize, packet: &Packet) -> bool {
    if packet.version == 4 {
        return false;
    }
    let mut next = frame[l3 + 6];
    let mut at = l3 + 40;
    while at < usize::from(packet.l4_offset) {
        if next == 43 || next == 60 && home_address(&frame[at..usize::from(packet.l4_offset)]) {
            return true;
        }
        let len = match next {
            44 => 8,
            51 => 8 + usize::from(frame[at + 1]) * 4,
            _ => 8 + usize::from(frame[at + 1]) * 8,
        };
        next = frame[at];
        at += len;
    }
    false
}

/// A destination option 201 takes the place of the source address in the checksum (RFC 6275 section 6.3).
fn home_address(header: &[u8]) -> bool {
    header.windows(2).skip(2).any(|w| w == [201, 16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_an_odd_length_is_padded_with_zero() {
        assert_eq!(sum(&[0x12, 0x34, 0x56], 0), 0x1234 + 0x5600);
        assert_eq!(sum(&[0xff, 0xff, 0x00, 0x01], 0), 1);
    }

    #[test]
    fn a_bent_byte_is_noticed_and_filling_mends_it() {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([192, 0, 2, 1], [198, 51, 100, 1], 64)
            .udp(1234, 53)
            .write(&mut frame, b"hello")
            .expect("a vector takes every frame");
        assert_eq!(verify(&frame), Verdict::Right);
        frame[30] ^= 1;
        assert_eq!(verify(&frame), Verdict::WrongIp);
        fill(&mut frame);
        assert_eq!(verify(&frame), Verdict::Right);
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert_eq!(verify(&frame), Verdict::WrongTransport);
        fill(&mut frame);
        assert_eq!(verify(&frame), Verdict::Right);
    }
}
