//! Brings the maps from one rule set to the next.
//!
//! Blocks and limits of single sources are written where they are. Everything else is swapped: each entry has a value
//! for the rule set of slot 0 and one for that of slot 1, and the lowest bit of the settings' generation says which is
//! in force. The next rule set is written into the slot that nobody reads, read back, and put in force by one aligned
//! write; when no packet can be under way that read the old generation, the entries are made equal again.

use std::collections::BTreeMap;
use std::io;

use ftagent_common::abi::{Bitmaps, Block, PRESENT, Settings, Slotted};
use ftagent_common::packet::Ip;

use super::compile::{ListRules, Tables};
use super::maps::{Entry, Maps};
use super::prefixes::map::PrefixMap;
use super::rulebook::Rulebook;
use super::table::{Entries, TableError, TrieKey};

/// Changed entries up to which blocks and limits of sources are written directly.
const DIRECT_CHANGES: usize = 1_024;

/// Brings the maps from the entries that are there to those that should be.
pub struct Writer {
    /// What is in force, as far as we know: read at start, then kept.
    pub there: Tables,
    generation: u32,
    seed: u64,
    /// The rule book whose tables are in each slot; absent: not known.
    books: [Option<Rulebook>; 2],
    /// The table of IPv4 prefixes that the next rule set with its number takes, and its number.
    table: Option<(u64, PrefixMap)>,
    /// Whether entries may differ between the slots, as a writer that was killed leaves them.
    unsettled: bool,
}

impl Writer {
    /// Starts from what is in the maps.
    ///
    /// # Errors
    /// On a failed system call, or when the kernel gives no random numbers.
    pub fn adopt(maps: &Maps) -> Result<Self, TableError> {
        let settings = maps.read_settings()?;
        let seed = if settings.seed == 0 { secret()? } else { settings.seed };
        maps.block4.mend(seed)?;
        let generation = settings.generation.max(2);
        let mut there = maps.observe()?;
        // Whatever table an earlier writer left is in force until other lists are wanted.
        let table = if maps.lists4.id(generation & 1)?.is_some() { u64::MAX } else { 0 };
        there.lists = Some(ListRules { table, rules: maps.list_rules(generation & 1)? });
        Ok(Self { there, generation, seed, books: [None, None], table: None, unsettled: true })
    }

    /// Takes a table of IPv4 prefixes for the rule set that names its number.
    pub fn hold(&mut self, number: u64, table: PrefixMap) {
        self.table = Some((number, table));
    }

