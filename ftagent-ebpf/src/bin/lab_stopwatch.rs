//! How long each CPU spends receiving frames: the time inside the soft interrupt of network reception.
//!
//! Everything that a frame costs its receiver lies between the two tracepoints: the driver's poll, XDP, the socket
//! buffer, traffic control, netfilter, routing. What sends the frame does not.
#![no_std]
#![no_main]

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::RawTracePointContext;

/// `NET_RX_SOFTIRQ` of linux/interrupt.h.
const NET_RX: u64 = 3;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stopwatch {
    /// When the running soft interrupt began, nanoseconds of the monotonic clock; 0: none runs.
    entered_ns: u64,
    spent_ns: u64,
}

#[map]
static LAB_STOPWATCH: PerCpuArray<Stopwatch> = PerCpuArray::with_max_entries(1, 0);

#[raw_tracepoint(tracepoint = "softirq_entry")]
pub fn lab_enter(ctx: RawTracePointContext) -> i32 {
    if is_reception(&ctx)
        && let Some(watch) = LAB_STOPWATCH.get_ptr_mut(0)
    {
        // SAFETY: the pointer is to this CPU's slot of the map, and soft interrupts do not nest.
        let watch = unsafe { &mut *watch };
        // SAFETY: the helper only reads the clock.
        watch.entered_ns = unsafe { bpf_ktime_get_ns() };
    }
    0
}

#[raw_tracepoint(tracepoint = "softirq_exit")]
pub fn lab_leave(ctx: RawTracePointContext) -> i32 {
    if is_reception(&ctx)
        && let Some(watch) = LAB_STOPWATCH.get_ptr_mut(0)
    {
        // SAFETY: the pointer is to this CPU's slot of the map, and soft interrupts do not nest.
        let watch = unsafe { &mut *watch };
        if watch.entered_ns != 0 {
            // SAFETY: the helper only reads the clock.
            watch.spent_ns += unsafe { bpf_ktime_get_ns() } - watch.entered_ns;
            watch.entered_ns = 0;
        }
    }
    0
}

#[inline(always)]
fn is_reception(ctx: &RawTracePointContext) -> bool {
    // An unsigned int; the upper half of its register may hold anything.
    ctx.arg::<u64>(0) & 0xffff_ffff == NET_RX
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
