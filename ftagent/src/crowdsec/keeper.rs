//! Which decisions there are, each until its end. Pure: `now` is monotonic nanoseconds.
//!
//! Decisions are kept by LAPI's number, so that an address that several are about stays banned until the last is gone. A
//! whole answer replaces what is known, one of changes adds and takes away; what nobody takes away ends by itself.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;

use super::stream::{Reading, What, Why};

/// The decisions that are known.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    known: HashMap<i64, Known>,
    max: usize,
    /// Told since the last whole answer, and not kept for want of room.
    beyond: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    ends_at_ns: u64,
    what: What,
}

/// One that is enforced unless the guard says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ban {
    pub(super) id: i64,
    pub(super) prefix: IpNet,
    pub(super) ends_at_ns: u64,
}

impl Keeper {
    /// Knows nothing yet, and never more than `max` decisions.
    pub(super) fn new(max: u32) -> Self {
        Self { max: max as usize, ..Self::default() }
    }

    /// Takes bans that were kept over a restart.
    pub(super) fn restore(&mut self, bans: impl IntoIterator<Item = Ban>, now_ns: u64) {
        for ban in bans.into_iter().filter(|ban| ban.ends_at_ns > now_ns) {
            self.insert(ban.id, Known { ends_at_ns: ban.ends_at_ns, what: What::Ban(ban.prefix) });
        }
    }

    /// Takes an answer, and says whether any ban came or went.
    pub(super) fn take(&mut self, reading: &Reading, now_ns: u64) -> bool {
        let mut changed = false;
        let mut before = HashMap::new();
        if reading.is_whole {
            before = std::mem::take(&mut self.known);
            self.beyond = 0;
        }
        for decision in reading.new.iter().filter(|decision| decision.lasts_ns > 0) {
            let known = Known { ends_at_ns: now_ns.saturating_add(decision.lasts_ns), what: decision.what };
            let old = self.insert(decision.id, known).or_else(|| before.remove(&decision.id));
            changed |= old.is_none_or(|old| !known.is_as(&old));
        }
        for id in &reading.deleted {
            changed |= self.known.remove(id).is_some_and(|gone| matches!(gone.what, What::Ban(_)));
        }
        // What a whole answer has no more.
        changed | before.values().any(|gone| matches!(gone.what, What::Ban(_)))
    }

    /// The one with the same number before.
    fn insert(&mut self, id: i64, known: Known) -> Option<Known> {
        if self.known.len() >= self.max && !self.known.contains_key(&id) {
            self.beyond += 1;
            // As if it had been there: nothing changed.
            return Some(known);
        }
        self.known.insert(id, known)
    }

    /// Forgets what is over, and says whether that was any ban.
    pub(super) fn expire(&mut self, now_ns: u64) -> bool {
        let mut changed = false;
        self.known.retain(|_, known| {
            let is_over = known.ends_at_ns <= now_ns;
            changed |= is_over && matches!(known.what, What::Ban(_));
            !is_over
        });
        changed
    }

    /// When the next one ends.
    pub(super) fn next_end_ns(&self) -> Option<u64> {
        self.known.values().map(|known| known.ends_at_ns).min()
    }

    /// Those that are to be enforced, in no order.
    pub(super) fn bans(&self) -> impl Iterator<Item = Ban> + '_ {
        self.known.iter().filter_map(|(id, known)| match known.what {
            What::Ban(prefix) => Some(Ban { id: *id, prefix, ends_at_ns: known.ends_at_ns }),
            What::Not(_) => None,
        })
    }

    /// Those that are not, by why.
    pub(super) fn others(&self) -> BTreeMap<Why, u64> {
        let mut others = BTreeMap::new();
        for known in self.known.values() {
            if let What::Not(why) = known.what {
                *others.entry(why).or_default() += 1;
            }
        }
        others
    }

    /// Told, and not kept for want of room.
    pub(super) fn beyond(&self) -> u64 {
        self.beyond
    }
}

