//! One message to one destination: when it is written, what it says, when it is tried again, when it is given up.

use ftagent_common::api::SourceShare;
use ftagent_common::vocab::{AttackFamily, IncidentStatus, Severity};
use serde::Serialize;
use uuid::Uuid;

use super::{Attack, IncidentSummary, RunbookExecution, StoredIncident, Timestamp};

/// Sources that a message names.
const MAX_SOURCES: usize = 20;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An incident opened, or an attack came back.
    AttackOpen,
    /// Its severity, its family or the verdict on it is another.
    AttackUpdate,
    /// It ended.
    AttackResolved,
    /// A step of a runbook tells of an attack.
    Runbook,
    /// An operator asked for a sample.
    Test,
}

impl EventKind {
    const ALL: [Self; 5] = [Self::AttackOpen, Self::AttackUpdate, Self::AttackResolved, Self::Runbook, Self::Test];

    /// The spelling on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttackOpen => "attack_open",
            Self::AttackUpdate => "attack_update",
            Self::AttackResolved => "attack_resolved",
            Self::Runbook => "runbook",
            Self::Test => "test",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.as_str() == word)
    }
}

/// What of an incident is worth a message when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub status: IncidentStatus,
    pub severity: Severity,
    pub family: AttackFamily,
}

impl Standing {
    pub fn of(incident: &StoredIncident) -> Self {
        Self { status: incident.status(), severity: incident.severity(), family: incident.report.family }
    }

    /// What to tell when an incident that stood like `before` (none: it was unknown) stands like this, in order.
    pub fn events_since(self, before: Option<Self>) -> Vec<EventKind> {
        let active = |standing: Self| standing.status == IncidentStatus::Active;
        match before {
            None if active(self) => vec![EventKind::AttackOpen],
            // Its node was cut off while it lasted.
            None => vec![EventKind::AttackOpen, EventKind::AttackResolved],
            Some(before) if before == self => Vec::new(),
            Some(before) => match (active(before), active(self)) {
                (true, false) => vec![EventKind::AttackResolved],
                (false, true) => vec![EventKind::AttackOpen],
                _ => vec![EventKind::AttackUpdate],
            },
        }
    }
}

#[derive(Serialize)]
struct Message<'a> {
    delivery: Uuid,
    event: EventKind,
    created_at: Timestamp,
    incident: IncidentSummary,
    top_sources: &'a [SourceShare],
}

/// The body of a message about an incident: the same bytes with every try.
pub fn incident_body(delivery: Uuid, event: EventKind, incident: &StoredIncident, now: Timestamp) -> String {
    let sources = &incident.report.top_sources;
    let message = Message {
        delivery,
        event,
        created_at: now,
        incident: incident.into(),
        top_sources: &sources[..sources.len().min(MAX_SOURCES)],
    };
    serde_json::to_string(&message).expect("wire types have string keys and always serialise")
}

/// The body of a runbook's message; `incident` is none where the attack is made up.
pub fn runbook_body(
    delivery: Uuid,
    execution: &RunbookExecution,
    message: &str,
    attack: &Attack,
    incident: Option<&StoredIncident>,
    now: Timestamp,
) -> String {
    serde_json::json!({
        "delivery": delivery, "event": EventKind::Runbook, "created_at": now, "runbook": execution.runbook_name,
        "execution": execution.uuid, "test": execution.test, "message": message, "attack": attack,
        "incident": incident.map(IncidentSummary::from),
    })
    .to_string()
}

/// The body of a sample.
pub fn test_body(delivery: Uuid, now: Timestamp) -> String {
    serde_json::json!({
        "delivery": delivery, "event": EventKind::Test, "created_at": now,
        "message": "This is a test of ftagent: no attack was seen.",
    })
    .to_string()
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// It waits for its first or next try.
    Pending,
    /// The destination took it.
    Delivered,
    /// It was given up.
    Failed,
}

impl DeliveryStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Pending, Self::Delivered, Self::Failed].into_iter().find(|s| s.as_str() == word)
    }
}

