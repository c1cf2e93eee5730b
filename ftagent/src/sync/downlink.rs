//! Configuration and commands on their way down: a stream, and polling where there is none.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ftagent_common::api::{NodeCommand, NodeConfig, StreamMessage};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::header::{ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, RETRY_AFTER};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::answer::{Fate, fate};
use super::http::{Call, Connection};
use super::uplink::key_refused;
use super::{Incoming, LinkError, Shared};
use crate::persist::{self, Loaded};

/// The most one line of the stream, and one configuration, may have.
const CONFIG_BYTES: usize = 8 << 20;
/// Of an answer that is an error.
const ERROR_BYTES: usize = 64 << 10;

/// The last configuration, as it lies on disk for the next start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Cache {
    pub(super) config: NodeConfig,
    /// Of the last poll, if the configuration came by one.
    etag: Option<String>,
}

fn cache_file(state_dir: &Path) -> PathBuf {
    state_dir.join("config.json")
}

/// Reads the cached configuration; a corrupt one is moved aside and reported.
pub(super) fn load_cache(state_dir: &Path, unix_secs: i64) -> Result<Option<Cache>, LinkError> {
    match persist::load_json(&cache_file(state_dir), unix_secs)? {
        Loaded::There(cache) => Ok(Some(cache)),
        Loaded::Missing => Ok(None),
        Loaded::Corrupt { moved_to, why } => {
            let moved_to = moved_to.display();
            tracing::error!(%moved_to, why, "the cached configuration is corrupt and is fetched anew");
            Ok(None)
        }
    }
}

/// How a stream ended.
enum Ended {
    /// It was open and closed or fell silent; `heard` if at least one line came.
    Closed {
        heard: bool,
        why: String,
    },
    /// There is no stream to be had here: poll.
    Unsupported(String),
    /// Not before `after`, if it is given.
    Refused {
        after: Option<std::time::Duration>,
        why: String,
    },
    Credentials(String),
    /// Another server, another certificate or other authorities are in force.
    Moved,
    /// The daemon is gone.
    Over,
}

struct Downlink<'a> {
    shared: &'a Arc<Shared>,
    headers: &'a HeaderMap,
    stream: Connection,
    poll: Connection,
    cached: Option<Cache>,
}

/// Follows the control plane's configuration until the daemon is gone.
pub(super) async fn follow(shared: &Arc<Shared>, headers: &HeaderMap, cached: Option<Cache>) {
    let (stream, poll) = (shared.connection(), shared.connection());
    let mut link = Downlink { shared, headers, stream, poll, cached };
    let mut backoff = shared.backoff();
    loop {
        let ended = link.read_stream().await;
        let wait = match ended {
            Ended::Over => return,
            Ended::Closed { heard: true, why } => {
                shared.trouble(&why, true);
                backoff.reset();
                backoff.next()
            }
            Ended::Closed { heard: false, why } => {
                shared.trouble(&why, true);
                // Something on the way may hold streams back: the configuration comes anyway.
                link.look().await;
                backoff.next()
            }
            Ended::Unsupported(why) => {
                tracing::debug!(why, "no stream: polling");
                link.look().await;
                link.fetch_commands().await;
                shared.config.timing.poll
            }
            Ended::Refused { after, why } => {
                shared.trouble(&format!("the stream is not available: {why}"), true);
                after.unwrap_or_else(|| backoff.next())
            }
            Ended::Credentials(why) => {
                shared.trouble(&key_refused(shared, &why), true);
                shared.wait_for_operator(link.stream.route()).await;
                continue;
            }
            Ended::Moved => continue,
        };
        sleep(wait).await;
    }
}

