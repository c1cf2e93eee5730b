//! IPv6 with its chain of extension headers (RFC 8200, RFC 6946, RFC 7112).

use super::{Checks, Fragment, Ip, Malformed, Packet, l4, sanity};
use crate::frame::Frame;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// A longer chain is `TooDeep`; real packets have at most three.
pub const MAX_EXTENSION_HEADERS: usize = 8;

const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6)
}

/// Fills in what the network header and its extensions say; the place of the transport header.
#[inline(always)]
pub(super) fn parse(
    frame: &Frame<'_>,
    l3: usize,
    wire_len: usize,
    checks: Checks,
    packet: &mut Packet,
) -> Result<l4::Place, Malformed> {
    let h: &[u8; 40] = frame.at(l3).ok_or(Malformed::Truncated)?;
    if h[0] >> 4 != 6 {
        return Err(Malformed::BadHeader);
    }
    let mut next = h[6];
    let available = wire_len.saturating_sub(l3);
    let stated = usize::from(u16::from_be_bytes([h[4], h[5]]));
    // A jumbogram (RFC 2675) states 0 and begins with a hop-by-hop header, as does a "BIG TCP" buffer.
    let total = if stated == 0 && next == HOP_BY_HOP { available.min(0xffff) } else { 40 + stated };
    if total > available {
        return Err(Malformed::Truncated);
    }
    packet.version = 6;
    packet.ttl = h[7];
    packet.src = Ip::v6([
        h[8], h[9], h[10], h[11], h[12], h[13], h[14], h[15], h[16], h[17], h[18], h[19], h[20], h[21], h[22], h[23],
    ]);
    packet.dst = Ip::v6([
        h[24], h[25], h[26], h[27], h[28], h[29], h[30], h[31], h[32], h[33], h[34], h[35], h[36], h[37], h[38], h[39],
    ]);
    // Whatever is checked: a mapped address (RFC 4291 section 2.5.5.2) would be taken for the IPv4 address in it, on
    // the allowlist too.
    packet.class = l4::class_of_protocol(next);
    if packet.src.is_v4() || packet.dst.is_v4() {
        return Err(Malformed::MartianSource);
    }
    if checks.has(Checks::SANITY) {
        sanity::v6(packet)?;
    }
    packet.dscp = ((h[0] & 0x0f) << 2) | (h[1] >> 6);
    packet.l3_offset = (l3 & 0xffff) as u16;
    packet.ip_len = if total > 0xffff { 0xffff } else { (total & 0xffff) as u16 };

    let mut used = 40;
    let mut fragment = Fragment::Whole;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        let e: [u8; 4] = frame.read(l3 + used).ok_or(Malformed::Truncated)?;
        let mut len = 8 + usize::from(e[1]) * 8;
        if next == AUTHENTICATION {
            // Counted in words of four bytes, less two (RFC 4302 section 2.2).
            len = 8 + usize::from(e[1]) * 4;
        } else if next == FRAGMENT {
            len = 8;
            let offset_flags = u16::from_be_bytes([e[2], e[3]]);
            let more = offset_flags & 1 != 0;
            fragment = match (offset_flags >> 3, more) {
                (0, false) => fragment,
                (0, true) => Fragment::First,
                (_, true) => Fragment::Middle,
                (_, false) => Fragment::Last,
            };
        }
        next = e[0];
        used += len;
        if used > total {
            return Err(Malformed::Truncated);
        }
        if matches!(fragment, Fragment::Middle | Fragment::Last) {
            // What follows is a piece of some header or of the payload, whatever `next` says.
            break;
        }
    }
    if is_extension(next) && matches!(fragment, Fragment::Whole | Fragment::First) {
        return Err(Malformed::TooDeep);
    }
    packet.fragment = fragment;
    packet.protocol = next;
    Ok(l4::Place { at: l3 + used, room: total - used })
}
