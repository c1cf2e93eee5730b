//! Which lists are due for a look, and which are in force. Pure: the daemon does the looking.

use std::sync::Arc;

use ftagent_common::abi::RuleHits;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::file::Stamp;
use super::load::{LoadError, Look};
use super::{ListAction, ListConfig, ListInForce, ListSet, LoadedList, rule_of};
use crate::engine::Now;

const SECOND_NS: u64 = 1_000_000_000;

/// The lists of the configuration, each with what is in force of it.
#[derive(Debug, Default)]
pub struct Keeper {
    kept: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    config: ListConfig,
    list: Option<Arc<LoadedList>>,
    /// Monotonic nanoseconds.
    loaded_at_ns: u64,
    next_look_ns: u64,
    is_looking: bool,
    last_error: Option<String>,
}

impl Kept {
    fn new(config: ListConfig) -> Self {
        Self { config, list: None, loaded_at_ns: 0, next_look_ns: 0, is_looking: false, last_error: None }
    }
}

/// One look to be made: [`super::look`] takes these.
#[derive(Clone, Debug)]
pub struct Order {
    pub config: ListConfig,
    /// Of the list in force.
    pub known: Option<Stamp>,
}

/// What a look changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that anybody has to know.
    None,
    /// Another list is in force.
    Loaded,
    /// It went wrong, otherwise than the last time.
    Failed,
}

/// A list as `ftagent status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListStatus {
    pub name: String,
    pub path: String,
    pub action: ListAction,
    /// Under which its frames are counted.
    pub rule: u64,
    /// False: nothing of it is in force.
    pub loaded: bool,
    pub v4: u64,
    pub v6: u64,
    pub duplicates: u64,
    pub covered: u64,
    pub skipped: u64,
    /// Prefixes that overlap what the node trusts or is.
    pub spared: u64,
    /// Since it was loaded; absent while nothing is.
    pub age_secs: Option<u64>,
    /// When that was.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub loaded_at: Option<OffsetDateTime>,
    /// Frames from its prefixes that were dropped for it, or would have been if it is evaluated, since it was loaded
    /// first.
    #[serde(default)]
    pub packets: u64,
    /// Their bytes.
    #[serde(default)]
    pub bytes: u64,
    /// Since the last of them; absent before the first.
    #[serde(default)]
    pub last_match_secs: Option<u64>,
    /// Why the newest look failed; what was loaded before stays in force.
    pub last_error: Option<String>,
}

impl ListStatus {
    /// Adds what the kernel counted for the list, and when it was loaded, as both clocks are now.
    pub fn complete(mut self, hits: &RuleHits, now: Now) -> Self {
        self.loaded_at = self.age_secs.map(|secs| now.wall - std::time::Duration::from_secs(secs));
        self.packets = hits.counter.packets;
        self.bytes = hits.counter.bytes;
        let last = Some(hits.last_ns).filter(|last_ns| *last_ns != 0);
        self.last_match_secs = last.map(|last_ns| now.mono_ns.saturating_sub(last_ns) / SECOND_NS);
        self
    }
}

impl Keeper {
    /// Nothing is loaded yet, everything is due.
    pub fn new(configs: Vec<ListConfig>) -> Self {
        Self { kept: configs.into_iter().map(Kept::new).collect() }
    }

    /// Takes the lists of a configuration that was read again: what is the same stays loaded. Says whether what is in
    /// force changed.
    pub fn configure(&mut self, configs: Vec<ListConfig>) -> bool {
        let mut before = std::mem::take(&mut self.kept);
        let in_force = |kept: &[Kept]| -> Vec<(String, ListAction)> {
            let loaded = kept.iter().filter(|kept| kept.list.is_some());
            loaded.map(|kept| (kept.config.name.clone(), kept.config.action)).collect()
        };
        let old = in_force(&before);
        self.kept = configs
            .into_iter()
            .map(|config| {
                let same = |kept: &Kept| {
                    let there = &kept.config;
                    (&there.name, &there.source, there.widest) == (&config.name, &config.source, config.widest)
                };
                match before.iter().position(same) {
                    Some(at) => Kept { config, next_look_ns: 0, ..before.swap_remove(at) },
                    None => Kept::new(config),
                }
            })
            .collect();
        old != in_force(&self.kept)
    }

    /// The look that is to be made now. One at a time: lists may be large, and the machine has other things to do.
    pub fn due(&mut self, now_ns: u64) -> Option<Order> {
        if self.kept.iter().any(|kept| kept.is_looking) {
            return None;
        }
        let kept = self.kept.iter_mut().find(|kept| kept.next_look_ns <= now_ns)?;
        kept.is_looking = true;
        Some(Order { config: kept.config.clone(), known: kept.list.as_ref().map(|list| list.stamp) })
    }