    /// Counts rule sets; its lowest bit is the slot in force.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Reads the maps again, so that the next [`Self::apply`] repairs what somebody else changed.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn refresh(&mut self, maps: &Maps) -> Result<(), TableError> {
        maps.block4.mend(self.seed)?;
        let book = std::mem::take(&mut self.there.rulebook);
        let lists = self.there.lists.take();
        self.there = maps.observe()?;
        self.there.lists = lists;
        let slot = (self.generation & 1) as usize;
        let is_whole = match &self.books[slot] {
            Some(book) => is_written(maps, slot as u32, book)?,
            None => false,
        };
        if is_whole {
            self.there.rulebook = book;
        } else {
            self.books = [None, None];
        }
        self.unsettled = true;
        Ok(())
    }

    /// Writes the settings with `base`'s mode, rates and features and with the features of `tables` besides.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn publish(&self, maps: &Maps, base: &Settings, features: u32) -> Result<(), TableError> {
        let settings =
            Settings { features: base.features | features, generation: self.generation, seed: self.seed, ..*base };
        maps.settings.insert(&0, &settings)
    }

    /// Brings the maps to `wanted`. A stage is in the path before its first entry is there and until its last one is
    /// gone. Every error is returned, what failed is tried again the next time, and a rule set that could not be written
    /// whole is not put in force.
    pub fn apply(&mut self, maps: &Maps, wanted: &Tables, base: &Settings) -> Vec<TableError> {
        let mut errors = Vec::new();
        let features = |writer: &Self| wanted.features() | writer.there.features();
        let before = self.there.bitmaps(self.seed);
        let after = wanted.bitmaps(self.seed);
        let mut both = after.clone();
        for (both, before) in words_mut(&mut both).into_iter().zip(words(&before)) {
            both.iter_mut().zip(before).for_each(|(b, a)| *b |= a);
        }
        maps.bitmaps.insert(&0, &both).unwrap_or_else(|e| errors.push(e));
        self.publish(maps, base, features(self)).unwrap_or_else(|e| errors.push(e));
        if !errors.is_empty() {
            return errors;
        }
        if self.unsettled {
            settle_all(maps, self.generation, &mut errors);
            self.unsettled = !errors.is_empty();
        }
        if self.is_direct(wanted) {
            self.apply_direct(maps, wanted, &mut errors);
        } else {
            self.swap(maps, wanted, base, &mut errors);
        }
        if errors.is_empty() {
            maps.bitmaps.insert(&0, &after).unwrap_or_else(|e| errors.push(e));
        }
        self.publish(maps, base, features(self)).unwrap_or_else(|e| errors.push(e));
        errors
    }

    /// Whether nothing but a few blocks and limits of sources changes.
    fn is_direct(&self, wanted: &Tables) -> bool {
        let there = &self.there;
        let changes = differing(&there.block4, &wanted.block4)
            + differing(&there.block4_prefix, &wanted.block4_prefix)
            + differing(&there.block6, &wanted.block6)
            + differing(&there.block6_net, &wanted.block6_net)
            + differing(&there.block6_prefix, &wanted.block6_prefix)
            + differing(&there.source_limits, &wanted.source_limits);
        there.trust == wanted.trust
            && there.protected == wanted.protected
            && there.rulebook == wanted.rulebook
            && (wanted.lists.is_none() || there.lists == wanted.lists)
            && self.books[(self.generation & 1) as usize].is_some()
            && changes <= DIRECT_CHANGES
    }

    fn apply_direct(&mut self, maps: &Maps, wanted: &Tables, errors: &mut Vec<TableError>) {
        let there = &mut self.there;
        direct(&maps.block4, &mut there.block4, &wanted.block4, errors);
        direct(&maps.block4_prefix, &mut there.block4_prefix, &wanted.block4_prefix, errors);
        direct(&maps.block6, &mut there.block6, &wanted.block6, errors);
        direct(&maps.block6_net, &mut there.block6_net, &wanted.block6_net, errors);
        direct(&maps.block6_prefix, &mut there.block6_prefix, &wanted.block6_prefix, errors);
        direct(&maps.source_limits, &mut there.source_limits, &wanted.source_limits, errors);
    }

    fn swap(&mut self, maps: &Maps, wanted: &Tables, base: &Settings, errors: &mut Vec<TableError>) {
        let next = self.generation.wrapping_add(1).max(2);
        let slot = next & 1;
        if let Err(error) = self.stage_lists(maps, slot, wanted.lists.as_ref()) {
            errors.push(error);
        }
        let book = &mut self.books[slot as usize];
        if book.as_ref() != Some(&wanted.rulebook) {
            *book = None;
            match write_book(maps, slot, &wanted.rulebook) {
                Ok(()) => *book = Some(wanted.rulebook.clone()),
                Err(error) => errors.push(error),
            }
        }
        let there = &self.there;
        stage(&maps.trust, &there.trust, &wanted.trust, slot, trie_parent, errors);
        stage(&maps.protected, &there.protected, &wanted.protected, slot, trie_parent, errors);
        stage(&maps.block4, &there.block4, &wanted.block4, slot, no_parent, errors);
        stage(&maps.block4_prefix, &there.block4_prefix, &wanted.block4_prefix, slot, trie4_parent, errors);
        stage(&maps.block6, &there.block6, &wanted.block6, slot, no_parent, errors);
        stage(&maps.block6_net, &there.block6_net, &wanted.block6_net, slot, no_parent, errors);
        stage(&maps.block6_prefix, &there.block6_prefix, &wanted.block6_prefix, slot, trie_parent, errors);
        stage(&maps.source_limits, &there.source_limits, &wanted.source_limits, slot, trie_parent, errors);
        if !errors.is_empty() {
            // The old rule set stays in force; what was written of the new one is taken back.
            settle_all(maps, self.generation, &mut Vec::new());
            self.unsettled = true;
            return;
        }
        self.generation = next;
        let mut now = wanted.clone();
        now.lists = now.lists.or_else(|| self.there.lists.clone());
        let before = std::mem::replace(&mut self.there, now);
        if let Err(error) = self.publish(maps, base, wanted.features() | before.features()) {
            // Not in force: the next try writes it again.
            self.generation = next.wrapping_sub(1);
            self.there = before;
            self.unsettled = true;
            errors.push(error);
            return;
        }
        wait_for_packets();
        if before.lists != self.there.lists {
            let settled = maps.lists4.copy(slot, 1 - slot).and_then(|()| self.write_list_rules(maps, None));
            settled.unwrap_or_else(|e| errors.push(e));
        }
        settle(&maps.trust, &before.trust, &wanted.trust, errors);
        settle(&maps.protected, &before.protected, &wanted.protected, errors);
        settle(&maps.block4, &before.block4, &wanted.block4, errors);
        settle(&maps.block4_prefix, &before.block4_prefix, &wanted.block4_prefix, errors);
        settle(&maps.block6, &before.block6, &wanted.block6, errors);
        settle(&maps.block6_net, &before.block6_net, &wanted.block6_net, errors);
        settle(&maps.block6_prefix, &before.block6_prefix, &wanted.block6_prefix, errors);
        settle(&maps.source_limits, &before.source_limits, &wanted.source_limits, errors);
        if !errors.is_empty() {
            self.unsettled = true;
        }
    }
}

