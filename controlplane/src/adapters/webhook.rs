//! The webhook adapter: signed JSON to a receiver of the operator's own.
//!
//! ```text
//! POST <endpoint>
//! Content-Type: application/json
//! Idempotency-Key: <rule uuid>:announce    the same for every try of one action of one rule
//!
//! {"version":1,"action":"announce",…}
//! ```
//! With a token it is signed like every webhook of this server (`outbound/signature.rs`).
//!
//! 2xx is done. 404 and 410 of a withdrawal are too: what is to go is gone. 408, 425, 429 and 5xx are tried again, as
//! is silence; anything else, redirects among it, is a refusal.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use serde::Serialize;

use super::{Adapter, Announcement, Settings, Tested};
use crate::domain::{Intent, Outcome, Timestamp, excerpt, parse_url};
use crate::outbound::{Answered, Outbound, Outgoing, sign};

const IDEMPOTENCY: HeaderName = HeaderName::from_static("idempotency-key");
/// For one call, from the look-up of the name on. [`crate::domain::LEASE_SECS`] is twice that.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Characters of an answer that are kept.
const SAID: usize = 200;

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
    local_as: Option<u32>,
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
    outbound: Arc<Outbound>,
}

impl Webhook {
    pub(super) const fn new(settings: Settings, outbound: Arc<Outbound>) -> Self {
        Self { settings, outbound }
    }

    /// # Errors
    /// The endpoint may not be called by this server any more; the message says why.
    fn request(&self, action: Action, about: Option<&Announcement>, now: Timestamp) -> Result<Outgoing, String> {
        let Settings { id, name, endpoint, auth_token, config } = &self.settings;
        let body = Body {
            version: 1,
            action: action.as_str(),
            rule_id: about.map(|a| a.rule_id),
            rule_uuid: about.map(|a| a.rule_uuid),
            adapter_id: *id,
            adapter_name: name,
            target: about.map(|a| a.target.to_string()),
            intent: about.map(|a| a.intent),
            ttl: about.map(|a| a.ttl_secs),
            expires_at: about.and_then(|a| a.expires_at),
            reason: about.map_or("", |a| a.reason.as_str()),
            local_as: config.local_as,
            communities: &config.communities,
            next_hop: config.next_hop,
            sent_at: now,
        };
        let body = serde_json::to_vec(&body).expect("strings and numbers always serialise");
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ftagent/", env!("CARGO_PKG_VERSION"))));
        if let Some(announcement) = about {
            let key = format!("{}:{}", announcement.rule_uuid, action.as_str());
            headers.insert(IDEMPOTENCY, HeaderValue::try_from(key).expect("a uuid and a word"));
        }
        if let Some(token) = auth_token {
            sign(&mut headers, token.as_bytes(), &body, now);
        }
        let url = parse_url(endpoint, self.outbound.allows_private())?;
        Ok(Outgoing { url, headers, body: body.into(), timeout: TIMEOUT })
    }

    async fn send(&self, action: Action, about: Option<&Announcement>, now: Timestamp) -> Result<Answered, String> {
        let outgoing = self.request(action, about, now)?;
        self.outbound.post(&outgoing).await.map_err(|fault| fault.to_string())
    }

    /// What an answer means for a rule.
    fn judge(&self, action: Action, answer: Result<Answered, String>) -> Outcome {
        let answer = match answer {
            Ok(answer) => answer,
            Err(fault) => return Outcome::Failed(fault),
        };
        match answer.status {
            200..=299 => Outcome::Done,
            404 | 410 if action == Action::Withdraw => Outcome::Done,
            408 | 425 | 429 | 500..=599 => Outcome::Failed(self.said(&answer)),
            _ => Outcome::Refused(self.said(&answer)),
        }
    }

    /// The status and the beginning of the text, fit for a line of a log.
    fn said(&self, answer: &Answered) -> String {
        let what = if (300..400).contains(&answer.status) { " (redirects are not followed)" } else { "" };
        let text = excerpt(&answer.body, self.settings.auth_token.as_deref().into_iter());
        let text: String = text.trim().chars().map(|c| if c == '\n' { ' ' } else { c }).take(SAID).collect();
        if text.is_empty() {
            format!("the receiver answered {}{what}", answer.status)
        } else {
            format!("the receiver answered {}{what}: {text}", answer.status)
        }
    }
}

#[async_trait]
impl Adapter for Webhook {
    async fn announce(&self, announcement: &Announcement, now: Timestamp) -> Outcome {
        self.judge(Action::Announce, self.send(Action::Announce, Some(announcement), now).await)
    }

    async fn withdraw(&self, announcement: &Announcement, now: Timestamp) -> Outcome {
        self.judge(Action::Withdraw, self.send(Action::Withdraw, Some(announcement), now).await)
    }

    async fn test(&self, now: Timestamp) -> Tested {
        match self.send(Action::Test, None, now).await {
            Ok(answer) => {
                let error = (!(200..300).contains(&answer.status)).then(|| self.said(&answer));
                Tested { error, http_status: Some(answer.status) }
            }
            Err(fault) => Tested { error: Some(fault), http_status: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::AdapterConfig;

    fn webhook(auth_token: Option<&str>) -> Webhook {
        let config =
            AdapterConfig { local_as: Some(64_500), communities: vec!["65535:666".to_owned()], ..Default::default() };
        let auth_token = auth_token.map(str::to_owned);
        let endpoint = "https://bgp.example/hook".to_owned();
        let settings = Settings { id: 3, name: "edge".to_owned(), endpoint, auth_token, config };
        Webhook::new(settings, Arc::new(Outbound::new(false)))
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
        let outgoing = webhook(Some("sesame")).request(Action::Announce, Some(&announcement()), now).expect("complete");
        let expected = concat!(
            r#"{"version":1,"action":"announce","rule_id":7,"rule_uuid":"0f9619ff-8b86-4011-b42d-00cf4fc964ff","#,
            r#""adapter_id":3,"adapter_name":"edge","target":"203.0.113.5/32","intent":"blackhole","ttl":600,"#,
            r#""expires_at":"1970-01-01T00:26:40Z","reason":"flood","local_as":64500,"communities":["65535:666"],"#,
            r#""next_hop":null,"sent_at":"1970-01-01T00:16:40Z"}"#,
        );
        assert_eq!(std::str::from_utf8(&outgoing.body), Ok(expected));
        assert_eq!(outgoing.headers["idempotency-key"], "0f9619ff-8b86-4011-b42d-00cf4fc964ff:announce");
        let mut signed = HeaderMap::new();
        sign(&mut signed, b"sesame", expected.as_bytes(), now);
        assert!(signed.iter().all(|(name, value)| outgoing.headers[name] == value));
        let unsigned = webhook(None).request(Action::Test, None, now).expect("complete").headers;
        assert!(signed.keys().all(|name| !unsigned.contains_key(name)) && !unsigned.contains_key(IDEMPOTENCY));
    }

    #[test]
    fn every_answer_has_its_meaning() {
        let hook = webhook(Some("sesame"));
        let answered = |status, text: &str| Ok(Answered { status, retry_after: None, body: text.as_bytes().to_vec() });
        let judged = |action, status| match hook.judge(action, answered(status, "")) {
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
        assert!(matches!(hook.judge(Action::Announce, Err("silence".to_owned())), Outcome::Failed(_)));
        let said = Outcome::Refused("the receiver answered 403: no [secret] here".to_owned());
        assert_eq!(hook.judge(Action::Announce, answered(403, "no sesame\nhere\n")), said);
    }
}
