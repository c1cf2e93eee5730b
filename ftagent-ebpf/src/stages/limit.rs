//! Shared limit states: one word, compare-and-swap to pass, nothing written to drop.

use ftagent_common::abi::Rate;

use crate::kernel;

/// How often a lost race is tried again. Whoever wins lets a packet pass, so under this much contention the limit is
/// in heavy use and a drop is the right answer.
const ATTEMPTS: u32 = 2;

/// Whether one more frame is over the limit.
///
/// # Safety
/// `state` must point to a word in a map.
#[inline(always)]
pub(super) unsafe fn is_over(rate: &Rate, state: *mut u64, now_ns: u64, bytes: u64) -> bool {
    for _ in 0..ATTEMPTS {
        // SAFETY: the caller gives a word in a map; a torn read is impossible for an aligned word.
        let before = unsafe { state.read_volatile() };
        let Some(after) = rate.conform(before, now_ns, bytes) else { return true };
        // SAFETY: as above.
        if unsafe { kernel::swap(state, before, after) } {
            return false;
        }
    }
    true
}
