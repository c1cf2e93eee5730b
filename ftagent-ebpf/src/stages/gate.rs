//! The TCP gate in front of a target under a flood: segments of no connection go, SYNs must prove their source.
//!
//! ```text
//! of a flow that was learnt ───────────────────────────────────────────> on
//! SYN ── a socket listens and cookies are on ── answered with a cookie, XDP_TX
//!    └── otherwise ── the first one is dropped and remembered ── repeated after a while ──> on
//! ACK ── of our SYN-ACK (its number + 1) or of a cookie ── learnt ─────> on
//! anything else ── dropped; while the table is young, unless a socket of this node knows it
//! ```
//!
//! Cookies come from the listener that the SYN is for (`bpf_tcp_gen_syncookie`), not from the addresses alone: the
//! kernel accepts the acknowledgement of a cookie only at a listener that is marked as overflowing, and the helper
//! marks it. Where nobody listens (a closed port, a container behind DNAT, a host behind this router) a cookie would
//! promise what nobody keeps, and drop-first has to do. The acknowledgement is checked without a socket.
//!
//! Drop-first costs an honest client the second that it waits before it repeats its SYN.

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::Global;
use aya_ebpf::bindings::{__sk_buff, bpf_sock_tuple, iphdr, ipv6hdr, tcphdr, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie, bpf_tcp_raw_check_syncookie_ipv4,
    bpf_tcp_raw_check_syncookie_ipv6, bpf_xdp_adjust_tail,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::programs::{TcContext, XdpContext};
use ftagent_common::abi::{
    EVALUATE, FIRST_SYN_WORDS, FLOW_SETS, FirstSyn, GateSettings, GatedTarget, HALF_OPEN_SETS, Life, MAX_GATED, Reason,
    Seen, feature, first_syn, gate, mode, stage,
};
use ftagent_common::packet::{Fragment, Ip, Packet, proto, tcp_flag};

use super::{Hit, Judged, block};
use crate::flows::{self, Ends};
use crate::hook::Hook;
use crate::maps::Scratch;
use crate::{count, maps};

/// Whether the kernel has the helpers for cookies, all since 6.0; 0 deletes what calls them.
#[unsafe(no_mangle)]
static COOKIES: Global<u32> = Global::new(0);

/// Targets behind the gate.
#[map]
static GATED: LpmTrie<Ip, GatedTarget> = LpmTrie::with_max_entries(MAX_GATED, 0);

/// Headers for the helpers, in memory order. An IP header needs no more than its version and its addresses for them.
#[repr(C)]
struct Desk {
    tuple: [u32; 10],
    ip: [u32; 10],
    tcp: [u32; 16],
    macs: [u8; 12],
    /// What the listener gave: the cookie, and above it the segment size that it stands for.
    cookie: u64,
    now_ns: u64,
    bytes: u64,
    /// Counter slot of the rule that gated the target.
    rule: u32,
}

#[map]
static DESK: PerCpuArray<Desk> = PerCpuArray::with_max_entries(1, 0);

/// The frame and its hook, as far as the gate needs them.
pub(crate) trait Wire {
    /// Whether a frame can be sent back where it came from.
    const ANSWERS: bool;

    fn context(&self) -> *mut c_void;

    /// Asks the gate by this hook's global function.
    fn ask_gate(&self) -> u32;

    /// Turns the frame into the answer that is on the desk; whether it can be sent back.
    fn answer(&self) -> bool;

    /// Cuts bytes off the end.
    fn shorten(&self, by: u32) -> bool;
}

impl Wire for XdpContext {
    const ANSWERS: bool = true;

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.ctx.cast()
    }

    #[inline(always)]
    fn ask_gate(&self) -> u32 {
        ftagent_gate_xdp(self.ctx)
    }

    #[inline(always)]
    fn answer(&self) -> bool {
        COOKIES.load() != 0 && ftagent_answer_xdp(self.ctx) != 0
    }

    #[inline(always)]
    fn shorten(&self, by: u32) -> bool {
        // SAFETY: the program's own context; no pointer into the frame is used after it.
        unsafe { bpf_xdp_adjust_tail(self.ctx, -(by as i32)) == 0 }
    }
}