    /// Takes the result of a look.
    pub fn on_look(&mut self, order: &Order, result: Result<Look, LoadError>, now_ns: u64) -> Change {
        let Some(kept) = self.kept.iter_mut().find(|kept| kept.config.name == order.config.name) else {
            return Change::None;
        };
        let same = (&kept.config.source, kept.config.widest) == (&order.config.source, order.config.widest);
        if !same {
            // The configuration changed meanwhile: a look of its own is due.
            return Change::None;
        }
        kept.is_looking = false;
        kept.next_look_ns = now_ns.saturating_add(u64::from(kept.config.refresh_secs) * SECOND_NS);
        match result {
            Ok(Look::Same) => {
                kept.last_error = None;
                Change::None
            }
            Ok(Look::Settling) => {
                kept.next_look_ns = now_ns.saturating_add(SECOND_NS);
                Change::None
            }
            Ok(Look::Loaded(list)) => {
                kept.list = Some(list);
                kept.loaded_at_ns = now_ns;
                kept.last_error = None;
                Change::Loaded
            }
            Err(error) => {
                let words = error.to_string();
                let is_new = kept.last_error.as_ref() != Some(&words);
                kept.last_error = Some(words);
                if is_new { Change::Failed } else { Change::None }
            }
        }
    }

    /// What is in force.
    pub fn set(&self) -> ListSet {
        let in_force = self.kept.iter().filter_map(|kept| {
            Some(ListInForce {
                name: kept.config.name.clone(),
                rule: rule_of(&kept.config.name),
                action: kept.config.action,
                ends_at_ns: 0,
                list: kept.list.clone()?,
            })
        });
        ListSet { lists: in_force.collect() }
    }

