use ftagent_common::packet::{Fragment, proto, tcp_flag};
use ftagent_common::vocab::{AttackFamily as F, TrafficClass};

use super::classify;
use super::payload::Shape;
use super::testing::{Flood, clean_web};
use crate::engine::window::Seen;

/// Classifies a flood of `n` samples and checks family, subtype and whether it is sure.
fn check(name: &str, samples: &[Seen], family: F, subtype: Option<&str>, sure: bool) {
    let verdict = classify(samples, &[], 50_000.0);
    let text = verdict.explanation.join("\n");
    assert_eq!((verdict.family, verdict.subtype.as_deref()), (family, subtype), "{name}\n{text}");
    assert_eq!(verdict.confidence >= 0.5, sure, "{name}: {}\n{text}", verdict.confidence);
    assert!((0.0..=1.0).contains(&verdict.confidence), "{name}");
}

fn tcp(class: TrafficClass, flags: u8) -> Flood {
    Flood { class, flags, ..Flood::syn() }
}

fn answers(family: F, port: u16) -> Flood {
    Flood {
        class: TrafficClass::Reflector,
        sources: Some(800),
        ttls: (40, 120),
        src_port: Some(port),
        dst_port: None,
        shape: Shape::Answer(family),
        // Reflectors are asked the same.
        prefix: Some(7),
        lengths: Some((400, 500)),
        ..Flood::udp()
    }
}

#[test]
fn a_flood_of_each_family_is_named() {
    use tcp_flag::{ACK, FIN, PSH, RST, SYN, URG};
    let other = Flood { class: TrafficClass::OtherIp, protocol: 99, flags: 0, ..Flood::syn() };
    let table: Vec<(&str, Flood, F, Option<&str>)> = vec![
        ("syn", Flood::syn(), F::SynFlood, None),
        ("syn, few sources", Flood { sources: Some(3), ..Flood::syn() }, F::SynFlood, None),
        ("ack", tcp(TrafficClass::TcpAck, ACK), F::AckFlood, None),
        ("push", Flood { payload: 100, ..tcp(TrafficClass::TcpAck, ACK | PSH) }, F::TcpFlood, Some("psh_ack")),
        ("rst", tcp(TrafficClass::TcpRst, RST), F::RstFlood, None),
        ("syn-ack", tcp(TrafficClass::TcpSynAck, SYN | ACK), F::SynAckFlood, None),
        (
            "syn-ack reflection",
            Flood {
                sources: Some(400),
                src_port: Some(443),
                dst_port: None,
                ..tcp(TrafficClass::TcpSynAck, SYN | ACK)
            },
            F::SynAckFlood,
            Some("reflection"),
        ),
        ("fin", tcp(TrafficClass::TcpOdd, FIN), F::TcpFlood, Some("fin")),
        ("fin with ack", tcp(TrafficClass::TcpFin, FIN | ACK), F::TcpFlood, Some("fin")),
        ("xmas", tcp(TrafficClass::TcpOdd, FIN | PSH | URG), F::TcpFlood, Some("xmas")),
        ("null", tcp(TrafficClass::TcpOdd, 0), F::TcpFlood, Some("null")),
        ("udp", Flood::udp(), F::UdpFlood, None),
        ("udp, one source", Flood { sources: Some(1), ..Flood::udp() }, F::UdpFlood, None),
        ("udp, random ports", Flood { dst_port: None, ..Flood::udp() }, F::UdpFlood, Some("random_ports")),
        (
            "udp, bots with one payload",
            Flood { sources: Some(300), ttls: (40, 120), prefix: Some(7), ..Flood::udp() },
            F::UdpFlood,
            None,
        ),
        (
            "udp, one socket to every port",
            Flood { sources: Some(1), src_port: Some(5_555), dst_port: None, ..Flood::udp() },
            F::UdpFlood,
            Some("random_ports"),
        ),
        (
            "dns queries",
            Flood { class: TrafficClass::DnsQuery, dst_port: Some(53), shape: Shape::DnsQuery, ..Flood::udp() },
            F::DnsFlood,
            None,
        ),
        (
            "icmp",
            Flood { class: TrafficClass::Icmp, protocol: proto::ICMP, icmp_type: 8, flags: 0, ..Flood::syn() },
            F::IcmpFlood,
            Some("echo_request"),
        ),
        (
            "gre",
            Flood { class: TrafficClass::Gre, protocol: proto::GRE, flags: 0, ip_len: 540, ..Flood::syn() },
            F::GreFlood,
            None,
        ),
        ("protocol 99", other, F::ProtocolFlood, Some("other")),
        (
            "esp",
            Flood { class: TrafficClass::Esp, protocol: proto::ESP, flags: 0, ..Flood::syn() },
            F::ProtocolFlood,
            Some("esp"),
        ),
        (
            "fragments",
            Flood { class: TrafficClass::Fragment, fragment: Fragment::Middle, shape: Shape::Other, ..Flood::udp() },
            F::FragmentFlood,
            None,
        ),
    ];
    for (name, flood, family, subtype) in &table {
        check(name, &flood.samples(500), *family, *subtype, true);
    }
}

