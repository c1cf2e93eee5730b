//! Lists beside blocks and beside each other: what does nothing must hide nothing.

use std::net::IpAddr;
use std::sync::Arc;

use bpf_tests::packet::PacketBuilder;
use bpf_tests::skip_without_root;
use ftagent::engine::{Matches, RuleId, RuleSet, Verdict};
use ftagent::xdp::compile::Lists;
use ftagent::xdp::prefixes::map::PrefixMap;
use ftagent::xdp::prefixes::plan::Plan;
use ftagent_common::abi::Reason;
use ipnet::IpNet;

use crate::datapath::{Datapath, net, rule, set};
use crate::lab::{EDGE_V4, EDGE_V6};

/// Puts lists into force, each with its prefixes and whether it is evaluated, in the order of the configuration.
fn load(datapath: &mut Datapath, lists: &[(&[&str], bool)], rules: &RuleSet) {
    let all =
        || lists.iter().enumerate().flat_map(|(place, (list, _))| list.iter().map(move |text| (net(text), place)));
    let v4 = all().filter_map(|(prefix, place)| match prefix {
        IpNet::V4(v4) => Some((v4, place as u16 + 1)),
        IpNet::V6(_) => None,
    });
    let is_evaluated = |value: u16| lists[usize::from(value) - 1].1;
    let plan = Plan::with_idle(v4, is_evaluated, 1 << 30).expect("a table");
    let table = datapath.ground.lists.as_ref().map_or(1, |lists| lists.table + 1);
    datapath.writer.hold(table, PrefixMap::make(&plan).expect("a table"));
    let rules_of = (100..).map(RuleId).zip(lists.iter().map(|(_, evaluate)| *evaluate)).collect();
    let v6 = all().filter(|(prefix, _)| prefix.addr().is_ipv6()).collect();
    datapath.ground.lists = Some(Arc::new(Lists { table, rules: rules_of, v6, ..Lists::default() }));
    datapath.apply(rules);
}

fn from(source: &str) -> Vec<u8> {
    let source: IpAddr = source.parse().expect(source);
    let target: IpAddr = if source.is_ipv4() { EDGE_V4.into() } else { EDGE_V6.into() };
    PacketBuilder::new(source, target).udp(1_000, 2_000).build()
}

#[test]
fn lists_of_both_families_drop_beside_blocks() {
    if skip_without_root("lists_of_both_families_drop_beside_blocks") {
        return;
    }
    let mut datapath = Datapath::new();
    let blocks = set(vec![
        rule(1, Matches::source(net("198.51.100.7/32")), Verdict::Drop),
        rule(2, Matches::source(net("2001:db8:1::/48")), Verdict::Drop),
    ]);
    let lists: [(&[&str], bool); 2] =
        [(&["198.51.100.0/24", "2001:db8:1:2::/64", "2001:db8:3::1/128"], false), (&["192.0.2.0/24"], true)];
    load(&mut datapath, &lists, &blocks);
    for (source, expected) in [
        ("198.51.100.7", Reason::BlockedSource),
        ("198.51.100.8", Reason::Listed),
        ("192.0.2.8", Reason::Clean),
        ("2001:db8:1:2::5", Reason::BlockedPrefix),
        ("2001:db8:1:3::5", Reason::BlockedPrefix),
        ("2001:db8:3::1", Reason::BlockedSource),
        ("2001:db8:3::2", Reason::Clean),
    ] {
        assert_eq!(datapath.judge(&from(source)), expected, "{source}");
    }
}

#[test]
fn an_evaluated_list_makes_no_hole_in_another_list() {
    if skip_without_root("an_evaluated_list_makes_no_hole_in_another_list") {
        return;
    }
    let mut datapath = Datapath::new();
    let lists: [(&[&str], bool); 2] =
        [(&["198.51.100.7/32", "2001:db8:1:2::/64"], true), (&["198.51.100.0/24", "2001:db8:1::/48"], false)];
    load(&mut datapath, &lists, &RuleSet::default());
    assert_eq!(datapath.judge(&from("198.51.100.7")), Reason::Listed);
    assert_eq!(datapath.judge(&from("2001:db8:1:2::5")), Reason::BlockedPrefix);
    // The very same prefix in both: the evaluated list is the first.
    let lists: [(&[&str], bool); 2] = [(&["198.51.100.0/24"], true), (&["198.51.100.0/24"], false)];
    load(&mut datapath, &lists, &RuleSet::default());
    assert_eq!(datapath.judge(&from("198.51.100.7")), Reason::Listed);
}

#[test]
fn an_evaluated_list_makes_no_hole_in_a_block_nor_an_evaluated_rule_in_a_list() {
    if skip_without_root("an_evaluated_list_makes_no_hole_in_a_block_nor_an_evaluated_rule_in_a_list") {
        return;
    }
    let mut datapath = Datapath::new();
    for narrow in ["2001:db8:1:2::5/128", "2001:db8:1:2::/64", "2001:db8:1:2::/120"] {
        let block = set(vec![rule(1, Matches::source(net("2001:db8:1::/47")), Verdict::Drop)]);
        load(&mut datapath, &[(&[narrow], true)], &block);
        assert_eq!(datapath.judge(&from("2001:db8:1:2::5")), Reason::BlockedPrefix, "evaluated list of {narrow}");

        let mut evaluated = rule(1, Matches::source(net(narrow)), Verdict::Drop);
        evaluated.evaluate = true;
        load(&mut datapath, &[(&["2001:db8:1::/47"], false)], &set(vec![evaluated.clone()]));
        assert_eq!(datapath.judge(&from("2001:db8:1:2::5")), Reason::BlockedPrefix, "evaluated rule of {narrow}");

        (evaluated.evaluate, evaluated.expires_at_ns) = (false, Some(1));
        load(&mut datapath, &[(&["2001:db8:1::/47"], false)], &set(vec![evaluated]));
        assert_eq!(datapath.judge(&from("2001:db8:1:2::5")), Reason::BlockedPrefix, "a rule of {narrow} that ended");
    }
}
