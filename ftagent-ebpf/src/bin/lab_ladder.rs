//! The lab's yardsticks: the least that a program can do to drop a frame. Never loaded by the agent.
//!
//! `lab_bare` is the floor that everything else is compared with. The others look one thing up first, in XDP and in
//! traffic control, and drop what they find.
#![no_std]
#![no_main]

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{HashMap, LpmTrie, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};

/// Where an IPv4 packet's source lies in its frame without VLAN tags.
const SOURCE: usize = 14 + 12;
const IPV4: u16 = 0x0800;

/// Frames dropped by `lab_count`.
#[map]
static LAB_COUNT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// Blocked addresses, in network order. The loader sets the size.
#[map]
static LAB_ADDRESSES: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);
/// Blocked networks. The loader sets the size.
#[map]
static LAB_NETWORKS: LpmTrie<u32, u32> = LpmTrie::with_max_entries(1, 0);

#[xdp]
pub fn lab_bare(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

#[xdp]
pub fn lab_count(_ctx: XdpContext) -> u32 {
    if let Some(slot) = LAB_COUNT.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's slot of the map.
        unsafe { *slot += 1 };
    }
    xdp_action::XDP_DROP
}

#[xdp]
pub fn lab_hash(ctx: XdpContext) -> u32 {
    match source(ctx.data(), ctx.data_end()) {
        Some(source) if is_blocked_address(source) => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}

#[xdp]
pub fn lab_lpm(ctx: XdpContext) -> u32 {
    match source(ctx.data(), ctx.data_end()) {
        Some(source) if is_in_blocked_network(source) => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}

#[classifier]
pub fn lab_tc_hash(ctx: TcContext) -> i32 {
    match source(ctx.data(), ctx.data_end()) {
        Some(source) if is_blocked_address(source) => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    }
}

#[classifier]
pub fn lab_tc_lpm(ctx: TcContext) -> i32 {
    match source(ctx.data(), ctx.data_end()) {
        Some(source) if is_in_blocked_network(source) => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn is_blocked_address(source: u32) -> bool {
    // SAFETY: the value is not looked at, so that it may change meanwhile.
    unsafe { LAB_ADDRESSES.get(source) }.is_some()
}

#[inline(always)]
fn is_in_blocked_network(source: u32) -> bool {
    LAB_NETWORKS.get(Key::new(32, source)).is_some()
}

/// The source of an IPv4 frame, in network order.
#[inline(always)]
fn source(data: usize, data_end: usize) -> Option<u32> {
    if data + SOURCE + 4 > data_end {
        return None;
    }
    // SAFETY: the check above covers the EtherType.
    let ether_type = unsafe { *((data + 12) as *const u16) };
    if ether_type != IPV4.to_be() {
        return None;
    }
    // SAFETY: the check above covers the source; the kernel aligns frames so that IP headers are.
    Some(unsafe { *((data + SOURCE) as *const u32) })
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
