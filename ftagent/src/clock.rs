//! The only place that reads the clocks.
#![expect(clippy::disallowed_methods, reason = "this is where they are called")]

use time::OffsetDateTime;

use crate::engine::Now;

/// Both clocks, read together.
pub fn now() -> Now {
    Now { mono_ns: mono_ns(), wall: wall() }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of expiry times in the kernel.
pub fn mono_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    // It cannot fail: the clock exists on every Linux.
    time.map_or(0, |t| t.tv_sec().unsigned_abs() * 1_000_000_000 + t.tv_nsec().unsigned_abs())
}

/// The wall clock, for reports alone.
pub fn wall() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
