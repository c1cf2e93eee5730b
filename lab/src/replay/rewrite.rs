//! Gives a recorded frame new addresses and keeps its checksums as right, or as wrong, as they were (RFC 1624).
//!
//! Checksums are changed by the difference that the new addresses make. That also works for a first fragment, whose
//! checksum covers bytes that are in other frames. What is inside ICMP errors and tunnels is left alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ftagent_common::packet::{Fragment, Packet, proto};
use ipnet::IpNet;

use crate::checksum::{Places, fill, locate};

/// What a frame gets.
#[derive(Clone, Debug)]
pub struct Rewrite {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    /// The destination of IPv4 packets; `None` leaves it.
    pub target_v4: Option<Ipv4Addr>,
    /// The destination of IPv6 packets; `None` leaves it.
    pub target_v6: Option<Ipv6Addr>,
    /// Sources move into the prefix of their family and keep their host bits; families without a prefix stay.
    pub sources: Vec<IpNet>,
}

/// Rewrites `frame` in place; false if it is no IP frame that can be parsed.
///
/// A frame shorter than `wire_len` is padded with zeros first, and then its checksums are computed anew: those that it
/// came with covered bytes that are not in the file.
pub(super) fn rewrite(frame: &mut Vec<u8>, wire_len: usize, new: &Rewrite) -> bool {
    let was_cut = frame.len() < wire_len;
    frame.resize(wire_len.max(frame.len()), 0);
    let Some((packet, places)) = locate(frame) else { return false };
    frame[0..6].copy_from_slice(&new.dst_mac);
    frame[6..12].copy_from_slice(&new.src_mac);
    let (src_at, dst_at) = if packet.version == 4 { (12, 16) } else { (8, 24) };
    let src = new.sources.iter().find_map(|net| moved(IpAddr::from(packet.src), *net));
    let dst = match packet.version {
        4 => new.target_v4.map(IpAddr::V4),
        _ => new.target_v6.map(IpAddr::V6),
    };
    for (at, address) in [(src_at, src), (dst_at, dst)] {
        if let Some(address) = address {
            replace(frame, &packet, &places, places.l3 + at, address);
        }
    }
    if was_cut {
        fill(frame);
    }
    true
}

/// The address with the bits of the prefix replaced; nothing if it is of the other family.
fn moved(address: IpAddr, net: IpNet) -> Option<IpAddr> {
    Some(match (address, net) {
        (IpAddr::V4(a), IpNet::V4(net)) => IpAddr::V4(net.network() | (a & net.hostmask())),
        (IpAddr::V6(a), IpNet::V6(net)) => IpAddr::V6(net.network() | (a & net.hostmask())),
        _ => return None,
    })
}

fn replace(frame: &mut [u8], packet: &Packet, places: &Places, at: usize, address: IpAddr) {
    let new = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let old = frame[at..at + new.len()].to_vec();
    frame[at..at + new.len()].copy_from_slice(&new);
    if packet.version == 4 {
        adjust(frame, places.l3 + 10, &old, &new);
    }
    if let Some(sum_at) = address_sum(frame, packet, places) {
        adjust(frame, sum_at, &old, &new);
        if packet.protocol == proto::UDP && frame[sum_at..sum_at + 2] == [0, 0] {
            frame[sum_at..sum_at + 2].fill(0xff);
        }
    }
}

/// Where a checksum lies that covers the addresses.
fn address_sum(frame: &[u8], packet: &Packet, places: &Places) -> Option<usize> {
    let offset = match (packet.protocol, packet.version) {
        (proto::TCP, _) => 16,
        (proto::UDP, _) => 6,
        (proto::ICMPV6, 6) => 2,
        _ => return None,
    };
    let at = match packet.fragment {
        Fragment::Whole => places.transport_sum?,
        Fragment::First => places.transport.start + offset,
        Fragment::Middle | Fragment::Last => return None,
    };
    let present = frame.get(at..at + 2)?;
    let absent = packet.protocol == proto::UDP && packet.version == 4 && present == [0, 0];
    (!absent && at + 2 <= places.transport.end).then_some(at)
}

