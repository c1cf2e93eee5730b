//! One request as a log's line has it, in the engine's terms.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use regex::bytes::Regex;

use crate::engine::web::Method;

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whom the server saw.
    pub peer: IpAddr,
    /// `X-Forwarded-For` as it was logged.
    pub forwarded: Option<String>,
    /// The server's own address, where the line has it.
    pub server: Option<IpAddr>,
    pub method: Method,
    /// 0 where the server gave no answer.
    pub status: u16,
    pub bytes: u64,
    pub millis: Option<u32>,
    /// Hashes.
    pub path: u64,
    pub query: Option<u64>,
    /// 0: the client named none.
    pub agent: u64,
    pub asset: bool,
    pub crawler: bool,
}

static CRAWLERS: LazyLock<Regex> = LazyLock::new(|| {
    let names = "googlebot|google-inspectiontool|bingbot|duckduckbot|yandexbot|baiduspider|applebot|slurp|petalbot|\
                 facebookexternalhit|seznambot|amazonbot|qwantbot";
    Regex::new(&format!("(?i-u:{names})")).expect("a fixed pattern")
});
static ASSETS: LazyLock<Regex> = LazyLock::new(|| {
    let ends = "css|js|mjs|map|png|jpe?g|gif|svg|ico|webp|avif|woff2?|ttf|otf|mp4|webm|mp3";
    Regex::new(&format!(r"(?i-u:\.(?:{ends})$)")).expect("a fixed pattern")
});

/// The parts that every format has.
pub(super) struct Parts<'a> {
    pub(super) peer: IpAddr,
    pub(super) method: &'a [u8],
    pub(super) uri: &'a [u8],
    pub(super) status: u16,
    /// Absent where the format does not have it.
    pub(super) agent: Option<&'a [u8]>,
}

impl Entry {
    pub(super) fn new(parts: &Parts<'_>) -> Self {
        // A request for a proxy names the whole URL; what counts is the same.
        let at = parts.uri.iter().position(|b| *b == b'?');
        let (path, query) = match at {
            Some(at) => (&parts.uri[..at], Some(&parts.uri[at + 1..])),
            None => (parts.uri, None),
        };
        let agent = match parts.agent {
            Some(b"" | b"-") => 0,
            Some(agent) => hash(agent).max(1),
            None => 1,
        };
        Self {
            peer: parts.peer,
            forwarded: None,
            server: None,
            method: match parts.method {
                b"GET" | b"HEAD" => Method::Get,
                b"POST" | b"PUT" | b"PATCH" => Method::Post,
                _ => Method::Other,
            },
            status: parts.status,
            bytes: 0,
            millis: None,
            path: hash(path),
            query: query.filter(|q| !q.is_empty()).map(hash),
            agent,
            asset: ASSETS.is_match(path),
            crawler: parts.agent.is_some_and(|agent| CRAWLERS.is_match(agent)),
        }
    }

    /// The client that proxies stand before: the last address of `X-Forwarded-For` that is no trusted proxy's.
    pub fn client_behind(&self, is_proxy: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let forwarded = self.forwarded.as_ref()?;
        forwarded.rsplit(',').take(32).filter_map(address).find(|ip| !is_proxy(*ip))
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// An address as logs write them: alone, in brackets, or with a port.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|s| s.ip()))?;
    Some(match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        v4 => v4,
    })
}

/// Seconds with a fraction as milliseconds; of several, as behind several upstreams, the last.
pub(super) fn millis(seconds: &str) -> Option<u32> {
    let last = seconds.rsplit([',', ' ']).next()?;
    let seconds: f64 = last.parse().ok()?;
    (seconds.is_finite() && (0.0..4_000_000.0).contains(&seconds)).then_some((seconds * 1_000.0) as u32)
}

/// Text for people's eyes and for parsers that want it to be UTF-8.
pub(super) fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
