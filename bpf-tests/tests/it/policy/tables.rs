//! Puts a world into the kernel's maps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ftagent::clock::mono_ns;
use ftagent::engine::{RuleId, RuleSet};
use ftagent::xdp::compile::{Lists, key};
use ftagent::xdp::gate::{GateMaps, Wanted, settings};
use ftagent::xdp::pins::Pins;
use ftagent::xdp::prefixes::map::PrefixMap;
use ftagent::xdp::prefixes::plan::Plan;
use ftagent::xdp::table::Table;
use ftagent_common::abi::{
    AUTOMATIC, EVALUATE, FIRST_SYN_WORDS, FLOW_SETS, FirstSyn, FlowSet, GateSettings, GatedTarget, HALF_OPEN_SETS,
    Life, NO_RULE, QUERY_SETS, Rate, Seen, feature, first_syn, flow_hash, gate as how, mode,
};
use ftagent_common::api::AllowEntry;
use ftagent_common::vocab::Mode;
use ipnet::IpNet;

use super::gate::{Ends, Gate};
use super::lists::List;
use super::model::{self, World};
use crate::datapath::Datapath;

/// The key of all flows; the same in every round, so that a seed says everything.
const SECRET: [u64; 2] = [0x1234_5678_9abc_def1, 0xfedc_ba98_7654_3211];
/// The sequence number of every segment that the packet builder makes.
const SEQUENCE: u32 = 4_096;
const LONG_AGO: Duration = Duration::from_secs(2);
/// Lists have rules of their own, far from those of worlds.
const FIRST_LIST_RULE: u64 = 1 << 52;

/// The maps that no rule set holds.
pub(crate) struct Tables {
    maps: GateMaps,
    flows: Table<u32, FlowSet>,
    queries: Table<u32, FlowSet>,
    half_open: Table<u32, FlowSet>,
    first_syns: Table<u32, u64>,
    lists: u64,
}

impl Tables {
    pub(crate) fn open(datapath: &Datapath) -> Self {
        let dir = Pins::below(&datapath.dir.bpf()).expect("a bpffs").maps();
        Self {
            maps: GateMaps::open(&dir).expect("maps"),
            flows: Table::open(&dir, "FLOWS", 1).expect("a map"),
            queries: Table::open(&dir, "QUERIES", 1).expect("a map"),
            half_open: Table::open(&dir, "HALF_OPEN", 1).expect("a map"),
            first_syns: Table::open(&dir, "FIRST_SYNS", 1).expect("a map"),
            lists: 0,
        }
    }

    /// Puts the model's world into the kernel.
    pub(crate) fn install(&mut self, datapath: &mut Datapath, world: &World) {
        let allow = |prefix: &IpNet| AllowEntry { prefix: *prefix, label: String::new() };
        let set = RuleSet {
            rules: world.rules.iter().map(|r| (r.id, r.clone())).collect(),
            allow: world.allow.iter().map(allow).collect(),
            mode: Some(world.mode),
            ..RuleSet::default()
        };
        datapath.ground.protected = world.protected.clone();
        datapath.ground.fail_safe = world.fail_safe.clone();
        self.prepare_lists(datapath, &world.lists);
        let settings = &mut datapath.settings;
        settings.mode = match world.mode {
            Mode::Enforce => mode::ENFORCE,
            Mode::Evaluate => mode::EVALUATE,
            Mode::Bypass => mode::BYPASS,
        };
        let features = [
            (true, feature::SOURCES),
            (world.passes_malformed, feature::PASS_MALFORMED),
            (world.gate.judges_answers, feature::REFLECTORS),
            (world.gate.judges_segments, feature::GATE),
        ];
        settings.features = features.iter().filter(|(on, _)| *on).fold(0, |mask, (_, bit)| mask | bit);
        // A heartbeat at 1 ns after the start of the clock was long ago.
        (settings.heartbeat_ns, settings.dead_man_ns) = if world.is_orphaned { (1, 1) } else { (0, 0) };
        // What is sampled takes the long way: the short one is what is on trial, too.
        settings.sample_below = 0;
        settings.not_ip = Rate::packets(model::WIDE_PPS, model::WIDE_PPS);
        datapath.apply(&set);
        // Ids are used again here, as nowhere else: a rule must not find what another one of its name left.
        for rule in &world.rules {
            let slot = datapath.slots.of(rule.id).expect("a slot");
            datapath.maps.rule_states.insert(&slot, &0).expect("a state is cleared");
        }
        self.write_gate(&world.gate);
    }

