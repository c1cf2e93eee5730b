//! Frames of the plainest shape, parsed without memory: what floods, and most clean traffic, are made of.

use super::l4::tcp_class;
use super::{AddressFault, Checks, Fragment, Ip, Packet, Tunnel, eth, proto, sanity, tcp_flag};
use crate::frame::Frame;
use crate::services::is_reflector_port;
use crate::vocab::TrafficClass;

/// Bytes that such a frame has at least: Ethernet, IPv4 and TCP headers. Ethernet's shortest frame has 60.
const BYTES: usize = 54;
const L3: usize = 14;
const L4: usize = 34;

/// An untagged, whole IPv4 packet without options that carries TCP, UDP or ICMP, with nothing wrong in it but,
/// perhaps, its addresses.
#[derive(Clone, Copy, Debug)]
pub struct Plain {
    /// Addresses as they lie in memory.
    pub src: u32,
    pub dst: u32,
    pub class: TrafficClass,
    pub address_fault: AddressFault,
    /// As in [`Packet`].
    pub protocol: u8,
    pub tcp_flags: u8,
    pub src_port: u16,
    pub dst_port: u16,
    /// Type and code.
    pub icmp: [u8; 2],
    ttl: u8,
    dscp: u8,
    total: u16,
    header_len: u16,
}

impl Plain {
    /// Parses a frame of `wire_len` bytes in all. Nothing: the frame is of another shape, or something is wrong with it, and
    /// [`super::parse_into`] says what; where this says something, that says the same.
    #[inline(always)]
    pub fn parse(frame: &Frame<'_>, wire_len: usize, checks: Checks) -> Option<Self> {
        let h: &[u8; BYTES] = frame.at(0)?;
        let half = |at: usize| u16::from_be_bytes([h[at], h[at + 1]]);
        if half(12) != eth::IPV4 || h[L3] != 0x45 || half(L3 + 6) & 0x3fff != 0 {
            return None;
        }
        let total = half(L3 + 2);
        let room = usize::from(total).wrapping_sub(20);
        // A total below 20 wraps to a room that no frame has.
        if room > wire_len.wrapping_sub(L4) || wire_len > 0xffff {
            return None;
        }
        let mut plain = Self {
            src: u32::from_ne_bytes([h[26], h[27], h[28], h[29]]),
            dst: u32::from_ne_bytes([h[30], h[31], h[32], h[33]]),
            class: TrafficClass::Icmp,
            address_fault: AddressFault::None,
            protocol: h[L3 + 9],
            tcp_flags: 0,
            src_port: half(L4),
            dst_port: half(L4 + 2),
            icmp: [0; 2],
            ttl: h[L3 + 8],
            dscp: h[L3 + 1] >> 2,
            total,
            header_len: 8,
        };
        if plain.protocol == proto::UDP {
            let length = usize::from(half(L4 + 4));
            if room < 8 || length < 8 || length > room || plain.src_port == 0 || plain.dst_port == 0 {
                return None;
            }
            plain.class = if is_reflector_port(plain.src_port) {
                TrafficClass::Reflector
            } else if plain.dst_port == 53 {
                TrafficClass::DnsQuery
            } else {
                TrafficClass::Udp
            };
        } else if plain.protocol == proto::TCP {
            plain.header_len = u16::from(h[L4 + 12] >> 4) * 4;
            plain.tcp_flags = h[L4 + 13] & tcp_flag::ALL;
            let len = usize::from(plain.header_len);
            if len < 20 || len > room || !sanity::has_flags_of_a_stack(plain.tcp_flags) {
                return None;
            }
            if plain.src_port == 0 || plain.dst_port == 0 {
                return None;
            }
            plain.class = tcp_class(plain.tcp_flags);
        } else if plain.protocol == proto::ICMP {
            if room < 4 {
                return None;
            }
            (plain.src_port, plain.dst_port, plain.header_len) = (0, 0, 4);
            plain.icmp = [h[L4], h[L4 + 1]];
        } else {
            return None;
        }
        if checks.has(Checks::SANITY) {
            plain.address_fault = sanity::v4(plain.src, plain.dst);
        }
        Some(plain)
    }

    /// Writes what [`super::parse_into`] would have written into an empty packet.
    #[inline(always)]
    pub fn fill(&self, packet: &mut Packet) {
        // Field by field: a whole value would be made on the stack and copied from there.
        packet.clear();
        packet.src = Ip::of_v4(self.src);
        packet.dst = Ip::of_v4(self.dst);
        packet.class = self.class;
        packet.version = 4;
        packet.protocol = self.protocol;
        packet.ttl = self.ttl;
        packet.fragment = Fragment::Whole;
        packet.tcp_flags = self.tcp_flags;
        [packet.icmp_type, packet.icmp_code] = self.icmp;
        packet.src_port = self.src_port;
        packet.dst_port = self.dst_port;
        packet.ip_len = self.total;
        packet.l4_offset = L4 as u16;
        packet.payload_offset = L4 as u16 + self.header_len;
        packet.ether_type = eth::IPV4;
        packet.l3_offset = L3 as u16;
        packet.l4_room = self.total - 20;
        packet.dscp = self.dscp;
        packet.tunnel = Tunnel::None;
        packet.address_fault = self.address_fault;
    }
}
