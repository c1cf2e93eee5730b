//! Sources: every one is counted in a sketch, heavy ones by themselves; limits on named and on heavy sources.
//!
//! Nothing is inserted on first sight: a flood of forged sources costs what an honest one costs, and evicts nothing.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::maps::lpm_trie::Key;
use ftagent_common::abi::{
    Counter, CpuState, EVALUATE, Flow, Health, NO_RULE, PRESENT, PROBES, Reason, SKETCH_CELLS, SKETCH_HEAVY,
    SKETCH_HEAVY_EPOCHS, SKETCH_LINES, SKETCH_MAX, SOURCE_SILENT_NS, STATE_PROBES, feature, stage,
};
use ftagent_common::packet::{Ip, Packet};

use super::target::Found;
use super::{Hit, Judged, block, limit, trust};
use crate::maps::Scratch;
use crate::{count as counters, kernel, maps};

/// log2 of an epoch in nanoseconds: 1.07 s.
const EPOCH_SHIFT: u32 = 30;
/// Bits of a count.
const COUNT_BITS: u32 = 14;

/// 2^64 divided by the golden ratio: its multiples modulo 2^64 leave no gap larger than it must be, and keep no step
/// with anything that comes in turns.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// How much a source sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    Light,
    /// It or another one of the same hash was heavy of late: whether it has counters of its own says its table.
    Perhaps,
    Heavy,
}

/// Counts the source among those of its target and in the sketch, and says whether it sent enough to be counted by
/// itself.
#[inline(always)]
pub(super) fn note(src_hash: u64, target: Option<Found>, cpu: &mut CpuState, judged: &Judged<'_>) -> Weight {
    let stages = maps::STAGES.load();
    let Some(Found { counters: Some(target), .. }) = target else { return Weight::Light };
    if stages & (stage::SOURCES | stage::DISTINCT) == 0 {
        return Weight::Light;
    }
    if stages & stage::DISTINCT != 0 {
        let epoch = (judged.now_ns >> EPOCH_SHIFT) as u32;
        // SAFETY: an entry of a per-CPU map: this CPU's own, and freed after a grace period.
        unsafe { (*target).note_source(src_hash >> 26, epoch) };
    }
    if stages & stage::SOURCES == 0 || judged.settings.features & feature::SOURCES == 0 {
        return Weight::Light;
    }
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_smp_processor_id() };
    let Some(sketch) = maps::SKETCHES.get_ptr_mut(id) else { return Weight::Light };
    // SAFETY: this CPU's own sketch; a program is not interrupted by itself on its CPU.
    let sketch = unsafe { &mut *sketch };
    // Above the bits that choose line and cells.
    let place = (src_hash >> 20) as usize & (SKETCH_HEAVY - 1);
    let epoch = (judged.now_ns >> EPOCH_SHIFT) as u16;
    cpu.weyl = cpu.weyl.wrapping_add(GOLDEN);
    // The seed hides from a sender which of its packets are seen.
    let drawn = (cpu.weyl.wrapping_add(judged.settings.seed) >> 32) as u32;
    if drawn <= judged.settings.sketch_below
        && add(&mut sketch.lines[src_hash as usize & (SKETCH_LINES - 1)], src_hash, judged)
    {
        sketch.heavy[place] = epoch;
        return Weight::Heavy;
    }
    // Seen or not: while a place holds, every packet counts.
    if epoch.wrapping_sub(sketch.heavy[place]) < SKETCH_HEAVY_EPOCHS { Weight::Perhaps } else { Weight::Light }
}

/// Adds a packet to its line of the sketch and says whether its source reached the threshold within the last epoch's
/// time.
#[inline(always)]
fn add(line: &mut [u32; SKETCH_CELLS], hash: u64, judged: &Judged<'_>) -> bool {
    let epoch = (judged.now_ns >> EPOCH_SHIFT) as u32 & 15;
    let one_in = judged.settings.sketch_one_in;
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
            let next = smaller(now + one_in, SKETCH_MAX);
            line[quarter(q) & (SKETCH_CELLS - 1)] = (epoch << (2 * COUNT_BITS)) | (before << COUNT_BITS) | next;
        }
    }
    least + one_in >= judged.settings.promote_at
}

