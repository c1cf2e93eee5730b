//! How a receiver knows that a message is ours, and new.
//!
//! ```text
//! X-Flowtriq-Signature: sha256=<hex>       HMAC-SHA256 over the body alone
//! X-Ftagent-Timestamp: <seconds>           of this try: refuse what is too old
//! X-Ftagent-Signature: v1=<hex>            HMAC-SHA256 over timestamp, "." and body
//! ```

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use ring::hmac;

use crate::domain::{Timestamp, hex};

/// The header with the signature over timestamp and body.
pub const SIGNATURE: HeaderName = HeaderName::from_static("x-ftagent-signature");
const BODY_SIGNATURE: HeaderName = HeaderName::from_static("x-flowtriq-signature");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-ftagent-timestamp");

/// Adds both signatures and their time to `headers`.
pub fn sign(headers: &mut HeaderMap, secret: &[u8], body: &[u8], now: Timestamp) {
    let stamp = now.secs();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signed = |version: &str, parts: &[&[u8]]| {
        let mut context = hmac::Context::with_key(&key);
        parts.iter().for_each(|part| context.update(part));
        let text = format!("{version}={}", hex(context.sign().as_ref()));
        HeaderValue::try_from(text).expect("a word and hex characters")
    };
    headers.insert(BODY_SIGNATURE, signed("sha256", &[body]));
    headers.insert(SIGNATURE, signed("v1", &[stamp.to_string().as_bytes(), b".", body]));
    headers.insert(TIMESTAMP, HeaderValue::from(stamp));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signatures_are_those_that_others_compute() {
        let mut headers = HeaderMap::new();
        sign(&mut headers, b"sesame", br#"{"a":1}"#, Timestamp::from_secs(1_778_596_200));
        // Made with `printf '%s' '1778596200.{"a":1}' | openssl dgst -sha256 -hmac sesame`, and without the time.
        let timestamped = "v1=094f08f94f44bd067ab4dd8a3e348282ba91b350e7d067346bd89ca952df764e";
        let bare = "sha256=8e6033a502f8c683d8d9a9cb5ac42d00fa5a4e9ab83cb4ce403eba9e11b0bc24";
        assert_eq!(headers[SIGNATURE], timestamped);
        assert_eq!(headers["x-flowtriq-signature"], bare);
        assert_eq!(headers["x-ftagent-timestamp"], "1778596200");
        assert_eq!(headers.len(), 3);
    }
}
