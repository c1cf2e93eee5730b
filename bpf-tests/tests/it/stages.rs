//! The stages one by one: lists, networks, evaluation, marks, tunnels, and whole rule sets swapped under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bpf_tests::generator::{Bounds, Generator, Pace, Vary};
use bpf_tests::packet::PacketBuilder;
use bpf_tests::run::run_xdp;
use bpf_tests::skip_without_root;
use ftagent::engine::{Matches, RuleId, RuleSet, Verdict};
use ftagent::xdp::compile::FailSafe;
use ftagent::xdp::compile::Lists;
use ftagent::xdp::counters;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::prefixes::map::PrefixMap;
use ftagent::xdp::prefixes::plan::Plan;
use ftagent::xdp::samples::Samples;
use ftagent_common::abi::Reason;
use ftagent_common::api::AllowEntry;
use ftagent_common::vocab::TrafficClass;
use ipnet::Ipv4Net;

use crate::datapath::{Datapath, net, rule, set};
use crate::lab::{EDGE_MAC, EDGE_V4, EDGE_V6, WAN_MAC};

fn from(source: [u8; 4]) -> PacketBuilder {
    PacketBuilder::v4(source, EDGE_V4)
}

/// Puts lists into force: a list of IPv4 prefixes for each entry, and whether it is evaluated.
pub(crate) fn load_lists(datapath: &mut Datapath, lists: &[(&[&str], bool)], v6: &[(&str, usize)], rules: &RuleSet) {
    let prefixes = lists.iter().zip(1..).flat_map(|((list, _), value)| {
        list.iter().map(move |text| (text.parse::<Ipv4Net>().expect("a prefix"), value))
    });
    let plan = Plan::new(prefixes, 1 << 30).expect("a table");
    let table = datapath.ground.lists.as_ref().map_or(1, |lists| lists.table + 1);
    datapath.writer.hold(table, PrefixMap::make(&plan).expect("a table"));
    let rules_of = lists.iter().zip(100..).map(|((_, evaluate), id)| (RuleId(id), *evaluate)).collect();
    let v6 = v6.iter().map(|(text, place)| (net(text), *place)).collect();
    datapath.ground.lists = Some(Arc::new(Lists { table, rules: rules_of, v6, ..Lists::default() }));
    datapath.apply(rules);
}

#[test]
fn sources_on_lists_are_dropped_and_evaluated_lists_only_count() {
    if skip_without_root("sources_on_lists_are_dropped_and_evaluated_lists_only_count") {
        return;
    }
    let mut datapath = Datapath::new();
    let udp = |source| from(source).udp(1_000, 2_000).build();
    let listed: &[&str] = &["198.51.100.0/24", "203.0.113.7/32", "192.0.2.128/25", "100.64.0.0/10"];
    let allow = vec![AllowEntry { prefix: net("198.51.100.9/32"), label: String::new() }];
    let rules = RuleSet { allow, ..RuleSet::default() };
    load_lists(&mut datapath, &[(listed, false), (&["9.9.9.0/24"], true)], &[("2001:db8:7::/48", 0)], &rules);
    let rows = [
        ("in a /24", [198, 51, 100, 200], Reason::Listed),
        ("an address", [203, 0, 113, 7], Reason::Listed),
        ("beside it", [203, 0, 113, 8], Reason::Clean),
        ("in a /25", [192, 0, 2, 200], Reason::Listed),
        ("in the other /25", [192, 0, 2, 100], Reason::Clean),
        ("in a /10", [100, 127, 255, 255], Reason::Listed),
        ("behind it", [100, 128, 0, 0], Reason::Clean),
        ("allowed all the same", [198, 51, 100, 9], Reason::Allowlisted),
        ("evaluated", [9, 9, 9, 9], Reason::Clean),
    ];
    for (name, source, expected) in rows {
        assert_eq!(datapath.judge(&udp(source)), expected, "{name}");
    }
    let hits = |datapath: &Datapath, id| {
        let slot = datapath.slots.of(RuleId(id)).expect("a slot");
        counters::rule_hits(&datapath.maps, slot).expect("hits").counter.packets
    };
    assert_eq!((hits(&datapath, 100), hits(&datapath, 101)), (4, 1));
    let six = PacketBuilder::v6([0x2001, 0xdb8, 7, 1, 0, 0, 0, 1], EDGE_V6).udp(1_000, 2_000).build();
    assert_eq!(datapath.judge(&six), Reason::BlockedPrefix);

    load_lists(&mut datapath, &[(&["9.9.9.0/24"], false)], &[], &RuleSet::default());
    assert_eq!(datapath.judge(&udp([198, 51, 100, 200])), Reason::Clean, "another list is in force");
    assert_eq!(datapath.judge(&udp([9, 9, 9, 9])), Reason::Listed);
    datapath.ground.lists = Some(Arc::default());
    datapath.apply(&RuleSet::default());
    assert_eq!(datapath.judge(&udp([9, 9, 9, 9])), Reason::Clean, "no list is");
}

