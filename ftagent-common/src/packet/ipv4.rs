//! IPv4 with options and fragments (RFC 791, RFC 1858).

use super::{Checks, Fragment, Ip, Malformed, Packet, l4, proto, sanity};
use crate::frame::Frame;

const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Fills in what the network header says; the place of the transport header.
#[inline(always)]
pub(super) fn parse(
    frame: &Frame<'_>,
    l3: usize,
    wire_len: usize,
    checks: Checks,
    packet: &mut Packet,
) -> Result<l4::Place, Malformed> {
    let h: &[u8; 20] = frame.at(l3).ok_or(Malformed::Truncated)?;
    let header_len = usize::from(h[0] & 0x0f) * 4;
    if h[0] >> 4 != 4 || header_len < 20 {
        return Err(Malformed::BadHeader);
    }
    // Options are skipped, but they must be there: the last byte of the header is read for that alone.
    frame.read::<[u8; 1]>(l3 + header_len - 1).ok_or(Malformed::Truncated)?;
    let available = wire_len.saturating_sub(l3);
    let stated = usize::from(u16::from_be_bytes([h[2], h[3]]));
    // A segmentation-offload buffer above 64 KiB states 0 (kernel 6.3, "BIG TCP" for IPv4): its length is the buffer's.
    let total = if stated == 0 && available > 0xffff { 0xffff } else { stated };
    if total < header_len {
        return Err(Malformed::BadHeader);
    }
    if total > available {
        return Err(Malformed::Truncated);
    }

    packet.src = Ip::v4([h[12], h[13], h[14], h[15]]);
    packet.dst = Ip::v4([h[16], h[17], h[18], h[19]]);
    if checks.has(Checks::SANITY) {
        packet.address_fault = sanity::v4(packet.src.0[3], packet.dst.0[3]);
    }

    let flags_offset = u16::from_be_bytes([h[6], h[7]]);
    let more = flags_offset & MORE_FRAGMENTS != 0;
    packet.fragment = match (flags_offset & OFFSET, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        (_, true) => Fragment::Middle,
        (_, false) => Fragment::Last,
    };
    packet.version = 4;
    packet.protocol = h[9];
    packet.ttl = h[8];
    packet.dscp = h[1] >> 2;
    packet.l3_offset = (l3 & 0xffff) as u16;
    packet.ip_len = (total & 0xffff) as u16;
    if packet.protocol == proto::TCP && flags_offset & OFFSET == 1 {
        // Eight bytes in: it would overwrite the flags of a header that was already judged.
        return Err(Malformed::TinyFragment);
    }
    Ok(l4::Place { at: l3 + header_len, room: total - header_len })
}