#[test]
fn answers_of_every_reflected_service_are_named() {
    let services = F::ALL.iter().filter(|f| f.is_amplification());
    for family in services {
        let port = (1..=u16::MAX)
            .find(|p| ftagent_common::services::amplification_of_port(*p) == Some(*family))
            .unwrap_or(47_808);
        check(family.as_str(), &answers(*family, port).samples(400), *family, None, true);
        let unknown = Flood { shape: Shape::Other, ..answers(*family, port) };
        check(&format!("{family}, payload unknown"), &unknown.samples(400), *family, None, true);
    }
}

#[test]
fn a_few_samples_name_the_family_already() {
    for n in [12, 20, 50] {
        check("syn", &Flood::syn().samples(n), F::SynFlood, None, true);
        check("udp", &Flood::udp().samples(n.max(24)), F::UdpFlood, None, true);
        check("dns answers", &answers(F::DnsAmplification, 53).samples(n), F::DnsAmplification, None, true);
    }
}

/// The requests of many web clients, whole connections each.
fn crowd(n: usize) -> Vec<Seen> {
    let mut all = clean_web(n);
    let others = Flood { sources: Some(4_000), ..Flood::syn() }.samples(n);
    all.iter_mut().enumerate().for_each(|(i, s)| s.src = others[i / 6].src);
    all
}

#[test]
fn ordinary_traffic_is_not_sure() {
    let clients = Flood { sources: Some(200), ttls: (40, 120), lengths: Some((60, 1_400)), ..Flood::udp() };
    let mut players = clients.samples(400);
    // A game server: players keep their ports.
    players.iter_mut().for_each(|s| s.src_port = 20_000 + (s.src.0[3] % 1_000) as u16);
    check("game server", &players, F::UdpFlood, None, false);
    let mut quic = clients.samples(400);
    quic.iter_mut().for_each(|s| (s.src_port, s.shape) = (443, Shape::Application));
    check("quic answers", &quic, F::UdpFlood, None, false);
    check("a crowd", &crowd(400), F::HttpFlood, None, false);
    let mut download = clean_web(400);
    download.iter_mut().for_each(|s| {
        (s.class, s.tcp_flags, s.ip_len, s.payload_len, s.shape) =
            (TrafficClass::TcpAck, tcp_flag::ACK, 1_500, 1_448, Shape::Other);
        s.src_port = 443;
        s.dst_port = 40_000;
    });
    check("download", &download, F::AckFlood, None, false);
    let scan = Flood { sources: Some(1), dst_port: None, ..Flood::syn() };
    check("port scan", &scan.samples(400), F::SynFlood, Some("port_scan"), false);
    let from_one_port = Flood { src_port: Some(36_050), ..scan.clone() };
    let fin = Flood { class: TrafficClass::TcpOdd, flags: tcp_flag::FIN, ..from_one_port.clone() };
    check("fin scan", &fin.samples(400), F::TcpFlood, Some("port_scan"), false);
    let ack = Flood { class: TrafficClass::TcpAck, flags: tcp_flag::ACK, ..from_one_port };
    check("ack scan", &ack.samples(400), F::AckFlood, None, false);
    let udp =
        Flood { sources: Some(1), src_port: Some(36_050), dst_port: None, ip_len: 28, payload: 0, ..Flood::udp() };
    check("udp scan", &udp.samples(400), F::UdpFlood, Some("random_ports"), false);
    check("nothing", &[], F::Unknown, None, false);
}

#[test]
fn a_mixture_names_its_parts() {
    let mut samples = Flood::syn().samples(200);
    samples.extend(Flood::udp().samples(200));
    samples.extend(Flood { class: TrafficClass::Icmp, protocol: proto::ICMP, ..Flood::udp() }.samples(200));
    let verdict = classify(&samples, &[], 50_000.0);
    assert_eq!(verdict.family, F::MultiVector);
    let mut parts: Vec<F> = verdict.vectors.iter().map(|v| v.family).collect();
    parts.sort_unstable();
    assert_eq!(parts, [F::UdpFlood, F::SynFlood, F::IcmpFlood]);
    assert!(verdict.confidence > 0.8, "{}", verdict.confidence);
}

#[test]
fn fragments_of_large_answers_belong_to_the_amplification() {
    let mut samples = answers(F::DnsAmplification, 53).samples(200);
    samples.iter_mut().for_each(|s| s.fragment = Fragment::First);
    let later = Flood { class: TrafficClass::Fragment, fragment: Fragment::Last, sources: Some(800), ..Flood::udp() };
    samples.extend(later.samples(400));
    check("dns with fragments", &samples, F::DnsAmplification, None, true);
}

#[test]
fn a_verdict_on_forged_sources_gives_reasons() {
    let forged = classify(&Flood::syn().samples(500), &[], 50_000.0);
    assert!(forged.spoofed);
    assert!(forged.explanation.iter().any(|l| l.contains("TTL")), "{:?}", forged.explanation);
    let bots = Flood { sources: Some(300), ttls: (40, 120), ..Flood::udp() };
    assert!(!classify(&bots.samples(500), &[], 50_000.0).spoofed);
    assert!(!classify(&answers(F::NtpAmplification, 123).samples(500), &[], 50_000.0).spoofed);
}

#[test]
fn weights_count_and_not_samples() {
    let mut samples = Flood::syn().samples(300);
    samples.iter_mut().for_each(|s| s.weight = 1);
    let mut udp = Flood::udp().samples(100);
    udp.iter_mut().for_each(|s| s.weight = 1_000);
    samples.extend(udp);
    assert_eq!(classify(&samples, &[], 50_000.0).family, F::UdpFlood);
}