    fn prepare_lists(&mut self, datapath: &mut Datapath, lists: &[List]) {
        let all = || lists.iter().enumerate().flat_map(|(place, list)| list.prefixes.iter().map(move |p| (*p, place)));
        let v4 = all().filter_map(|(prefix, place)| match prefix {
            IpNet::V4(v4) => Some((v4, place as u16 + 1)),
            IpNet::V6(_) => None,
        });
        let is_evaluated = |value: u16| lists[usize::from(value) - 1].evaluate;
        let plan = Plan::with_idle(v4, is_evaluated, 1 << 30).expect("a table");
        let mut table = 0;
        if !plan.is_empty() {
            self.lists += 1;
            table = self.lists;
            datapath.writer.hold(table, PrefixMap::make(&plan).expect("a table"));
        }
        let rules = (FIRST_LIST_RULE..).map(RuleId).zip(lists.iter().map(|list| list.evaluate)).collect();
        let v6 = all().filter(|(prefix, _)| prefix.addr().is_ipv6()).collect();
        datapath.ground.lists = Some(Arc::new(Lists { table, rules, v6, ..Lists::default() }));
    }

    fn write_gate(&self, gate: &Gate) {
        let wanted =
            Wanted { reflector_ports: gate.reflectors.clone(), served_ports: gate.served.clone(), warmup_ns: 0 };
        let from = |is_young: bool| if is_young { u64::MAX } else { 1 };
        let mut told = settings(&GateSettings::default(), &wanted, &[], true, 1, || SECRET);
        told.flows_from_ns = from(gate.are_flows_young);
        told.queries_from_ns = from(gate.are_queries_young);
        self.maps.settings.insert(&0, &told).expect("written");
        for target in &gate.targets {
            let automatic = if target.is_automatic { AUTOMATIC } else { 0 };
            let entry = GatedTarget {
                expires_at_ns: target.ends,
                rule: NO_RULE,
                flags: automatic | if target.evaluate { EVALUATE } else { 0 },
                how: if target.is_local { how::LOCAL } else { 0 },
                padding: [0; 2],
            };
            self.maps.gated.insert(&key(target.prefix), &entry).expect("written");
        }
        let plain = |ends: &Ends| (*ends, 0);
        learn(&self.flows, FLOW_SETS, gate.flows.iter().map(plain), Life::CONNECTION);
        learn(&self.queries, QUERY_SETS, gate.queries.iter().map(plain), Life::CONNECTION);
        learn(&self.half_open, HALF_OPEN_SETS, gate.half_open.iter().copied(), Life::CONNECTION);
        let before = mono_ns() - LONG_AGO.as_nanos() as u64;
        let mut words = BTreeMap::new();
        for ends in &gate.waited {
            let hash = hash(ends, SEQUENCE);
            let word = words.entry(hash as u32 & (FIRST_SYN_WORDS - 1)).or_insert(0);
            if let FirstSyn::Remember(next) = first_syn(*word, hash, before) {
                *word = next;
            }
        }
        for (index, word) in words {
            self.first_syns.insert(&index, &word).expect("written");
        }
    }

    /// Takes away what rule sets do not hold, also what the datapath added to it.
    pub(crate) fn clear(&self, gate: &Gate) {
        for target in &gate.targets {
            self.maps.gated.remove(&key(target.prefix)).expect("removed");
        }
        let sets = [
            (&self.flows, FLOW_SETS, gate.flows.iter().map(|ends| hash(ends, 0)).collect::<Vec<_>>()),
            (&self.queries, QUERY_SETS, gate.queries.iter().map(|ends| hash(ends, 0)).collect()),
            (&self.half_open, HALF_OPEN_SETS, gate.half_open.iter().map(|(ends, at)| hash(ends, *at)).collect()),
        ];
        for (table, sets, hashes) in sets {
            for hash in hashes {
                table.insert(&(hash as u32 & (sets - 1)), &FlowSet::default()).expect("cleared");
            }
        }
        for ends in gate.waited.iter().chain(gate.sent.keys()) {
            let index = hash(ends, SEQUENCE) as u32 & (FIRST_SYN_WORDS - 1);
            self.first_syns.insert(&index, &0).expect("cleared");
        }
    }
}

/// The hash that the kernel's tables go by.
fn hash(ends: &Ends, number: u32) -> u64 {
    let (protocol, remote, local, ports) = ends;
    flow_hash(&SECRET, &(*remote).into(), &(*local).into(), *ports, *protocol, number)
}

fn learn(table: &Table<u32, FlowSet>, sets: u32, flows: impl Iterator<Item = (Ends, u32)>, life: Life) {
    let mut written: BTreeMap<u32, FlowSet> = BTreeMap::new();
    let mut pick = 0;
    for (ends, number) in flows {
        let hash = hash(&ends, number);
        let set = written.entry(hash as u32 & (sets - 1)).or_default();
        set.learn(&mut pick, hash, mono_ns(), life, Seen::PROOF);
    }
    for (index, set) in written {
        table.insert(&index, &set).expect("written");
    }
}
