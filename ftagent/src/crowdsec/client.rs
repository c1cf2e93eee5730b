//! Asks LAPI: the question, the bounds of its answer, and what each failure means. A task of the decisions' thread.

use std::net::IpAddr;
use std::time::Duration;

use hyper::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::file::MAX_PEERS;
use super::stream::{self, Reading};
use super::{CrowdsecConfig, Filter, Key, Told, config};
use crate::clock;
use crate::sync::{Backoff, CallError, Outside, Reply, Secret, ServerError};

/// For one whole answer: LAPI takes seconds for hundreds of thousands of decisions.
const PATIENCE: Duration = Duration::from_secs(60);
/// Waits after failures, doubled from one to the other.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// LAPI's own words take about 200 bytes for a decision.
const BYTES_PER_DECISION: usize = 512;
/// Every decision is asked for again after so long, whatever happened: nothing that was missed is missed for longer.
const WHOLE_AGAIN: Duration = Duration::from_secs(3_600);
/// And after so long where LAPI took a new connection, which it does after a restart, and some proxies always.
const WHOLE_AFTER_RECONNECT: Duration = Duration::from_secs(60);
/// For the name of LAPI's host.
const RESOLVE: Duration = Duration::from_secs(2);

/// Why there is no reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The word in status and metrics.
    pub(super) kind: &'static str,
    pub(super) why: String,
}

/// LAPI, and how it is asked.
pub(super) struct Client {
    server: Outside,
    key: Key,
    headers: Option<HeaderMap>,
    filter: Filter,
    max_bytes: usize,
    every: Duration,
}

impl Client {
    pub(super) fn new(config: &CrowdsecConfig) -> Result<Self, ServerError> {
        Ok(Self {
            server: Outside::new(&config.url, config.ca_certificate.as_deref(), PATIENCE, clock::wall)?,
            key: config.key.clone(),
            headers: None,
            filter: config.filter.clone(),
            max_bytes: (1 << 20) + config.max_decisions as usize * BYTES_PER_DECISION,
            every: Duration::from_secs(config.poll_secs.into()),
        })
    }

    /// Asks until nobody listens.
    pub(super) async fn run(mut self, told: mpsc::Sender<Told>) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, StdRng::from_os_rng());
        // When every decision was told last; none after a failure: an answer that is lost will not be given again.
        let mut whole_at_ns: Option<u64> = None;
        // LAPI took a new connection since then: it may have started anew, and remember less of us than it did.
        let mut is_suspect = false;
        loop {
            let now_ns = clock::mono_ns();
            let is_whole = whole_at_ns.is_none_or(|then| {
                let since = Duration::from_nanos(now_ns.saturating_sub(then));
                since >= WHOLE_AGAIN || is_suspect && since >= WHOLE_AFTER_RECONNECT
            });
            let (word, rest) = match self.ask(is_whole).await {
                Ok((reading, is_new_connection)) => {
                    backoff.reset();
                    is_suspect = !is_whole && (is_suspect || is_new_connection);
                    let mut peers = Vec::new();
                    if is_whole {
                        whole_at_ns = Some(now_ns);
                        peers = self.peers().await;
                    }
                    (Told::Reading { reading, peers }, self.every)
                }
                Err(failure) => {
                    whole_at_ns = None;
                    let peers = self.peers().await;
                    (Told::Failed { failure, peers }, backoff.next())
                }
            };
            if told.send(word).await.is_err() {
                return;
            }
            sleep(rest).await;
        }
    }

    /// One question; and whether LAPI had to be called anew for it.
    async fn ask(&mut self, is_whole: bool) -> Result<(Reading, bool), Failure> {
        let headers = match &self.headers {
            Some(headers) => headers.clone(),
            None => {
                let read = headers(&self.key).map_err(|why| Failure { kind: "key", why })?;
                self.headers.insert(read).clone()
            }
        };
        let path = format!("/v1/decisions/stream?startup={is_whole}&scopes=ip,range&dedup=false");
        let reply = self.server.read(&path, &headers, self.max_bytes).await;
        let reply = reply.map_err(|error| {
            let kind = match &error {
                CallError::TooLarge { .. } => "too_large",
                CallError::TimedOut { .. } => "timeout",
                CallError::Tls { .. } => "tls",
                _ => "unreachable",
            };
            let hint = if kind == "too_large" { ": raise crowdsec.max_decisions" } else { "" };
            Failure { kind, why: format!("{error}{hint}") }
        })?;
        let result = read(&reply, is_whole, &self.filter);
        if result.as_ref().is_err_and(|failure| failure.kind == "refused") {
            // The file may have another key by now.
            self.headers = None;
        }
        result.map(|reading| (reading, reply.is_new_connection))
    }

    /// Where LAPI is: no decision of its own may cut it off.
    pub(super) async fn peers(&self) -> Vec<IpAddr> {
        match timeout(RESOLVE, tokio::net::lookup_host(self.server.host())).await {
            Ok(Ok(found)) => found.map(|address| address.ip().to_canonical()).take(MAX_PEERS).collect(),
            _ => Vec::new(),
        }
    }
}