impl Wire for TcContext {
    const ANSWERS: bool = false;

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.as_ptr()
    }

    #[inline(always)]
    fn ask_gate(&self) -> u32 {
        ftagent_gate_tc(self.as_ptr().cast())
    }

    #[inline(always)]
    fn answer(&self) -> bool {
        false
    }

    #[inline(always)]
    fn shorten(&self, _by: u32) -> bool {
        false
    }
}

/// What the gate has against the packet. Only asked for protected destinations.
#[inline(always)]
pub(super) fn hit<H: Hook>(hook: &H, scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Hit> {
    if maps::STAGES.load() & stage::GATE == 0 || judged.settings.features & feature::GATE == 0 {
        return None;
    }
    let Packet { protocol, fragment, tunnel, .. } = scratch.packet;
    if protocol != proto::TCP || fragment != Fragment::Whole || tunnel.is_open() {
        return None;
    }
    let desk = desk()?;
    (desk.now_ns, desk.bytes) = (judged.now_ns, judged.bytes);
    let code = hook.ask_gate();
    let all = [Reason::UnsolicitedTcp, Reason::SynGate, Reason::SynCookie];
    let reason = all.into_iter().find(|reason| *reason as u32 == code)?;
    Some((reason, desk.rule))
}

/// This CPU's desk.
#[inline(always)]
fn desk() -> Option<&'static mut Desk> {
    // SAFETY: the map's own memory of this CPU; a program is not interrupted by itself on its CPU.
    DESK.get_ptr_mut(0).map(|desk| unsafe { &mut *desk })
}

/// The gate at the XDP hook: a [`Reason`] as a number, [`Reason::Clean`] where it has nothing against the packet. A
/// global function: the verifier goes through it once for itself, and what no gate is in front of never comes here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_gate_xdp(ctx: *mut xdp_md) -> u32 {
    verdict(&XdpContext::new(ctx)).unwrap_or(Reason::Clean) as u32
}

/// The same at the tc hook.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_gate_tc(ctx: *mut __sk_buff) -> u32 {
    verdict(&TcContext::new(ctx)).unwrap_or(Reason::Clean) as u32
}

/// [`answer`] at the XDP hook; 1 if the frame can be sent back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_answer_xdp(ctx: *mut xdp_md) -> u32 {
    u32::from(answer(&XdpContext::new(ctx)))
}

#[inline(always)]
fn verdict<H: Hook>(hook: &H) -> Option<Reason> {
    let (scratch, desk) = (crate::scratch()?, desk()?);
    let judged = Judged::new(maps::SETTINGS.get(0)?, desk.now_ns, desk.bytes);
    let gate = flows::GATE.get(0)?;
    let packet = &scratch.packet;
    let ends = Ends {
        remote: &packet.src,
        local: &packet.dst,
        ports: [packet.src_port, packet.dst_port],
        protocol: proto::TCP,
    };
    let hash = ends.hash(gate, 0);
    // Most segments are of connections that are known, and a look into an array costs less than one into a trie.
    if flows::set(&flows::FLOWS, FLOW_SETS, hash)?.knows(hash, judged.now_ns) {
        return None;
    }
    scratch.key = Key::new(128, scratch.packet.dst);
    let target = GATED.get(&scratch.key)?;
    if !block::is_in_force(target.expires_at_ns, target.flags, &judged) {
        return None;
    }
    let reason = judge(hook, &scratch.packet, hash, target, &judged)?;
    if target.flags & EVALUATE != 0 {
        count::rule(target.rule, judged.now_ns, judged.bytes);
        scratch.verdict.would_drop = target.rule;
        return None;
    }
    desk.rule = target.rule;
    Some(reason)
}

