//! Programs of the lab, never loaded by the agent: a traffic generator and counters.
//!
//! `lab_generate` runs by `BPF_PROG_TEST_RUN` with live frames: the kernel hands it a frame made from a template, it
//! writes what differs from packet to packet and sends the frame with XDP_TX. `lab_drop` and `lab_pass`
//! count what an XDP hook receives; `lab_meter` counts what gets past one. Both tell attack frames from others by the source MAC.
#![no_std]
#![no_main]

use aya_ebpf::bindings::{TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};

/// The source MAC of every frame that the lab sends as an attack. `ftagent-lab` has the same constant.
const ATTACK_MAC: [u8; 6] = [0x02, 0x00, 0x00, 0x00, 0xa7, 0x7a];

/// What varies, as bits of `Settings::vary`. `ftagent-lab` has the same constants.
mod vary {
    pub const SOURCE: u32 = 1 << 0;
    pub const SOURCE_PORT: u32 = 1 << 1;
    pub const DESTINATION_PORT: u32 = 1 << 2;
    pub const DESTINATION: u32 = 1 << 3;
    pub const TTL: u32 = 1 << 4;
    pub const PAYLOAD: u32 = 1 << 5;
    pub const IP_ID: u32 = 1 << 6;
    /// The transport checksum covers the addresses (all but ICMP over IPv4).
    pub const SUM_HAS_ADDRESSES: u32 = 1 << 7;
    pub const IPV6: u32 = 1 << 8;
    pub const UDP: u32 = 1 << 9;
    /// The source is one of a list that is computed (IPv4).
    pub const LISTED: u32 = 1 << 10;
}

/// `Settings::sum_at` of a frame without a transport checksum.
const NO_SUM: u32 = 0xffff;

/// How the frames differ. Every word is in host order, except addresses, which are as in the packet.
///
/// The frame's memory is used again and again, and whoever received it may have written to it, so every field that
/// varies is written whole, and checksums start from sums of the template that leave these fields out.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Settings {
    vary: u32,
    /// Where the IP header begins.
    l3: u32,
    /// Where the transport header begins.
    l4: u32,
    /// Where the transport checksum lies in the frame, or `NO_SUM`.
    sum_at: u32,
    /// Where four bytes of payload lie that are random.
    payload_at: u32,
    /// Sum of the template's IPv4 header without identification, TTL and protocol, checksum and addresses.
    ip_sum: u32,
    /// Sum of the pseudo header and the transport's bytes without addresses, varied ports, checksum, varied payload.
    l4_sum: u32,
    /// The protocol field of the IPv4 header, the next header field of the IPv6 header.
    protocol: u32,
    src: [u32; 4],
    /// Bits of the source that are random.
    src_mask: [u32; 4],
    dst: [u32; 4],
    /// Bits of the destination's last word that count up, in host order.
    dst_mask: u32,
    src_port: u32,
    /// At least 1.
    src_ports: u32,
    dst_port: u32,
    dst_ports: u32,
    ttl: u32,
    ttls: u32,
    ip_id: u32,
    /// How many networks the list has, at most 2^20.
    listed: u32,
    /// 3 if all of them are single addresses, else 0.
    listed_class: u32,
}

/// One generator's progress on one CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Progress {
    /// Frames handed to XDP_TX.
    sent: u64,
    /// Frames whose template was too short for its settings.
    failed: u64,
    random: u64,
}

#[map]
static LAB_SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static LAB_PROGRESS: PerCpuArray<Progress> = PerCpuArray::with_max_entries(1, 0);
/// Frames by class: 0 attack, 1 any other.
#[map]
static LAB_METER: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

