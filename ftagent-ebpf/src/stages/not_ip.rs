//! ARP, other frames that are not IP, and IPv6's neighbour discovery: they pass, up to a rate per CPU.

use ftagent_common::abi::Reason;
use ftagent_common::packet::{Fragment, Packet, Tunnel, proto};

use super::Judged;
use crate::maps::Scratch;

/// Whether the packet is what ARP is to IPv4: from this link, since no router forwards a hop limit of 255 unchanged
/// (RFC 4861 section 6.1.1). Without it no rule against ICMPv6 could leave the node reachable. Whoever is at the end of
/// a tunnel writes 255 as he likes, and fragments are refused by hosts (RFC 6980).
#[inline(always)]
pub(super) fn is_neighbour_discovery(packet: &Packet) -> bool {
    packet.protocol == proto::ICMPV6
        && packet.ttl == 255
        && matches!(packet.icmp_type, 133..=137)
        && packet.version == 6
        && matches!((packet.tunnel, packet.fragment), (Tunnel::None, Fragment::Whole))
}

/// Passes the frame if the policer has room.
#[inline(always)]
pub(super) fn limit(scratch: &mut Scratch, judged: &Judged<'_>) -> Reason {
    match judged.settings.not_ip.conform(scratch.cpu.not_ip_state, judged.now_ns, judged.bytes) {
        Some(state) => {
            scratch.cpu.not_ip_state = state;
            Reason::NotIp
        }
        None => Reason::NotIpLimit,
    }
}