#[test]
fn networks_of_48_56_and_64_bits_are_blocked_by_themselves() {
    if skip_without_root("networks_of_48_56_and_64_bits_are_blocked_by_themselves") {
        return;
    }
    let mut datapath = Datapath::new();
    let nets = ["2001:db8:1::/48", "2001:db8:2:ff00::/56", "2001:db8:3:4::/64", "2001:db8:8000::/33"];
    datapath.apply(&set((1..).zip(nets).map(|(id, n)| rule(id, Matches::source(net(n)), Verdict::Drop)).collect()));
    let tcp = |source: [u16; 8]| PacketBuilder::v6(source, EDGE_V6).tcp(40_000, 80, 2).build();
    for (source, expected) in [
        ([0x2001, 0xdb8, 1, 0xffff, 1, 2, 3, 4], Reason::BlockedPrefix),
        ([0x2001, 0xdb8, 2, 0xffab, 1, 2, 3, 4], Reason::BlockedPrefix),
        ([0x2001, 0xdb8, 2, 0xfeab, 1, 2, 3, 4], Reason::Clean),
        ([0x2001, 0xdb8, 3, 4, 1, 2, 3, 4], Reason::BlockedPrefix),
        ([0x2001, 0xdb8, 3, 5, 1, 2, 3, 4], Reason::Clean),
        ([0x2001, 0xdb8, 0x8fff, 5, 1, 2, 3, 4], Reason::BlockedPrefix),
    ] {
        assert_eq!(datapath.judge(&tcp(source)), expected, "{source:x?}");
    }
}

#[test]
fn rules_pass_mark_sample_and_compare_what_they_should() {
    if skip_without_root("rules_pass_mark_sample_and_compare_what_they_should") {
        return;
    }
    let mut datapath = Datapath::new();
    let to = || Matches::target(net("10.99.0.1/32"));
    let frame = |port, payload: &[u8]| from([198, 51, 100, 7]).udp(port, 2_000).payload(payload).build();

    let pass = rule(1, Matches { src_port: Some([53, 53]), ..to() }, Verdict::Pass);
    datapath.apply(&set(vec![pass, rule(2, to(), Verdict::Drop)]));
    assert_eq!(datapath.judge(&frame(53, b"x")), Reason::RulePassed);
    assert_eq!(datapath.judge(&frame(54, b"x")), Reason::TargetRule);

    let payload = Matches { payload: Some(b"\xff\xff\xff\xffTSource".to_vec()), ..to() };
    datapath.apply(&set(vec![rule(3, payload, Verdict::Drop)]));
    assert_eq!(datapath.judge(&frame(1, b"\xff\xff\xff\xffTSource Engine Query")), Reason::TargetRule);
    assert_eq!(datapath.judge(&frame(1, b"\xff\xff\xff\xffTSourc")), Reason::Clean, "shorter than the pattern");
    assert_eq!(datapath.judge(&frame(1, b"\xff\xff\xff\xffUSource")), Reason::Clean);

    let both = Matches { source: Some(net("198.51.100.0/24")), dst_port: Some([2_000, 2_000]), ..to() };
    datapath.apply(&set(vec![rule(4, both, Verdict::Drop)]));
    assert_eq!(datapath.judge(&frame(1, b"x")), Reason::TargetRule, "source and port together");
    assert_eq!(datapath.judge(&from([198, 51, 101, 7]).udp(1, 2_000).build()), Reason::Clean);

    let everywhere = Matches { src_port: Some([19, 19]), ..Matches::default() };
    datapath.apply(&set(vec![rule(5, everywhere, Verdict::Drop)]));
    assert_eq!(datapath.judge(&frame(19, b"x")), Reason::TargetRule, "a rule without a target");

    datapath.apply(&set(vec![rule(6, to(), Verdict::Mark { dscp: 8 })]));
    let marked = run_xdp(&datapath.program(), &frame(1, b"x"), None).expect("runs").frame;
    assert_eq!(marked[15] >> 2, 8);
    let sum = bpf_tests::checksum::verify(&marked);
    assert_eq!(sum, bpf_tests::checksum::Verdict::Right);

    datapath.settings.sample_below = 0;
    datapath.apply(&set(vec![rule(7, Matches { src_port: Some([77, 77]), ..to() }, Verdict::Sample)]));
    let mut samples = Samples::open(&datapath.dir.bpf().join("ftagent").join("v2").join("maps")).expect("the ring");
    samples.take();
    assert_eq!(datapath.judge(&frame(78, b"x")), Reason::Clean);
    assert_eq!(samples.take().len(), 0, "chance takes none");
    assert_eq!(datapath.judge(&frame(77, b"x")), Reason::Clean);
    assert_eq!(samples.take().len(), 1, "the rule does");

    let mut evaluated = rule(8, to(), Verdict::Drop);
    evaluated.evaluate = true;
    datapath.apply(&set(vec![evaluated]));
    assert_eq!(datapath.judge(&frame(1, b"x")), Reason::Clean);
    let slot = datapath.slots.of(RuleId(8)).expect("a slot");
    assert_eq!(counters::rule_hits(&datapath.maps, slot).expect("hits").counter.packets, 1);
}

