//! What the lists in force are in the kernel. Made in a thread that may wait: a million prefixes take a tenth of a second.

use super::map::{PrefixMap, PrefixMapError};
use super::plan::{Plan, PlanError, Weight};
use super::split6::Split6;
use crate::engine::RuleId;
use crate::lists::{ListAction, ListSet};

/// The tables of one [`ListSet`]; a list's value in them is its place from 1 on.
#[derive(Debug)]
pub struct ListTables {
    /// Absent where no list has an IPv4 prefix.
    pub v4: Option<PrefixMap>,
    pub v6: Split6,
    /// What each list is, in their order: the rule that counts its frames, and what happens to them.
    pub rules: Vec<(RuleId, ListAction)>,
    /// When each list ends, in monotonic nanoseconds; 0: never.
    pub ends_at_ns: Vec<u64>,
    /// Prefixes of both families, duplicates among lists included.
    pub prefixes: usize,
}

/// Why lists cannot be put into force.
#[derive(Debug, thiserror::Error)]
pub enum ListTablesError {
    #[error("{0}: raise datapath.max_memory_bytes or shorten the lists")]
    TooLarge(#[from] PlanError),
    #[error(transparent)]
    Kernel(#[from] PrefixMapError),
}

impl ListTables {
    /// Makes the tables of `set`, the IPv4 one of no more than `max_bytes`.
    ///
    /// # Errors
    /// When they are too large or the kernel refuses; what is in force stays as it is.
    pub fn make(set: &ListSet, max_bytes: u64) -> Result<Self, ListTablesError> {
        let weight = |value: u16| match usize::from(value).checked_sub(1).and_then(|place| set.lists.get(place)) {
            Some(list) if list.action == ListAction::Evaluate => Weight::Idle,
            Some(list) if list.ends_at_ns != 0 => Weight::Ending,
            _ => Weight::Lasting,
        };
        let plan = Plan::with_weights(set.v4(), weight, max_bytes)?;
        let v4 = if plan.is_empty() { None } else { Some(PrefixMap::make(&plan)?) };
        let rules = set.lists.iter().map(|list| (list.rule, list.action)).collect();
        let ends_at_ns = set.lists.iter().map(|list| list.ends_at_ns).collect();
        let prefixes = set.lists.iter().map(|list| list.list.len()).sum();
        Ok(Self { v4, v6: Split6::new(set.v6()), rules, ends_at_ns, prefixes })
    }
}
