//! Why a request that could be read is refused.

/// One field that is wrong, by its path in the body, and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Field {
    /// Such as `thresholds.tier1_bps`.
    pub field: String,
    pub message: String,
}

impl Field {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// A refusal by the rules of the domain; `http/error.rs` gives each its status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The body was understood, but values are out of bounds.
    #[error("{}", summary(.0))]
    Invalid(Vec<Field>),
    /// A parameter of the path or the query is out of bounds.
    #[error("{field}: {message}")]
    Parameter { field: String, message: String },
    /// Names the thing that is not there, such as `rule`.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// Names the thing and what it shares with another.
    #[error("{0} already exists")]
    AlreadyExists(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("the workspace has no active subscription: reads go on, writes do not")]
    SubscriptionRequired,
    /// Names what there were too many of.
    #[error("too many {what}: wait")]
    TooMany {
        what: &'static str,
        /// Seconds until one more is allowed.
        wait_secs: u64,
    },
}

impl Problem {
    /// One field out of bounds.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(vec![Field::new(field, message)])
    }

    /// One parameter of the path or the query out of bounds.
    pub fn parameter(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Parameter { field: field.into(), message: message.into() }
    }
}

fn summary(fields: &[Field]) -> String {
    fields.iter().map(|f| format!("{}: {}", f.field, f.message)).collect::<Vec<_>>().join("; ")
}

/// Collects the fields that are wrong, so that one answer names them all.
#[derive(Default)]
pub(crate) struct Check(Vec<Field>);

impl Check {
    /// Notes `message` for `field` unless `holds`.
    pub(crate) fn that(&mut self, holds: bool, field: &str, message: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Field::new(field, message()));
        }
    }

    /// Text of `min` to `max` characters, none of them a control character: what is shown in lists and logs.
    pub(crate) fn line(&mut self, field: &str, text: &str, min: usize, max: usize) {
        let length = text.chars().count();
        self.that((min..=max).contains(&length), field, || format!("must be {min} to {max} characters, got {length}"));
        self.that(!text.chars().any(char::is_control), field, || "must not contain control characters".to_owned());
        self.that(min == 0 || !text.trim().is_empty(), field, || "must not be blank".to_owned());
    }

    /// The collected refusal, if any.
    pub(crate) fn done(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::Invalid(self.0)) }
    }
}