/// A delivery in a destination's history.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Delivery {
    pub id: i64,
    /// What the receiver got in `X-Ftagent-Delivery`, the same with every try.
    pub uuid: Uuid,
    pub event: EventKind,
    /// The incident that it is about.
    pub incident_id: Option<i64>,
    pub status: DeliveryStatus,
    /// Tries so far.
    pub attempts: u32,
    /// When it is tried next, if it is pending.
    pub next_at: Option<Timestamp>,
    pub created_at: Timestamp,
    /// Of the last try.
    pub attempted_at: Option<Timestamp>,
    /// When it was delivered or given up.
    pub ended_at: Option<Timestamp>,
    /// What the last try was answered.
    pub http_status: Option<u16>,
    /// Of the last try, milliseconds.
    pub latency_ms: Option<i64>,
    /// Why the last try failed.
    pub error: String,
    /// The first 1,024 bytes of the last answer, without secrets.
    pub answer: String,
}

/// What a try came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// Empty if the destination took it.
    pub error: String,
    pub http_status: Option<u16>,
    pub latency_ms: i64,
    pub answer: String,
    /// Seconds that the destination asked to be left alone for.
    pub retry_after_secs: Option<i64>,
}

impl Attempt {
    pub fn succeeded(&self) -> bool {
        self.error.is_empty()
    }

    /// Whether the destination is well and only asks for time: no failure that opens a circuit.
    pub fn is_busy(&self) -> bool {
        self.http_status == Some(429)
    }
}

/// How often and how long a delivery is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    pub attempts: u32,
    /// Seconds from its writing on.
    pub age_secs: i64,
}

/// Webhooks: three tries within a day.
pub const WEBHOOK_PATIENCE: Patience = Patience { attempts: 3, age_secs: 86_400 };

/// Seconds before the second try, about; four times as many before each further one.
const FIRST_WAIT_SECS: f64 = 10.0;
/// The longest wait that is our own choice, seconds.
const LONGEST_WAIT_SECS: f64 = 900.0;
/// The longest wait that a destination can ask for, seconds.
const LONGEST_PAUSE_SECS: i64 = 3_600;

/// When a delivery that was tried `attempts` times, the last time in vain, is tried again; none if it is given up.
///
/// `jitter` is 0 to 1, evenly spread: waits differ by a fifth up and down, so that what failed together does not come
/// back together.
pub fn next_attempt(
    patience: Patience,
    attempts: u32,
    created_at: Timestamp,
    retry_after_secs: Option<i64>,
    jitter: f64,
    now: Timestamp,
) -> Option<Timestamp> {
    if attempts >= patience.attempts {
        return None;
    }
    let doublings = i32::try_from(attempts.saturating_sub(1).min(20)).expect("at most 20");
    let own = (FIRST_WAIT_SECS * 4_f64.powi(doublings)).min(LONGEST_WAIT_SECS) * (0.8 + 0.4 * jitter.clamp(0.0, 1.0));
    let asked = retry_after_secs.unwrap_or(0).clamp(0, LONGEST_PAUSE_SECS);
    let wait_micros = ((own * 1e6) as i64).max(asked * 1_000_000);
    let next = Timestamp::from_micros(now.micros().saturating_add(wait_micros));
    (next <= created_at.plus_secs(patience.age_secs)).then_some(next)
}

/// Reads `Retry-After`: seconds, or a date of HTTP.
pub fn parse_retry_after(text: &str, now: Timestamp) -> Option<i64> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(text.parse().unwrap_or(i64::MAX).min(LONGEST_PAUSE_SECS));
    }
    let date = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822).ok()?;
    Some(Timestamp::from(date).secs_since(now).min(LONGEST_PAUSE_SECS))
}

