//! Tunnels: finds the packet inside (RFC 2784 and RFC 2890, RFC 2003, RFC 4213, RFC 2473).

use super::{Fragment, Ip, Malformed, Packet, Tunnel, eth, l4, proto};
use crate::frame::Frame;

/// Checksum, key and sequence number of GRE: four bytes each, if the flag is set.
const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
/// Source routing (RFC 1701, long withdrawn), the other reserved bits, and the version.
const NOT_PLAIN: u16 = !(CHECKSUM | KEY | SEQUENCE);

/// Whether the packet can carry another. A fragment cannot: what is inside is not all here.
#[inline(always)]
pub(super) fn is_carrier(packet: &Packet) -> bool {
    matches!(packet.protocol, proto::GRE | proto::IPIP | proto::SIX_IN_FOUR) && packet.fragment == Fragment::Whole
}

/// Turns `packet` to the one inside: its version, where it begins and how much room it has. False where GRE carries
/// something else than IP, or is of a kind that nobody opens.
#[inline(always)]
pub(super) fn open(frame: &Frame<'_>, place: l4::Place, packet: &mut Packet) -> Result<bool, Malformed> {
    let (tunnel, version, header) = match packet.protocol {
        proto::IPIP => (Tunnel::Ipip, 4, 0),
        proto::SIX_IN_FOUR => (Tunnel::SixIn, 6, 0),
        _ => match gre(frame, place)? {
            Some((version, header)) => (Tunnel::Gre, version, header),
            None => return Ok(false),
        },
    };
    if header > place.room {
        return Err(Malformed::Truncated);
    }
    packet.tunnel = tunnel;
    packet.outer_src = packet.src;
    packet.l4_offset = (place.at & 0xffff) as u16;
    packet.src = Ip([0; 4]);
    packet.version = version;
    packet.l3_offset = ((place.at + header) & 0xffff) as u16;
    packet.l4_room = ((place.room - header) & 0xffff) as u16;
    Ok(true)
}

/// The version of the packet inside and the length of the header before it.
#[inline(always)]
fn gre(frame: &Frame<'_>, place: l4::Place) -> Result<Option<(u8, usize)>, Malformed> {
    if place.room < 4 {
        return Err(Malformed::Truncated);
    }
    let h: [u8; 4] = frame.read(place.at).ok_or(Malformed::Truncated)?;
    let flags = u16::from_be_bytes([h[0], h[1]]);
    if flags & NOT_PLAIN != 0 {
        return Ok(None);
    }
    let mut header = 4;
    for field in [CHECKSUM, KEY, SEQUENCE] {
        if flags & field != 0 {
            header += 4;
        }
    }
    Ok(match u16::from_be_bytes([h[2], h[3]]) {
        eth::IPV4 => Some((4, header)),
        eth::IPV6 => Some((6, header)),
        _ => None,
    })
}
