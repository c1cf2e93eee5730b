//! Destinations: notification channels and integrations, which get a message when an incident changes.

mod headers;
mod kinds;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ftagent_common::vocab::Severity;
use serde::{Deserialize, Serialize};

use super::address::parse_url;
use super::circuit::{Circuit, CircuitState};
use super::problem::Check;
use super::{Problem, Timestamp};
use headers::HEADER_PREFIX;
pub use kinds::DestinationKind;
use kinds::Form;

/// The most destinations of a workspace, channels and integrations each.
pub const MAX_DESTINATIONS: i64 = 100;
/// Longest secret, bytes.
const MAX_SECRET: usize = 2_048;

/// What a destination is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// People read it.
    Channel,
    /// Programs read it.
    Integration,
}

impl Duty {
    /// The spelling in the database and in audit records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Integration => "integration",
        }
    }
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Setting {
    Flag(bool),
    Number(i64),
    Text(String),
    List(Vec<String>),
}

/// Settings by name.
pub type Settings = BTreeMap<String, Setting>;

/// Values that are never shown again, by name; those of headers have names that begin with `header.`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets(BTreeMap<String, String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Secrets {
    pub fn names(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(String::as_str)
    }

    pub fn set(&mut self, name: &str, value: String) {
        self.0.insert(name.to_owned(), value);
    }

    /// Takes `given`, in which none takes away what is there.
    pub fn take(&mut self, given: BTreeMap<String, Option<String>>) {
        for (name, value) in given {
            match value {
                Some(value) => self.0.insert(name, value),
                None => self.0.remove(&name),
            };
        }
    }

    /// Replaces all headers.
    pub fn replace_headers(&mut self, headers: BTreeMap<String, String>) {
        self.0.retain(|name, _| !name.starts_with(HEADER_PREFIX));
        self.0.extend(headers.into_iter().map(|(name, value)| (format!("{HEADER_PREFIX}{name}"), value)));
    }

    /// Headers with their values.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, value)| Some((name.strip_prefix(HEADER_PREFIX)?, value.as_str())))
    }
}

/// A destination to be made, or as it would be after a change.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDestination {
    pub kind: DestinationKind,
    pub name: String,
    pub enabled: bool,
    pub min_severity: Severity,
    pub settings: Settings,
    pub secrets: Secrets,
}

impl NewDestination {
    /// Checks everything and fills in what was left out.
    ///
    /// # Errors
    /// Names all fields that are wrong. `allow_private` says whether addresses that are not public may be sent to.
    pub fn check(mut self, duty: Duty, allow_private: bool) -> Result<Self, Problem> {
        let mut check = Check::default();
        check.line("name", &self.name, 1, 128);
        check.that(self.kind.duties().contains(&duty), "kind", || {
            format!("{} is no kind of {}", self.kind.as_str(), duty.as_str())
        });
        let fields = self.kind.fields();
        for name in self.settings.keys() {
            let known = fields.iter().any(|f| f.name == name && !f.form.is_secret());
            check.that(known, &format!("settings.{}", shown(name)), || "is no setting of this kind".to_owned());
        }
        for name in self.secrets.0.keys().filter(|n| !n.starts_with(HEADER_PREFIX)) {
            let known = fields.iter().any(|f| f.name == name && f.form.is_secret());
            check.that(known, &format!("secrets.{}", shown(name)), || "is no secret of this kind".to_owned());
        }
        for field in fields {
            if field.form.is_secret() {
                let path = format!("secrets.{}", field.name);
                match self.secrets.value(field.name) {
                    Some(value) => check_secret(&mut check, &path, field.form, value, allow_private),
                    None => check.that(!field.required, &path, || "is required".to_owned()),
                }
                continue;
            }
            let path = format!("settings.{}", field.name);
            match (self.settings.get(field.name), field.form) {
                (Some(value), form) => check_setting(&mut check, &path, form, value, allow_private),
                (None, Form::Number(_, _, default)) => {
                    self.settings.insert(field.name.to_owned(), Setting::Number(default));
                }
                (None, Form::Switch(default)) => {
                    self.settings.insert(field.name.to_owned(), Setting::Flag(default));
                }
                (None, _) => check.that(!field.required, &path, || "is required".to_owned()),
            }
        }
        headers::check(&mut check, self.kind, &self.secrets);
        check.done().map(|()| self)
    }
}

