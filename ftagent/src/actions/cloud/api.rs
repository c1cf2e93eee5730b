//! Requests to a provider's API: the key, the bounds of an answer, and what each failure means.

use std::sync::Arc;
use std::time::Duration;

use ftagent_common::api::{CLOUDFLARE_API, DIGITALOCEAN_API, VULTR_API};
use hyper::Method;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::runtime::Runtime;

use super::CloudConfig;
use crate::actions::Closing;
use crate::actions::record::Record;
use crate::clock;
use crate::sync::{CallError, Outside};

/// Bytes of one answer.
const MAX_ANSWER: usize = 8 << 20;
/// Bytes of a provider's words that are told.
const MAX_WORDS: usize = 300;
/// Bytes of an answer that is none of theirs that are looked at.
const MAX_LOOKED_AT: usize = 4_096;
/// The longest `Retry-After` that is obeyed: what asks for more is looked at again after this.
const MAX_AFTER_SECS: u64 = 900;
/// Between two looks whether the agent stops, while an answer is waited for.
const LISTEN: Duration = Duration::from_millis(100);
/// A connection that was not used for so long is not trusted to be open.
const IDLE_NS: u64 = 20_000_000_000;

/// Why a piece of work is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The same again may do it, not before so many seconds if the provider said so.
    Later { why: String, after_secs: Option<u64> },
    /// The provider, or the want of a key, says no. The status is 0 where nothing was sent.
    Refused { why: String, status: u16, words: String },
}

impl Fault {
    pub(super) fn later(why: impl Into<String>) -> Self {
        Self::Later { why: why.into(), after_secs: None }
    }

    pub(super) fn refused(why: impl Into<String>) -> Self {
        Self::Refused { why: why.into(), status: 0, words: String::new() }
    }

    pub(super) fn why(&self) -> &str {
        match self {
            Self::Later { why, .. } | Self::Refused { why, .. } => why,
        }
    }
}

/// A provider's answer to what was taken.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) json: Value,
}

/// The API of one provider, with a connection that is kept while there is work.
pub(super) struct Api {
    name: &'static str,
    config: Option<CloudConfig>,
    runtime: Option<Runtime>,
    outside: Option<(Outside, u64)>,
    /// The agent stops: nothing new is begun, and what is under way has to end.
    closing: Arc<Closing>,
}

impl Api {
    pub(super) fn new(name: &'static str, config: Option<CloudConfig>, closing: Arc<Closing>) -> Self {
        Self { name, config, runtime: None, outside: None, closing }
    }

    pub(super) fn configure(&mut self, config: Option<CloudConfig>) {
        self.config = config;
        self.outside = None;
    }

