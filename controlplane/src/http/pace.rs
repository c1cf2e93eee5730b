//! Whether a request is one too many, by the count of this process and of the others on its database.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::sync::Mutex;
use tracing::warn;

use super::Context;
use super::limits::{Bucket, Rate, Spent};

/// How long a request waits for word of what other processes let through; without it the process goes by its own count.
const WORD: Duration = Duration::from_millis(250);

/// Buckets share turns by chance; as many ask at once as one transaction takes.
const TURNS: usize = 512;

/// Of the requests of a bucket that need to ask, one asks and the others wait for its answer.
pub(crate) struct Turns {
    turns: [Mutex<()>; TURNS],
    hashes: RandomState,
}

impl Default for Turns {
    fn default() -> Self {
        Self { turns: [const { Mutex::const_new(()) }; TURNS], hashes: RandomState::new() }
    }
}

impl Turns {
    fn of(&self, bucket: Bucket) -> &Mutex<()> {
        let index = self.hashes.hash_one(bucket) % self.turns.len() as u64;
        &self.turns[usize::try_from(index).expect("below 64")]
    }
}

impl Context {
    /// Counts one request.
    pub(super) async fn count(&self, bucket: Bucket, limit: u32) -> Rate {
        let now = self.app.now();
        let name = bucket.shared_name().filter(|_| self.app.shares_limits());
        let Some(name) = name else { return self.limiter.take(bucket, limit, now) };
        if let Spent::Counted(rate) = self.limiter.spend(bucket, limit, now) {
            return rate;
        }
        let _turn = self.turns.of(bucket).lock().await;
        loop {
            // Whoever had the turn before may have asked for this one too.
            let want = match self.limiter.spend(bucket, limit, now) {
                Spent::Counted(rate) => return rate,
                Spent::Ask(want) => want,
            };
            let got = match tokio::time::timeout(WORD, self.app.lease(name.clone(), want, limit)).await {
                Ok(Ok(leased)) => Some(leased),
                Ok(Err(fault)) => {
                    warn!(bucket = name, error = %fault, "what other processes count is not known: this one goes by its own");
                    None
                }
                Err(_) => {
                    warn!(bucket = name, "the database does not say in time what other processes count");
                    None
                }
            };
            self.limiter.got(bucket, limit, got, now);
        }
    }
}
