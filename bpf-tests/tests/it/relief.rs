//! One way to attach takes the place of another while frames come: no moment without a program that enforces.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bpf_tests::generator::{Bounds, Generator, Pace, Vary};
use bpf_tests::packet::PacketBuilder;
use bpf_tests::skip_without_root;
use ftagent::engine::{Matches, Verdict};
use ftagent::xdp::info;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::program::AttachChoice;
use ftagent_common::api::AllowEntry;
use ftagent_common::vocab::AttachMode;

use crate::datapath::{Datapath, Stops, attach, net, rule, set};
use crate::lab::{EDGE_MAC, EDGE_V4, WAN_MAC};

/// Counts what a socket behind the datapath gets of blocked sources and of others.
fn listen(socket: &UdpSocket, stop: &AtomicBool) -> [u64; 2] {
    let mut seen = [0; 2];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut [0; 64]) {
            Ok((_, from)) => seen[usize::from(!net("198.18.0.0/16").contains(&from.ip()))] += 1,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => panic!("{e}"),
        }
    }
    seen
}

#[test]
fn another_way_to_attach_stands_before_the_one_before_goes() {
    if skip_without_root("another_way_to_attach_stands_before_the_one_before_goes") {
        return;
    }
    let mut datapath = Datapath::new();
    let mut rules = set(vec![rule(1, Matches::source(net("198.18.0.0/16")), Verdict::Drop)]);
    rules.allow = vec![AllowEntry { prefix: net("198.19.0.0/16"), label: String::new() }];
    datapath.apply(&rules);
    let lab = Arc::clone(&datapath.lab);
    let pins = Pins::below(&datapath.dir.bpf()).expect("a bpffs");
    let bind = || UdpSocket::bind((IpAddr::from(EDGE_V4), 5_000)).expect("bound");
    let socket = lab.edge.run(bind).expect("inside");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let stop = AtomicBool::new(false);
    let (sent, seen) = std::thread::scope(|scope| {
        let listener = scope.spawn(|| listen(&socket, &stop));
        let flood = scope.spawn(|| {
            let run = || {
                let frame = PacketBuilder::v4([198, 18, 0, 1], EDGE_V4).macs(WAN_MAC, EDGE_MAC).udp(4_000, 5_000);
                let vary = Vary { sources: Some(net("198.18.0.0/15")), ..Vary::default() };
                let mut generator = Generator::load(&frame.build(), &vary, 5).expect("loads");
                let bounds = Bounds { stop: Some(&stop), ..Bounds::new(u64::MAX, Duration::from_secs(60)) };
                generator.send(lab.wan0.index, Pace::PerSecond(60_000), bounds).expect("sends").arrived()
            };
            lab.wan.run(run).expect("inside")
        });
        let rows = [
            (AttachChoice::Tc, AttachMode::Tc),
            (AttachChoice::Native, AttachMode::Native),
            (AttachChoice::Generic, AttachMode::Generic),
            (AttachChoice::Native, AttachMode::Native),
            (AttachChoice::Generic, AttachMode::Generic),
            (AttachChoice::Tc, AttachMode::Tc),
            // What is there is adopted rather than made better.
            (AttachChoice::Auto, AttachMode::Tc),
        ];
        let stops = Stops(&stop);
        for (choice, mode) in rows {
            let attached = attach(&lab, &pins, choice);
            assert_eq!(attached[0].mode, mode, "{choice:?}: {}", attached[0].reason);
            assert_eq!(pins.pinned_links(), [(mode, "edge0".to_owned())], "{choice:?}: what was before is gone");
            let link = info::link(&pins.link(mode, "edge0")).expect("a link");
            assert_eq!(Some(link.program_id), attached[0].program_id, "{choice:?}");
        }
        drop(stops);
        (flood.join().expect("the flood ends"), listener.join().expect("the listener ends"))
    });
    println!("{sent} frames, half of blocked sources: {seen:?} behind");
    assert_eq!(seen[0], 0, "frames of blocked sources got through");
    assert!(seen[1] > 0 && sent > 1_000, "the others arrive");
}
