//! Accounts for a frame: by reason and class, by target, by rule.

use ftagent_common::abi::{Health, MAX_RULES, Reason, RuleHits, TargetCounters};
use ftagent_common::packet::Kind;
use ftagent_common::vocab::TrafficClass;

use crate::maps;
use crate::maps::Scratch;
use crate::stages::Hit;

/// Counts one frame in every place that it belongs to.
#[inline(always)]
pub(crate) fn frame(
    kind: Kind,
    scratch: &Scratch,
    reason: Reason,
    target: Option<*mut TargetCounters>,
    dropped: bool,
    now_ns: u64,
    bytes: u64,
) {
    let class = match kind {
        Kind::Ip => scratch.packet.class,
        Kind::Malformed(why) if why.has_target() => scratch.packet.class,
        Kind::NotIp | Kind::Tunnel | Kind::Malformed(_) => TrafficClass::NotIp,
    };
    if let Some(counters) = maps::VERDICTS.get_ptr_mut(maps::INTERFACE.load()) {
        // SAFETY: the map's own memory of this CPU; a program is not interrupted by itself on its CPU.
        let counters = unsafe { &mut *counters };
        counters.reasons[opaque(reason.index()) & (Reason::SLOTS - 1)].add(bytes);
        let flow = &mut counters.classes[opaque(class.index()) & (TrafficClass::COUNT - 1)];
        if dropped { flow.dropped.add(bytes) } else { flow.passed.add(bytes) }
    }
    if scratch.verdict.rule < MAX_RULES {
        rule(scratch.verdict.rule, now_ns, bytes);
    }
    if let Some(target) = target {
        // SAFETY: an entry of a per-CPU map: this CPU's own, and freed after a grace period.
        let flow = unsafe { &mut (*target).classes[opaque(class.index()) & (TrafficClass::COUNT - 1)] };
        if dropped { flow.dropped.add(bytes) } else { flow.passed.add(bytes) }
    }
}

/// Counts one frame that was dropped and needs nothing else.
#[inline(always)]
pub(crate) fn drop(class: TrafficClass, hit: Hit, target: *mut TargetCounters, now_ns: u64, bytes: u64) {
    let class = opaque(class.index()) & (TrafficClass::COUNT - 1);
    if let Some(counters) = maps::VERDICTS.get_ptr_mut(maps::INTERFACE.load()) {
        // SAFETY: as above.
        let counters = unsafe { &mut *counters };
        counters.reasons[opaque(hit.0.index()) & (Reason::SLOTS - 1)].add(bytes);
        counters.classes[class].dropped.add(bytes);
    }
    if hit.1 < MAX_RULES {
        rule(hit.1, now_ns, bytes);
    }
    // SAFETY: this CPU's part of the table; a program is not interrupted by itself on its CPU.
    unsafe { (*target).classes[class].dropped.add(bytes) };
}

/// Counts a hit of a rule.
#[inline(always)]
pub(crate) fn rule(slot: u32, now_ns: u64, bytes: u64) {
    if let Some(hits) = maps::RULE_HITS.get_ptr_mut(slot) {
        // SAFETY: as above.
        let hits: &mut RuleHits = unsafe { &mut *hits };
        hits.counter.add(bytes);
        if hits.first_ns == 0 {
            hits.first_ns = now_ns;
        }
        hits.last_ns = now_ns;
    }
}

/// Hides from the compiler what it knows of an index, so that it keeps the mask after it: the verifier does not know
/// which values an enum has.
#[inline(always)]
pub(crate) fn opaque(index: usize) -> usize {
    // SAFETY: a local variable.
    unsafe { (&raw const index).read_volatile() }
}

/// Counts an event of the datapath itself.
#[inline(always)]
pub(crate) fn health(event: Health) {
    if let Some(counter) = maps::HEALTH.get_ptr_mut(event as u32) {
        // SAFETY: as above.
        unsafe { (*counter).add(0) };
    }
}