impl Writer {
    /// Lists belong to the rule set too: `slot` gets the tables that are wanted, or those that are in force.
    fn stage_lists(&mut self, maps: &Maps, slot: u32, wanted: Option<&ListRules>) -> Result<(), TableError> {
        let there = self.there.lists.as_ref().map_or(0, |lists| lists.table);
        let Some(wanted) = wanted else { return maps.lists4.copy(1 - slot, slot) };
        match &self.table {
            _ if wanted.table == 0 => maps.lists4.clear(slot)?,
            Some((number, table)) if *number == wanted.table => maps.lists4.put(slot, table)?,
            _ if wanted.table == there => maps.lists4.copy(1 - slot, slot)?,
            _ => {
                let source = io::Error::new(io::ErrorKind::NotFound, "its table was not made");
                return Err(TableError::Io { name: "LISTS4", action: "swap", source });
            }
        }
        self.write_list_rules(maps, Some((slot, wanted)))
    }

    /// Writes what each list does: of `next` into its slot beside what is in force, or what is in force into both.
    fn write_list_rules(&self, maps: &Maps, next: Option<(u32, &ListRules)>) -> Result<(), TableError> {
        let none = Vec::new();
        let there = self.there.lists.as_ref().map_or(&none, |lists| &lists.rules);
        let (slot, wanted) = next.map_or((0, there), |(slot, lists)| (slot, &lists.rules));
        let count = there.len().max(wanted.len());
        let entries: Vec<(u32, Slotted<Block>)> = (0..count)
            .map(|i| {
                let (old, new) = (there.get(i).copied(), wanted.get(i).copied());
                let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
                (i as u32, Slotted(if slot == 0 { [new, old] } else { [old, new] }))
            })
            .collect();
        maps.list_rules.insert_many(&entries).map_err(|(_, error)| *error)
    }
}

