//! The token bucket of `tc_police_interface`, where the kernel has no policer and no device to shape with: a classifier
//! that drops what an interface receives above a rate.
//!
//! One bucket for all CPUs, so that the rate is that of the interface. Whom the maps name is let pass and takes nothing
//! from it, and neither do the questions for the addresses of neighbours. What conforms goes on to the next filter.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the BPF target has no compare-and-swap in core::sync::atomic")]

use aya_ebpf::Global;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes_relative;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, LpmTrie};
use aya_ebpf::programs::TcContext;
use ftagent_common::abi::Rate;

#[path = "../kernel.rs"]
#[allow(dead_code, reason = "reading frames is for XDP")]
mod kernel;
#[path = "../stages/limit.rs"]
mod limit;

/// What a byte costs, in 1/65,536 of the units of `Rate::cost`: at 1 Tbit/s it is 2 of those. And `Rate::burst`. The
/// loader sets both.
#[unsafe(no_mangle)]
static COST: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static BURST: Global<u64> = Global::new(0);

/// When the bucket is full again.
#[map]
static BUCKET: Array<u64> = Array::with_max_entries(1, 0);
/// Sources that pass, in network order. The loader sets the sizes.
#[map]
static SPARED4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(1, 0);
#[map]
static SPARED6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(1, 0);

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const PROVIDER_VLAN: u16 = 0x88a8;
/// Tags that the kernel has not taken off: it takes one.
const MAX_TAGS: u32 = 2;
/// `BPF_HDR_START_NET`: also on devices that have no link header.
const FROM_NETWORK: u32 = 1;
const ICMPV6: u8 = 58;

#[classifier]
pub fn ftagent_bucket(ctx: TcContext) -> i32 {
    if is_spared(&ctx) {
        return TC_ACT_UNSPEC;
    }
    let Some(state) = BUCKET.get_ptr_mut(0) else { return TC_ACT_UNSPEC };
    // A frame has less than a megabyte, and a byte costs less than 2^44 at the lowest rate there is.
    let cost = u64::from(ctx.len()).wrapping_mul(COST.load()) >> 16;
    let rate = Rate { cost, burst: BURST.load(), per_byte: 0, padding: 0 };
    // SAFETY: it takes no argument and always succeeds.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the pointer is to the word of the map.
    if unsafe { limit::is_over(&rate, state, now_ns, 0) } { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
}

#[inline(always)]
fn is_spared(ctx: &TcContext) -> bool {
    // SAFETY: the kernel's own context.
    let mut kind = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    let mut start = 0;
    for _ in 0..MAX_TAGS {
        if kind != VLAN && kind != PROVIDER_VLAN {
            break;
        }
        let Some(tag) = read::<4>(ctx, start) else { return false };
        kind = u16::from_be_bytes([tag[2], tag[3]]);
        start += 4;
    }
    match kind {
        ARP => true,
        IPV4 => match read::<4>(ctx, start + 12) {
            Some(source) => SPARED4.get(Key::new(32, source)).is_some(),
            None => false,
        },
        IPV6 => {
            let Some(next) = read::<2>(ctx, start + 6) else { return false };
            if next == [ICMPV6, 255]
                && let Some([133..=137]) = read::<1>(ctx, start + 40)
            {
                // Neighbour discovery, of which nothing comes through a router (RFC 4861, section 7.1).
                return true;
            }
            match read::<16>(ctx, start + 8) {
                Some(source) => SPARED6.get(Key::new(128, source)).is_some(),
                None => false,
            }
        }
        _ => false,
    }
}

#[inline(always)]
fn read<const N: usize>(ctx: &TcContext, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: there is room for as many bytes, and the helper checks the frame's bounds.
    let failed = unsafe {
        bpf_skb_load_bytes_relative(ctx.skb.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32, FROM_NETWORK)
    };
    (failed == 0).then_some(bytes)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
