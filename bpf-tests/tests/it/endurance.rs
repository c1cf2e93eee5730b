//! What floods and upgrades leave as it was. `FTAGENT_FORGED` and `FTAGENT_UPGRADES` ask for longer runs than a test's.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::maps::MapData;
use bpf_tests::clock::Moment;
use bpf_tests::generator::{Bounds, Generator, Pace, Vary};
use bpf_tests::packet::PacketBuilder;
use bpf_tests::skip_without_root;
use ftagent::engine::{Matches, Verdict};
use ftagent::xdp::counters;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::program::AttachChoice;
use ftagent_common::abi::{InterfaceCounters, Reason, gate as gate_flag};
use ftagent_common::api::AllowEntry;
use ftagent_common::packet::tcp_flag::ACK;

use crate::datapath::{Datapath, Stops, attach, net, rule, set};
use crate::gate::{behind_the_gate, count, gate_maps};
use crate::lab::{EDGE_MAC, EDGE_V4, WAN_MAC, WAN_V4};

pub(crate) fn asked_for(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Bytes that the kernel holds for all pinned maps.
fn map_bytes(datapath: &Datapath) -> u64 {
    let dir = Pins::below(&datapath.dir.bpf()).expect("a bpffs").maps();
    let pinned = std::fs::read_dir(dir).expect("the pins").map(|entry| entry.expect("a pin").path());
    let bytes = |path: std::path::PathBuf| {
        let map = MapData::from_pin(path).expect("a map");
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()));
        let info = info.expect("what the kernel says of it");
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).expect("its memory").trim().to_owned();
        line.parse::<u64>().expect("a number")
    };
    pinned.map(bytes).sum()
}

fn grown(before: &InterfaceCounters, after: &InterfaceCounters, reason: Reason) -> u64 {
    after.reasons[reason.index()].packets - before.reasons[reason.index()].packets
}

#[test]
fn forged_sources_evict_nothing_and_take_no_memory() {
    if skip_without_root("forged_sources_evict_nothing_and_take_no_memory") {
        return;
    }
    /// From the edge to a server behind the wire.
    const CONNECTIONS: u64 = 50;
    let frames = asked_for("FTAGENT_FORGED", 500_000);
    // The gate drops what belongs to no connection, so that every frame arrives: a stack behind it could not keep up.
    let mut datapath = behind_the_gate(gate_flag::LOCAL);
    datapath.settings = datapath.settings.promoting_at(500);
    datapath.settings.sample_below = u32::MAX / 512;
    let block = |i: u64| {
        let source = format!("203.0.{}.{}/32", i / 250, i % 250 + 1);
        rule(i + 1, Matches::source(net(&source)), Verdict::Drop)
    };
    let mut rules = set((0..1_000).map(block).collect());
    rules.allow = vec![AllowEntry { prefix: net("192.0.2.0/24"), label: String::new() }];
    datapath.apply(&rules);
    let before_tables = datapath.maps.observe().expect("maps can be read");
    let mut connections = connections(&datapath, CONNECTIONS);
    let learnt = || gate_maps(&datapath).learnt(Moment::now().mono_ns).expect("readable").connections;
    assert_eq!(learnt(), CONNECTIONS, "learnt from what the edge sends");

    let send = |source: [u8; 4], sources: Option<&str>, frames: u64, pace: Pace| {
        let template = PacketBuilder::v4(source, EDGE_V4).macs(WAN_MAC, EDGE_MAC).tcp(1_000, 80, ACK).build();
        let vary = Vary { sources: sources.map(net), ..Vary::default() };
        let (lab, index) = (Arc::clone(&datapath.lab), datapath.lab.wan0.index);
        let run = || {
            let mut generator = Generator::load(&template, &vary, 11).expect("loads");
            generator.send(index, pace, Bounds::new(frames, Duration::from_secs(120))).expect("sends")
        };
        lab.wan.run(run).expect("inside")
    };
    // An honest heavy source, promoted before the flood.
    send([198, 51, 100, 77], None, 20_000, Pace::Full);
    let heavy: IpAddr = "198.51.100.77".parse().expect("an address");
    let is_there = |datapath: &Datapath| {
        counters::heavy_sources(&datapath.maps, Moment::now().mono_ns).into_iter().any(|(source, _)| source == heavy)
    };
    assert!(is_there(&datapath), "20,000 frames promote a source");
    let (bytes_before, counted_before) = (map_bytes(&datapath), counters::interface(&datapath.maps, 0).expect("read"));

    // 127.0.0.0/8 is among the forged sources.
    let reasons = [Reason::UnsolicitedTcp, Reason::MartianSource];
    let in_all = || reasons.iter().map(|reason| count(&datapath, *reason)).sum::<u64>();
    let dropped_before = in_all();
    let sent = send([64, 0, 0, 1], Some("64.0.0.0/2"), frames, Pace::Full);
    let dropped = in_all() - dropped_before;
    let seconds = (sent.last - sent.first).as_secs_f64();
    let after = counters::interface(&datapath.maps, 0).expect("read");
    let forged: Vec<_> = counters::heavy_sources(&datapath.maps, Moment::now().mono_ns)
        .into_iter()
        .filter(|(source, _)| net("64.0.0.0/2").contains(source))
        .collect();
    let bytes_after = map_bytes(&datapath);
    println!(
        "{} forged frames arrived in {seconds:.2} s ({:.2} Mpps with their generation), {} lost in the ring, {dropped} \
         dropped; {} sources promoted by mistake, maps {bytes_before} → {bytes_after} bytes",
        sent.arrived(),
        sent.arrived() as f64 / seconds / 1e6,
        sent.ring_dropped,
        forged.len(),
    );
    let counted: u64 = Reason::ALL.iter().map(|reason| grown(&counted_before, &after, *reason)).sum();
    assert!(counted >= sent.arrived() && dropped == sent.arrived(), "every frame is counted: {counted}");
    assert!(seconds < 60.0 || frames > 10_000_000, "{seconds:.1} s");
    // A source that shares all four cells of the sketch with a heavy one is taken for heavy: one in 2^20 for each.
    assert!(forged.len() as u64 <= 5 + frames / 200_000, "{} forged sources were promoted", forged.len());
    assert!(is_there(&datapath), "the honest one still is");
    assert_eq!(datapath.maps.observe().expect("maps can be read"), before_tables, "no block, no allow entry is gone");
    assert_eq!(bytes_after, bytes_before, "memory does not grow with sources");
    assert_eq!(learnt(), CONNECTIONS, "no learnt flow is gone, and none was added");
    for (near, far) in &mut connections {
        near.write_all(b"question").expect("sent");
        far.read_exact(&mut [0; 8]).expect("it arrives");
        far.write_all(b"answer").expect("sent");
        near.read_exact(&mut [0; 6]).expect("the gate knows the connection");
    }
}

