//! The table against a plain longest-match model, and in the kernel.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use ftagent_common::abi::prefixes::{Cell, LEVEL1_CELLS, NONE, lookup};
use ipnet::Ipv4Net;
use proptest::prelude::*;

use super::map::PrefixMap;
use super::plan::{Plan, PlanError, Weight};
use super::tables::ListTables;
use crate::clock;
use crate::engine::RuleId;
use crate::lists::{ListAction, ListInForce, ListSet, LoadedList, Report, Stamp};

const UNLIMITED: u64 = u64::MAX;

type Entries = Vec<(Ipv4Net, u16)>;

/// What the table must say: one map for each length, asked from the longest on.
struct Model(Vec<BTreeMap<u32, u16>>);

impl Model {
    fn new(entries: &[(Ipv4Net, u16)]) -> Self {
        let mut lengths = vec![BTreeMap::new(); 33];
        for (prefix, value) in entries {
            let there = lengths[usize::from(prefix.prefix_len())].entry(u32::from(prefix.network())).or_insert(*value);
            *there = (*value).min(*there);
        }
        Self(lengths)
    }

    fn lookup(&self, address: u32) -> u16 {
        let found = self.0.iter().zip(0..33u32).rev().find_map(|(networks, length)| {
            networks.get(&(address & u32::MAX.checked_shl(32 - length).unwrap_or(0))).copied()
        });
        found.unwrap_or(NONE)
    }
}

fn net(address: u32, length: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::from(address), length).expect("at most 32")
}

fn entries(texts: &[(&str, u16)]) -> Entries {
    texts.iter().map(|(text, value)| (text.parse().expect(text), *value)).collect()
}

fn written(entries: &[(Ipv4Net, u16)]) -> (Plan, Vec<Cell>) {
    let plan = Plan::new(entries.iter().copied(), UNLIMITED).expect("no limit");
    let mut cells = vec![Cell::default(); plan.cells() as usize];
    plan.write(&mut cells);
    plan.check(&cells).expect("as planned");
    (plan, cells)
}

fn ask(cells: &[Cell], address: u32) -> u16 {
    lookup(|index| cells.get(index as usize).map(|cell| cell.0), address)
}

/// The addresses on both sides of both edges of every prefix.
fn edges(entries: &[(Ipv4Net, u16)]) -> impl Iterator<Item = u32> {
    entries.iter().flat_map(|(prefix, _)| {
        let (first, last) = (u32::from(prefix.network()), u32::from(prefix.broadcast()));
        [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
    })
}

fn check(entries: &[(Ipv4Net, u16)]) -> Vec<Cell> {
    let (_, cells) = written(entries);
    let model = Model::new(entries);
    for address in edges(entries) {
        assert_eq!(ask(&cells, address), model.lookup(address), "{} of {entries:?}", Ipv4Addr::from(address));
    }
    cells
}

/// A generator of its own: the same numbers in every run, on every machine.
fn numbers(mut state: u64) -> impl FnMut() -> u32 {
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    }
}

fn mixed(count: usize) -> Entries {
    let mut number = numbers(7);
    (0..count).map(|i| (net(number(), 16 + (i % 17) as u8), 1 + (i % 5) as u16)).collect()
}

#[test]
fn every_length_is_found_at_its_edges() {
    for length in 0..=32 {
        for address in [0, 0xc633_640b, 0xffff_ffff, 0x8000_0000] {
            check(&[(net(address, length).trunc(), 9)]);
        }
    }
}

#[test]
fn every_address_of_a_nest_has_its_longest_match() {
    let nest: Entries = (14..=32).map(|length| (net(0xc633_649d, length).trunc(), u16::from(length))).collect();
    let (_, cells) = written(&nest);
    let model = Model::new(&nest);
    let first = u32::from(net(0xc633_649d, 14).network());
    for address in first - 1024..first + (1 << 18) + 1024 {
        assert_eq!(ask(&cells, address), model.lookup(address), "{}", Ipv4Addr::from(address));
    }
}

#[test]
fn nothing_is_one_cell() {
    let (plan, cells) = written(&[]);
    assert!(plan.is_empty());
    assert_eq!(cells.len(), 1);
    for address in [0, 1 << 14, u32::MAX] {
        assert_eq!(ask(&cells, address), NONE);
    }
}

#[test]
fn of_equal_prefixes_the_smallest_value_holds_in_any_order() {
    for order in [[5, 3, 4], [3, 4, 5], [4, 5, 3]] {
        let cells = check(&order.map(|value| (net(0x0a00_0000, 8), value)));
        assert_eq!(ask(&cells, 0x0a01_0203), 3);
    }
}

#[test]
fn what_a_wider_prefix_says_already_takes_no_room() {
    let wide = written(&entries(&[("198.51.0.0/16", 4)])).0.bytes();
    let with_covered = entries(&[("198.51.0.0/16", 4), ("198.51.100.0/24", 4), ("198.51.100.7/32", 4)]);
    assert_eq!(written(&with_covered).0.bytes(), wide);
}

