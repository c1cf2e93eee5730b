//! IPv6 with its chain of extension headers (RFC 8200, RFC 6946, RFC 7112).

use super::{Fragment, Ip, Malformed, Packet, l4};
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

#[inline(always)]
pub(super) fn parse(frame: &Frame<'_>, l3: usize, wire_len: usize) -> Result<Packet, Malformed> {
    let h: [u8; 40] = frame.read(l3).ok_or(Malformed::Truncated)?;
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

    let end = l3 + total;
    let mut at = l3 + 40;
    let mut fragment = Fragment::Whole;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        let e: [u8; 8] = frame.read(at).ok_or(Malformed::Truncated)?;
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
        at += len;
        if at > end {
            return Err(Malformed::Truncated);
        }
        if matches!(fragment, Fragment::Middle | Fragment::Last) {
            // What follows is a piece of some header or of the payload, whatever `next` says.
            break;
        }
    }
    let carries_headers = matches!(fragment, Fragment::Whole | Fragment::First);
    if carries_headers && is_extension(next) {
        return Err(Malformed::TooDeep);
    }
    let mut src = [0; 16];
    let mut dst = [0; 16];
    src.copy_from_slice(&h[8..24]);
    dst.copy_from_slice(&h[24..40]);
    l4::finish(
        frame,
        l4::Network {
            src: Ip::v6(src),
            dst: Ip::v6(dst),
            version: 6,
            protocol: next,
            ttl: h[7],
            fragment,
            l3,
            l4: at,
            total,
        },
    )
}
