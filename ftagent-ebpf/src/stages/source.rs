//! Sources: every one is counted in a sketch, heavy ones by themselves; limits on named and on heavy sources.
//!
//! Nothing is inserted on first sight: a flood of forged sources costs what an honest one costs, and evicts nothing.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::maps::lpm_trie::Key;
use ftagent_common::abi::{EVALUATE, Health, NO_RULE, Reason, SKETCH_COLUMNS, Settings, SourceCounters, feature};
use ftagent_common::packet::{Ip, Packet};

use super::{Hit, block, limit};
use crate::{count as counters, maps};

/// log2 of an epoch in nanoseconds: 1.07 s.
const EPOCH_SHIFT: u32 = 30;
const COUNT_MASK: u32 = 0x00ff_ffff;

/// Adds the packet to the sketch and says whether its source sent enough in this epoch to be counted by itself.
#[inline(always)]
pub(super) fn is_heavy(packet: &Packet, settings: &Settings, now_ns: u64) -> bool {
    if settings.features & feature::SOURCES == 0 {
        return false;
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(sketch) = maps::SKETCHES.get_ptr_mut(cpu) else { return false };
    // SAFETY: this CPU's own sketch; a program is not interrupted by itself on its CPU.
    let cells = unsafe { &mut (*sketch).cells };
    let mut hash = hash(&packet.src);
    let epoch = ((now_ns >> EPOCH_SHIFT) as u32 & 0xff) << 24;
    let mut estimate = COUNT_MASK;
    for row in cells.iter_mut() {
        let column = hash as usize & (SKETCH_COLUMNS - 1);
        hash >>= 16;
        let cell = row[column];
        let seen = if cell & !COUNT_MASK == epoch { cell & COUNT_MASK } else { 0 };
        let now = if seen < COUNT_MASK { seen + 1 } else { seen };
        row[column] = epoch | now;
        if now < estimate {
            estimate = now;
        }
    }
    estimate >= settings.promote_at
}

/// A keyed hash of an address: the finaliser of MurmurHash3 between two secrets. IPv6 sources count by their /64,
/// since single addresses are free for an attacker.
#[inline(always)]
fn hash(ip: &Ip) -> u64 {
    let low = if ip.is_v4() { (u64::from(ip.0[2]) << 32) | u64::from(ip.0[3]) } else { 0 };
    let high = (u64::from(ip.0[0]) << 32) | u64::from(ip.0[1]);
    let seed = maps::SEED.load();
    mix(mix(high ^ seed).wrapping_add(low ^ seed.rotate_left(32)))
}

#[inline(always)]
const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// The address that a source is counted and limited under: itself, or its /64.
#[inline(always)]
const fn counted(ip: &Ip) -> Ip {
    if ip.is_v4() { *ip } else { Ip([ip.0[0], ip.0[1], 0, 0]) }
}

/// Counts a packet of a heavy source.
#[inline(always)]
pub(super) fn count(packet: &Packet, settings: &Settings, dropped: bool, now_ns: u64, bytes: u64) {
    let key = counted(&packet.src);
    let entry = match maps::SOURCES.get_ptr_mut(key) {
        Some(entry) => entry,
        None => {
            let fresh = SourceCounters {
                flow: ftagent_common::abi::Flow {
                    passed: ftagent_common::abi::Counter { packets: 0, bytes: 0 },
                    dropped: ftagent_common::abi::Counter { packets: 0, bytes: 0 },
                },
                last_seen_ns: now_ns,
            };
            _ = maps::SOURCES.insert(key, fresh, 0);
            if settings.features & feature::SOURCE_POLICER != 0 {
                _ = maps::SOURCE_STATES.insert(key, 0u64, 0);
            }
            let Some(entry) = maps::SOURCES.get_ptr_mut(key) else {
                counters::health(Health::SourcesFull);
                return;
            };
            entry
        }
    };
    // SAFETY: the map's own memory of this CPU.
    let entry = unsafe { &mut *entry };
    entry.last_seen_ns = now_ns;
    if dropped { entry.flow.dropped.add(bytes) } else { entry.flow.passed.add(bytes) }
}

/// Whether the packet is over a limit that names its source.
#[inline(always)]
pub(super) fn limit(packet: &Packet, settings: &Settings, now_ns: u64, bytes: u64) -> Option<Hit> {
    if settings.features & feature::SOURCE_LIMIT == 0 {
        return None;
    }
    let found = maps::SOURCE_LIMITS.get(Key::new(128, packet.src))?;
    if !block::is_in_force(found.expires_at_ns, found.flags, settings, now_ns) {
        return None;
    }
    let state = (&raw const found.state).cast_mut();
    // SAFETY: a word of the map; only this compare-and-swap and user space's insertion write it.
    if !unsafe { limit::is_over(&found.rate, state, now_ns, bytes) } {
        return None;
    }
    if found.flags & EVALUATE != 0 {
        counters::rule(found.rule, now_ns, bytes);
        return None;
    }
    Some((Reason::SourceLimit, found.rule))
}

/// Whether a heavy source is over the limit that holds for every one.
#[inline(always)]
pub(super) fn police(packet: &Packet, settings: &Settings, now_ns: u64, bytes: u64) -> Option<Hit> {
    if settings.features & feature::SOURCE_POLICER == 0 {
        return None;
    }
    let state = maps::SOURCE_STATES.get_ptr_mut(counted(&packet.src))?;
    // SAFETY: a word of the map.
    if unsafe { limit::is_over(&settings.source_rate, state, now_ns, bytes) } {
        return Some((Reason::SourceLimit, NO_RULE));
    }
    None
}
