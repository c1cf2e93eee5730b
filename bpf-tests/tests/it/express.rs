//! The short way for frames of floods decides and counts as the long one does, and the array in front of the kernel's
//! hash is its copy.

use aya::maps::{Array, MapData};
use bpf_tests::packet::PacketBuilder;
use bpf_tests::run::run_xdp;
use bpf_tests::skip_without_root;
use ftagent::engine::{Matches, Rule, Verdict};
use ftagent::xdp::compile::FailSafe;
use ftagent::xdp::counters;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::writer::Writer;
use ftagent_common::abi::{Block, NearBlock, PRESENT, Reason, Slotted, hash4, near_place};
use ftagent_common::api::AllowEntry;
use ftagent_common::packet::Ip;

use crate::datapath::{Datapath, net, rule, set, stay_on_one_cpu};
use crate::lab::EDGE_V4;
use crate::stages::load_lists;

fn drop_from(id: u64, source: &str) -> Rule {
    rule(id, Matches::source(net(source)), Verdict::Drop)
}

/// Frames and bytes that a run of one frame added, everywhere: (reason, class, passed, dropped), (target's class,
/// passed, dropped), (rule slot, hits).
type Added = (Vec<(Reason, u64)>, Vec<(usize, [u64; 4])>, Vec<(usize, [u64; 4])>, Vec<(u32, u64, u64)>);

fn added(datapath: &Datapath, frame: &[u8], rules: u32) -> Added {
    let read = || {
        let interface = counters::interface(&datapath.maps, 0).expect("counters");
        let mut target = ftagent_common::abi::TargetCounters::default();
        datapath.maps.targets.for_each(|part| {
            if part.key == Ip::v4(EDGE_V4) {
                target += part;
            }
        });
        let hits: Vec<_> =
            (0..rules).map(|slot| counters::rule_hits(&datapath.maps, slot).expect("hits").counter).collect();
        (interface, target, hits)
    };
    let before = read();
    run_xdp(&datapath.program(), frame, None).expect("runs");
    let after = read();
    let classes = |before: &[ftagent_common::abi::Flow], after: &[ftagent_common::abi::Flow]| {
        let change = |(before, after): (&ftagent_common::abi::Flow, &ftagent_common::abi::Flow)| {
            [
                after.passed.packets - before.passed.packets,
                after.passed.bytes - before.passed.bytes,
                after.dropped.packets - before.dropped.packets,
                after.dropped.bytes - before.dropped.bytes,
            ]
        };
        before.iter().zip(after).map(change).enumerate().filter(|(_, change)| *change != [0; 4]).collect::<Vec<_>>()
    };
    let reasons = Reason::ALL.iter().map(|reason| {
        let (before, after) = (before.0.reasons[reason.index()], after.0.reasons[reason.index()]);
        (*reason, after.packets - before.packets)
    });
    let hits = (0..).zip(before.2.iter().zip(&after.2));
    (
        reasons.filter(|(_, frames)| *frames != 0).collect(),
        classes(&before.0.classes, &after.0.classes),
        classes(&before.1.classes, &after.1.classes),
        hits.map(|(slot, (b, a))| (slot, a.packets - b.packets, a.bytes - b.bytes))
            .filter(|(_, n, _)| *n != 0)
            .collect(),
    )
}

#[test]
fn the_short_way_decides_and_counts_as_the_long_one() {
    if skip_without_root("the_short_way_decides_and_counts_as_the_long_one") {
        return;
    }
    stay_on_one_cpu();
    let mut datapath = Datapath::new();
    let mut ended = drop_from(5, "198.51.100.9/32");
    ended.expires_at_ns = Some(1);
    let mut evaluated = drop_from(6, "198.51.100.20/32");
    evaluated.evaluate = true;
    let mut rules = set(vec![
        drop_from(1, "198.51.100.7/32"),
        drop_from(2, "203.0.113.0/24"),
        // Ended, inside a prefix that is not.
        drop_from(3, "198.51.100.8/29"),
        drop_from(4, "198.18.0.1/32"),
        ended,
        evaluated,
    ]);
    rules.allow = vec![AllowEntry { prefix: net("198.18.0.1/32"), label: String::new() }];
    datapath.ground.fail_safe = vec![FailSafe { prefix: net("203.0.113.22/32"), ports: vec![22] }];
    load_lists(&mut datapath, &[(&["100.64.0.0/10"], false), (&["9.9.9.0/24"], true)], &[], &rules);

    let sources: [([u8; 4], Reason); 12] = [
        ([198, 51, 100, 7], Reason::BlockedSource),
        ([198, 51, 100, 6], Reason::Clean),
        ([198, 51, 100, 9], Reason::BlockedPrefix),
        ([198, 51, 100, 20], Reason::Clean),
        ([203, 0, 113, 5], Reason::BlockedPrefix),
        ([203, 0, 113, 22], Reason::FailSafe),
        ([198, 18, 0, 1], Reason::Allowlisted),
        ([100, 64, 0, 9], Reason::Listed),
        ([9, 9, 9, 9], Reason::Clean),
        ([127, 0, 0, 1], Reason::MartianSource),
        ([240, 0, 0, 1], Reason::MartianSource),
        (EDGE_V4, Reason::Land),
    ];
    let mut rows = 0;
    for (source, expected) in sources {
        let from = || PacketBuilder::v4(source, EDGE_V4);
        let shapes = [
            ("udp", from().udp(4_000, 22).payload(&[0; 20])),
            ("query", from().udp(22, 53).payload(&[0; 20])),
            ("answer", from().udp(123, 22).payload(&[0; 20])),
            ("syn", from().tcp(22, 80, 0x02)),
            ("syn with options", from().tcp(22, 80, 0x02).tcp_options(&[1; 12])),
            ("syn-ack", from().tcp(22, 80, 0x12)),
            ("ack", from().tcp(80, 22, 0x10).payload(&[0; 9])),
            ("rst", from().tcp(80, 22, 0x04)),
            ("fin", from().tcp(80, 22, 0x11)),
            ("echo", from().icmp(8, 0).payload(&[0; 20])),
        ];
        for (shape, frame) in shapes {
            let mut frame = frame.build();
            // Ethernet's padding, which is in no length.
            frame.resize(frame.len().max(60), 0);
            let mut ways = [u32::MAX, 0].map(|sample_below| {
                datapath.settings.sample_below = sample_below;
                datapath.apply(&rules);
                // The target is known from here on.
                run_xdp(&datapath.program(), &PacketBuilder::v4([1, 2, 3, 4], EDGE_V4).udp(1, 2).build(), None)
                    .expect("runs");
                added(&datapath, &frame, 200)
            });
            let what = format!("{shape} from {source:?}");
            assert_eq!(ways[1], ways[0], "{what}: the short way, and the long one that samples take");
            let [(reasons, classes, target, _), _] = &mut ways;
            let by_port = expected == Reason::FailSafe && shape == "echo";
            let expected = if by_port { Reason::BlockedPrefix } else { expected };
            assert_eq!(*reasons, [(expected, 1)], "{what}");
            assert_eq!((classes.len(), target.len()), (1, 1), "{what}: one class");
            assert_eq!(classes, target, "{what}: the target's class is the interface's");
            rows += 1;
        }
    }
    println!("{rows} frames, both ways");
}

