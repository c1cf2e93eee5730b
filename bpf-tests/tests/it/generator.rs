//! Sent is what arrives, to the frame, and what arrives is what was asked for.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use bpf_tests::checksum::{Verdict, verify};
use bpf_tests::clock::now;
use bpf_tests::generator::{Bounds, Generator, Pace, Vary};
use bpf_tests::meter::{ATTACK_MAC, Counts, Direction, Meter, Then, XdpCounter};
use bpf_tests::packet::PacketBuilder;
use bpf_tests::{skip_without_root, veth};
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Packet, Parsed, parse, tcp_flag};

use crate::lab::{EDGE_MAC, EDGE_V4, EDGE_V6, Lab};

const LONG: Duration = Duration::from_secs(60);

fn syn() -> Vec<u8> {
    PacketBuilder::v4([198, 18, 0, 1], EDGE_V4)
        .macs(ATTACK_MAC, EDGE_MAC)
        .tcp(1234, 80, tcp_flag::SYN)
        .tcp_options(&[2, 4, 5, 0xb4])
        .build()
}

fn bounds(frames: u64) -> Bounds<'static> {
    Bounds::new(frames, LONG)
}

#[test]
fn a_million_frames_sent_are_a_million_received() {
    if skip_without_root("a_million_frames_sent_are_a_million_received") {
        return;
    }
    let lab = Lab::new();
    let sink = lab.edge.run(|| XdpCounter::attach("edge0", Then::Drop)).expect("inside").expect("native XDP on veth");
    let vary = Vary {
        sources: Some("198.18.0.0/15".parse().expect("a prefix")),
        source_ports: Some(1024..=65535),
        ..Vary::default()
    };
    let before = veth::stats(&lab.edge, &lab.edge0).expect("statistics");
    let sent = lab
        .wan
        .run(|| Generator::load(&syn(), &vary, 1).expect("loads").send(lab.wan0.index, Pace::Full, bounds(1_000_000)))
        .expect("inside")
        .expect("sends");
    let seconds = (sent.last - sent.first).as_secs_f64();
    println!("{} frames in {seconds:.3} s, {} lost in the ring", sent.frames, sent.ring_dropped);
    assert_eq!(sent.frames, 1_000_000);
    assert_eq!(sink.counts().expect("readable"), Counts { attack: sent.arrived(), other: 0 });
    let after = veth::stats(&lab.edge, &lab.edge0).expect("statistics");
    assert_eq!(after.rx_packets - before.rx_packets, sent.arrived());
}

#[test]
fn a_paced_run_keeps_its_rate() {
    if skip_without_root("a_paced_run_keeps_its_rate") {
        return;
    }
    let lab = Lab::new();
    let sink = lab.edge.run(|| XdpCounter::attach("edge0", Then::Drop)).expect("inside").expect("native XDP on veth");
    let sent = lab
        .wan
        .run(|| {
            let mut generator = Generator::load(&syn(), &Vary::default(), 1).expect("loads");
            generator.send(lab.wan0.index, Pace::PerSecond(50_000), bounds(25_000))
        })
        .expect("inside")
        .expect("sends");
    let seconds = (sent.last - sent.first).as_secs_f64();
    println!("{} frames in {seconds:.3} s, {} lost in the ring", sent.frames, sent.ring_dropped);
    assert_eq!(sent.frames, 25_000);
    assert_eq!(sink.counts().expect("readable").attack, sent.arrived());
    // Never faster than asked for; how much slower depends on what else the machine does.
    assert!(seconds >= 0.499, "{seconds}");
}

#[test]
fn a_paced_run_can_be_fast() {
    if skip_without_root("a_paced_run_can_be_fast") {
        return;
    }
    let lab = Lab::new();
    let counter =
        lab.edge.run(|| XdpCounter::attach("edge0", Then::Drop)).expect("inside").expect("native XDP on veth");
    let sent = lab
        .wan
        .run(|| {
            let mut generator = Generator::load(&syn(), &Vary::default(), 1).expect("loads");
            generator.send(lab.wan0.index, Pace::PerSecond(200_000), bounds(300_001))
        })
        .expect("inside")
        .expect("sends");
    let seconds = (sent.last - sent.first).as_secs_f64();
    println!("{} frames in {seconds:.3} s, {} lost in the ring", sent.frames, sent.ring_dropped);
    assert_eq!(sent.frames, 300_001);
    assert_eq!(counter.counts().expect("readable"), Counts { attack: sent.arrived(), other: 0 });
    assert!(seconds >= 1.49, "{seconds}");
}