#[test]
fn a_hole_in_a_prefix_is_a_miss() {
    let cells = check(&entries(&[("198.51.0.0/16", 4), ("198.51.100.0/24", NONE), ("198.51.101.7/32", NONE)]));
    assert_eq!((ask(&cells, 0xc633_6401), ask(&cells, 0xc633_6507), ask(&cells, 0xc633_6508)), (NONE, NONE, 4));
}

#[test]
fn neighbours_of_one_value_and_of_many_are_told_apart() {
    let same: Entries = (10..=200).map(|octet| (net(0xc633_6400 | octet, 32), 6)).collect();
    check(&same);
    let many: Entries = (0..=255).map(|octet| (net(0xc633_6400 | octet, 32), 1 + octet as u16)).collect();
    let cells = check(&many);
    for octet in 0..=255 {
        assert_eq!(ask(&cells, 0xc633_6400 | octet), 1 + octet as u16);
    }
}

#[test]
fn the_whole_address_space_in_two_values() {
    let cells = check(&entries(&[("0.0.0.0/0", 1), ("128.0.0.0/1", 2), ("255.255.255.255/32", 3)]));
    assert_eq!((ask(&cells, 0), ask(&cells, 0xffff_fffe), ask(&cells, u32::MAX)), (1, 2, 3));
}

#[test]
fn a_table_over_the_limit_is_refused_with_both_figures() {
    let limit = u64::from(LEVEL1_CELLS) * 16;
    let refused = Plan::new(entries(&[("198.51.100.7/32", 1)]), limit).expect_err("a descriptor more");
    assert_eq!(refused, PlanError::TooLarge { prefixes: 1, bytes: limit + 64, limit });
    assert_eq!(refused.to_string(), "1 prefixes need a table of 4194368 bytes, and the limit is 4194304");
    assert!(Plan::new(entries(&[("198.51.100.7/32", 1)]), limit + 64).is_ok());
    assert!(Plan::new(entries(&[("198.0.0.0/8", 1)]), limit).is_ok());
}

#[test]
fn a_cell_that_says_something_else_is_noticed() {
    let (plan, mut cells) = written(&mixed(500));
    let touched = cells.iter().rposition(|cell| cell.0[0] != 0).expect("a leaf or descriptor");
    cells[touched].0 = [0; 2];
    plan.check(&cells).expect_err("an entry is gone");
}

#[test]
fn a_million_mixed_prefixes_become_a_table() {
    let entries = mixed(1_000_000);
    let started_ns = clock::mono_ns();
    let ms = || (clock::mono_ns() - started_ns) / 1_000_000;
    let plan = Plan::new(entries.iter().copied(), UNLIMITED).expect("no limit");
    let planned = ms();
    let mut cells = vec![Cell::default(); plan.cells() as usize];
    plan.write(&mut cells);
    let written = ms();
    plan.check(&cells).expect("as planned");
    let checked = ms();
    println!(
        "1,000,000 mixed prefixes: planned after {planned} ms, written {written}, checked {checked}; {} bytes",
        plan.bytes()
    );
    let model = Model::new(&entries);
    let mut number = numbers(11);
    for index in 0..100_000 {
        let address = if index % 2 == 0 { number() } else { u32::from(entries[index * 7].0.broadcast()) };
        assert_eq!(ask(&cells, address), model.lookup(address), "{}", Ipv4Addr::from(address));
    }
}

/// Many prefixes in few blocks, so that they meet; some anywhere.
fn any_entries() -> impl Strategy<Value = Entries> {
    let near = (0u32..1 << 16, 0u8..=32).prop_map(|(low, length)| net(0xc633_0000 | low, length));
    let within = (0u32..1 << 10, 22u8..=32).prop_map(|(low, length)| net(0xc633_0000 | low, length));
    let anywhere = (any::<u32>(), 0u8..=32).prop_map(|(address, length)| net(address, length));
    let prefix = prop_oneof![4 => within, 3 => near, 1 => anywhere];
    prop::collection::vec((prefix, prop_oneof![4 => 0u16..4, 1 => any::<u16>()]), 0..60)
}

proptest! {
    #[test]
    fn the_table_is_longest_match(entries in any_entries(), others in prop::collection::vec(any::<u32>(), 0..20)) {
        let (_, cells) = written(&entries);
        let model = Model::new(&entries);
        let inside = (0..1 << 10).map(|low| 0xc633_0000 | low);
        for address in edges(&entries).chain(others).chain(inside) {
            prop_assert_eq!(ask(&cells, address), model.lookup(address), "{}", Ipv4Addr::from(address));
        }
    }
}