impl Known {
    /// The same but for what the way of an answer took: a whole answer says of every decision anew how long it lasts.
    fn is_as(&self, old: &Self) -> bool {
        self.what == old.what
            && (matches!(self.what, What::Not(_)) || self.ends_at_ns.abs_diff(old.ends_at_ns) < 5_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crowdsec::stream::Decision;

    const SEC: u64 = 1_000_000_000;

    fn decision(id: i64, text: &str, secs: u64) -> Decision {
        let what = text.parse().map_or(What::Not(Why::Remedy), What::Ban);
        Decision { id, lasts_ns: secs * SEC, what }
    }

    fn whole(new: Vec<Decision>) -> Reading {
        Reading { is_whole: true, new, deleted: Vec::new() }
    }

    fn changes(new: Vec<Decision>, deleted: &[i64]) -> Reading {
        Reading { is_whole: false, new, deleted: deleted.to_vec() }
    }

    /// Each prefix once, with how long it lasts.
    fn known(keeper: &Keeper, now_ns: u64) -> BTreeMap<String, u64> {
        let mut known = BTreeMap::new();
        for ban in keeper.bans() {
            let left: &mut u64 = known.entry(ban.prefix.to_string()).or_default();
            *left = (*left).max((ban.ends_at_ns - now_ns) / SEC);
        }
        known
    }

    fn one(prefix: &str, secs: u64) -> BTreeMap<String, u64> {
        [(prefix.to_owned(), secs)].into()
    }

    const A: &str = "192.0.2.1/32";

    #[test]
    fn an_address_is_lifted_when_its_last_decision_is_gone() {
        let mut keeper = Keeper::new(10);
        assert!(keeper.take(&whole(vec![decision(1, A, 100), decision(2, A, 50)]), 0));
        assert_eq!(known(&keeper, 0), one(A, 100));
        assert!(keeper.take(&changes(vec![], &[1]), 0));
        assert_eq!(known(&keeper, 0), one(A, 50));
        assert!(!keeper.take(&changes(vec![], &[1, 77]), 0), "what nobody knows is deleted for nothing");
        assert!(keeper.take(&changes(vec![], &[2]), 0));
        assert!(known(&keeper, 0).is_empty());
    }

    #[test]
    fn what_a_whole_answer_has_no_more_is_lifted_and_the_rest_is_not_touched() {
        let mut keeper = Keeper::new(10);
        keeper.take(&whole(vec![decision(1, A, 100), decision(2, "192.0.2.2/32", 100)]), 0);
        // A second later, and LAPI says of both how long they last by then.
        assert!(keeper.take(&whole(vec![decision(1, A, 99)]), SEC));
        assert_eq!(known(&keeper, SEC), one(A, 99));
        assert!(!keeper.take(&whole(vec![decision(1, A, 97)]), 3 * SEC), "nothing changed");
        assert!(keeper.take(&whole(vec![decision(1, A, 300)]), 4 * SEC), "it was made longer");
        assert!(keeper.take(&whole(vec![]), 5 * SEC));
        assert!(!keeper.take(&whole(vec![]), 5 * SEC));
    }

    #[test]
    fn decisions_end_by_themselves_while_lapi_is_away() {
        let mut keeper = Keeper::new(10);
        keeper.take(&whole(vec![decision(1, A, 10), decision(2, "192.0.2.2/32", 20), decision(3, "captcha", 5)]), 0);
        assert_eq!(keeper.next_end_ns(), Some(5 * SEC));
        assert!(!keeper.expire(5 * SEC), "no ban");
        assert!(!keeper.expire(10 * SEC - 1));
        assert!(keeper.expire(10 * SEC));
        assert_eq!(known(&keeper, 10 * SEC), one("192.0.2.2/32", 10));
        assert!(!keeper.take(&changes(vec![decision(4, A, 0)], &[]), 11 * SEC), "one that is over is none");
        assert!(keeper.expire(20 * SEC));
        assert_eq!(keeper.next_end_ns(), None);
    }

    #[test]
    fn others_are_counted_and_room_is_bounded() {
        let mut keeper = Keeper::new(3);
        let many = (1..=5).map(|id| decision(id, if id == 2 { "captcha" } else { A }, 10)).collect();
        keeper.take(&whole(many), 0);
        assert_eq!((keeper.bans().count(), keeper.beyond()), (2, 2));
        assert_eq!(keeper.others(), [(Why::Remedy, 1)].into());
        // One that is known may change even where there is no room; another takes the place of one that ended.
        assert!(keeper.take(&changes(vec![decision(3, "192.0.2.3/32", 10)], &[2]), 0));
        assert!(keeper.take(&changes(vec![decision(9, "192.0.2.9/32", 10)], &[]), 0));
        assert!(!keeper.take(&changes(vec![decision(10, "192.0.2.10/32", 10)], &[]), 0));
        assert_eq!((keeper.bans().count(), keeper.beyond()), (3, 3));
        keeper.take(&whole(vec![decision(1, A, 10)]), 0);
        assert_eq!((keeper.bans().count(), keeper.beyond()), (1, 0));
    }

    #[test]
    fn what_was_kept_over_a_restart_holds_until_lapi_says_otherwise() {
        let mut keeper = Keeper::new(10);
        let ban = |id, ends_at_ns| Ban { id, prefix: A.parse().expect(A), ends_at_ns };
        keeper.restore([ban(1, 5 * SEC), ban(2, 50 * SEC)], 10 * SEC);
        assert_eq!(known(&keeper, 10 * SEC), one(A, 40));
        assert!(keeper.take(&whole(vec![]), 11 * SEC));
        assert!(known(&keeper, 11 * SEC).is_empty());
    }
}