/// Writes the tables of a rule book into a slot and reads them back.
fn write_book(maps: &Maps, slot: u32, book: &Rulebook) -> Result<(), TableError> {
    let built = book.build();
    maps.signatures.insert_from(&slot, &built)?;
    if maps.signatures.holds(&slot, &built)? {
        return Ok(());
    }
    let source = io::Error::new(io::ErrorKind::InvalidData, "what was written is not what is there");
    Err(TableError::Io { name: "SIGNATURES", action: "read back", source })
}

fn is_written(maps: &Maps, slot: u32, book: &Rulebook) -> Result<bool, TableError> {
    maps.signatures.holds(&slot, &book.build())
}

/// Entries that are not the same in both.
fn differing<K: Ord, V: PartialEq>(there: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> usize {
    let new = wanted.iter().filter(|(k, v)| there.get(k) != Some(v)).count();
    new + there.keys().filter(|k| !wanted.contains_key(k)).count()
}

fn changed<'a, K: Ord + Copy, V: PartialEq>(
    there: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = K> + 'a {
    let new = wanted.iter().filter(|(k, v)| there.get(k) != Some(v)).map(|(k, _)| *k);
    new.chain(there.keys().filter(|k| !wanted.contains_key(k)).copied())
}

/// Brings one map from `there` to `wanted` in both rule sets, insertions before removals, and notes in `there` what was
/// done.
fn direct<K: aya::Pod + Ord, V: aya::Pod + Entry>(
    table: &impl Entries<K, Slotted<V>>,
    there: &mut BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    errors: &mut Vec<TableError>,
) {
    let new: Vec<(K, V)> = wanted.iter().filter(|(k, v)| there.get(k) != Some(v)).map(|(k, v)| (*k, *v)).collect();
    let entries: Vec<_> = new.iter().map(|(k, v)| (*k, Slotted::both(*v))).collect();
    let done = match table.insert_many(&entries) {
        Ok(()) => new.len(),
        Err((done, error)) => {
            errors.push(*error);
            done
        }
    };
    there.extend(new.into_iter().take(done));
    let gone: Vec<K> = there.keys().filter(|k| !wanted.contains_key(k)).copied().collect();
    match table.remove_many(&gone) {
        Ok(()) => gone.iter().for_each(|key| _ = there.remove(key)),
        // Which ones are gone is not known: the next try removes them again, which is success where they are.
        Err(e) => errors.push(e),
    }
}

/// Writes what changes into `slot`, and leaves what is in force in the other.
///
/// The kernel asks the longest match alone: a prefix that is in one rule set only says in the other what the prefix
/// around it says there.
fn stage<K: aya::Pod + Ord, V: aya::Pod + Entry>(
    table: &impl Entries<K, Slotted<V>>,
    there: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    slot: u32,
    parent: fn(&BTreeMap<K, V>, &K) -> V,
    errors: &mut Vec<TableError>,
) {
    let value = |set: &BTreeMap<K, V>, key: &K| set.get(key).copied().unwrap_or_else(|| parent(set, key));
    let mut entries: Vec<(K, Slotted<V>)> = changed(there, wanted)
        .map(|key| {
            let (old, new) = (value(there, &key), value(wanted, &key));
            (key, Slotted(if slot == 0 { [new, old] } else { [old, new] }))
        })
        .collect();
    entries.sort_by_key(|(key, _)| *key);
    if let Err((_, error)) = table.insert_many(&entries) {
        errors.push(*error);
    }
}

/// Makes what changed the same in both rule sets, and removes what is in neither any more.
fn settle<K: aya::Pod + Ord, V: aya::Pod + Entry>(
    table: &impl Entries<K, Slotted<V>>,
    before: &BTreeMap<K, V>,
    now: &BTreeMap<K, V>,
    errors: &mut Vec<TableError>,
) {
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for key in changed(before, now) {
        match now.get(&key) {
            Some(value) => kept.push((key, Slotted::both(*value))),
            None => gone.push(key),
        }
    }
    kept.sort_by_key(|(key, _)| *key);
    if let Err((_, error)) = table.insert_many(&kept) {
        errors.push(*error);
    }
    if let Err(error) = table.remove_many(&gone) {
        errors.push(error);
    }
}

