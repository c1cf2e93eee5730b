//! The agent: reads the kernel's counters, classifies attacks, enforces rules and undoes them.
//!
//! `engine` decides and knows no clock, task, socket or file; everything else carries out what it decides.

pub mod config;
pub mod engine;
pub mod object;
pub mod xdp;
