//! The control plane through its real edges: sockets, database files, processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod agent;
mod captures;
mod cluster;
mod databases;
mod faults;
mod fixture;
mod hostile;
mod http;
mod intel;
mod limits;
mod openapi;
mod outbox;
mod pcap_files;
mod pcap_views;
mod pcaps;
mod peers;
mod process;
mod remote_write;
mod resources;
mod roles;
mod siege;
mod store;
mod stream;
mod support;
