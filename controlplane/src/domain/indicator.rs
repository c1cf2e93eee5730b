//! Threat intelligence that operators import: addresses, prefixes and names that somebody holds to be hostile.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::allowlist::{parse_prefix, prefix_text};
use super::problem::Check;
use super::{AllowlistEntry, Field, Problem, Timestamp};

/// The most indicators of one call.
const MAX_IMPORT: usize = 100;
/// How long an indicator holds unless its source says otherwise: 30 days.
const DEFAULT_SECS: i64 = 30 * 86_400;
/// The longest that one may hold: a year. Addresses change hands.
const MAX_SECS: i64 = 365 * 86_400;
/// How far ahead a source's clock may be: a day.
const MAX_SKEW_SECS: i64 = 86_400;
/// The shortest prefixes: the largest blocks that are given to one holder.
const SHORTEST_V4: u8 = 8;
const SHORTEST_V6: u8 = 19;

/// What an indicator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum IndicatorKind {
    /// One IPv4 or IPv6 address.
    Address,
    /// A network in CIDR notation.
    Prefix,
    /// A domain name.
    Domain,
}

impl IndicatorKind {
    /// The spelling on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Prefix => "prefix",
            Self::Domain => "domain",
        }
    }
}

/// What is held to be hostile, in its one spelling. Networks come before names, IPv4 before IPv6.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IndicatorValue {
    Network(IpNet),
    Domain(String),
}

impl IndicatorValue {
    /// Reads an address, a prefix in CIDR notation or a domain name; host bits, letter case and a last dot do not
    /// count.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(network) = parse_prefix(text) {
            return Some(Self::Network(network));
        }
        let name = text.trim();
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        is_domain(&name).then_some(Self::Domain(name))
    }

    pub fn kind(&self) -> IndicatorKind {
        match self {
            Self::Network(IpNet::V4(net)) if net.prefix_len() == 32 => IndicatorKind::Address,
            Self::Network(IpNet::V6(net)) if net.prefix_len() == 128 => IndicatorKind::Address,
            Self::Network(_) => IndicatorKind::Prefix,
            Self::Domain(_) => IndicatorKind::Domain,
        }
    }

    /// The network, if it is one.
    pub const fn network(&self) -> Option<&IpNet> {
        match self {
            Self::Network(network) => Some(network),
            Self::Domain(_) => None,
        }
    }

    /// The entry that forbids to block this, or a part of it.
    pub fn allowed_by<'a>(&self, allowlist: &'a [AllowlistEntry]) -> Option<&'a AllowlistEntry> {
        let network = self.network()?;
        allowlist.iter().find(|entry| entry.overlaps(network))
    }
}

impl From<IpAddr> for IndicatorValue {
    fn from(address: IpAddr) -> Self {
        Self::Network(address.to_canonical().into())
    }
}

impl fmt::Display for IndicatorValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => f.write_str(&prefix_text(network)),
            Self::Domain(name) => f.write_str(name),
        }
    }
}

