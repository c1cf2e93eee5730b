//! The first bytes of the payload, for rules that compare them.

use ftagent_common::abi::PAYLOAD_BYTES;

use crate::count;
use crate::hook::Hook;
use crate::maps::Scratch;

/// Copies what there is, up to [`PAYLOAD_BYTES`]; padding behind the datagram is no payload.
#[inline(always)]
pub(crate) fn load<H: Hook>(hook: &H, scratch: &mut Scratch) {
    scratch.payload_len = 0;
    let offset = usize::from(scratch.packet.payload_offset);
    let end = usize::from(scratch.packet.l3_offset) + usize::from(scratch.packet.ip_len);
    if offset >= end || offset >= scratch.wire_len {
        return;
    }
    let there = if end < scratch.wire_len { end - offset } else { scratch.wire_len - offset };
    let wanted = if there < PAYLOAD_BYTES { there } else { PAYLOAD_BYTES };
    let len = (count::opaque(wanted - 1) & (PAYLOAD_BYTES - 1)) + 1;
    // SAFETY: at most PAYLOAD_BYTES bytes of the map's own memory.
    if unsafe { hook.load(offset as u32, (&raw mut scratch.payload).cast(), len as u32) } {
        scratch.payload_len = len;
    }
}