/// What a segment of no known connection is.
#[inline(always)]
fn judge<H: Hook>(hook: &H, packet: &Packet, hash: u64, target: &GatedTarget, judged: &Judged<'_>) -> Option<Reason> {
    use tcp_flag::{ACK, FIN, RST, SYN};
    let now_ns = judged.now_ns;
    let gate = flows::GATE.get(0)?;
    let ends = Ends {
        remote: &packet.src,
        local: &packet.dst,
        ports: [packet.src_port, packet.dst_port],
        protocol: proto::TCP,
    };
    let desk = desk()?;
    // SAFETY: 20 of 64 bytes.
    if !unsafe { hook.load(u32::from(packet.l4_offset), (&raw mut desk.tcp).cast(), 20) } {
        return None;
    }
    if packet.tcp_flags & (SYN | ACK | FIN | RST) == SYN {
        let is_own = target.flags & EVALUATE == 0 && judged.settings.mode == mode::ENFORCE;
        if H::ANSWERS && COOKIES.load() != 0 && is_own && target.how & gate::COOKIES != 0 {
            match cookie(hook, packet, desk) {
                Listener::Cookie => return Some(Reason::SynCookie),
                Listener::Room => return None,
                Listener::None => {}
            }
        }
        return drop_first(gate, &ends, u32::from_be(desk.tcp[1]), now_ns);
    }
    if packet.tcp_flags & (SYN | ACK | RST) == ACK {
        let half_open = ends.hash(gate, u32::from_be(desk.tcp[2]));
        let is_ours = flows::set(&flows::HALF_OPEN, HALF_OPEN_SETS, half_open)?.knows(half_open, now_ns)
            || (COOKIES.load() != 0 && target.how & gate::COOKIES != 0 && is_cookie(packet, desk));
        if is_ours {
            // Who completes a handshake has the address that he says: a place in the table costs him a connection.
            flows::learn(&flows::FLOWS, FLOW_SETS, hash, now_ns, Life::HALF_OPEN, Seen::PROOF);
            return None;
        }
    }
    if gate.flows_from_ns == 0 || now_ns < gate.flows_from_ns {
        if target.how & gate::LOCAL == 0 {
            // Nobody can be asked about a connection that passes through.
            return None;
        }
        if is_of_a_socket(hook, packet, desk) {
            flows::learn(&flows::FLOWS, FLOW_SETS, hash, now_ns, Life::HALF_OPEN, Seen::PROOF);
            return None;
        }
    }
    Some(Reason::UnsolicitedTcp)
}

#[inline(always)]
fn drop_first(gate: &GateSettings, ends: &Ends<'_>, seq: u32, now_ns: u64) -> Option<Reason> {
    let hash = ends.hash(gate, seq);
    let word = flows::FIRST_SYNS.get_ptr_mut(hash as u32 & (FIRST_SYN_WORDS - 1))?;
    // SAFETY: an aligned word of the map. A CPU that writes it at the same time costs one client one repetition more.
    match first_syn(unsafe { word.read_volatile() }, hash, now_ns) {
        FirstSyn::Repeated => return None,
        // SAFETY: as above.
        FirstSyn::Remember(next) => unsafe { word.write_volatile(next) },
        FirstSyn::TooSoon => {}
    }
    Some(Reason::SynGate)
}

/// What the socket that a SYN is for says.
enum Listener {
    /// It is on the desk.
    Cookie,
    /// There is room for a real half-open connection, or there is one already.
    Room,
    /// Nobody listens, or the headers are not plain ones.
    None,
}

/// Asks the listener for a cookie.
#[inline(always)]
fn cookie<H: Hook>(hook: &H, packet: &Packet, desk: &mut Desk) -> Listener {
    /// `BPF_TCP_LISTEN`.
    const LISTEN: u32 = 10;
    let header_len = packet.payload_offset.wrapping_sub(packet.l4_offset);
    let ip_len: u32 = if packet.version == 4 { 20 } else { 40 };
    if u32::from(packet.l4_offset).wrapping_sub(l3(packet)) != ip_len || !(20..=60).contains(&header_len) {
        return Listener::None;
    }
    // At least 1 and at most 64, in a form that the verifier follows.
    let header_len = (count::opaque(usize::from(header_len) - 1) & 63) as u32 + 1;
    // SAFETY: at most 64 of 64 bytes.
    if !unsafe { hook.load(u32::from(packet.l4_offset), (&raw mut desk.tcp).cast(), header_len) } {
        return Listener::None;
    }
    write_ip(packet, desk);
    let sk = lookup(hook, packet, desk);
    if sk.is_null() {
        return Listener::None;
    }
    // SAFETY: not null; the verifier allows the common fields of a socket.
    let is_listener = unsafe { (*sk).state } == LISTEN;
    let mut given = -1;
    if is_listener {
        let (ip, tcp): (*mut c_void, *mut tcphdr) = ((&raw mut desk.ip).cast(), (&raw mut desk.tcp).cast());
        // SAFETY: a socket that is held, 40 bytes of the one header and at most 64 of the other.
        given = unsafe { bpf_tcp_gen_syncookie(sk.cast(), ip, 40, tcp, header_len) };
    }
    // SAFETY: the socket that was found, once.
    unsafe { bpf_sk_release(sk.cast()) };
    if given < 0 {
        return Listener::Room;
    }
    desk.cookie = given as u64;
    Listener::Cookie
}

