//! The control plane through its real edges: sockets, database files, processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod agent;
mod authority;
mod authorization;
mod captures;
mod cluster;
mod copies;
mod crash;
mod databases;
mod document;
mod faults;
mod firewalls;
mod fixture;
mod hostile;
mod http;
mod intel;
mod junk;
mod limits;
mod load;
mod mitigation;
mod openapi;
mod outbox;
mod pcap_files;
mod pcap_views;
mod pcaps;
mod peers;
mod process;
mod profiles;
mod receiver;
mod reference;
mod remote_write;
mod resources;
mod roles;
mod runbooks;
mod servers;
mod siege;
mod staged;
mod store;
mod stream;
mod support;
mod tls;
mod world;
