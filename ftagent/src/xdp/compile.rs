//! Compiles the rules that should be in force into the entries of the kernel's maps. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ftagent_common::abi::{
    AUTOMATIC, BITMAP_WORDS, Bitmaps, Block, EVALUATE, FILTER_WORDS, MAX_RULES, NO_RULE, PAYLOAD_BYTES, PRESENT, Rate,
    Signature, SourceLimit, TRUST_ALL, TRUST_ALLOW, TRUST_PORTS, TRUSTED_PORTS, Target, Trust, feature, filter_bit,
    hash4, hash6, hash6_net, rule_action,
};
use ftagent_common::packet::Ip;
use ipnet::IpNet;

use super::rulebook::{Entry, Rulebook};
use super::table::TrieKey;
use super::{families, nested};
use crate::engine::{Point, Rule, RuleId, RuleSet, Verdict};

/// A prefix that nothing may drop on some ports, or on all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailSafe {
    pub prefix: IpNet,
    /// Empty: all ports.
    pub ports: Vec<u16>,
}

/// What does not change with the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    /// Destinations that are counted and can have rules.
    pub protected: Vec<IpNet>,
    pub fail_safe: Vec<FailSafe>,
    /// Absent: not loaded yet, and what an earlier daemon left in the kernel stays.
    pub lists: Option<Arc<Lists>>,
}

/// Lists of prefixes. Those of IPv4 are a table of their own, which is made beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// A number of its own for every table; 0: no list has an IPv4 prefix.
    pub table: u64,
    /// The rule of each list, and whether it is only evaluated.
    pub rules: Vec<(RuleId, bool)>,
    /// IPv6 prefixes, and the place of their list in `rules`.
    pub v6: Vec<(IpNet, usize)>,
    /// When each list ends, in monotonic nanoseconds; 0, and lists beyond the last of these: never.
    pub ends_at_ns: Vec<u64>,
}

/// Lists as the kernel has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRules {
    /// See [`Lists::table`].
    pub table: u64,
    /// What each list does, in the order of the values in the table.
    pub rules: Vec<Block>,
}

/// Counter slots of rules. A rule keeps its slot while it lives, and gets the same one after a restart if it can.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    taken: BTreeMap<u32, RuleId>,
    of: BTreeMap<RuleId, u32>,
}

impl Slots {
    /// The slot of `rule`, taking a free one if it has none.
    pub fn assign(&mut self, rule: RuleId) -> Option<u32> {
        if let Some(slot) = self.of.get(&rule) {
            return Some(*slot);
        }
        let first = u32::try_from(rule.0 % u64::from(MAX_RULES)).ok()?;
        let slot = (0..MAX_RULES).map(|i| (first + i) % MAX_RULES).find(|slot| !self.taken.contains_key(slot))?;
        self.taken.insert(slot, rule);
        self.of.insert(rule, slot);
        Some(slot)
    }

    /// Frees the slots of rules that are not in `alive`, and returns them.
    pub fn retain(&mut self, alive: impl Fn(RuleId) -> bool) -> Vec<u32> {
        let gone: Vec<RuleId> = self.of.keys().copied().filter(|id| !alive(*id)).collect();
        let slots = gone.iter().filter_map(|id| self.of.remove(id)).collect::<Vec<_>>();
        for slot in &slots {
            self.taken.remove(slot);
        }
        slots
    }

    /// The slot of a rule that has one.
    pub fn of(&self, rule: RuleId) -> Option<u32> {
        self.of.get(&rule).copied()
    }

    /// The rule in a slot.
    pub fn rule(&self, slot: u32) -> Option<RuleId> {
        self.taken.get(&slot).copied()
    }
}

