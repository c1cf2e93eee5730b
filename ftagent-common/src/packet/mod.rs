//! Parses a frame once into a value that the stages, the agent and the tests all read.
//!
//! Ethernet with up to two VLAN tags, IPv4 with options, IPv6 with up to eight extension headers, fragments of both,
//! TCP, UDP and ICMP. Every length is checked against the datagram's own length as well as the frame's, so that
//! padding is never read as a header. What cannot be parsed says why and is never taken for something else.
//!
//! One level of GRE, IPIP and 6in4 is opened: the packet inside is the one that is judged, by its own addresses and
//! ports, and `outer_src` says who sent the tunnel's. A tunnel inside a tunnel is a class of its own and stays closed.
//!
//! What no host can have sent is refused where it is seen, before any map is asked: [`Checks`].

mod eth;
mod ipv4;
mod ipv6;
mod l4;
mod plain;
mod sanity;
mod tunnel;

use core::cmp::Ordering;

use crate::frame::Frame;
use crate::vocab::TrafficClass;

pub use eth::MAX_VLAN_TAGS;
pub use ipv6::MAX_EXTENSION_HEADERS;
pub use plain::Plain;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Ip(pub [u32; 4]);

impl Ord for Ip {
    /// Word by word, as what is derived would, in one comparison: statistics sort many.
    fn cmp(&self, other: &Self) -> Ordering {
        let number = |Self([a, b, c, d]): &Self| {
            u128::from(*a) << 96 | u128::from(*b) << 64 | u128::from(*c) << 32 | u128::from(*d)
        };
        number(self).cmp(&number(other))
    }
}

impl PartialOrd for Ip {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ip {
    /// The word before a mapped IPv4 address, in memory order.
    const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

    /// From the four bytes of an IPv4 header.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([0, 0, Self::MAPPED, u32::from_ne_bytes(octets)])
    }

    /// From an IPv4 address in memory order.
    #[inline(always)]
    pub const fn of_v4(word: u32) -> Self {
        Self([0, 0, Self::MAPPED, word])
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

/// In what the judged packet was carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tunnel {
    None = 0,
    /// RFC 2784, RFC 2890.
    Gre = 1,
    /// IPv4 in IPv4 (RFC 2003) or in IPv6 (RFC 2473).
    Ipip = 2,
    /// IPv6 in IPv4 (RFC 4213) or in IPv6 (RFC 2473).
    SixIn = 3,
    /// The packet is the one around: what is inside is not for this node to look into. The parser never says this.
    Closed = 4,
}

impl Tunnel {
    /// Whether the judged packet was inside another one.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Gre | Self::Ipip | Self::SixIn)
    }
}

/// What is wrong with the addresses of a packet whose headers can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AddressFault {
    None = 0,
    Martian = 1,
    Land = 2,
}

impl AddressFault {
    /// What a packet with nothing else wrong is.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        match self {
            Self::None => Kind::Ip,
            Self::Martian => Kind::Malformed(Malformed::MartianSource),
            Self::Land => Kind::Malformed(Malformed::Land),
        }
    }
}

/// Which frames are refused besides those that cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks(pub u32);

impl Checks {
    pub const NONE: Self = Self(0);
    /// Sources that no packet on a wire can have, LAND, port 0, impossible TCP flags, wrong UDP lengths.
    pub const SANITY: u32 = 1;
    /// Tunnels are opened.
    pub const TUNNELS: u32 = 2;
    pub const ALL: Self = Self(Self::SANITY | Self::TUNNELS);

    #[inline(always)]
    pub(crate) const fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

/// The headers of one IP packet. Numbers are in host order; offsets are bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
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
    /// The EtherType after all VLAN tags.
    pub ether_type: u16,
    /// Where the network header begins; of the packet inside, if there is a tunnel.
    pub l3_offset: u16,
    /// Bytes of the datagram from the transport header on.
    pub l4_room: u16,
    /// The six bits of the differentiated services field (RFC 2474).
    pub dscp: u8,
    pub tunnel: Tunnel,
    pub address_fault: AddressFault,
    /// The source of the packet around, if there is a tunnel; all zero otherwise.
    pub outer_src: Ip,
}

