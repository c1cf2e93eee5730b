//! Sets the differentiated services field of a frame that passes (RFC 2474), as FlowSpec's traffic-marking does.

use crate::hook::Hook;
use crate::maps::Scratch;

/// Writes `dscp` (0 to 63) into the network header, and mends IPv4's checksum by the difference (RFC 1624).
#[inline(always)]
pub(crate) fn set<H: Hook>(hook: &H, scratch: &mut Scratch, dscp: u8) {
    let at = u32::from(scratch.packet.l3_offset);
    let bytes = &raw mut scratch.payload;
    // SAFETY: sixteen bytes of the map's own memory.
    if !unsafe { hook.load(at, bytes.cast(), 12) } {
        return;
    }
    let header = &mut scratch.payload;
    if scratch.packet.version == 4 {
        let before = u16::from_be_bytes([header[0], header[1]]);
        header[1] = (dscp << 2) | (header[1] & 3);
        let after = u16::from_be_bytes([header[0], header[1]]);
        let sum = u32::from(!u16::from_be_bytes([header[10], header[11]])) + u32::from(!before) + u32::from(after);
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        let checksum = (!folded as u16).to_be_bytes();
        header[10] = checksum[0];
        header[11] = checksum[1];
    } else {
        header[0] = (header[0] & 0xf0) | (dscp >> 2);
        header[1] = (dscp << 6) | (header[1] & 0x3f);
    }
    // SAFETY: as above.
    _ = unsafe { hook.store(at, bytes.cast(), 12) };
}
