//! The steps from the table as it is to the table as it should be: pure.

use std::collections::{BTreeMap, BTreeSet};

use super::TABLE;
use super::observe::{Observed, ObservedElement, ObservedRule, ObservedSet};
use super::plan::{BASE_CHAIN, ElementPlan, KernelRule, NETWORK_CHAIN, PASS_CHAIN, Plan, SetPlan, TRANSPORT_CHAIN};
use super::socket::{APPEND, CREATE, EXCLUSIVE, Request};
use super::wire::{Attributes, Mark, attribute as a, message};
use crate::engine::RuleId;

const POLICY_ACCEPT: u32 = 1;
const SET_TIMEOUTS: u32 = 0x10;
/// Of one message; its list has a 16-bit length.
const ELEMENTS_PER_MESSAGE: usize = 500;
/// An end that differs by less is the same: clocks are read at different moments.
const SAME_END_MS: u64 = 1_500;
/// A set of many elements takes a while to fill, and each counts from when it was put in: a millisecond more for so many.
/// Otherwise a slow machine would write them all again at every look.
const ELEMENTS_PER_MS: usize = 10;
const SAME_END_SECS: u64 = 5;

/// A message, and the rules that fail if it does.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) request: Request,
    pub(super) rules: Vec<RuleId>,
}

/// Every step, in an order in which nothing is removed while it is in use.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) steps: Vec<Step>,
    next_set_id: u32,
}

impl Change {
    /// The difference between `seen` and `plan`; empty if there is none.
    pub(super) fn between(seen: &Observed, plan: &Plan) -> Self {
        let mut change = Self { steps: Vec::new(), next_set_id: 1 };
        if plan.is_empty() {
            if seen.table {
                change.push(message::DEL_TABLE, 0, table());
            }
            return change;
        }
        let empty = Observed::default();
        let seen = if seen.table && !is_usable(seen, plan) {
            change.push(message::DEL_TABLE, 0, table());
            &empty
        } else {
            seen
        };
        change.make_frame(seen, plan);
        for (name, set) in &plan.sets {
            change.fill_set(name, set, seen.sets.get(name));
        }
        change.order_lookups(seen, plan);
        change.change_rules(seen, plan);
        for name in seen.sets.keys().filter(|name| !plan.sets.contains_key(*name)) {
            change.push(message::DEL_SET, 0, Attributes::default().text(a::SET_TABLE, TABLE).text(a::SET_NAME, name));
        }
        change
    }

    fn push(&mut self, kind: u16, flags: u16, attributes: Attributes) {
        self.push_for(kind, flags, attributes, Vec::new());
    }

    fn push_for(&mut self, kind: u16, flags: u16, attributes: Attributes, rules: Vec<RuleId>) {
        self.steps.push(Step { request: Request { kind, flags, attributes }, rules });
    }

    fn make_frame(&mut self, seen: &Observed, plan: &Plan) {
        if !seen.table {
            self.push(message::NEW_TABLE, CREATE, table());
        }
        if !seen.chains.contains_key(BASE_CHAIN) {
            let hook = plan.place.hook().encode();
            let chain = chain(BASE_CHAIN).nested(a::CHAIN_HOOK, &hook).u32(a::CHAIN_POLICY, POLICY_ACCEPT);
            self.push(message::NEW_CHAIN, CREATE, chain.text(a::CHAIN_TYPE, "filter"));
        }
        for name in [PASS_CHAIN, NETWORK_CHAIN, TRANSPORT_CHAIN] {
            if !seen.chains.contains_key(name) {
                self.push(message::NEW_CHAIN, CREATE, chain(name));
            }
        }
    }

    fn fill_set(&mut self, name: &str, set: &SetPlan, seen: Option<&ObservedSet>) {
        if seen.is_none() {
            let request = Attributes::default()
                .text(a::SET_TABLE, TABLE)
                .text(a::SET_NAME, name)
                .u32(a::SET_FLAGS, flags(set))
                .u32(a::SET_KEY_TYPE, key_type(set))
                .u32(a::SET_KEY_LEN, set.family.address_bytes().into())
                .u32(a::SET_ID, self.next_set_id);
            self.next_set_id += 1;
            self.push(message::NEW_SET, CREATE | EXCLUSIVE, request);
        }
        let same_end_ms = SAME_END_MS + (set.elements.len() / ELEMENTS_PER_MS) as u64;
        let there = |key: &Vec<u8>| seen.and_then(|s| s.elements.get(key));
        let wrong: Vec<_> = set
            .elements
            .iter()
            .filter(|(key, e)| there(key).is_none_or(|there| differs(e, there, same_end_ms)))
            .collect();
        let stale = seen.into_iter().flat_map(|s| s.elements.keys()).filter(|key| !set.elements.contains_key(*key));
        // A changed end is a removal and an addition: the kernel changes ends in place from 6.12 on only.
        let replaced = wrong.iter().map(|(key, _)| *key).filter(|key| there(key).is_some());
        let gone: Vec<&Vec<u8>> = stale.chain(replaced).collect();
        for part in gone.chunks(ELEMENTS_PER_MESSAGE) {
            let list = part.iter().fold(Attributes::default(), |list, key| list.nested(a::LIST_ELEMENT, &element(key)));
            self.push(message::DEL_ELEMENT, 0, elements(name, &list));
        }
        for part in wrong.chunks(ELEMENTS_PER_MESSAGE) {
            let list = part.iter().fold(Attributes::default(), |list, (key, plan)| {
                let element = element(key).bytes(a::ELEMENT_USERDATA, &plan.mark.encode());
                let element = match plan.remaining_ms {
                    Some(ms) => element.u64(a::ELEMENT_TIMEOUT, ms),
                    None => element,
                };
                list.nested(a::LIST_ELEMENT, &element)
            });
            // Most are of one rule.
            let mut rules: Vec<RuleId> = part.iter().filter_map(|(_, plan)| plan.rule).collect();
            rules.dedup();
            self.push_for(message::NEW_ELEMENT, CREATE, elements(name, &list), rules);
        }
    }