    /// Every list of the configuration, in its order. What the kernel and the wall clock know is left to the caller.
    pub fn status(&self, now_ns: u64) -> Vec<ListStatus> {
        let status = self.kept.iter().map(|kept| {
            let report = kept.list.as_ref().map(|list| list.report.clone()).unwrap_or_default();
            ListStatus {
                name: kept.config.name.clone(),
                path: kept.config.source.path().display().to_string(),
                action: kept.config.action,
                rule: rule_of(&kept.config.name).0,
                loaded: kept.list.is_some(),
                v4: report.v4,
                v6: report.v6,
                duplicates: report.duplicates,
                covered: report.covered,
                skipped: report.skipped(),
                spared: report.spared,
                age_secs: kept.list.as_ref().map(|_| now_ns.saturating_sub(kept.loaded_at_ns) / SECOND_NS),
                loaded_at: None,
                packets: 0,
                bytes: 0,
                last_match_secs: None,
                last_error: kept.last_error.clone(),
            }
        });
        status.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::FileError;
    use super::super::report::Report;
    use super::super::{ListSource, Widest};
    use super::*;

    fn config(name: &str) -> ListConfig {
        ListConfig {
            name: name.to_owned(),
            source: ListSource::Text(format!("/lists/{name}").into()),
            action: ListAction::Block,
            refresh_secs: 60,
            widest: Widest::default(),
        }
    }

    fn loaded(prefix: &str, inode: u64) -> Look {
        Look::Loaded(Arc::new(LoadedList {
            v4: vec![prefix.parse().expect(prefix)],
            v6: Vec::new(),
            report: Report { v4: 1, ..Report::default() },
            stamp: Stamp { inode, ..Stamp::default() },
        }))
    }

    fn failed() -> LoadError {
        FileError::Changed { path: "/lists/a".to_owned() }.into()
    }

    fn names(set: &ListSet) -> Vec<&str> {
        set.lists.iter().map(|list| list.name.as_str()).collect()
    }

    /// Looks at everything that is due; each look finds the same.
    fn look_at_all(keeper: &mut Keeper, now_ns: u64) -> Vec<Order> {
        let mut orders = Vec::new();
        while let Some(order) = keeper.due(now_ns) {
            keeper.on_look(&order, Ok(loaded("198.51.100.0/24", 1)), now_ns);
            orders.push(order);
        }
        orders
    }

    #[test]
    fn lists_are_looked_at_one_after_the_other_and_again_after_their_time() {
        let mut keeper = Keeper::new(vec![config("a"), config("b")]);
        let first = keeper.due(5).expect("a is due");
        assert_eq!((first.config.name.as_str(), first.known), ("a", None));
        assert!(keeper.due(5).is_none(), "a is being looked at");
        assert_eq!(keeper.on_look(&first, Ok(loaded("198.51.100.0/24", 1)), 5), Change::Loaded);
        assert_eq!(look_at_all(&mut keeper, 5).len(), 1);
        assert!(keeper.due(60 * SECOND_NS).is_none());
        let again = keeper.due(60 * SECOND_NS + 5).expect("a is due again");
        assert_eq!(again.known.map(|stamp| stamp.inode), Some(1));
        assert_eq!(keeper.on_look(&again, Ok(Look::Same), 60 * SECOND_NS + 5), Change::None);
    }

    #[test]
    fn a_failed_look_keeps_the_list_and_says_why_once() {
        let mut keeper = Keeper::new(vec![config("a")]);
        let order = look_at_all(&mut keeper, 0).remove(0);
        assert_eq!(keeper.on_look(&order, Err(failed()), 61 * SECOND_NS), Change::Failed);
        assert_eq!(keeper.on_look(&order, Err(failed()), 122 * SECOND_NS), Change::None);
        assert_eq!(names(&keeper.set()), ["a"]);
        let status = &keeper.status(130 * SECOND_NS)[0];
        assert!(status.loaded && status.last_error.as_ref().is_some_and(|e| e.contains("written to")), "{status:?}");
        assert_eq!((status.age_secs, status.v4), (Some(130), 1));
        assert_eq!(keeper.on_look(&order, Ok(Look::Same), 200 * SECOND_NS), Change::None);
        assert_eq!(keeper.status(200 * SECOND_NS)[0].last_error, None);
    }

    #[test]
    fn a_list_that_was_never_loaded_is_not_in_force_and_shown() {
        let mut keeper = Keeper::new(vec![config("a")]);
        let order = keeper.due(0).expect("due");
        assert_eq!(keeper.on_look(&order, Err(failed()), 0), Change::Failed);
        assert!(keeper.set().lists.is_empty());
        let status = &keeper.status(0)[0];
        assert_eq!((status.loaded, status.age_secs), (false, None));
    }

    #[test]
    fn a_file_that_settles_is_looked_at_again_soon() {
        let mut keeper = Keeper::new(vec![config("a")]);
        let order = keeper.due(0).expect("due");
        assert_eq!(keeper.on_look(&order, Ok(Look::Settling), 0), Change::None);
        assert!(keeper.due(SECOND_NS - 1).is_none() && keeper.due(SECOND_NS).is_some());
    }

    #[test]
    fn what_a_list_dropped_and_when_it_was_loaded_are_shown() {
        let mut keeper = Keeper::new(vec![config("a")]);
        let status = |keeper: &Keeper, hits: RuleHits| {
            let now =
                Now { mono_ns: 100 * SECOND_NS, wall: OffsetDateTime::from_unix_timestamp(5_000).expect("a time") };
            keeper.status(now.mono_ns).remove(0).complete(&hits, now)
        };
        let before = status(&keeper, RuleHits::default());
        assert_eq!((before.loaded_at, before.packets, before.last_match_secs), (None, 0, None));
        look_at_all(&mut keeper, 40 * SECOND_NS);
        let counter = ftagent_common::abi::Counter { packets: 7, bytes: 420 };
        let after = status(&keeper, RuleHits { counter, first_ns: 50 * SECOND_NS, last_ns: 97 * SECOND_NS });
        assert_eq!(after.loaded_at.map(OffsetDateTime::unix_timestamp), Some(4_940), "a minute ago");
        assert_eq!((after.packets, after.bytes, after.last_match_secs), (7, 420, Some(3)));
    }

    #[test]
    fn a_new_configuration_keeps_what_is_the_same_and_drops_what_is_gone() {
        let mut keeper = Keeper::new(vec![config("a"), config("b")]);
        look_at_all(&mut keeper, 0);
        assert!(!keeper.configure(vec![config("a"), config("b"), config("c")]), "c is not loaded yet");
        assert_eq!(names(&keeper.set()), ["a", "b"]);
        assert_eq!(look_at_all(&mut keeper, 1).len(), 3, "everything is looked at again");
        assert!(keeper.configure(vec![config("b")]));
        assert_eq!(names(&keeper.set()), ["b"]);
        let evaluate = ListConfig { action: ListAction::Evaluate, ..config("b") };
        assert!(keeper.configure(vec![evaluate]), "the action changed");
        assert_eq!(keeper.set().lists[0].action, ListAction::Evaluate);
        let moved = ListConfig { source: ListSource::Text("/elsewhere".into()), ..config("b") };
        assert!(keeper.configure(vec![moved]));
        assert!(keeper.set().lists.is_empty());
    }

    #[test]
    fn a_result_for_a_configuration_of_before_is_thrown_away() {
        let mut keeper = Keeper::new(vec![config("a")]);
        let order = keeper.due(0).expect("due");
        let moved = ListConfig { source: ListSource::Text("/elsewhere".into()), ..config("a") };
        keeper.configure(vec![moved]);
        assert_eq!(keeper.on_look(&order, Ok(loaded("198.51.100.0/24", 1)), 1), Change::None);
        assert!(keeper.set().lists.is_empty());
        assert!(keeper.due(2).is_some());
    }
}
