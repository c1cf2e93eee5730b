//! The agent: reads the kernel's counters, classifies attacks, enforces rules and undoes them.
//!
//! `engine` decides and knows no clock, task, socket or file; everything else carries out what it decides.

pub mod config;
pub mod engine;
pub mod host;
pub mod netlink;
pub mod object;
pub mod persist;
pub mod sync;
pub mod xdp;

#[cfg(test)]
mod test_ground;
#[cfg(test)]
pub(crate) use test_ground::on_a_small_disk;
