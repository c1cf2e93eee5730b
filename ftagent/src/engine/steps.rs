//! The way back of a widened response: one step at a time while the attack lasts, not all at its end.
//!
//! ```text
//! sources, signature ──▶ limit of the class, TCP gate ──▶ limit of the target
//!                    ◀──                              ◀──     calm enough for long enough; longer each time
//! ```
//!
//! Wide steps cost those who are no attackers. One goes when the narrower ones would hold what still arrives, judged by
//! the newest samples, and that for a while.

use serde::{Deserialize, Serialize};

use super::policy::Width;
use super::sample::SEC;

/// How long the narrower steps must suffice before the first step back, in nanoseconds.
const BACK_OFF_NS: u64 = 20 * SEC;
/// The wait doubles with each step that had to be taken again, up to this many times.
const MAX_BACK_OFF: u64 = 8;
/// Between two looks.
const LOOK_NS: u64 = SEC;
/// Narrower steps suffice when what would pass them is below this share of the threshold.
const ENOUGH: f64 = 0.5;

/// When the widest step may be taken back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    looked_ns: u64,
    /// Since when the narrower steps would suffice.
    low_since_ns: Option<u64>,
    /// A step was taken back, so that the next one out was one too many.
    returned: bool,
    /// How many times [`BACK_OFF_NS`] the wait is.
    factor: u64,
}

impl Steps {
    /// A step further was taken.
    pub fn widened(&mut self) {
        let again = std::mem::take(&mut self.returned);
        self.factor = (self.factor() * if again { 2 } else { 1 }).min(MAX_BACK_OFF);
        self.low_since_ns = None;
    }

    /// Whether it is time to look.
    pub fn is_due(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.looked_ns) >= LOOK_NS
    }

    /// Whether the widest step may be taken back at `now_ns`, when `would_pass` over the threshold would pass the others.
    pub fn may_narrow(&mut self, would_pass: f64, now_ns: u64) -> bool {
        self.looked_ns = now_ns;
        if would_pass >= ENOUGH {
            self.low_since_ns = None;
            return false;
        }
        let since = *self.low_since_ns.get_or_insert(now_ns);
        now_ns.saturating_sub(since) >= self.wait_ns()
    }

    /// The widest step was taken back. The next one waits its own time.
    pub fn narrowed(&mut self) {
        self.returned = true;
        self.low_since_ns = None;
    }

    fn factor(&self) -> u64 {
        self.factor.max(1)
    }

    /// How long the narrower steps must suffice, in nanoseconds.
    pub fn wait_ns(&self) -> u64 {
        BACK_OFF_NS * self.factor()
    }
}

impl Width {
    /// The next narrower step, if there is one.
    pub const fn narrower(self) -> Option<Self> {
        match self {
            Self::Narrow => None,
            Self::Class => Some(Self::Narrow),
            Self::Target => Some(Self::Class),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lets `secs` pass while so much would pass, looking every second; after how many seconds a step may go.
    fn wait(steps: &mut Steps, now_ns: &mut u64, would_pass: f64, secs: u64) -> Option<u64> {
        let start = *now_ns;
        while *now_ns < start + secs * SEC {
            *now_ns += SEC;
            if steps.is_due(*now_ns) && steps.may_narrow(would_pass, *now_ns) {
                return Some((*now_ns - start) / SEC - 1);
            }
        }
        None
    }

    #[test]
    fn a_step_goes_when_the_narrower_ones_suffice_for_a_while() {
        for (would_pass, expected) in [(0.0, Some(20)), (0.49, Some(20)), (0.5, None), (7.0, None)] {
            let mut steps = Steps::default();
            steps.widened();
            assert_eq!(wait(&mut steps, &mut 0, would_pass, 60), expected, "{would_pass}");
        }
    }

    #[test]
    fn the_wait_begins_anew_with_every_burst() {
        let mut steps = Steps::default();
        let mut now_ns = 0;
        steps.widened();
        for _ in 0..5 {
            assert_eq!(wait(&mut steps, &mut now_ns, 0.0, 15), None, "pauses of a pulse wave");
            assert_eq!(wait(&mut steps, &mut now_ns, 10.0, 5), None);
        }
        assert_eq!(wait(&mut steps, &mut now_ns, 0.0, 30), Some(20));
    }

    #[test]
    fn steps_go_one_at_a_time_and_later_each_time_one_was_needed_after_all() {
        let mut steps = Steps::default();
        let mut now_ns = 0;
        steps.widened();
        steps.widened();
        for expected in [20, 40, 80, 160, 160] {
            assert_eq!(wait(&mut steps, &mut now_ns, 0.1, 300), Some(expected));
            steps.narrowed();
            steps.widened();
        }
        // Both steps of the way back take their time.
        for _ in 0..2 {
            assert_eq!(wait(&mut steps, &mut now_ns, 0.1, 300), Some(160));
            steps.narrowed();
        }
    }

    proptest! {
        #[test]
        fn never_sooner_than_the_wait(
            events in prop::collection::vec((prop::bool::ANY, 0.0..2.0f64, 1..60u64), 1..200),
        ) {
            let mut steps = Steps::default();
            let (mut now_ns, mut last_ns) = (0, 0);
            for (widen, would_pass, secs) in events {
                now_ns += secs * SEC;
                if widen {
                    steps.widened();
                    last_ns = now_ns;
                } else if steps.may_narrow(would_pass, now_ns) {
                    prop_assert!(now_ns - last_ns >= BACK_OFF_NS && would_pass < ENOUGH);
                    steps.narrowed();
                    last_ns = now_ns;
                }
                prop_assert!(steps.wait_ns() <= 160 * SEC);
            }
        }
    }
}
