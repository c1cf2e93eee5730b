//! What the table looks like now, as the kernel tells it.

use std::collections::BTreeMap;
use std::io;

use super::TABLE;
use super::place::Hook;
use super::socket::Nfnetlink;
use super::wire::{Attributes, Mark, attribute as a, find, find_text, find_u32, find_u64, message};

/// The table's content; nothing of any other table.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    pub(super) table: bool,
    /// By name; with its hook if it is a base chain.
    pub(super) chains: BTreeMap<String, Option<Hook>>,
    pub(super) sets: BTreeMap<String, ObservedSet>,
    /// Of every chain, in the chains' order.
    pub(super) rules: Vec<ObservedRule>,
}

#[derive(Clone, Debug)]
pub(super) struct ObservedSet {
    pub(super) flags: u32,
    pub(super) key_len: u32,
    pub(super) elements: BTreeMap<Vec<u8>, ObservedElement>,
}

#[derive(Clone, Debug)]
pub(super) struct ObservedElement {
    /// Absent if somebody else made it.
    pub(super) mark: Option<Mark>,
    pub(super) remaining_ms: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct ObservedRule {
    pub(super) chain: String,
    pub(super) handle: u64,
    pub(super) mark: Option<Mark>,
}

/// Reads the whole table.
pub(super) fn observe(netlink: &mut Nfnetlink) -> io::Result<Observed> {
    let mut seen = Observed::default();
    let tables = netlink.dump(message::GET_TABLE, &Attributes::default())?;
    seen.table = tables.iter().any(|t| find_text(t, a::TABLE_NAME) == Some(TABLE));
    if !seen.table {
        return Ok(seen);
    }
    for chain in netlink.dump(message::GET_CHAIN, &Attributes::default())? {
        if find_text(&chain, a::CHAIN_TABLE) == Some(TABLE)
            && let Some(name) = find_text(&chain, a::CHAIN_NAME)
        {
            seen.chains.insert(name.into(), hook(&chain));
        }
    }
    for set in netlink.dump(message::GET_SET, &Attributes::default().text(a::SET_TABLE, TABLE))? {
        if let (Some(TABLE), Some(name)) = (find_text(&set, a::SET_TABLE), find_text(&set, a::SET_NAME)) {
            let found = ObservedSet {
                flags: find_u32(&set, a::SET_FLAGS).unwrap_or(0),
                key_len: find_u32(&set, a::SET_KEY_LEN).unwrap_or(0),
                elements: elements(netlink, name)?,
            };
            seen.sets.insert(name.into(), found);
        }
    }
    for rule in netlink.dump(message::GET_RULE, &Attributes::default().text(a::RULE_TABLE, TABLE))? {
        // Kernels before 5.18 ignore the filter.
        if find_text(&rule, a::RULE_TABLE) != Some(TABLE) {
            continue;
        }
        if let (Some(chain), Some(handle)) = (find_text(&rule, a::RULE_CHAIN), find_u64(&rule, a::RULE_HANDLE)) {
            let mark = find(&rule, a::RULE_USERDATA).and_then(Mark::decode);
            seen.rules.push(ObservedRule { chain: chain.into(), handle, mark });
        }
    }
    Ok(seen)
}

fn hook(chain: &[u8]) -> Option<Hook> {
    let hook = find(chain, a::CHAIN_HOOK)?;
    let priority = i32::from_be_bytes(find_u32(hook, a::HOOK_PRIORITY)?.to_be_bytes());
    let names = find(hook, a::HOOK_DEVICES).unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    let mut devices: Vec<String> = super::wire::attributes(names).map(|(_, name)| text(name)).collect();
    devices.sort();
    Some(Hook { number: find_u32(hook, a::HOOK_NUMBER)?, priority, devices })
}

fn elements(netlink: &mut Nfnetlink, set: &str) -> io::Result<BTreeMap<Vec<u8>, ObservedElement>> {
    let filter = Attributes::default().text(a::ELEMENTS_TABLE, TABLE).text(a::ELEMENTS_SET, set);
    let mut all = BTreeMap::new();
    for part in netlink.dump(message::GET_ELEMENT, &filter)? {
        let Some(list) = find(&part, a::ELEMENTS_LIST) else { continue };
        for (_, element) in super::wire::attributes(list) {
            let key = find(element, a::ELEMENT_KEY).and_then(|key| find(key, a::DATA_VALUE));
            let Some(key) = key else { continue };
            let timed = find_u64(element, a::ELEMENT_TIMEOUT).is_some_and(|timeout| timeout > 0);
            let remaining_ms = if timed { find_u64(element, a::ELEMENT_EXPIRATION) } else { None };
            let mark = find(element, a::ELEMENT_USERDATA).and_then(Mark::decode);
            all.insert(key.to_vec(), ObservedElement { mark, remaining_ms });
        }
    }
    Ok(all)
}
