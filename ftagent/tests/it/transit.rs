//! Hypervisors and routers: targets behind the node, thresholds of their own, and what tunnels carry through it.

use std::net::IpAddr;

use ftagent::engine::{Settings, Verdict};
use ftagent_common::api::HostThreshold;
use ftagent_common::vocab::AttackFamily as F;
use ftagent_lab::floods::{Dice, Maker, Spec};
use ipnet::IpNet;

use crate::kernel::{Kernel, MS, SEC};
use crate::scripts::{SYN, THREE, flood, only};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// DNS answers of some hundred resolvers.
const ANSWERS: Maker = |d, t| {
    let resolver = match t {
        IpAddr::V4(_) => IpAddr::from([9, 9, 9, d.below(250) as u8]),
        IpAddr::V6(_) => std::net::Ipv6Addr::from(0x2620_00fe << 96 | u128::from(d.below(250))).into(),
    };
    let mut s = Spec::new(resolver, t, 17);
    (s.ttl, s.src_port, s.dst_port) = (57, 53, 1_024 + d.below(60_000) as u16);
    s.payload = [&[d.roll() as u8, 7, 0x81, 0x80, 0, 1, 0, 20, 0, 0, 0, 1][..], &[0xc0; 1_200]].concat();
    s
};

/// In what a packet is carried.
#[derive(Clone, Copy, Debug)]
enum Carrier {
    None,
    IpIp,
    Gre,
    /// Of IPv4 around IPv6.
    SixInFour,
}

/// The frame of `inner` between the ends of a tunnel.
fn carried(carrier: Carrier, inner: &Spec) -> Vec<u8> {
    let frame = inner.frame();
    let packet = &frame[14..];
    let ether_type = if inner.dst.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    let (protocol, payload) = match carrier {
        Carrier::None => return frame,
        Carrier::IpIp => (4, packet.to_vec()),
        Carrier::SixInFour => (41, packet.to_vec()),
        // With a key (RFC 2890).
        Carrier::Gre => (47, [&[0x20, 0][..], &ether_type, &[0, 0, 0, 7], packet].concat()),
    };
    let mut outer = Spec::new(ip("192.0.2.1"), ip("192.0.2.2"), protocol);
    outer.payload = payload;
    outer.frame()
}

/// What the engine makes of a flood that a tunnel carries.
fn check(carrier: Carrier, make: Maker, target: &str, family: F) {
    let mut k = Kernel::new(Settings::default());
    k.run_for(SEC);
    let (start, mut dice) = (k.now_ns, Dice(7));
    for i in 0..20_000u64 {
        let frame = carried(carrier, &make(&mut dice, ip(target)));
        k.frame(&frame, frame.len(), start + i * SEC / 20_000);
    }
    k.run_for(50 * MS);
    let view = k.engine.view();
    let [report] = &view.incidents[..] else { panic!("{carrier:?}: {:?}", view.incidents) };
    assert_eq!((report.target, report.family), (IpNet::from(ip(target)), family), "{carrier:?} {report:#?}");
    let dropped = k.datapath.dropped as f64 / 20_000.0;
    assert!(report.confidence >= 0.5 && dropped > 0.4, "{carrier:?}: {dropped} {:?}", report.explanation);
    for rule in k.automatic() {
        let aim = rule.matches.target;
        assert!(aim.is_none_or(|aim| aim.contains(&ip(target))), "{carrier:?}: {rule:?}");
    }
}

#[test]
fn the_target_of_a_flood_in_a_tunnel_is_the_address_inside() {
    for carrier in [Carrier::None, Carrier::IpIp, Carrier::Gre] {
        check(carrier, THREE, "198.51.100.7", F::UdpFlood);
        check(carrier, SYN, "198.51.100.7", F::SynFlood);
        check(carrier, ANSWERS, "198.51.100.7", F::DnsAmplification);
    }
    for carrier in [Carrier::None, Carrier::SixInFour, Carrier::Gre] {
        check(carrier, SYN, "2001:db8:5::7", F::SynFlood);
        check(carrier, ANSWERS, "2001:db8:5::7", F::DnsAmplification);
    }
}

#[test]
fn each_target_behind_the_node_has_its_own_threshold() {
    let host = |target: &str, pps| HostThreshold { target: target.parse().expect("a prefix"), pps, bps: None };
    let mut settings = Settings {
        thresholds: vec![host("198.51.100.7/32", Some(2_000)), host("198.51.100.8/32", Some(60_000))],
        ..Settings::default()
    };
    settings.guard.own = vec!["192.0.2.1/32".parse().expect("a prefix")];
    let mut k = Kernel::new(settings);
    flood(&mut k, THREE, "198.51.100.8", 30_000, 2_000);
    assert!(k.reports.is_empty(), "it may have 60,000");
    flood(&mut k, THREE, "198.51.100.9", 8_000, 2_000);
    assert!(k.reports.is_empty(), "and this one 10,000, as everybody");
    flood(&mut k, THREE, "198.51.100.7", 3_000, 2_000);
    let report = only(&k);
    assert_eq!(report.target.to_string(), "198.51.100.7/32");
    assert_eq!((report.threshold.value, report.threshold.origin.as_str()), (2_000, "host"));
    // None of them is the node's own: rules guard what it forwards as well.
    assert!(!k.automatic().is_empty() && k.automatic().iter().all(|r| r.verdict == Verdict::Drop));
}

#[test]
fn several_tunnels_ends_are_not_confused_with_what_they_carry() {
    // All that passes between two ends of a tunnel is one pair of addresses outside, and many targets inside.
    let mut k = Kernel::new(Settings::default());
    let (start, mut dice) = (k.now_ns, Dice(3));
    for i in 0..40_000u64 {
        let target = ["198.51.100.7", "203.0.113.9"][(i % 2) as usize];
        let frame = carried(Carrier::IpIp, &SYN(&mut dice, ip(target)));
        k.frame(&frame, frame.len(), start + i * SEC / 40_000);
    }
    k.run_for(50 * MS);
    let mut targets: Vec<String> = k.reports.values().map(|r| r.target.to_string()).collect();
    targets.sort();
    assert_eq!(targets, ["198.51.100.7/32", "203.0.113.9/32"]);
}

#[test]
fn a_flood_of_tunnels_whose_packets_are_for_nobody_here_is_one_on_their_end() {
    let mut k = Kernel::protecting(Settings::default(), vec!["192.0.2.2/32".parse().expect("a prefix")]);
    let (start, mut dice) = (k.now_ns, Dice(5));
    for i in 0..40_000u64 {
        let anybody = IpAddr::from([100, 64 + dice.below(60) as u8, dice.below(250) as u8, 1 + dice.below(250) as u8]);
        let frame = carried(Carrier::Gre, &THREE(&mut dice, anybody));
        k.frame(&frame, frame.len(), start + i * SEC / 40_000);
    }
    k.run_for(50 * MS);
    let report = only(&k);
    assert_eq!((report.target.to_string().as_str(), report.family), ("192.0.2.2/32", F::GreFlood), "{report:#?}");
    assert!(report.confidence >= 0.5 && k.datapath.dropped > 20_000, "{} {report:#?}", k.datapath.dropped);
}
