//! Heavy sources are found by a sketch that does not see every frame, and counted frame by frame from then on.

use std::time::Duration;

use bpf_tests::packet::PacketBuilder;
use bpf_tests::run::run_xdp;
use bpf_tests::skip_without_root;
use ftagent::clock::mono_ns;
use ftagent::engine::RuleSet;
use ftagent::xdp::counters;

use crate::datapath::{Datapath, stay_on_one_cpu};
use crate::lab::EDGE_V4;

#[test]
fn heavy_sources_are_told_from_light_ones_by_an_eighth_of_the_frames() {
    if skip_without_root("heavy_sources_are_told_from_light_ones_by_an_eighth_of_the_frames") {
        return;
    }
    stay_on_one_cpu();
    let mut datapath = Datapath::new();
    datapath.settings = datapath.settings.promoting_at(500);
    assert_eq!((datapath.settings.sketch_one_in, datapath.settings.sketch_below), (8, u32::MAX / 8));
    datapath.apply(&RuleSet::default());
    let program = datapath.program();
    let frame = |source: [u8; 4]| PacketBuilder::v4(source, EDGE_V4).udp(1_000, 2_000).build();
    let heavy = frame([198, 51, 100, 1]);
    let light: Vec<Vec<u8>> = (0..60).map(|n| frame([203, 0, 113, n])).collect();
    let send = |frame: &[u8]| _ = run_xdp(&program, frame, None).expect("runs");
    let counted = || -> Vec<(String, u64)> {
        let all = counters::heavy_sources(&datapath.maps, mono_ns());
        all.into_iter().map(|(ip, counters)| (ip.to_string(), counters.flow.total().packets)).collect()
    };

    // 50 frames of each light source beside 3,000 of the heavy one, in turns.
    for n in 0..3_000 {
        send(&heavy);
        send(&light[n % light.len()]);
    }
    let found = counted();
    let [(source, before)] = &found[..] else { panic!("one source is heavy, not {found:?}") };
    assert_eq!(source, "198.51.100.1");
    assert!((2_000..=2_800).contains(before), "promoted after some 500 frames, so that {before} of 3,000 are counted");

    // Those that the sketch does not see are counted too.
    for _ in 0..400 {
        send(&heavy);
    }
    assert_eq!(counted(), [(source.clone(), before + 400)]);

    // Two epochs later it is light again to the sketch, and still every packet of it is counted, seen or not.
    let epoch = || mono_ns() >> 30;
    for round in 1.. {
        assert!(round < 20, "the machine is too busy to send 50 frames within an epoch");
        (0..800).for_each(|_| send(&heavy));
        let (hot, before) = (epoch(), counted()[0].1);
        // The datapath's clock is up to a jiffy behind.
        while mono_ns() < ((hot + 2) << 30) + 20_000_000 {
            std::thread::sleep(Duration::from_millis(5));
        }
        (0..50).for_each(|_| send(&heavy));
        if epoch() == hot + 2 {
            assert_eq!(counted(), [(source.clone(), before + 50)]);
            break;
        }
    }
}
