//! The datapath: one entry per hook, one exit, every frame in exactly one verdict class.
//!
//! Parse, decide, count, sample, return. `stages/mod.rs` holds the order of the checks; user space never touches a
//! frame on this path.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the BPF target has no compare-and-swap in core::sync::atomic")]

mod clock;
mod count;
mod egress;
mod express;
mod flows;
mod hook;
mod kernel;
mod maps;
mod mark;
mod payload;
mod sample;
mod stages;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, xdp_action, xdp_md};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use ftagent_common::abi::{Reason, Settings, feature, mode, stage};
use ftagent_common::packet::{Checks, Kind, parse_inner, parse_outer};

use express::Way;
use hook::Hook;

/// tc: this frame goes no further.
const TC_ACT_SHOT: i32 = 2;
/// tc: the next program or the stack decides, also in a TCX chain (`TCX_NEXT`).
const TC_ACT_UNSPEC: i32 = -1;

#[xdp]
#[inline(always)]
pub fn ftagent_xdp(ctx: XdpContext) -> u32 {
    let wire_len = ctx.data_end() - ctx.data();
    judge(&ctx, wire_len, |hook| _ = ftagent_parse_xdp(hook.ctx), |hook| ftagent_tunnel_xdp(hook.ctx)).action()
}

/// The same for interfaces whose frames lie in several buffers: jumbo frames, receive offload in the driver.
#[xdp(frags)]
#[inline(always)]
pub fn ftagent_xdp_frags(ctx: XdpContext) -> u32 {
    let wire_len = hook::buffer_len(&ctx);
    judge(&ctx, wire_len, |hook| _ = ftagent_parse_xdp(hook.ctx), |hook| ftagent_tunnel_xdp(hook.ctx)).action()
}

#[classifier]
#[inline(always)]
pub fn ftagent_tc(ctx: TcContext) -> i32 {
    hook::pull_headers(&ctx);
    match judge(
        &ctx,
        ctx.len() as usize,
        |hook| _ = ftagent_parse_tc(hook.as_ptr().cast()),
        |hook| ftagent_tunnel_tc(hook.as_ptr().cast()),
    ) {
        Fate::Pass => TC_ACT_UNSPEC,
        Fate::Drop | Fate::SendBack => TC_ACT_SHOT,
    }
}

/// Where a frame goes.
enum Fate {
    Pass,
    Drop,
    /// Out where it came in, rewritten into an answer; at the XDP hook alone.
    SendBack,
}

impl Fate {
    #[inline(always)]
    const fn action(self) -> u32 {
        match self {
            Self::Pass => xdp_action::XDP_PASS,
            Self::Drop => xdp_action::XDP_DROP,
            Self::SendBack => xdp_action::XDP_TX,
        }
    }
}

/// Parses, judges, counts and samples one frame.
///
/// On the way that clean packets take nothing is called but what the verifier writes in place: where returns are
/// guarded against speculation a call costs as much as the rest of a stage.
#[inline(always)]
fn judge<H: Hook>(hook: &H, wire_len: usize, parse_any: impl Fn(&H), parse_tunnel: impl Fn(&H) -> u32) -> Fate {
    let Some(scratch) = scratch() else { return Fate::Pass };
    let Some(settings) = maps::SETTINGS.get(0) else {
        // An array always has its elements; the verifier wants to hear it.
        return Fate::Pass;
    };
    let checks = Checks(maps::STAGES.load() & (stage::SANITY | stage::TUNNELS));
    scratch.wire_len = wire_len;
    match express::judge(hook, wire_len, checks, settings, scratch) {
        Way::Drop => return Fate::Drop,
        Way::Parsed => scratch.kind = scratch.packet.address_fault.kind(),
        Way::Other => parse_any(hook),
    }
    // In memory the verifier forgets by which way a value came there: without this it would follow every way through
    // the parser into every way through the stages. The frame's pointers, whose checked ranges differ by way, are dead.
    // SAFETY: written in the lines above.
    if matches!(unsafe { (&raw const scratch.kind).read_volatile() }, Kind::Tunnel) {
        parse_tunnel(hook);
        stages::outer::ftagent_close_tunnel();
    }
    if settings.features & feature::PAYLOADS != 0 {
        payload::load(hook, scratch);
    }
    // SAFETY: as above.
    let kind = unsafe { (&raw const scratch.kind).read_volatile() };
    // SAFETY: as above.
    let bytes = unsafe { (&raw const scratch.wire_len).read_volatile() } as u64;
    let now_ns = clock::now(&mut scratch.cpu);
    let target = stages::decide(hook, kind, scratch, settings, now_ns, bytes);
    // SAFETY: as above.
    let reason = unsafe { (&raw const scratch.verdict.reason).read_volatile() };
    let dropped = reason.is_drop() && settings.mode == mode::ENFORCE;
    count::frame(kind, scratch, reason, target, dropped, now_ns, bytes);
    if scratch.verdict.mark != 0 && !dropped {
        let dscp = scratch.verdict.mark - 1;
        mark::set(hook, scratch, dscp);
    }
    if maps::STAGES.load() & stage::SAMPLES != 0 {
        sample::frame(hook, scratch, settings);
    }
    if !dropped {
        return Fate::Pass;
    }
    // After the sample, which must show the frame as it came.
    if maps::STAGES.load() & stage::GATE != 0 && reason as u8 == Reason::SynCookie as u8 && hook.answer() {
        return Fate::SendBack;
    }
    Fate::Drop
}

/// This CPU's memory for the frame that is being judged.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut maps::Scratch> {
    // SAFETY: the map's own memory of this CPU; a program is not interrupted by itself on its CPU.
    maps::SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Reads a frame of any shape into the scratch memory.
#[inline(always)]
fn parse<H: Hook>(hook: &H) {
    let Some(scratch) = scratch() else { return };
    let checks = Checks(maps::STAGES.load() & (stage::SANITY | stage::TUNNELS));
    scratch.packet.clear();
    scratch.kind = parse_outer(&hook.frame(), scratch.wire_len, checks, &mut scratch.packet);
}

/// A frame that is not plain, at the XDP hook. A global function: the verifier goes through it once for itself, with
/// nothing known of what was before the call. Inlined it would be followed into every stage: 70 ms more to load, and a
/// third more instructions than the bound; the call costs such a frame some ten nanoseconds.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_parse_xdp(ctx: *mut xdp_md) -> u32 {
    parse(&XdpContext::new(ctx));
    0
}

/// The same at the tc hook.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_parse_tc(ctx: *mut __sk_buff) -> u32 {
    parse(&TcContext::new(ctx));
    0
}

/// Reads the packet inside a tunnel into the scratch memory.
#[inline(always)]
fn parse_tunnel<H: Hook>(hook: &H) {
    let Some(scratch) = scratch() else { return };
    let checks = Checks(maps::STAGES.load() & (stage::SANITY | stage::TUNNELS));
    scratch.around.copy_from(&scratch.packet);
    scratch.kind = parse_inner(&hook.frame(), checks, &mut scratch.packet);
}

/// The packet inside a tunnel, at the XDP hook; a global function as the one before it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_tunnel_xdp(ctx: *mut xdp_md) -> u32 {
    parse_tunnel(&XdpContext::new(ctx));
    0
}

/// The same at the tc hook.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_tunnel_tc(ctx: *mut __sk_buff) -> u32 {
    parse_tunnel(&TcContext::new(ctx));
    0
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