/// Whether the acknowledgement on the desk is of a cookie of this machine.
#[inline(always)]
fn is_cookie(packet: &Packet, desk: &mut Desk) -> bool {
    write_ip(packet, desk);
    let tcp: *mut tcphdr = (&raw mut desk.tcp).cast();
    // SAFETY: 40 and 64 bytes, of which the helpers read 20 or 40 and 20.
    unsafe {
        if packet.version == 4 {
            bpf_tcp_raw_check_syncookie_ipv4((&raw mut desk.ip).cast::<iphdr>(), tcp) == 0
        } else {
            bpf_tcp_raw_check_syncookie_ipv6((&raw mut desk.ip).cast::<ipv6hdr>(), tcp) == 0
        }
    }
}

/// Whether a socket of this node, other than a listener, knows the packet's connection.
#[inline(always)]
fn is_of_a_socket<H: Hook>(hook: &H, packet: &Packet, desk: &mut Desk) -> bool {
    /// CLOSE and LISTEN of `enum { BPF_TCP_* }`.
    const NO_CONNECTION: u32 = 1 << 7 | 1 << 10;
    let sk = lookup(hook, packet, desk);
    if sk.is_null() {
        return false;
    }
    // SAFETY: not null; the verifier allows the common fields of a socket.
    let state = unsafe { (*sk).state };
    // SAFETY: the socket that was found, once.
    unsafe { bpf_sk_release(sk.cast()) };
    NO_CONNECTION & (1 << (state & 31)) == 0
}

/// The socket that the kernel would give the packet to; whoever gets one releases it.
#[inline(always)]
fn lookup<H: Hook>(hook: &H, packet: &Packet, desk: &mut Desk) -> *mut aya_ebpf::bindings::bpf_sock {
    /// The namespace of the device that the frame came by (`BPF_F_CURRENT_NETNS`).
    const CURRENT_NETNS: u64 = u64::MAX;
    let ports = ports(packet.src_port, packet.dst_port);
    let tuple: *mut bpf_sock_tuple = (&raw mut desk.tuple).cast();
    let size = if packet.version == 4 {
        desk.tuple[0] = packet.src.0[3];
        desk.tuple[1] = packet.dst.0[3];
        desk.tuple[2] = ports;
        12
    } else {
        desk.tuple[..4].copy_from_slice(&packet.src.0);
        desk.tuple[4..8].copy_from_slice(&packet.dst.0);
        desk.tuple[8] = ports;
        36
    };
    // SAFETY: 40 bytes, of which 12 or 36 are read.
    unsafe { bpf_skc_lookup_tcp(hook.context(), tuple, size, CURRENT_NETNS, 0) }
}

/// The packet's IP header as the cookie helpers want it.
#[inline(always)]
fn write_ip(packet: &Packet, desk: &mut Desk) {
    if packet.version == 4 {
        desk.ip[0] = u32::from_ne_bytes([0x45, 0, 0, 0]);
        desk.ip[3] = packet.src.0[3];
        desk.ip[4] = packet.dst.0[3];
    } else {
        desk.ip[0] = u32::from_ne_bytes([0x60, 0, 0, 0]);
        desk.ip[2..6].copy_from_slice(&packet.src.0);
        desk.ip[6..10].copy_from_slice(&packet.dst.0);
    }
}

