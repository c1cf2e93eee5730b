//! What no host can have sent, whoever it is: refused before any map is asked.
//!
//! The fail-safe sources of the operator come after this, so nothing here may match a packet of a real host: private
//! and documentation networks are not among these sources.

use super::{AddressFault, Malformed, Packet, tcp_flag};

/// IPv4 addresses (RFC 6890): "this network", loopback, multicast and reserved as sources; LAND. Addresses are in
/// memory order.
#[inline(always)]
pub(super) fn v4(src: u32, dst: u32) -> AddressFault {
    let (src, dst) = (u32::from_be(src), u32::from_be(dst));
    let first = src >> 24;
    if first == 0 || first == 127 || first >= 224 {
        // A host without an address yet speaks to groups: DHCP (RFC 2131), IGMP (RFC 3376).
        if src != 0 || dst >> 28 < 0xe {
            return AddressFault::Martian;
        }
    }
    if src == dst { AddressFault::Land } else { AddressFault::None }
}

/// IPv6 addresses (RFC 4291): unspecified, loopback and multicast as sources; LAND.
#[inline(always)]
pub(super) fn v6(packet: &Packet) -> AddressFault {
    let (src, dst) = (packet.src.0, packet.dst.0);
    let is_group = |word: u32| u32::from_be(word) >> 24 == 0xff;
    if is_group(src[0]) {
        return AddressFault::Martian;
    }
    if src[0] | src[1] | src[2] == 0 {
        let last = u32::from_be(src[3]);
        // The unspecified address asks groups whether an address is free (RFC 4862) and reports memberships (RFC 3590).
        if last == 1 || (last == 0 && !is_group(dst[0])) {
            return AddressFault::Martian;
        }
    }
    if src[3] == dst[3] && src[2] == dst[2] && src[1] == dst[1] && src[0] == dst[0] {
        return AddressFault::Land;
    }
    AddressFault::None
}

/// TCP flags that no stack sends, and port 0 (RFC 9293, RFC 6335).
#[inline(always)]
pub(super) fn tcp(packet: &Packet) -> Result<(), Malformed> {
    if has_flags_of_a_stack(packet.tcp_flags) { ports(packet) } else { Err(Malformed::ImpossibleFlags) }
}

/// Whether a stack sends these flags.
#[inline(always)]
pub(super) const fn has_flags_of_a_stack(flags: u8) -> bool {
    use tcp_flag::{ACK, FIN, RST, SYN};
    match flags & (SYN | FIN | RST) {
        // Without it a segment neither opens, nor ends, nor acknowledges.
        0 | FIN => flags & ACK != 0,
        SYN | RST => true,
        _ => false,
    }
}

/// Port 0 of either side.
#[inline(always)]
pub(super) fn ports(packet: &Packet) -> Result<(), Malformed> {
    if packet.src_port == 0 || packet.dst_port == 0 { Err(Malformed::PortZero) } else { Ok(()) }
}
