//! What the operator configured of web floods.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

/// `[http]`, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct WebSettings {
    /// Requests per second of one site below which nothing is a flood.
    pub floor_rps: u64,
    /// The threshold itself, instead of what is learnt.
    pub static_rps: Option<u64>,
    /// Requests per second that make a source worth a look.
    pub source_rps: u64,
    /// How long the threshold must be exceeded; web servers write their logs in lumps.
    pub confirm_ms: u32,
    pub response: WebResponse,
    /// Packets per second that a limited source keeps.
    pub limit_pps: u64,
    /// Slow connections of one source that are an attack.
    pub slow_connections: u32,
    /// Bytes per second below which a connection is slow.
    pub slow_bytes_per_sec: u64,
    /// How long a connection must have been slow.
    pub slow_secs: u32,
    /// Whose connections and requests are other people's.
    pub trusted_proxies: Vec<IpNet>,
}

/// What happens to the sources of a web flood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebResponse {
    #[default]
    Block,
    Limit,
    /// Nothing: the incident is reported.
    Report,
}

impl Default for WebSettings {
    fn default() -> Self {
        Self {
            floor_rps: 500,
            static_rps: None,
            source_rps: 20,
            confirm_ms: 2_000,
            response: WebResponse::Block,
            limit_pps: 50,
            slow_connections: 20,
            slow_bytes_per_sec: 100,
            slow_secs: 10,
            trusted_proxies: Vec::new(),
        }
    }
}

impl WebSettings {
    /// Whether `ip` is a trusted proxy.
    pub fn is_proxy(&self, ip: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|net| net.contains(&ip))
    }
}
