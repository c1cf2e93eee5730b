//! What other machines are told to drop or to watch: entries, and how each kind of feed spells them.
//!
//! ```text
//! indicators that were imported ----------.            allowlisted, one's own: left out
//!                                          >-- by value --> confidence --> the 10,000 surest, in order of value
//! sources of ended incidents, not forged -'
//! ```
//! A feed drops traffic on machines that cannot ask back, so what is doubtful is left out: incidents that go on (the
//! judgement may change), forged sources, prefixes that hold one allowlisted address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ftagent_common::vocab::{AttackFamily, IncidentStatus};
use serde::Serialize;

use super::indicator::{check_confidence, is_own};
use super::problem::Check;
use super::{AllowlistEntry, Indicator, IndicatorKind, IndicatorValue, Problem, StoredIncident, Timestamp};

/// The most entries of a feed.
pub const MAX_ENTRIES: usize = 10_000;
/// The most sources of incidents that one feed looks at.
const MAX_SIGHTINGS: usize = 50_000;
/// The first sid of our rules is one more.
const SID_BASE: i64 = 9_000_000;
/// Who says so, where it was an incident.
const OURSELVES: &str = "ftagent";

/// How far back a feed goes and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedQuery {
    pub since: Timestamp,
    pub min_confidence: f64,
}

impl FeedQuery {
    /// By default 30 days and 0.5.
    ///
    /// # Errors
    /// Other than 1 to 90 days, a confidence of other than 0 to 1.
    pub fn new(lookback_days: Option<i64>, min_confidence: Option<f64>, now: Timestamp) -> Result<Self, Problem> {
        let days = lookback_days.unwrap_or(30);
        if !(1..=90).contains(&days) {
            return Err(Problem::parameter("lookback_days", format!("must be 1 to 90 days, got {days}")));
        }
        let min_confidence = check_confidence(min_confidence.unwrap_or(0.5))?;
        Ok(Self { since: now.plus_secs(-days * 86_400), min_confidence })
    }
}

/// One line of a feed.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedEntry {
    pub value: IndicatorValue,
    /// 0 to 1.
    pub confidence: f64,
    /// The surest one of those who say so.
    pub source: String,
    pub description: String,
}

/// Attacking addresses of incidents.
#[derive(Default)]
pub struct Sightings(BTreeMap<IpAddr, Sighting>);

struct Sighting {
    confidence: f64,
    family: AttackFamily,
    incidents: u32,
}

impl Sightings {
    /// Takes the top sources of an incident, unless it goes on, was none, or its sources are forged.
    pub fn observe(&mut self, incident: &StoredIncident) {
        let report = &incident.report;
        if incident.status() != IncidentStatus::Resolved || report.spoofed {
            return;
        }
        for source in &report.top_sources {
            let ip = source.ip.to_canonical();
            // An attacked address as its own attacker is forged, whatever else was judged.
            if report.target.contains(&ip) || (self.0.len() >= MAX_SIGHTINGS && !self.0.contains_key(&ip)) {
                continue;
            }
            let (confidence, family) = (report.confidence, report.family);
            let seen = self.0.entry(ip).or_insert(Sighting { confidence, family, incidents: 0 });
            seen.incidents += 1;
            if confidence > seen.confidence {
                (seen.confidence, seen.family) = (confidence, family);
            }
        }
    }
}

