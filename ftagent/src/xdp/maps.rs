//! The maps as they are pinned, and how they get from one set of entries to another.

use std::collections::BTreeMap;
use std::path::Path;

use ftagent_common::abi::{
    Bitmaps, Block, Counter, InterfaceCounters, MAX_POLICIES, Policy, RULES_PER_TARGET, RuleHits, Settings,
    SourceCounters, SourceLimit, TargetCounters, TargetRule, Trust,
};
use ftagent_common::packet::Ip;

use super::compile::Tables;
use super::table::{Table, TableError, TrieKey};

/// Every map that user space touches, but the ring of samples.
pub struct Maps {
    pub settings: Table<u32, Settings>,
    pub bitmaps: Table<u32, Bitmaps>,
    pub trust: Table<TrieKey<Ip>, Trust>,
    pub block4: Table<u32, Block>,
    pub block4_prefix: Table<TrieKey<u32>, Block>,
    pub block6: Table<Ip, Block>,
    pub block6_net: Table<[u32; 2], Block>,
    pub block6_prefix: Table<TrieKey<Ip>, Block>,
    pub source_limits: Table<TrieKey<Ip>, SourceLimit>,
    pub protected: Table<TrieKey<Ip>, u32>,
    pub policies: Table<u32, Policy>,
    pub policy_states: Table<u32, u64>,
    pub rule_hits: Table<u32, RuleHits>,
    pub verdicts: Table<u32, InterfaceCounters>,
    pub targets: Table<Ip, TargetCounters>,
    pub sources: Table<Ip, SourceCounters>,
    pub source_states: Table<Ip, u64>,
    pub health: Table<u32, Counter>,
    cpus: usize,
}

impl Maps {
    /// Opens all maps pinned in `dir`.
    ///
    /// # Errors
    /// When one is missing or has another layout.
    pub fn open(dir: &Path) -> Result<Self, TableError> {
        let cpus =
            aya::util::nr_cpus().map_err(|(path, source)| TableError::Io { name: path, action: "read", source })?;
        Ok(Self {
            settings: Table::open(dir, "SETTINGS", 1)?,
            bitmaps: Table::open(dir, "BITMAPS", 1)?,
            trust: Table::open(dir, "TRUST", 1)?,
            block4: Table::open(dir, "BLOCK4", 1)?,
            block4_prefix: Table::open(dir, "BLOCK4_PREFIX", 1)?,
            block6: Table::open(dir, "BLOCK6", 1)?,
            block6_net: Table::open(dir, "BLOCK6_NET", 1)?,
            block6_prefix: Table::open(dir, "BLOCK6_PREFIX", 1)?,
            source_limits: Table::open(dir, "SOURCE_LIMITS", 1)?,
            protected: Table::open(dir, "PROTECTED", 1)?,
            policies: Table::open(dir, "POLICIES", 1)?,
            policy_states: Table::open(dir, "POLICY_STATES", 1)?,
            rule_hits: Table::open(dir, "RULE_HITS", cpus)?,
            verdicts: Table::open(dir, "VERDICTS", cpus)?,
            targets: Table::open(dir, "TARGETS", cpus)?,
            sources: Table::open(dir, "SOURCES", cpus)?,
            source_states: Table::open(dir, "SOURCE_STATES", 1)?,
            health: Table::open(dir, "HEALTH", cpus)?,
            cpus,
        })
    }

    /// Possible CPUs: how many values a per-CPU map has for each key.
    pub fn cpus(&self) -> usize {
        self.cpus
    }

    /// The entries that are in the maps now, whoever wrote them.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn observe(&self) -> Result<Tables, TableError> {
        let mut protected = BTreeMap::new();
        for (key, values) in self.protected.read_all()? {
            let policy = self.policies.lookup(&values[0])?.unwrap_or_default();
            let count = (policy.count as usize).min(RULES_PER_TARGET);
            protected.insert(key, policy.rules[..count].to_vec());
        }
        // The state of a limit is the kernel's alone: two entries that differ in it are the same.
        let limits = single(&self.source_limits)?.into_iter().map(|(k, v)| (k, SourceLimit { state: 0, ..v }));
        Ok(Tables {
            block4: single(&self.block4)?,
            block4_prefix: single(&self.block4_prefix)?,
            block6: single(&self.block6)?,
            block6_net: single(&self.block6_net)?,
            block6_prefix: single(&self.block6_prefix)?,
            source_limits: limits.collect(),
            protected,
            trust: single(&self.trust)?,
        })
    }
}

fn single<K: aya::Pod + Ord, V: aya::Pod>(table: &Table<K, V>) -> Result<BTreeMap<K, V>, TableError> {
    Ok(table.read_all()?.into_iter().map(|(key, values)| (key, values[0])).collect())
}

/// Brings the maps from the entries that are there to those that should be.
pub struct Writer {
    /// What is in the maps, as far as we know: read at start, then kept.
    pub there: Tables,
    /// Which rule list each destination has; list 0 is empty for ever.
    lists: BTreeMap<TrieKey<Ip>, u32>,
    next_list: u32,
}

