//! PURE: which samples go into a capture, so that it shows the time before, the beginning, and the course of an attack.
//!
//! ```text
//! half of the packets at most: the seconds before ─┐
//! a quarter: what follows, every sample of it      ├─ and for four packets of the target one of something else
//! the rest: spread over the next minute and more  ─┘
//! ```

use ipnet::IpNet;

use super::record::Record;

const SEC: u64 = 1_000_000_000;
/// Packets of the target for one of something else.
const PER_OTHER: u64 = 4;
/// Over how many seconds at least the last quarter of the packets is spread.
const SPREAD_SECS: u64 = 60;

/// Whether a sample belongs into the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    Take,
    /// It belongs there, and is left out so that the rest of the attack has room.
    Thin,
    /// Traffic of others beyond its share.
    Leave,
}

/// Chooses for one capture.
#[derive(Clone, Debug)]
pub(super) struct Picker {
    target: IpNet,
    max_packets: u64,
    of_target: u64,
    of_others: u64,
    /// Packets that may be taken at once; refilled with time.
    tokens: u64,
    refilled_ns: u64,
}

impl Picker {
    /// For at most `max_packets` of an attack on `target` that opened at `now_ns`.
    pub(super) fn new(target: IpNet, max_packets: u64, now_ns: u64) -> Self {
        Self { target, max_packets, of_target: 0, of_others: 0, tokens: (max_packets / 4).max(1), refilled_ns: now_ns }
    }

    /// An incident may widen to a prefix.
    pub(super) fn aim(&mut self, target: IpNet) {
        self.target = target;
    }

    /// Whether the sample was on its way to the target.
    pub(super) fn is_of_target(&self, record: &Record) -> bool {
        record.destination().is_some_and(|to| self.target.contains(&to))
    }

    /// Of the samples of the seconds before, oldest first, how many of the target's first ones are left out because
    /// the newest alone have room.
    pub(super) fn surplus<'a>(&self, before: impl Iterator<Item = &'a Record>) -> u64 {
        let of_target = before.filter(|record| self.is_of_target(record)).count() as u64;
        of_target.saturating_sub((self.max_packets / 2).max(1))
    }

    /// Judges a sample of the seconds before.
    pub(super) fn before(&mut self, record: &Record) -> Pick {
        if self.is_of_target(record) {
            self.of_target += 1;
            return Pick::Take;
        }
        self.other()
    }

    /// Judges a sample that came after the opening.
    pub(super) fn after(&mut self, record: &Record) -> Pick {
        if !self.is_of_target(record) {
            return self.other();
        }
        let per_token = (SPREAD_SECS * SEC / (self.max_packets / 4).max(1)).max(1);
        let earned = record.time_ns.saturating_sub(self.refilled_ns) / per_token;
        self.refilled_ns += earned * per_token;
        self.tokens = self.tokens.saturating_add(earned).min((self.max_packets / 4).max(1));
        if self.tokens == 0 {
            return Pick::Thin;
        }
        self.tokens -= 1;
        self.of_target += 1;
        Pick::Take
    }

    fn other(&mut self) -> Pick {
        if self.of_others * PER_OTHER > self.of_target {
            return Pick::Leave;
        }
        self.of_others += 1;
        Pick::Take
    }
}

#[cfg(test)]
mod tests {
    use ftagent_common::abi::Reason;

    use super::super::record::tests::to;
    use super::*;

    fn picker(max: u64) -> Picker {
        Picker::new("10.99.0.1/32".parse().unwrap(), max, 0)
    }

    #[test]
    fn others_have_a_fifth() {
        let mut picker = picker(1_000_000);
        let mut taken = [0u32; 2];
        for i in 0..50_000_u64 {
            // Nine of ten frames are for somebody else.
            let host = if i % 10 == 0 { 1 } else { 2 };
            if picker.before(&to(host, i, Reason::Clean)) == Pick::Take {
                taken[usize::from(host) - 1] += 1;
            }
        }
        assert_eq!(taken[0], 5_000);
        assert!((1_240..=1_252).contains(&taken[1]), "{taken:?}");
    }

    #[test]
    fn a_capture_begins_densely_and_lasts() {
        let mut picker = picker(1_000);
        let mut taken = Vec::new();
        // 1,000 samples a second for two minutes and a half.
        for i in 0..150_000_u64 {
            let at = i * SEC / 1_000;
            if picker.after(&to(1, at, Reason::Clean)) == Pick::Take {
                taken.push(at);
            }
        }
        assert!(taken[240] < SEC, "the beginning is whole: {}", taken[240]);
        assert!(taken[490] > 50 * SEC, "the rest is spread: {}", taken[490]);
        assert!(taken.len() < 900, "{}", taken.len());
    }

    #[test]
    fn of_the_time_before_the_newest_have_room() {
        let picker = picker(100);
        let before: Vec<_> = (0..80).map(|i| to(1 + u8::from(i % 8 == 0), i, Reason::Clean)).collect();
        assert_eq!(picker.surplus(before.iter()), 20);
        assert_eq!(picker.surplus(before.iter().take(30)), 0);
    }

    #[test]
    fn a_prefix_takes_all_of_its_addresses() {
        let mut picker = picker(100);
        assert!(!picker.is_of_target(&to(2, 1, Reason::Clean)));
        picker.aim("10.99.0.0/24".parse().unwrap());
        assert!(picker.is_of_target(&to(2, 1, Reason::Clean)));
    }
}
