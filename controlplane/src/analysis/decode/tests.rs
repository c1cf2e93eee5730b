use super::super::mark::Mark;
use super::super::names::name_of;
use super::*;

const UDP: [u8; 12] = [0x04, 0xd2, 0, 80, 0, 12, 0, 0, b'a', b'b', b'c', b'd'];

fn v4(protocol: u8, total: u16, fragment: u16, rest: &[u8]) -> Vec<u8> {
    let ([t, u], [f, g]) = (total.to_be_bytes(), fragment.to_be_bytes());
    let header = [0x45, 0, t, u, 0, 1, f, g, 64, protocol, 0, 0, 192, 0, 2, 1, 203, 0, 113, 5];
    [&header, rest].concat()
}

fn v6(next: u8, len: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, len, next, 63];
    for last in [1, 2] {
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    [&packet[..], rest].concat()
}

fn ethernet(types: &[u8], rest: &[u8]) -> Vec<u8> {
    [&[2; 12], types, rest].concat()
}

#[test]
fn what_the_parser_refuses_is_described_as_far_as_its_headers_go() {
    let plain = v4(17, 32, 0, &UDP);
    let inner = v4(17, 32, 0, &UDP);
    let gre = v4(47, 56, 0, &[&[0, 0, 8, 0], &inner[..]].concat());
    let bad_inner = v4(47, 56, 0, &[&[0, 0, 8, 0], &v4(17, 999, 0, &UDP)[..]].concat());
    let fragment = v6(44, 16, &[17, 0, 0, 9, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]);
    let ip = [8, 0];
    // Name, link, frame, bytes on the wire beyond it; reading, protocol, source port, payload, VLANs.
    type Row = (&'static str, u32, Vec<u8>, u32, Reading, &'static str, Option<u16>, u32, Vec<u16>);
    let table: Vec<Row> = vec![
        ("plain", 1, ethernet(&ip, &plain), 0, Reading::Ip, "udp", Some(1_234), 4, vec![]),
        ("padded", 1, ethernet(&ip, &[&plain[..], &[0; 18]].concat()), 0, Reading::Ip, "udp", Some(1_234), 4, vec![]),
        ("raw", 101, plain.clone(), 0, Reading::Ip, "udp", Some(1_234), 4, vec![]),
        ("cut in the payload", 101, plain[..30].to_vec(), 2, Reading::Ip, "udp", Some(1_234), 4, vec![]),
        (
            "two tags",
            1,
            ethernet(&[0x88, 0xa8, 0xf0, 5, 0x81, 0, 0, 9, 8, 0], &plain),
            0,
            Reading::Ip,
            "udp",
            Some(1_234),
            4,
            vec![5, 9],
        ),
        (
            "three tags",
            1,
            ethernet(&[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 8, 0], &plain),
            0,
            Reading::Malformed(Malformed::TooDeep),
            "udp",
            Some(1_234),
            0,
            vec![1, 2, 3],
        ),
        ("gre", 1, ethernet(&ip, &gre), 0, Reading::Ip, "udp", Some(1_234), 4, vec![]),
        (
            "gre with a damaged packet",
            1,
            ethernet(&ip, &bad_inner),
            0,
            Reading::Malformed(Malformed::Truncated),
            "gre",
            None,
            36,
            vec![],
        ),
        (
            "longer than it is",
            101,
            v4(17, 999, 0, &UDP),
            0,
            Reading::Malformed(Malformed::Truncated),
            "udp",
            Some(1_234),
            0,
            vec![],
        ),
        ("a later fragment", 101, v4(17, 32, 0x00b9, &UDP), 0, Reading::Ip, "udp", None, 12, vec![]),
        (
            "a later fragment that is cut",
            101,
            v4(17, 999, 0x00b9, &UDP),
            0,
            Reading::Malformed(Malformed::Truncated),
            "udp",
            None,
            0,
            vec![],
        ),
        ("version 6", 229, v6(17, 12, &UDP), 0, Reading::Ip, "udp", Some(1_234), 4, vec![]),
        ("a fragment of version 6", 229, fragment, 0, Reading::Ip, "udp", None, 8, vec![]),
        ("half a header", 1, ethernet(&ip, &plain[..10]), 22, Reading::Unreadable, "-", None, 0, vec![]),
        ("half an address", 1, vec![2; 9], 0, Reading::Unreadable, "-", None, 0, vec![]),
        ("arp", 1, ethernet(&[8, 6], &[0; 28]), 0, Reading::NotIp, "arp", None, 0, vec![]),
        ("of no name", 1, ethernet(&[0x99, 0x99], &[]), 0, Reading::NotIp, "ethertype_9999", None, 0, vec![]),
        ("802.11", 105, plain.clone(), 0, Reading::Undecoded, "-", None, 0, vec![]),
        ("nothing", 1, vec![], 0, Reading::Unreadable, "-", None, 0, vec![]),
        ("nothing, raw", 101, vec![], 0, Reading::Unreadable, "-", None, 0, vec![]),
    ];
    let mark = Mark::default();
    let mut decoder = Decoder::default();
    for (name, link, head, beyond, reading, protocol, port, payload, vlans) in table {
        let captured = u32::try_from(head.len()).expect("short");
        let wire_len = captured + beyond;
        let (number, time_ns, interface) = (1, None, 0);
        let frame = Frame { number, time_ns, interface, link, head: &head, captured, wire_len, mark: &mark };
        let decoded = decoder.decode(&frame);
        assert_eq!(decoded.reading, reading, "{name}");
        assert_eq!(name_of(&decoded).as_deref().unwrap_or("-"), protocol, "{name}");
        assert_eq!(decoded.has_ports().then_some(decoded.packet.src_port), port, "{name}");
        assert_eq!((decoded.payload_len, decoded.vlans()), (payload, &vlans[..]), "{name}");
        assert!(decoded.payload.len() <= decoded.payload_len as usize, "{name}");
        if decoded.has_addresses() {
            let (v4, v6) = ("192.0.2.1 203.0.113.5", "2001:db8::1 2001:db8::2");
            let expected = if decoded.packet.version == 4 { v4 } else { v6 };
            assert_eq!(format!("{} {}", decoded.src(), decoded.dst()), expected, "{name}");
        }
    }
}
