//! The monotonic clock, read once in a jiffy: its helper costs ten times what a jiffy counter does.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use ftagent_common::abi::CpuState;

/// Nanoseconds of the monotonic clock, at most a jiffy (1 to 10 ms) old.
#[inline(always)]
pub(crate) fn now(cpu: &mut CpuState) -> u64 {
    // SAFETY: helpers without arguments.
    let jiffies = unsafe { bpf_jiffies64() };
    if cpu.jiffies != jiffies {
        cpu.jiffies = jiffies;
        // SAFETY: as above.
        cpu.now_ns = unsafe { bpf_ktime_get_ns() };
    }
    cpu.now_ns
}