impl Writer {
    /// Starts from what is in the maps.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn adopt(maps: &Maps) -> Result<Self, TableError> {
        let lists = single(&maps.protected)?;
        let next_list = lists.values().max().map_or(1, |highest| highest % (MAX_POLICIES - 1) + 1);
        Ok(Self { there: maps.observe()?, lists, next_list })
    }

    /// Reads the maps again, so that the next [`Self::apply`] repairs what somebody else changed.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn refresh(&mut self, maps: &Maps) -> Result<(), TableError> {
        self.lists = single(&maps.protected)?;
        self.there = maps.observe()?;
        Ok(())
    }

    /// Writes the difference: bits of the bitmaps first, then entries, removals last, and the bits that are no longer
    /// wanted after them. Every error is returned, and what failed is tried again the next time.
    pub fn apply(&mut self, maps: &Maps, wanted: &Tables) -> Vec<TableError> {
        let mut errors = Vec::new();
        let before = self.there.bitmaps();
        let after = wanted.bitmaps();
        if before != after {
            let mut both = before.clone();
            for (both, after) in rows(&mut both).into_iter().zip(rows_of(&after)) {
                both.iter_mut().zip(after).for_each(|(b, a)| *b |= a);
            }
            maps.bitmaps.insert(&0, &both).unwrap_or_else(|e| errors.push(e));
        }
        sync(&maps.trust, &mut self.there.trust, &wanted.trust, &mut errors);
        sync(&maps.block4, &mut self.there.block4, &wanted.block4, &mut errors);
        sync(&maps.block4_prefix, &mut self.there.block4_prefix, &wanted.block4_prefix, &mut errors);
        sync(&maps.block6, &mut self.there.block6, &wanted.block6, &mut errors);
        sync(&maps.block6_net, &mut self.there.block6_net, &wanted.block6_net, &mut errors);
        sync(&maps.block6_prefix, &mut self.there.block6_prefix, &wanted.block6_prefix, &mut errors);
        sync(&maps.source_limits, &mut self.there.source_limits, &wanted.source_limits, &mut errors);
        self.apply_protected(maps, wanted, &mut errors);
        if before != after && errors.is_empty() {
            maps.bitmaps.insert(&0, &after).unwrap_or_else(|e| errors.push(e));
        }
        errors
    }

    fn apply_protected(&mut self, maps: &Maps, wanted: &Tables, errors: &mut Vec<TableError>) {
        for (key, rules) in &wanted.protected {
            if self.there.protected.get(key) == Some(rules) {
                continue;
            }
            let written =
                self.write_list(maps, rules).and_then(|list| maps.protected.insert(key, &list).map(|()| list));
            match written {
                Ok(list) => {
                    self.lists.insert(*key, list);
                    self.there.protected.insert(*key, rules.clone());
                }
                Err(e) => errors.push(e),
            }
        }
        let gone: Vec<_> = self.there.protected.keys().filter(|k| !wanted.protected.contains_key(k)).copied().collect();
        for key in gone {
            match maps.protected.remove(&key) {
                Ok(()) => {
                    self.lists.remove(&key);
                    self.there.protected.remove(&key);
                }
                Err(e) => errors.push(e),
            }
        }
    }

    /// Writes a rule list into a free place and returns its number. A list in use is never touched: a packet is judged
    /// by the old list or by the new one.
    fn write_list(&mut self, maps: &Maps, rules: &[TargetRule]) -> Result<u32, TableError> {
        if rules.is_empty() {
            return Ok(0);
        }
        // Round robin, so that a list just left is not written while a packet may still be judged by it.
        let free = (0..MAX_POLICIES - 1)
            .map(|i| (self.next_list - 1 + i) % (MAX_POLICIES - 1) + 1)
            .find(|list| !self.lists.values().any(|used| used == list));
        let Some(list) = free else {
            return Err(TableError::Full { name: "POLICIES", max_entries: MAX_POLICIES });
        };
        self.next_list = list % (MAX_POLICIES - 1) + 1;
        let mut policy = Policy { count: rules.len() as u32, ..Policy::default() };
        policy.rules[..rules.len()].copy_from_slice(rules);
        for i in 0..RULES_PER_TARGET as u32 {
            maps.policy_states.insert(&(list * RULES_PER_TARGET as u32 + i), &0)?;
        }
        maps.policies.insert(&list, &policy)?;
        Ok(list)
    }
}

fn rows(bitmaps: &mut Bitmaps) -> [&mut [u64]; 4] {
    [&mut bitmaps.trust4, &mut bitmaps.trust6, &mut bitmaps.block4, &mut bitmaps.block6]
}

fn rows_of(bitmaps: &Bitmaps) -> [&[u64]; 4] {
    [&bitmaps.trust4, &bitmaps.trust6, &bitmaps.block4, &bitmaps.block6]
}

/// Brings one map from `there` to `wanted`, insertions before removals, and notes in `there` what was done.
fn sync<K: aya::Pod + Ord, V: aya::Pod + PartialEq>(
    table: &Table<K, V>,
    there: &mut BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    errors: &mut Vec<TableError>,
) {
    let new: Vec<(K, V)> = wanted.iter().filter(|(k, v)| there.get(k) != Some(v)).map(|(k, v)| (*k, *v)).collect();
    let done = match table.insert_many(&new) {
        Ok(()) => new.len(),
        Err((done, error)) => {
            errors.push(*error);
            done
        }
    };
    there.extend(new.into_iter().take(done));
    let gone: Vec<K> = there.keys().filter(|k| !wanted.contains_key(k)).copied().collect();
    for key in gone {
        match table.remove(&key) {
            Ok(()) => {
                there.remove(&key);
            }
            Err(e) => errors.push(e),
        }
    }
}
