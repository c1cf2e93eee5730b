//! Parses a frame once into a value that the stages, the agent and the tests all read.
//!
//! Ethernet with up to two VLAN tags, IPv4 with options, IPv6 with up to eight extension headers, fragments of both,
//! TCP, UDP and ICMP. Every length is checked against the datagram's own length as well as the frame's, so that
//! padding is never read as a header. What cannot be parsed says why and is never taken for something else.
//!
//! No tunnels are opened here: GRE, IPIP and 6in4 are classes of the outer packet.

mod eth;
mod ipv4;
mod ipv6;
mod l4;

use crate::frame::Frame;
use crate::vocab::TrafficClass;

pub use eth::MAX_VLAN_TAGS;
pub use ipv6::MAX_EXTENSION_HEADERS;

/// IP protocol numbers that the datapath treats by name (IANA "Assigned Internet Protocol Numbers").
pub mod proto {
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const SIX_IN_FOUR: u8 = 41;
    pub const GRE: u8 = 47;
    pub const ESP: u8 = 50;
    pub const ICMPV6: u8 = 58;
}

/// TCP flag bits as they lie in the header's 14th byte (RFC 9293 section 3.1).
pub mod tcp_flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const URG: u8 = 0x20;
    /// The flags that say what a segment is; the two congestion bits above them do not.
    pub const ALL: u8 = 0x3f;
}

/// An address as four words in memory order; IPv4 is mapped into `::ffff:0:0/96` (RFC 4291 section 2.5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Ip(pub [u32; 4]);

impl Ip {
    /// The word before a mapped IPv4 address, in memory order.
    const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

    /// From the four bytes of an IPv4 header.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([0, 0, Self::MAPPED, u32::from_ne_bytes(octets)])
    }

    /// From the sixteen bytes of an IPv6 header.
    #[inline(always)]
    pub const fn v6(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// The sixteen bytes in network order.
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] =
            [self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes(), self.0[2].to_ne_bytes(), self.0[3].to_ne_bytes()];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }
}

#[cfg(any(feature = "api", test))]
impl From<Ip> for std::net::IpAddr {
    fn from(ip: Ip) -> Self {
        std::net::Ipv6Addr::from(ip.octets()).to_canonical()
    }
}

#[cfg(any(feature = "api", test))]
impl From<std::net::IpAddr> for Ip {
    fn from(ip: std::net::IpAddr) -> Self {
        match ip {
            std::net::IpAddr::V4(v4) => Self::v4(v4.octets()),
            std::net::IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

/// Which part of a datagram the packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// The whole datagram, an IPv6 atomic fragment (RFC 6946) included.
    Whole = 0,
    First = 1,
    /// No ports: they are in the first fragment alone.
    Middle = 2,
    /// No ports, as a middle fragment.
    Last = 3,
}

/// The headers of one IP packet. Numbers are in host order; offsets are bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src: Ip,
    pub dst: Ip,
    pub class: TrafficClass,
    /// 4 or 6.
    pub version: u8,
    /// The last header's protocol number, after all extension headers.
    pub protocol: u8,
    pub ttl: u8,
    pub fragment: Fragment,
    /// The low six flag bits of TCP, 0 otherwise.
    pub tcp_flags: u8,
    /// Type and code of ICMP or ICMPv6, 0 otherwise.
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// Ports of TCP and UDP; 0 for other protocols and for fragments that carry none.
    pub src_port: u16,
    pub dst_port: u16,
    /// Length of the whole IP datagram or fragment in bytes, its own header included.
    pub ip_len: u16,
    /// Where the transport header begins.
    pub l4_offset: u16,
    /// Where the bytes after the transport header begin; equal to `l4_offset` where there is no known header.
    pub payload_offset: u16,
    pub vlan_tags: u8,
}

/// Why a frame is no packet that may be judged by rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A header reaches beyond the frame or beyond the datagram's own length.
    Truncated,
    /// A header contradicts itself: version, header length, total length.
    BadHeader,
    /// More VLAN tags or extension headers than the budget.
    TooDeep,
    /// A first fragment too short for its transport header, or one laid over it (RFC 1858, RFC 7112).
    TinyFragment,
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    Ip(Packet),
    /// Not IP; the EtherType in host order, 0 for a frame too short to have one.
    NotIp(u16),
    Malformed(Malformed),
}

/// Parses a frame that begins with an Ethernet header.
///
/// `wire_len` is the frame's whole length in bytes where more of it exists than can be read (the non-linear part of a
/// socket buffer); pass `frame.len()` otherwise.
#[inline(always)]
pub fn parse(frame: &Frame<'_>, wire_len: usize) -> Parsed {
    let (ether_type, l3, vlan_tags) = match eth::parse(frame) {
        Ok(found) => found,
        Err(why) => return Parsed::Malformed(why),
    };
    let parsed = match ether_type {
        eth::IPV4 => ipv4::parse(frame, l3, wire_len),
        eth::IPV6 => ipv6::parse(frame, l3, wire_len),
        other => return Parsed::NotIp(other),
    };
    match parsed {
        Ok(mut packet) => {
            packet.vlan_tags = vlan_tags;
            Parsed::Ip(packet)
        }
        Err(why) => Parsed::Malformed(why),
    }
}

#[cfg(test)]
mod tests;
