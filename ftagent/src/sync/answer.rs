//! What an answer means for the message that it answers, and how long to wait before the next try.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use serde::Deserialize;

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Delivered,
    /// The server or something before it is not well: the same again later, not before `after` if it said so.
    Retry {
        after: Option<Duration>,
        why: String,
    },
    /// The control plane will never take this message.
    Refused {
        why: String,
    },
    /// Key or token are not accepted: nothing will be taken before an operator helps.
    Credentials {
        why: String,
    },
}

/// The longest `Retry-After` that is obeyed.
const RETRY_AFTER_AT_MOST: u64 = 300;
/// Of a server's words in messages and logs.
const WORDS_AT_MOST: usize = 200;

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorWords,
}

#[derive(Deserialize)]
struct ErrorWords {
    code: String,
    message: String,
}

/// Judges status, `Retry-After` (seconds) and body by the agent protocol: only the control plane itself, known by the
/// shape of its errors, can make the agent drop a message because of its address or form. A proxy's 404 cannot.
pub(super) fn fate(status: u16, retry_after: Option<&str>, body: &[u8]) -> Fate {
    fate_within(status, retry_after, body, RETRY_AFTER_AT_MOST)
}

/// [`fate`], obeying orders to wait of up to `most_secs`.
pub(super) fn fate_within(status: u16, retry_after: Option<&str>, body: &[u8], most_secs: u64) -> Fate {
    let seconds = |header| seconds(header, most_secs);
    let words =
        serde_json::from_slice::<ErrorBody>(body).ok().map(|b| format!("{}: {}", b.error.code, b.error.message));
    let spoken = words.is_some();
    let why: String = format!("status {status}{}", words.map_or_else(String::new, |w| format!(", {w}")));
    let why: String = why.chars().filter(|c| !c.is_control()).take(WORDS_AT_MOST).collect();
    match status {
        200..=299 => Fate::Delivered,
        401 | 403 => Fate::Credentials { why },
        408 | 425 | 429 => Fate::Retry { after: seconds(retry_after), why },
        400 | 404 | 405 if !spoken => {
            Fate::Retry { after: None, why: format!("{why}, not from a control plane: check the URL") }
        }
        400..=499 => Fate::Refused { why },
        300..=399 => Fate::Retry { after: None, why: format!("{why}, a redirect: give the final URL") },
        _ => Fate::Retry { after: seconds(retry_after), why },
    }
}

fn seconds(header: Option<&str>, most: u64) -> Option<Duration> {
    let seconds: u64 = header?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.clamp(1, most)))
}

/// Exponential waiting with jitter, so that a thousand nodes do not return in the same second.
#[derive(Debug)]
pub(crate) struct Backoff {
    base: Duration,
    cap: Duration,
    tries: u32,
    random: StdRng,
}

impl Backoff {
    pub(crate) fn new(base: Duration, cap: Duration, random: StdRng) -> Self {
        Self { base, cap, tries: 0, random }
    }

    /// The next wait: between half of and the whole of `base` × 2^tries, at most `cap`.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = self.base.saturating_mul(1_u32 << self.tries.min(16)).min(self.cap);
        self.tries = self.tries.saturating_add(1);
        whole.mul_f64(self.random.random_range(0.5..=1.0))
    }

    /// It worked: the next wait is short again.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn only_the_control_plane_itself_makes_a_message_go() {
        let ours = br#"{"ok":false,"error":{"code":"not_found","message":"no such node"}}"#;
        let kind = |status, retry_after, body: &[u8]| match fate(status, retry_after, body) {
            Fate::Delivered => "delivered".into(),
            Fate::Retry { after, .. } => format!("retry {:?}", after.map(|d| d.as_secs())),
            Fate::Refused { .. } => "refused".into(),
            Fate::Credentials { .. } => "credentials".into(),
        };
        let table: [(u16, Option<&str>, &[u8], &str); 17] = [
            (200, None, b"{}", "delivered"),
            (204, None, b"", "delivered"),
            (302, None, b"", "retry None"),
            (400, None, ours, "refused"),
            (400, None, b"<html>", "retry None"),
            (401, None, ours, "credentials"),
            (403, None, b"", "credentials"),
            (404, None, ours, "refused"),
            (404, None, b"<html>", "retry None"),
            (408, None, b"", "retry None"),
            (413, None, b"", "refused"),
            (422, None, ours, "refused"),
            (425, None, ours, "retry None"),
            (429, Some("7"), ours, "retry Some(7)"),
            (503, Some("999999"), ours, "retry Some(300)"),
            (503, Some("soon"), b"", "retry None"),
            (500, None, b"", "retry None"),
        ];
        for (status, retry_after, body, expected) in table {
            assert_eq!(kind(status, retry_after, body), expected, "{status} {retry_after:?}");
        }
    }

    #[test]
    fn an_order_to_wait_is_obeyed_within_what_the_caller_allows() {
        for (seconds, most, expected) in
            [("3000", 3_600, 3_000), ("3000", 300, 300), ("99999", 3_600, 3_600), ("0", 9, 1)]
        {
            let Fate::Retry { after, .. } = fate_within(429, Some(seconds), b"", most) else { panic!("not retried") };
            assert_eq!(after, Some(Duration::from_secs(expected)), "{seconds} of {most}");
        }
    }

    #[test]
    fn the_servers_words_are_bounded_and_printable() {
        let long = format!(r#"{{"error":{{"code":"x","message":"\u001b[31m{}"}}}}"#, "y".repeat(5_000));
        let Fate::Refused { why } = fate(422, None, long.as_bytes()) else { panic!("not refused") };
        assert!(why.len() <= WORDS_AT_MOST && !why.contains('\u{1b}'), "{why}");
    }

    #[test]
    fn waits_double_up_to_the_cap_and_are_spread() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30), StdRng::seed_from_u64(7));
        let mut waits = Vec::new();
        for whole in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            let wait = backoff.next().as_millis();
            assert!((whole / 2..=whole).contains(&wait), "{wait} of {whole}");
            waits.push(wait * 1_000 / whole);
        }
        waits.sort_unstable();
        waits.dedup();
        assert!(waits.len() > 5, "the share of the whole wait differs: {waits:?}");
        (0..100).for_each(|_| assert!(backoff.next().as_millis() <= 30_000));
        backoff.reset();
        assert!(backoff.next().as_millis() <= 500);
    }
}