    /// Whether nothing new may be begun.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_begun()
    }

    /// The official URL of `path`, or that of the configuration.
    pub(super) fn url(&self, path: &str) -> String {
        let official = match self.name {
            "cloudflare" => CLOUDFLARE_API,
            "digitalocean" => DIGITALOCEAN_API,
            _ => VULTR_API,
        };
        format!("{}{path}", self.config.as_ref().map_or(official, |config| &config.api_url))
    }

    /// A look: may be repeated.
    pub(super) fn read(&mut self, path: &str) -> Result<Answer, Fault> {
        self.call(Method::GET, path, None).map(|(answer, _)| answer).map_err(|(fault, _)| fault)
    }

    /// A request that changes something; sent once, and recorded with what came of it. The second of an error says
    /// whether it may have had its effect all the same.
    pub(super) fn change(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        record: &mut Record,
    ) -> Result<Answer, (Fault, bool)> {
        let began_ns = clock::mono_ns();
        let argv = vec![method.to_string(), self.url(path), body.map(Value::to_string).unwrap_or_default()];
        let came = self.call(method, path, body);
        let text = match &came {
            Ok((_, status)) => format!("HTTP {status}"),
            Err((Fault::Refused { status: 0, .. }, _)) => return came.map(|(answer, _)| answer),
            Err((fault, _)) => fault.why().to_owned(),
        };
        record.add_request(argv, &text, clock::mono_ns().saturating_sub(began_ns) / 1_000);
        came.map(|(answer, _)| answer)
    }

    fn call(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<(Answer, u16), (Fault, bool)> {
        let name = self.name;
        let unsent = |fault| (fault, false);
        let too_late = || Fault::later(format!("the agent stops, and {name} takes too long"));
        if self.closing.is_over(clock::mono_ns()) {
            return Err(unsent(too_late()));
        }
        let Some(config) = self.config.clone() else {
            return Err(unsent(Fault::refused(format!(
                "no key: cloud.{name}.token_file is not in this node's configuration"
            ))));
        };
        let token = config.token();
        let token = token.map_err(|why| unsent(Fault::refused(format!("no key: cloud.{name}.token_file: {why}"))))?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
            .map_err(|_| unsent(Fault::refused(format!("no key: cloud.{name}.token_file has signs no header has"))))?;
        value.set_sensitive(true);
        let json = HeaderValue::from_static("application/json");
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value), (ACCEPT, json)]);

        let now_ns = clock::mono_ns();
        if self.outside.as_ref().is_some_and(|(_, used_ns)| now_ns.saturating_sub(*used_ns) > IDLE_NS) {
            self.outside = None;
        }
        if self.outside.is_none() {
            let opened = Outside::new(&config.api_url, config.ca_certificate.as_deref(), config.timeout, clock::wall);
            self.outside = Some((opened.map_err(|error| unsent(Fault::refused(error.to_string())))?, now_ns));
        }
        if self.runtime.is_none() {
            let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let made = made.map_err(|error| unsent(Fault::later(format!("no runtime for requests: {error}"))))?;
            self.runtime = Some(made);
        }
        let (Some((outside, used_ns)), Some(runtime)) = (&mut self.outside, &self.runtime) else {
            return Err(unsent(Fault::later("there is no connection")));
        };
        let is_look = method == Method::GET;
        let bytes = body.map(|body| body.to_string().into());
        let closing = &self.closing;
        let reply = runtime.block_on(async {
            let asked = async {
                if is_look {
                    outside.read(path, &headers, MAX_ANSWER).await
                } else {
                    outside.change(method.clone(), path, &headers, bytes, MAX_ANSWER).await
                }
            };
            tokio::select! {
                reply = asked => Some(reply),
                () = over(closing) => None,
            }
        });
        *used_ns = clock::mono_ns();
        let Some(reply) = reply else {
            // Half an exchange is no connection any more.
            self.outside = None;
            return Err((too_late(), !is_look));
        };
        let what = format!("{method} {}", self.url(path));
        let reply = reply.map_err(|error| {
            // Until the connection is there nothing is sent.
            let is_sent = !matches!(error, CallError::Connect { .. } | CallError::Tls { .. } | CallError::Request(_));
            (Fault::later(format!("{what}: {error}")), is_sent && !is_look)
        })?;
        let words = words(&reply.body, token.expose());
        let status = reply.status;
        let refused = |why: String| Fault::Refused { why, status, words: words.clone() };
        match status {
            200..=299 => {
                let json = if reply.body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&reply.body) };
                match json {
                    Ok(json) => Ok((Answer { json }, status)),
                    Err(error) => Err((Fault::later(format!("{what}: the answer is no JSON: {error}")), !is_look)),
                }
            }
            408 | 425 | 429 | 500..=599 => {
                let after_secs = reply.retry_after.as_deref().and_then(after);
                let why = format!("{what}: HTTP {status}: {words}");
                // What an overloaded server did before it gave up is not known.
                Err((Fault::Later { why, after_secs }, !is_look && status != 429))
            }
            401 | 403 => {
                let file = config.token_file.display();
                let why = format!("{what}: {name} refuses the key in {file} (HTTP {status}): {words}");
                Err(unsent(refused(why)))
            }
            _ => Err(unsent(refused(format!("{what}: HTTP {status}: {words}")))),
        }
    }
}

