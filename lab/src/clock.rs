//! The only reader of the clocks.

use std::ops::Sub;
use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// The monotonic clock, for deadlines and pacing.
#[expect(clippy::disallowed_methods, reason = "this is the module that reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// One moment on both clocks: the kernel stamps with the first, reports carry the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub mono_ns: u64,
    pub wall: SystemTime,
}

impl Moment {
    /// This moment.
    #[expect(clippy::disallowed_methods, reason = "this is the module that reads the clock")]
    pub fn now() -> Self {
        let mono = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has a monotonic clock");
        Self { mono_ns: Duration::from(mono).as_nanos() as u64, wall: SystemTime::now() }
    }
}

impl Sub for Moment {
    type Output = Duration;

    /// Time between two moments on the monotonic clock; zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.mono_ns.saturating_sub(earlier.mono_ns))
    }
}
