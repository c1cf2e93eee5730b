//! A blocked source stays blocked, however its packets are dressed: each way past a filter that is known from other
//! projects is a row here. What cannot be judged by rules is dropped, or counted in a class of its own.

use std::net::IpAddr;

use bpf_tests::packet::{FragmentPosition, PacketBuilder};
use bpf_tests::skip_without_root;
use ftagent::engine::{Matches, Origin, Rule, RuleSet, Verdict};
use ftagent::xdp::counters;
use ftagent_common::abi::Reason;
use ftagent_common::api::AllowEntry;
use ftagent_common::packet::proto;
use ftagent_common::vocab::TrafficClass;

use crate::datapath::{Datapath, net, rule, set};
use crate::disguise::{self, Carrier, Disguised, PORT};
use crate::lab::{EDGE_V4, EDGE_V6, WAN_V4, WAN_V6};

/// Blocked: an address and a network of each kind that has a table of its own.
const BLOCKED: [&str; 5] =
    ["198.51.100.7/32", "203.0.113.0/24", "2001:db8:1::5/128", "2001:db8:2::/64", "2001:db8:3::/48"];
const BLOCKED4: [&str; 2] = ["198.51.100.7", "203.0.113.99"];
const BLOCKED6: [&str; 3] = ["2001:db8:1::5", "2001:db8:2::77", "2001:db8:3:4::9"];

fn address(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn target_of(src: IpAddr) -> IpAddr {
    if src.is_ipv4() { EDGE_V4.into() } else { EDGE_V6.into() }
}

/// A source that nothing is held against.
fn clean_of(src: IpAddr) -> IpAddr {
    if src.is_ipv4() { WAN_V4.into() } else { WAN_V6.into() }
}

fn with_blocks() -> Datapath {
    let mut datapath = Datapath::new();
    let blocks = BLOCKED.iter().zip(1..);
    datapath.apply(&set(blocks.map(|(prefix, id)| rule(id, Matches::source(net(prefix)), Verdict::Drop)).collect()));
    datapath
}

fn with_port_rule() -> Datapath {
    let mut datapath = Datapath::new();
    let of = |target: &str| Matches { dst_port: Some([PORT, PORT]), ..Matches::target(net(target)) };
    datapath.apply(&set(vec![rule(1, of("10.99.0.1/32"), Verdict::Drop), rule(2, of("fd99::1/128"), Verdict::Drop)]));
    datapath
}

/// The reason and the class that a frame is counted in.
fn judged(datapath: &Datapath, frame: &[u8]) -> (Reason, TrafficClass) {
    let read = || counters::interface(&datapath.maps, 0).expect("counters").classes;
    let before = read();
    let reason = datapath.judge(frame);
    let after = read();
    let grown = |c: &&TrafficClass| after[c.index()].total() != before[c.index()].total();
    (reason, *TrafficClass::ALL.iter().find(grown).expect("a class"))
}

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|b| format!("{b:02x}")).collect()
}

fn check_dropped(datapath: &Datapath, frames: &[Disguised]) {
    for (name, frame) in frames {
        let reason = datapath.judge(frame);
        assert!(reason.is_drop(), "{name}: {reason:?}, not dropped: {}", hex(frame));
    }
}

fn check_reasons(datapath: &Datapath, frames: &[Disguised], expected: &[Reason]) {
    for (name, frame) in frames {
        let reason = datapath.judge(frame);
        assert!(expected.contains(&reason), "{name}: {reason:?}, not one of {expected:?}: {}", hex(frame));
    }
}

const BLOCKS: [Reason; 2] = [Reason::BlockedSource, Reason::BlockedPrefix];

