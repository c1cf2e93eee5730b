//! Rate limits that several processes count together.
//!
//! A process lets a small part of each limit through on its own, and asks the database for more parts only once that is
//! used up: calls of fleets that keep their limits never do. Minutes of callers and of the database do not begin
//! together, so with N processes, two or more, up to N of these parts can pass beyond the limit in the database's minute,
//! and as many can lie unused with another process when a caller is told to wait.

use super::App;
use crate::store::{Lease, Leased, Result};

/// Seconds of a window.
pub(crate) const WINDOW_SECS: i64 = 60;

impl App {
    /// Whether other processes let the same callers in.
    pub(crate) fn shares_limits(&self) -> bool {
        self.store.is_shared()
    }

    /// Asks for `want` more of what all processes together may let through of a bucket.
    pub(crate) async fn lease(&self, bucket: String, want: u32, limit: u32) -> Result<Leased> {
        let ends = self.now().plus_secs(WINDOW_SECS);
        self.store.lease(Lease { bucket, want, limit, ends }).await
    }
}
