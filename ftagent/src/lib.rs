//! The agent: reads the kernel's counters, classifies attacks, enforces rules and undoes them.
//!
//! `engine` decides and knows no clock, task, socket or file; everything else carries out what it decides.

pub mod actions;
pub mod below;
pub mod check;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod crowdsec;
pub mod daemon;
pub mod enforce;
pub mod engine;
pub mod flows;
pub mod ground;
pub mod host;
pub mod lab;
pub mod lists;
pub mod metrics;
pub mod netlink;
pub mod notify;
pub mod object;
pub mod pcap;
pub mod persist;
pub mod profile;
pub mod program;
pub mod replay;
mod secret_file;
pub mod sessions;
mod sockets;
pub mod status;
pub mod sync;
pub mod weblog;
pub mod xdp;

#[cfg(test)]
mod test_ground;
#[cfg(test)]
pub(crate) use test_ground::on_a_small_disk;
