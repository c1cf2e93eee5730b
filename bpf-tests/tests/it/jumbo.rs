//! Interfaces of jumbo frames: which of the two XDP programs is in the path, and that it sees the whole frame.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use bpf_tests::generator::{Bounds, Pace};
use bpf_tests::netns::Netns;
use bpf_tests::packet::PacketBuilder;
use bpf_tests::replay::{Recording, Timing, send};
use bpf_tests::skip_without_root;
use ftagent::engine::{Matches, Verdict};
use ftagent::xdp::counters;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::program::AttachChoice;
use ftagent::xdp::samples::Samples;
use ftagent::xdp::variant::{FRAGS, LINEAR};
use ftagent_common::abi::{Counter, Reason};
use ftagent_common::vocab::AttachMode;

use crate::datapath::{Datapath, attach, net, rule, set};
use crate::lab::{EDGE_MAC, EDGE_V4, Lab, WAN_MAC, WAN_V4};

const PORT: u16 = 9_999;
const BAD: [u8; 4] = [10, 99, 0, 66];
/// An IP datagram of this size lies in three buffers of a page.
const PAYLOAD: usize = 8_900;

/// Sets an MTU, or says that the kernel refused it.
fn set_mtu(netns: &Netns, device: &str, mtu: u32) -> bool {
    let mtu = mtu.to_string();
    let words = ["-n", netns.name(), "link", "set", "dev", device, "mtu", &mtu];
    Command::new("ip").args(words).output().expect("iproute2").status.success()
}

fn jumbo_lab() -> Lab {
    let lab = Lab::new();
    assert!(set_mtu(&lab.edge, "edge0", 9_000) && set_mtu(&lab.wan, "wan0", 9_000));
    lab
}

fn listen(lab: &Lab) -> UdpSocket {
    let address = SocketAddr::from((Ipv4Addr::from(EDGE_V4), PORT));
    let socket = lab.edge.run(move || UdpSocket::bind(address)).expect("inside").expect("bound");
    socket.set_read_timeout(Some(Duration::from_millis(400))).expect("a timeout");
    socket
}

/// The payloads that reach the socket before it is silent for a while.
fn heard(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = [0; 16_384];
    while let Ok(len) = socket.recv(&mut buffer) {
        all.push(buffer[..len].to_vec());
    }
    all
}

fn send_from_wan(lab: &Lab, frame: &[u8], count: u64) {
    let recording = Recording::from_frames(vec![frame.to_vec()]);
    let bounds = Bounds::new(count, Duration::from_secs(10));
    let sent = lab.wan.run(move || send("wan0", &recording, Timing::Paced(Pace::Full), bounds));
    assert_eq!(sent.expect("inside").expect("sent").frames, count);
}

fn frame(source: [u8; 4], payload: &[u8]) -> Vec<u8> {
    PacketBuilder::v4(source, EDGE_V4).macs(WAN_MAC, EDGE_MAC).udp(4_000, PORT).payload(payload).build()
}

fn grown(datapath: &Datapath, reason: Reason, work: impl FnOnce()) -> Counter {
    let count = || counters::interface(&datapath.maps, 0).expect("counters").reasons[reason.index()];
    let before = count();
    work();
    let after = count();
    Counter { packets: after.packets - before.packets, bytes: after.bytes - before.bytes }
}

