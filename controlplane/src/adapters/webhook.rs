//! The webhook adapter: signed JSON to a receiver of the operator's own.
//!
//! ```text
//! POST <endpoint>
//! Content-Type: application/json
//! Idempotency-Key: <rule uuid>:announce           the same for every try of one action of one rule
//! X-Flowtriq-Timestamp: 1778596200                seconds since the Unix epoch, when it was sent
//! X-Flowtriq-Signature-Timestamped: sha256=<hex>  HMAC-SHA256(auth_token, timestamp "." body); absent without a token
//!
//! {"version":1,"action":"announce",…}
//! ```
//! 2xx is done. 404 and 410 of a withdrawal are too: what is to go is gone. 408, 425, 429 and 5xx are tried again, as
//! is silence; anything else, redirects among it, is a refusal.

use async_trait::async_trait;
use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use ring::hmac;
use serde::Serialize;

use super::outbound::{Answer, SendError};
use super::{Adapter, Announcement, Outbound, Settings, Tested};
use crate::domain::{Intent, Outcome, Timestamp, hex};

const TIMESTAMP: HeaderName = HeaderName::from_static("x-flowtriq-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("x-flowtriq-signature-timestamped");
const IDEMPOTENCY: HeaderName = HeaderName::from_static("idempotency-key");

/// The body; every field is always there.
#[derive(Serialize)]
struct Body<'a> {
    version: u32,
    action: &'static str,
    rule_id: Option<i64>,
    rule_uuid: Option<uuid::Uuid>,
    adapter_id: i64,
    adapter_name: &'a str,
    /// In CIDR notation.
    target: Option<String>,
    intent: Option<Intent>,
    /// Seconds; 0: until it is withdrawn.
    ttl: Option<u32>,
    expires_at: Option<Timestamp>,
    reason: &'a str,
    asn: Option<u32>,
    communities: &'a [String],
    next_hop: Option<std::net::IpAddr>,
    sent_at: Timestamp,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Announce,
    Withdraw,
    Test,
}

impl Action {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Announce => "announce",
            Self::Withdraw => "withdraw",
            Self::Test => "test",
        }
    }
}

pub(super) struct Webhook {
    settings: Settings,
    outbound: Outbound,
}

/// What a request is made of, ready to be sent.
struct Prepared {
    headers: HeaderMap,
    body: Bytes,
}

impl Webhook {
    pub(super) const fn new(settings: Settings, outbound: Outbound) -> Self {
        Self { settings, outbound }
    }

    fn prepare(&self, action: Action, announcement: Option<&Announcement>, now: Timestamp) -> Prepared {
        let Settings { id, name, auth_token, config, .. } = &self.settings;
        let body = Body {
            version: 1,
            action: action.as_str(),
            rule_id: announcement.map(|a| a.rule_id),
            rule_uuid: announcement.map(|a| a.rule_uuid),
            adapter_id: *id,
            adapter_name: name,
            target: announcement.map(|a| a.target.to_string()),
            intent: announcement.map(|a| a.intent),
            ttl: announcement.map(|a| a.ttl_secs),
            expires_at: announcement.and_then(|a| a.expires_at),
            reason: announcement.map_or("", |a| a.reason.as_str()),
            asn: config.asn,
            communities: &config.communities,
            next_hop: config.next_hop,
            sent_at: now,
        };
        let body = serde_json::to_vec(&body).expect("strings and numbers always serialise");
        let mut headers = HeaderMap::new();
        if let Some(announcement) = announcement {
            let key = format!("{}:{}", announcement.rule_uuid, action.as_str());
            headers.insert(IDEMPOTENCY, HeaderValue::try_from(key).expect("a uuid and a word"));
        }
        let timestamp = now.secs();
        headers.insert(TIMESTAMP, HeaderValue::from(timestamp));
        if let Some(token) = auth_token {
            let value = format!("sha256={}", signature(token, timestamp, &body));
            headers.insert(SIGNATURE, HeaderValue::try_from(value).expect("hex characters"));
        }
        Prepared { headers, body: body.into() }
    }

    async fn send(&self, action: Action, about: Option<&Announcement>, now: Timestamp) -> Result<Answer, SendError> {
        let Prepared { headers, body } = self.prepare(action, about, now);
        self.outbound.post(&self.settings.endpoint, headers, body).await
    }
}

/// HMAC-SHA256 over the time stamp, a full stop and the body, as hex.
fn signature(key: &[u8], timestamp: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    context.update(timestamp.to_string().as_bytes());
    context.update(b".");
    context.update(body);
    hex(context.sign().as_ref())
}

/// What an answer means for a rule.
fn judge(action: Action, answer: Result<Answer, SendError>) -> Outcome {
    let answer = match answer {
        Ok(answer) => answer,
        Err(fault) => return Outcome::Failed(fault.to_string()),
    };
    match answer.status {
        200..=299 => Outcome::Done,
        404 | 410 if action == Action::Withdraw => Outcome::Done,
        408 | 425 | 429 | 500..=599 => Outcome::Failed(said(&answer)),
        _ => Outcome::Refused(said(&answer)),
    }
}

