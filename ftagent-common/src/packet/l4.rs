//! Transport headers, and the class that a packet is counted and policed in.

use super::{AddressFault, Checks, Fragment, Malformed, Packet, proto, sanity, tcp_flag};
use crate::frame::Frame;
use crate::vocab::TrafficClass;

/// Where the transport header is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Bytes from the start of the frame.
    pub(super) at: usize,
    /// Bytes of the datagram from there on: what comes after them is padding, not a header.
    pub(super) room: usize,
}

/// Fills in ports, flags and class.
#[inline(always)]
pub(super) fn parse(frame: &Frame<'_>, place: Place, checks: Checks, packet: &mut Packet) -> Result<(), Malformed> {
    packet.l4_offset = (place.at & 0xffff) as u16;
    packet.l4_room = (place.room & 0xffff) as u16;
    packet.payload_offset = packet.l4_offset;
    let place = forget(packet);
    packet.class = TrafficClass::Fragment;
    if matches!(packet.fragment, Fragment::Middle | Fragment::Last) {
        return address_fault(packet);
    }
    let parsed = match packet.protocol {
        proto::TCP => tcp(frame, place, checks, packet),
        proto::UDP => udp(frame, place, checks, packet),
        proto::ICMP | proto::ICMPV6 => icmp(frame, place, packet),
        _ => Ok(0),
    };
    let header_len = match (parsed, packet.fragment) {
        (Ok(len), _) => len,
        // Without its transport header a first fragment is an evasion, a whole datagram a cut.
        (Err(Malformed::Truncated), Fragment::First) => return Err(Malformed::TinyFragment),
        (Err(why), fragment) => {
            if fragment == Fragment::Whole && why.has_target() {
                packet.class = class(packet);
            }
            return Err(why);
        }
    };
    packet.payload_offset = ((place.at + header_len) & 0xffff) as u16;
    if packet.fragment == Fragment::Whole {
        packet.class = class(packet);
    }
    address_fault(packet)
}

/// What was found wrong with the addresses. Said last: what is refused for them is counted in its class all the same.
#[inline(always)]
fn address_fault(packet: &Packet) -> Result<(), Malformed> {
    match packet.address_fault {
        AddressFault::None => Ok(()),
        AddressFault::Martian => Err(Malformed::MartianSource),
        AddressFault::Land => Err(Malformed::Land),
    }
}

#[inline(always)]
fn tcp(frame: &Frame<'_>, place: Place, checks: Checks, packet: &mut Packet) -> Result<usize, Malformed> {
    if place.room < 20 {
        return Err(Malformed::Truncated);
    }
    let h: &[u8; 20] = frame.at(place.at).ok_or(Malformed::Truncated)?;
    let header_len = usize::from(h[12] >> 4) * 4;
    if header_len < 20 {
        return Err(Malformed::BadHeader);
    }
    if header_len > place.room {
        return Err(Malformed::Truncated);
    }
    packet.src_port = u16::from_be_bytes([h[0], h[1]]);
    packet.dst_port = u16::from_be_bytes([h[2], h[3]]);
    packet.tcp_flags = h[13] & tcp_flag::ALL;
    if checks.has(Checks::SANITY) {
        sanity::tcp(packet)?;
    }
    Ok(header_len)
}

#[inline(always)]
fn udp(frame: &Frame<'_>, place: Place, checks: Checks, packet: &mut Packet) -> Result<usize, Malformed> {
    if place.room < 8 {
        return Err(Malformed::Truncated);
    }
    let h: &[u8; 8] = frame.at(place.at).ok_or(Malformed::Truncated)?;
    packet.src_port = u16::from_be_bytes([h[0], h[1]]);
    packet.dst_port = u16::from_be_bytes([h[2], h[3]]);
    if checks.has(Checks::SANITY) {
        let length = usize::from(u16::from_be_bytes([h[4], h[5]]));
        // A jumbogram states 0 (RFC 2675); a first fragment states the length of the whole.
        let too_long = length > place.room && packet.fragment == Fragment::Whole;
        if (length != 0 && length < 8) || too_long {
            return Err(Malformed::BadLength);
        }
        sanity::ports(packet)?;
    }
    Ok(8)
}

#[inline(always)]
fn icmp(frame: &Frame<'_>, place: Place, packet: &mut Packet) -> Result<usize, Malformed> {
    if place.room < 4 {
        return Err(Malformed::Truncated);
    }
    let h: [u8; 4] = frame.read(place.at).ok_or(Malformed::Truncated)?;
    packet.icmp_type = h[0];
    packet.icmp_code = h[1];
    Ok(4)
}

#[inline(always)]
pub(super) fn class(packet: &Packet) -> TrafficClass {
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

/// The same place out of memory: the verifier then knows the numbers' bounds alone and no longer by which of the ways
/// through the headers before they came about, and follows all of these ways as one.
#[inline(always)]
fn forget(packet: &Packet) -> Place {
    Place { at: usize::from(super::reread(&packet.l4_offset)), room: usize::from(super::reread(&packet.l4_room)) }
}
