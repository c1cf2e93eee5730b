//! Rate limits: fixed windows of a minute, in memory, bounded in number.
//!
//! A window begins with its first request, so that clients do not all reset at the same second.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

use crate::domain::Timestamp;

const WINDOW_SECS: i64 = 60;
/// So many windows are kept for strangers; then new ones wait, while tokens and nodes go on.
const MAX_WINDOWS: usize = 200_000;

/// Requests a minute and token, unless the token has its own limit; also a minute and address without a token.
pub(crate) const GENERAL: u32 = 1_000;
/// Wrong credentials a minute and address, unless configured otherwise.
pub const AUTHENTICATION: u32 = 100;
/// Heartbeats a minute and node.
pub(crate) const HEARTBEATS: u32 = 5;
/// Metrics batches a minute and node.
pub(crate) const METRICS: u32 = 120;

/// Feeds a minute and feed token.
pub(crate) const FEEDS: u32 = 60;

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bucket {
    Token(i64),
    Feed(i64),
    Node(Uuid),
    Heartbeats(Uuid),
    Metrics(Uuid),
    Address(IpAddr),
    Failures(IpAddr),
}

impl Bucket {
    /// Whether anybody can make new buckets of this kind; there are no more others than tokens and nodes.
    const fn is_strangers(self) -> bool {
        matches!(self, Self::Address(_) | Self::Failures(_))
    }

    /// An address's bucket; the /64 of an IPv6 address, because one host can use all of it.
    pub(crate) fn of_address(ip: IpAddr) -> IpAddr {
        match ip.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
            v4 => v4,
        }
    }
}

/// What is left of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) limit: u32,
    pub(crate) remaining: u32,
    /// When the window ends.
    pub(crate) reset: Timestamp,
    /// Whether this request is one too many.
    pub(crate) exceeded: bool,
}

impl Rate {
    /// Seconds until the window ends, at least 1.
    pub(crate) fn retry_after(&self, now: Timestamp) -> u64 {
        u64::try_from(self.reset.secs() - now.secs()).unwrap_or(0).max(1)
    }

    pub(crate) fn write_to(&self, headers: &mut HeaderMap) {
        const NAMES: [HeaderName; 3] = [
            HeaderName::from_static("x-ratelimit-limit"),
            HeaderName::from_static("x-ratelimit-remaining"),
            HeaderName::from_static("x-ratelimit-reset"),
        ];
        let [limit, remaining, reset] = NAMES;
        headers.insert(limit, HeaderValue::from(self.limit));
        headers.insert(remaining, HeaderValue::from(self.remaining));
        headers.insert(reset, HeaderValue::from(self.reset.secs()));
    }
}

struct Window {
    ends: Timestamp,
    used: u32,
}

/// All windows.
#[derive(Default)]
pub(crate) struct Limiter(Mutex<HashMap<Bucket, Window>>);

impl Limiter {
    /// Counts one request; one beyond the limit is not counted.
    pub(crate) fn take(&self, bucket: Bucket, limit: u32, now: Timestamp) -> Rate {
        self.count(bucket, limit, now, 1)
    }

    /// Looks without counting.
    pub(crate) fn look(&self, bucket: Bucket, limit: u32, now: Timestamp) -> Rate {
        self.count(bucket, limit, now, 0)
    }

    fn count(&self, bucket: Bucket, limit: u32, now: Timestamp, cost: u32) -> Rate {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= MAX_WINDOWS && bucket.is_strangers() && !windows.contains_key(&bucket) {
            windows.retain(|_, w| w.ends > now);
            if windows.len() >= MAX_WINDOWS {
                let reset = now.plus_secs(WINDOW_SECS);
                return Rate { limit, remaining: 0, reset, exceeded: true };
            }
        }
        if !bucket.is_strangers() && windows.len() >= MAX_WINDOWS * 2 {
            windows.retain(|_, w| w.ends > now);
        }
        let window = windows.entry(bucket).or_insert(Window { ends: now.plus_secs(WINDOW_SECS), used: 0 });
        // A clock set back must not prolong a window.
        if window.ends <= now || window.ends > now.plus_secs(WINDOW_SECS) {
            *window = Window { ends: now.plus_secs(WINDOW_SECS), used: 0 };
        }
        let exceeded = window.used.saturating_add(cost.max(1)) > limit;
        if !exceeded {
            window.used += cost;
        }
        Rate { limit, remaining: limit.saturating_sub(window.used), reset: window.ends, exceeded }
    }
}

/// Where a request's rate is noted for the answer's headers.
#[derive(Clone, Default)]
pub(crate) struct RateSlot {
    general: Arc<OnceLock<Rate>>,
    own: Arc<OnceLock<Rate>>,
}

impl RateSlot {
    /// Notes the rate; the first one noted counts.
    pub(crate) fn note(&self, rate: Rate) {
        self.general.get_or_init(|| rate);
    }

    /// Notes the rate of a call that has a narrower one, which counts before any other.
    pub(crate) fn note_own(&self, rate: Rate) {
        self.own.get_or_init(|| rate);
    }

    pub(crate) fn rate(&self) -> Option<Rate> {
        self.own.get().or(self.general.get()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lets_exactly_its_limit_through() {
        let limiter = Limiter::default();
        let start = Timestamp::from_secs(1_000);
        let bucket = Bucket::Token(1);
        for n in 0..5 {
            let rate = limiter.take(bucket, 5, start.plus_secs(n));
            assert_eq!((rate.exceeded, rate.remaining), (false, 4 - u32::try_from(n).expect("small")), "{n}");
        }
        let rate = limiter.take(bucket, 5, start.plus_secs(59));
        assert_eq!((rate.exceeded, rate.remaining, rate.retry_after(start.plus_secs(59))), (true, 0, 1));
        assert!(!limiter.take(Bucket::Token(2), 5, start).exceeded);
        assert!(!limiter.take(bucket, 5, start.plus_secs(60)).exceeded);
        assert!(!limiter.take(bucket, 5, start.plus_secs(-3_600)).exceeded, "the clock was set back");
    }

    #[test]
    fn strangers_cannot_crowd_out_those_who_are_known() {
        let limiter = Limiter::default();
        let now = Timestamp::from_secs(1_000);
        for n in 0..MAX_WINDOWS {
            let ip = IpAddr::V6((u128::try_from(n).expect("small") << 64).into());
            assert!(!limiter.take(Bucket::Failures(ip), 5, now).exceeded);
        }
        let stranger = Bucket::Failures(IpAddr::V4([192, 0, 2, 1].into()));
        assert!(limiter.take(stranger, 5, now).exceeded);
        assert!(!limiter.take(Bucket::Token(1), 5, now).exceeded);
        assert!(!limiter.take(stranger, 5, now.plus_secs(60)).exceeded, "a minute later there is room again");
    }

    #[test]
    fn hosts_of_one_ipv6_network_share_a_bucket() {
        let of = |text: &str| Bucket::of_address(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("198.51.100.1"), of("198.51.100.2"));
        assert_eq!(of("::ffff:198.51.100.1"), of("198.51.100.1"));
    }
}
