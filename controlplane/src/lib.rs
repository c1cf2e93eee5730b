//! The control plane of ftagent: REST, agent protocol, audit, on an embedded database or PostgreSQL.
//!
//! `http` parses requests and writes answers, `app` is what callers may do, `store` keeps it, `domain` decides.
#![forbid(unsafe_code)]

pub mod adapters;
pub mod analysis;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod http;
pub mod jobs;
pub mod maintenance;
pub mod outbound;
pub mod pki;
pub mod server;
pub mod store;
pub mod tls;