/// The entries that the maps should have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    pub block4: BTreeMap<u32, Block>,
    pub block4_prefix: BTreeMap<TrieKey<u32>, Block>,
    pub block6: BTreeMap<Ip, Block>,
    /// Networks of 64, 56 and 48 bits: their first two words and their length.
    pub block6_net: BTreeMap<[u32; 3], Block>,
    pub block6_prefix: BTreeMap<TrieKey<Ip>, Block>,
    pub source_limits: BTreeMap<TrieKey<Ip>, SourceLimit>,
    /// Protected prefixes, and which rules of the book are theirs.
    pub protected: BTreeMap<TrieKey<Ip>, Target>,
    pub trust: BTreeMap<TrieKey<Ip>, Trust>,
    pub rulebook: Rulebook,
    /// Absent: as they are.
    pub lists: Option<ListRules>,
}

/// The tables, and what could not be expressed in them.
pub struct Compiled {
    pub tables: Tables,
    pub refused: Vec<(RuleId, Refusal)>,
}

/// Why a rule is not in the tables, in an operator's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// They are full: whoever else can may carry it.
    NoRoom(String),
    /// It makes no sense anywhere.
    Impossible(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::NoRoom(why) | Self::Impossible(why)) = self;
        f.write_str(why)
    }
}

fn no_slot() -> Refusal {
    Refusal::NoRoom(format!("all {MAX_RULES} counter slots of rules are taken"))
}

/// Compiles `set` on `ground`.
pub fn compile(set: &RuleSet, ground: &Ground, slots: &mut Slots) -> Compiled {
    let mut compiled = Compiled { tables: Tables::default(), refused: Vec::new() };
    let rules: Vec<&Rule> = set.rules.values().filter(|r| r.point == Point::Datapath).collect();
    compiled.tables.trust = trust(set, ground);
    let mut on_targets = Vec::new();
    let mut blocks = BTreeMap::new();
    for rule in &rules {
        let Some(slot) = slots.assign(rule.id) else {
            compiled.refused.push((rule.id, no_slot()));
            continue;
        };
        let is_simple = matches!(rule.verdict, Verdict::Drop | Verdict::LimitPps { .. } | Verdict::LimitBps { .. });
        match rule.matches.source {
            Some(source) if rule.matches.is_source_only() && is_simple => {
                compiled.tables.add_source(source, rule, slot, &mut blocks)
            }
            _ => match entry(rule, slot) {
                Ok(entry) => on_targets.push((*rule, entry)),
                Err(why) => compiled.refused.push((rule.id, Refusal::Impossible(why))),
            },
        }
    }
    if let Some(lists) = &ground.lists {
        compiled.tables.add_lists(lists, slots, &mut blocks, &mut compiled.refused);
    }
    nested::settle(&mut blocks);
    compiled.tables.add_blocks(blocks);
    compiled.tables.add_targets(&on_targets, ground, &mut compiled.refused);
    compiled
}

impl Tables {
    fn add_source(&mut self, source: IpNet, rule: &Rule, slot: u32, blocks: &mut BTreeMap<IpNet, Block>) {
        let source = source.trunc();
        let expires_at_ns = rule.expires_at_ns.unwrap_or(0);
        let flags = flags(rule);
        if let Some(rate) = rate(rule.verdict) {
            let limit = SourceLimit { expires_at_ns, rate, rule: slot, flags, padding: [0; 3] };
            for part in families::without_mapped(source) {
                let there = self.source_limits.entry(key(part)).or_insert(limit);
                // The tighter of two limits on one source holds, but not before one that is more than evaluated.
                let rank = |limit: &SourceLimit| (limit.flags & EVALUATE == 0, limit.rate.cost);
                if rank(&limit) > rank(there) {
                    *there = limit;
                }
            }
            return;
        }
        let block = Block { expires_at_ns, rule: slot, flags, padding: [0; 3] };
        add_block(blocks, source, block);
    }

    /// Puts each block into the table of its length.
    fn add_blocks(&mut self, blocks: BTreeMap<IpNet, Block>) {
        for (source, block) in blocks {
            match source {
                IpNet::V4(v4) => {
                    let address = u32::from_ne_bytes(v4.addr().octets());
                    if v4.prefix_len() == 32 {
                        self.block4.insert(address, block);
                    } else {
                        let key = TrieKey { prefix_len: v4.prefix_len().into(), data: address };
                        self.block4_prefix.insert(key, block);
                    }
                }
                IpNet::V6(v6) => {
                    let ip = Ip::v6(v6.addr().octets());
                    match v6.prefix_len() {
                        128 => self.block6.insert(ip, block),
                        // An evaluated one would be found before a narrower block of the trie, and hide it.
                        len @ (64 | 56 | 48) if block.flags & EVALUATE == 0 => {
                            self.block6_net.insert([ip.0[0], ip.0[1], len.into()], block)
                        }
                        len => self.block6_prefix.insert(TrieKey { prefix_len: len.into(), data: ip }, block),
                    };
                }
            }
        }
    }

