//! Blocked sources: exact addresses first, then networks.

use aya_ebpf::maps::lpm_trie::Key;
use ftagent_common::abi::{
    AUTOMATIC, Bitmaps, Block, EVALUATE, Health, NEAR_PROBES, NearBlock, PRESENT, Reason, Slotted, feature, filter_bit,
    hash4, hash6, hash6_net, near_place,
};
use ftagent_common::packet::Ip;

use super::{Hit, Judged, trust};
use crate::maps::Scratch;
use crate::{count, is_orphaned, maps};

const ANY: u32 = feature::BLOCK4
    | feature::BLOCK4_PREFIX
    | feature::BLOCK6
    | feature::BLOCK6_NET
    | feature::BLOCK6_56
    | feature::BLOCK6_48
    | feature::BLOCK6_PREFIX;

/// The block that the source meets, if any is in force.
#[inline(always)]
pub(super) fn hit(source: Ip, version: u8, scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Hit> {
    if judged.settings.features & ANY == 0 {
        return None;
    }
    of(source, version, scratch, judged)
}

#[inline(always)]
fn of(source: Ip, version: u8, scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Hit> {
    let bitmaps = maps::BITMAPS.get(0)?;
    let found =
        if version == 4 { v4(&source, bitmaps, scratch, judged) } else { v6(&source, bitmaps, scratch, judged) };
    let found = found?;
    if found.flags & EVALUATE != 0 {
        count::rule(found.rule, judged.now_ns, judged.bytes);
        scratch.verdict.would_drop = found.rule;
        return None;
    }
    Some((found.reason, found.rule))
}

/// Whether a rule with this end and these flags counts now. An expired entry is treated as absent at once.
#[inline(always)]
pub(super) fn is_in_force(expires_at_ns: u64, flags: u8, judged: &Judged<'_>) -> bool {
    if expires_at_ns != 0 && judged.now_ns >= expires_at_ns {
        return false;
    }
    if flags & AUTOMATIC != 0 && is_orphaned(judged.settings, judged.now_ns) {
        count::health(Health::DeadMan);
        return false;
    }
    true
}

/// The block of the active rule set, if there is one in force.
#[inline(always)]
fn active(found: Option<&'static Slotted<Block>>, judged: &Judged<'_>) -> Option<&'static Block> {
    let block = found?.at(judged.slot());
    if is_active(block, judged) { Some(block) } else { None }
}

#[inline(always)]
fn is_active(block: &Block, judged: &Judged<'_>) -> bool {
    block.flags & PRESENT != 0 && is_in_force(block.expires_at_ns, block.flags, judged)
}

/// Whether a table can have an entry of this hash.
#[inline(always)]
fn may_have(bitmaps: &Bitmaps, hash: u64) -> bool {
    let (word, bit) = filter_bit(hash);
    bitmaps.blocks[word] & bit != 0
}

/// A block in force.
pub(crate) struct Found {
    pub(crate) rule: u32,
    pub(crate) flags: u8,
    pub(crate) reason: Reason,
}

impl Found {
    #[inline(always)]
    fn new(block: &Block, reason: Reason) -> Self {
        Self { rule: block.rule, flags: block.flags, reason }
    }
}

#[inline(always)]
fn v4(source: &Ip, bitmaps: &Bitmaps, scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Found> {
    let address = source.0[3];
    let features = judged.settings.features;
    let hash = hash4(address, judged.settings.seed);
    if features & feature::BLOCK4 != 0 && may_have(bitmaps, hash) {
        if let Some(near) = near(address, hash, judged.slot()) {
            if is_active(&near, judged) {
                return Some(Found::new(&near, Reason::BlockedSource));
            }
        // SAFETY: entries are replaced as a whole and freed after a grace period.
        } else if let Some(block) = active(unsafe { maps::BLOCK4.get(address) }, judged) {
            return Some(Found::new(block, Reason::BlockedSource));
        }
    }
    if features & feature::BLOCK4_PREFIX != 0 && trust::is_set(&bitmaps.block4, source, 4) {
        scratch.key4 = Key::new(32, address);
        let block = active(maps::BLOCK4_PREFIX.get(&scratch.key4), judged)?;
        return Some(Found::new(block, Reason::BlockedPrefix));
    }
    None
}

/// The entry of an address, if it found a place in the array.
#[inline(always)]
fn near(address: u32, hash: u64, slot: u32) -> Option<Block> {
    for probe in 0..NEAR_PROBES {
        let near = maps::NEAR4.get(near_place(hash, probe))?;
        // SAFETY: an aligned word of the map.
        let key = || unsafe { (&raw const near.key).read_volatile() };
        if key() == NearBlock::key_of(address) {
            // SAFETY: words of the map, each of which is whole.
            let block = unsafe { (&raw const *near.block.at(slot)).read_volatile() };
            // User space may have given the place to another address meanwhile: then the hash is asked.
            return if key() == NearBlock::key_of(address) { Some(block) } else { None };
        }
    }
    None
}

/// What the blocks say of an IPv4 source, evaluated ones included.
#[inline(always)]
pub(crate) fn of_plain(source: u32, scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Found> {
    if judged.settings.features & (feature::BLOCK4 | feature::BLOCK4_PREFIX) == 0 {
        return None;
    }
    v4(&Ip([0, 0, 0, source]), maps::BITMAPS.get(0)?, scratch, judged)
}

#[inline(always)]
fn v6(source: &Ip, bitmaps: &Bitmaps, scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Found> {
    let features = judged.settings.features;
    let seed = judged.settings.seed;
    if features & feature::BLOCK6 != 0 && may_have(bitmaps, hash6(source, seed)) {
        scratch.key6 = *source;
        let key = &scratch.key6;
        // SAFETY: as above.
        if let Some(block) = active(unsafe { maps::BLOCK6.get(key) }, judged) {
            return Some(Found::new(block, Reason::BlockedSource));
        }
    }
    for (bit, len, mask) in [
        (feature::BLOCK6_NET, 64, u32::MAX),
        (feature::BLOCK6_56, 56, 0xffff_ff00u32.to_be()),
        (feature::BLOCK6_48, 48, 0xffff_0000u32.to_be()),
    ] {
        let words = [source.0[0], source.0[1] & mask];
        if features & bit != 0 && may_have(bitmaps, hash6_net(words, len, seed)) {
            scratch.net6 = [words[0], words[1], len];
            let key = &scratch.net6;
            // SAFETY: as above.
            if let Some(block) = active(unsafe { maps::BLOCK6_NET.get(key) }, judged) {
                return Some(Found::new(block, Reason::BlockedPrefix));
            }
        }
    }
    if features & feature::BLOCK6_PREFIX != 0 && trust::is_set(&bitmaps.block6, source, 6) {
        scratch.key = Key::new(128, *source);
        let block = active(maps::BLOCK6_PREFIX.get(&scratch.key), judged)?;
        return Some(Found::new(block, Reason::BlockedPrefix));
    }
    None
}
