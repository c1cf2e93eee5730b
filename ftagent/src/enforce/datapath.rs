//! Rules in XDP (or tc): the maps are brought to what should be, and repaired when somebody else changed them.
//!
//! The pinned maps are their own journal. Whatever a dead agent left in them is read at start, and what no rule wants
//! is removed; every automatic entry ends by itself besides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ftagent_common::abi::{Rate, SKETCH_MAX, Settings, feature, mode};
use ftagent_common::api::MapReport;
use ftagent_common::vocab::Mode;
use ipnet::IpNet;

use super::gate::Gate;
use super::left::Left;
use crate::config::DatapathConfig;
use crate::engine::{EnforceResult, Point, Rule, RuleId, RuleSet};
use crate::lists::ListAction;
use crate::xdp::compile::{Compiled, Ground, Lists, Refusal, Slots, Tables, compile, key};
use crate::xdp::maps::Maps;
use crate::xdp::prefixes::tables::ListTables;
use crate::xdp::table::TableError;
use crate::xdp::writer::Writer;

/// The enforcer of the datapath, and the writer of its settings.
pub struct Datapath {
    pub maps: Maps,
    writer: Writer,
    pub slots: Slots,
    ground: Ground,
    config: DatapathConfig,
    dead_man_ns: u64,
    mode: Mode,
    features: u32,
    /// How many frames one sample stands for.
    one_in: u32,
    in_force: BTreeMap<RuleId, Rule>,
    /// Rules whose failure was told already.
    failing: BTreeSet<RuleId>,
    /// Rules that could be in the maps and are not: these or the rule book are full, or refuse to be written.
    overflow: BTreeSet<RuleId>,
    wanted: RuleSet,
    /// What may be of lists that are not loaded yet; absent before the first rules.
    left: Option<Left>,
    /// Tables of lists that were put into force.
    list_tables: u64,
    /// Reflectors and the TCP gate; absent where only rules are tested.
    pub gate: Option<Gate>,
    /// Targets and heavy sources at the last reading.
    pub seen: (u64, u64),
}

impl Datapath {
    /// Whether what is judged a drop is dropped.
    pub fn is_enforcing(&self) -> bool {
        self.mode == Mode::Enforce
    }