#[test]
fn no_tag_option_or_header_chain_hides_a_blocked_source() {
    if skip_without_root("no_tag_option_or_header_chain_hides_a_blocked_source") {
        return;
    }
    let datapath = with_blocks();
    for src in BLOCKED4.iter().chain(&BLOCKED6).map(|s| address(s)) {
        let dst = target_of(src);
        check_reasons(&datapath, &disguise::tagged(src, dst), &BLOCKS);
        check_reasons(&datapath, &disguise::tagged_too_deep(src, dst), &[Reason::Malformed]);
        check_reasons(&datapath, &disguise::icmp(src, dst), &BLOCKS);
        if src.is_ipv4() {
            check_reasons(&datapath, &disguise::with_options(src, dst), &BLOCKS);
        } else {
            check_reasons(&datapath, &disguise::chained(src, dst), &BLOCKS);
            check_reasons(&datapath, &disguise::chained_too_far(src, dst), &[Reason::Malformed]);
        }
        // The same frames of another source pass: they are dropped for their source and for nothing else.
        let clean = clean_of(src);
        let more = if src.is_ipv4() { disguise::with_options(clean, dst) } else { disguise::chained(clean, dst) };
        check_reasons(&datapath, &disguise::tagged(clean, dst), &[Reason::Clean]);
        check_reasons(&datapath, &more, &[Reason::Clean]);
    }
}

#[test]
fn no_fragment_length_or_cut_hides_a_blocked_source() {
    if skip_without_root("no_fragment_length_or_cut_hides_a_blocked_source") {
        return;
    }
    let datapath = with_blocks();
    for src in BLOCKED4.iter().chain(&BLOCKED6).map(|s| address(s)) {
        let dst = target_of(src);
        check_dropped(&datapath, &disguise::fragments(src, dst));
        check_dropped(&datapath, &disguise::odd_lengths(src, dst));
        check_reasons(&datapath, &disguise::cut(src, dst), &[Reason::Malformed]);
        check_reasons(&datapath, &[disguise::wrong_family(src, dst)], &[Reason::Malformed]);
    }
}

#[test]
fn what_is_not_ip_is_counted_so_and_policed() {
    if skip_without_root("what_is_not_ip_is_counted_so_and_policed") {
        return;
    }
    let mut datapath = with_blocks();
    for src in [BLOCKED4[0], BLOCKED6[0]].map(address) {
        for (name, frame) in disguise::not_ip(src, target_of(src)) {
            assert_eq!(judged(&datapath, &frame), (Reason::NotIp, TrafficClass::NotIp), "{name}");
        }
    }
    // A flood of such frames is no way in either: a thousand and more in no time.
    datapath.settings.not_ip = ftagent_common::abi::Rate::packets(10, 10);
    datapath.apply(&set(Vec::new()));
    let frame = &disguise::not_ip(address(BLOCKED4[0]), EDGE_V4.into())[1].1;
    let passed = (0..500).filter(|_| !datapath.judge(frame).is_drop()).count();
    assert!(passed < 250, "{passed} of 500 SNAP frames passed a policer of ten a second");
}

#[test]
fn no_disguise_leads_past_a_rule_on_a_port() {
    if skip_without_root("no_disguise_leads_past_a_rule_on_a_port") {
        return;
    }
    let datapath = with_port_rule();
    for src in [WAN_V4.into(), WAN_V6.into()] {
        let dst = target_of(src);
        check_reasons(&datapath, &disguise::tagged(src, dst), &[Reason::TargetRule]);
        check_reasons(&datapath, &disguise::tagged_too_deep(src, dst), &[Reason::Malformed]);
        check_reasons(&datapath, &disguise::cut(src, dst), &[Reason::Malformed]);
        check_dropped(&datapath, &disguise::odd_lengths(src, dst));
        if src.is_ipv4() {
            check_reasons(&datapath, &disguise::with_options(src, dst), &[Reason::TargetRule]);
        } else {
            check_reasons(&datapath, &disguise::chained(src, dst), &[Reason::TargetRule]);
            check_reasons(&datapath, &disguise::chained_too_far(src, dst), &[Reason::Malformed]);
        }
        for (name, frame) in disguise::fragments(src, dst) {
            // A later fragment has no ports to compare: it is no clean packet, but one of the class of fragments.
            let (reason, class) = judged(&datapath, &frame);
            let seen = reason.is_drop() || class == TrafficClass::Fragment;
            assert!(seen, "{name}: {reason:?} in {class:?}: {}", hex(&frame));
            let is_first = name.contains("at 0,");
            assert!(!is_first || reason == Reason::TargetRule, "{name}: {reason:?}: {}", hex(&frame));
        }
    }
}