/// Puts a feed together. `indicators` are those that are in force, the surest first.
pub fn assemble_feed(
    indicators: Vec<Indicator>,
    sightings: &Sightings,
    allowlist: &[AllowlistEntry],
    query: FeedQuery,
) -> Vec<FeedEntry> {
    let mut entries: BTreeMap<IndicatorValue, (FeedEntry, f64)> = BTreeMap::new();
    let sightings = sightings.0.iter().map(|(ip, seen)| FeedEntry {
        value: IndicatorValue::from(*ip),
        confidence: seen.confidence,
        source: OURSELVES.to_owned(),
        description: format!("{}, {} incidents", seen.family, seen.incidents),
    });
    let imported = indicators.into_iter().map(|i| FeedEntry {
        value: i.value,
        confidence: i.confidence,
        source: i.source,
        description: i.description,
    });
    for entry in sightings.chain(imported) {
        match entries.get_mut(&entry.value) {
            // Two who say the same independently of each other are surer than either.
            Some((kept, strongest)) => {
                let confidence = 1.0 - (1.0 - kept.confidence) * (1.0 - entry.confidence);
                if entry.confidence > *strongest {
                    *strongest = entry.confidence;
                    *kept = entry;
                }
                kept.confidence = confidence;
            }
            None => {
                let strongest = entry.confidence;
                entries.insert(entry.value.clone(), (entry, strongest));
            }
        }
    }
    let fits = |entry: &FeedEntry| {
        entry.confidence >= query.min_confidence
            && entry.value.network().is_none_or(|network| !is_own(network))
            && entry.value.allowed_by(allowlist).is_none()
    };
    let mut fitting: Vec<_> = entries.into_values().map(|(entry, _)| entry).filter(fits).collect();
    if fitting.len() > MAX_ENTRIES {
        fitting.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then_with(|| a.value.cmp(&b.value)));
        fitting.truncate(MAX_ENTRIES);
        fitting.sort_by(|a, b| a.value.cmp(&b.value));
    }
    fitting
}

/// How a feed is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedFormat {
    /// Rules that drop; addresses and prefixes.
    Suricata,
    /// A file of the Intel framework; addresses, prefixes and names.
    Zeek,
    /// An address or prefix per line.
    Plain,
}

impl FeedFormat {
    /// Whether the format has a place for such values.
    pub const fn holds(self, kind: IndicatorKind) -> bool {
        match self {
            Self::Zeek => true,
            Self::Suricata | Self::Plain => !matches!(kind, IndicatorKind::Domain),
        }
    }

    /// What comes before the first entry.
    pub const fn head(self) -> &'static str {
        match self {
            Self::Zeek => "#fields\tindicator\tindicator_type\tmeta.source\tmeta.desc\n",
            Self::Suricata | Self::Plain => "",
        }
    }

    /// Adds the line of an entry; `number` is what the store gave its value, used by [`Self::Suricata`] alone.
    pub fn write(self, out: &mut String, entry: &FeedEntry, number: i64) {
        use std::fmt::Write as _;
        let value = &entry.value;
        let line = match self {
            // The text depends on value and number alone, so that a rule that is there need never grow its revision.
            Self::Suricata => format!(
                "drop ip {value} any -> $HOME_NET any (msg:\"ftagent DDoS source\"; classtype:attempted-dos; \
                 sid:{}; rev:1;)",
                SID_BASE + number
            ),
            Self::Zeek => {
                let kind = match value.kind() {
                    IndicatorKind::Address => "Intel::ADDR",
                    IndicatorKind::Prefix => "Intel::SUBNET",
                    IndicatorKind::Domain => "Intel::DOMAIN",
                };
                format!("{value}\t{kind}\t{}\t{}", zeek_field(&entry.source), zeek_field(&entry.description))
            }
            Self::Plain => value.to_string(),
        };
        writeln!(out, "{line}").expect("a String takes every write");
    }
}

/// A field of Zeek's ASCII files: what would end it, or mean that there is none, is written as `\xNN`.
fn zeek_field(text: &str) -> String {
    match text {
        "" => return "-".to_owned(),
        "-" => return "\\x2d".to_owned(),
        "(empty)" => return "\\x28empty)".to_owned(),
        _ => {}
    }
    let mut field = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\\' || c.is_ascii_control() {
            use std::fmt::Write as _;
            write!(field, "\\x{:02x}", u32::from(c)).expect("a String takes every write");
        } else {
            field.push(c);
        }
    }
    field
}

/// A feed token without its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FeedToken {
    pub id: i64,
    pub name: String,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// A feed token to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFeedToken {
    pub name: String,
    pub expires_at: Option<Timestamp>,
}

impl NewFeedToken {
    /// # Errors
    /// A name of other than 1 to 128 characters, an end in the past.
    pub fn check(self, now: Timestamp) -> Result<Self, Problem> {
        let mut check = Check::default();
        check.line("name", &self.name, 1, 128);
        check.that(self.expires_at.is_none_or(|at| at > now), "expires_at", || "must be in the future".to_owned());
        check.done().map(|()| self)
    }
}

#[cfg(test)]
mod tests;