impl Downlink<'_> {
    async fn read_stream(&mut self) -> Ended {
        let from = self.cached.as_ref().map_or(0, |c| c.config.version);
        let path = format!("/api/v1/agent/stream?from={from}");
        let call = Call { method: Method::GET, path: &path, headers: self.headers, body: None };
        let response = match self.stream.open_stream(&call).await {
            Ok(response) => response,
            Err(error) => return Ended::Refused { after: None, why: error.to_string() },
        };
        let (head, mut body) = response.into_parts();
        let silence = self.shared.config.timing.silence;
        if !head.status.is_success() {
            let retry_after = head.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok());
            let body = http_body_util::Limited::new(body, ERROR_BYTES).collect();
            let words = match timeout(self.shared.config.timing.request, body).await {
                Ok(Ok(words)) => words.to_bytes(),
                Ok(Err(_)) | Err(_) => hyper::body::Bytes::new(),
            };
            return match (head.status.as_u16(), fate(head.status.as_u16(), retry_after, &words)) {
                (404 | 405 | 501, Fate::Refused { why } | Fate::Retry { why, .. }) => Ended::Unsupported(why),
                (_, Fate::Credentials { why }) => Ended::Credentials(why),
                (_, Fate::Retry { after, why }) => Ended::Refused { after, why },
                (_, Fate::Refused { why }) => Ended::Refused { after: None, why },
                (_, Fate::Delivered) => Ended::Closed { heard: false, why: "an answer without content".into() },
            };
        }
        let mut lines = Lines::default();
        let mut heard = false;
        let (mut routes, route) = (self.shared.servers.routes(), self.stream.route());
        loop {
            let frame = tokio::select! {
                frame = timeout(silence, body.frame()) => frame,
                // Nothing is lost: what the stream says is whole, and it is resumed by version.
                _ = routes.wait_for(|now| *now != route) => return Ended::Moved,
            };
            let frame = match frame {
                Err(_) => {
                    self.stream.give_up();
                    return Ended::Closed { heard, why: format!("the stream was silent for {} s", silence.as_secs()) };
                }
                Ok(None) => return Ended::Closed { heard, why: "the control plane closed the stream".into() },
                Ok(Some(Err(error))) => {
                    self.stream.give_up();
                    return Ended::Closed { heard, why: format!("the stream broke: {error}") };
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Some(data) = frame.data_ref() else { continue };
            let complete = match lines.push(data) {
                Ok(complete) => complete,
                Err(why) => return Ended::Closed { heard, why: why.into() },
            };
            for line in complete {
                match self.on_line(&line).await {
                    Ok(true) => {}
                    Ok(false) => return Ended::Over,
                    Err(why) => return Ended::Closed { heard, why },
                }
                heard = true;
                self.shared.connected();
            }
        }
    }

    /// False when the daemon is gone.
    async fn on_line(&mut self, line: &[u8]) -> Result<bool, String> {
        let json: serde_json::Value =
            serde_json::from_slice(line).map_err(|e| format!("the stream carried something that is not JSON: {e}"))?;
        match serde_json::from_value(json) {
            Ok(StreamMessage::Ping { version }) => {
                if self.cached.as_ref().map(|c| c.config.version) != Some(version) {
                    // Another version than ours without a word of it: the server was restored from a backup, or a
                    // line was lost on the way.
                    self.look().await;
                }
                Ok(true)
            }
            Ok(StreamMessage::Config { config }) => Ok(self.take(Cache { config, etag: None }).await),
            Ok(StreamMessage::Command { command }) => {
                Ok(self.shared.incoming.send(Incoming::Command(command)).await.is_ok())
            }
            Err(error) => {
                let why =
                    format!("the control plane sent what this version does not understand: {error}; update the agent");
                self.shared.trouble(&why, false);
                Ok(true)
            }
        }
    }

    /// One `GET /agent/config`.
    async fn look(&mut self) {
        let mut headers = self.headers.clone();
        let etag = self.cached.as_ref().and_then(|c| c.etag.as_deref());
        if let Some(etag) = etag.and_then(|e| HeaderValue::from_str(e).ok()) {
            headers.insert(IF_NONE_MATCH, etag);
        }
        let call = Call { method: Method::GET, path: "/api/v1/agent/config", headers: &headers, body: None };
        let answer = match self.poll.call(&call, CONFIG_BYTES).await {
            Ok(answer) => answer,
            Err(error) => return self.shared.trouble(&error.to_string(), true),
        };
        if answer.status == 304 {
            return self.shared.connected();
        }
        match fate(answer.status, answer.header(RETRY_AFTER), &answer.body) {
            Fate::Delivered => {}
            Fate::Credentials { why } => return self.shared.trouble(&key_refused(self.shared, &why), true),
            Fate::Refused { why } | Fate::Retry { why, .. } => {
                return self.shared.trouble(&format!("no configuration: {why}"), true);
            }
        }
        let etag = answer.header(ETAG).map(ToOwned::to_owned);
        match serde_json::from_slice::<NodeConfig>(&answer.body) {
            Ok(config) => {
                self.shared.connected();
                self.take(Cache { config, etag }).await;
            }
            Err(error) => {
                let why = format!("the configuration is not understood by this version: {error}; update the agent");
                self.shared.trouble(&why, false);
            }
        }
    }

    /// One `GET /agent/commands`, for where there is no stream to bring them.
    async fn fetch_commands(&mut self) {
        #[derive(Deserialize)]
        struct Commands {
            commands: Vec<NodeCommand>,
        }
        let call = Call { method: Method::GET, path: "/api/v1/agent/commands", headers: self.headers, body: None };
        let answer = match self.poll.call(&call, CONFIG_BYTES).await {
            Ok(answer) if answer.status == 200 => answer,
            // Its trouble is that of the configuration, asked just before.
            Ok(_) | Err(_) => return,
        };
        match serde_json::from_slice::<Commands>(&answer.body) {
            Ok(Commands { commands }) => {
                for command in commands {
                    if self.shared.incoming.send(Incoming::Command(command)).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                self.shared
                    .trouble(&format!("commands are not understood by this version: {error}; update the agent"), false);
            }
        }
    }

    /// Hands a configuration to the daemon, keeps it on disk; false when the daemon is gone.
    async fn take(&mut self, cache: Cache) -> bool {
        let is_new = self.cached.as_ref().is_none_or(|c| c.config != cache.config);
        if is_new || self.cached.as_ref().is_some_and(|c| c.etag != cache.etag) {
            let path = cache_file(&self.shared.config.state_dir);
            if let Err(error) = persist::save_json(&path, &cache) {
                self.shared.trouble(&format!("the configuration is in force but not kept: {error}"), false);
            }
        }
        self.shared.take_trust(cache.config.trust.as_ref());
        let version = cache.config.version;
        self.shared.status.send_modify(|status| status.config_version = Some(version));
        let config = Box::new(cache.config.clone());
        self.cached = Some(cache);
        !is_new || self.shared.incoming.send(Incoming::Config(config)).await.is_ok()
    }
}

/// Bytes that arrive in any pieces, as lines; a line without an end is never given out.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn push(&mut self, data: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
        let mut complete = Vec::new();
        let mut rest = data;
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            self.extend(&rest[..end])?;
            let line = std::mem::take(&mut self.partial);
            if !line.trim_ascii().is_empty() {
                complete.push(line);
            }
            rest = &rest[end + 1..];
        }
        self.extend(rest)?;
        Ok(complete)
    }

    fn extend(&mut self, data: &[u8]) -> Result<(), &'static str> {
        if self.partial.len() + data.len() > CONFIG_BYTES {
            return Err("a line of the stream is too long");
        }
        self.partial.extend(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_any_pieces() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\r\n{\"half\"";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let got: Vec<Vec<u8>> = text.chunks(size).flat_map(|piece| lines.push(piece).unwrap()).collect();
            assert_eq!(got, [b"{\"a\":1}".to_vec(), b"{\"b\":2}\r".to_vec()], "pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..9).map(|_| lines.push(&piece)).filter(Result::is_err).count();
        assert_eq!(refused, 1);
    }
}
