//! The formats of access logs: a line in, an [`Entry`] out, or nothing where the line makes no sense.
//!
//! Patterns are the `regex` crate's, whose time is linear in the line whatever the line is.

use std::net::IpAddr;
use std::sync::LazyLock;

use regex::bytes::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::entry::{Entry, Parts, address, millis, text};

/// How lines are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Line by line: JSON begins with a brace, HAProxy's has its timers, the rest is tried as combined.
    #[default]
    Auto,
    /// Common and combined log format of nginx and Apache, with or without a virtual host before and fields behind.
    Combined,
    Haproxy,
    Json(Box<Fields>),
}

/// Names of the fields of a JSON log; a dot goes into an object. Lists are looked at by their first element.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    pub address: Option<String>,
    pub method: Option<String>,
    pub uri: Option<String>,
    /// Method, URI and version in one, as `$request` of nginx.
    pub request: Option<String>,
    pub status: Option<String>,
    pub bytes: Option<String>,
    /// Seconds that the request took.
    pub seconds: Option<String>,
    pub agent: Option<String>,
    pub forwarded_for: Option<String>,
    /// The server's address.
    pub server: Option<String>,
}

impl Fields {
    /// nginx, whose operators name the fields as the variables are named.
    pub(super) fn nginx() -> Self {
        let name = |s: &str| Some(s.to_owned());
        Self {
            address: name("remote_addr"),
            method: name("request_method"),
            uri: name("request_uri"),
            request: name("request"),
            status: name("status"),
            bytes: name("body_bytes_sent|bytes_sent"),
            seconds: name("request_time"),
            agent: name("http_user_agent"),
            forwarded_for: name("http_x_forwarded_for"),
            server: name("server_addr"),
        }
    }

    /// Caddy's own JSON.
    pub(super) fn caddy() -> Self {
        let name = |s: &str| Some(s.to_owned());
        Self {
            address: name("request.remote_ip|request.remote_addr"),
            method: name("request.method"),
            uri: name("request.uri"),
            request: None,
            status: name("status"),
            bytes: name("size"),
            seconds: name("duration"),
            agent: name("request.headers.User-Agent"),
            forwarded_for: name("request.headers.X-Forwarded-For"),
            server: None,
        }
    }

    /// Names that are common, where nobody said any.
    pub(super) fn common() -> Self {
        let (nginx, caddy) = (Self::nginx(), Self::caddy());
        let both = |a: Option<String>, b: Option<String>, more: &str| {
            let all: Vec<String> = a.into_iter().chain(b).chain((!more.is_empty()).then(|| more.to_owned())).collect();
            Some(all.join("|"))
        };
        Self {
            address: both(nginx.address, caddy.address, "client_ip|clientip|remote_ip|ClientHost"),
            method: both(nginx.method, caddy.method, "method|RequestMethod"),
            uri: both(nginx.uri, caddy.uri, "uri|path|url|RequestPath"),
            request: Some("request".to_owned()),
            status: both(nginx.status, None, "status_code|DownstreamStatus"),
            bytes: both(nginx.bytes, caddy.bytes, "bytes|DownstreamContentSize"),
            seconds: both(nginx.seconds, caddy.seconds, ""),
            agent: both(nginx.agent, caddy.agent, "user_agent|agent"),
            forwarded_for: both(nginx.forwarded_for, caddy.forwarded_for, "x_forwarded_for"),
            server: nginx.server,
        }
    }
}

/// Longest part of a request line that is looked at.
const MAX_URI: usize = 4_096;

static COMBINED: LazyLock<Regex> = LazyLock::new(|| {
    // Quoted fields end at a quote that no backslash stands before.
    let quoted = r#""((?:[^"\\]|\\.)*)""#;
    let pattern =
        format!(r#"(?s-u)^([^\["]*)\[[^\]]*\] {quoted} (-|\d{{1,3}}) (-|\d{{1,18}})(?: {quoted} {quoted}(.*))?"#);
    Regex::new(&pattern).expect("a fixed pattern")
});
static QUOTED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"(?-u)"([^"\\]*)""#).expect("a fixed pattern"));
static SECONDS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?-u)(?:^|[ =])(\d{1,7}\.\d{3})(?: |$)").expect("a fixed pattern"));
static HAPROXY: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = concat!(
        r#"(?s-u)(\S+):\d{1,5} \[[^\]]+\] \S+ \S+ -?\d+/-?\d+/-?\d+/-?\d+/\+?(-?\d{1,10}) (-?\d{1,3}) \+?(\d{1,18}) "#,
        r#"\S+ \S+ ([A-Za-z-]{2,4}) [\d/+]+ [\d/]+ (?:\{[^}]*\} ?)*"([^"]*)"?$"#
    );
    Regex::new(pattern).expect("a fixed pattern")
});

impl Format {
    /// Reads one line, without its end.
    pub fn read(&self, line: &[u8]) -> Option<Entry> {
        static COMMON: LazyLock<Fields> = LazyLock::new(Fields::common);
        match self {
            Self::Auto if line.trim_ascii_start().first() == Some(&b'{') => json(line, &COMMON),
            Self::Auto => combined(line).or_else(|| haproxy(line)),
            Self::Combined => combined(line),
            Self::Haproxy => haproxy(line),
            Self::Json(fields) => json(line, fields),
        }
    }