#[test]
fn the_kernel_holds_what_was_planned() {
    let entries = mixed(20_000);
    let plan = Plan::new(entries.iter().copied(), UNLIMITED).expect("no limit");
    let map = match PrefixMap::make(&plan) {
        Ok(map) => map,
        Err(error) if !nix::unistd::geteuid().is_root() => {
            println!("skipped: making maps needs root ({error})");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    let model = Model::new(&entries);
    let read = |index| map.cell(index).expect("a look-up").map(|cell| cell.0);
    for address in edges(&entries).step_by(3) {
        assert_eq!(lookup(read, address), model.lookup(address), "{}", Ipv4Addr::from(address));
    }
    assert_eq!(map.cell(map.cells()).expect("a look-up"), None);
}

#[test]
fn a_table_that_was_made_cannot_be_changed() {
    let plan = Plan::new([], UNLIMITED).expect("no limit");
    let Ok(map) = PrefixMap::make(&plan) else {
        assert!(!nix::unistd::geteuid().is_root(), "root can make maps");
        println!("skipped: making maps needs root");
        return;
    };
    let shown = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd())).expect("a map");
    assert!(shown.lines().any(|line| line == "frozen:\t1"), "{shown}");
}

#[test]
fn what_ends_hides_nothing_that_lasts_and_what_is_idle_hides_neither() {
    // 1 lasts, 2 and 3 end, 4 is idle.
    let weight = |value| match value {
        1 => Weight::Lasting,
        4 => Weight::Idle,
        _ => Weight::Ending,
    };
    for (prefixes, address, expected) in [
        (&[("192.0.2.0/24", 1), ("192.0.2.7/32", 2)][..], "192.0.2.7", 1),
        (&[("192.0.2.0/24", 2), ("192.0.2.7/32", 1)], "192.0.2.7", 1),
        (&[("192.0.2.0/24", 2), ("192.0.2.7/32", 3)], "192.0.2.7", 3),
        (&[("192.0.2.0/24", 2), ("192.0.2.7/32", 4)], "192.0.2.7", 2),
        (&[("192.0.2.0/24", 4), ("192.0.2.7/32", 2)], "192.0.2.7", 2),
        (&[("192.0.2.0/24", 4), ("192.0.2.7/32", 2)], "192.0.2.8", 4),
        (&[("192.0.2.7/32", 4), ("192.0.2.7/32", 3), ("192.0.2.7/32", 1)], "192.0.2.7", 1),
        (&[("192.0.0.0/16", 1), ("192.0.2.0/24", 4), ("192.0.2.7/32", 2)], "192.0.2.7", 1),
    ] {
        let plan = Plan::with_weights(entries(prefixes), weight, UNLIMITED).expect("no limit");
        let mut cells = vec![Cell::default(); plan.cells() as usize];
        plan.write(&mut cells);
        let address: Ipv4Addr = address.parse().expect(address);
        assert_eq!(ask(&cells, address.into()), expected, "{address} of {prefixes:?}");
    }
}

#[test]
fn of_two_lists_with_one_prefix_the_first_holds_in_the_kernel() {
    let list = |name: &str, v4: &[&str], v6: &[&str]| ListInForce {
        name: name.to_owned(),
        rule: RuleId(name.len() as u64),
        action: ListAction::Evaluate,
        ends_at_ns: 0,
        list: Arc::new(LoadedList {
            v4: v4.iter().map(|net| net.parse().expect("a prefix")).collect(),
            v6: v6.iter().map(|net| net.parse().expect("a prefix")).collect(),
            report: Report::default(),
            stamp: Stamp::default(),
        }),
    };
    let first = list("a", &["198.51.100.0/24"], &["2001:db8::/64"]);
    let second = list("bb", &["198.51.100.0/24", "198.51.100.7/32"], &["2001:db8::/64", "2001:db8::1/128"]);
    let set = ListSet { lists: vec![first, second] };
    let tables = match ListTables::make(&set, UNLIMITED) {
        Ok(tables) => tables,
        Err(error) => {
            assert!(!nix::unistd::geteuid().is_root(), "{error}");
            println!("skipped: making maps needs root ({error})");
            return;
        }
    };
    let map = tables.v4.expect("IPv4 prefixes");
    let read = |index| map.cell(index).expect("a look-up").map(|cell| cell.0);
    assert_eq!((lookup(read, 0xc633_6406), lookup(read, 0xc633_6407), lookup(read, 0xc633_6507)), (1, 2, NONE));
    assert_eq!((tables.v6.networks[0].1, tables.v6.addresses[0].1, tables.prefixes), (1, 2, 6));
    assert_eq!(tables.rules, [(RuleId(1), ListAction::Evaluate), (RuleId(2), ListAction::Evaluate)]);
    let refused = ListTables::make(&set, 1_000).expect_err("too large").to_string();
    assert!(refused.contains("the limit is 1000: raise datapath.max_memory_bytes"), "{refused}");
    assert!(ListTables::make(&ListSet::default(), 16).expect("one cell").v4.is_none());
}
