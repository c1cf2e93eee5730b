//! The table of targets takes as many as it has places.

use std::collections::BTreeSet;

use bpf_tests::bpffs::LabDir;
use bpf_tests::packet::PacketBuilder;
use bpf_tests::run::run_xdp;
use bpf_tests::skip_without_root;
use ftagent::engine::RuleSet;
use ftagent::xdp::compile::{Ground, Slots, compile};
use ftagent::xdp::counters;
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::program::{AttachChoice, InterfacePlan, MapSizes, load};
use ftagent::xdp::writer::Writer;
use ftagent_common::abi::Health;

use crate::datapath::{net, settings, stay_on_one_cpu};
use crate::lab::{Lab, WAN_V4};

#[test]
fn every_place_of_the_table_of_targets_can_be_taken() {
    if skip_without_root("every_place_of_the_table_of_targets_can_be_taken") {
        return;
    }
    stay_on_one_cpu();
    const PLACES: u32 = 64;
    let lab = Lab::new();
    let dir = LabDir::create("targets").expect("a bpffs");
    let pins = Pins::below(&dir.bpf()).expect("a bpffs");
    let plans = [InterfacePlan { name: "edge0".to_owned(), slot: 0, choice: AttachChoice::Native }];
    let sizes = MapSizes { targets: PLACES, ..MapSizes::default() };
    let run = || load(&plans, &pins, &sizes).expect("loads").attach().expect("attaches");
    lab.edge.run(run).expect("the namespace can be entered");
    let maps = Maps::open(&pins.maps()).expect("maps");
    let mut writer = Writer::adopt(&maps).expect("maps can be read");
    let ground = Ground { protected: vec![net("10.99.0.0/16")], ..Ground::default() };
    let compiled = compile(&RuleSet::default(), &ground, &mut Slots::default());
    assert!(writer.apply(&maps, &compiled.tables, &settings()).is_empty());
    let path = pins.program("edge0");
    let program = aya::programs::Xdp::from_pin(path, aya_obj::programs::XdpAttachType::Interface).expect("a program");
    let full = || {
        let events = counters::health(&maps).expect("events");
        events.iter().find(|(event, _)| *event == Health::TargetsFull).map_or(0, |(_, count)| *count)
    };
    let send = |host: u32| {
        let target = [10, 99, (host >> 8) as u8, host as u8];
        run_xdp(&program, &PacketBuilder::v4(WAN_V4, target).udp(1_000, 2_000).build(), None).expect("runs");
    };
    for host in 1..=PLACES {
        send(host);
        send(host);
    }
    assert_eq!(full(), 0, "each of {PLACES} targets found a place");
    let mut seen = BTreeSet::new();
    maps.targets.for_each(|part| {
        assert_eq!(part.classes.iter().map(|flow| flow.total().packets).sum::<u64>(), 2, "{:?}", part.key);
        assert!(seen.insert(part.key), "{:?} has one place", part.key);
    });
    assert_eq!(seen.len(), PLACES as usize);
    send(PLACES + 1);
    assert_eq!(full(), 1, "one more than there are places is said");
}
