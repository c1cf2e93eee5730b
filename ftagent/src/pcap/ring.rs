//! PURE: the samples of the last seconds, which an incident that opens finds. Bounded by time and by memory.

use std::collections::VecDeque;

use super::record::Record;

/// Records that are allocated and forgotten together.
const SEGMENT: usize = 256;
const SEGMENT_BYTES: usize = SEGMENT * size_of::<Record>();

/// The newest samples, oldest first.
#[derive(Debug)]
pub(super) struct Ring {
    segments: VecDeque<Vec<Record>>,
    most_segments: usize,
    keep_ns: u64,
}

impl Ring {
    /// Keeps `keep_ns` of samples, in at most `memory_bytes`.
    pub(super) fn new(keep_ns: u64, memory_bytes: usize) -> Self {
        Self { segments: VecDeque::new(), most_segments: (memory_bytes / SEGMENT_BYTES).max(1), keep_ns }
    }

    /// Adds the newest sample and forgets what is too old or too much.
    pub(super) fn push(&mut self, record: Record) {
        let oldest = record.time_ns.saturating_sub(self.keep_ns);
        while self.segments.front().and_then(|s| s.last()).is_some_and(|newest| newest.time_ns < oldest) {
            self.segments.pop_front();
        }
        if self.segments.back().is_none_or(|last| last.len() == SEGMENT) {
            let recycled = if self.segments.len() >= self.most_segments { self.segments.pop_front() } else { None };
            let mut segment = recycled.unwrap_or_else(|| Vec::with_capacity(SEGMENT));
            segment.clear();
            self.segments.push_back(segment);
        }
        if let Some(last) = self.segments.back_mut() {
            last.push(record);
        }
    }

    /// Everything that is not older than `keep_ns` at `now_ns`, oldest first.
    pub(super) fn records(&self, now_ns: u64) -> impl DoubleEndedIterator<Item = &Record> {
        let oldest = now_ns.saturating_sub(self.keep_ns);
        self.segments.iter().flatten().filter(move |record| record.time_ns >= oldest)
    }

    /// Memory of the samples.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.len() as u64 * SEGMENT_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use ftagent_common::abi::Reason;

    use super::super::record::tests::to;
    use super::*;

    const SEC: u64 = 20_000_000;

    #[test]
    fn it_holds_the_last_seconds_and_gives_memory_back() {
        let mut ring = Ring::new(2 * SEC, 64 << 20);
        for i in 0..10_000 {
            ring.push(to(1, i * SEC / 1_000, Reason::Clean));
        }
        let now = 9_999 * SEC / 1_000;
        let times: Vec<u64> = ring.records(now).map(|r| r.time_ns).collect();
        assert_eq!((times.first(), times.last(), times.len()), (Some(&(now - 2 * SEC)), Some(&now), 2_001));
        assert!(times.is_sorted());
        assert!(ring.bytes() <= 10 * SEGMENT_BYTES as u64, "{}", ring.bytes());
        // After a pause everything of before is gone.
        ring.push(to(1, now + 60 * SEC, Reason::Clean));
        assert_eq!((ring.records(now + 60 * SEC).count(), ring.bytes()), (1, SEGMENT_BYTES as u64));
    }

    #[test]
    fn its_memory_is_bounded_and_the_newest_stay() {
        let cap = 8 * SEGMENT_BYTES;
        let mut ring = Ring::new(3_600 * SEC, cap);
        for i in 0..20_000 {
            ring.push(to(1, i, Reason::Clean));
            assert!(ring.bytes() <= cap as u64);
        }
        let kept: Vec<u64> = ring.records(20_000).map(|r| r.time_ns).collect();
        assert_eq!(kept.last(), Some(&19_999));
        assert!(kept.len() > 7 * SEGMENT, "{}", kept.len());
    }
}
