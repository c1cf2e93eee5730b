//! Rate limits: fixed windows of a minute, in memory, bounded in number.
//!
//! A window begins with its first request, so that clients do not all reset at the same second. Where other processes
//! let the same callers in, a window is spent in parts (`pace.rs`): a small one that is this process's own, then what
//! the database says is left for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

use crate::app::WINDOW_SECS;
use crate::domain::Timestamp;
use crate::store::Leased;

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

    /// The name that all processes know it by; none of what each process counts for itself.
    pub(crate) fn shared_name(self) -> Option<String> {
        Some(match self {
            Self::Token(id) => format!("token/{id}"),
            Self::Feed(id) => format!("feed/{id}"),
            Self::Node(uuid) => format!("node/{uuid}"),
            Self::Heartbeats(uuid) => format!("heartbeats/{uuid}"),
            Self::Metrics(uuid) => format!("metrics/{uuid}"),
            Self::Failures(ip) => format!("failures/{ip}"),
            Self::Address(_) => return None,
        })
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

/// The part of a limit that a process lets through, or asks for, at a time: an eighth, and two at least.
pub(crate) const fn part(limit: u32) -> u32 {
    let part = limit / 8;
    if part > 2 { part } else { 2 }
}

struct Window {
    ends: Timestamp,
    used: u32,
    /// What is to be spent in parts: how much of it may be spent now, how much nobody has, and whether the database was
    /// asked, so that it knows of what was used.
    allowed: u32,
    left: u32,
    asked: bool,
}

impl Window {
    fn new(limit: u32, now: Timestamp) -> Self {
        let allowed = part(limit).min(limit);
        Self { ends: now.plus_secs(WINDOW_SECS), used: 0, allowed, left: limit - allowed, asked: false }
    }
}

/// What became of a request that is counted in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spent {
    Counted(Rate),
    /// The part is used up: so much has to be asked for first.
    Ask(u32),
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
        let mut windows = self.lock();
        let window = match Self::window(&mut windows, bucket, limit, now) {
            Ok(window) => window,
            Err(full) => return full,
        };
        let exceeded = window.used.saturating_add(cost.max(1)) > limit;
        if !exceeded {
            window.used += cost;
        }
        Rate { limit, remaining: limit.saturating_sub(window.used), reset: window.ends, exceeded }
    }

    /// Counts one request of a bucket that is spent in parts.
    pub(crate) fn spend(&self, bucket: Bucket, limit: u32, now: Timestamp) -> Spent {
        let mut windows = self.lock();
        let window = match Self::window(&mut windows, bucket, limit, now) {
            Ok(window) => window,
            Err(full) => return Spent::Counted(full),
        };
        let exceeded = window.used >= window.allowed;
        if exceeded && window.left > 0 {
            // The first time the database hears of what was used without it.
            let untold = if window.asked { 0 } else { window.used };
            return Spent::Ask(untold + part(limit));
        }
        if !exceeded {
            window.used += 1;
        }
        let remaining = (window.allowed - window.used).saturating_add(window.left).min(limit);
        Spent::Counted(Rate { limit, remaining, reset: window.ends, exceeded })
    }

    /// Notes what was got; without an answer this process goes by its own count until the window ends.
    pub(crate) fn got(&self, bucket: Bucket, limit: u32, got: Option<Leased>, now: Timestamp) {
        let mut windows = self.lock();
        let Ok(window) = Self::window(&mut windows, bucket, limit, now) else { return };
        match got {
            Some(leased) => {
                let told = if window.asked { window.allowed } else { 0 };
                window.allowed = told.saturating_add(leased.granted).min(limit).max(window.used);
                window.left = leased.left.min(limit.saturating_sub(window.allowed));
                // Never later: the database's window began with its first lease, and who sends at the limit would be
                // refused for the difference.
                window.ends = leased.ends.min(window.ends);
            }
            None => (window.allowed, window.left) = (limit.max(window.used), 0),
        }
        window.asked = true;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Bucket, Window>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bucket's window, a new one if it has ended; a refusal where there is no place for one.
    fn window(
        windows: &mut HashMap<Bucket, Window>,
        bucket: Bucket,
        limit: u32,
        now: Timestamp,
    ) -> Result<&mut Window, Rate> {
        if windows.len() >= MAX_WINDOWS && bucket.is_strangers() && !windows.contains_key(&bucket) {
            windows.retain(|_, w| w.ends > now);
            if windows.len() >= MAX_WINDOWS {
                let reset = now.plus_secs(WINDOW_SECS);
                return Err(Rate { limit, remaining: 0, reset, exceeded: true });
            }
        }
        if !bucket.is_strangers() && windows.len() >= MAX_WINDOWS * 2 {
            windows.retain(|_, w| w.ends > now);
        }
        let window = windows.entry(bucket).or_insert_with(|| Window::new(limit, now));
        // A clock set back must not prolong a window.
        if window.ends <= now || window.ends > now.plus_secs(WINDOW_SECS) {
            *window = Window::new(limit, now);
        }
        Ok(window)
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
    fn a_shared_window_is_spent_in_parts_and_told_to_the_database_once() {
        let limiter = Limiter::default();
        let now = Timestamp::from_secs(1_000);
        let bucket = Bucket::Token(1);
        let spend = || limiter.spend(bucket, 40, now);
        let got = |granted, left| {
            let ends = now.plus_secs(30);
            limiter.got(bucket, 40, Some(Leased { granted, left, ends }), now);
        };
        let through = || (0..).take_while(|_| matches!(spend(), Spent::Counted(Rate { exceeded: false, .. }))).count();
        assert_eq!(through(), 5, "its own part, an eighth");
        assert_eq!(spend(), Spent::Ask(10), "what was used and another part");
        assert_eq!(spend(), Spent::Ask(10), "until it is answered");
        got(10, 12);
        let Spent::Counted(rate) = spend() else { panic!("not counted") };
        assert_eq!((rate.remaining, rate.reset, rate.exceeded), (16, now.plus_secs(30), false));
        assert_eq!((through(), spend()), (4, Spent::Ask(5)));
        got(3, 0);
        assert_eq!(through(), 3);
        let Spent::Counted(rate) = spend() else { panic!("it was told that nothing is left") };
        assert_eq!((rate.remaining, rate.exceeded, rate.retry_after(now)), (0, true, 30));
        assert!(matches!(limiter.spend(bucket, 40, now.plus_secs(30)), Spent::Counted(Rate { exceeded: false, .. })));
    }

    #[test]
    fn who_sends_at_the_limit_all_the_time_is_never_refused() {
        let limiter = Limiter::default();
        let bucket = Bucket::Token(1);
        // As the database counts: its window begins with a lease, not with the first request.
        let (mut ends, mut used) = (Timestamp::from_secs(0), 0_u32);
        for n in 0..200 {
            let now = Timestamp::from_secs(1_000 + 13 * n);
            loop {
                let want = match limiter.spend(bucket, 5, now) {
                    Spent::Counted(rate) => break assert!(!rate.exceeded, "request {n}"),
                    Spent::Ask(want) => want,
                };
                if ends <= now {
                    (ends, used) = (now.plus_secs(WINDOW_SECS), 0);
                }
                let left = 5_u32.saturating_sub(used);
                let granted = left.min(want);
                used += want;
                limiter.got(bucket, 5, Some(Leased { granted, left: left - granted, ends }), now);
            }
        }
    }

    #[test]
    fn others_may_have_used_up_everything_and_nobody_may_answer() {
        let limiter = Limiter::default();
        let now = Timestamp::from_secs(1_000);
        let through = |bucket| {
            (0..)
                .take_while(|_| matches!(limiter.spend(bucket, 5, now), Spent::Counted(Rate { exceeded: false, .. })))
                .count()
        };
        let (taken, alone) = (Bucket::Heartbeats(Uuid::nil()), Bucket::Token(1));
        assert_eq!((through(taken), limiter.spend(taken, 5, now)), (2, Spent::Ask(4)));
        limiter.got(taken, 5, Some(Leased { granted: 1, left: 0, ends: now.plus_secs(60) }), now);
        assert_eq!(through(taken), 0, "two were let through, one was free");
        assert_eq!(through(alone), 2);
        limiter.got(alone, 5, None, now);
        assert_eq!(through(alone), 3, "its own count");
        assert!(matches!(limiter.spend(alone, 5, now), Spent::Counted(Rate { exceeded: true, .. })));
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