/// Comes when nothing may be waited for any more.
async fn over(closing: &Closing) {
    while !closing.is_over(clock::mono_ns()) {
        tokio::time::sleep(LISTEN).await;
    }
}

/// Seconds, from a `Retry-After` of either form.
fn after(text: &str) -> Option<u64> {
    let secs = match text.trim().parse::<u64>() {
        Ok(secs) => secs,
        Err(_) => {
            let date = OffsetDateTime::parse(text.trim(), &Rfc2822).ok()?;
            u64::try_from((date - clock::wall()).whole_seconds()).unwrap_or(0)
        }
    };
    Some(secs.min(MAX_AFTER_SECS))
}

/// What a provider says of an error, on one line: its own words where the answer has the form of its API. Never the
/// key, nor a part of it.
fn words(body: &[u8], key: &str) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = match (&json["errors"], &json["message"], &json["error"]) {
        (Value::Array(errors), _, _) if !errors.is_empty() => {
            let one = |error: &Value| format!("{} ({})", error["message"].as_str().unwrap_or("?"), error["code"]);
            errors.iter().take(4).map(one).collect::<Vec<_>>().join("; ")
        }
        (_, Value::String(message), _) | (_, _, Value::String(message)) => message.clone(),
        _ => String::from_utf8_lossy(&body[..body.len().min(MAX_LOOKED_AT)]).into_owned(),
    };
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    said.replace(key, "…").chars().map(plain).take(MAX_WORDS).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_that_says_nothing_is_not_waited_for_beyond_the_stop() {
        let key = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(key.path(), "0123456789abcdefABCDEF").expect("room");
        // Takes connections, and never answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let config = CloudConfig {
            token_file: key.path().into(),
            api_url: format!("http://{}", silent.local_addr().expect("bound")),
            ca_certificate: None,
            timeout: Duration::from_secs(60),
        };
        let closing = Arc::new(Closing::default());
        let mut api = Api::new("vultr", Some(config), Arc::clone(&closing));
        let begun_ns = clock::mono_ns();
        // The stop comes while the first answer is waited for.
        let closer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            closing.close(clock::mono_ns() + 200_000_000);
        });
        let first = api.read("/x").expect_err("no answer");
        assert!(first.why().contains("the agent stops"), "{first:?}");
        assert!(api.is_closing());
        let (second, is_sent) = api.change(Method::DELETE, "/x", None, &mut Record::default()).expect_err("too late");
        assert!(second.why().contains("the agent stops") && !is_sent, "{second:?}");
        assert!(clock::mono_ns() - begun_ns < 5_000_000_000);
        closer.join().expect("no panic");
    }

    #[test]
    fn errors_are_told_in_the_providers_words() {
        for (body, expected) in [
            (r#"{"success":false,"errors":[{"code":10009,"message":"dup"},{"code":1}]}"#, "dup (10009); ? (1)"),
            (r#"{"id":"not_found","message":"gone"}"#, "gone"),
            (r#"{"error":"Invalid API token.","status":401}"#, "Invalid API token."),
            ("<html>\u{1b}[31m", "<html> [31m"),
            ("", ""),
        ] {
            assert_eq!(words(body.as_bytes(), "the-key"), expected, "{body}");
        }
        assert!(words("é".repeat(1_000).as_bytes(), "the-key").len() <= 2 * MAX_WORDS);
        // A key at the place where the words are cut.
        for before in MAX_WORDS - 8..=MAX_WORDS {
            let said = words(format!("{}the-key", "x".repeat(before)).as_bytes(), "the-key");
            assert!(!said.contains("th"), "{said}");
        }
    }

    #[test]
    fn waits_are_seconds_or_a_date_and_have_an_end() {
        assert_eq!([after("7"), after("999999"), after("soon"), after("")], [Some(7), Some(900), None, None]);
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(0), "it is over");
        assert_eq!(after("Wed, 21 Oct 2099 07:28:00 GMT"), Some(900));
    }
}