/// Connections from the edge to the far end of the wire, which the egress program learns.
fn connections(datapath: &Datapath, count: u64) -> Vec<(TcpStream, TcpStream)> {
    let lab = &datapath.lab;
    let listener = lab.wan.run(|| TcpListener::bind((IpAddr::from(WAN_V4), 7))).expect("inside").expect("a listener");
    let address = listener.local_addr().expect("bound");
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("connects");
    let pair = |_| {
        let near = lab.edge.run(connect).expect("inside");
        let far = listener.accept().expect("accepted").0;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        }
        (near, far)
    };
    (0..count).map(pair).collect()
}

#[test]
fn an_upgrade_under_load_misjudges_no_frame() {
    if skip_without_root("an_upgrade_under_load_misjudges_no_frame") {
        return;
    }
    let upgrades = asked_for("FTAGENT_UPGRADES", 5);
    let mut datapath = Datapath::new();
    let mut rules = set(vec![rule(1, Matches::source(net("198.18.0.0/16")), Verdict::Drop)]);
    rules.allow = vec![AllowEntry { prefix: net("198.19.0.0/16"), label: String::new() }];
    datapath.apply(&rules);
    let template = PacketBuilder::v4([198, 18, 0, 1], EDGE_V4).macs(WAN_MAC, EDGE_MAC).udp(1_000, 2_000).build();
    let vary = Vary { sources: Some(net("198.18.0.0/15")), ..Vary::default() };
    let before = counters::interface(&datapath.maps, 0).expect("counters");
    let stop = AtomicBool::new(false);
    let lab = Arc::clone(&datapath.lab);
    let pins = Pins::below(&datapath.dir.bpf()).expect("a bpffs");
    let first = datapath.attached[0].program_id;
    let (sent, programs) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let run = || {
                let mut generator = Generator::load(&template, &vary, 5).expect("loads");
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    let bounds = Bounds::new(100_000, Duration::from_secs(60));
                    sent += generator.send(lab.wan0.index, Pace::PerSecond(300_000), bounds).expect("sends").arrived();
                }
                sent
            };
            lab.wan.run(run).expect("inside")
        });
        let stops = Stops(&stop);
        let mut programs = vec![first];
        for _ in 0..upgrades {
            let attached = attach(&lab, &pins, AttachChoice::Auto);
            assert!(attached[0].adopted, "{}", attached[0].reason);
            programs.push(attached[0].program_id);
        }
        drop(stops);
        (flood.join().expect("the flood ends"), programs)
    });
    let after = counters::interface(&datapath.maps, 0).expect("counters");
    let (dropped, passed) =
        (grown(&before, &after, Reason::BlockedPrefix), grown(&before, &after, Reason::Allowlisted));
    println!("{upgrades} upgrades, {sent} frames sent: {dropped} dropped, {passed} passed; programs {programs:?}");
    assert!(programs.windows(2).all(|pair| pair[0] != pair[1]), "a new program each time");
    assert_eq!(dropped + passed, sent, "every frame was judged, and by the rules in force");
    assert!(dropped > 0 && passed > 0);
}