fn headers(key: &Key) -> Result<HeaderMap, String> {
    let key: Secret = match key {
        Key::Inline(key) => key.clone(),
        Key::File(path) => config::read_key(path)?,
    };
    let mut value = HeaderValue::from_str(key.expose()).map_err(|_| "the API key has signs that no header has")?;
    value.set_sensitive(true);
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("x-api-key"), value);
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    Ok(headers)
}

/// What an answer says, or what its status means.
fn read(reply: &Reply, is_whole: bool, filter: &Filter) -> Result<Reading, Failure> {
    let words = || {
        let text = String::from_utf8_lossy(&reply.body[..reply.body.len().min(200)]);
        text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '.' }).collect::<String>()
    };
    match reply.status {
        200 => stream::parse(&reply.body, is_whole, filter)
            .map_err(|why| Failure { kind: "malformed", why: format!("LAPI's answer is no list of decisions: {why}") }),
        status @ (401 | 403) => Err(Failure {
            kind: "refused",
            why: format!(
                "LAPI refuses the API key ({status}): it was deleted or is another one; `cscli bouncers list` shows \
                 what is valid, `cscli bouncers add NAME` makes one"
            ),
        }),
        404 => Err(Failure { kind: "status", why: "404: no LAPI at this URL, or a path is missing in it".to_owned() }),
        status => Err(Failure { kind: "status", why: format!("LAPI answered {status}: {}", words()) }),
    }
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;

    use super::*;

    #[test]
    fn each_answer_has_its_meaning() {
        let ok = r#"{"new":[],"deleted":[]}"#;
        for (status, body, expected) in [
            (200, ok, None),
            (200, "<html>", Some("malformed")),
            (200, &ok[..10], Some("malformed")),
            (401, "", Some("refused")),
            (403, r#"{"message":"access forbidden"}"#, Some("refused")),
            (404, "404 page not found", Some("status")),
            (500, "\u{1b}[31m", Some("status")),
            (302, "", Some("status")),
        ] {
            let reply = Reply {
                status,
                body: Bytes::copy_from_slice(body.as_bytes()),
                retry_after: None,
                is_new_connection: false,
            };
            let got = read(&reply, true, &Filter::default());
            assert_eq!(got.as_ref().err().map(|failure| failure.kind), expected, "{status} {body:?}: {got:?}");
            assert!(got.err().is_none_or(|failure| failure.why.chars().all(|c| !c.is_control())));
        }
    }

    #[test]
    fn the_key_is_sent_and_never_shown() {
        let headers = headers(&Key::Inline(Secret::new("0123456789abcdef"))).expect("a key");
        assert_eq!(headers["x-api-key"], "0123456789abcdef");
        assert!(!format!("{headers:?}").contains("0123"), "{headers:?}");
    }
}