    /// IPv6 prefixes of lists lie among the blocks of rules: of a prefix that both name the stronger entry holds, and of
    /// equal ones the rule's.
    fn add_lists(
        &mut self,
        lists: &Lists,
        slots: &mut Slots,
        blocks: &mut BTreeMap<IpNet, Block>,
        refused: &mut Vec<(RuleId, Refusal)>,
    ) {
        let mut rules = Vec::new();
        let ends = lists.ends_at_ns.iter().copied().chain(std::iter::repeat(0));
        for ((rule, evaluate), expires_at_ns) in lists.rules.iter().zip(ends) {
            let slot = slots.assign(*rule);
            if slot.is_none() && refused.last().is_none_or(|(last, _)| last != rule) {
                refused.push((*rule, no_slot()));
            }
            let flags = if slot.is_none() { 0 } else { PRESENT | if *evaluate { EVALUATE } else { 0 } };
            rules.push(Block { expires_at_ns, rule: slot.unwrap_or(NO_RULE), flags, padding: [0; 3] });
        }
        for (prefix, place) in &lists.v6 {
            let Some(block) = rules.get(*place).copied().filter(|block| block.flags != 0) else { continue };
            add_block(blocks, prefix.trunc(), block);
        }
        self.lists = Some(ListRules { table: lists.table, rules });
    }

    /// The stages that must be in the path for these entries.
    pub fn features(&self) -> u32 {
        let has_net = |len: u32| self.block6_net.keys().any(|key| key[2] == len);
        let stages = [
            (!self.trust.is_empty(), feature::TRUST),
            (!self.block4.is_empty(), feature::BLOCK4),
            (!self.block4_prefix.is_empty(), feature::BLOCK4_PREFIX),
            (!self.block6.is_empty(), feature::BLOCK6),
            (has_net(64), feature::BLOCK6_NET),
            (has_net(56), feature::BLOCK6_56),
            (has_net(48), feature::BLOCK6_48),
            (!self.block6_prefix.is_empty(), feature::BLOCK6_PREFIX),
            (!self.source_limits.is_empty(), feature::SOURCE_LIMIT),
            (self.rulebook.has_global(), feature::GLOBAL_RULES),
            (self.rulebook.has_payloads(), feature::PAYLOADS),
            (self.lists.as_ref().is_some_and(|lists| lists.table != 0), feature::LISTS4),
        ];
        stages.iter().filter(|(on, _)| *on).fold(0, |mask, (_, bit)| mask | bit)
    }