/// The IP packet of `frame`, without its Ethernet header.
fn packet(frame: &[u8]) -> Vec<u8> {
    frame[14..].to_vec()
}

#[test]
fn what_is_in_a_tunnel_is_judged_and_so_is_who_sent_it() {
    if skip_without_root("what_is_in_a_tunnel_is_judged_and_so_is_who_sent_it") {
        return;
    }
    let mut datapath = Datapath::new();
    let blocks = ["198.51.100.7/32", "2001:db8:bad::/48"];
    datapath.apply(&set((1..).zip(blocks).map(|(id, n)| rule(id, Matches::source(net(n)), Verdict::Drop)).collect()));
    let bad = packet(&from([198, 51, 100, 7]).udp(1, 2).build());
    let good = packet(&from([198, 51, 100, 8]).udp(1, 2).build());
    let bad6 = packet(&PacketBuilder::v6([0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 1], EDGE_V6).udp(1, 2).build());
    let outer = || from([203, 0, 113, 1]);
    let gre = |ether_type: u16, flags: u8, inner: &[u8]| {
        let fields = usize::try_from((flags & 0xb0).count_ones()).expect("small") * 4;
        [&[flags, 0][..], &ether_type.to_be_bytes(), &vec![0; fields], inner].concat()
    };
    let rows: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("ipip", outer().protocol(4).payload(&bad).build(), Reason::BlockedSource),
        ("ipip of another", outer().protocol(4).payload(&good).build(), Reason::Clean),
        ("6in4", outer().protocol(41).payload(&bad6).build(), Reason::BlockedPrefix),
        ("gre", outer().protocol(47).payload(&gre(0x0800, 0, &bad)).build(), Reason::BlockedSource),
        ("gre with a key", outer().protocol(47).payload(&gre(0x0800, 0x20, &bad)).build(), Reason::BlockedSource),
        ("gre with all", outer().protocol(47).payload(&gre(0x86dd, 0xb0, &bad6)).build(), Reason::BlockedPrefix),
        ("gre cut off", outer().protocol(47).payload(&[0x20, 0, 8, 0]).build(), Reason::Malformed),
        ("from nobody", from([127, 0, 0, 1]).protocol(4).payload(&good).build(), Reason::MartianSource),
        ("tunnel's end", from([198, 51, 100, 7]).protocol(4).payload(&good).build(), Reason::BlockedSource),
        (
            "over ipv6",
            PacketBuilder::v6([0x2001, 0xdb8, 1, 0, 0, 0, 0, 1], EDGE_V6).protocol(4).payload(&bad).build(),
            Reason::BlockedSource,
        ),
        (
            "vlan around",
            outer().vlan(0x88a8, 7).vlan(0x8100, 8).protocol(4).payload(&bad).build(),
            Reason::BlockedSource,
        ),
    ];
    for (name, frame, expected) in rows {
        assert_eq!(datapath.judge(&frame), expected, "{name}");
    }
}

