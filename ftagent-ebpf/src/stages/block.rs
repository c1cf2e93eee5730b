//! Blocked sources: exact addresses first, then networks.

use aya_ebpf::maps::lpm_trie::Key;
use ftagent_common::abi::{AUTOMATIC, Block, EVALUATE, Health, Reason, Settings, feature};
use ftagent_common::packet::Packet;

use super::{Hit, trust};
use crate::{count, is_orphaned, maps};

/// The block that the source meets, if any is in force.
#[inline(always)]
pub(super) fn hit(packet: &Packet, settings: &Settings, now_ns: u64, bytes: u64) -> Option<Hit> {
    const ANY: u32 =
        feature::BLOCK4 | feature::BLOCK4_PREFIX | feature::BLOCK6 | feature::BLOCK6_NET | feature::BLOCK6_PREFIX;
    if settings.features & ANY == 0 {
        return None;
    }
    let (found, reason) = if packet.version == 4 { v4(packet, settings) } else { v6(packet, settings) }?;
    if !is_in_force(found.expires_at_ns, found.flags, settings, now_ns) {
        return None;
    }
    if found.flags & EVALUATE != 0 {
        count::rule(found.rule, now_ns, bytes);
        return None;
    }
    Some((reason, found.rule))
}

/// Whether a rule with this end and these flags counts now. An expired entry is treated as absent at once.
#[inline(always)]
pub(super) fn is_in_force(expires_at_ns: u64, flags: u8, settings: &Settings, now_ns: u64) -> bool {
    if expires_at_ns != 0 && now_ns >= expires_at_ns {
        return false;
    }
    if flags & AUTOMATIC != 0 && is_orphaned(settings, now_ns) {
        count::health(Health::DeadMan);
        return false;
    }
    true
}

#[inline(always)]
fn v4(packet: &Packet, settings: &Settings) -> Option<(&'static Block, Reason)> {
    let address = packet.src.0[3];
    if settings.features & feature::BLOCK4 != 0 {
        // SAFETY: entries are replaced as a whole and freed after a grace period.
        if let Some(block) = unsafe { maps::BLOCK4.get(address) } {
            return Some((block, Reason::BlockedSource));
        }
    }
    if settings.features & feature::BLOCK4_PREFIX != 0 {
        let bitmaps = maps::BITMAPS.get(0)?;
        if trust::is_set(&bitmaps.block4, &packet.src, 4) {
            let block = maps::BLOCK4_PREFIX.get(Key::new(32, address))?;
            return Some((block, Reason::BlockedPrefix));
        }
    }
    None
}

#[inline(always)]
fn v6(packet: &Packet, settings: &Settings) -> Option<(&'static Block, Reason)> {
    if settings.features & feature::BLOCK6 != 0 {
        // SAFETY: as above.
        if let Some(block) = unsafe { maps::BLOCK6.get(packet.src) } {
            return Some((block, Reason::BlockedSource));
        }
    }
    if settings.features & feature::BLOCK6_NET != 0 {
        let net = [packet.src.0[0], packet.src.0[1]];
        // SAFETY: as above.
        if let Some(block) = unsafe { maps::BLOCK6_NET.get(net) } {
            return Some((block, Reason::BlockedPrefix));
        }
    }
    if settings.features & feature::BLOCK6_PREFIX != 0 {
        let bitmaps = maps::BITMAPS.get(0)?;
        if trust::is_set(&bitmaps.block6, &packet.src, 6) {
            let block = maps::BLOCK6_PREFIX.get(Key::new(128, packet.src))?;
            return Some((block, Reason::BlockedPrefix));
        }
    }
    None
}
