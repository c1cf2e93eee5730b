use super::*;
use AttackFamily as F;
use TrafficClass as C;

/// Traffic of so many sources and ports, changed by `with`.
fn features(packets: u64, sources: u32, ports: u16, with: impl FnOnce(&mut Features)) -> Features {
    let mut features = Features { seen: packets, packets, bytes: packets * 100, ..Features::default() };
    (0..sources).for_each(|n| features.sources.add(&n));
    (0..ports).for_each(|n| features.ports.add(&n));
    with(&mut features);
    features
}

fn of(class: C, packets: u64) -> impl FnOnce(&mut Features) {
    move |f| f.classes[class.index()] = packets
}

fn udp(packets: u64, sent: u64) -> impl FnOnce(&mut Features) {
    move |f| {
        f.classes[C::Udp.index()] = packets;
        (f.plain_udp, f.sent) = (packets, sent);
    }
}

fn answers(family: F, answers: u64, others: u64, bytes: u64) -> impl FnOnce(&mut Features) {
    move |f| {
        f.classes[C::Reflector.index()] = answers + others;
        f.answers[family as usize] = answers;
        f.from_ports[family as usize] = others;
        f.reflected_bytes = (answers + others) * bytes;
    }
}

fn web(requests: u64, lines: u64, hellos: u64, data: u64) -> impl FnOnce(&mut Features) {
    move |f| {
        f.classes[C::TcpAck.index()] = 900;
        f.classes[C::TcpSyn.index()] = 100;
        (f.requests, f.header_lines, f.hellos, f.tcp_data) = (requests, lines, hellos, data);
    }
}

#[test]
fn every_family_is_told_and_ordinary_traffic_is_unknown() {
    let table: Vec<(&str, Features, Option<f64>, F)> = vec![
        ("nothing", features(0, 0, 0, |_| ()), None, F::Unknown),
        ("syn", features(1_000, 900, 1, of(C::TcpSyn, 1_000)), Some(1.0), F::SynFlood),
        ("syn of one", features(1_000, 1, 1, of(C::TcpSyn, 1_000)), Some(1.0), F::SynFlood),
        ("a scan", features(1_000, 1, 900, of(C::TcpSyn, 1_000)), Some(1.0), F::Unknown),
        ("few", features(19, 9, 1, of(C::TcpSyn, 19)), Some(0.01), F::Unknown),
        ("slow", features(1_000, 900, 1, of(C::TcpSyn, 1_000)), Some(100.0), F::Unknown),
        ("no time passed", features(1_000, 900, 1, of(C::TcpSyn, 1_000)), None, F::SynFlood),
        ("syn-ack", features(1_000, 900, 9, of(C::TcpSynAck, 1_000)), Some(1.0), F::SynAckFlood),
        ("rst", features(1_000, 900, 9, of(C::TcpRst, 1_000)), Some(1.0), F::RstFlood),
        ("odd flags", features(1_000, 900, 9, of(C::TcpOdd, 1_000)), Some(1.0), F::TcpFlood),
        ("ack", features(1_000, 900, 9, of(C::TcpAck, 1_000)), Some(1.0), F::AckFlood),
        ("a download", features(1_000, 1, 1, web(1, 0, 0, 800)), Some(1.0), F::Unknown),
        (
            "answered",
            features(1_000, 1, 1, |f| {
                f.classes[C::TcpAck.index()] = 1_000;
                f.sent = 500;
            }),
            Some(1.0),
            F::Unknown,
        ),
        ("requests", features(1_000, 50, 1, web(400, 0, 0, 500)), Some(1.0), F::HttpFlood),
        ("greetings", features(1_000, 50, 1, web(0, 0, 300, 500)), Some(1.0), F::HttpFlood),
        ("slow requests", features(1_000, 50, 1, web(10, 200, 0, 300)), Some(600.0), F::HttpFlood),
        ("udp", features(1_000, 900, 1, udp(1_000, 0)), Some(1.0), F::UdpFlood),
        ("a call", features(1_000, 1, 1, udp(1_000, 900)), Some(1.0), F::Unknown),
        ("too fast for a call", features(1_000, 1, 1, udp(1_000, 900)), Some(0.05), F::UdpFlood),
        ("dns queries", features(1_000, 900, 1, of(C::DnsQuery, 1_000)), Some(1.0), F::DnsFlood),
        ("icmp", features(1_000, 1, 0, of(C::Icmp, 1_000)), Some(1.0), F::IcmpFlood),
        ("icmp of version 6", features(1_000, 1, 0, of(C::Icmpv6, 1_000)), Some(1.0), F::IcmpFlood),
        ("gre", features(1_000, 1, 0, of(C::Gre, 1_000)), Some(1.0), F::GreFlood),
        ("esp", features(1_000, 1, 0, of(C::Esp, 1_000)), Some(1.0), F::ProtocolFlood),
        ("fragments", features(1_000, 50, 0, of(C::Fragment, 1_000)), Some(1.0), F::FragmentFlood),
        (
            "dns answers",
            features(1_000, 300, 90, answers(F::DnsAmplification, 900, 100, 400)),
            Some(1.0),
            F::DnsAmplification,
        ),
        (
            "large ones of few",
            features(1_000, 2, 9, answers(F::DnsAmplification, 1_000, 0, 3_000)),
            Some(1.0),
            F::DnsAmplification,
        ),
        (
            "a resolver's client",
            features(1_000, 2, 90, answers(F::DnsAmplification, 1_000, 0, 120)),
            Some(1.0),
            F::Unknown,
        ),
        (
            "many, of no known form",
            features(1_000, 50, 9, answers(F::ArdAmplification, 0, 1_000, 120)),
            Some(1.0),
            F::ArdAmplification,
        ),
        (
            "one, of no known form",
            features(1_000, 1, 1, answers(F::ArdAmplification, 0, 1_000, 120)),
            Some(1.0),
            F::UdpFlood,
        ),
        (
            "many answers, slowly",
            features(500, 20, 1, answers(F::SsdpAmplification, 500, 0, 300)),
            Some(40.0),
            F::SsdpAmplification,
        ),
        (
            "large answers in fragments",
            features(3_000, 100, 9, |f| {
                answers(F::DnsAmplification, 1_000, 0, 1_400)(f);
                f.classes[C::Reflector.index()] = 0;
                f.classes[C::Fragment.index()] = 3_000;
                (f.reflected_firsts, f.udp_fragments) = (1_000, 2_000);
            }),
            Some(1.0),
            F::DnsAmplification,
        ),
        (
            "two at once",
            features(1_000, 900, 9, |f| {
                f.classes[C::TcpSyn.index()] = 600;
                f.classes[C::Icmp.index()] = 400;
            }),
            Some(1.0),
            F::MultiVector,
        ),
        (
            "one and a little of another",
            features(1_000, 900, 9, |f| {
                f.classes[C::TcpSyn.index()] = 900;
                f.classes[C::Icmp.index()] = 100;
            }),
            Some(1.0),
            F::SynFlood,
        ),
    ];
    for (name, features, secs, expected) in table {
        let vector = vector(&features, secs);
        assert_eq!(vector.family, expected, "{name}: {:?}", vector.why);
        assert!(vector.parts.iter().all(|part| part.share <= 1.0), "{name}: {:?}", vector.parts);
        assert!(features.packets == 0 || !vector.why.is_empty(), "{name}");
    }
}
