//! The lab: network namespaces, wires, traffic and counters for kernel tests and for the demonstration.
//!
//! * [`netns`], [`veth`], [`bpffs`]: guards over what the kernel keeps; all of it goes when the guard goes.
//! * [`packet`], [`checksum`], [`run`]: frames built by hand and single runs of a program (`BPF_PROG_TEST_RUN`).
//! * [`generator`], [`replay`], [`generate`], [`captures`]: attack traffic, forged or recorded.
//! * [`http`]: clean traffic, real connections through the same wire.
//! * [`meter`]: counts frames on the far side of whatever is under test, apart for attack and clean traffic.
//!
//! Nothing here decides anything about attacks, and nothing outside namespaces made here is touched.
#![forbid(unsafe_code)]

pub mod bpffs;
pub mod capability;
pub mod captures;
pub mod checksum;
pub mod clock;
pub mod demo;
pub mod generate;
pub mod generator;
pub mod http;
pub mod inside;
pub mod kernel;
pub mod meter;
pub mod netns;
mod object;
pub mod packet;
pub mod replay;
mod rtnl;
pub mod run;
pub mod veth;

pub use capability::skip_without_root;
