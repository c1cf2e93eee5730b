//! Frames built with `etherparse`, which shares no code with the parser, cut and bent by hand.

use etherparse::{EtherType, IpNumber, Ipv6RawExtHeader, PacketBuilder, SingleVlanHeader, VlanId};
use proptest::prelude::*;

use super::*;

/// Without the checks of what hosts can have sent: most frames here come from nobody.
fn parsed(bytes: &[u8]) -> Parsed {
    let mut packet = Packet::EMPTY;
    match parse_into(&Frame::new(bytes), bytes.len(), Checks(Checks::TUNNELS), &mut packet) {
        Kind::Ip | Kind::Tunnel => Parsed::Ip(packet),
        Kind::NotIp => Parsed::NotIp(packet.ether_type),
        Kind::Malformed(why) => Parsed::Malformed(why),
    }
}

fn packet(bytes: &[u8]) -> Packet {
    match parsed(bytes) {
        Parsed::Ip(packet) => packet,
        other => panic!("{other:?}"),
    }
}

fn udp4() -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4([192, 0, 2, 1], [198, 51, 100, 2], 64)
        .udp(53, 4_444)
        .write(&mut frame, b"payload")
        .expect("a frame");
    frame
}

fn tcp6(extensions: usize) -> Vec<u8> {
    // Ethernet, IPv6, a chain of hop-by-hop style options headers written by hand, TCP.
    let mut transport = Vec::new();
    PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(1_000, 80, 7, 512).syn().write(&mut transport, b"").expect("a frame");
    let tcp = transport.split_off(40);
    let mut chain = Vec::new();
    for left in (0..extensions).rev() {
        let next = if left == 0 { IpNumber::TCP } else { IpNumber::IPV6_DESTINATION_OPTIONS };
        let header = Ipv6RawExtHeader::new_raw(next, &[0; 6]).expect("a header");
        header.write(&mut chain).expect("written");
    }
    let mut frame = [&[1; 6][..], &[2; 6], &[0x86, 0xdd], &transport].concat();
    frame[14 + 6] = if extensions == 0 { 6 } else { 60 };
    let payload = u16::try_from(chain.len() + tcp.len()).expect("short");
    frame[14 + 4..14 + 6].copy_from_slice(&payload.to_be_bytes());
    [frame, chain, tcp].concat()
}

fn with_vlans(frame: &[u8], tags: usize) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for left in (0..tags).rev() {
        tagged.extend(if left == 0 { [0x81, 0x00] } else { [0x88, 0xa8] });
        let ether_type = EtherType(0);
        let header = SingleVlanHeader { vlan_id: VlanId::try_new(7).expect("an id"), ether_type, ..Default::default() };
        tagged.extend(&header.to_bytes()[..2]);
    }
    tagged.extend(&frame[12..]);
    tagged
}

#[test]
fn a_datagram_is_what_its_headers_say() {
    let p = packet(&udp4());
    assert_eq!((p.src, p.dst), (Ip::v4([192, 0, 2, 1]), Ip::v4([198, 51, 100, 2])));
    assert_eq!((p.src_port, p.dst_port, p.ttl, p.protocol, p.version), (53, 4_444, 64, proto::UDP, 4));
    assert_eq!((p.ip_len, p.payload_offset), (20 + 8 + 7, 14 + 20 + 8));
    assert_eq!(p.class, TrafficClass::Reflector, "from port 53");
}

#[test]
fn two_tags_are_looked_through_and_a_third_is_too_deep() {
    for tags in 0..=2 {
        let p = packet(&with_vlans(&udp4(), tags));
        assert_eq!((usize::from(p.vlan_tags), p.src_port), (tags, 53));
    }
    assert_eq!(parsed(&with_vlans(&udp4(), 3)), Parsed::Malformed(Malformed::TooDeep));
}

#[test]
fn eight_extension_headers_are_looked_through_and_a_ninth_is_too_deep() {
    for extensions in 0..=MAX_EXTENSION_HEADERS {
        let p = packet(&tcp6(extensions));
        assert_eq!((p.dst_port, p.class, p.version), (80, TrafficClass::TcpSyn, 6), "{extensions} headers");
    }
    assert_eq!(parsed(&tcp6(MAX_EXTENSION_HEADERS + 1)), Parsed::Malformed(Malformed::TooDeep));
}

#[test]
fn later_fragments_carry_no_ports() {
    let table = [(0x2000u16, Fragment::First, 53), (0x2001, Fragment::Middle, 0), (0x0001, Fragment::Last, 0)];
    for (flags, expected, port) in table {
        let mut frame = udp4();
        frame[14 + 6..14 + 8].copy_from_slice(&flags.to_be_bytes());
        let p = packet(&frame);
        assert_eq!((p.fragment, p.src_port, p.class), (expected, port, TrafficClass::Fragment), "{flags:#06x}");
    }
}

#[test]
fn fragments_that_hide_a_header_are_evasions() {
    let mut tcp = Vec::new();
    PacketBuilder::ethernet2([1; 6], [2; 6])
        .ipv4([192, 0, 2, 1], [198, 51, 100, 2], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut tcp, b"")
        .expect("a frame");
    let mut second = tcp.clone();
    second[14 + 6..14 + 8].copy_from_slice(&1u16.to_be_bytes());
    assert_eq!(parsed(&second), Parsed::Malformed(Malformed::TinyFragment), "laid over the flags");
    let mut first = tcp;
    first[14 + 6..14 + 8].copy_from_slice(&0x2000u16.to_be_bytes());
    first[14 + 2..14 + 4].copy_from_slice(&28u16.to_be_bytes());
    assert_eq!(parsed(&first), Parsed::Malformed(Malformed::TinyFragment), "eight bytes of TCP");
}

