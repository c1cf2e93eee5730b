//! Ethernet and VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).

use super::{Malformed, Packet};
use crate::frame::Frame;

pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
/// The EtherType that switches used for outer tags before 802.1ad.
const QINQ_OLD: u16 = 0x9100;

/// A customer's tag and a provider's; a third one is `TooDeep`.
pub const MAX_VLAN_TAGS: u8 = 2;

const fn is_vlan(ether_type: u16) -> bool {
    matches!(ether_type, VLAN | QINQ | QINQ_OLD)
}

/// Where the network header begins behind so many tags.
#[inline(always)]
pub(super) const fn end(vlan_tags: u8) -> u16 {
    14 + 4 * vlan_tags as u16
}

/// Where what follows the last tag begins.
#[inline(always)]
pub(super) fn parse(frame: &Frame<'_>, packet: &mut Packet) -> Result<usize, Malformed> {
    let header: [u8; 14] = frame.read(0).ok_or(Malformed::Truncated)?;
    packet.ether_type = u16::from_be_bytes([header[12], header[13]]);
    let mut next = 14;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(packet.ether_type) {
            return Ok(next);
        }
        let tag: [u8; 4] = frame.read(next).ok_or(Malformed::Truncated)?;
        packet.ether_type = u16::from_be_bytes([tag[2], tag[3]]);
        packet.vlan_tags += 1;
        next += 4;
    }
    if is_vlan(packet.ether_type) { Err(Malformed::TooDeep) } else { Ok(next) }
}