#[test]
fn a_run_ends_at_its_time_limit() {
    if skip_without_root("a_run_ends_at_its_time_limit") {
        return;
    }
    let lab = Lab::new();
    let _sink = lab.edge.run(|| XdpCounter::attach("edge0", Then::Drop)).expect("inside").expect("native XDP on veth");
    let started = now();
    let limits = Bounds::new(u64::MAX, Duration::from_millis(200));
    let sent = lab
        .wan
        .run(|| Generator::load(&syn(), &Vary::default(), 1).expect("loads").send(lab.wan0.index, Pace::Full, limits))
        .expect("inside")
        .expect("sends");
    assert!(sent.frames > 0);
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// Frames as a socket behind XDP receives them.
fn capture(lab: &Lab, template: &[u8], vary: &Vary, frames: u64) -> Vec<Vec<u8>> {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
    };
    let _receiver =
        lab.edge.run(|| XdpCounter::attach("edge0", Then::Pass)).expect("inside").expect("native XDP on veth");
    let socket = lab
        .edge
        .run(|| socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll))
        .expect("inside")
        .expect("a packet socket");
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).expect("a large buffer");
    lab.wan
        .run(|| {
            Generator::load(template, vary, 7).expect("loads").send(
                lab.wan0.index,
                Pace::PerSecond(20_000),
                bounds(frames),
            )
        })
        .expect("inside")
        .expect("sends");
    let mut received = Vec::new();
    let mut buffer = vec![0; 2048];
    while let Ok(len) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        if buffer[6..12] == ATTACK_MAC {
            received.push(buffer[..len].to_vec());
        }
    }
    received
}

fn packets(frames: &[Vec<u8>]) -> Vec<Packet> {
    frames
        .iter()
        .map(|frame| match parse(&Frame::new(frame), frame.len()) {
            Parsed::Ip(packet) => packet,
            other => panic!("{other:?}: {frame:02x?}"),
        })
        .collect()
}

fn v4() -> PacketBuilder {
    PacketBuilder::v4([198, 18, 0, 1], EDGE_V4).macs(ATTACK_MAC, EDGE_MAC)
}

fn v6() -> PacketBuilder {
    PacketBuilder::v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], EDGE_V6).macs(ATTACK_MAC, EDGE_MAC)
}

#[test]
fn what_varies_stays_within_its_range_and_every_checksum_is_right() {
    if skip_without_root("what_varies_stays_within_its_range_and_every_checksum_is_right") {
        return;
    }
    let lab = Lab::new();
    let ports = Vary { source_ports: Some(1000..=1009), destination_ports: Some(1..=65535), ..Vary::default() };
    let rows = [
        ("udp", v4().udp(5, 6).payload(b"odd length!"), Vary { payload: true, ip_id: true, ..ports.clone() }),
        ("tcp", v4().vlan(0x8100, 3).tcp(5, 6, tcp_flag::SYN).tcp_options(&[2, 4, 5, 0xb4]), ports.clone()),
        ("options", v4().options(&[7, 3, 4]).udp(5, 6), ports.clone()),
        ("icmp", v4().icmp(8, 0).payload(&[7; 56]), Vary { payload: true, ..Vary::default() }),
        ("gre", v4().protocol(47).payload(&[0; 32]), Vary::default()),
        ("udp6", v6().udp(5, 6).payload(&[9; 30]), Vary { payload: true, ..ports.clone() }),
        ("tcp6", v6().extension(0, &[5, 2, 0, 0]).tcp(5, 6, tcp_flag::ACK), ports),
        ("icmp6", v6().icmp(128, 0).payload(&[7; 16]), Vary::default()),
    ];
    for (name, builder, vary) in rows {
        let template = builder.build();
        let version6 = template[12..14] == [0x86, 0xdd];
        let net: ipnet::IpNet = if version6 { "2001:db8:7::/48" } else { "198.18.0.0/15" }.parse().expect("a prefix");
        let vary = Vary { sources: Some(net), ttls: Some(30..=33), ..vary };
        let frames = capture(&lab, &template, &vary, 500);
        assert_eq!(frames.len(), 500, "{name}");
        // The kernel takes the tag out of the frame on its way to the socket.
        let whole = template.len() - if name == "tcp" { 4 } else { 0 };
        assert!(frames.iter().all(|f| f.len() == whole), "{name}");
        let sums = frames.iter().map(|f| verify(f)).collect::<HashSet<_>>();
        let expected = if name == "gre" { Verdict::NotChecked } else { Verdict::Right };
        assert_eq!(sums, [expected].into(), "{name}");
        let packets = packets(&frames);
        assert!(packets.iter().all(|p| net.contains(&IpAddr::from(p.src))), "{name}");
        assert!(packets.iter().map(|p| p.src).collect::<HashSet<_>>().len() > 480, "{name}");
        assert_eq!(packets.iter().map(|p| p.ttl).collect::<HashSet<_>>(), (30..=33).collect(), "{name}");
        if let Some(ports) = &vary.source_ports {
            assert_eq!(packets.iter().map(|p| p.src_port).collect::<HashSet<_>>(), ports.clone().collect(), "{name}");
            assert!(packets.iter().map(|p| p.dst_port).collect::<HashSet<_>>().len() > 480, "{name}");
        }
        if vary.payload {
            let at = usize::from(packets[0].payload_offset);
            assert!(frames.iter().map(|f| f[at..at + 4].to_vec()).collect::<HashSet<_>>().len() > 480, "{name}");
        }
        if vary.ip_id {
            assert!(frames.iter().map(|f| f[18..20].to_vec()).collect::<HashSet<_>>().len() > 480, "{name}");
        }
    }
}