#[test]
fn what_a_tunnel_carries_counts_and_is_sampled_for_the_target_inside() {
    if skip_without_root("what_a_tunnel_carries_counts_and_is_sampled_for_the_target_inside") {
        return;
    }
    // A router or a hypervisor: both targets are behind it, the tunnel's ends are not its business.
    let mut datapath = Datapath::new();
    datapath.ground.protected = vec![net("198.18.5.0/24"), net("2001:db8:5::/48")];
    datapath.apply(&RuleSet::default());
    let mut samples = Samples::open(&Pins::below(&datapath.dir.bpf()).expect("a bpffs").maps()).expect("the ring");
    let v4 = packet(&PacketBuilder::v4([198, 51, 100, 7], [198, 18, 5, 7]).udp(53, 2).build());
    let v6 = PacketBuilder::v6([0x2001, 0xdb8, 1, 0, 0, 0, 0, 1], [0x2001, 0xdb8, 5, 0, 0, 0, 0, 7]);
    let v6 = packet(&v6.tcp(1_000, 80, 2).build());
    let outer = || PacketBuilder::v4([203, 0, 113, 1], [203, 0, 113, 2]);
    let frames = [
        outer().protocol(4).payload(&v4).build(),
        outer().protocol(47).payload(&[&[0, 0, 0x08, 0][..], &v4].concat()).build(),
        outer().protocol(41).payload(&v6).build(),
        outer().udp(1, 2).build(),
    ];
    for frame in frames {
        datapath.judge(&frame);
    }
    let reading = counters::read(&datapath.maps, &datapath.attached, None).expect("counters");
    let counted: Vec<(String, u64, u64)> = reading
        .targets
        .iter()
        .map(|(ip, target)| {
            let of = |class: TrafficClass| target.classes[class.index()].passed.packets;
            (ip.to_string(), of(TrafficClass::Reflector), of(TrafficClass::TcpSyn))
        })
        .collect();
    assert_eq!(counted, [("198.18.5.7".to_owned(), 2, 0), ("2001:db8:5::7".to_owned(), 0, 1)]);
    let seen: Vec<String> = samples.take().iter().map(|s| std::net::IpAddr::from(s.packet.dst).to_string()).collect();
    assert_eq!(seen, ["198.18.5.7", "198.18.5.7", "2001:db8:5::7", "203.0.113.2"], "samples are of everything");
}