/// Makes every entry the same in both rule sets, as the one in force says.
fn settle_all(maps: &Maps, generation: u32, errors: &mut Vec<TableError>) {
    fn one<K: aya::Pod + Ord, V: aya::Pod + Entry>(
        table: &impl Entries<K, Slotted<V>>,
        slot: u32,
        errors: &mut Vec<TableError>,
    ) {
        let mut uneven = Vec::new();
        let read = table.for_each(|key, values| {
            let value = values[0];
            if value.0[0] != value.0[1] || !value.0[0].is_present() {
                uneven.push((*key, *value.at(slot)));
            }
        });
        if let Err(error) = read {
            errors.push(error);
        }
        for (key, value) in uneven {
            let done = if value.is_present() { table.insert(&key, &Slotted::both(value)) } else { table.remove(&key) };
            done.unwrap_or_else(|e| errors.push(e));
        }
    }
    let slot = generation & 1;
    one(&maps.trust, slot, errors);
    one(&maps.protected, slot, errors);
    one(&maps.block4, slot, errors);
    one(&maps.block4_prefix, slot, errors);
    one(&maps.block6, slot, errors);
    one(&maps.block6_net, slot, errors);
    one(&maps.block6_prefix, slot, errors);
    one(&maps.source_limits, slot, errors);
}

fn no_parent<K, V: Default>(_: &BTreeMap<K, V>, _: &K) -> V {
    V::default()
}

/// What the longest prefix around `key` says, or nothing.
fn trie_parent<V: Copy + Default>(set: &BTreeMap<TrieKey<Ip>, V>, key: &TrieKey<Ip>) -> V {
    let ip = key.data;
    let bits = u128::from_be_bytes(ip.octets());
    let around = |len: u32| {
        let cut = if len == 0 { 0 } else { bits & (u128::MAX << (128 - len)) };
        set.get(&TrieKey { prefix_len: len, data: Ip::v6(cut.to_be_bytes()) })
    };
    (0..key.prefix_len).rev().find_map(around).copied().unwrap_or_default()
}

fn trie4_parent<V: Copy + Default>(set: &BTreeMap<TrieKey<u32>, V>, key: &TrieKey<u32>) -> V {
    let bits = u32::from_be(key.data);
    let around = |len: u32| {
        let cut = if len == 0 { 0 } else { bits & (u32::MAX << (32 - len)) };
        set.get(&TrieKey { prefix_len: len, data: cut.to_be() })
    };
    (0..key.prefix_len).rev().find_map(around).copied().unwrap_or_default()
}

/// Returns when every packet that was being judged at the time of the call has been.
pub(super) fn wait_for_packets() {
    /// `MEMBARRIER_CMD_GLOBAL` (kernel 4.3): waits for a grace period of RCU, in which every program run ends.
    const GLOBAL: i32 = 1;
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result != 0 {
        // Not built into this kernel, or isolated CPUs: a program run lasts microseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn words_mut(bitmaps: &mut Bitmaps) -> [&mut [u64]; 7] {
    [
        &mut bitmaps.trust4,
        &mut bitmaps.trust6,
        &mut bitmaps.block4,
        &mut bitmaps.block6,
        &mut bitmaps.limit4,
        &mut bitmaps.limit6,
        &mut bitmaps.blocks,
    ]
}

fn words(bitmaps: &Bitmaps) -> [&[u64]; 7] {
    [
        &bitmaps.trust4,
        &bitmaps.trust6,
        &bitmaps.block4,
        &bitmaps.block6,
        &bitmaps.limit4,
        &bitmaps.limit6,
        &bitmaps.blocks,
    ]
}

/// A fresh secret from the kernel's generator, never 0.
pub(crate) fn secret() -> Result<u64, TableError> {
    use std::io::Read;
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    read.map_err(|source| TableError::Io { name: "SETTINGS", action: "reading /dev/urandom for the key", source })?;
    Ok(u64::from_ne_bytes(bytes) | u64::from(PRESENT))
}