#[test]
fn a_carpet_covers_every_address_of_its_prefix() {
    if skip_without_root("a_carpet_covers_every_address_of_its_prefix") {
        return;
    }
    let lab = Lab::new();
    let net: ipnet::IpNet = "10.99.0.0/26".parse().expect("a prefix");
    let vary = Vary { destinations: Some(net), ..Vary::default() };
    let frames = capture(&lab, &v4().udp(1, 2).payload(b"carpet").build(), &vary, 64 * 8);
    assert!(frames.iter().all(|f| verify(f) == Verdict::Right));
    let packets = packets(&frames);
    let seen: HashSet<IpAddr> = packets.iter().map(|p| IpAddr::from(p.dst)).collect();
    assert_eq!(seen.len(), 64);
    assert!(seen.iter().all(|a| net.contains(a)));
}

#[test]
fn a_template_that_cannot_vary_is_refused() {
    if skip_without_root("a_template_that_cannot_vary_is_refused") {
        return;
    }
    let rows = [
        (v4().icmp(8, 0).build(), Vary { source_ports: Some(1..=2), ..Vary::default() }),
        (v4().udp(1, 2).build(), Vary { payload: true, ..Vary::default() }),
        (v4().udp(1, 2).build(), Vary { sources: Some("2001:db8::/32".parse().expect("a prefix")), ..Vary::default() }),
        (vec![0; 60], Vary::default()),
    ];
    for (template, vary) in rows {
        assert!(Generator::load(&template, &vary, 1).is_err(), "{vary:?}");
    }
}

#[test]
fn attack_and_clean_frames_on_one_wire_are_told_apart_exactly() {
    if skip_without_root("attack_and_clean_frames_on_one_wire_are_told_apart_exactly") {
        return;
    }
    let lab = Lab::new();
    let xdp = lab.edge.run(|| XdpCounter::attach("edge0", Then::Pass)).expect("inside").expect("native XDP on veth");
    let arrived = lab.edge.run(|| Meter::attach("edge0", Direction::In)).expect("inside").expect("a meter");
    let left = lab.wan.run(|| Meter::attach("wan0", Direction::Out)).expect("inside").expect("a meter");
    let target = std::net::SocketAddr::from((EDGE_V4, 4000));
    let socket = lab.wan.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).expect("inside").expect("a socket");
    let sent = std::thread::scope(|scope| {
        let attack = scope.spawn(|| {
            lab.wan.run(|| {
                let mut generator = Generator::load(&syn(), &Vary::default(), 1).expect("loads");
                generator.send(lab.wan0.index, Pace::PerSecond(50_000), bounds(20_000))
            })
        });
        for _ in 0..1_000 {
            socket.send_to(b"clean", target).expect("sends");
            std::thread::sleep(Duration::from_micros(200));
        }
        attack.join().expect("no panic").expect("inside").expect("sends")
    });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(left.counts().expect("readable"), Counts { attack: 0, other: 1_000 });
    let expected = Counts { attack: sent.arrived(), other: 1_000 };
    assert_eq!(xdp.counts().expect("readable"), expected);
    assert_eq!(arrived.counts().expect("readable"), expected);
}
