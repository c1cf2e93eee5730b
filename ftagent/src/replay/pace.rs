//! When the packets of a capture arrive.

use std::time::Duration;

use crate::engine::sample::SEC;

/// The longest pause between two packets: merged files span years, and no clock of ours goes that far.
const LONGEST_PAUSE_NS: u64 = 30 * 86_400 * SEC;
/// All pauses together.
const LONGEST_NS: u64 = 10 * 365 * 86_400 * SEC;

/// Gives each packet its time, in nanoseconds since the first one.
#[derive(Clone, Debug)]
pub struct Pace {
    rate_pps: Option<u64>,
    count: u64,
    /// The latest time stamp so far.
    newest: Option<Duration>,
    last_ns: u64,
    /// Packets whose time stamp lies before that of an earlier one.
    pub backwards: u64,
}

impl Pace {
    /// At a rate, or at their own times.
    pub fn new(rate_pps: Option<u64>) -> Self {
        Self { rate_pps, count: 0, newest: None, last_ns: 0, backwards: 0 }
    }

    /// When the next packet arrives, whose time stamp is `at`.
    ///
    /// At its own time: after as long as lies between the time stamps, and at once where they go back.
    pub fn next(&mut self, at: Duration) -> u64 {
        let newest = *self.newest.get_or_insert(at);
        if at < newest {
            self.backwards += 1;
        }
        self.newest = Some(newest.max(at));
        self.last_ns = match self.rate_pps {
            Some(pps) => {
                let ns = u128::from(self.count) * u128::from(SEC) / u128::from(pps.max(1));
                u64::try_from(ns).unwrap_or(LONGEST_NS).min(LONGEST_NS)
            }
            None => {
                let pause = u64::try_from(at.saturating_sub(newest).as_nanos()).unwrap_or(u64::MAX);
                (self.last_ns + pause.min(LONGEST_PAUSE_NS)).min(LONGEST_NS)
            }
        };
        self.count += 1;
        self.last_ns
    }

    /// The file begins anew.
    pub fn rewind(&mut self) {
        self.newest = None;
    }

    /// The time of the newest packet.
    pub fn last_ns(&self) -> u64 {
        self.last_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(rate: Option<u64>, stamps_ms: &[u64]) -> (Vec<u64>, u64) {
        let mut pace = Pace::new(rate);
        let ms = |at: &u64| pace.next(Duration::from_millis(*at)) / 1_000_000;
        (stamps_ms.iter().map(ms).collect(), pace.backwards)
    }

    #[test]
    fn time_stamps_that_go_back_follow_at_once() {
        assert_eq!(times(None, &[1_000, 1_010, 1_005, 1_010, 1_030]), (vec![0, 10, 10, 10, 30], 1));
    }

    #[test]
    fn a_rate_takes_no_notice_of_time_stamps() {
        assert_eq!(times(Some(100), &[9, 9, 7_000_000, 3]), (vec![0, 10, 20, 30], 1));
    }

    #[test]
    fn pauses_of_years_are_shortened() {
        let (at, _) = times(None, &[0, 1 << 50]);
        assert_eq!(at[1], LONGEST_PAUSE_NS / 1_000_000);
    }
}
