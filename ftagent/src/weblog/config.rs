//! `[[access_log]]` and `[http]` of the configuration.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

use super::formats::{Fields, Format};
use crate::engine::web::{WebResponse, WebSettings};

/// Entries that a node can have.
const MAX_LOGS: usize = 32;

/// One `[[access_log]]` as people write it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAccessLog {
    path: PathBuf,
    #[serde(default)]
    format: RawFormat,
    target: Option<IpAddr>,
    #[serde(default)]
    behind_proxy: bool,
    #[serde(default)]
    fields: Fields,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawFormat {
    #[default]
    Auto,
    Combined,
    Json,
    Haproxy,
    Caddy,
    NginxJson,
}

/// An access log, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// A path, or a pattern of paths.
    pub path: PathBuf,
    pub format: Format,
    /// The address that its server is asked at; absent: what the line says, else the node's first address.
    pub target: Option<IpAddr>,
    /// Clients come through a proxy whose address the log does not have: blocks would not meet them.
    pub behind_proxy: bool,
}

/// Checks every `[[access_log]]`.
///
/// # Errors
/// The first key that is wrong, and what is wrong with it.
pub fn check_access_logs(raw: &[RawAccessLog]) -> Result<Vec<AccessLog>, (String, String)> {
    if raw.len() > MAX_LOGS {
        return Err(("access_log".to_owned(), format!("must be at most {MAX_LOGS}, got {}", raw.len())));
    }
    let mut logs: Vec<AccessLog> = Vec::with_capacity(raw.len());
    for (index, log) in raw.iter().enumerate() {
        let error = |key: &str, message: String| Err((format!("access_log[{index}].{key}"), message));
        if !log.path.is_absolute() {
            return error("path", format!("must be an absolute path, got {}", log.path.display()));
        }
        let Some(text) = log.path.to_str() else { return error("path", "must be UTF-8".to_owned()) };
        if let Err(why) = glob::Pattern::new(text) {
            return error("path", format!("is no pattern: {why}"));
        }
        if logs.iter().any(|other| other.path == log.path) {
            return error("path", format!("{text} is named twice"));
        }
        let has_names = log.fields != Fields::default();
        if has_names && log.format != RawFormat::Json {
            return error("fields", "belong to format = \"json\"".to_owned());
        }
        if has_names && log.fields.address.is_none() {
            return error("fields.address", "name the field that has the client's address".to_owned());
        }
        logs.push(AccessLog {
            path: log.path.clone(),
            format: match log.format {
                RawFormat::Auto => Format::Auto,
                RawFormat::Combined => Format::Combined,
                RawFormat::Haproxy => Format::Haproxy,
                RawFormat::Json if has_names => Format::Json(Box::new(log.fields.clone())),
                RawFormat::Json => Format::Json(Box::new(Fields::common())),
                RawFormat::NginxJson => Format::Json(Box::new(Fields::nginx())),
                RawFormat::Caddy => Format::Json(Box::new(Fields::caddy())),
            },
            target: log.target,
            behind_proxy: log.behind_proxy,
        });
    }
    Ok(logs)
}

/// `[http]` as people write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawHttp {
    floor_rps: u64,
    static_rps: Option<u64>,
    source_rps: u64,
    confirm_ms: u32,
    response: WebResponse,
    limit_pps: u64,
    trusted_proxies: Vec<IpNet>,
    connections: bool,
    ports: Vec<u16>,
    look_secs: u32,
    min_connections: u64,
    slow_connections: u32,
    slow_bytes_per_sec: u64,
    slow_secs: u32,
}

impl Default for RawHttp {
    fn default() -> Self {
        let (settings, looks) = (WebSettings::default(), HttpConfig::default());
        Self {
            floor_rps: settings.floor_rps,
            static_rps: settings.static_rps,
            source_rps: settings.source_rps,
            confirm_ms: settings.confirm_ms,
            response: settings.response,
            limit_pps: settings.limit_pps,
            trusted_proxies: settings.trusted_proxies,
            connections: looks.enabled,
            ports: looks.ports,
            look_secs: looks.look_secs,
            min_connections: looks.min_connections,
            slow_connections: settings.slow_connections,
            slow_bytes_per_sec: settings.slow_bytes_per_sec,
            slow_secs: settings.slow_secs,
        }
    }
}

/// How connections are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    pub enabled: bool,
    /// Ports of web servers.
    pub ports: Vec<u16>,
    pub look_secs: u32,
    /// Fewer TCP sockets on the machine than this are not looked at.
    pub min_connections: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { enabled: true, ports: vec![80, 443, 8_000, 8_080, 8_443], look_secs: 5, min_connections: 100 }
    }
}