/// Two ports in memory order.
#[inline(always)]
const fn ports(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_be_bytes(), second.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// Where the IP header begins.
#[inline(always)]
const fn l3(packet: &Packet) -> u32 {
    14 + packet.vlan_tags as u32 * 4
}

/// Turns the SYN whose cookie is on the desk into the SYN-ACK that carries it; whether it can be sent back.
///
/// The cookie has room for a segment size and for nothing else: no window scale, no selective acknowledgements.
#[inline(always)]
fn answer<H: Hook>(hook: &H) -> bool {
    /// What a sender may have on the way before the first acknowledgement of the stack tells the real window: the
    /// initial window of RFC 6928, twice.
    const WINDOW: u16 = 29_200;
    const TTL: u8 = 64;
    /// The shortest frame of Ethernet, without its check sequence.
    const SHORTEST: u32 = 60;
    if !H::ANSWERS || COOKIES.load() == 0 {
        return false;
    }
    let (Some(desk), Some(scratch)) = (desk(), crate::scratch()) else { return false };
    let packet = &scratch.packet;
    let wire_len = desk.bytes as u32;
    // A SYN without options leaves no room for one.
    let has_option = packet.payload_offset.wrapping_sub(packet.l4_offset) >= 24;
    let tcp_len: u8 = if has_option { 24 } else { 20 };
    let [mss_high, mss_low] = ((desk.cookie >> 32) as u16).to_be_bytes();
    let [window_high, window_low] = WINDOW.to_be_bytes();
    let seq = u32::from_be(desk.tcp[1]);
    desk.tcp[0] = ports(packet.dst_port, packet.src_port);
    desk.tcp[1] = (desk.cookie as u32).to_be();
    desk.tcp[2] = seq.wrapping_add(1).to_be();
    desk.tcp[3] = u32::from_ne_bytes([tcp_len << 2, tcp_flag::SYN | tcp_flag::ACK, window_high, window_low]);
    desk.tcp[4] = 0;
    desk.tcp[5] = if has_option { u32::from_ne_bytes([2, 4, mss_high, mss_low]) } else { 0 };

    let is_v4 = packet.version == 4;
    // Protocol and length of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
    let pseudo = u32::from_ne_bytes([0, proto::TCP, 0, tcp_len]);
    let addresses = if is_v4 {
        desk.ip[3] = packet.dst.0[3];
        desk.ip[4] = packet.src.0[3];
        sum::<8>((&raw mut desk.ip[3]).cast(), pseudo)
    } else {
        desk.ip[2..6].copy_from_slice(&packet.dst.0);
        desk.ip[6..10].copy_from_slice(&packet.src.0);
        sum::<32>((&raw mut desk.ip[2]).cast(), pseudo)
    };
    let [a, b] = fold(sum::<24>((&raw mut desk.tcp).cast(), addresses)).to_ne_bytes();
    desk.tcp[4] = u32::from_ne_bytes([a, b, 0, 0]);

    let at = l3(packet);
    let ip: *mut u8 = (&raw mut desk.ip).cast();
    let is_written = if is_v4 {
        desk.ip[0] = u32::from_ne_bytes([0x45, 0, 0, 20 + tcp_len]);
        // Do not fragment.
        desk.ip[1] = u32::from_ne_bytes([0, 0, 0x40, 0]);
        desk.ip[2] = u32::from_ne_bytes([TTL, proto::TCP, 0, 0]);
        let [a, b] = fold(sum::<20>(ip, 0)).to_ne_bytes();
        desk.ip[2] = u32::from_ne_bytes([TTL, proto::TCP, a, b]);
        // SAFETY: 20 of 40 bytes.
        unsafe { hook.store(at, ip, 20) }
    } else {
        desk.ip[0] = u32::from_ne_bytes([0x60, 0, 0, 0]);
        desk.ip[1] = u32::from_ne_bytes([0, tcp_len, proto::TCP, TTL]);
        // SAFETY: 40 of 40 bytes.
        unsafe { hook.store(at, ip, 40) }
    };
    let tcp: *mut u8 = (&raw mut desk.tcp).cast();
    // SAFETY: at most 24 of 64 bytes.
    let is_written = is_written && unsafe { hook.store(u32::from(packet.l4_offset), tcp, u32::from(tcp_len)) };
    // SAFETY: 12 of 12 bytes.
    let is_written = is_written && unsafe { hook.load(0, (&raw mut desk.macs).cast(), 12) };
    if !is_written {
        return false;
    }
    for i in 0..6 {
        desk.macs.swap(i, i + 6);
    }
    // SAFETY: 12 of 12 bytes.
    if !unsafe { hook.store(0, (&raw mut desk.macs).cast(), 12) } {
        return false;
    }
    let needed = u32::from(packet.l4_offset) + u32::from(tcp_len);
    let wanted = if needed < SHORTEST { SHORTEST } else { needed };
    wire_len <= wanted || hook.shorten(wire_len - wanted)
}

/// Adds `N` bytes, a multiple of four, to a ones' complement sum in memory order (RFC 1071).
#[inline(always)]
fn sum<const N: u32>(bytes: *mut u8, start: u32) -> u32 {
    // SAFETY: the callers' own memory of `N` bytes.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes.cast(), N, start) };
    sum as u32
}

/// The checksum of a sum.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
