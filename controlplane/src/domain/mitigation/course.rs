//! How a rule goes from wish to end: every transition, without clock, database or network.
//!
//! ```text
//!   pending --confirmed--> active --withdraw/time--> withdrawing --confirmed--> withdrawn | expired | failed
//!      |  \--refused at the first try--> failed          ^    \--not confirmed for a day--> failed
//!      |---- given up, refused later, withdraw, time ----|
//!       \--- withdraw or time before the first try --> withdrawn | expired
//! ```
//! A try is counted when it is claimed, before anything is sent. So a process that dies while it announces leaves a rule
//! that counts as tried, and what was tried is withdrawn even if no answer ever came.

use super::MitigationStatus;
use super::words;
use crate::domain::Timestamp;

/// For how long one process alone may try, in seconds; twice what a try takes at most.
pub const LEASE_SECS: i64 = 20;
/// Tries to announce before a rule is given up: some three minutes.
const MAX_ANNOUNCEMENTS: u32 = 8;
/// How long withdrawing is tried: a day, in seconds. A blackhole that is forgotten is an outage.
const WITHDRAW_SECS: i64 = 86_400;
/// The longest waits between tries, in seconds.
const MAX_ANNOUNCE_WAIT: i64 = 60;
const MAX_WITHDRAW_WAIT: i64 = 300;

/// What a withdrawal ends as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Withdrawn,
    Expired,
    Failed,
}
words!(Ending { Withdrawn = "withdrawn", Expired = "expired", Failed = "failed" });

impl From<Ending> for MitigationStatus {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Withdrawn => Self::Withdrawn,
            Ending::Expired => Self::Expired,
            Ending::Failed => Self::Failed,
        }
    }
}

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Confirmed.
    Done,
    /// The other side understood and will not: trying again is no use. Nothing was done by this try.
    Refused(String),
    /// No answer, or none that says what happened.
    Failed(String),
}

/// Where a rule is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    pub status: MitigationStatus,
    /// Set from withdrawing on.
    pub ending: Option<Ending>,
    /// When the status began.
    pub since: Timestamp,
    /// Tries in this status, the one under way included.
    pub attempts: u32,
    /// When the next try is due.
    pub next_at: Timestamp,
    pub last_error: String,
}

impl Course {
    /// A rule that was just made.
    pub const fn new(now: Timestamp) -> Self {
        let last_error = String::new();
        Self { status: MitigationStatus::Pending, ending: None, since: now, attempts: 0, next_at: now, last_error }
    }

    /// What follows from the wish that the rule ends; none where it is ending or has ended.
    pub fn withdrawn(&self, ending: Ending, why: &str, now: Timestamp) -> Option<Self> {
        match self.status {
            MitigationStatus::Pending if self.attempts == 0 => Some(self.ended(ending, why, now)),
            MitigationStatus::Pending | MitigationStatus::Active => Some(self.withdrawing(ending, why, now)),
            _ => None,
        }
    }

    /// What follows from a try that began while the rule was `tried`. `id` spreads the tries of many rules.
    pub fn settled(&self, tried: MitigationStatus, outcome: &Outcome, id: i64, now: Timestamp) -> Self {
        if tried != self.status {
            // It was withdrawn while it was announced: what came of that is of no use any more.
            return self.clone();
        }
        match (self.status, outcome) {
            (MitigationStatus::Pending, Outcome::Done) => {
                Self { status: MitigationStatus::Active, since: now, last_error: String::new(), ..self.clone() }
            }
            (MitigationStatus::Pending, Outcome::Refused(why)) if self.attempts <= 1 => {
                self.ended(Ending::Failed, why, now)
            }
            (MitigationStatus::Pending, Outcome::Refused(why)) => self.withdrawing(Ending::Failed, why, now),
            (MitigationStatus::Pending, Outcome::Failed(why)) if self.attempts >= MAX_ANNOUNCEMENTS => {
                self.withdrawing(Ending::Failed, &format!("given up: {why}"), now)
            }
            (MitigationStatus::Pending, Outcome::Failed(why)) => self.later(MAX_ANNOUNCE_WAIT, why, id, now),
            (MitigationStatus::Withdrawing, Outcome::Done) => {
                let ending = self.ending.unwrap_or(Ending::Withdrawn);
                // That something went wrong stays to be read where the rule failed.
                let why = if ending == Ending::Failed { self.last_error.as_str() } else { "" };
                self.ended(ending, why, now)
            }
            (MitigationStatus::Withdrawing, Outcome::Refused(why) | Outcome::Failed(why)) => {
                if now.secs_since(self.since) >= WITHDRAW_SECS {
                    return self.ended(Ending::Failed, &format!("the withdrawal was never confirmed: {why}"), now);
                }
                self.later(MAX_WITHDRAW_WAIT, why, id, now)
            }
            _ => self.clone(),
        }
    }

    fn withdrawing(&self, ending: Ending, why: &str, now: Timestamp) -> Self {
        let status = MitigationStatus::Withdrawing;
        Self { status, ending: Some(ending), since: now, attempts: 0, next_at: now, last_error: why.to_owned() }
    }

    fn ended(&self, ending: Ending, why: &str, now: Timestamp) -> Self {
        Self { status: ending.into(), ending: Some(ending), since: now, last_error: why.to_owned(), ..self.clone() }
    }

