//! Requests for tests.

use super::input::{Method, WebRequest};

/// An ordinary request of `source`.
pub(super) fn request(source: &str) -> WebRequest {
    WebRequest {
        target: "203.0.113.5".parse().expect("an address"),
        source: source.parse().expect("an address"),
        proxied: false,
        method: Method::Get,
        status: 200,
        bytes: 4_000,
        millis: Some(12),
        path: 1,
        query: None,
        agent: 7,
        asset: false,
        crawler: false,
    }
}