/// Checks `[http]`.
///
/// # Errors
/// The first key that is wrong, and what is wrong with it.
pub fn check_http(raw: &RawHttp) -> Result<(WebSettings, HttpConfig), (String, String)> {
    let within = |key: &str, value: u64, low: u64, high: u64| {
        let message = || (format!("http.{key}"), format!("must be {low} to {high}, got {value}"));
        (low..=high).contains(&value).then_some(()).ok_or_else(message)
    };
    within("floor_rps", raw.floor_rps, 10, 10_000_000)?;
    within("static_rps", raw.static_rps.unwrap_or(10), 10, 10_000_000)?;
    within("source_rps", raw.source_rps, 1, 100_000)?;
    within("confirm_ms", raw.confirm_ms.into(), 0, 60_000)?;
    within("limit_pps", raw.limit_pps, 1, 1_000_000)?;
    within("look_secs", raw.look_secs.into(), 1, 300)?;
    within("slow_connections", raw.slow_connections.into(), 5, 10_000)?;
    within("slow_bytes_per_sec", raw.slow_bytes_per_sec, 1, 100_000)?;
    within("slow_secs", raw.slow_secs.into(), 5, 600)?;
    if raw.ports.is_empty() || raw.ports.len() > 64 || raw.ports.contains(&0) {
        return Err(("http.ports".to_owned(), "must be 1 to 64 ports from 1".to_owned()));
    }
    if raw.trusted_proxies.len() > 4_096 {
        return Err(("http.trusted_proxies".to_owned(), "must be at most 4096".to_owned()));
    }
    if raw.trusted_proxies.iter().any(|net| net.prefix_len() == 0) {
        return Err(("http.trusted_proxies".to_owned(), "a prefix of length 0 would trust everybody".to_owned()));
    }
    let settings = WebSettings {
        floor_rps: raw.floor_rps,
        static_rps: raw.static_rps,
        source_rps: raw.source_rps,
        confirm_ms: raw.confirm_ms,
        response: raw.response,
        limit_pps: raw.limit_pps,
        slow_connections: raw.slow_connections,
        slow_bytes_per_sec: raw.slow_bytes_per_sec,
        slow_secs: raw.slow_secs,
        trusted_proxies: raw.trusted_proxies.iter().map(IpNet::trunc).collect(),
    };
    let looks = HttpConfig {
        enabled: raw.connections,
        ports: raw.ports.clone(),
        look_secs: raw.look_secs,
        min_connections: raw.min_connections,
    };
    Ok((settings, looks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        access_log: Vec<RawAccessLog>,
        #[serde(default)]
        http: RawHttp,
    }

    fn parse(text: &str) -> Result<(Vec<AccessLog>, WebSettings), String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        let words = |(key, message): (String, String)| format!("{key}: {message}");
        Ok((check_access_logs(&file.access_log).map_err(words)?, check_http(&file.http).map_err(words)?.0))
    }

    #[test]
    fn a_log_needs_nothing_but_its_path() {
        let (logs, settings) = parse("[[access_log]]\npath = \"/var/log/nginx/*.log\"\n").expect("valid");
        assert_eq!((&logs[0].format, logs[0].target, logs[0].behind_proxy), (&Format::Auto, None, false));
        assert_eq!(settings, WebSettings::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("[[access_log]]\npath = \"a.log\"", "access_log[0].path: must be an absolute path, got a.log"),
            ("[[access_log]]\npath = \"/a/[\"", "access_log[0].path: is no pattern"),
            ("[[access_log]]\npath = \"/a\"\nformat = \"iis\"", "iis"),
            ("[[access_log]]\npath = \"/a\"\nfields = { address = \"ip\" }", "access_log[0].fields: belong to"),
            ("[[access_log]]\npath = \"/a\"\nformat = \"json\"\nfields = { uri = \"u\" }", "fields.address: name"),
            ("[[access_log]]\npath = \"/a\"\n[[access_log]]\npath = \"/a\"", "access_log[1].path: /a is named twice"),
            ("[[access_log]]\npath = \"/a\"\ncolour = 1", "colour"),
            ("[http]\nfloor_rps = 1", "http.floor_rps: must be 10 to 10000000, got 1"),
            ("[http]\nresponse = \"panic\"", "panic"),
            ("[http]\nports = []", "http.ports"),
            ("[http]\nslow_secs = 1", "http.slow_secs"),
            ("[http]\ntrusted_proxies = [\"0.0.0.0/0\"]", "trust everybody"),
        ] {
            let got = parse(&format!("{text}\n"));
            assert!(got.as_ref().is_err_and(|e| e.contains(expected)), "{text}: {got:?} lacks {expected:?}");
        }
    }
}
