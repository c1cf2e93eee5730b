//! Fail-safe and allowlist: no rule can lock the operator out, and no block outranks an allow entry.

use aya_ebpf::maps::lpm_trie::Key;
use ftagent_common::abi::{BITMAP_WORDS, Reason, TRUST_ALL, TRUST_ALLOW, TRUST_PORTS, feature};
use ftagent_common::packet::Ip;

use super::Judged;
use crate::maps;
use crate::maps::Scratch;

/// Why a packet of this source passes whatever the rules say, or nothing.
#[inline(always)]
pub(super) fn reason(source: Ip, version: u8, scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Reason> {
    if judged.settings.features & feature::TRUST == 0 {
        return None;
    }
    of(source, version, scratch, judged)
}

#[inline(always)]
fn of(source: Ip, version: u8, scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Reason> {
    let bitmaps = maps::BITMAPS.get(0)?;
    let bitmap = if version == 4 { &bitmaps.trust4 } else { &bitmaps.trust6 };
    if !is_set(bitmap, &source, version) {
        return None;
    }
    scratch.key = Key::new(128, source);
    let trust = maps::TRUST.get(&scratch.key)?.at(judged.slot());
    let packet = &scratch.packet;
    if trust.flags & TRUST_ALL != 0 {
        return Some(Reason::FailSafe);
    }
    if trust.flags & TRUST_PORTS != 0 {
        for (i, port) in trust.ports.iter().enumerate() {
            if i as u32 >= trust.port_count {
                break;
            }
            if *port == packet.dst_port || *port == packet.src_port {
                return Some(Reason::FailSafe);
            }
        }
    }
    if trust.flags & TRUST_ALLOW != 0 { Some(Reason::Allowlisted) } else { None }
}

/// Whether the bit of the address's first 16 bits is set.
#[inline(always)]
pub(crate) fn is_set(bitmap: &[u64; BITMAP_WORDS], ip: &Ip, version: u8) -> bool {
    let word = if version == 4 { ip.0[3] } else { ip.0[0] };
    let first = u32::from_be(word) >> 16;
    let index = (first >> 6) as usize & (BITMAP_WORDS - 1);
    bitmap[index] & (1u64 << (first & 63)) != 0
}