#[test]
fn a_rule_on_fragments_meets_every_fragment() {
    if skip_without_root("a_rule_on_fragments_meets_every_fragment") {
        return;
    }
    let mut datapath = Datapath::new();
    let of = |target: &str| Matches { fragment: Some(true), ..Matches::target(net(target)) };
    datapath.apply(&set(vec![rule(1, of("10.99.0.1/32"), Verdict::Drop), rule(2, of("fd99::1/128"), Verdict::Drop)]));
    for src in [WAN_V4.into(), WAN_V6.into()] {
        let dst = target_of(src);
        check_dropped(&datapath, &disguise::fragments(src, dst));
        let atomic = FragmentPosition { offset: 0, more: false, id: 1 };
        let whole = disguise::plain(src, dst).fragment(atomic).build();
        assert_eq!(datapath.judge(&whole), Reason::Clean, "an atomic fragment is a whole datagram (RFC 6946)");
    }
}

#[test]
fn only_this_links_neighbours_may_discover() {
    if skip_without_root("only_this_links_neighbours_may_discover") {
        return;
    }
    let datapath = with_blocks();
    let src = address(BLOCKED6[0]);
    let solicitation = |ttl: u8| PacketBuilder::new(src, EDGE_V6.into()).icmp(135, 0).ttl(ttl).payload(&[0; 24]);
    assert_eq!(datapath.judge(&solicitation(255).build()), Reason::FailSafe, "of this link");
    assert_eq!(datapath.judge(&solicitation(255).vlan(0x8100, 7).build()), Reason::FailSafe, "of this link's VLAN");
    for ttl in [0, 1, 64, 254] {
        assert_eq!(datapath.judge(&solicitation(ttl).build()), Reason::BlockedSource, "hop limit {ttl}");
    }
    // The protocol's number in IPv4 is nobody's neighbour.
    let v4 = PacketBuilder::new(address(BLOCKED4[0]), EDGE_V4.into()).protocol(proto::ICMPV6).ttl(255);
    let frame = v4.payload(&[135, 0, 0, 0, 0, 0, 0, 0]).build();
    assert_eq!(datapath.judge(&frame), Reason::BlockedSource, "ICMPv6 in IPv4: {}", hex(&frame));
    // RFC 6980 section 5: discovery is never fragmented.
    let first = FragmentPosition { offset: 0, more: true, id: 1 };
    let frame = solicitation(255).fragment(first).build();
    assert_eq!(datapath.judge(&frame), Reason::BlockedSource, "a fragmented solicitation: {}", hex(&frame));
}

#[test]
fn no_tunnel_hides_a_blocked_source_and_none_is_hidden_by_its_content() {
    if skip_without_root("no_tunnel_hides_a_blocked_source_and_none_is_hidden_by_its_content") {
        return;
    }
    let datapath = with_blocks();
    let all = || BLOCKED4.iter().chain(&BLOCKED6).map(|s| address(s));
    for (blocked, carrier) in all().flat_map(|src| disguise::CARRIERS.map(|c| (src, c))) {
        let bad = disguise::plain(blocked, target_of(blocked)).build();
        let good = disguise::plain(clean_of(blocked), target_of(blocked)).build();
        // The packet around of either family: IPIP, 6in4, 4in6 and 6in6.
        for family in [address(BLOCKED4[0]), address(BLOCKED6[0])] {
            let around = |src| PacketBuilder::new(src, target_of(family));
            let name = format!("{blocked} by {carrier:?} over {family}");
            let inside = disguise::carried(around(clean_of(family)), carrier, &bad);
            let tagged = inside.clone().vlan(0x88a8, 7).vlan(0x8100, 8);
            check_reasons(&datapath, &[(name.clone(), inside.build()), (name.clone(), tagged.build())], &BLOCKS);
            let outside = disguise::carried(around(family), carrier, &good).build();
            check_reasons(&datapath, &[(format!("{name}, blocked outside"), outside)], &BLOCKS);
            let both = disguise::carried(around(clean_of(family)), carrier, &good).build();
            check_reasons(&datapath, &[(format!("{name}, nothing blocked"), both)], &[Reason::Clean]);
            // Cut anywhere, it is refused.
            let whole = inside.build();
            let cuts: Vec<Disguised> =
                (14..whole.len()).map(|len| (format!("{name}, cut at {len}"), whole[..len].to_vec())).collect();
            check_reasons(&datapath, &cuts, &[Reason::Malformed]);
        }
    }
}

