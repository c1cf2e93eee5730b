//! Counts in bounded memory: the heaviest keys, and how many different ones there were.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher as _};

/// The heaviest keys of a stream (Misra and Gries 1982, with values).
///
/// Exact while there are at most twice as many keys as are kept. Beyond it the light half goes each time it is full, and
/// each count is short by at most [`Heavy::lost`].
#[derive(Clone, Debug)]
pub(super) struct Heavy<K, V> {
    counts: HashMap<K, (u64, V)>,
    kept: usize,
    lost: u64,
}

impl<K: Copy + Eq + Hash + Ord, V: Default> Heavy<K, V> {
    /// Keeps at least the `kept` heaviest keys, and twice as many at most.
    pub(super) fn keeping(kept: usize) -> Self {
        Self { counts: HashMap::new(), kept, lost: 0 }
    }

    /// Counts `weight` more for `key`; its value, to add to.
    pub(super) fn add(&mut self, key: K, weight: u64) -> &mut V {
        if self.counts.len() >= 2 * self.kept && !self.counts.contains_key(&key) {
            self.purge();
        }
        let entry = self.counts.entry(key).or_default();
        entry.0 = entry.0.saturating_add(weight);
        &mut entry.1
    }

    /// The value of `key`, if it is kept.
    pub(super) fn value_mut(&mut self, key: &K) -> Option<&mut V> {
        self.counts.get_mut(key).map(|(_, value)| value)
    }

    fn purge(&mut self) {
        let mut weights: Vec<u64> = self.counts.values().map(|(weight, _)| *weight).collect();
        let (_, light, _) = weights.select_nth_unstable_by(self.kept, |a, b| b.cmp(a));
        let light = *light;
        self.lost = self.lost.saturating_add(light);
        self.counts.retain(|_, (weight, _)| {
            *weight = weight.saturating_sub(light);
            *weight > 0
        });
    }

    /// By how much a count is short at most; 0 if all are exact.
    pub(super) const fn lost(&self) -> u64 {
        self.lost
    }

    /// Keys that are kept.
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }

    /// The `most` heaviest, heaviest first; of equal ones the lower key.
    pub(super) fn top(&self, most: usize) -> Vec<(K, u64, &V)> {
        let mut all: Vec<_> = self.counts.iter().map(|(key, (weight, value))| (*key, *weight, value)).collect();
        all.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(most);
        all
    }
}

/// Estimates how many different keys a stream has (Flajolet and others 2007): within 3 % for `P` = 12, 13 % for 8, in
/// nineteen of twenty cases.
#[derive(Clone, Debug)]
pub(super) struct Distinct<const P: u32> {
    registers: Vec<u8>,
}

impl<const P: u32> Default for Distinct<P> {
    fn default() -> Self {
        Self { registers: vec![0; 1 << P] }
    }
}

impl<const P: u32> Distinct<P> {
    pub(super) fn add<K: Hash>(&mut self, key: &K) {
        // Keys of its own would make the estimate of one file differ from run to run.
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let hash = hasher.finish();
        let register = (hash >> (64 - P)) as usize;
        let rank = (hash << P | 1 << (P - 1)).leading_zeros() + 1;
        self.registers[register] = self.registers[register].max(u8::try_from(rank).expect("at most 65"));
    }

    pub(super) fn estimate(&self) -> u64 {
        let m = f64::from(1_u32 << P);
        let sum: f64 = self.registers.iter().map(|rank| (-f64::from(*rank)).exp2()).sum();
        let raw = 0.7213 / (1.0 + 1.079 / m) * m * m / sum;
        let empty = self.registers.iter().filter(|rank| **rank == 0).count();
        // Few keys are told better by the registers that nobody met.
        let estimate = if raw <= 2.5 * m && empty > 0 { m * (m / empty as f64).ln() } else { raw };
        estimate.round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact_until_there_is_no_room_and_short_by_a_known_number_then() {
        let mut heavy: Heavy<u32, u64> = Heavy::keeping(10);
        for n in 0..20 {
            *heavy.add(n, u64::from(n) + 1) += 1;
        }
        assert_eq!((heavy.len(), heavy.lost()), (20, 0));
        assert_eq!(heavy.top(2), [(19, 20, &1), (18, 19, &1)]);
        // One heavy key among ten thousand light ones.
        for n in 100..10_100 {
            heavy.add(n, 1);
            heavy.add(7, 1);
        }
        let (key, weight, _) = heavy.top(1)[0];
        assert_eq!(key, 7);
        assert!(weight <= 10_008 && weight + heavy.lost() >= 10_008, "{weight} {}", heavy.lost());
        assert!(heavy.len() <= 20);
    }

    #[test]
    fn distinct_keys_are_estimated() {
        for count in [0_u32, 1, 50, 1_000, 20_000, 500_000] {
            let (mut fine, mut coarse) = (Distinct::<12>::default(), Distinct::<8>::default());
            for key in 0..count {
                fine.add(&key);
                fine.add(&key);
                coarse.add(&key);
            }
            let off = |estimate: u64| (estimate as f64 - f64::from(count)).abs() / f64::from(count.max(1));
            assert!(off(fine.estimate()) < 0.05, "{count} {}", fine.estimate());
            assert!(off(coarse.estimate()) < 0.2, "{count} {}", coarse.estimate());
        }
    }
}
