//! How fast rules may follow each other: peers punish routes that come and go, and a script can make mistakes quickly.
//!
//! Withdrawals are never held back.

use crate::domain::{Problem, Timestamp};

/// How long a target rests after what was announced for it ended, seconds.
pub const COOLDOWN_SECS: i64 = 60;
/// The most rules that a workspace makes within [`WINDOW_SECS`].
const MAX_NEW: u64 = 100;
/// Seconds.
pub const WINDOW_SECS: i64 = 60;

/// What happened lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// When the last rule of the target ended that had been announced.
    pub ended_at: Option<Timestamp>,
    /// Rules that the workspace made within the window.
    pub made: u64,
    /// When the first of them was made.
    pub first_at: Option<Timestamp>,
}

impl Pace {
    /// # Errors
    /// The target rests, or the workspace made too many rules; with the seconds until that is over.
    pub fn check(&self, now: Timestamp) -> Result<(), Problem> {
        let left = |since: Option<Timestamp>, secs: i64| {
            let wait = since.map_or(0, |since| secs - now.secs_since(since));
            u64::try_from(wait).ok().filter(|wait| *wait > 0)
        };
        if let Some(wait_secs) = left(self.ended_at, COOLDOWN_SECS) {
            return Err(Problem::TooMany { what: "changes of this target", wait_secs });
        }
        match left(self.first_at, WINDOW_SECS) {
            Some(wait_secs) if self.made >= MAX_NEW => {
                Err(Problem::TooMany { what: "new mitigation rules", wait_secs })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_rests_and_a_workspace_keeps_its_pace() {
        let at = |secs| Some(Timestamp::from_secs(secs));
        let table = [
            (Pace::default(), None),
            (Pace { ended_at: at(1_000), ..Pace::default() }, Some(60)),
            (Pace { ended_at: at(941), ..Pace::default() }, Some(1)),
            (Pace { ended_at: at(940), ..Pace::default() }, None),
            (Pace { made: 99, first_at: at(999), ..Pace::default() }, None),
            (Pace { made: 100, first_at: at(990), ..Pace::default() }, Some(50)),
            (Pace { made: 100, first_at: at(940), ..Pace::default() }, None),
        ];
        for (pace, expected) in table {
            let wait = match pace.check(Timestamp::from_secs(1_000)) {
                Ok(()) => None,
                Err(Problem::TooMany { wait_secs, .. }) => Some(wait_secs),
                Err(other) => panic!("{pace:?}: {other}"),
            };
            assert_eq!(wait, expected, "{pace:?}");
        }
    }
}