#[test]
fn a_flood_of_tunnels_for_others_is_one_on_whom_they_are_for() {
    if skip_without_root("a_flood_of_tunnels_for_others_is_one_on_whom_they_are_for") {
        return;
    }
    let mut datapath = Datapath::new();
    datapath.ground.protected = vec![net("10.99.0.1/32"), net("fd99::/64")];
    let rules = vec![
        rule(1, Matches { target: Some(net("10.99.0.1/32")), protocol: Some(47), ..Matches::default() }, Verdict::Drop),
        rule(2, Matches::source(net("198.51.100.66/32")), Verdict::Drop),
    ];
    let mut rules = set(rules);
    rules.allow = vec![AllowEntry { prefix: net("198.51.100.99/32"), label: String::new() }];
    datapath.ground.fail_safe = vec![FailSafe { prefix: net("192.0.2.0/24"), ports: vec![22] }];
    datapath.apply(&rules);
    let mut samples = Samples::open(&Pins::below(&datapath.dir.bpf()).expect("a bpffs").maps()).expect("the ring");
    let inner = |last| packet(&PacketBuilder::v4([198, 51, 100, last], [100, 64, 9, 9]).udp(7, 8).build());
    let to_port = |port| {
        let inside = packet(&PacketBuilder::v4([198, 51, 100, 1], [100, 64, 9, 9]).tcp(1_000, port, 2).build());
        [&[0, 0, 0x08, 0][..], &inside].concat()
    };
    let gre = |last| [&[0, 0, 0x08, 0][..], &inner(last)].concat();
    let v6 = || PacketBuilder::v6([0x2001, 0xdb8, 1, 0, 0, 0, 0, 1], EDGE_V6);
    let rows = [
        ("gre", from([203, 0, 113, 1]).protocol(47).payload(&gre(1)).build(), Reason::TargetRule),
        (
            "gre, tagged twice",
            from([203, 0, 113, 1]).vlan(0x88a8, 1).vlan(0x8100, 2).protocol(47).payload(&gre(1)).build(),
            Reason::TargetRule,
        ),
        (
            "gre, options",
            from([203, 0, 113, 1]).options(&[1; 12]).protocol(47).payload(&gre(1)).build(),
            Reason::TargetRule,
        ),
        ("ipip: another protocol", from([203, 0, 113, 1]).protocol(4).payload(&inner(1)).build(), Reason::Clean),
        ("in ipv6", v6().protocol(4).payload(&inner(1)).build(), Reason::Clean),
        (
            "a blocked source inside",
            from([203, 0, 113, 1]).protocol(47).payload(&gre(66)).build(),
            Reason::BlockedSource,
        ),
        (
            "an allowed source inside",
            from([203, 0, 113, 1]).protocol(47).payload(&gre(99)).build(),
            Reason::Allowlisted,
        ),
        (
            "an operator's tunnel, to a port that must stay open",
            from([192, 0, 2, 7]).protocol(47).payload(&to_port(22)).build(),
            Reason::FailSafe,
        ),
        (
            "an operator's tunnel, to another port",
            from([192, 0, 2, 7]).protocol(47).payload(&to_port(80)).build(),
            Reason::TargetRule,
        ),
    ];
    for (name, frame, expected) in rows {
        assert_eq!(datapath.judge(&frame), expected, "{name}");
    }
    let reading = counters::read(&datapath.maps, &datapath.attached, None).expect("counters");
    let counted: Vec<(String, u64, u64)> = reading
        .targets
        .iter()
        .map(|(ip, target)| {
            let of = |class: TrafficClass| {
                let flow = target.classes[class.index()];
                flow.passed.packets + flow.dropped.packets
            };
            (ip.to_string(), of(TrafficClass::Gre), of(TrafficClass::Udp))
        })
        .collect();
    assert_eq!(counted[0], ("10.99.0.1".to_owned(), 4, 0), "{counted:?}");
    assert_eq!(counted.len(), 2, "{counted:?}");
    let seen: Vec<(u8, String)> =
        samples.take().iter().map(|s| (s.packet.protocol, std::net::IpAddr::from(s.packet.dst).to_string())).collect();
    assert_eq!(seen[0], (47, "10.99.0.1".to_owned()), "the sample says what was judged");
    assert_eq!(seen[5], (17, "100.64.9.9".to_owned()), "a known sender is looked at inside");
}

#[test]
fn what_no_host_can_have_sent_is_refused_by_its_name() {
    if skip_without_root("what_no_host_can_have_sent_is_refused_by_its_name") {
        return;
    }
    let datapath = Datapath::new();
    let tcp = |flags| from([198, 51, 100, 7]).tcp(1_000, 80, flags).build();
    let mut long_udp = from([198, 51, 100, 7]).udp(1, 2).payload(&[0; 20]).build();
    long_udp[14 + 20 + 5] = 200;
    let mapped = PacketBuilder::v6([0, 0, 0, 0, 0, 0xffff, 0xc633, 0x6407], EDGE_V6).udp(1, 2).build();
    let rows: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("loopback", from([127, 0, 0, 1]).udp(1, 2).build(), Reason::MartianSource),
        ("multicast", from([224, 0, 0, 1]).udp(1, 2).build(), Reason::MartianSource),
        ("reserved", from([240, 0, 0, 1]).udp(1, 2).build(), Reason::MartianSource),
        ("this network", from([0, 1, 2, 3]).udp(1, 2).build(), Reason::MartianSource),
        ("mapped in ipv6", mapped, Reason::MartianSource),
        ("land", from(EDGE_V4).tcp(80, 80, 2).build(), Reason::Land),
        ("port 0", from([198, 51, 100, 7]).udp(0, 2).build(), Reason::PortZero),
        ("no flag", tcp(0), Reason::ImpossibleFlags),
        ("syn and fin", tcp(0x03), Reason::ImpossibleFlags),
        ("fin alone", tcp(0x01), Reason::ImpossibleFlags),
        ("all flags", tcp(0x3f), Reason::ImpossibleFlags),
        ("syn", tcp(0x02), Reason::Clean),
        ("fin with ack", tcp(0x11), Reason::Clean),
        ("reset", tcp(0x04), Reason::Clean),
        ("length of udp", long_udp, Reason::BadLength),
        ("dhcp", PacketBuilder::v4([0, 0, 0, 0], [255, 255, 255, 255]).udp(68, 67).build(), Reason::Clean),
    ];
    for (name, frame, expected) in rows {
        assert_eq!(datapath.judge(&frame), expected, "{name}");
    }
}

