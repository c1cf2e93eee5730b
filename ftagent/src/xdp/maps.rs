//! The maps as they are pinned.

use std::collections::BTreeMap;
use std::path::Path;

use ftagent_common::abi::{
    Bitmaps, Block, Counter, InterfaceCounters, PRESENT, RuleHits, Settings, Signatures, Slotted, SourceCounters,
    SourceLimit, Target, TargetCounters, Trust,
};
use ftagent_common::packet::Ip;

use super::compile::Tables;
use super::near::Blocks4;
use super::places::Places;
use super::prefixes::slots::PrefixSlots;
use super::table::{Entries, Table, TableError, TrieKey};

/// Every map that user space touches, but the ring of samples.
pub struct Maps {
    pub settings: Table<u32, Settings>,
    pub bitmaps: Table<u32, Bitmaps>,
    pub trust: Table<TrieKey<Ip>, Slotted<Trust>>,
    pub block4: Blocks4,
    pub block4_prefix: Table<TrieKey<u32>, Slotted<Block>>,
    pub block6: Table<Ip, Slotted<Block>>,
    pub block6_net: Table<[u32; 3], Slotted<Block>>,
    pub block6_prefix: Table<TrieKey<Ip>, Slotted<Block>>,
    pub source_limits: Table<TrieKey<Ip>, Slotted<SourceLimit>>,
    pub protected: Table<TrieKey<Ip>, Slotted<Target>>,
    pub signatures: Table<u32, Signatures>,
    pub lists4: PrefixSlots,
    pub list_rules: Table<u32, Slotted<Block>>,
    pub rule_states: Table<u32, u64>,
    pub rule_hits: Table<u32, RuleHits>,
    pub verdicts: Table<u32, InterfaceCounters>,
    pub targets: Places<TargetCounters>,
    pub sources: Places<SourceCounters>,
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
            block4: Blocks4::open(dir)?,
            block4_prefix: Table::open(dir, "BLOCK4_PREFIX", 1)?,
            block6: Table::open(dir, "BLOCK6", 1)?,
            block6_net: Table::open(dir, "BLOCK6_NET", 1)?,
            block6_prefix: Table::open(dir, "BLOCK6_PREFIX", 1)?,
            source_limits: Table::open(dir, "SOURCE_LIMITS", 1)?,
            protected: Table::open(dir, "PROTECTED", 1)?,
            signatures: Table::open(dir, "SIGNATURES", 1)?,
            lists4: PrefixSlots::open(dir, "LISTS4")?,
            list_rules: Table::open(dir, "LIST_RULES", 1)?,
            rule_states: Table::open(dir, "RULE_STATES", 1)?,
            rule_hits: Table::open(dir, "RULE_HITS", cpus)?,
            verdicts: Table::open(dir, "VERDICTS", cpus)?,
            targets: Places::open(dir, "TARGETS")?,
            sources: Places::open(dir, "SOURCES")?,
            health: Table::open(dir, "HEALTH", cpus)?,
            cpus,
        })
    }

    /// Possible CPUs: how many values a per-CPU map has for each key.
    pub fn cpus(&self) -> usize {
        self.cpus
    }

    /// The settings as they are in the kernel.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn read_settings(&self) -> Result<Settings, TableError> {
        Ok(self.settings.lookup(&0)?.unwrap_or_default())
    }

    /// What each list does in the rule set of `slot`: the next one is written beside it.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn list_rules(&self, slot: u32) -> Result<Vec<Block>, TableError> {
        let mut rules = BTreeMap::new();
        self.list_rules.for_each(|place, values| _ = rules.insert(*place, *values[0].at(slot)))?;
        let mut rules: Vec<Block> = rules.into_values().collect();
        while rules.last().is_some_and(|rule| !rule.is_present()) {
            rules.pop();
        }
        Ok(rules)
    }

    /// The entries that are in force now, whoever wrote them. Rule book and lists cannot be read back from the tables
    /// that are made of them: they are absent here.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn observe(&self) -> Result<Tables, TableError> {
        let slot = self.read_settings()?.generation;
        Ok(Tables {
            block4: active(&self.block4, slot)?,
            block4_prefix: active(&self.block4_prefix, slot)?,
            block6: active(&self.block6, slot)?,
            block6_net: active(&self.block6_net, slot)?,
            block6_prefix: active(&self.block6_prefix, slot)?,
            source_limits: active(&self.source_limits, slot)?,
            protected: active(&self.protected, slot)?,
            trust: active(&self.trust, slot)?,
            rulebook: Default::default(),
            lists: None,
        })
    }
}

/// A value that says whether it is there.
pub(super) trait Entry: Copy + Default + PartialEq {
    fn is_present(&self) -> bool;
}

impl Entry for Block {
    fn is_present(&self) -> bool {
        self.flags & PRESENT != 0
    }
}

impl Entry for SourceLimit {
    fn is_present(&self) -> bool {
        self.flags & PRESENT != 0
    }
}

impl Entry for Target {
    fn is_present(&self) -> bool {
        self.flags & PRESENT != 0
    }
}

impl Entry for Trust {
    fn is_present(&self) -> bool {
        self.flags != 0
    }
}

fn active<K: aya::Pod + Ord, V: aya::Pod + Entry>(
    table: &impl Entries<K, Slotted<V>>,
    slot: u32,
) -> Result<BTreeMap<K, V>, TableError> {
    let mut found = BTreeMap::new();
    table.for_each(|key, values| {
        let value = *values[0].at(slot);
        if value.is_present() {
            found.insert(*key, value);
        }
    })?;
    Ok(found)
}