    /// Adopts what is in the maps, and changes nothing before the first [`Self::reconcile`]: until the rules that should
    /// be in force are known, those that an earlier agent left are.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn adopt(maps: Maps, config: DatapathConfig, dead_man_secs: u64, ground: Ground) -> Result<Self, TableError> {
        let writer = Writer::adopt(&maps)?;
        Ok(Self {
            writer,
            maps,
            slots: Slots::default(),
            ground,
            config,
            dead_man_ns: dead_man_secs * 1_000_000_000,
            mode: Mode::Enforce,
            features: 0,
            one_in: 1,
            in_force: BTreeMap::new(),
            failing: BTreeSet::new(),
            overflow: BTreeSet::new(),
            wanted: RuleSet::default(),
            left: None,
            list_tables: 0,
            gate: None,
            seen: (0, 0),
        })
    }

    /// Sets what does not come from rules: protected destinations and fail-safe sources.
    pub fn set_ground(&mut self, ground: Ground, now_mono_ns: u64) -> Vec<EnforceResult> {
        let lists = self.ground.lists.take();
        self.ground = Ground { lists, ..ground };
        let wanted = self.wanted.clone();
        self.reconcile(&wanted, now_mono_ns)
    }

    /// Puts other lists into force, as one rule set with the rules that are.
    pub fn set_lists(&mut self, tables: ListTables, now_mono_ns: u64) -> Vec<EnforceResult> {
        self.take_lists(tables);
        let wanted = self.wanted.clone();
        self.reconcile(&wanted, now_mono_ns)
    }

    /// Takes lists for the next [`Self::reconcile`], and changes nothing yet.
    pub fn take_lists(&mut self, tables: ListTables) {
        self.list_tables += 1;
        let table = if tables.v4.is_some() { self.list_tables } else { 0 };
        let rules: Vec<_> =
            tables.rules.iter().map(|(rule, action)| (*rule, *action == ListAction::Evaluate)).collect();
        let v6 =
            tables.v6.prefixes().filter_map(|(net, value)| Some((IpNet::V6(net), usize::from(value).checked_sub(1)?)));
        self.ground.lists = Some(Arc::new(Lists { table, rules, v6: v6.collect(), ends_at_ns: tables.ends_at_ns }));
        if let Some(made) = tables.v4 {
            self.writer.hold(table, made);
        }
    }

    /// Brings the maps to `desired` and says what became of each rule.
    pub fn reconcile(&mut self, desired: &RuleSet, now_mono_ns: u64) -> Vec<EnforceResult> {
        self.wanted = desired.clone();
        self.mode = desired.mode.unwrap_or(Mode::Enforce);
        let mut compiled = compile(desired, &self.ground, &mut self.slots);
        if self.ground.lists.is_none() {
            let there = &self.writer.there;
            self.left.get_or_insert_with(|| Left::behind(there, &compiled.tables)).keep(&mut compiled.tables);
        }
        let lists = self.ground.lists.clone().unwrap_or_default();
        let of_lists: BTreeSet<RuleId> = lists.rules.iter().map(|(rule, _)| *rule).collect();
        let is_list = |id: RuleId| of_lists.contains(&id);
        for slot in self.slots.retain(|id| desired.rules.contains_key(&id) || is_list(id)) {
            // The next rule in this slot counts from nothing.
            let cleared = self.maps.rule_hits.insert(&slot, &Default::default());
            if let Err(error) = cleared.and_then(|()| self.maps.rule_states.insert(&slot, &0)) {
                tracing::warn!(%error, "hits of a removed rule are not cleared");
            }
        }
        // The stage is in the path after its first entry is there, and until its last one is gone.
        let mut errors = self.gate.as_mut().map(|gate| gate.apply(desired, &self.slots)).unwrap_or_default();
        let base = self.settings(now_mono_ns);
        errors.extend(self.writer.apply(&self.maps, &compiled.tables, &base));
        for error in &errors {
            tracing::error!(%error, "a rule is not in the kernel as it should be");
        }
        self.features = compiled.tables.features() | self.writer.there.features();
        self.results(&compiled, &errors, now_mono_ns)
    }

    /// Reads the maps again and puts right what is not as it should be.
    ///
    /// # Errors
    /// When the maps cannot be read; what can be written is.
    pub fn repair(&mut self, now_mono_ns: u64) -> Result<Vec<EnforceResult>, TableError> {
        self.writer.refresh(&self.maps)?;
        let wanted = self.wanted.clone();
        Ok(self.reconcile(&wanted, now_mono_ns))
    }

    /// Says that user space lives, and how many frames one sample should stand for at `pps` packets per second.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn heartbeat(&mut self, pps: u64, now_mono_ns: u64) -> Result<(), TableError> {
        let one_in = pps.div_ceil(u64::from(self.config.samples_per_sec)).clamp(1, 1 << 20);
        self.one_in = u32::try_from(one_in).unwrap_or(1);
        self.writer.publish(&self.maps, &self.settings(now_mono_ns), self.features)
    }

    /// Rules that could be in the maps and are not, as when these are full. Each repair tries again.
    pub fn overflow(&self) -> &BTreeSet<RuleId> {
        &self.overflow
    }

    /// How full the maps are whose entries come and go. Counted from what was written, or by reading where the kernel
    /// inserts.
    pub fn occupancy(&self) -> Vec<MapReport> {
        let there = &self.writer.there;
        let maps = &self.maps;
        let count = |len: usize| len as u64;
        let of = |name: &str, entries: u64, max_entries: u32, entry_bytes: usize| MapReport {
            name: name.to_owned(),
            entries,
            max_entries: u64::from(max_entries),
            bytes: u64::from(max_entries) * entry_bytes as u64,
        };
        vec![
            of("BLOCK4", count(there.block4.len()), maps.block4.max_entries, maps.block4.entry_bytes()),
            of(
                "BLOCK4_PREFIX",
                count(there.block4_prefix.len()),
                maps.block4_prefix.max_entries,
                maps.block4_prefix.entry_bytes(),
            ),
            of("BLOCK6", count(there.block6.len()), maps.block6.max_entries, maps.block6.entry_bytes()),
            of("BLOCK6_NET", count(there.block6_net.len()), maps.block6_net.max_entries, maps.block6_net.entry_bytes()),
            of(
                "BLOCK6_PREFIX",
                count(there.block6_prefix.len()),
                maps.block6_prefix.max_entries,
                maps.block6_prefix.entry_bytes(),
            ),
            of(
                "SOURCE_LIMITS",
                count(there.source_limits.len()),
                maps.source_limits.max_entries,
                maps.source_limits.entry_bytes(),
            ),
            of("PROTECTED", count(there.protected.len()), maps.protected.max_entries, maps.protected.entry_bytes()),
            of("TRUST", count(there.trust.len()), maps.trust.max_entries, maps.trust.entry_bytes()),
            of("TARGETS", self.seen.0, maps.targets.max_entries, maps.targets.entry_bytes()),
            of("SOURCES", self.seen.1, maps.sources.max_entries, maps.sources.entry_bytes()),
        ]
    }

    /// The settings but for what the rules decide.
    fn settings(&self, now_mono_ns: u64) -> Settings {
        let config = &self.config;
        let mut features = feature::SOURCES | feature::SAMPLE;
        features |= self.gate.as_ref().map_or(0, Gate::features);
        if config.source_limit_pps > 0 {
            features |= feature::SOURCE_POLICER;
        }
        if config.pass_malformed {
            features |= feature::PASS_MALFORMED;
        }
        let samples = u64::from(config.samples_per_sec);
        Settings {
            mode: match self.mode {
                Mode::Enforce => mode::ENFORCE,
                Mode::Evaluate => mode::EVALUATE,
                Mode::Bypass => mode::BYPASS,
            },
            features,
            heartbeat_ns: now_mono_ns,
            dead_man_ns: self.dead_man_ns,
            not_ip: Rate::packets(config.not_ip_pps, config.not_ip_pps),
            source_rate: Rate::packets(config.source_limit_pps, config.source_limit_pps / 10),
            // A tenth of a second's worth at once: what comes between two reads, whatever the flood.
            sample_rate: Rate::packets(samples, samples / 10),
            sample_below: u32::MAX / self.one_in.max(1),
            sample_one_in: self.one_in.max(1),
            ..Settings::default()
        }
        .promoting_at(config.promote_pps.min(SKETCH_MAX))
    }

    fn results(&mut self, compiled: &Compiled, errors: &[TableError], now_mono_ns: u64) -> Vec<EnforceResult> {
        let mut results = Vec::new();
        self.overflow.clear();
        let refused: BTreeMap<RuleId, &Refusal> = compiled.refused.iter().map(|(id, why)| (*id, why)).collect();
        let words = errors.first().map_or_else(|| "the entry is not in the map".to_owned(), ToString::to_string);
        for rule in self.wanted.rules.values().filter(|r| r.point == Point::Datapath) {
            let result = match refused.get(&rule.id) {
                Some(why) => Err(why.to_string()),
                None if self.holds(&compiled.tables, rule) => Ok(()),
                None => Err(words.clone()),
            };
            if result.is_err() && !matches!(refused.get(&rule.id), Some(Refusal::Impossible(_))) {
                self.overflow.insert(rule.id);
            }
            let was = self.in_force.get(&rule.id);
            if result.is_ok() && was == Some(rule) {
                continue;
            }
            if result.is_ok() {
                self.failing.remove(&rule.id);
                self.in_force.insert(rule.id, rule.clone());
            } else {
                self.in_force.remove(&rule.id);
                if !self.failing.insert(rule.id) {
                    continue;
                }
            }
            results.push(EnforceResult { rule: rule.id, installed: true, result, at_mono_ns: now_mono_ns });
        }
        let wanted = &self.wanted.rules;
        self.failing.retain(|id| wanted.contains_key(id));
        let gone: Vec<RuleId> = self.in_force.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        // A removal that failed is tried again with every repair; entries of automatic rules end by themselves.
        let result = if errors.is_empty() { Ok(()) } else { Err(words) };
        for id in gone {
            self.in_force.remove(&id);
            results.push(EnforceResult { rule: id, installed: false, result: result.clone(), at_mono_ns: now_mono_ns });
        }
        results
    }

    /// Whether the entries that carry the rule are in the maps.
    fn holds(&self, wanted: &Tables, rule: &Rule) -> bool {
        let there = &self.writer.there;
        let Some(slot) = self.slots.of(rule.id) else { return false };
        if wanted.rulebook.has_slot(slot) {
            return there.rulebook == wanted.rulebook && there.protected == wanted.protected;
        }
        let Some(source) = rule.matches.source else { return false };
        let at = key(source);
        let ip = at.data;
        let words = ip.0;
        let v4 = crate::xdp::table::TrieKey { prefix_len: at.prefix_len.wrapping_sub(96), data: words[3] };
        same(&there.source_limits, &wanted.source_limits, &at)
            && same(&there.block4, &wanted.block4, &words[3])
            && same(&there.block4_prefix, &wanted.block4_prefix, &v4)
            && same(&there.block6, &wanted.block6, &ip)
            && same(&there.block6_net, &wanted.block6_net, &[words[0], words[1], at.prefix_len])
            && same(&there.block6_prefix, &wanted.block6_prefix, &at)
    }
}

fn same<K: Ord, V: PartialEq>(there: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>, key: &K) -> bool {
    there.get(key) == wanted.get(key)
}