/// Swaps of the test; `FTAGENT_SWAPS` asks for more.
fn swaps() -> u32 {
    std::env::var("FTAGENT_SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

#[test]
fn every_frame_is_judged_by_the_old_rule_set_or_by_the_new_one() {
    if skip_without_root("every_frame_is_judged_by_the_old_rule_set_or_by_the_new_one") {
        return;
    }
    let mut datapath = Datapath::new();
    // In the first rule set the source is blocked three times over, and allowed. In the second one nothing is known of
    // it, and a rule of the target drops. A frame that met a part of each would be blocked, listed or clean.
    let allow = vec![AllowEntry { prefix: net("198.18.0.0/15"), label: String::new() }];
    let mut first = set(vec![
        rule(1, Matches::source(net("198.18.0.0/16")), Verdict::Drop),
        rule(2, Matches::source(net("198.19.7.7/32")), Verdict::Drop),
    ]);
    first.allow = allow;
    let second = set(vec![rule(3, Matches::target(net("10.99.0.1/32")), Verdict::Drop)]);
    let lists: [&[&str]; 2] = [&["198.18.0.0/15"], &["192.0.2.0/24"]];
    load_lists(&mut datapath, &[(lists[0], false)], &[], &first);

    let template = PacketBuilder::v4([198, 18, 0, 1], EDGE_V4).macs(WAN_MAC, EDGE_MAC).udp(1_000, 2_000).build();
    let vary = Vary { sources: Some(net("198.18.0.0/15")), ..Vary::default() };
    let before = counters::interface(&datapath.maps, 0).expect("counters");
    let stop = AtomicBool::new(false);
    let lab = Arc::clone(&datapath.lab);
    let (sent, swaps) = std::thread::scope(|scope| {
        let (wan, index) = (&lab.wan, lab.wan0.index);
        let stop_ref = &stop;
        let vary = &vary;
        let template = &template;
        let flood = scope.spawn(move || {
            wan.run(|| {
                let mut generator = Generator::load(template, vary, 7).expect("loads");
                let mut sent = 0;
                while !stop_ref.load(Ordering::Relaxed) {
                    let bounds = Bounds::new(200_000, Duration::from_secs(60));
                    sent += generator.send(index, Pace::PerSecond(400_000), bounds).expect("sends").arrived();
                }
                sent
            })
            .expect("inside")
        });
        let swaps = swaps();
        // The flood must run before the first swap and to the end of the last one.
        for step in 0..swaps {
            let (rules, list) = if step % 2 == 0 { (&second, lists[1]) } else { (&first, lists[0]) };
            load_lists_of(&mut datapath, list, rules);
        }
        stop.store(true, Ordering::Relaxed);
        (flood.join().expect("the flood ends"), swaps)
    });
    let after = counters::interface(&datapath.maps, 0).expect("counters");
    let grown = |reason: Reason| after.reasons[reason.index()].packets - before.reasons[reason.index()].packets;
    let (allowed, dropped) = (grown(Reason::Allowlisted), grown(Reason::TargetRule));
    println!("{swaps} swaps, {sent} frames: {allowed} by the first rule set, {dropped} by the second");
    for reason in [Reason::BlockedPrefix, Reason::BlockedSource, Reason::Listed, Reason::Clean] {
        assert_eq!(grown(reason), 0, "{reason:?}: a part of each rule set");
    }
    assert_eq!(allowed + dropped, sent, "every frame is counted");
    assert!(allowed > 0 && dropped > 0, "both rule sets were in force while frames came");
}

fn load_lists_of(datapath: &mut Datapath, list: &[&str], rules: &RuleSet) {
    load_lists(datapath, &[(list, false)], &[], rules);
}