    /// Gives the rules of each protected destination a place in the rule book. The longest match alone counts in the
    /// kernel, so each destination has the rules of every prefix around it too. Drops come before limits: what is
    /// dropped anyway must not use up a limit.
    fn add_targets(&mut self, rules: &[(&Rule, Entry)], ground: &Ground, refused: &mut Vec<(RuleId, Refusal)>) {
        let rank = |rule: &Rule, entry: &Entry| {
            let len = rule.matches.target.map_or(0, |t| t.prefix_len());
            let order = match entry.signature.action {
                rule_action::PASS => 0,
                rule_action::DROP => 1,
                rule_action::MARK | rule_action::SAMPLE => 2,
                _ => 3,
            };
            (order, u8::MAX - len, rule.id)
        };
        let mut refuse = BTreeMap::new();
        let mut add = |book: &mut Rulebook, mut list: Vec<(&Rule, Entry)>, global: bool| {
            list.sort_by_key(|(rule, entry)| rank(rule, entry));
            let mut why = None;
            loop {
                let entries: Vec<Entry> = list.iter().map(|(_, entry)| *entry).collect();
                match book.place(&entries, global) {
                    Ok(place) => return place,
                    Err(error) => {
                        // The last ones have to go: the list is in the order of importance.
                        let words = why.get_or_insert_with(|| error.to_string()).clone();
                        let Some((rule, _)) = list.pop() else { return Default::default() };
                        refuse.entry(rule.id).or_insert(Refusal::NoRoom(words));
                    }
                }
            }
        };
        let mut book = Rulebook::default();
        add(&mut book, rules.iter().filter(|(rule, _)| rule.matches.target.is_none()).cloned().collect(), true);
        let everywhere = ground.protected.iter().map(IpNet::trunc);
        let named = rules.iter().filter_map(|(rule, _)| rule.matches.target.map(|t| t.trunc()));
        for prefix in everywhere.chain(named).collect::<BTreeSet<IpNet>>() {
            let around = |rule: &Rule| rule.matches.target.is_some_and(|target| target.trunc().contains(&prefix));
            let list = rules.iter().filter(|(rule, _)| around(rule)).cloned().collect();
            let place = add(&mut book, list, false);
            let target = Target { rules: place.rules, group: place.group, flags: PRESENT, padding: [0; 3] };
            // Shorter prefixes come first, so that a part of one gives way to a prefix that is named.
            for part in families::without_mapped(prefix) {
                self.protected.insert(key(part), target);
            }
        }
        self.rulebook = book;
        refused.extend(refuse);
    }

    /// The bitmaps in front of the tables; `seed` is the key of the hashes.
    pub fn bitmaps(&self, seed: u64) -> Box<Bitmaps> {
        const EMPTY: [u64; BITMAP_WORDS] = [0; BITMAP_WORDS];
        let mut bitmaps = Box::new(Bitmaps {
            trust4: EMPTY,
            trust6: EMPTY,
            block4: EMPTY,
            block6: EMPTY,
            limit4: EMPTY,
            limit6: EMPTY,
            blocks: [0; FILTER_WORDS],
        });
        let both = |four: &mut [u64; BITMAP_WORDS], six: &mut [u64; BITMAP_WORDS], key: &TrieKey<Ip>| {
            let (prefix_len, ip) = (key.prefix_len, key.data);
            if ip.is_v4() && prefix_len >= 96 {
                set_bits(four, ip.0[3], prefix_len - 96);
            } else {
                set_bits(six, ip.0[0], prefix_len);
            }
        };
        let maps = &mut *bitmaps;
        self.trust.keys().for_each(|key| both(&mut maps.trust4, &mut maps.trust6, key));
        self.source_limits.keys().for_each(|key| both(&mut maps.limit4, &mut maps.limit6, key));
        for key in self.block4_prefix.keys() {
            set_bits(&mut maps.block4, key.data, key.prefix_len);
        }
        for key in self.block6_prefix.keys() {
            let ip = key.data;
            set_bits(&mut maps.block6, ip.0[0], key.prefix_len);
        }
        let mut filter = |hash: u64| {
            let (word, bit) = filter_bit(hash);
            maps.blocks[word] |= bit;
        };
        self.block4.keys().for_each(|address| filter(hash4(*address, seed)));
        self.block6.keys().for_each(|ip| filter(hash6(ip, seed)));
        self.block6_net.keys().for_each(|[a, b, len]| filter(hash6_net([*a, *b], *len, seed)));
        bitmaps
    }
}

fn add_block(blocks: &mut BTreeMap<IpNet, Block>, source: IpNet, block: Block) {
    let there = blocks.entry(source).or_insert(block);
    if nested::rank(&block) > nested::rank(there) {
        *there = block;
    }
}

/// Sets the bits of every first half-word that the prefix reaches; `word` is in memory order.
fn set_bits(bitmap: &mut [u64; BITMAP_WORDS], word: u32, prefix_len: u32) {
    let first = u32::from_be(word) >> 16;
    let count = if prefix_len >= 16 { 1 } else { 1u32 << (16 - prefix_len) };
    let start = first & !(count - 1);
    for half in start..start + count {
        bitmap[(half >> 6) as usize] |= 1 << (half & 63);
    }
}

