//! The request that a webhook gets.
//!
//! ```text
//! X-Ftagent-Delivery: <uuid>               the same with every try: drop what you have seen
//! X-Ftagent-Event: attack_open
//! X-Ftagent-Timestamp: <seconds>           of this try: refuse what is too old
//! X-Ftagent-Signature: v1=<hex>            HMAC-SHA256 over timestamp, "." and body
//! X-Flowtriq-Signature: sha256=<hex>       HMAC-SHA256 over the body alone
//! ```

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use ring::hmac;
use uuid::Uuid;

use super::Outgoing;
use crate::domain::{Secrets, Setting, Settings, Timestamp, hex, parse_url};

/// The header with the signature over timestamp and body.
pub const SIGNATURE: &str = "x-ftagent-signature";

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
    let stamp = now.secs().to_string();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signed = |parts: &[&[u8]]| {
        let mut context = hmac::Context::with_key(&key);
        parts.iter().for_each(|part| context.update(part));
        hex(context.sign().as_ref())
    };
    let ours = [
        ("x-ftagent-delivery", delivery.to_string()),
        ("x-ftagent-event", event.to_owned()),
        (SIGNATURE, format!("v1={}", signed(&[stamp.as_bytes(), b".", body.as_bytes()]))),
        ("x-flowtriq-signature", format!("sha256={}", signed(&[body.as_bytes()]))),
        ("x-ftagent-timestamp", stamp),
    ];
    for (name, value) in ours {
        let value = HeaderValue::try_from(value).map_err(|_| "a header's value is none".to_owned())?;
        headers.insert(HeaderName::from_static(name), value);
    }
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
    fn the_signatures_are_over_timestamp_and_body() {
        let settings = BTreeMap::from([("url".to_owned(), Setting::Text("https://example.net/a?b=c".to_owned()))]);
        let mut secrets = Secrets::default();
        secrets.set("secret", "sesame".to_owned());
        secrets.set("header.X-Api-Key", "open".to_owned());
        let now = Timestamp::from_secs(1_778_596_200);
        let sent = webhook(&settings, &secrets, Uuid::nil(), "test", r#"{"a":1}"#, false, now).expect("complete");
        let header = |name: &str| sent.headers[name].to_str().expect("text");
        // Made with `printf '%s' '1778596200.{"a":1}' | openssl dgst -sha256 -hmac sesame`, and without the time.
        assert_eq!(header(SIGNATURE), "v1=094f08f94f44bd067ab4dd8a3e348282ba91b350e7d067346bd89ca952df764e");
        assert_eq!(
            header("x-flowtriq-signature"),
            "sha256=8e6033a502f8c683d8d9a9cb5ac42d00fa5a4e9ab83cb4ce403eba9e11b0bc24"
        );
        assert_eq!(header("x-ftagent-delivery"), Uuid::nil().to_string());
        assert_eq!((header("x-ftagent-timestamp"), header("x-api-key")), ("1778596200", "open"));
        assert_eq!(sent.timeout, Duration::from_secs(10));
        assert!(!format!("{sent:?}").contains("open\""));
    }
}