#[test]
fn the_array_of_blocks_is_a_copy_of_the_hash() {
    if skip_without_root("the_array_of_blocks_is_a_copy_of_the_hash") {
        return;
    }
    stay_on_one_cpu();
    let mut datapath = Datapath::new();
    let pins = Pins::below(&datapath.dir.bpf()).expect("a bpffs").maps();
    let map = aya::maps::Map::Array(MapData::from_pin(pins.join("NEAR4")).expect("pinned"));
    let mut array: Array<_, NearBlock> = Array::try_from(map).expect("an array");
    let seed = datapath.maps.read_settings().expect("settings").seed;
    let keys = |array: &Array<MapData, NearBlock>| -> Vec<u32> {
        (0..array.len())
            .map(|i| array.get(&i, 0).expect("an entry"))
            .filter(|e| e.key != 0)
            .map(|e| e.key as u32)
            .collect()
    };
    let address = |text: &str| u32::from_ne_bytes(text.parse::<std::net::Ipv4Addr>().expect(text).octets());
    let frame = |text: &str| {
        let source = text.parse::<std::net::Ipv4Addr>().expect(text);
        PacketBuilder::v4(source, EDGE_V4).udp(4_000, 5_000).payload(&[0; 40]).build()
    };
    let block = set(vec![drop_from(1, "198.51.100.7/32")]);
    datapath.apply(&block);
    assert_eq!(keys(&array), [address("198.51.100.7")]);
    assert_eq!(datapath.judge(&frame("198.51.100.7")), Reason::BlockedSource);

    // More addresses for one place than it has neighbours: the hash alone has the rest.
    let place = |address: u32| near_place(hash4(address, seed), 0);
    let crowd: Vec<u32> = {
        let at = place(u32::from_ne_bytes([10, 200, 0, 1]));
        (0..4_000_000u32).map(|i| (0x0ac8_0001 + i).to_be()).filter(|a| place(*a) == at).take(9).collect()
    };
    assert_eq!(crowd.len(), 9, "addresses of one place");
    let text = |a: u32| std::net::Ipv4Addr::from(a.to_ne_bytes()).to_string();
    let rules = set((1..).zip(&crowd).map(|(id, a)| drop_from(id, &format!("{}/32", text(*a)))).collect());
    datapath.apply(&rules);
    assert!((4..9).contains(&keys(&array).len()), "{:?}", keys(&array));
    for a in &crowd {
        assert_eq!(datapath.judge(&frame(&text(*a))), Reason::BlockedSource, "{}", text(*a));
    }
    datapath.apply(&set(Vec::new()));
    assert!(keys(&array).is_empty(), "nothing is left");
    assert_eq!(datapath.judge(&frame(&text(crowd[0]))), Reason::Clean);

    // What a killed writer left in the array alone is taken away by its heir; what it had not copied is copied.
    datapath.apply(&block);
    let stale = address("198.51.100.99");
    let entry = Slotted::both(Block { flags: PRESENT, ..Block::default() });
    array.set(place(stale), NearBlock { key: NearBlock::key_of(stale), block: entry }, 0).expect("written");
    array.set(place(address("198.51.100.7")), NearBlock::default(), 0).expect("written");
    datapath.writer = Writer::adopt(&datapath.maps).expect("maps can be read");
    assert_eq!(keys(&array), [address("198.51.100.7")]);
    assert_eq!(datapath.judge(&frame("198.51.100.99")), Reason::Clean);
    assert_eq!(datapath.judge(&frame("198.51.100.7")), Reason::BlockedSource);
}