const _: () = assert!(size_of::<Packet>().is_multiple_of(8));

impl Packet {
    /// Makes it [`Self::EMPTY`], in wide stores: copying the constant takes a load for every store.
    #[inline(always)]
    pub fn clear(&mut self) {
        const WORDS: usize = size_of::<Packet>() / 8;
        let words = (&raw mut *self).cast::<u64>();
        for i in 0..WORDS {
            // SAFETY: inside the packet, which is aligned to 8 and a multiple of it.
            let word = unsafe { words.add(i) };
            // SAFETY: every field is valid when all zero: integers, and enums that have a variant 0. Volatile, or the
            // compiler makes a call of a function that writes byte by byte of it.
            unsafe { word.write_volatile(0) };
        }
        self.class = TrafficClass::NotIp;
    }

    /// Copies another one, in wide stores.
    #[inline(always)]
    pub fn copy_from(&mut self, other: &Self) {
        const WORDS: usize = size_of::<Packet>() / 8;
        let (to, from) = ((&raw mut *self).cast::<u64>(), (&raw const *other).cast::<u64>());
        for i in 0..WORDS {
            // SAFETY: inside the packet, which is aligned to 8 and a multiple of it.
            let to = unsafe { to.add(i) };
            // SAFETY: as above.
            let from = unsafe { from.add(i) };
            // SAFETY: as above. Volatile for the reason given in [`Self::clear`].
            let word = unsafe { from.read_volatile() };
            // SAFETY: as above.
            unsafe { to.write_volatile(word) };
        }
    }

    /// What [`parse_outer`] made of a tunnel becomes the packet around it, as if nobody had looked inside.
    #[inline(always)]
    pub fn close(&mut self) {
        self.src = self.outer_src;
        self.outer_src = Ip([0; 4]);
        self.version = if self.ether_type == eth::IPV4 { 4 } else { 6 };
        self.l4_room = self.l4_room.wrapping_add(self.l3_offset.wrapping_sub(self.l4_offset));
        self.l3_offset = eth::end(self.vlan_tags);
        self.payload_offset = self.l4_offset;
        self.class = l4::class(self);
        self.tunnel = Tunnel::Closed;
    }

    /// What a packet is parsed into.
    pub const EMPTY: Self = Self {
        src: Ip([0; 4]),
        dst: Ip([0; 4]),
        class: TrafficClass::NotIp,
        version: 0,
        protocol: 0,
        ttl: 0,
        fragment: Fragment::Whole,
        tcp_flags: 0,
        icmp_type: 0,
        icmp_code: 0,
        src_port: 0,
        dst_port: 0,
        ip_len: 0,
        l4_offset: 0,
        payload_offset: 0,
        vlan_tags: 0,
        ether_type: 0,
        l3_offset: 0,
        l4_room: 0,
        dscp: 0,
        tunnel: Tunnel::None,
        address_fault: AddressFault::None,
        outer_src: Ip([0; 4]),
    };
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
    /// A source that no packet on a wire can have (RFC 6890, RFC 4291).
    MartianSource,
    /// Source and destination are the same.
    Land,
    /// TCP or UDP from or to port 0.
    PortZero,
    /// TCP flags that no stack sends: none at all, SYN with FIN or RST, FIN without ACK.
    ImpossibleFlags,
    /// A UDP length shorter than its header or longer than the datagram.
    BadLength,
}

impl Malformed {
    /// Whether addresses and class were read all the same.
    #[inline(always)]
    pub const fn has_target(self) -> bool {
        matches!(self, Self::MartianSource | Self::Land | Self::PortZero | Self::ImpossibleFlags | Self::BadLength)
    }
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All fields of the packet are filled in.
    Ip,
    /// Only `ether_type` and `vlan_tags` are filled in.
    NotIp,
    /// A tunnel's outer header is read: [`parse_inner`] reads on. Only [`parse_outer`] returns this.
    Tunnel,
    /// The packet's fields are not to be used.
    Malformed(Malformed),
}