fn said(answer: &Answer) -> String {
    let what = if (300..400).contains(&answer.status) { " (redirects are not followed)" } else { "" };
    if answer.text.is_empty() {
        format!("the receiver answered {}{what}", answer.status)
    } else {
        format!("the receiver answered {}{what}: {}", answer.status, answer.text)
    }
}

#[async_trait]
impl Adapter for Webhook {
    async fn announce(&self, announcement: &Announcement, now: Timestamp) -> Outcome {
        judge(Action::Announce, self.send(Action::Announce, Some(announcement), now).await)
    }

    async fn withdraw(&self, announcement: &Announcement, now: Timestamp) -> Outcome {
        judge(Action::Withdraw, self.send(Action::Withdraw, Some(announcement), now).await)
    }

    async fn test(&self, now: Timestamp) -> Tested {
        match self.send(Action::Test, None, now).await {
            Ok(answer) => {
                let error = (!(200..300).contains(&answer.status)).then(|| said(&answer));
                Tested { error, http_status: Some(answer.status) }
            }
            Err(fault) => Tested { error: Some(fault.to_string()), http_status: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::AdapterConfig;

    fn webhook(auth_token: Option<&str>) -> Webhook {
        let config =
            AdapterConfig { asn: Some(64_500), communities: vec!["65535:666".to_owned()], ..Default::default() };
        let auth_token = auth_token.map(|t| t.as_bytes().to_vec());
        let endpoint = "https://bgp.example/hook".to_owned();
        Webhook::new(Settings { id: 3, name: "edge".to_owned(), endpoint, auth_token, config }, Outbound::new(false))
    }

    fn announcement() -> Announcement {
        Announcement {
            rule_id: 7,
            rule_uuid: "0f9619ff-8b86-4011-b42d-00cf4fc964ff".parse().expect("a uuid"),
            target: "203.0.113.5/32".parse().expect("a prefix"),
            intent: Intent::Blackhole,
            ttl_secs: 600,
            expires_at: Some(Timestamp::from_secs(1_600)),
            reason: "flood".to_owned(),
        }
    }

    #[test]
    fn the_request_is_as_documented() {
        let now = Timestamp::from_secs(1_000);
        let Prepared { headers, body } = webhook(Some("sesame")).prepare(Action::Announce, Some(&announcement()), now);
        let expected = concat!(
            r#"{"version":1,"action":"announce","rule_id":7,"rule_uuid":"0f9619ff-8b86-4011-b42d-00cf4fc964ff","#,
            r#""adapter_id":3,"adapter_name":"edge","target":"203.0.113.5/32","intent":"blackhole","ttl":600,"#,
            r#""expires_at":"1970-01-01T00:26:40Z","reason":"flood","asn":64500,"communities":["65535:666"],"#,
            r#""next_hop":null,"sent_at":"1970-01-01T00:16:40Z"}"#,
        );
        assert_eq!(std::str::from_utf8(&body), Ok(expected));
        assert_eq!(headers["idempotency-key"], "0f9619ff-8b86-4011-b42d-00cf4fc964ff:announce");
        assert_eq!(headers["x-flowtriq-timestamp"], "1000");
        let signed = format!("sha256={}", signature(b"sesame", 1_000, &body));
        assert_eq!(headers["x-flowtriq-signature-timestamped"], signed.as_str());
        let unsigned = webhook(None).prepare(Action::Test, None, now).headers;
        assert!(!unsigned.contains_key(SIGNATURE) && !unsigned.contains_key(IDEMPOTENCY));
    }

    #[test]
    fn the_signature_is_the_one_that_others_compute() {
        // printf '1000.{}' | openssl dgst -sha256 -hmac key
        let expected = "c32de42341dece79a1511c9e7f74a2734112edcfcf48943c976faf07047065db";
        assert_eq!(signature(b"key", 1_000, b"{}"), expected);
    }

    #[test]
    fn every_answer_has_its_meaning() {
        let judged = |action, status| match judge(action, Ok(Answer { status, text: String::new() })) {
            Outcome::Done => "done",
            Outcome::Refused(_) => "refused",
            Outcome::Failed(_) => "failed",
        };
        for (status, announce, withdraw) in [
            (200, "done", "done"),
            (204, "done", "done"),
            (301, "refused", "refused"),
            (307, "refused", "refused"),
            (400, "refused", "refused"),
            (401, "refused", "refused"),
            (404, "refused", "done"),
            (410, "refused", "done"),
            (408, "failed", "failed"),
            (425, "failed", "failed"),
            (429, "failed", "failed"),
            (500, "failed", "failed"),
            (503, "failed", "failed"),
        ] {
            assert_eq!(judged(Action::Announce, status), announce, "{status}");
            assert_eq!(judged(Action::Withdraw, status), withdraw, "{status}");
        }
        assert!(matches!(judge(Action::Announce, Err(SendError::TotalTime)), Outcome::Failed(_)));
    }
}