#[xdp]
pub fn lab_generate(ctx: XdpContext) -> u32 {
    let (Some(settings), Some(progress)) = (LAB_SETTINGS.get(0), LAB_PROGRESS.get_ptr_mut(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the pointer is to this CPU's slot of the map, and nothing else runs on this CPU meanwhile.
    let progress = unsafe { &mut *progress };
    if write_variations(&ctx, settings, progress).is_some() {
        progress.sent += 1;
        xdp_action::XDP_TX
    } else {
        progress.failed += 1;
        xdp_action::XDP_ABORTED
    }
}

#[inline(always)]
fn write_variations(ctx: &XdpContext, s: &Settings, progress: &mut Progress) -> Option<()> {
    let mut random = progress.random ^ progress.sent;
    let count = progress.sent as u32;
    let mut l4_sum = s.l4_sum;

    let l3 = s.l3 as usize;
    let mut src = s.src;
    if s.vary & vary::SOURCE != 0 {
        let low = next(&mut random);
        let high = next(&mut random);
        src[3] |= low as u32 & s.src_mask[3];
        src[2] |= (low >> 32) as u32 & s.src_mask[2];
        src[1] |= high as u32 & s.src_mask[1];
        src[0] |= (high >> 32) as u32 & s.src_mask[0];
    }
    if s.vary & vary::LISTED != 0 {
        src[3] |= listed(s, next(&mut random)).to_be();
    }
    let mut dst = s.dst;
    if s.vary & vary::DESTINATION != 0 {
        dst[3] |= (count & s.dst_mask).to_be();
    }
    let mut ttl = s.ttl;
    if s.vary & vary::TTL != 0 {
        ttl += next(&mut random) as u32 % s.ttls.max(1);
    }

    if s.vary & vary::IPV6 != 0 {
        let at: *mut [u16; 16] = field(ctx, l3 + 8)?;
        let words = [
            halves(src[0]),
            halves(src[1]),
            halves(src[2]),
            halves(src[3]),
            halves(dst[0]),
            halves(dst[1]),
            halves(dst[2]),
            halves(dst[3]),
        ];
        let mut i = 0;
        while i < 8 {
            // SAFETY: `field` found sixteen words inside the frame; `2 * i + 1` is at most 15.
            unsafe { (*at)[2 * i] = words[i][0] };
            // SAFETY: as above.
            unsafe { (*at)[2 * i + 1] = words[i][1] };
            l4_sum = add(l4_sum, words[i]);
            i += 1;
        }
        // With the next header: the verifier learns nothing from a bounds check of a single byte.
        let at: *mut u16 = field(ctx, l3 + 6)?;
        // SAFETY: `field` found the word inside the frame.
        unsafe { *at = u16::from_ne_bytes([s.protocol as u8, ttl as u8]) };
    } else {
        let mut id = s.ip_id;
        if s.vary & vary::IP_ID != 0 {
            id = next(&mut random) as u32 & 0xffff;
        }
        let (from, to) = (halves(src[3]), halves(dst[3]));
        let ttl_word = u16::from_ne_bytes([ttl as u8, s.protocol as u8]);
        let mut ip_sum = add(add(s.ip_sum, from), to);
        ip_sum += id + u32::from(ttl_word);
        // Identification at 4, fragment word at 6 left alone, TTL, protocol and checksum at 8, addresses at 12.
        let at: *mut [u16; 8] = field(ctx, l3 + 4)?;
        // SAFETY: `field` found eight words inside the frame.
        let header = unsafe { &mut *at };
        header[0] = id as u16;
        header[2] = ttl_word;
        header[3] = !fold(ip_sum);
        header[4] = from[0];
        header[5] = from[1];
        header[6] = to[0];
        header[7] = to[1];
        if s.vary & vary::SUM_HAS_ADDRESSES != 0 {
            l4_sum = add(add(l4_sum, from), to);
        }
    }

    let l4 = s.l4 as usize;
    if s.vary & vary::SOURCE_PORT != 0 {
        let port = s.src_port + next(&mut random) as u32 % s.src_ports.max(1);
        l4_sum += put(ctx, l4, port)?;
    }
    if s.vary & vary::DESTINATION_PORT != 0 {
        let port = s.dst_port + next(&mut random) as u32 % s.dst_ports.max(1);
        l4_sum += put(ctx, l4 + 2, port)?;
    }
    if s.vary & vary::PAYLOAD != 0 {
        let word = next(&mut random) as u32;
        let at = s.payload_at as usize;
        l4_sum += put(ctx, at, word & 0xffff)?;
        l4_sum += put(ctx, at + 2, word >> 16)?;
    }
    if s.sum_at != NO_SUM {
        let sum = !fold(l4_sum);
        // Zero would mean "no checksum" in UDP; the other protocols take either.
        let sum = if sum == 0 && s.vary & vary::UDP != 0 { 0xffff } else { sum };
        let at: *mut u16 = field(ctx, s.sum_at as usize)?;
        // SAFETY: `field` found the word inside the frame.
        unsafe { *at = sum };
    }
    progress.random = random;
    Some(())
}

/// A random address of the list, without its first four bits; `generator/listed.rs` of the lab computes the same.
///
/// Entry `i` lies in the /24 whose number is `i` times an odd constant modulo 2^20: each has one of its own, and
/// neighbours in the list are far apart.
#[inline(always)]
fn listed(s: &Settings, random: u64) -> u32 {
    let i = random as u32 % s.listed.max(1);
    let slot = i.wrapping_mul(0x9e37_79b1) & 0xf_ffff;
    // /24, /26, /28 and /32 in turn: 8, 6, 4 and 0 bits of host.
    let class = (i & 3) | s.listed_class;
    let hosts = if class == 3 { 0 } else { (1u32 << (8 - 2 * class)) - 1 };
    let anchor = (slot.wrapping_mul(167) + 13) & 0xff & !hosts;
    (slot << 8) | anchor | ((random >> 32) as u32 & hosts)
}

/// Writes a number in network order and returns what it adds to a sum.
#[inline(always)]
fn put(ctx: &XdpContext, offset: usize, value: u32) -> Option<u32> {
    let word = (value as u16).to_be();
    let at: *mut u16 = field(ctx, offset)?;
    // SAFETY: `field` found the word inside the frame.
    unsafe { *at = word };
    Some(u32::from(word))
}

/// Where a field lies, if it lies inside the frame. Offsets are even, as the headers are.
#[inline(always)]
fn field<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    // The verifier wants a bound on every variable offset.
    let offset = offset & 0x7ff;
    let at = ctx.data() + offset;
    if at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(at as *mut T)
}

#[inline(always)]
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

#[inline(always)]
fn add(sum: u32, words: [u16; 2]) -> u32 {
    sum + u32::from(words[0]) + u32::from(words[1])
}

/// Folds a sum of fewer than 65,536 words to 16 bits.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// xorshift64* (Marsaglia 2003, Vigna 2016): fast, and good enough for addresses that look forged.
#[inline(always)]
fn next(state: &mut u64) -> u64 {
    let mut x = *state | 1;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    // The upper half is the better one, and callers begin with the lower.
    x.wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(32)
}

#[xdp]
pub fn lab_drop(ctx: XdpContext) -> u32 {
    count(&ctx);
    xdp_action::XDP_DROP
}

#[xdp]
pub fn lab_pass(ctx: XdpContext) -> u32 {
    count(&ctx);
    xdp_action::XDP_PASS
}

#[inline(always)]
fn count(ctx: &XdpContext) {
    if let Some(mac) = field::<[u8; 6]>(ctx, 6) {
        // SAFETY: `field` found six bytes inside the frame.
        meter(unsafe { *mac }, 1);
    }
}

#[classifier]
pub fn lab_meter(ctx: TcContext) -> i32 {
    if let Ok(mac) = ctx.load::<[u8; 6]>(6) {
        // Receive offload joins segments before this hook; the count of segments is kept with them.
        // SAFETY: the context pointer is valid for the whole run of the program.
        let segments = unsafe { (*ctx.skb.skb).gso_segs };
        meter(mac, u64::from(segments.max(1)));
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn meter(mac: [u8; 6], frames: u64) {
    let class = if mac == ATTACK_MAC { 0 } else { 1 };
    if let Some(slot) = LAB_METER.get_ptr_mut(class) {
        // SAFETY: the pointer is to this CPU's slot of the map.
        unsafe { *slot += frames };
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
