//! The datapath: one entry per hook, one exit, every frame in exactly one verdict class.
//!
//! Parse, decide, count, sample, return. `stages/mod.rs` holds the order of the checks; user space never touches a
//! frame on this path.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the BPF target has no compare-and-swap in core::sync::atomic")]

mod count;
mod kernel;
mod maps;
mod sample;
mod stages;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use ftagent_common::abi::{Settings, mode};
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Packet, parse_into};

/// tc: this frame goes no further.
const TC_ACT_SHOT: i32 = 2;
/// tc: the next program or the stack decides, also in a TCX chain (`TCX_NEXT`).
const TC_ACT_UNSPEC: i32 = -1;
/// Bytes that headers take at most: what lies beyond is not read.
const HEADER_BYTES: u32 = 256;

/// A hook's own way to copy bytes of the frame.
pub(crate) trait Hook {
    /// Copies `len` bytes (1 to 128) from the start of the frame to `to`.
    ///
    /// # Safety
    /// `to` must have room for `len` bytes.
    unsafe fn load(&self, to: *mut u8, len: u32) -> bool;
}

impl Hook for XdpContext {
    #[inline(always)]
    unsafe fn load(&self, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller gives room for `len` bytes.
        unsafe { kernel::load_bytes(self, 0, to, len) }
    }
}

impl Hook for TcContext {
    #[inline(always)]
    unsafe fn load(&self, to: *mut u8, len: u32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_load_bytes(self.as_ptr(), 0, to.cast(), len) == 0 }
    }
}

#[xdp]
pub fn ftagent_xdp(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    // SAFETY: `data` and `data_end` of the context; the verifier checks every access.
    let frame = unsafe { Frame::from_raw(start, end) };
    let wire_len = frame.len();
    if is_dropped(&ctx, &frame, wire_len) { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

#[classifier]
pub fn ftagent_tc(ctx: TcContext) -> i32 {
    let wire_len = ctx.len();
    let wanted = if wire_len < HEADER_BYTES { wire_len } else { HEADER_BYTES };
    if ctx.data() + (wanted as usize) > ctx.data_end() {
        // Headers beyond the linear part; on failure the parser says "truncated".
        _ = ctx.pull_data(wanted);
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    // SAFETY: `data` and `data_end` of the context; the verifier checks every access.
    let frame = unsafe { Frame::from_raw(start, end) };
    if is_dropped(&ctx, &frame, wire_len as usize) { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
}

/// Judges, counts and samples one frame.
#[inline(always)]
fn is_dropped<H: Hook>(hook: &H, frame: &Frame<'_>, wire_len: usize) -> bool {
    let Some(settings) = maps::SETTINGS.get(0) else {
        // An array always has its elements; the verifier wants to hear it.
        return false;
    };
    let now_ns = kernel::now_ns();
    let Some(scratch) = maps::SCRATCH.get_ptr_mut(0) else { return false };
    // SAFETY: the map's own memory of this CPU; a program is not interrupted by itself on its CPU.
    let scratch = unsafe { &mut *scratch };
    scratch.packet = Packet::EMPTY;
    let kind = parse_into(frame, wire_len, &mut scratch.packet);
    // In memory the verifier forgets by which way a value came there: without this it would follow every way through
    // the parser into every way through the stages.
    scratch.kind = kind;
    scratch.wire_len = wire_len;
    // SAFETY: written in the lines above.
    let kind = unsafe { (&raw const scratch.kind).read_volatile() };
    // SAFETY: as above. The frame's pointers, whose checked ranges differ by way, are dead from here on.
    let wire_len = unsafe { (&raw const scratch.wire_len).read_volatile() };
    let packet = &scratch.packet;
    let verdict = stages::decide(kind, packet, settings, now_ns, wire_len as u64);
    let dropped = verdict.reason.is_drop() && settings.mode == mode::ENFORCE;
    count::frame(kind, packet, &verdict, dropped, now_ns, wire_len as u64);
    sample::frame(hook, settings, &verdict, wire_len, now_ns);
    dropped
}

/// Whether user space has been silent for so long that automatic rules no longer count.
#[inline(always)]
pub(crate) fn is_orphaned(settings: &Settings, now_ns: u64) -> bool {
    settings.dead_man_ns != 0 && now_ns.wrapping_sub(settings.heartbeat_ns) as i64 > settings.dead_man_ns as i64
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: nothing in this crate panics, and the verifier would refuse the loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
