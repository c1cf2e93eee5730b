//! Signature rules of all destinations, laid out for the kernel's bit vectors. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ftagent_common::abi::{
    EVALUATE, MATCHES_ASKED, RULES_PER_GROUP, SIGNATURE_CLASSES, SIGNATURE_GROUPS, Signature, Signatures, rule_action,
};

/// One rule with everything that it matches; ranges are inclusive and in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub src_port: [u16; 2],
    pub dst_port: [u16; 2],
    /// Length of the IP datagram in bytes.
    pub length: [u16; 2],
    pub ttl: [u8; 2],
    pub icmp_type: [u8; 2],
    pub dscp: [u8; 2],
    /// Absent: any.
    pub protocol: Option<u8>,
    /// `[mask, value]`.
    pub tcp_flags: [u8; 2],
    /// Absent: both; `true`: fragments alone.
    pub fragment: Option<bool>,
    pub signature: Signature,
}

impl Entry {
    /// Whether a packet that matches is judged by this rule alone, with no other asked after it.
    pub fn decides(&self) -> bool {
        let s = &self.signature;
        matches!(s.action, rule_action::DROP | rule_action::PASS)
            && s.flags & EVALUATE == 0
            && s.payload_len == 0
            && s.src_mask.0 == [0; 4]
    }
}

/// Why a rule has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    #[error("a destination can have at most {RULES_PER_GROUP} rules")]
    TooMany,
    #[error(
        "a destination can have at most {} rules that limit, sample, mark, are evaluated, or compare a source or a \
         payload",
        MATCHES_ASKED - 1
    )]
    TooManyAsked,
    #[error("all {} places for rules of destinations are taken", (SIGNATURE_GROUPS - 1) * RULES_PER_GROUP)]
    Full,
    #[error("the rules name more than {} different {field} ranges", SIGNATURE_CLASSES / 2 - 1)]
    TooManyRanges { field: &'static str },
}

/// Where the rules of a destination are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub group: u32,
    /// A bit for each rule.
    pub rules: u64,
}

/// All signature rules of one rule set. Group 0 holds those without a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rulebook {
    groups: Vec<Vec<Entry>>,
    /// Lists of rules that have a place, by their counter slots: destinations with the same rules share them.
    places: BTreeMap<Vec<u32>, Place>,
    ends: [BTreeSet<u32>; 3],
}

impl Rulebook {
    /// Whether there are rules without a destination.
    pub fn has_global(&self) -> bool {
        self.groups.first().is_some_and(|group| !group.is_empty())
    }

    /// Whether a rule compares payloads.
    pub fn has_payloads(&self) -> bool {
        self.entries().any(|entry| entry.signature.payload_len != 0)
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(Vec::is_empty)
    }

    /// Whether a rule has this counter slot.
    pub fn has_slot(&self, slot: u32) -> bool {
        self.entries().any(|entry| entry.signature.rule == slot)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.groups.iter().flatten()
    }

    /// Gives the rules of one destination a place, in the order in which they are to be asked; `global` ones are those
    /// of all destinations.
    ///
    /// # Errors
    /// When there is none; nothing has changed then.
    pub fn place(&mut self, list: &[Entry], global: bool) -> Result<Place, NoPlace> {
        if list.is_empty() {
            return Ok(Place::default());
        }
        let slots: Vec<u32> = list.iter().map(|entry| entry.signature.rule).collect();
        if let Some(place) = self.places.get(&slots).filter(|_| !global) {
            return Ok(*place);
        }
        if list.len() > RULES_PER_GROUP {
            return Err(NoPlace::TooMany);
        }
        if list.iter().filter(|entry| !entry.decides()).count() >= MATCHES_ASKED {
            return Err(NoPlace::TooManyAsked);
        }
        let mut ends = self.ends.clone();
        for entry in list {
            for (ends, (range, field)) in ends.iter_mut().zip(ranges(entry)) {
                ends.insert(range[0].into());
                ends.insert(u32::from(range[1]) + 1);
                if ends.len() > SIGNATURE_CLASSES - 2 {
                    return Err(NoPlace::TooManyRanges { field });
                }
            }
        }
        self.groups.resize(SIGNATURE_GROUPS, Vec::new());
        let choices = if global { 0..1 } else { 1..SIGNATURE_GROUPS };
        let group =
            choices.into_iter().find(|g| self.groups[*g].len() + list.len() <= RULES_PER_GROUP).ok_or(NoPlace::Full)?;
        let first = self.groups[group].len();
        self.groups[group].extend_from_slice(list);
        self.ends = ends;
        let bits = if list.len() == 64 { u64::MAX } else { (1 << list.len()) - 1 };
        let place = Place { group: group as u32, rules: bits << first };
        if !global {
            self.places.insert(slots, place);
        }
        Ok(place)
    }

