//! Sources: every one is counted in a sketch, heavy ones by themselves; limits on named and on heavy sources.
//!
//! Nothing is inserted on first sight: a flood of forged sources costs what an honest one costs, and evicts nothing.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::maps::lpm_trie::Key;
use ftagent_common::abi::{
    Counter, EVALUATE, Flow, Health, NO_RULE, PRESENT, PROBES, Reason, SKETCH_CELLS, SKETCH_LINES, SKETCH_MAX,
    SOURCE_SILENT_NS, feature, stage,
};
use ftagent_common::packet::{Ip, Packet};

use super::target::Found;
use super::{Hit, Judged, block, limit, trust};
use crate::maps::Scratch;
use crate::{count as counters, maps};

/// log2 of an epoch in nanoseconds: 1.07 s.
const EPOCH_SHIFT: u32 = 30;
/// Bits of a count.
const COUNT_BITS: u32 = 14;

/// Counts the source among those of its target and in the sketch, and says whether it sent enough to be counted by
/// itself.
#[inline(always)]
pub(super) fn note(src_hash: u64, target: Option<Found>, judged: &Judged<'_>) -> bool {
    let stages = maps::STAGES.load();
    let Some(Found { counters: Some(target), .. }) = target else { return false };
    if stages & (stage::SOURCES | stage::DISTINCT) == 0 {
        return false;
    }
    if stages & stage::DISTINCT != 0 {
        let epoch = (judged.now_ns >> EPOCH_SHIFT) as u32;
        // SAFETY: an entry of a per-CPU map: this CPU's own, and freed after a grace period.
        unsafe { (*target).note_source(src_hash >> 26, epoch) };
    }
    stages & stage::SOURCES != 0 && judged.settings.features & feature::SOURCES != 0 && is_heavy(src_hash, judged)
}

/// Adds a packet to the sketch and says whether its source reached the threshold within the last epoch's time.
#[inline(always)]
fn is_heavy(hash: u64, judged: &Judged<'_>) -> bool {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(sketch) = maps::SKETCHES.get_ptr_mut(cpu) else { return false };
    // SAFETY: this CPU's own sketch; a program is not interrupted by itself on its CPU.
    let line = unsafe { &mut (*sketch).lines[hash as usize & (SKETCH_LINES - 1)] };
    let epoch = (judged.now_ns >> EPOCH_SHIFT) as u32 & 15;
    // How much of the epoch before still lies within one epoch's time, in 1/1024.
    let left = 1_024 - ((judged.now_ns >> (EPOCH_SHIFT - 10)) as u32 & 1_023);
    let quarter = |q: usize| (q * 4) | ((hash >> (12 + 2 * q)) as usize & 3);
    let cells = [line[quarter(0)], line[quarter(1)], line[quarter(2)], line[quarter(3)]].map(|cell| {
        let age = epoch.wrapping_sub(cell >> (2 * COUNT_BITS)) & 15;
        let (before, now) = ((cell >> COUNT_BITS) & SKETCH_MAX, cell & SKETCH_MAX);
        let (before, now) = if age == 0 { (before, now) } else { (if age == 1 { now } else { 0 }, 0) };
        (before, now, now + ((before * left) >> 10))
    });
    let smaller = |a: u32, b: u32| if a < b { a } else { b };
    let least = smaller(smaller(cells[0].2, cells[1].2), smaller(cells[2].2, cells[3].2));
    // Conservative update (Estan and Varghese): a cell above the least one was raised by somebody else.
    for (q, (before, now, estimate)) in cells.into_iter().enumerate() {
        if estimate == least {
            let next = if now < SKETCH_MAX { now + 1 } else { now };
            line[quarter(q) & (SKETCH_CELLS - 1)] = (epoch << (2 * COUNT_BITS)) | (before << COUNT_BITS) | next;
        }
    }
    least + 1 >= judged.settings.promote_at
}

/// The address that a source is counted and limited under: itself, or its /64.
#[inline(always)]
const fn counted(ip: &Ip) -> Ip {
    if ip.is_v4() { *ip } else { Ip([ip.0[0], ip.0[1], 0, 0]) }
}

/// Counts a packet of a heavy source.
#[inline(always)]
pub(super) fn count(packet: &Packet, src_hash: u64, judged: &Judged<'_>, dropped: bool) {
    let key = counted(&packet.src);
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let per_cpu = maps::SOURCES_PER_CPU.load();
    let mut place = None;
    for probe in 0..PROBES {
        let index = cpu * per_cpu + ((src_hash as u32).wrapping_add(probe) & (per_cpu - 1));
        let Some(counters) = maps::SOURCES.get_ptr_mut(index) else { break };
        // SAFETY: this CPU's part of the table; a program is not interrupted by itself on its CPU.
        let there = unsafe { &*counters };
        let is_silent = judged.now_ns.wrapping_sub(there.last_seen_ns) > SOURCE_SILENT_NS;
        if there.key == key || is_silent || there.last_seen_ns == 0 {
            place = Some(counters);
            break;
        }
    }
    let Some(place) = place else {
        counters::health(Health::SourcesFull);
        return;
    };
    // SAFETY: as above.
    let entry = unsafe { &mut *place };
    if entry.key != key {
        const NOTHING: Counter = Counter { packets: 0, bytes: 0 };
        entry.flow = Flow { passed: NOTHING, dropped: NOTHING };
        entry.key = key;
        if judged.settings.features & feature::SOURCE_POLICER != 0 {
            _ = maps::SOURCE_STATES.insert(key, 0u64, 0);
        }
    }
    entry.last_seen_ns = judged.now_ns;
    if dropped { entry.flow.dropped.add(judged.bytes) } else { entry.flow.passed.add(judged.bytes) }
}

/// Whether the packet is over a limit that names its source.
#[inline(always)]
pub(super) fn limit(scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Hit> {
    if judged.settings.features & feature::SOURCE_LIMIT == 0 {
        return None;
    }
    let Packet { src, version, .. } = scratch.packet;
    let bitmaps = maps::BITMAPS.get(0)?;
    if !trust::is_set(if version == 4 { &bitmaps.limit4 } else { &bitmaps.limit6 }, &src, version) {
        return None;
    }
    scratch.key = Key::new(128, src);
    let found = maps::SOURCE_LIMITS.get(&scratch.key)?.at(judged.slot());
    if found.flags & PRESENT == 0 || !block::is_in_force(found.expires_at_ns, found.flags, judged) {
        return None;
    }
    let state = maps::RULE_STATES.get_ptr_mut(found.rule)?;
    // SAFETY: a word of the map.
    if !unsafe { limit::is_over(&found.rate, state, judged.now_ns, judged.bytes) } {
        return None;
    }
    if found.flags & EVALUATE != 0 {
        counters::rule(found.rule, judged.now_ns, judged.bytes);
        scratch.verdict.would_drop = found.rule;
        return None;
    }
    Some((Reason::SourceLimit, found.rule))
}

/// Whether a heavy source is over the limit that holds for every one.
#[inline(always)]
pub(super) fn police(packet: &Packet, judged: &Judged<'_>) -> Option<Hit> {
    if judged.settings.features & feature::SOURCE_POLICER == 0 {
        return None;
    }
    let state = maps::SOURCE_STATES.get_ptr_mut(counted(&packet.src))?;
    // SAFETY: a word of the map.
    if unsafe { limit::is_over(&judged.settings.source_rate, state, judged.now_ns, judged.bytes) } {
        return Some((Reason::SourceLimit, NO_RULE));
    }
    None
}