#[test]
fn padding_is_never_read_as_a_header() {
    let mut frame = udp4();
    // The datagram says that it ends before its ports; the frame goes on.
    frame[14 + 2..14 + 4].copy_from_slice(&24u16.to_be_bytes());
    assert_eq!(parsed(&frame), Parsed::Malformed(Malformed::Truncated));
}

#[test]
fn contradictions_are_refused() {
    let bent = |at: usize, byte: u8| {
        let mut frame = udp4();
        frame[at] = byte;
        parsed(&frame)
    };
    assert_eq!(bent(14, 0x44), Parsed::Malformed(Malformed::BadHeader), "a header of 16 bytes");
    assert_eq!(bent(14, 0x65), Parsed::Malformed(Malformed::BadHeader), "version 6 in EtherType 0x0800");
    assert_eq!(bent(14 + 3, 10), Parsed::Malformed(Malformed::BadHeader), "a total length below the header's");
    assert_eq!(bent(14 + 2, 9), Parsed::Malformed(Malformed::Truncated), "a total length beyond the frame");
    assert_eq!(bent(12, 0x12), Parsed::NotIp(0x1200));
}

#[test]
fn flags_have_their_class() {
    use tcp_flag::{ACK, FIN, PSH, RST, SYN, URG};
    let table = [
        (SYN, TrafficClass::TcpSyn),
        (SYN | ACK, TrafficClass::TcpSynAck),
        (ACK, TrafficClass::TcpAck),
        (PSH | ACK, TrafficClass::TcpAck),
        (RST, TrafficClass::TcpRst),
        (RST | ACK, TrafficClass::TcpRst),
        (FIN | ACK, TrafficClass::TcpFin),
        (0, TrafficClass::TcpOdd),
        (FIN, TrafficClass::TcpOdd),
        (SYN | FIN, TrafficClass::TcpOdd),
        (FIN | PSH | URG, TrafficClass::TcpOdd),
    ];
    for (flags, class) in table {
        assert_eq!(l4::tcp_class(flags), class, "{flags:#04x}");
    }
}

#[test]
fn cut_at_any_byte_a_frame_is_refused_or_the_same() {
    for frame in [udp4(), tcp6(0), tcp6(3), with_vlans(&tcp6(8), 2)] {
        let whole = packet(&frame);
        for len in 0..frame.len() {
            let cut = parsed(&frame[..len]);
            assert!(!matches!(cut, Parsed::Ip(_)), "{len} of {} bytes: {cut:?}", frame.len());
            // The same cut by a snap length: what can be read is read as in the whole frame.
            if let Parsed::Ip(seen) = parse(&Frame::new(&frame[..len]), frame.len()) {
                assert_eq!(seen, whole, "{len} of {} bytes", frame.len());
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_read_outside(bytes in prop::collection::vec(any::<u8>(), 0..300), ip in any::<bool>()) {
        let mut frame = bytes;
        if frame.len() >= 14 {
            let ether_type = if ip { [0x08, 0x00] } else { [0x86, 0xdd] };
            frame[12..14].copy_from_slice(&ether_type);
        }
        if let Parsed::Ip(p) = parsed(&frame) {
            prop_assert!(usize::from(p.payload_offset) <= frame.len());
            prop_assert!(p.l4_offset <= p.payload_offset);
        }
    }

    #[test]
    fn what_etherparse_reads_we_read(
        src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(), ttl in any::<u8>(), ports in any::<[u16; 2]>(),
        payload in prop::collection::vec(any::<u8>(), 0..200), tcp in any::<bool>(), tags in 0usize..3,
    ) {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4(src, dst, ttl);
        let written = if tcp {
            builder.tcp(ports[0], ports[1], 1, 1).ack(2).write(&mut frame, &payload)
        } else {
            builder.udp(ports[0], ports[1]).write(&mut frame, &payload)
        };
        prop_assert!(written.is_ok());
        let frame = with_vlans(&frame, tags);
        let theirs = etherparse::SlicedPacket::from_ethernet(&frame).expect("they built it");
        let ours = packet(&frame);
        prop_assert_eq!(ours.src, Ip::v4(src));
        prop_assert_eq!(ours.dst, Ip::v4(dst));
        prop_assert_eq!(ours.ttl, ttl);
        let their_ports = match theirs.transport.expect("there is one") {
            etherparse::TransportSlice::Tcp(t) => [t.source_port(), t.destination_port()],
            etherparse::TransportSlice::Udp(u) => [u.source_port(), u.destination_port()],
            other => panic!("{other:?}"),
        };
        prop_assert_eq!([ours.src_port, ours.dst_port], their_ports);
        prop_assert_eq!(&frame[usize::from(ours.payload_offset)..], &payload[..]);
    }
}

#[test]
fn addresses_are_ordered_word_by_word() {
    let words = [0, 1, 0x0100_0000, u32::MAX];
    let all = || words.iter().flat_map(|a| words.iter().map(move |b| [*a, 7, *b, *b ^ *a]));
    for (one, other) in all().flat_map(|one| all().map(move |other| (one, other))) {
        assert_eq!(Ip(one).cmp(&Ip(other)), one.cmp(&other), "{one:?} {other:?}");
    }
}
