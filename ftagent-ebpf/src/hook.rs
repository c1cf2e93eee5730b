//! What the programs ask of the hook they sit at.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_xdp_get_buff_len};
use aya_ebpf::programs::{TcContext, XdpContext};
use ftagent_common::frame::Frame;

use crate::kernel;
use crate::stages::gate::Wire;

/// Bytes that headers take at most: what lies beyond is not read.
const HEADER_BYTES: u32 = 256;

/// A hook's own ways to the bytes of the frame.
pub(crate) trait Hook: Wire {
    /// The frame's bytes that can be read directly; a new pair of pointers at every call.
    fn frame(&self) -> Frame<'_>;

    /// Copies `len` bytes (1 to 128) from `offset` of the frame to `to`.
    ///
    /// # Safety
    /// `to` must have room for `len` bytes.
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool;

    /// Writes `len` bytes to `offset` of the frame.
    ///
    /// # Safety
    /// `from` must have `len` bytes.
    unsafe fn store(&self, offset: u32, from: *mut u8, len: u32) -> bool;
}

impl Hook for XdpContext {
    #[inline(always)]
    fn frame(&self) -> Frame<'_> {
        // SAFETY: `data` and `data_end` of the context; the verifier checks every access.
        unsafe { Frame::from_raw(self.data(), self.data_end()) }
    }

    #[inline(always)]
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller gives room for `len` bytes; the helper checks the frame's bounds.
        unsafe { kernel::load_bytes(self, offset, to, len) }
    }

    #[inline(always)]
    unsafe fn store(&self, offset: u32, from: *mut u8, len: u32) -> bool {
        // SAFETY: as above.
        unsafe { kernel::store_bytes(self, offset, from, len) }
    }
}

impl Hook for TcContext {
    #[inline(always)]
    fn frame(&self) -> Frame<'_> {
        // SAFETY: `data` and `data_end` of the context; the verifier checks every access.
        unsafe { Frame::from_raw(self.data(), self.data_end()) }
    }

    #[inline(always)]
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller gives room for `len` bytes; the helper checks the frame's bounds.
        unsafe { bpf_skb_load_bytes(self.as_ptr(), offset, to.cast(), len) == 0 }
    }

    #[inline(always)]
    unsafe fn store(&self, offset: u32, from: *mut u8, len: u32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_store_bytes(self.as_ptr().cast(), offset, from.cast(), len, 0) == 0 }
    }
}

/// Length of the frame in all its buffers.
#[inline(always)]
pub(crate) fn buffer_len(ctx: &XdpContext) -> usize {
    // SAFETY: the helper reads the context alone.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as usize }
}

/// Brings headers that lie beyond the linear part of a socket buffer into it; on failure the parser says "truncated".
#[inline(always)]
pub(crate) fn pull_headers(ctx: &TcContext) {
    let len = ctx.len();
    let wanted = if len < HEADER_BYTES { len } else { HEADER_BYTES };
    if ctx.data() + (wanted as usize) > ctx.data_end() {
        _ = ctx.pull_data(wanted);
    }
}