/// HC' = ~(~HC + ~m + m') (RFC 1624, equation 3), for every word of `old` and `new`.
fn adjust(frame: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    let word = |bytes: &[u8]| u32::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let mut sum = !word(&frame[at..]) & 0xffff;
    for (old, new) in old.chunks_exact(2).zip(new.chunks_exact(2)) {
        sum += (!word(old) & 0xffff) + word(new);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[at..at + 2].copy_from_slice(&(!sum as u16).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{Verdict, verify};
    use crate::packet::{FragmentPosition, PacketBuilder, extension};

    fn new_addresses() -> Rewrite {
        Rewrite {
            src_mac: [2, 0, 0, 0, 0, 9],
            dst_mac: [2, 0, 0, 0, 0, 8],
            target_v4: Some([10, 99, 0, 1].into()),
            target_v6: Some([0xfd99, 0, 0, 0, 0, 0, 0, 1].into()),
            sources: vec!["198.18.0.0/15".parse().expect("a prefix"), "2001:db8:5::/48".parse().expect("a prefix")],
        }
    }

    fn v4() -> PacketBuilder {
        PacketBuilder::v4([192, 0, 2, 77], [203, 0, 113, 5])
    }

    fn v6() -> PacketBuilder {
        PacketBuilder::v6([0x2001, 0xdb8, 1, 2, 3, 4, 5, 6], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 5])
    }

    #[test]
    fn right_checksums_stay_right_and_wrong_ones_wrong() {
        for (name, builder) in [
            ("udp", v4().udp(1, 2).payload(b"abc")),
            ("tcp", v4().vlan(0x8100, 9).options(&[7, 3, 4]).tcp(1, 2, 2).payload(b"abcd")),
            ("icmp", v4().icmp(8, 0).payload(b"ping")),
            ("udp6", v6().extension(extension::HOP_BY_HOP, &[5, 2, 0, 0]).udp(1, 2).payload(b"abc")),
            ("tcp6", v6().tcp(1, 2, 2)),
            ("icmp6", v6().icmp(128, 0).payload(b"ping")),
        ] {
            let mut frame = builder.build();
            let len = frame.len();
            assert!(rewrite(&mut frame, len, &new_addresses()), "{name}");
            assert_eq!(verify(&frame), Verdict::Right, "{name}");
            let mut bent = builder.build();
            bent[len - 1] ^= 0x55;
            assert!(rewrite(&mut bent, len, &new_addresses()), "{name}");
            assert_eq!(verify(&bent), Verdict::WrongTransport, "{name}");
        }
    }

    #[test]
    fn addresses_are_the_new_ones_and_sources_stay_apart() {
        let mut frame = v4().udp(1, 2).build();
        let len = frame.len();
        assert!(rewrite(&mut frame, len, &new_addresses()));
        assert_eq!(frame[0..12], [2, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 9]);
        assert_eq!(frame[26..34], [198, 18, 2, 77, 10, 99, 0, 1]);
    }

    #[test]
    fn a_first_fragment_keeps_the_checksum_of_the_whole_datagram() {
        let payload: Vec<u8> = (0..64).collect();
        let mut whole = v4().udp(1, 2).payload(&payload).build();
        // The same datagram cut after 32 bytes of payload, with the checksum of the whole.
        let position = FragmentPosition { offset: 0, more: true, id: 1 };
        let mut first = v4().udp(1, 2).payload(&payload[..32]).fragment(position).build();
        first[38..42].copy_from_slice(&whole[38..42]);
        let (whole_len, first_len) = (whole.len(), first.len());
        assert!(rewrite(&mut whole, whole_len, &new_addresses()));
        assert!(rewrite(&mut first, first_len, &new_addresses()));
        assert_eq!(first[40..42], whole[40..42]);
    }

    #[test]
    fn a_cut_frame_is_padded_to_its_stated_length_with_right_checksums() {
        let builder = v4().udp(1, 2).payload(&[7; 200]);
        let whole = builder.build().len();
        let mut frame = builder.truncate(60).build();
        assert!(rewrite(&mut frame, whole, &new_addresses()));
        assert_eq!(frame.len(), whole);
        assert_eq!(verify(&frame), Verdict::Right);
    }

    #[test]
    fn no_checksum_stays_no_checksum() {
        let mut frame = v4().udp(1, 2).build();
        frame[40..42].fill(0);
        let len = frame.len();
        assert!(rewrite(&mut frame, len, &new_addresses()));
        assert_eq!(frame[40..42], [0, 0]);
        assert_eq!(verify(&frame), Verdict::Right);
    }
}