/// A parsed frame as one value, for user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    Ip(Packet),
    /// Not IP; the EtherType in host order.
    NotIp(u16),
    Malformed(Malformed),
}

/// Parses a frame of `wire_len` bytes in all that begins with an Ethernet header, as the kernel does with every check
/// on; see [`parse_into`].
pub fn parse(frame: &Frame<'_>, wire_len: usize) -> Parsed {
    let mut packet = Packet::EMPTY;
    match parse_into(frame, wire_len, Checks::ALL, &mut packet) {
        Kind::Ip | Kind::Tunnel => Parsed::Ip(packet),
        Kind::NotIp => Parsed::NotIp(packet.ether_type),
        Kind::Malformed(why) => Parsed::Malformed(why),
    }
}

/// Parses a frame of `wire_len` bytes in all into `packet`, which the caller starts as [`Packet::EMPTY`].
///
/// `wire_len` exceeds `frame.len()` where more of the frame exists than can be read: the non-linear part of a socket
/// buffer, or what a snap length cut off. The packet is filled in place because the BPF stack has 512 bytes in all.
pub fn parse_into(frame: &Frame<'_>, wire_len: usize, checks: Checks, packet: &mut Packet) -> Kind {
    match parse_outer(frame, wire_len, checks, packet) {
        Kind::Tunnel => parse_inner(frame, checks, packet),
        kind => kind,
    }
}

/// The first part of [`parse_into`]: everything, unless there is a tunnel.
#[inline(always)]
pub fn parse_outer(frame: &Frame<'_>, wire_len: usize, checks: Checks, packet: &mut Packet) -> Kind {
    match outer(frame, wire_len, checks, packet) {
        Ok(kind) => kind,
        Err(why) => Kind::Malformed(why),
    }
}

#[inline(always)]
fn outer(frame: &Frame<'_>, wire_len: usize, checks: Checks, packet: &mut Packet) -> Result<Kind, Malformed> {
    let l3 = eth::parse(frame, packet)?;
    let place = match packet.ether_type {
        eth::IPV4 => ipv4::parse(frame, l3, wire_len, checks, packet)?,
        eth::IPV6 => ipv6::parse(frame, l3, wire_len, checks, packet)?,
        _ => return Ok(Kind::NotIp),
    };
    // A tunnel between addresses that are at fault is refused for them, whatever is inside.
    let opens = checks.has(Checks::TUNNELS) && matches!(packet.address_fault, AddressFault::None);
    if opens && tunnel::is_carrier(packet) && tunnel::open(frame, place, packet)? {
        return Ok(Kind::Tunnel);
    }
    l4::parse(frame, place, checks, packet)?;
    Ok(Kind::Ip)
}

/// A field out of memory, whatever the compiler and the verifier know of it.
#[inline(always)]
fn reread<T: Copy>(field: &T) -> T {
    // SAFETY: a reference is valid to read.
    unsafe { (&raw const *field).read_volatile() }
}

/// The second part of [`parse_into`], after [`Kind::Tunnel`]. `frame` may be the same frame read anew.
#[inline(always)]
pub fn parse_inner(frame: &Frame<'_>, checks: Checks, packet: &mut Packet) -> Kind {
    match inner(frame, checks, packet) {
        Ok(()) => Kind::Ip,
        Err(why) => Kind::Malformed(why),
    }
}

#[inline(always)]
fn inner(frame: &Frame<'_>, checks: Checks, packet: &mut Packet) -> Result<(), Malformed> {
    // Out of memory, so that the verifier does not know any more by which way through the outer headers it came.
    let (l3, room) = (reread(&packet.l3_offset), reread(&packet.l4_room));
    let version = reread(&packet.version);
    let l3 = usize::from(l3);
    // The packet inside ends where the one around it does, whatever the frame holds beyond.
    let end = l3 + usize::from(room);
    let place = if version == 4 {
        ipv4::parse(frame, l3, end, checks, packet)?
    } else {
        ipv6::parse(frame, l3, end, checks, packet)?
    };
    l4::parse(frame, place, checks, packet)
}

#[cfg(test)]
mod tests;