#[test]
fn what_a_tunnel_carries_has_the_lengths_and_headers_of_any_packet() {
    if skip_without_root("what_a_tunnel_carries_has_the_lengths_and_headers_of_any_packet") {
        return;
    }
    let datapath = with_blocks();
    for (src, carrier) in [BLOCKED4[0], BLOCKED6[0]].into_iter().flat_map(|s| disguise::CARRIERS.map(|c| (s, c))) {
        let src = address(src);
        let dst = target_of(src);
        let mut inside = disguise::fragments(src, dst);
        inside.extend(disguise::odd_lengths(src, dst));
        inside.extend(if src.is_ipv4() { disguise::with_options(src, dst) } else { disguise::chained(src, dst) });
        for (name, inner) in inside {
            let frame = disguise::carried(PacketBuilder::v4(WAN_V4, EDGE_V4), carrier, &inner).build();
            check_dropped(&datapath, &[(format!("{name} by {carrier:?}"), frame)]);
        }
    }
    // A hop limit of 255 in a tunnel says nothing of where the packet came from.
    let src = address(BLOCKED6[0]);
    let solicitation = PacketBuilder::new(src, EDGE_V6.into()).icmp(135, 0).ttl(255).payload(&[0; 24]).build();
    for carrier in disguise::CARRIERS {
        let frame = disguise::carried(PacketBuilder::v4(WAN_V4, EDGE_V4), carrier, &solicitation).build();
        assert_eq!(datapath.judge(&frame), Reason::BlockedSource, "{carrier:?}: {}", hex(&frame));
    }
}

#[test]
fn a_rule_on_a_port_meets_what_tunnels_carry() {
    if skip_without_root("a_rule_on_a_port_meets_what_tunnels_carry") {
        return;
    }
    let datapath = with_port_rule();
    for (src, carrier) in
        [IpAddr::from(WAN_V4), WAN_V6.into()].into_iter().flat_map(|s| disguise::CARRIERS.map(|c| (s, c)))
    {
        let inner = disguise::plain(src, target_of(src)).build();
        for around in [PacketBuilder::v4(WAN_V4, EDGE_V4), PacketBuilder::v6(WAN_V6, EDGE_V6)] {
            let frame = disguise::carried(around, carrier, &inner).build();
            assert_eq!(datapath.judge(&frame), Reason::TargetRule, "{carrier:?}: {}", hex(&frame));
        }
    }
}

#[test]
fn tunnels_that_are_not_opened_are_counted_as_such() {
    if skip_without_root("tunnels_that_are_not_opened_are_counted_as_such") {
        return;
    }
    let datapath = with_blocks();
    let bad = disguise::plain(address(BLOCKED4[0]), EDGE_V4.into()).build();
    let outer = || PacketBuilder::v4(WAN_V4, EDGE_V4);
    let gre = |header: &[u8]| outer().protocol(proto::GRE).payload(&[header, &bad[14..]].concat()).build();
    let twice =
        disguise::carried(outer(), Carrier::Plain, &disguise::carried(outer(), Carrier::Gre([0, 0]), &bad).build());
    let first = FragmentPosition { offset: 0, more: true, id: 7 };
    let part = disguise::carried(outer(), Carrier::Plain, &bad).fragment(first);
    let rows = [
        ("source routing (RFC 1701)", gre(&[0x40, 0, 0x08, 0]), TrafficClass::Gre),
        ("GRE of version 1 (PPTP)", gre(&[0x30, 1, 0x88, 0x0b, 0, 20, 0, 1, 0, 0, 0, 1]), TrafficClass::Gre),
        ("Ethernet in GRE", gre(&[0, 0, 0x65, 0x58]), TrafficClass::Gre),
        ("a tunnel in a tunnel", twice.build(), TrafficClass::Gre),
        ("a fragment of a tunnel's packet", part.build(), TrafficClass::Fragment),
        ("ESP", outer().protocol(proto::ESP).payload(&bad[14..]).build(), TrafficClass::Esp),
    ];
    for (name, frame, class) in rows {
        assert_eq!(judged(&datapath, &frame), (Reason::Clean, class), "{name}: {}", hex(&frame));
    }
}

