//! The request that a webhook gets.
//!
//! ```text
//! X-Ftagent-Delivery: <uuid>               the same with every try: drop what you have seen
//! X-Ftagent-Event: attack_open
//! ```
//! and the signatures of `signature`.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use uuid::Uuid;

use super::{Outgoing, sign};
use crate::domain::{Secrets, Setting, Settings, Timestamp, parse_url};

/// The request of one try at `now`.
///
/// # Errors
/// The settings or secrets are not those of a webhook; the message holds none of them.
pub fn webhook(
    settings: &Settings,
    secrets: &Secrets,
    delivery: Uuid,
    event: &str,
    body: &str,
    allow_private: bool,
    now: Timestamp,
) -> Result<Outgoing, String> {
    let Some(Setting::Text(url)) = settings.get("url") else { return Err("it has no url".to_owned()) };
    let secret = secrets.value("secret").ok_or("it has no secret")?;
    let timeout = match settings.get("timeout_secs") {
        Some(Setting::Number(secs @ 1..=30)) => Duration::from_secs(secs.unsigned_abs()),
        _ => Duration::from_secs(10),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in secrets.headers() {
        let name: HeaderName = name.parse().map_err(|_| "a header's name is none".to_owned())?;
        let mut value: HeaderValue = value.parse().map_err(|_| "a header's value is none".to_owned())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    for (name, value) in [("x-ftagent-delivery", delivery.to_string()), ("x-ftagent-event", event.to_owned())] {
        let value = HeaderValue::try_from(value).map_err(|_| "a header's value is none".to_owned())?;
        headers.insert(HeaderName::from_static(name), value);
    }
    sign(&mut headers, secret.as_bytes(), body.as_bytes(), now);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ftagent/", env!("CARGO_PKG_VERSION"))));
    Ok(Outgoing {
        url: parse_url(url, allow_private)?,
        headers,
        body: Bytes::copy_from_slice(body.as_bytes()),
        timeout,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_try_is_signed_and_has_the_headers_that_were_given() {
        let settings = BTreeMap::from([("url".to_owned(), Setting::Text("https://example.net/a?b=c".to_owned()))]);
        let mut secrets = Secrets::default();
        secrets.set("secret", "sesame".to_owned());
        secrets.set("header.X-Api-Key", "open".to_owned());
        let now = Timestamp::from_secs(1_778_596_200);
        let sent = webhook(&settings, &secrets, Uuid::nil(), "test", r#"{"a":1}"#, false, now).expect("complete");
        let header = |name: &str| sent.headers[name].to_str().expect("text");
        let signed = "v1=094f08f94f44bd067ab4dd8a3e348282ba91b350e7d067346bd89ca952df764e";
        assert_eq!(header("x-ftagent-signature"), signed);
        assert_eq!(header("x-ftagent-delivery"), Uuid::nil().to_string());
        assert_eq!((header("x-ftagent-timestamp"), header("x-api-key")), ("1778596200", "open"));
        assert_eq!(sent.timeout, Duration::from_secs(10));
        assert!(!format!("{sent:?}").contains("open\""));
    }
}