/// A caller's name, fit for an answer.
fn shown(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn check_secret(check: &mut Check, path: &str, form: Form, value: &str, allow_private: bool) {
    check.that((1..=MAX_SECRET).contains(&value.len()), path, || format!("must be 1 to {MAX_SECRET} bytes"));
    check.that(!value.chars().any(char::is_control), path, || "must not contain control characters".to_owned());
    if matches!(form, Form::SecretUrl) {
        check_url(check, path, value, allow_private);
    }
}

fn check_url(check: &mut Check, path: &str, value: &str, allow_private: bool) {
    if let Err(message) = parse_url(value, allow_private) {
        check.that(false, path, || message);
    }
}

fn check_setting(check: &mut Check, path: &str, form: Form, value: &Setting, allow_private: bool) {
    match (form, value) {
        (Form::Url, Setting::Text(text)) => check_url(check, path, text, allow_private),
        (Form::Line(most), Setting::Text(text)) => check.line(path, text, 1, most),
        (Form::Word(words), Setting::Text(text)) => {
            check.that(words.contains(&text.as_str()), path, || format!("must be one of {}", words.join(", ")));
        }
        (Form::Number(from, to, _), Setting::Number(number)) => {
            check.that((from..=to).contains(number), path, || format!("must be {from} to {to}, got {number}"));
        }
        (Form::List(most), Setting::List(lines)) => {
            check.that((1..=most).contains(&lines.len()), path, || format!("must have 1 to {most} entries"));
            for (index, line) in lines.iter().take(most).enumerate() {
                check.line(&format!("{path}[{index}]"), line, 1, 320);
            }
        }
        (Form::Switch(_), Setting::Flag(_)) => {}
        (Form::Switch(_), _) => check.that(false, path, || "must be true or false".to_owned()),
        (Form::Number(..), _) => check.that(false, path, || "must be a number".to_owned()),
        (Form::List(_), _) => check.that(false, path, || "must be a list of texts".to_owned()),
        _ => check.that(false, path, || "must be text".to_owned()),
    }
}

/// What to change of a destination; absent fields stay.
#[derive(Clone, Debug, Default)]
pub struct DestinationPatch {
    pub name: Option<String>,
    pub enabled: Option<bool>,
    pub min_severity: Option<Severity>,
    /// All of them.
    pub settings: Option<Settings>,
    /// Those that change; none takes one away.
    pub secrets: BTreeMap<String, Option<String>>,
    /// All of them.
    pub headers: Option<BTreeMap<String, String>>,
}

impl DestinationPatch {
    /// The destination as it would be afterwards, not yet checked.
    pub fn applied_to(self, kept: &Destination, mut secrets: Secrets) -> NewDestination {
        secrets.take(self.secrets);
        if let Some(headers) = self.headers {
            secrets.replace_headers(headers);
        }
        NewDestination {
            kind: kept.kind,
            name: self.name.unwrap_or_else(|| kept.name.clone()),
            enabled: self.enabled.unwrap_or(kept.enabled),
            min_severity: self.min_severity.unwrap_or(kept.min_severity),
            settings: self.settings.unwrap_or_else(|| kept.settings.clone()),
            secrets,
        }
    }
}

/// Whether messages get to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DestinationStatus {
    /// Nothing is written for it.
    Disabled,
    /// It is kept, but this version cannot send to destinations of its kind.
    NotConnected,
    /// Nothing was sent to it yet.
    Configured,
    /// The last message got there.
    Connected,
    /// The last message did not get there.
    Failing,
}

/// A destination as it is kept, without its secrets.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Destination {
    pub id: i64,
    pub kind: DestinationKind,
    pub name: String,
    pub enabled: bool,
    /// Incidents of at least this severity are told, and what becomes of an incident that was told.
    pub min_severity: Severity,
    pub settings: Settings,
    /// The secrets of this kind, and whether they are set.
    pub has_secrets: BTreeMap<String, bool>,
    /// Names of headers that are sent; their values are not shown.
    pub headers: Vec<String>,
    pub status: DestinationStatus,
    pub circuit: CircuitState,
    /// Failures in a row.
    pub failures: u32,
    /// Until when nothing is sent, because it failed or asked for it.
    pub resting_until: Option<Timestamp>,
    /// Deliveries that wait.
    pub pending: u64,
    pub delivered_at: Option<Timestamp>,
    pub failed_at: Option<Timestamp>,
    /// Why the last delivery that failed did.
    pub last_error: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What is known of how deliveries to a destination went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub circuit: Circuit,
    /// The destination asked to be left alone until then.
    pub paused_until: Option<Timestamp>,
    pub delivered_at: Option<Timestamp>,
    pub failed_at: Option<Timestamp>,
}

impl Health {
    pub fn status(&self, kind: DestinationKind, enabled: bool) -> DestinationStatus {
        if !kind.is_connected() && !kind.is_local() {
            return DestinationStatus::NotConnected;
        }
        if !enabled {
            return DestinationStatus::Disabled;
        }
        match (self.delivered_at, self.failed_at) {
            _ if self.circuit.failures > 0 => DestinationStatus::Failing,
            (None, None) => DestinationStatus::Configured,
            (delivered, failed) if delivered >= failed => DestinationStatus::Connected,
            _ => DestinationStatus::Failing,
        }
    }

    /// Until when nothing is sent, if it is not over.
    pub fn resting_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.circuit.open_until.max(self.paused_until).filter(|until| *until > now)
    }
}

/// The secrets of a kind, and whether they are among `names`.
pub fn secrets_set(kind: DestinationKind, names: &BTreeSet<String>) -> BTreeMap<String, bool> {
    let secrets = kind.fields().iter().filter(|f| f.form.is_secret());
    secrets.map(|f| (f.name.to_owned(), names.contains(f.name))).collect()
}

#[cfg(test)]
mod tests;
