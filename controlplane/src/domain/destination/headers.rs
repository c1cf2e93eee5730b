//! Headers that an operator adds to the messages of a webhook.

use super::{DestinationKind, Secrets};
use crate::domain::problem::Check;

/// What the names of headers begin with among the secrets.
pub(super) const HEADER_PREFIX: &str = "header.";
/// The most headers.
const MAX_HEADERS: usize = 16;
/// Longest name, bytes.
const MAX_NAME: usize = 64;
/// Longest value, bytes.
const MAX_VALUE: usize = 1_024;

/// Headers that are ours or HTTP's own.
const RESERVED: [&str; 14] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
];
const RESERVED_PREFIXES: [&str; 4] = ["proxy-", "x-ftagent-", "x-flowtriq-", ":"];

pub(super) fn check(check: &mut Check, kind: DestinationKind, secrets: &Secrets) {
    let count = secrets.headers().count();
    check.that(count == 0 || kind == DestinationKind::Webhook, "headers", || "are for webhooks only".to_owned());
    check.that(count <= MAX_HEADERS, "headers", || format!("must be at most {MAX_HEADERS}"));
    let mut seen = std::collections::BTreeSet::new();
    for (name, value) in secrets.headers().take(MAX_HEADERS) {
        let path = format!("headers.{}", super::shown(name));
        let lower = name.to_ascii_lowercase();
        let token = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        check.that((1..=MAX_NAME).contains(&name.len()) && token, &path, || {
            format!("must be a name of 1 to {MAX_NAME} letters, digits and - . _")
        });
        let reserved =
            RESERVED.contains(&lower.as_str()) || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix));
        check.that(!reserved, &path, || "is set by the server".to_owned());
        check.that(seen.insert(lower), &path, || "is there twice".to_owned());
        let visible = value.bytes().all(|b| (b' '..=b'~').contains(&b)) && value.trim() == value;
        check.that((1..=MAX_VALUE).contains(&value.len()) && visible, &path, || {
            format!("must have a value of 1 to {MAX_VALUE} visible ASCII characters")
        });
    }
}