/// The key of a prefix among both families.
pub fn key(prefix: IpNet) -> TrieKey<Ip> {
    let prefix = prefix.trunc();
    let extra = if prefix.addr().is_ipv4() { 96 } else { 0 };
    TrieKey { prefix_len: extra + u32::from(prefix.prefix_len()), data: Ip::from(prefix.addr()) }
}

/// The prefix of a key.
pub fn prefix(key: &TrieKey<Ip>) -> Option<IpNet> {
    let (len, ip) = (key.prefix_len, key.data);
    let addr = IpAddr::from(ip);
    let len = if addr.is_ipv4() && len >= 96 { len - 96 } else { len };
    IpNet::new(addr, u8::try_from(len).ok()?).ok()
}

fn flags(rule: &Rule) -> u8 {
    let automatic = if rule.origin.is_automatic() { AUTOMATIC } else { 0 };
    let evaluate = if rule.evaluate { EVALUATE } else { 0 };
    PRESENT | automatic | evaluate
}

fn rate(verdict: Verdict) -> Option<Rate> {
    match verdict {
        Verdict::Drop | Verdict::Pass | Verdict::Sample | Verdict::Mark { .. } => None,
        Verdict::LimitPps { pps, burst } => Some(Rate::packets(pps, burst)),
        Verdict::LimitBps { bps, burst } => Some(Rate::bits(bps, burst)),
    }
}

/// A rule as the rule book takes it.
fn entry(rule: &Rule, slot: u32) -> Result<Entry, String> {
    let m = &rule.matches;
    let payload = m.payload.as_deref().unwrap_or_default();
    let mut bytes = [0; PAYLOAD_BYTES];
    let Some(there) = bytes.get_mut(..payload.len()) else {
        return Err(format!("payload: {} bytes; a rule compares at most {PAYLOAD_BYTES}", payload.len()));
    };
    there.copy_from_slice(payload);
    if let Some(source) = m.source
        && families::has_mapped(source)
        && !m.target.is_some_and(|target| target.addr().is_ipv6())
    {
        return Err(format!("source {source} would meet IPv4 packets too: name a narrower one, such as 2000::/3"));
    }
    let (src, src_mask) = m.source.map_or_else(Default::default, |source| {
        let key = key(source);
        (key.data, mask(key.prefix_len))
    });
    let (action, dscp) = match rule.verdict {
        Verdict::Drop => (rule_action::DROP, 0),
        Verdict::Pass => (rule_action::PASS, 0),
        Verdict::Sample => (rule_action::SAMPLE, 0),
        Verdict::Mark { dscp } if dscp < 64 => (rule_action::MARK, dscp),
        Verdict::Mark { dscp } => return Err(format!("dscp: {dscp} is more than 63")),
        Verdict::LimitPps { .. } | Verdict::LimitBps { .. } => (rule_action::LIMIT, 0),
    };
    Ok(Entry {
        src_port: m.src_port.unwrap_or([0, u16::MAX]),
        dst_port: m.dst_port.unwrap_or([0, u16::MAX]),
        length: m.length.unwrap_or([0, u16::MAX]),
        ttl: m.ttl.unwrap_or([0, u8::MAX]),
        icmp_type: m.icmp_type.unwrap_or([0, u8::MAX]),
        dscp: m.dscp.unwrap_or([0, 63]),
        protocol: m.protocol,
        tcp_flags: m.tcp_flags.unwrap_or([0, 0]),
        fragment: m.fragment,
        signature: Signature {
            expires_at_ns: rule.expires_at_ns.unwrap_or(0),
            rate: rate(rule.verdict).unwrap_or_default(),
            src_mask,
            src,
            payload: bytes,
            rule: slot,
            payload_len: payload.len() as u8,
            action,
            flags: flags(rule),
            dscp,
        },
    })
}

/// The first `len` bits of an address, as they lie in memory.
fn mask(len: u32) -> Ip {
    let bits = if len == 0 { 0 } else { u128::MAX << (128 - len.min(128)) };
    Ip::v6(bits.to_be_bytes())
}

