//! Protected destinations: which rules are theirs, and their counters, by one look-up of a hash.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::maps::lpm_trie::Key;
use ftagent_common::abi::{FAR_PROBES, Health, PRESENT, PROBES, Target, TargetCounters, hash, hash4};
use ftagent_common::packet::Ip;

use super::Judged;
use crate::maps::Scratch;
use crate::{count, maps};

/// A protected destination: its rules, and its counters unless the map is full.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) target: Target,
    pub(super) counters: Option<*mut TargetCounters>,
}

/// What is known of the destination, or nothing if the node does not protect it.
///
/// The trie is asked once for each address and rule set: the answer lies beside the counters.
#[inline(always)]
pub(super) fn find(scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Found> {
    let dst = scratch.packet.dst;
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let per_cpu = maps::TARGETS_PER_CPU.load();
    let first = hash(&dst, judged.settings.seed) as u32;
    let mut place = None;
    for probe in 0..PROBES {
        let index = cpu * per_cpu + (first.wrapping_add(probe) & (per_cpu - 1));
        let Some(counters) = maps::TARGETS.get_ptr_mut(index) else { break };
        // SAFETY: this CPU's part of the table; a program is not interrupted by itself on its CPU.
        let there = unsafe { &*counters };
        if there.generation == 0 || there.key == dst {
            place = Some(counters);
            break;
        }
    }
    if place.is_none() {
        let index = ftagent_far_target(cpu * per_cpu, first);
        place = if index == NOWHERE { None } else { maps::TARGETS.get_ptr_mut(index) };
    }
    // SAFETY: as above.
    let known = place.map(|counters| unsafe { &mut *counters });
    let target = match &known {
        Some(known) if known.generation == judged.generation => known.target,
        _ => ask(scratch, judged),
    };
    match known {
        // A free place is not taken for what is not protected: that could be any number of addresses.
        Some(known) if known.generation != 0 || target.flags & PRESENT != 0 => {
            known.key = dst;
            known.target = target;
            known.generation = judged.generation;
        }
        Some(_) => {}
        None if target.flags & PRESENT != 0 => count::health(Health::TargetsFull),
        None => {}
    }
    if target.flags & PRESENT == 0 { None } else { Some(Found { target, counters: place }) }
}

/// What [`ftagent_far_target`] returns when all places are taken.
const NOWHERE: u32 = u32::MAX;

/// The place of the destination, or a free one, where those looked at first are all taken: without it one target in some
/// hundreds would find none in a table that is half full. A global function, since few frames come here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_far_target(part: u32, first: u32) -> u32 {
    let Some(scratch) = crate::scratch() else { return NOWHERE };
    let mask = maps::TARGETS_PER_CPU.load() - 1;
    for probe in PROBES..FAR_PROBES {
        let index = part + (first.wrapping_add(probe) & mask);
        let Some(counters) = maps::TARGETS.get_ptr_mut(index) else { return NOWHERE };
        // SAFETY: this CPU's part of the table; a program is not interrupted by itself on its CPU.
        let there = unsafe { &*counters };
        if there.generation == 0 || there.key == scratch.packet.dst {
            return index;
        }
    }
    NOWHERE
}

/// The counters of a protected IPv4 destination (in memory order) that is where it is looked for first.
#[inline(always)]
pub(crate) fn known(dst: u32, judged: &Judged<'_>) -> Option<*mut TargetCounters> {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let per_cpu = maps::TARGETS_PER_CPU.load();
    let first = hash4(dst, judged.settings.seed) as u32;
    let counters = maps::TARGETS.get_ptr_mut(cpu * per_cpu + (first & (per_cpu - 1)))?;
    // SAFETY: this CPU's part of the table; a program is not interrupted by itself on its CPU.
    let there = unsafe { &*counters };
    let is_it = there.key.0[3] == dst && there.key.is_v4() && there.generation == judged.generation;
    if is_it && there.target.flags & PRESENT != 0 { Some(counters) } else { None }
}

/// Whether the node protects an address: what the trie says.
#[inline(always)]
pub(super) fn is_protected(ip: Ip, scratch: &mut Scratch, judged: &Judged<'_>) -> bool {
    scratch.key = Key::new(128, ip);
    maps::PROTECTED.get(&scratch.key).is_some_and(|found| found.at(judged.slot()).flags & PRESENT != 0)
}

/// What the trie says; not present, if nothing.
#[inline(always)]
fn ask(scratch: &mut Scratch, judged: &Judged<'_>) -> Target {
    scratch.key = Key::new(128, scratch.packet.dst);
    maps::PROTECTED.get(&scratch.key).map(|found| *found.at(judged.slot())).unwrap_or_default()
}