    fn later(&self, longest: i64, why: &str, id: i64, now: Timestamp) -> Self {
        let wait = wait_micros(self.attempts, longest, id);
        let next_at = Timestamp::from_micros(now.micros().saturating_add(wait));
        Self { next_at, last_error: why.to_owned(), ..self.clone() }
    }
}

/// 1 s, doubled by each try up to `longest` seconds, and up to a quarter more that differs by rule and try.
fn wait_micros(attempts: u32, longest: i64, id: i64) -> i64 {
    let secs = (1_i64 << attempts.saturating_sub(1).min(20)).min(longest);
    let spread = id.unsigned_abs().wrapping_mul(2_654_435_761).wrapping_add(u64::from(attempts) * 40_503) % 250;
    secs * (1_000 + i64::try_from(spread).unwrap_or(0)) * 1_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use MitigationStatus::{Active, Expired, Failed, Pending, Withdrawing, Withdrawn};

    const NOW: i64 = 1_000_000;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    fn course(status: MitigationStatus, attempts: u32) -> Course {
        let ending = (!matches!(status, Pending | Active)).then_some(Ending::Expired);
        Course { status, ending, since: at(NOW - 10), attempts, next_at: at(NOW), last_error: "before".to_owned() }
    }

    #[test]
    fn every_outcome_in_every_status() {
        let refused = || Outcome::Refused("403".to_owned());
        let failed = || Outcome::Failed("timeout".to_owned());
        let table = [
            (Pending, 1, Outcome::Done, Active, ""),
            (Pending, 7, Outcome::Done, Active, ""),
            (Pending, 1, refused(), Failed, "403"),
            (Pending, 2, refused(), Withdrawing, "403"),
            (Pending, 1, failed(), Pending, "timeout"),
            (Pending, 7, failed(), Pending, "timeout"),
            (Pending, 8, failed(), Withdrawing, "given up: timeout"),
            (Withdrawing, 1, Outcome::Done, Expired, ""),
            (Withdrawing, 1, refused(), Withdrawing, "403"),
            (Withdrawing, 90, failed(), Withdrawing, "timeout"),
        ];
        for (status, attempts, outcome, expected, error) in table {
            let next = course(status, attempts).settled(status, &outcome, 1, at(NOW));
            assert_eq!((next.status, next.last_error.as_str()), (expected, error), "{status:?} {attempts} {outcome:?}");
            if next.status == status {
                assert!(next.next_at > at(NOW), "it waits");
                assert_eq!(next.attempts, attempts);
            }
            if next.status == Withdrawing && status == Pending {
                assert_eq!((next.ending, next.attempts, next.next_at), (Some(Ending::Failed), 0, at(NOW)));
            }
        }
        for status in [Active, Withdrawn, Expired, Failed] {
            for outcome in [Outcome::Done, refused(), failed()] {
                let before = course(status, 1);
                assert_eq!(before.settled(status, &outcome, 1, at(NOW)), before, "{status:?}");
            }
        }
    }

    #[test]
    fn a_try_that_was_overtaken_changes_nothing() {
        let before = course(Withdrawing, 0);
        for outcome in [Outcome::Done, Outcome::Failed(String::new()), Outcome::Refused(String::new())] {
            assert_eq!(before.settled(Pending, &outcome, 1, at(NOW)), before);
        }
    }

    #[test]
    fn what_was_never_tried_ends_at_once_and_all_else_is_withdrawn() {
        let table = [
            (Pending, 0, Some(Withdrawn)),
            (Pending, 1, Some(Withdrawing)),
            (Active, 1, Some(Withdrawing)),
            (Withdrawing, 3, None),
            (Withdrawn, 1, None),
            (Expired, 1, None),
            (Failed, 1, None),
        ];
        for (status, attempts, expected) in table {
            let next = course(status, attempts).withdrawn(Ending::Withdrawn, "", at(NOW));
            assert_eq!(next.map(|c| c.status), expected, "{status:?} {attempts}");
        }
    }

    #[test]
    fn a_withdrawal_is_tried_for_a_day_and_then_told_as_failed() {
        let before = Course { since: at(NOW), ..course(Withdrawing, 300) };
        let failed = Outcome::Failed("connection refused".to_owned());
        assert_eq!(before.settled(Withdrawing, &failed, 1, at(NOW + WITHDRAW_SECS - 1)).status, Withdrawing);
        let after = before.settled(Withdrawing, &failed, 1, at(NOW + WITHDRAW_SECS));
        assert_eq!(after.status, Failed);
        assert!(after.last_error.contains("never confirmed") && after.last_error.contains("connection refused"));
    }

    #[test]
    fn waits_double_to_their_bound_and_differ() {
        let secs: Vec<_> = (1..=8).map(|n| wait_micros(n, 60, 3) / 1_000_000).collect();
        for (got, base) in secs.iter().zip([1, 2, 4, 8, 16, 32, 60, 60]) {
            assert!((base..=base * 5 / 4).contains(got), "{secs:?}");
        }
        assert_ne!(wait_micros(5, 60, 1), wait_micros(5, 60, 2));
        assert!(wait_micros(u32::MAX, 300, i64::MIN) <= 375_000_000);
    }
}
