//! What is told of web servers: requests as their logs have them, and connections as the kernel has them.

use std::collections::HashMap;
use std::net::IpAddr;

/// One line of an access log, as far as decisions need it. Texts are hashes: only their equality counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebRequest {
    /// The address that was asked.
    pub target: IpAddr,
    /// The client: of a trusted proxy's line whom the proxy names, else the peer.
    pub source: IpAddr,
    /// The client's packets do not arrive here under its own address: a block would miss it.
    pub proxied: bool,
    pub method: Method,
    /// 0 where the server gave no answer.
    pub status: u16,
    /// Bytes sent to the client.
    pub bytes: u64,
    /// How long the request took in milliseconds, where the log says so.
    pub millis: Option<u32>,
    pub path: u64,
    /// Absent without a query string.
    pub query: Option<u64>,
    /// 0 without a user agent.
    pub agent: u64,
    /// The path is that of a page's part, such as a picture or a script.
    pub asset: bool,
    /// The user agent claims to be a search engine's.
    pub crawler: bool,
}

/// What a request wants to do, as far as floods differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Other,
}

/// Lines that arrived since the last batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestBatch {
    pub requests: Vec<WebRequest>,
    /// Lines that were counted and not read, by target: there were more than are read.
    pub unread: HashMap<IpAddr, u64>,
}

/// An established connection to a port that this machine listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The kernel's name for it, never used again.
    pub cookie: u64,
    pub target: IpAddr,
    pub port: u16,
    pub source: IpAddr,
    /// Bytes of the client's so far.
    pub received: u64,
    /// Bytes that the client acknowledged so far.
    pub acked: u64,
    /// Bytes that the server wrote and the client did not acknowledge.
    pub unsent: u32,
}

/// One look at the kernel's connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionReading {
    pub connections: Vec<Connection>,
    /// There were more than are looked at.
    pub truncated: bool,
}