    /// The base chain's few rules depend on their order: if one is wrong, all are written again.
    fn order_lookups(&mut self, seen: &Observed, plan: &Plan) {
        let there: Vec<&ObservedRule> = seen.rules.iter().filter(|r| r.chain == BASE_CHAIN).collect();
        let same = there.len() == plan.lookups.len()
            && there.iter().zip(&plan.lookups).all(|(there, wanted)| there.mark.as_ref() == Some(&wanted.mark));
        if same {
            return;
        }
        for rule in there {
            self.delete(rule);
        }
        for lookup in &plan.lookups {
            self.append(BASE_CHAIN, lookup, Vec::new());
        }
    }

    fn change_rules(&mut self, seen: &Observed, plan: &Plan) {
        let mut kept = BTreeSet::new();
        let there: Vec<&ObservedRule> = seen.rules.iter().filter(|r| r.chain != BASE_CHAIN).collect();
        // By what makes two rules the same, apart from their ends: there may be thousands.
        type Sameness<'a> = (&'a str, &'a str, u32);
        let mut by_mark: BTreeMap<Sameness<'_>, Vec<(u64, &Mark)>> = BTreeMap::new();
        for rule in &there {
            if let Some(mark) = &rule.mark {
                let same = by_mark.entry((&rule.chain, &mark.name, mark.checksum)).or_default();
                same.push((rule.handle, mark));
            }
        }
        for (id, chain, wanted) in &plan.rules {
            let candidates = by_mark.get_mut(&(*chain, wanted.mark.name.as_str(), wanted.mark.checksum));
            let found = candidates.and_then(|candidates| {
                let at = candidates.iter().position(|(_, mark)| same_end(mark, &wanted.mark))?;
                Some(candidates.swap_remove(at).0)
            });
            match found {
                Some(handle) => drop(kept.insert(handle)),
                None => self.append(chain, wanted, vec![*id]),
            }
        }
        for rule in there.iter().filter(|r| !kept.contains(&r.handle)) {
            self.delete(rule);
        }
    }

    fn append(&mut self, chain: &str, rule: &KernelRule, rules: Vec<RuleId>) {
        let request = Attributes::default()
            .text(a::RULE_TABLE, TABLE)
            .text(a::RULE_CHAIN, chain)
            .nested(a::RULE_EXPRESSIONS, rule.expressions.list())
            .bytes(a::RULE_USERDATA, &rule.mark.encode());
        self.push_for(message::NEW_RULE, CREATE | APPEND, request, rules);
    }

    fn delete(&mut self, rule: &ObservedRule) {
        let request = Attributes::default().text(a::RULE_TABLE, TABLE).text(a::RULE_CHAIN, &rule.chain);
        self.push(message::DEL_RULE, 0, request.u64(a::RULE_HANDLE, rule.handle));
    }
}

fn table() -> Attributes {
    Attributes::default().text(a::TABLE_NAME, TABLE)
}

fn chain(name: &str) -> Attributes {
    Attributes::default().text(a::CHAIN_TABLE, TABLE).text(a::CHAIN_NAME, name)
}

fn elements(set: &str, list: &Attributes) -> Attributes {
    let request = Attributes::default().text(a::ELEMENTS_TABLE, TABLE).text(a::ELEMENTS_SET, set);
    request.nested(a::ELEMENTS_LIST, list)
}

fn element(key: &[u8]) -> Attributes {
    Attributes::default().data(a::ELEMENT_KEY, key)
}

/// Only how nft shows the key.
fn key_type(set: &SetPlan) -> u32 {
    const IPV4_ADDRESS: u32 = 7;
    const IPV6_ADDRESS: u32 = 8;
    if set.family.address_bytes() == 4 { IPV4_ADDRESS } else { IPV6_ADDRESS }
}

fn flags(set: &SetPlan) -> u32 {
    if set.timeouts { SET_TIMEOUTS } else { 0 }
}

/// Whether chains and sets of our names are what we make; an older version or a stranger may have made others.
fn is_usable(seen: &Observed, plan: &Plan) -> bool {
    let chains = seen.chains.iter().all(|(name, hook)| match name.as_str() {
        BASE_CHAIN => *hook == Some(plan.place.hook()),
        PASS_CHAIN | NETWORK_CHAIN | TRANSPORT_CHAIN => hook.is_none(),
        _ => false,
    });
    let sets = seen.sets.iter().all(|(name, seen)| {
        plan.sets
            .get(name)
            .is_none_or(|plan| seen.flags == flags(plan) && seen.key_len == u32::from(plan.family.address_bytes()))
    });
    chains && sets
}

fn differs(wanted: &ElementPlan, there: &ObservedElement, same_end_ms: u64) -> bool {
    let same_end = match (wanted.remaining_ms, there.remaining_ms) {
        (None, None) => true,
        (Some(wanted), Some(there)) => wanted.abs_diff(there) <= same_end_ms,
        _ => false,
    };
    !same_end || there.mark.as_ref() != Some(&wanted.mark)
}

fn same_end(there: &Mark, wanted: &Mark) -> bool {
    match (there.until_secs, wanted.until_secs) {
        (0, 0) => true,
        (0, _) | (_, 0) => false,
        (there, wanted) => there.abs_diff(wanted) <= SAME_END_SECS,
    }
}
