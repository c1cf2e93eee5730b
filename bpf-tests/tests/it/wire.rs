//! The datapath under a flood on a real wire: every frame sent is passed or dropped, and clean connections go on.

use std::time::Duration;

use bpf_tests::generator::{Bounds, Generator, Pace, Sent, Vary};
use bpf_tests::http::{Client, Load, Server};
use bpf_tests::meter::{ATTACK_MAC, Counts, Direction, Meter};
use bpf_tests::packet::PacketBuilder;
use bpf_tests::skip_without_root;
use ftagent::engine::{Matches, Verdict};
use ftagent::xdp::counters;
use ftagent_common::abi::{InterfaceCounters, Reason};
use ftagent_common::packet::{proto, tcp_flag};

use crate::datapath::{Datapath, net, rule, set};
use crate::lab::{EDGE_MAC, EDGE_V4};

fn flood(datapath: &Datapath, template: &[u8], frames: u64, pace: Pace) -> Sent {
    let vary = Vary { sources: Some(net("64.0.0.0/3")), source_ports: Some(1024..=65535), ..Vary::default() };
    let bounds = Bounds::new(frames, Duration::from_secs(60));
    let device = datapath.lab.wan0.index;
    let sent = datapath
        .lab
        .wan
        .run(|| Generator::load(template, &vary, 3).expect("loads").send(device, pace, bounds))
        .expect("inside")
        .expect("sends");
    assert_eq!(sent.frames, frames);
    sent
}

fn syn() -> Vec<u8> {
    PacketBuilder::v4([64, 0, 0, 1], EDGE_V4).macs(ATTACK_MAC, EDGE_MAC).tcp(1024, 80, tcp_flag::SYN).build()
}

fn udp() -> Vec<u8> {
    PacketBuilder::v4([64, 0, 0, 1], EDGE_V4).macs(ATTACK_MAC, EDGE_MAC).udp(1024, 9).payload(&[0; 64]).build()
}

/// Frames passed and dropped, by the kernel's counters of reasons; those of classes must say the same.
fn verdicts(counters: &InterfaceCounters) -> (u64, u64) {
    let (mut passed, mut dropped) = (0, 0);
    for reason in Reason::ALL {
        let packets = counters.reasons[reason.index()].packets;
        *if reason.is_drop() { &mut dropped } else { &mut passed } += packets;
    }
    let by_class = counters.classes.iter().fold((0, 0), |(p, d), c| (p + c.passed.packets, d + c.dropped.packets));
    assert_eq!((passed, dropped), by_class);
    (passed, dropped)
}

#[test]
fn the_sum_of_the_verdicts_is_the_frames_sent() {
    if skip_without_root("the_sum_of_the_verdicts_is_the_frames_sent") {
        return;
    }
    let mut datapath = Datapath::new();
    let half = Matches::source(net("64.0.0.0/4"));
    datapath.apply(&set(vec![rule(1, half, Verdict::Drop)]));
    // Paced, because the stack behind the datapath is slower than the generator: the ring would lose most frames.
    let sent = flood(&datapath, &syn(), 600_000, Pace::PerSecond(300_000));
    let (passed, dropped) = verdicts(&counters::interface(&datapath.maps, 0).expect("counters"));
    let seconds = (sent.last - sent.first).as_secs_f64();
    println!(
        "600,000 frames in {seconds:.2} s: {passed} passed, {dropped} dropped, {} lost in the ring",
        sent.ring_dropped
    );
    assert_eq!(passed + dropped, sent.arrived());
    // Half of the sources are blocked, and as many coin flips are off by 2 % once in an age.
    let half = sent.arrived() as f64 / 2.0;
    assert!((dropped as f64 - half).abs() < half * 0.02, "{dropped} of {}", sent.arrived());
}

#[test]
fn a_limit_under_a_flood_drops_exactly_what_does_not_pass_and_clean_connections_go_on() {
    if skip_without_root("a_limit_under_a_flood_drops_exactly_what_does_not_pass_and_clean_connections_go_on") {
        return;
    }
    let mut datapath = Datapath::new();
    let udp_to_edge = Matches { protocol: Some(proto::UDP), ..Matches::target(net("10.99.0.1/32")) };
    datapath.apply(&set(vec![rule(1, udp_to_edge, Verdict::LimitPps { pps: 1_000, burst: 100 })]));
    let lab = &datapath.lab;
    let arrived = lab.edge.run(|| Meter::attach("edge0", Direction::In)).expect("inside").expect("a meter");
    let left = lab.wan.run(|| Meter::attach("wan0", Direction::Out)).expect("inside").expect("a meter");
    let server = Server::start(&lab.edge, (EDGE_V4, 80).into(), 4096).expect("a server");
    let load = Load { server: server.address(), rate: 100, keep_alive: false, timeout: Duration::from_secs(5) };
    let before = verdicts(&counters::interface(&datapath.maps, 0).expect("counters"));

    let client = Client::start(&lab.wan, load).expect("a client");
    let sent = flood(&datapath, &udp(), 300_000, Pace::PerSecond(150_000));
    let tally = client.finish().expect("inside");
    std::thread::sleep(Duration::from_millis(300));

    let after = verdicts(&counters::interface(&datapath.maps, 0).expect("counters"));
    let (passed, dropped) = (after.0 - before.0, after.1 - before.1);
    let (arrived, left) = (arrived.counts().expect("readable"), left.counts().expect("readable"));
    println!(
        "{sent:?}: {passed} passed, {dropped} dropped; behind it {arrived:?}; clean {left:?}, {tally:?}",
        tally = tally.answered
    );
    assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
    assert!(tally.answered > 50, "{}", tally.answered);
    assert_eq!(left, Counts { attack: 0, other: arrived.other }, "every clean frame got through");
    assert_eq!(sent.arrived(), arrived.attack + dropped, "sent = passed + dropped");
    assert_eq!(passed, arrived.attack + arrived.other, "what the datapath passed is what arrived behind it");
    // Two seconds at 1,000 a second and the burst; the coarse clock gives a little more or less.
    let expected = 1_000.0 * (sent.last - sent.first).as_secs_f64() + 100.0;
    assert!((arrived.attack as f64) < expected * 1.2 + 100.0, "{} passed, about {expected} may", arrived.attack);
}