    /// The tables for the kernel.
    pub fn build(&self) -> Box<Signatures> {
        let mut tables = zeroed();
        let [src_ends, dst_ends, length_ends] = &self.ends;
        classes(src_ends, &mut tables.src_port_class);
        classes(dst_ends, &mut tables.dst_port_class);
        classes(length_ends, &mut tables.length_class);
        for (group, entries) in self.groups.iter().enumerate() {
            for (bit, entry) in entries.iter().enumerate() {
                let set = |row: &mut [u64; SIGNATURE_GROUPS]| row[group] |= 1 << bit;
                span(src_ends, entry.src_port).for_each(|class| set(&mut tables.src_port[class]));
                span(dst_ends, entry.dst_port).for_each(|class| set(&mut tables.dst_port[class]));
                span(length_ends, entry.length).for_each(|class| set(&mut tables.length[class]));
                let bytes = |range: [u8; 2]| usize::from(range[0])..=usize::from(range[1]);
                tables.ttl[bytes(entry.ttl)].iter_mut().for_each(set);
                tables.icmp_type[bytes(entry.icmp_type)].iter_mut().for_each(set);
                let [low, high] = entry.dscp;
                if low < 64 {
                    tables.dscp[bytes([low, high.min(63)])].iter_mut().for_each(set);
                }
                let protocols = entry.protocol.map_or([0, u8::MAX], |p| [p, p]);
                tables.protocol[bytes(protocols)].iter_mut().for_each(set);
                let [mask, value] = entry.tcp_flags;
                for (flags, row) in (0u8..).zip(tables.tcp_flags.iter_mut()) {
                    if flags & mask == value & mask {
                        set(row);
                    }
                }
                for (position, row) in tables.fragment.iter_mut().enumerate() {
                    if entry.fragment.is_none_or(|fragments| fragments == (position != 0)) {
                        set(row);
                    }
                }
                tables.rules[group * RULES_PER_GROUP + bit] = entry.signature;
            }
        }
        tables
    }
}