/// The address that a source is counted and limited under: itself, or its /64.
#[inline(always)]
const fn counted(ip: &Ip) -> Ip {
    if ip.is_v4() { *ip } else { Ip([ip.0[0], ip.0[1], 0, 0]) }
}

/// Counts a packet of a heavy source; one that is only perhaps of one, where its source is in the table.
#[inline(always)]
pub(super) fn count(packet: &Packet, src_hash: u64, weight: Weight, judged: &Judged<'_>, dropped: bool) {
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
        if there.key == key {
            place = Some(counters);
            break;
        }
        let is_silent = judged.now_ns.wrapping_sub(there.last_seen_ns) > SOURCE_SILENT_NS;
        if is_silent || there.last_seen_ns == 0 {
            // Behind a free place there may be one of it that was taken while others were silent: it ends by itself.
            if weight == Weight::Perhaps {
                return;
            }
            place = Some(counters);
            break;
        }
    }
    let Some(place) = place else {
        if weight == Weight::Heavy {
            counters::health(Health::SourcesFull);
        }
        return;
    };
    // SAFETY: as above.
    let entry = unsafe { &mut *place };
    if entry.key != key {
        const NOTHING: Counter = Counter { packets: 0, bytes: 0 };
        entry.flow = Flow { passed: NOTHING, dropped: NOTHING };
        entry.key = key;
    }
    if weight == Weight::Heavy {
        entry.last_seen_ns = judged.now_ns;
    }
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

/// The policer's state of a heavy source. One that was found heavy just now gets one where there is room.
#[inline(always)]
fn state_of(hash: u64, weight: Weight, judged: &Judged<'_>) -> Option<*mut u64> {
    /// 1/256 nanoseconds, as in [`ftagent_common::abi::Rate`].
    const SILENT_UNITS: i64 = 256 * SOURCE_SILENT_NS as i64;
    let tag = hash | 1;
    let now = judged.now_ns.wrapping_mul(256);
    let places = maps::SOURCE_STATE_PLACES.load();
    for probe in 0..STATE_PROBES {
        let place = maps::SOURCE_STATES.get_ptr_mut(((hash >> 32) as u32).wrapping_add(probe) & (places - 1))?;
        // SAFETY: fields of an element of the map.
        let (tag_at, state) = unsafe { (&raw mut (*place).tag, &raw mut (*place).state) };
        // SAFETY: aligned words of the map.
        let there = unsafe { tag_at.read_volatile() };
        if there == tag {
            return Some(state);
        }
        // SAFETY: as above.
        let is_free = there == 0 || now.wrapping_sub(unsafe { state.read_volatile() }) as i64 > SILENT_UNITS;
        // SAFETY: as above.
        if weight == Weight::Heavy && is_free && unsafe { kernel::swap(tag_at, there, tag) } {
            // SAFETY: as above. Another CPU may read the older state until then, which lets as much through.
            unsafe { state.write_volatile(now) };
            return Some(state);
        }
    }
    None
}

/// Whether a heavy source is over the limit that holds for every one.
#[inline(always)]
pub(super) fn police(hash: u64, weight: Weight, judged: &Judged<'_>) -> Option<Hit> {
    if judged.settings.features & feature::SOURCE_POLICER == 0 {
        return None;
    }
    let state = state_of(hash, weight, judged)?;
    // SAFETY: a word of the map.
    if unsafe { limit::is_over(&judged.settings.source_rate, state, judged.now_ns, judged.bytes) } {
        return Some((Reason::SourceLimit, NO_RULE));
    }
    None
}
