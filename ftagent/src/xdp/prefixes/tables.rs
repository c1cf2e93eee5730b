//! What the lists in force are in the kernel. Made in a thread that may wait: a million prefixes take a tenth of a second.

use super::map::{PrefixMap, PrefixMapError};
use super::plan::{Plan, PlanError};
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
        let is_evaluated = |value: u16| {
            let list = usize::from(value).checked_sub(1).and_then(|place| set.lists.get(place));
            list.is_some_and(|list| list.action == ListAction::Evaluate)
        };
        let plan = Plan::with_idle(set.v4(), is_evaluated, max_bytes)?;
        let v4 = if plan.is_empty() { None } else { Some(PrefixMap::make(&plan)?) };
        let rules = set.lists.iter().map(|list| (list.rule, list.action)).collect();
        let prefixes = set.lists.iter().map(|list| list.list.len()).sum();
        Ok(Self { v4, v6: Split6::new(set.v6()), rules, prefixes })
    }
}