fn ranges(entry: &Entry) -> [([u16; 2], &'static str); 3] {
    [(entry.src_port, "source port"), (entry.dst_port, "destination port"), (entry.length, "length")]
}

/// Numbers the values: a new class begins at every end of a range.
fn classes(ends: &BTreeSet<u32>, table: &mut [u16; 65_536]) {
    let mut class = 0;
    for (value, cell) in (0u32..).zip(table.iter_mut()) {
        if value != 0 && ends.contains(&value) {
            class += 1;
        }
        *cell = class;
    }
}

/// The classes that a range covers.
fn span(ends: &BTreeSet<u32>, range: [u16; 2]) -> std::ops::RangeInclusive<usize> {
    let class = |value: u16| if value == 0 { 0 } else { ends.range(1..=u32::from(value)).count() };
    class(range[0])..=class(range[1])
}

/// A megabyte of zeros, never on the stack.
fn zeroed() -> Box<Signatures> {
    // SAFETY: integers and arrays of them: all zero is a value.
    unsafe { Box::<Signatures>::new_zeroed().assume_init() }
}

#[cfg(test)]
mod tests {
    use ftagent_common::abi::NO_RULE;
    use ftagent_common::packet::{Fragment, Packet};
    use proptest::prelude::*;

    use super::*;

    fn whatever() -> Entry {
        Entry {
            src_port: [0, u16::MAX],
            dst_port: [0, u16::MAX],
            length: [0, u16::MAX],
            ttl: [0, u8::MAX],
            icmp_type: [0, u8::MAX],
            dscp: [0, 63],
            protocol: None,
            tcp_flags: [0, 0],
            fragment: None,
            signature: Signature { rule: NO_RULE, ..Signature::default() },
        }
    }

    fn entry(rule: u32) -> Entry {
        Entry { signature: Signature { rule, ..Signature::default() }, ..whatever() }
    }

    /// The rule as one compares it field by field.
    fn matches(e: &Entry, p: &Packet) -> bool {
        let within = |range: [u16; 2], value: u16| range[0] <= value && value <= range[1];
        let bytes = |range: [u8; 2], value: u8| range[0] <= value && value <= range[1];
        within(e.src_port, p.src_port)
            && within(e.dst_port, p.dst_port)
            && within(e.length, p.ip_len)
            && bytes(e.ttl, p.ttl)
            && bytes(e.icmp_type, p.icmp_type)
            && bytes(e.dscp, p.dscp)
            && e.protocol.is_none_or(|protocol| protocol == p.protocol)
            && p.tcp_flags & e.tcp_flags[0] == e.tcp_flags[1] & e.tcp_flags[0]
            && e.fragment.is_none_or(|is| is == (p.fragment != Fragment::Whole))
    }

    fn range16() -> impl Strategy<Value = [u16; 2]> {
        let edge = || prop_oneof![Just(0), Just(u16::MAX), 0u16..200, any::<u16>()];
        (edge(), edge()).prop_map(|(a, b)| [a.min(b), a.max(b)])
    }

    fn range8() -> impl Strategy<Value = [u8; 2]> {
        prop_oneof![Just([0, 255]), (any::<u8>(), any::<u8>()).prop_map(|(a, b)| [a.min(b), a.max(b)])]
    }

    prop_compose! {
        fn entries()(src_port in range16(), dst_port in range16(), length in range16(), ttl in range8(),
            icmp_type in range8(), dscp in (0u8..64, 0u8..64), protocol in proptest::option::of(0u8..20),
            tcp_flags in (0u8..64, 0u8..64), fragment in proptest::option::of(any::<bool>())) -> Entry {
            Entry { src_port, dst_port, length, ttl, icmp_type, dscp: [dscp.0.min(dscp.1), dscp.0.max(dscp.1)],
                protocol, tcp_flags: [tcp_flags.0 & 3, tcp_flags.1], fragment, ..whatever() }
        }
    }

    prop_compose! {
        fn packets()(src_port in prop_oneof![0u16..200, any::<u16>()], dst_port in any::<u16>(),
            ip_len in prop_oneof![0u16..200, any::<u16>()], ttl in any::<u8>(), icmp_type in any::<u8>(),
            dscp in 0u8..64, protocol in 0u8..20, tcp_flags in 0u8..64, fragment in 0u8..4) -> Packet {
            let fragment = [Fragment::Whole, Fragment::First, Fragment::Middle, Fragment::Last][usize::from(fragment)];
            Packet { src_port, dst_port, ip_len, ttl, icmp_type, dscp, protocol, tcp_flags, fragment, ..Packet::EMPTY }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
        #[test]
        fn the_rows_say_what_comparing_each_field_says(
            lists in proptest::collection::vec(proptest::collection::vec(entries(), 1..8), 1..6),
            packets in proptest::collection::vec(packets(), 1..40),
        ) {
            let mut book = Rulebook::default();
            let mut slot = 0;
            let lists: Vec<(Vec<Entry>, Place)> = lists.into_iter().map(|mut list| {
                for entry in &mut list {
                    entry.signature.rule = slot;
                    slot += 1;
                }
                let place = book.place(&list, false).expect("few rules");
                (list, place)
            }).collect();
            let tables = book.build();
            for packet in &packets {
                for (list, place) in &lists {
                    let found = (tables.candidates(packet, place.group) & place.rules) >> place.rules.trailing_zeros();
                    for (bit, entry) in list.iter().enumerate() {
                        prop_assert_eq!(found >> bit & 1 == 1, matches(entry, packet), "{:?} {:?}", entry, packet);
                    }
                }
            }
        }
    }

    #[test]
    fn destinations_with_the_same_rules_share_them() {
        let mut book = Rulebook::default();
        let list = [entry(1), entry(2)];
        let first = book.place(&list, false);
        assert_eq!(book.place(&list, false), first);
        assert_ne!(book.place(&[entry(3)], false), first);
        assert_eq!(book.entries().count(), 3);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let mut book = Rulebook::default();
        let limit = |rule| {
            let mut entry = entry(rule);
            entry.signature.action = rule_action::LIMIT;
            entry
        };
        let limits: Vec<Entry> = (0..16).map(limit).collect();
        assert_eq!(book.place(&limits, false), Err(NoPlace::TooManyAsked));
        let many: Vec<Entry> = (0..65).map(entry).collect();
        assert_eq!(book.place(&many, false), Err(NoPlace::TooMany));
        let ranges: Vec<Entry> =
            (0..60).map(|i| Entry { src_port: [i * 10 + 1, i * 10 + 5], ..entry(u32::from(i)) }).collect();
        for step in 0..8 {
            let list: Vec<Entry> = ranges
                .iter()
                .map(|e| {
                    let shift = step * 600;
                    let mut entry = Entry { src_port: [e.src_port[0] + shift, e.src_port[1] + shift], ..*e };
                    entry.signature.rule += u32::from(shift);
                    entry
                })
                .collect();
            book.place(&list, false).expect("960 ends");
        }
        let over: Vec<Entry> = (0..60)
            .map(|i| Entry { src_port: [i * 10 + 9_001, i * 10 + 9_005], ..entry(9_000 + u32::from(i)) })
            .collect();
        assert_eq!(book.place(&over, false), Err(NoPlace::TooManyRanges { field: "source port" }));
        assert_eq!(book.entries().count(), 480);
        for group in 0..15u32 {
            let list: Vec<Entry> = (0..64).map(|i| entry(20_000 + group * 64 + i)).collect();
            let placed = book.place(&list, false);
            assert_eq!(placed.is_ok(), group < 7, "eight groups hold 60 rules each: {placed:?}");
        }
    }

    #[test]
    fn rules_without_a_destination_are_in_group_0() {
        let mut book = Rulebook::default();
        assert!(!book.has_global());
        assert_eq!(book.place(&[entry(7)], true), Ok(Place { group: 0, rules: 1 }));
        assert!(book.has_global() && book.has_slot(7) && !book.has_slot(8));
    }
}
