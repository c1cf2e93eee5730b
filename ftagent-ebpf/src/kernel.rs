//! What older kernels lack: constants that user space sets at load, so that the verifier deletes the branch that is
//! not taken and never looks at a helper that the kernel does not know. `ftagent/src/xdp/kernel.rs` holds the table.

use core::intrinsics::{AtomicOrdering, atomic_cxchg};

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_xdp_load_bytes, bpf_xdp_store_bytes};
use aya_ebpf::programs::XdpContext;

/// Atomic instructions that give the old value: 5.12.
#[unsafe(no_mangle)]
static HAS_COMPARE_AND_SWAP: Global<u32> = Global::new(1);

/// `bpf_xdp_load_bytes`: 5.18.
#[unsafe(no_mangle)]
static HAS_LOAD_BYTES: Global<u32> = Global::new(1);

/// Writes `after` where `before` stands and says whether it did. On older kernels it always does, and a change that
/// another CPU made in between is lost.
///
/// # Safety
/// `word` must point to an aligned word in a map.
#[inline(always)]
pub(crate) unsafe fn swap(word: *mut u64, before: u64, after: u64) -> bool {
    if HAS_COMPARE_AND_SWAP.load() != 0 {
        // SAFETY: the caller gives a word in a map.
        unsafe { atomic_cxchg::<u64, { AtomicOrdering::Relaxed }, { AtomicOrdering::Relaxed }>(word, before, after).1 }
    } else {
        // SAFETY: as above.
        unsafe { word.write_volatile(after) };
        true
    }
}

/// Copies `len` bytes, at least 1, from `offset` of the frame to `to`.
///
/// # Safety
/// `to` must have room for `len` bytes.
#[inline(always)]
pub(crate) unsafe fn load_bytes(ctx: &XdpContext, offset: u32, to: *mut u8, len: u32) -> bool {
    if HAS_LOAD_BYTES.load() != 0 {
        // SAFETY: the caller gives room for `len` bytes; the helper checks the frame's bounds.
        return unsafe { bpf_xdp_load_bytes(ctx.ctx, offset, to.cast(), len) == 0 };
    }
    // A frame lies in one buffer on such kernels.
    let (start, end) = (ctx.data(), ctx.data_end());
    if (offset as usize) + (len as usize) > end.wrapping_sub(start) {
        return false;
    }
    // SAFETY: within the frame, as just compared; the helper survives an address that cannot be read.
    unsafe { bpf_probe_read_kernel(to.cast(), len, (start + offset as usize) as *const _) == 0 }
}

/// Writes `len` bytes, at least 1 and known when this is compiled, to `offset` of the frame.
///
/// # Safety
/// `from` must have `len` bytes.
#[inline(always)]
pub(crate) unsafe fn store_bytes(ctx: &XdpContext, offset: u32, from: *mut u8, len: u32) -> bool {
    /// Headers lie before; the verifier wants a bound for a pointer into the frame.
    const REACH: usize = 0x3fff;
    if HAS_LOAD_BYTES.load() != 0 {
        // SAFETY: the caller gives `len` bytes; the helper checks the frame's bounds.
        return unsafe { bpf_xdp_store_bytes(ctx.ctx, offset, from.cast(), len) == 0 };
    }
    let to = ctx.data() + (offset as usize & REACH);
    if to + len as usize > ctx.data_end() {
        return false;
    }
    for i in 0..len as usize {
        // SAFETY: the caller gives `len` bytes.
        let byte = unsafe { from.add(i).read() };
        // SAFETY: within the frame, as just compared.
        unsafe { ((to + i) as *mut u8).write_volatile(byte) };
    }
    true
}
