//! What leaves the node: the flows that are ours. Attached to the egress of watched interfaces; never drops.
//!
//! What may be learnt is what no stranger can make us send:
//!
//! * **Queries.** UDP towards a reflector's port, unless it leaves from a port that we serve (an answer to a forged
//!   question would be learnt). A forged question from a reflector's port to another port of ours is dropped at
//!   ingress before anything answers it. Echo requests.
//! * **Our SYNs**, for as long as they are repeated.
//! * **Connections**: segments with data or FIN, which no stack sends before the handshake is complete; segments of a
//!   flow that is known; and bare acknowledgements of a socket of ours that is connected. Other bare acknowledgements
//!   prove nothing: a stack sends them for half-open connections too (RFC 9293 section 3.10.7.4), and resets to
//!   everybody.
//! * **Our SYN-ACKs** only as half open: anybody causes them with a forged SYN. The client proves itself by
//!   acknowledging our sequence number, and the datapath learns the connection then. They have a table of their own, so
//!   that a flood of them pushes out nothing but each other.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use ftagent_common::abi::{FLOW_SETS, GateSettings, HALF_OPEN_SETS, Life, QUERY_SETS, Seen, has_port};
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Ip, proto, tcp_flag};

use crate::flows::{self, Ends};

/// tc: whoever comes next decides, also in a TCX chain (`TCX_NEXT`).
const TC_ACT_UNSPEC: i32 = -1;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ECHO: u8 = 8;
const ECHO6: u8 = 128;

#[classifier]
pub fn ftagent_egress(ctx: TcContext) -> i32 {
    // SAFETY: `data` and `data_end` of the context; the verifier checks every access.
    let frame = unsafe { Frame::from_raw(ctx.data(), ctx.data_end()) };
    _ = learn(&ctx, &frame);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn learn(ctx: &TcContext, frame: &Frame<'_>) -> Option<()> {
    let eth: [u8; 14] = frame.read(0)?;
    let mut ether_type = u16::from_be_bytes([eth[12], eth[13]]);
    let mut l3 = 14;
    for _ in 0..2 {
        if !matches!(ether_type, 0x8100 | 0x88a8 | 0x9100) {
            break;
        }
        let tag: [u8; 4] = frame.read(l3)?;
        ether_type = u16::from_be_bytes([tag[2], tag[3]]);
        l3 += 4;
    }
    let gate = flows::GATE.get(0)?;
    if gate.secret[0] == 0 {
        return None;
    }
    match ether_type {
        IPV4 => {
            let h: [u8; 20] = frame.read(l3)?;
            let header_len = usize::from(h[0] & 0x0f) * 4;
            if u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0 {
                return None;
            }
            let local = Ip::v4([h[12], h[13], h[14], h[15]]);
            let remote = Ip::v4([h[16], h[17], h[18], h[19]]);
            // 0 stands for a buffer above 64 KiB.
            let stated = usize::from(u16::from_be_bytes([h[2], h[3]]));
            let room = if stated == 0 { usize::from(u16::MAX) } else { stated.saturating_sub(header_len) };
            transport(ctx, frame, gate, (&remote, &local), h[9], (l3 + header_len, room))
        }
        IPV6 => {
            let h: [u8; 40] = frame.read(l3)?;
            let address = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&h[at..at + 16]);
                Ip::v6(octets)
            };
            let (local, remote) = (address(8), address(24));
            let stated = usize::from(u16::from_be_bytes([h[4], h[5]]));
            let room = if stated == 0 { usize::from(u16::MAX) } else { stated };
            // Extension headers are rare in what a node sends; such a flow is learnt by no one.
            transport(ctx, frame, gate, (&remote, &local), h[6], (l3 + 40, room))
        }
        _ => None,
    }
}

/// Learns from the transport header at `at`, which has `room` bytes with all that follows.
#[inline(always)]
fn transport(
    ctx: &TcContext,
    frame: &Frame<'_>,
    gate: &GateSettings,
    (remote, local): (&Ip, &Ip),
    protocol: u8,
    (at, room): (usize, usize),
) -> Option<()> {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let mut ends = Ends { remote, local, ports: [0; 2], protocol };
    match protocol {
        proto::TCP => {
            let h: [u8; 20] = frame.read(at)?;
            ends.ports = [u16::from_be_bytes([h[2], h[3]]), u16::from_be_bytes([h[0], h[1]])];
            let has_data = room > usize::from(h[12] >> 4) * 4;
            let seq = u32::from_be_bytes([h[4], h[5], h[6], h[7]]);
            segment(ctx, gate, &ends, (h[13], seq, has_data), now_ns)
        }
        proto::UDP => {
            let h: [u8; 4] = frame.read(at)?;
            ends.ports = [u16::from_be_bytes([h[2], h[3]]), u16::from_be_bytes([h[0], h[1]])];
            if !has_port(&gate.reflectors, ends.ports[0]) || has_port(&gate.served, ends.ports[1]) {
                return None;
            }
            query(gate, &ends, Life::QUERY, now_ns)
        }
        proto::ICMP | proto::ICMPV6 => {
            let h: [u8; 4] = frame.read(at)?;
            if h[0] != if protocol == proto::ICMP { ECHO } else { ECHO6 } {
                return None;
            }
            query(gate, &ends, Life::ECHO, now_ns)
        }
        _ => None,
    }
}

#[inline(always)]
fn query(gate: &GateSettings, ends: &Ends<'_>, life: Life, now_ns: u64) -> Option<()> {
    let hash = ends.hash(gate, 0);
    flows::learn(&flows::QUERIES, QUERY_SETS, hash, now_ns, life, Seen::PROOF);
    Some(())
}

#[inline(always)]
fn segment(
    ctx: &TcContext,
    gate: &GateSettings,
    ends: &Ends<'_>,
    (flags, seq, has_data): (u8, u32, bool),
    now_ns: u64,
) -> Option<()> {
    use tcp_flag::{ACK, FIN, RST, SYN};
    if flags & RST != 0 {
        return None;
    }
    if flags & (SYN | ACK) == SYN | ACK {
        let hash = ends.hash(gate, seq.wrapping_add(1));
        flows::learn(&flows::HALF_OPEN, HALF_OPEN_SETS, hash, now_ns, Life::HALF_OPEN, Seen::PROOF);
        return Some(());
    }
    let hash = ends.hash(gate, 0);
    let is_syn = flags & SYN != 0;
    let is_closing = flags & FIN != 0;
    let is_proved = is_syn || has_data || is_closing || is_connected(ctx);
    let life = if is_syn { Life::OPENING } else { Life::CONNECTION };
    // A SYN is data in that it begins anew.
    let seen = Seen { is_closing, has_data: has_data || is_syn, is_proved };
    flows::learn(&flows::FLOWS, FLOW_SETS, hash, now_ns, life, seen);
    Some(())
}

/// Whether the packet was sent by a connected TCP socket of this node.
#[inline(always)]
fn is_connected(ctx: &TcContext) -> bool {
    /// ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK and CLOSING of `enum { BPF_TCP_* }`.
    const CONNECTED: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
    // SAFETY: a field of the context.
    let sk: *mut bpf_sock = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return false;
    }
    // SAFETY: the socket that owns the packet, not null; the verifier allows its common fields.
    let state = unsafe { (*sk).state };
    CONNECTED & (1 << (state & 31)) != 0
}
