//! Mitigation rules: blackholes, FlowSpec rules and diversions that are announced outside of the nodes.

mod course;
mod guard;
mod pace;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::allowlist::{parse_prefix, serialize_prefix};
use super::problem::Check;
use super::{Problem, Timestamp};
pub use course::{Course, Ending, LEASE_SECS, Outcome};
pub use guard::refusal;
pub use pace::{COOLDOWN_SECS, Pace, WINDOW_SECS};

/// The most rules of a workspace that have not ended.
pub const MAX_LIVE_RULES: u32 = 200;
/// The longest lifetime of a rule: a year, in seconds.
pub(super) const MAX_TTL_SECS: u32 = 31_536_000;

/// What is done to the target's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// All of it is dropped upstream (RFC 7999).
    Blackhole,
    /// What matches is dropped or limited upstream (RFC 8955, RFC 8956).
    Flowspec,
    /// It goes through a provider that cleans it.
    Scrubbing,
}

/// How far a rule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MitigationStatus {
    /// To be announced; no adapter confirmed it yet.
    Pending,
    /// The adapter confirmed the announcement.
    Active,
    /// To be withdrawn; no adapter confirmed that yet.
    Withdrawing,
    /// Withdrawn, which the adapter confirmed, or never announced.
    Withdrawn,
    /// Withdrawn at the end of its time.
    Expired,
    /// Refused, given up, or its withdrawal was never confirmed: `last_error` says which.
    Failed,
}

macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $type {
            /// The spelling on the wire and in the database.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::str::FromStr for $type {
            type Err = ();

            fn from_str(word: &str) -> Result<Self, ()> {
                match word { $($word => Ok(Self::$variant),)+ _ => Err(()) }
            }
        }
    };
}
pub(crate) use words;

words!(Intent { Blackhole = "blackhole", Flowspec = "flowspec", Scrubbing = "scrubbing" });
words!(MitigationStatus {
    Pending = "pending", Active = "active", Withdrawing = "withdrawing", Withdrawn = "withdrawn", Expired = "expired",
    Failed = "failed",
});

impl MitigationStatus {
    /// Whether something is, or may be, announced.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Pending | Self::Active | Self::Withdrawing)
    }
}

/// A rule to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMitigation {
    pub target: IpNet,
    pub intent: Intent,
    pub adapter_id: i64,
    /// Seconds from its creation; 0: until it is withdrawn.
    pub ttl_secs: u32,
    pub reason: String,
}

impl NewMitigation {
    /// # Errors
    /// What is no address or prefix, a target that may never be announced, a lifetime beyond a year, a reason over 512
    /// characters.
    pub fn parse(
        target: &str,
        intent: Intent,
        adapter_id: i64,
        ttl_secs: u32,
        reason: String,
    ) -> Result<Self, Problem> {
        let mut check = Check::default();
        let prefix = parse_prefix(target);
        check.that(prefix.is_some(), "target_ip", || "must be an IPv4 or IPv6 address, or a CIDR prefix".to_owned());
        if let Some(why) = prefix.and_then(|p| guard::never(&p)) {
            check.that(false, "target_ip", || why);
        }
        check.that(ttl_secs <= MAX_TTL_SECS, "ttl", || format!("must be 0 to {MAX_TTL_SECS} s, got {ttl_secs}"));
        check.line("reason", &reason, 0, 512);
        check.done()?;
        let target = prefix.ok_or_else(|| Problem::field("target_ip", "must be an address"))?;
        Ok(Self { target, intent, adapter_id, ttl_secs, reason })
    }
}

/// A rule as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct MitigationRule {
    pub id: i64,
    /// What receivers know the rule by: part of the idempotency key.
    pub uuid: uuid::Uuid,
    /// Address, or prefix in CIDR notation.
    #[serde(serialize_with = "serialize_prefix")]
    #[schema(value_type = String)]
    pub target_ip: IpNet,
    pub intent_type: Intent,
    pub adapter_id: i64,
    /// The adapter's name when the rule was made.
    pub adapter_name: String,
    /// Seconds from its creation; 0: until it is withdrawn.
    pub ttl: u32,
    pub reason: String,
    pub status: MitigationStatus,
    /// Tries of what is going on now: to announce, or to withdraw.
    pub attempts: u32,
    /// Why the last try failed, or why the rule ended; empty if nothing is to be said.
    pub last_error: String,
    /// When the next try is due; only while pending or withdrawing.
    pub next_attempt_at: Option<Timestamp>,
    pub created_at: Timestamp,
    /// When the adapter confirmed the announcement.
    pub announced_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, ttl: u32, reason: &str, expected: Result<&str, &str>) {
        let got = NewMitigation::parse(target, Intent::Blackhole, 1, ttl, reason.to_owned());
        match (got, expected) {
            (Ok(new), Ok(text)) => assert_eq!(new.target.to_string(), text, "{target}"),
            (Err(Problem::Invalid(fields)), Err(field)) => assert_eq!(fields[0].field, field, "{target} {ttl}"),
            (got, _) => panic!("{target}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn what_can_be_announced_has_one_spelling_and_bounds() {
        check("203.0.113.5", 0, "", Ok("203.0.113.5/32"));
        check("203.0.113.77/24", MAX_TTL_SECS, "flood", Ok("203.0.113.0/24"));
        check("2001:DB8::1", 60, "", Ok("2001:db8::1/128"));
        for junk in ["", "host", "203.0.113.5/33", "0.0.0.0/0", "::/0", "203.0.113.5\0"] {
            check(junk, 0, "", Err("target_ip"));
        }
        check("203.0.113.5", MAX_TTL_SECS + 1, "", Err("ttl"));
        check("203.0.113.5", 0, "two\nlines", Err("reason"));
        check("203.0.113.5", 0, &"x".repeat(513), Err("reason"));
    }
}
