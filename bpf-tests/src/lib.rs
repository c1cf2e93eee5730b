//! Tests of the kernel part and the demonstration, in the lab of `ftagent-lab`, whose modules are here under their names.
#![forbid(unsafe_code)]

pub mod bench;
pub mod demo;
pub mod kernel;

pub use ftagent_lab::*;