#[test]
fn jumbo_frames_are_judged_natively_in_all_their_buffers() {
    if skip_without_root("jumbo_frames_are_judged_natively_in_all_their_buffers") {
        return;
    }
    let mut datapath = Datapath::on(jumbo_lab());
    assert_eq!((datapath.attached[0].mode, datapath.attached[0].program), (AttachMode::Native, FRAGS));
    let blocked = rule(1, Matches::source(net("10.99.0.66/32")), Verdict::Drop);
    // Its length says that it goes on behind the first buffer.
    let long = Matches { protocol: Some(17), length: Some([4_000, 8_000]), ..Matches::default() };
    let long = rule(2, Matches { target: Some(net("10.99.0.1/32")), ..long }, Verdict::Drop);
    datapath.apply(&set(vec![blocked, long]));
    let socket = listen(&datapath.lab);

    let payload: Vec<u8> = (0..PAYLOAD).map(|n| n as u8).collect();
    let good = frame(WAN_V4, &payload);
    let small = frame(WAN_V4, b"small");
    for (name, frame, len) in [("a jumbo frame", &good, PAYLOAD), ("a small one", &small, 5)] {
        let clean = grown(&datapath, Reason::Clean, || send_from_wan(&datapath.lab, frame, 20));
        assert_eq!(clean, Counter { packets: 20, bytes: 20 * frame.len() as u64 }, "{name}: all its bytes count");
        let heard = heard(&socket);
        assert_eq!((heard.len(), heard.iter().all(|p| p.len() == len)), (20, true), "{name}: it passes whole");
    }
    let passed = grown(&datapath, Reason::Clean, || send_from_wan(&datapath.lab, &good, 1));
    assert_eq!((passed.packets, heard(&socket)), (1, vec![payload.clone()]), "as it was sent");

    let bad = frame(BAD, &payload);
    let dropped = grown(&datapath, Reason::BlockedSource, || send_from_wan(&datapath.lab, &bad, 20));
    assert_eq!(dropped, Counter { packets: 20, bytes: 20 * bad.len() as u64 });
    let between = frame(WAN_V4, &payload[..6_000]);
    let dropped = grown(&datapath, Reason::TargetRule, || send_from_wan(&datapath.lab, &between, 20));
    assert_eq!(dropped, Counter { packets: 20, bytes: 20 * between.len() as u64 });
    assert!(heard(&socket).is_empty(), "nothing that was dropped came through");

    let mut samples = Samples::open(&Pins::below(&datapath.dir.bpf()).expect("a bpffs").maps()).expect("a ring");
    let lengths: Vec<u32> = samples.take().iter().map(|sample| sample.wire_len).collect();
    assert!(lengths.contains(&(good.len() as u32)) && lengths.contains(&(bad.len() as u32)), "{lengths:?}");
}

#[test]
fn the_program_follows_the_mtu_at_the_next_start_without_a_gap() {
    if skip_without_root("the_program_follows_the_mtu_at_the_next_start_without_a_gap") {
        return;
    }
    let datapath = Datapath::new();
    let lab = &datapath.lab;
    let pins = Pins::below(&datapath.dir.bpf()).expect("a bpffs");
    assert_eq!(datapath.attached[0].program, LINEAR, "ordinary frames need no helper for their length");
    // What arrives at edge0 is as long as the other end's MTU allows: that is the one the driver watches.
    assert!(!set_mtu(&lab.wan, "wan0", 9_000), "the kernel keeps frames away that the program could not take");

    assert!(set_mtu(&lab.edge, "edge0", 9_000));
    let larger = attach(lab, &pins, AttachChoice::Auto);
    assert_eq!((larger[0].program, larger[0].mode, larger[0].adopted), (FRAGS, AttachMode::Native, true));
    assert_eq!(larger[0].link_id, datapath.attached[0].link_id, "the program was replaced in its link");

    assert!(set_mtu(&lab.edge, "edge0", 1_500));
    let smaller = attach(lab, &pins, AttachChoice::Auto);
    assert_eq!((smaller[0].program, smaller[0].link_id), (LINEAR, larger[0].link_id));

    // A veth keeps the limit that it set at the first program: the way to a larger MTU leads over none.
    lab.edge.run(|| pins.remove_all().expect("removed")).expect("inside");
    let freed = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        set_mtu(&lab.wan, "wan0", 9_000)
    });
    assert!(freed, "without a program it may grow");
    assert_eq!(attach(lab, &pins, AttachChoice::Auto)[0].program, FRAGS);
}

#[test]
fn a_driver_that_refuses_one_program_gets_the_other() {
    if skip_without_root("a_driver_that_refuses_one_program_gets_the_other") {
        return;
    }
    let lab = Lab::new();
    assert!(set_mtu(&lab.wan, "wan0", 9_000));
    // By its own MTU the linear one would do; the driver goes by the other end's.
    let datapath = Datapath::on(lab);
    assert_eq!((datapath.attached[0].mode, datapath.attached[0].program), (AttachMode::Native, FRAGS));
    let generic = attach(&datapath.lab, &Pins::below(&datapath.dir.bpf()).expect("a bpffs"), AttachChoice::Generic);
    assert_eq!((generic[0].mode, generic[0].program), (AttachMode::Generic, LINEAR));
}
