//! Transport headers, and the class that a packet is counted and policed in.

use super::{Fragment, Ip, Malformed, Packet, proto, tcp_flag};
use crate::frame::Frame;
use crate::vocab::TrafficClass;

/// What the network header said.
pub(super) struct Network {
    pub(super) src: Ip,
    pub(super) dst: Ip,
    pub(super) version: u8,
    pub(super) protocol: u8,
    pub(super) ttl: u8,
    pub(super) fragment: Fragment,
    /// Where the network header begins.
    pub(super) l3: usize,
    /// Where the transport header begins.
    pub(super) l4: usize,
    /// Length of the datagram in bytes; never above 65,575.
    pub(super) total: usize,
}

#[inline(always)]
pub(super) fn finish(frame: &Frame<'_>, n: Network) -> Result<Packet, Malformed> {
    let mut packet = Packet {
        src: n.src,
        dst: n.dst,
        class: TrafficClass::Fragment,
        version: n.version,
        protocol: n.protocol,
        ttl: n.ttl,
        fragment: n.fragment,
        tcp_flags: 0,
        icmp_type: 0,
        icmp_code: 0,
        src_port: 0,
        dst_port: 0,
        ip_len: if n.total > 0xffff { 0xffff } else { (n.total & 0xffff) as u16 },
        l4_offset: (n.l4 & 0xffff) as u16,
        payload_offset: (n.l4 & 0xffff) as u16,
        vlan_tags: 0,
    };
    if matches!(n.fragment, Fragment::Middle | Fragment::Last) {
        return Ok(packet);
    }
    // A transport header must lie inside the datagram: bytes after it are padding, not ports.
    let room = (n.l3 + n.total).saturating_sub(n.l4);
    let header_len = match n.protocol {
        proto::TCP => tcp(frame, &mut packet, n.l4, room)?,
        proto::UDP => udp(frame, &mut packet, n.l4, room)?,
        proto::ICMP | proto::ICMPV6 => icmp(frame, &mut packet, n.l4, room)?,
        _ => 0,
    };
    packet.payload_offset = ((n.l4 + header_len) & 0xffff) as u16;
    if n.fragment == Fragment::Whole {
        packet.class = class(&packet);
    }
    Ok(packet)
}

/// What a missing transport header means: in a first fragment it is an evasion, else a cut.
#[inline(always)]
fn missing(packet: &Packet) -> Malformed {
    if packet.fragment == Fragment::First { Malformed::TinyFragment } else { Malformed::Truncated }
}

#[inline(always)]
fn tcp(frame: &Frame<'_>, packet: &mut Packet, l4: usize, room: usize) -> Result<usize, Malformed> {
    if room < 20 {
        return Err(missing(packet));
    }
    let h: [u8; 20] = frame.read(l4).ok_or_else(|| missing(packet))?;
    let header_len = usize::from(h[12] >> 4) * 4;
    if header_len < 20 {
        return Err(Malformed::BadHeader);
    }
    if header_len > room {
        return Err(missing(packet));
    }
    packet.src_port = u16::from_be_bytes([h[0], h[1]]);
    packet.dst_port = u16::from_be_bytes([h[2], h[3]]);
    packet.tcp_flags = h[13] & tcp_flag::ALL;
    Ok(header_len)
}

#[inline(always)]
fn udp(frame: &Frame<'_>, packet: &mut Packet, l4: usize, room: usize) -> Result<usize, Malformed> {
    if room < 8 {
        return Err(missing(packet));
    }
    let h: [u8; 8] = frame.read(l4).ok_or_else(|| missing(packet))?;
    packet.src_port = u16::from_be_bytes([h[0], h[1]]);
    packet.dst_port = u16::from_be_bytes([h[2], h[3]]);
    Ok(8)
}

#[inline(always)]
fn icmp(frame: &Frame<'_>, packet: &mut Packet, l4: usize, room: usize) -> Result<usize, Malformed> {
    if room < 4 {
        return Err(missing(packet));
    }
    let h: [u8; 4] = frame.read(l4).ok_or_else(|| missing(packet))?;
    packet.icmp_type = h[0];
    packet.icmp_code = h[1];
    Ok(4)
}

#[inline(always)]
fn class(packet: &Packet) -> TrafficClass {
    match packet.protocol {
        proto::TCP => tcp_class(packet.tcp_flags),
        proto::UDP if crate::services::is_reflector_port(packet.src_port) => TrafficClass::Reflector,
        proto::UDP if packet.dst_port == 53 => TrafficClass::DnsQuery,
        proto::UDP => TrafficClass::Udp,
        proto::ICMP => TrafficClass::Icmp,
        proto::ICMPV6 => TrafficClass::Icmpv6,
        proto::GRE => TrafficClass::Gre,
        proto::ESP => TrafficClass::Esp,
        _ => TrafficClass::OtherIp,
    }
}

/// The class of a segment by its flags.
#[inline(always)]
pub(super) const fn tcp_class(flags: u8) -> TrafficClass {
    use tcp_flag::{ACK, FIN, RST, SYN};
    match flags & (SYN | ACK | FIN | RST) {
        SYN => TrafficClass::TcpSyn,
        f if f == SYN | ACK => TrafficClass::TcpSynAck,
        ACK => TrafficClass::TcpAck,
        f if f & RST != 0 && f & (SYN | FIN) == 0 => TrafficClass::TcpRst,
        f if f == FIN | ACK => TrafficClass::TcpFin,
        _ => TrafficClass::TcpOdd,
    }
}