#[test]
fn what_is_said_of_all_of_ipv6_is_not_said_of_ipv4() {
    if skip_without_root("what_is_said_of_all_of_ipv6_is_not_said_of_ipv4") {
        return;
    }
    let mut datapath = Datapath::new();
    let block = rule(1, Matches::source(net("198.51.100.7/32")), Verdict::Drop);
    let flood = rule(2, Matches { protocol: Some(6), ..Matches::target(net("::/0")) }, Verdict::Drop);
    let allow = |text: &str| AllowEntry { prefix: net(text), label: String::new() };
    // The second entry makes the kernel look for the blocked address at all.
    let rules = RuleSet { allow: vec![allow("::/0"), allow("198.51.99.0/24")], ..set(vec![block, flood]) };
    datapath.apply(&rules);
    let blocked = disguise::plain(address(BLOCKED4[0]), EDGE_V4.into()).build();
    assert_eq!(datapath.judge(&blocked), Reason::BlockedSource);
    assert_eq!(datapath.judge(&disguise::plain(address("2001:db8::1"), EDGE_V6.into()).build()), Reason::Allowlisted);
    datapath.apply(&RuleSet { allow: Vec::new(), ..rules });
    let elsewhere = disguise::plain(WAN_V4.into(), [10, 77, 0, 1].into()).build();
    assert_eq!(datapath.judge(&elsewhere), Reason::Clean, "TCP over IPv4 to an address that is not protected");
    let six = disguise::plain(WAN_V6.into(), address("2001:db8:77::1")).build();
    assert_eq!(datapath.judge(&six), Reason::TargetRule);
}

#[test]
fn no_narrow_block_hides_a_wide_one() {
    if skip_without_root("no_narrow_block_hides_a_wide_one") {
        return;
    }
    let mut datapath = Datapath::new();
    datapath.settings.dead_man_ns = 1;
    datapath.settings.heartbeat_ns = 1;
    let wide = |id, prefix: &str| rule(id, Matches::source(net(prefix)), Verdict::Drop);
    let narrow = |id, prefix: &str, what: fn(&mut Rule)| {
        let mut rule = wide(id, prefix);
        what(&mut rule);
        rule
    };
    let ended = |r: &mut Rule| r.expires_at_ns = Some(1);
    // User space is silent: what is automatic does not count.
    let automatic = |r: &mut Rule| r.origin = Origin::Response { incident: uuid::Uuid::nil() };
    let evaluated = |r: &mut Rule| r.evaluate = true;
    let mut rules = vec![wide(1, "203.0.0.0/16"), wide(2, "2001:db8::/32"), wide(3, "2001:db9:0:2::/63")];
    let kinds: [fn(&mut Rule); 3] = [ended, automatic, evaluated];
    for (what, id) in kinds.into_iter().zip([10, 20, 30]) {
        let prefixes = [
            format!("203.0.{id}.0/24"),
            format!("203.0.{id}.1/32"),
            format!("2001:db8:{id}::/48"),
            format!("2001:db8:{id}::/49"),
            format!("2001:db8:{id}::/64"),
            format!("2001:db8:{id}::1/128"),
        ];
        rules.extend(prefixes.iter().zip(id..).map(|(prefix, id)| narrow(id, prefix, what)));
    }
    // A wide one that is only evaluated is asked before this trie, and hides nothing in it either.
    rules.push(narrow(40, "2001:db9::/48", evaluated));
    datapath.apply(&set(rules));
    let mut sources = vec!["2001:db9:0:2::1".to_owned()];
    for id in [10, 20, 30] {
        sources.extend([format!("203.0.{id}.1"), format!("203.0.{id}.2")]);
        sources.extend([format!("2001:db8:{id}::1"), format!("2001:db8:{id}::2"), format!("2001:db8:{id}:8000::1")]);
    }
    for src in sources {
        let src = address(&src);
        let frame = disguise::plain(src, target_of(src)).build();
        assert_eq!(datapath.judge(&frame), Reason::BlockedPrefix, "{src}: {}", hex(&frame));
    }
}