impl Serialize for IndicatorValue {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Letters, digits and hyphens in labels (RFC 1123 section 2.1), two labels at least; the last one is no number, or it
/// would be an address that is misspelt.
fn is_domain(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.contains('.') && name.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// Networks whose addresses are never a stranger's (RFC 6890): a feed that names them cuts off one's own.
const OWN: [&str; 14] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/3",
    "::/127",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

/// Whether any address in `network` is private, local, multicast or unspecified.
pub(super) fn is_own(network: &IpNet) -> bool {
    OWN.iter().any(|own| {
        let own: IpNet = own.parse().expect("a constant prefix");
        own.contains(network) || network.contains(&own)
    })
}

/// An indicator to be imported, as a caller gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct GivenIndicator {
    pub value: String,
    /// What the value must be, if the caller says so.
    pub kind: Option<IndicatorKind>,
    pub confidence: f64,
    pub source: String,
    pub description: String,
    pub first_seen: Option<Timestamp>,
    pub last_seen: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
}

/// An indicator that may be kept.
#[derive(Clone, Debug, PartialEq)]
pub struct NewIndicator {
    pub value: IndicatorValue,
    /// 0 to 1, two decimals.
    pub confidence: f64,
    pub source: String,
    pub description: String,
    pub first_seen: Timestamp,
    pub last_seen: Timestamp,
    pub expires_at: Timestamp,
}

/// Checks a call as a whole: all of it can be kept, or nothing.
///
/// # Errors
/// Other than 1 to 100 indicators; fields out of bounds, named by index, as `indicators[3].value`; the same value of the
/// same source twice.
pub fn check_import(given: Vec<GivenIndicator>, now: Timestamp) -> Result<Vec<NewIndicator>, Problem> {
    if !(1..=MAX_IMPORT).contains(&given.len()) {
        let message = format!("must be 1 to {MAX_IMPORT} indicators, got {}", given.len());
        return Err(Problem::field("indicators", message));
    }
    let mut problems = Vec::new();
    let mut taken: Vec<NewIndicator> = Vec::with_capacity(given.len());
    let mut places = Vec::with_capacity(given.len());
    for (index, indicator) in given.into_iter().enumerate() {
        match check_one(indicator, now) {
            Err(fields) => problems
                .extend(fields.into_iter().map(|f| Field::new(format!("indicators[{index}].{}", f.field), f.message))),
            Ok(new) => {
                let same = taken.iter().position(|t| t.value == new.value && t.source == new.source);
                if let Some(same) = same {
                    let message = format!("is indicators[{}] again", places[same]);
                    problems.push(Field::new(format!("indicators[{index}].value"), message));
                }
                taken.push(new);
                places.push(index);
            }
        }
    }
    if problems.is_empty() { Ok(taken) } else { Err(Problem::Invalid(problems)) }
}

fn check_one(given: GivenIndicator, now: Timestamp) -> Result<NewIndicator, Vec<Field>> {
    let mut check = Check::default();
    let value = IndicatorValue::parse(&given.value);
    check.that(value.is_some(), "value", || "must be an address, a CIDR prefix or a domain name".to_owned());
    if let Some(value) = &value {
        let kind = value.kind();
        check.that(given.kind.is_none_or(|k| k == kind), "kind", || format!("the value is of kind {}", kind.as_str()));
    }
    if let Some(network) = value.as_ref().and_then(IndicatorValue::network) {
        let shortest = if network.addr().is_ipv4() { SHORTEST_V4 } else { SHORTEST_V6 };
        check.that(network.prefix_len() >= shortest, "value", || {
            format!("is too broad: a prefix must have at least {shortest} bits")
        });
        check.that(!is_own(network), "value", || "is private, local, multicast or unspecified".to_owned());
    }
    check.that((0.0..=1.0).contains(&given.confidence), "confidence", || {
        format!("must be 0 to 1, got {}", given.confidence)
    });
    check.line("source", &given.source, 1, 64);
    check.line("description", &given.description, 0, 256);
    let last_seen = given.last_seen.unwrap_or(now);
    let first_seen = given.first_seen.unwrap_or(last_seen);
    check.that(last_seen <= now.plus_secs(MAX_SKEW_SECS), "last_seen", || "lies in the future".to_owned());
    check.that(first_seen <= last_seen, "first_seen", || "must not be after last_seen".to_owned());
    let expires_at = given.expires_at.unwrap_or_else(|| now.plus_secs(DEFAULT_SECS));
    check.that(expires_at > now, "expires_at", || "must be in the future".to_owned());
    check.that(expires_at <= now.plus_secs(MAX_SECS), "expires_at", || "must be within a year".to_owned());
    let (value, confidence) = match (check.done(), value) {
        (Ok(()), Some(value)) => (value, (given.confidence * 100.0).round() / 100.0),
        (Err(Problem::Invalid(fields)), _) => return Err(fields),
        (Err(other), _) => return Err(vec![Field::new("value", other.to_string())]),
        (Ok(()), None) => return Err(vec![Field::new("value", "cannot be read")]),
    };
    let (source, description) = (given.source, given.description);
    Ok(NewIndicator { value, confidence, source, description, first_seen, last_seen, expires_at })
}

/// Refuses a call that names what the allowlist holds.
///
/// # Errors
/// Each index with the entry that stands against it.
pub fn check_allowed(new: &[NewIndicator], allowlist: &[AllowlistEntry]) -> Result<(), Problem> {
    let refused = |(index, indicator): (usize, &NewIndicator)| {
        let entry = indicator.value.allowed_by(allowlist)?;
        let message = format!("is allowlisted by entry {} ({})", entry.id, prefix_text(&entry.ip_address));
        Some(Field::new(format!("indicators[{index}].value"), message))
    };
    let refused: Vec<_> = new.iter().enumerate().filter_map(refused).collect();
    if refused.is_empty() { Ok(()) } else { Err(Problem::Invalid(refused)) }
}

/// An indicator as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Indicator {
    pub id: i64,
    pub kind: IndicatorKind,
    #[schema(value_type = String)]
    pub value: IndicatorValue,
    /// 0 to 1.
    pub confidence: f64,
    /// Who says so.
    pub source: String,
    pub description: String,
    /// The earliest that any import said.
    pub first_seen: Timestamp,
    /// The latest that any import said.
    pub last_seen: Timestamp,
    pub expires_at: Timestamp,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Which indicators are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IndicatorFilter {
    pub kind: Option<IndicatorKind>,
    /// Exactly this source.
    pub source: Option<String>,
    /// Exactly this value.
    pub value: Option<IndicatorValue>,
    pub min_confidence: Option<f64>,
}

/// A confidence as a parameter.
///
/// # Errors
/// Other than 0 to 1; what is no number is outside too.
pub fn check_confidence(value: f64) -> Result<f64, Problem> {
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(Problem::parameter("min_confidence", format!("must be 0 to 1, got {value}")))
}

#[cfg(test)]
mod tests;