    /// The name in the configuration.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Combined => "combined",
            Self::Haproxy => "haproxy",
            Self::Json(_) => "json",
        }
    }
}

/// Method and URI of a request line; what is none is one piece that says only that it is the same again.
fn split(request: &[u8]) -> (&[u8], &[u8]) {
    let request = &request[..request.len().min(MAX_URI)];
    let mut words = request.split(|b| *b == b' ');
    match (words.next(), words.next()) {
        (Some(method), Some(uri)) if !uri.is_empty() => (method, uri),
        _ => (b"", request),
    }
}

fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn combined(line: &[u8]) -> Option<Entry> {
    let found = COMBINED.captures(line)?;
    // A virtual host may come first, with or without its port.
    let before = text(&found[1]);
    let peer = before.split_ascii_whitespace().take(2).find_map(address)?;
    let (method, uri) = split(&found[2]);
    let agent = found.get(6).map(|m| m.as_bytes());
    let mut entry = Entry::new(&Parts { peer, method, uri, status: number(&found[3]).unwrap_or(0), agent });
    entry.bytes = number(&found[4]).unwrap_or(0);
    if let Some(rest) = found.get(7).map(|m| m.as_bytes()).filter(|rest| !rest.is_empty()) {
        entry.millis = SECONDS.captures(rest).and_then(|c| millis(&text(&c[1])));
        let mut fields = QUOTED.captures_iter(rest).take(8).map(|c| text(&c[1]).into_owned());
        entry.forwarded = fields.find(|field| field.split(',').next().and_then(address).is_some());
    }
    Some(entry)
}

fn haproxy(line: &[u8]) -> Option<Entry> {
    let found = HAPROXY.captures(line.trim_ascii_end())?;
    let peer = address(&text(&found[1]))?;
    let (method, uri) = split(&found[6]);
    // The first letter says who ended the session, the second when: C and c are the client and its timeout.
    let (state, status) = (&found[5], number::<i16>(&found[3])?);
    let status = match (state[0], u16::try_from(status)) {
        (b'c', Ok(0) | Err(_)) => 408,
        (b'C', _) => 499,
        (_, Ok(status)) => status,
        (_, Err(_)) => 0,
    };
    let mut entry = Entry::new(&Parts { peer, method, uri, status, agent: None });
    entry.bytes = number(&found[4]).unwrap_or(0);
    entry.millis = number::<i64>(&found[2]).and_then(|ms| u32::try_from(ms).ok());
    Some(entry)
}

fn json(line: &[u8], fields: &Fields) -> Option<Entry> {
    // Whatever the encoding was: names and numbers are ASCII. Nesting is bounded by the parser.
    let value: Value = serde_json::from_str(&text(line)).ok()?;
    let field = |names: &Option<String>| names.as_ref().and_then(|names| names.split('|').find_map(|n| at(&value, n)));
    let words = |names: &Option<String>| field(names).and_then(words);
    let peer = address(&words(&fields.address)?)?;
    let request = words(&fields.request).filter(|request| request.contains(' '));
    let (method, uri) = match (words(&fields.method), words(&fields.uri), &request) {
        (_, Some(uri), None) if fields.method.is_none() => ("GET".to_owned(), uri),
        (Some(method), Some(uri), _) => (method, uri),
        (_, _, Some(request)) => {
            let (method, uri) = split(request.as_bytes());
            (text(method).into_owned(), text(uri).into_owned())
        }
        (_, Some(uri), None) => (String::new(), uri),
        _ => return None,
    };
    let status = words(&fields.status).and_then(|s| s.parse().ok()).unwrap_or(0);
    let uri = &uri.as_bytes()[..uri.len().min(MAX_URI)];
    // A header that a server logs only where it came is not the same as one that is never logged.
    let agent = fields.agent.as_ref().map(|_| words(&fields.agent).unwrap_or_default());
    let agent = agent.as_ref().map(String::as_bytes);
    let mut entry = Entry::new(&Parts { peer, method: method.as_bytes(), uri, status, agent });
    entry.bytes = words(&fields.bytes).and_then(|s| s.parse().ok()).unwrap_or(0);
    entry.millis = words(&fields.seconds).and_then(|s| millis(&s));
    entry.forwarded = words(&fields.forwarded_for).filter(|s| !matches!(s.as_str(), "" | "-"));
    entry.server = words(&fields.server).and_then(|s| address(&s));
    Some(entry)
}

/// The value at `path`; header names are looked for as they are spelled.
fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    // Some log shippers write the dots into the name itself.
    value.get(path).or_else(|| path.split('.').try_fold(value, |value, name| value.get(name)))
}

/// A value as text; of a list the first.
fn words(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(list) => list.first().and_then(words),
        _ => None,
    }
}

/// Whether an address can be a client's.
pub(super) fn is_client(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast()
}

#[cfg(test)]
#[path = "formats_tests.rs"]
mod tests;
