//! Whether a request is one too many, by the count of this process and of the others on its database.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Mutex;
use tracing::warn;

use super::Context;
use super::limits::{Bucket, Rate, Spent};
use crate::domain::Timestamp;

/// How long a request waits for word of what other processes let through; without it the process goes by its own count.
const WORD: Duration = Duration::from_millis(250);

/// Between two lines of the log about buckets of which there is no word.
const SAID_EVERY_SECS: i64 = 10;

/// Of the requests of a bucket that need to ask, one asks and the others wait for its answer; nobody waits for another
/// bucket's.
#[derive(Default)]
pub(crate) struct Turns(std::sync::Mutex<Taken>);

#[derive(Default)]
struct Taken {
    turns: HashMap<Bucket, Weak<Mutex<()>>>,
    /// How many turns there may be before those that nobody has any more are looked for.
    most: usize,
    /// Buckets without word since the last line of the log, and when the next one may be.
    unsaid: u64,
    silent_until: Option<Timestamp>,
}

impl Turns {
    /// Turns that are never looked through.
    const FEW: usize = 1_024;

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Each change of it is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, bucket: Bucket) -> Arc<Mutex<()>> {
        let mut taken = self.taken();
        if taken.turns.len() > taken.most.max(Self::FEW) {
            taken.turns.retain(|_, turn| turn.strong_count() > 0);
            taken.most = taken.turns.len() * 2;
        }
        let turn = taken.turns.entry(bucket).or_default();
        turn.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *turn = Arc::downgrade(&new);
            new
        })
    }

    /// How many buckets there was no word of, where it is time to say so.
    fn unsaid(&self, now: Timestamp) -> Option<u64> {
        let mut taken = self.taken();
        taken.unsaid += 1;
        // A clock set back must not silence it for long.
        let silent = |until: Timestamp| now < until && until <= now.plus_secs(SAID_EVERY_SECS);
        if taken.silent_until.is_some_and(silent) {
            return None;
        }
        taken.silent_until = Some(now.plus_secs(SAID_EVERY_SECS));
        Some(std::mem::take(&mut taken.unsaid))
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
        let turn = self.turns.of(bucket);
        let _turn = turn.lock().await;
        loop {
            // Whoever had the turn before may have asked for this one too.
            let want = match self.limiter.spend(bucket, limit, now) {
                Spent::Counted(rate) => return rate,
                Spent::Ask(want) => want,
            };
            let why = match tokio::time::timeout(WORD, self.app.lease(name.clone(), want, limit)).await {
                Ok(Ok(leased)) => {
                    self.limiter.got(bucket, limit, Some(leased), now);
                    continue;
                }
                Ok(Err(fault)) => fault.to_string(),
                Err(_) => format!("the database does not answer within {} ms", WORD.as_millis()),
            };
            if let Some(buckets) = self.turns.unsaid(now) {
                warn!(bucket = name, buckets, why, "what other processes count is not known: this one goes by its own");
            }
            self.limiter.got(bucket, limit, None, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(n: u8) -> Bucket {
        Bucket::Address([10, 0, 0, n].into())
    }

    #[test]
    fn a_bucket_has_one_turn_while_anybody_has_it_and_shares_it_with_no_other() {
        let turns = Turns::default();
        let first = turns.of(bucket(1));
        assert!(Arc::ptr_eq(&first, &turns.of(bucket(1))));
        let held = first.try_lock().expect("free");
        assert!(turns.of(bucket(1)).try_lock().is_err());
        assert!((2..=255).all(|n| turns.of(bucket(n)).try_lock().is_ok()), "no other waits for it");
        drop(held);
        assert!(turns.of(bucket(1)).try_lock().is_ok());
    }

    #[test]
    fn turns_that_nobody_has_are_forgotten() {
        let turns = Turns::default();
        let kept = turns.of(Bucket::Address([192, 0, 2, 1].into()));
        for n in 0..10_000_u32 {
            drop(turns.of(Bucket::Address(std::net::Ipv4Addr::from(n).into())));
        }
        assert!(turns.taken().turns.len() <= Turns::FEW + 1, "{}", turns.taken().turns.len());
        assert!(Arc::ptr_eq(&kept, &turns.of(Bucket::Address([192, 0, 2, 1].into()))));
    }

    #[test]
    fn many_buckets_without_word_make_one_line_in_ten_seconds() {
        let (turns, now) = (Turns::default(), Timestamp::from_secs(1_000));
        assert_eq!(turns.unsaid(now), Some(1));
        assert_eq!([1, 5, 9].map(|secs| turns.unsaid(now.plus_secs(secs))), [None; 3]);
        assert_eq!(turns.unsaid(now.plus_secs(10)), Some(4));
        assert_eq!(turns.unsaid(now.plus_secs(-100)), Some(1), "the clock was set back");
    }
}
