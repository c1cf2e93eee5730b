//! Copies a bounded share of the frames to user space, whatever the flood.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use ftagent_common::abi::{CpuState, Health, NO_RULE, SAMPLE_BYTES, SampleEvent, Settings, feature};
use ftagent_common::packet::Tunnel;

use crate::hook::Hook;
use crate::maps::Scratch;
use crate::stages::Verdict;
use crate::{count, maps};

/// User space reads the ring at every tick: waking it for each sample would cost more than the sample.
const NO_WAKEUP: u64 = 1;

/// What chance said of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Draw {
    /// It was not asked.
    Not = 0,
    Sampled = 1,
    NotSampled = 2,
}

/// Asks chance whether the next frame is sampled.
#[inline(always)]
pub(crate) fn draw(cpu: &mut CpuState, settings: &Settings) -> bool {
    if settings.sample_below == u32::MAX {
        return true;
    }
    let mut x = cpu.random;
    if x == 0 {
        // SAFETY: helpers without arguments.
        x = unsafe { (u64::from(bpf_get_prandom_u32()) << 32) | u64::from(bpf_get_prandom_u32()) | 1 };
    }
    // xorshift64 (Marsaglia): a helper call for each frame would cost more.
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    cpu.random = x;
    ((x >> 32) as u32) < settings.sample_below
}

/// Copies the frame if chance and the policer say so.
#[inline(always)]
pub(crate) fn frame<H: Hook>(hook: &H, scratch: &mut Scratch, settings: &Settings) {
    if settings.features & feature::SAMPLE == 0 {
        return;
    }
    let wire_len = scratch.wire_len;
    let Verdict { reason, rule, would_drop, sample: wanted_by_rule, .. } = scratch.verdict;
    let drawn = scratch.draw;
    let cpu = &mut scratch.cpu;
    if !wanted_by_rule && drawn != Draw::Sampled && (drawn == Draw::NotSampled || !draw(cpu, settings)) {
        return;
    }
    let Some(state) = settings.sample_rate.conform(cpu.sample_state, cpu.now_ns, wire_len as u64) else { return };
    cpu.sample_state = state;

    if wire_len == 0 {
        return;
    }
    let wanted = if wire_len < SAMPLE_BYTES { wire_len } else { SAMPLE_BYTES };
    // At least 1 and at most SAMPLE_BYTES, in a form that the verifier follows.
    let captured = ((count::opaque(wanted - 1) & (SAMPLE_BYTES - 1)) + 1) as u32;
    let Some(mut entry) = maps::SAMPLES.reserve::<SampleEvent>(0) else {
        count::health(Health::SamplesLost);
        return;
    };
    let event: *mut SampleEvent = entry.as_mut_ptr();
    // SAFETY: reserved memory of exactly this type; `captured` is at most SAMPLE_BYTES; bytes of `frame` beyond
    // `captured` stay as they were and are never read.
    let copied = unsafe {
        (*event).time_ns = bpf_ktime_get_ns();
        (*event).wire_len = wire_len as u32;
        (*event).one_in = if wanted_by_rule { 1 } else { settings.sample_one_in };
        (*event).rule = if would_drop == NO_RULE { rule } else { would_drop };
        (*event).interface = maps::INTERFACE.load() as u16;
        (*event).captured = captured as u16;
        (*event).reason = reason as u8;
        (*event).would_drop = (would_drop != NO_RULE) as u8;
        (*event).closed = (scratch.packet.tunnel as u8 == Tunnel::Closed as u8) as u8;
        (*event).padding = [0; 5];
        hook.load(0, (&raw mut (*event).frame).cast(), captured)
    };
    if copied {
        entry.submit(NO_WAKEUP);
    } else {
        entry.discard(NO_WAKEUP);
    }
}
