//! Every frame is read back by `etherparse`, which shares no code with the builder.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::*;
use crate::checksum::{Verdict, verify};

fn checked(builder: &PacketBuilder) -> Vec<u8> {
    let frame = builder.build();
    SlicedPacket::from_ethernet(&frame).expect("a right frame");
    frame
}

#[test]
fn every_transport_has_right_lengths_and_checksums() {
    let v4 = PacketBuilder::v4([192, 0, 2, 1], [198, 51, 100, 7]);
    let v6 = PacketBuilder::v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]);
    for base in [v4, v6] {
        for builder in [
            base.clone().udp(1, 2),
            base.clone().tcp(1, 2, 2).tcp_options(&[2, 4, 5, 0xb4, 1]),
            base.clone().icmp(128, 0),
        ] {
            for payload in [&b""[..], b"odd", b"even"] {
                let frame = checked(&builder.clone().payload(payload));
                assert_eq!(verify(&frame), Verdict::Right, "{frame:02x?}");
            }
        }
    }
}

#[test]
fn options_and_tags_lie_where_they_belong() {
    let frame = checked(
        &PacketBuilder::v4([192, 0, 2, 1], [198, 51, 100, 7])
            .vlan(QINQ, 5)
            .vlan(VLAN, 6)
            .options(&[7, 3, 4, 1, 1])
            .udp(9, 10),
    );
    let sliced = SlicedPacket::from_ethernet(&frame).expect("a right frame");
    assert_eq!(sliced.vlan_ids().iter().map(|id| id.value()).collect::<Vec<_>>(), [5, 6]);
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("not IPv4") };
    assert_eq!(ip.header().options(), [7, 3, 4, 1, 1, 0, 0, 0]);
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("not UDP") };
    assert_eq!((udp.source_port(), udp.destination_port()), (9, 10));
}

#[test]
fn extension_headers_form_a_chain_that_ends_in_the_transport() {
    let frame = checked(
        &PacketBuilder::v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2])
            .extension(extension::HOP_BY_HOP, &[5, 2, 0, 0])
            .extension(extension::DESTINATION, &[1, 20])
            .fragment(FragmentPosition { offset: 0, more: true, id: 77 })
            .udp(53, 4242)
            .payload(&[0; 32]),
    );
    let sliced = SlicedPacket::from_ethernet(&frame).expect("a right frame");
    let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("not IPv6") };
    assert_eq!(ip.extensions().clone().into_iter().count(), 3);
    assert!(ip.is_payload_fragmented());
}

#[test]
fn a_cut_frame_still_states_its_whole_length() {
    let frame = PacketBuilder::v4([192, 0, 2, 1], [198, 51, 100, 7]).udp(1, 2).payload(&[0; 100]).truncate(40).build();
    assert_eq!(frame.len(), 40);
    assert_eq!(u16::from_be_bytes([frame[16], frame[17]]), 128);
}