/// Trusted prefixes, each with what the prefixes around it grant.
fn trust(set: &RuleSet, ground: &Ground) -> BTreeMap<TrieKey<Ip>, Trust> {
    let allowed: Vec<IpNet> = set.allow.iter().map(|entry| entry.prefix.trunc()).collect();
    let prefixes: BTreeSet<IpNet> =
        allowed.iter().copied().chain(ground.fail_safe.iter().map(|f| f.prefix.trunc())).collect();
    let mut entries = BTreeMap::new();
    for prefix in prefixes {
        let mut trust = Trust::default();
        if allowed.iter().any(|a| a.contains(&prefix)) {
            trust.flags |= TRUST_ALLOW;
        }
        let mut ports = BTreeSet::new();
        for fail_safe in ground.fail_safe.iter().filter(|f| f.prefix.trunc().contains(&prefix)) {
            if fail_safe.ports.is_empty() {
                trust.flags |= TRUST_ALL;
            } else {
                trust.flags |= TRUST_PORTS;
                ports.extend(fail_safe.ports.iter().copied());
            }
        }
        if ports.len() > TRUSTED_PORTS {
            // More ports than an entry holds: trusting the prefix on all of them locks nobody out.
            trust.flags |= TRUST_ALL;
        }
        for (slot, port) in trust.ports.iter_mut().zip(&ports) {
            *slot = *port;
            trust.port_count += 1;
        }
        // Shorter prefixes come first, so that a part of one gives way to a prefix that is named.
        for part in families::without_mapped(prefix) {
            entries.insert(key(part), trust);
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ftagent_common::api::AllowEntry;

    use super::*;
    use crate::engine::{Matches, Origin};

    fn rule(id: u64, matches: Matches, verdict: Verdict) -> Rule {
        let origin = Origin::Response { incident: uuid::Uuid::nil() };
        Rule {
            id: RuleId(id),
            matches,
            verdict,
            point: Point::Datapath,
            origin,
            expires_at_ns: Some(id),
            evaluate: false,
        }
    }

    fn set(rules: Vec<Rule>) -> RuleSet {
        RuleSet { rules: rules.into_iter().map(|r| (r.id, r)).collect::<BTreeMap<_, _>>(), ..RuleSet::default() }
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect(text)
    }

    #[test]
    fn sources_go_to_the_map_of_their_length() {
        let rules = ["192.0.2.1/32", "192.0.2.0/24", "2001:db8::1/128", "2001:db8::/64", "2001:db8::/40"];
        let rules = rules.iter().zip(1..).map(|(s, id)| rule(id, Matches::source(net(s)), Verdict::Drop)).collect();
        let tables = compile(&set(rules), &Ground::default(), &mut Slots::default()).tables;
        let sizes = (tables.block4.len(), tables.block4_prefix.len(), tables.block6.len(), tables.block6_net.len());
        assert_eq!(sizes, (1, 1, 1, 1));
        assert_eq!(tables.block6_prefix.len(), 1);
        let all =
            feature::BLOCK4 | feature::BLOCK4_PREFIX | feature::BLOCK6 | feature::BLOCK6_NET | feature::BLOCK6_PREFIX;
        assert_eq!(tables.features(), all);
    }

    #[test]
    fn a_target_inside_a_ruled_prefix_keeps_the_rules_of_the_prefix() {
        let wide = rule(1, Matches::target(net("203.0.113.0/24")), Verdict::LimitPps { pps: 10, burst: 1 });
        let narrow = rule(2, Matches::target(net("203.0.113.7/32")), Verdict::Drop);
        let tables = compile(&set(vec![wide, narrow]), &Ground::default(), &mut Slots::default()).tables;
        assert_eq!(tables.protected[&key(net("203.0.113.7/32"))].rules.count_ones(), 2);
        assert_eq!(tables.protected[&key(net("203.0.113.0/24"))].rules.count_ones(), 1);
    }

    #[test]
    fn drops_are_asked_before_limits() {
        let limit = rule(1, Matches::target(net("203.0.113.7/32")), Verdict::LimitPps { pps: 10, burst: 1 });
        let drop = rule(2, Matches::target(net("203.0.113.7/32")), Verdict::Drop);
        let tables = compile(&set(vec![limit, drop]), &Ground::default(), &mut Slots::default()).tables;
        let place = tables.protected[&key(net("203.0.113.7/32"))];
        let built = tables.rulebook.build();
        let first = place.group as usize * 64 + place.rules.trailing_zeros() as usize;
        let actions: Vec<u8> = built.rules[first..first + 2].iter().map(|r| r.action).collect();
        assert_eq!(actions, [rule_action::DROP, rule_action::LIMIT]);
    }

    #[test]
    fn the_sixty_fifth_rule_of_a_target_is_refused_and_said() {
        let rules = (1..=65).map(|id| rule(id, Matches::target(net("203.0.113.7/32")), Verdict::Drop)).collect();
        let compiled = compile(&set(rules), &Ground::default(), &mut Slots::default());
        assert!(matches!(compiled.refused[..], [(RuleId(65), Refusal::NoRoom(_))]), "{:?}", compiled.refused);
        let impossible = rule(66, Matches::target(net("203.0.113.7/32")), Verdict::Mark { dscp: 64 });
        let compiled = compile(&set(vec![impossible]), &Ground::default(), &mut Slots::default());
        assert!(matches!(compiled.refused[..], [(RuleId(66), Refusal::Impossible(_))]), "{:?}", compiled.refused);
    }

    #[test]
    fn an_allowed_address_inside_a_management_network_has_both() {
        let ground = Ground {
            fail_safe: vec![FailSafe { prefix: net("198.51.100.0/24"), ports: vec![22] }],
            ..Ground::default()
        };
        let allow = vec![AllowEntry { prefix: net("198.51.100.9/32"), label: String::new() }];
        let set = RuleSet { allow, ..RuleSet::default() };
        let tables = compile(&set, &ground, &mut Slots::default()).tables;
        let trust = tables.trust[&key(net("198.51.100.9/32"))];
        assert_eq!(trust.flags, TRUST_ALLOW | TRUST_PORTS);
        assert_eq!((trust.port_count, trust.ports[0]), (1, 22));
    }

    #[test]
    fn bitmaps_cover_exactly_the_prefixes() {
        let rules = vec![rule(1, Matches::source(net("10.0.0.0/8")), Verdict::Drop)];
        let tables = compile(&set(rules), &Ground::default(), &mut Slots::default()).tables;
        let ones: u32 = tables.bitmaps(7).block4.iter().map(|w| w.count_ones()).sum();
        assert_eq!(ones, 256);
    }

    #[test]
    fn an_operators_block_outranks_an_automatic_one_of_the_same_source() {
        let mut by_hand = rule(1, Matches::source(net("192.0.2.1/32")), Verdict::Drop);
        by_hand.origin = Origin::Operator;
        by_hand.expires_at_ns = None;
        let automatic = rule(2, Matches::source(net("192.0.2.1/32")), Verdict::Drop);
        let tables = compile(&set(vec![by_hand, automatic]), &Ground::default(), &mut Slots::default()).tables;
        let block = tables.block4.values().next().expect("one block");
        assert_eq!((block.flags, block.expires_at_ns), (PRESENT, 0));
    }

    #[test]
    fn a_rule_keeps_its_slot_while_it_lives() {
        let mut slots = Slots::default();
        let first = slots.assign(RuleId(5));
        let clash = slots.assign(RuleId(5 + u64::from(MAX_RULES)));
        assert_ne!(first, clash);
        assert_eq!(slots.retain(|id| id != RuleId(5)), vec![5]);
        assert_eq!(slots.assign(RuleId(5 + u64::from(MAX_RULES))), clash);
    }

    #[test]
    fn keys_and_prefixes_are_inverse() {
        for text in ["0.0.0.0/0", "192.0.2.0/24", "2001:db8::/32", "::/0", "192.0.2.1/32"] {
            assert_eq!(prefix(&key(net(text))), Some(net(text)));
        }
    }
}