/// The first 1,024 bytes of an answer as text that can be shown: no control characters, none of `secrets`.
pub fn excerpt<'a>(bytes: &[u8], secrets: impl Iterator<Item = &'a str>) -> String {
    const MAX: usize = 1_024;
    let text = String::from_utf8_lossy(bytes);
    let mut text: String = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    for secret in secrets.filter(|s| !s.is_empty()) {
        text = text.replace(secret, "[secret]");
    }
    let end = (0..=text.len().min(MAX)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_778_596_200;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(NOW + secs)
    }

    #[test]
    fn what_is_told_follows_from_what_changed() {
        use AttackFamily::{SynFlood, UdpFlood};
        use EventKind::{AttackOpen, AttackResolved, AttackUpdate};
        use IncidentStatus::{Active, FalsePositive, Resolved};
        use Severity::{High, Low};
        let is = |status, severity, family| Standing { status, severity, family };
        let active = is(Active, High, UdpFlood);
        let over = is(Resolved, High, UdpFlood);
        let table = [
            ("it opens", None, active, vec![AttackOpen]),
            ("it is over when it is heard of", None, over, vec![AttackOpen, AttackResolved]),
            ("nothing changed", Some(active), active, vec![]),
            ("it grew", Some(is(Active, Low, UdpFlood)), active, vec![AttackUpdate]),
            ("it is another family", Some(is(Active, High, SynFlood)), active, vec![AttackUpdate]),
            ("it ended", Some(active), over, vec![AttackResolved]),
            ("it ended as another", Some(is(Active, Low, SynFlood)), over, vec![AttackResolved]),
            ("it was none", Some(active), is(FalsePositive, High, UdpFlood), vec![AttackResolved]),
            ("it was none after all", Some(over), is(FalsePositive, High, UdpFlood), vec![AttackUpdate]),
            ("it came back", Some(over), active, vec![AttackOpen]),
        ];
        for (name, before, after, expected) in table {
            assert_eq!(after.events_since(before), expected, "{name}");
        }
    }

    #[test]
    fn waits_grow_and_end() {
        let patience = Patience { attempts: 6, age_secs: 2_000 };
        // Attempts made, age, Retry-After, jitter: seconds to the next try.
        let table = [
            ("first, least", 1, 0, None, 0.0, Some(8.0)),
            ("first, most", 1, 0, None, 1.0, Some(12.0)),
            ("second", 2, 0, None, 0.5, Some(40.0)),
            ("third", 3, 0, None, 0.5, Some(160.0)),
            ("fifth: the longest", 5, 0, None, 0.5, Some(900.0)),
            ("the last was made", 6, 0, None, 0.5, None),
            ("it is too old", 5, 1_200, None, 0.5, None),
            ("asked for longer", 1, 0, Some(100), 0.5, Some(100.0)),
            ("asked for less", 2, 0, Some(1), 0.5, Some(40.0)),
            ("asked for more than is left", 1, 0, Some(3_000), 0.5, None),
            ("asked for nonsense", 1, 0, Some(-5), 0.5, Some(10.0)),
            ("jitter out of bounds", 1, 0, None, 7.0, Some(12.0)),
        ];
        for (name, attempts, age, retry_after, jitter, expected) in table {
            let next = next_attempt(patience, attempts, at(-age), retry_after, jitter, at(0));
            let secs = next.map(|t| (t.micros() - at(0).micros()) as f64 / 1e6);
            assert_eq!(secs, expected, "{name}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let table = [
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("99999999999999999999", Some(LONGEST_PAUSE_SECS)),
            ("Tue, 12 May 2026 14:31:00 GMT", Some(60)),
            ("Tue, 12 May 2026 14:00:00 GMT", Some(0)),
            ("soon", None),
            ("", None),
            ("-1", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_retry_after(text, at(0)), expected, "{text:?}");
        }
    }

    #[test]
    fn an_excerpt_is_short_and_shows_no_secret() {
        let secrets = ["sesame", ""];
        let table: [(&[u8], &str); 4] = [
            (b"ok", "ok"),
            (b"you sent sesame, sesame", "you sent [secret], [secret]"),
            (b"a\0b\x1b[31m\nc", "a b [31m\nc"),
            (b"\xff", "\u{fffd}"),
        ];
        for (bytes, expected) in table {
            assert_eq!(excerpt(bytes, secrets.into_iter()), expected);
        }
        let long = excerpt("é".repeat(4_000).as_bytes(), secrets.into_iter());
        assert_eq!(long.len(), 1_024);
    }
}
