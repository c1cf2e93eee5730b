//! The lab: network namespaces, wires, traffic and counters for kernel tests, benches and `ftagent lab`.
//!
//! * [`netns`], [`veth`], [`bpffs`]: guards over what the kernel keeps; all of it goes when the guard goes.
//! * [`packet`], [`checksum`], [`run`]: frames built by hand and single runs of a program (`BPF_PROG_TEST_RUN`).
//! * [`generator`], [`replay`], [`generate`], [`captures`]: attack traffic, forged or recorded.
//! * [`floods`]: floods of every family as frames in memory.
//! * [`http`]: clean traffic, real connections through the same wire.
//! * [`meter`]: counts frames on the far side of whatever is under test, apart for attack and clean traffic.
//! * [`ladder`]: what a dropped packet costs, for every way to drop it.
//! * [`process`], [`signals`]: programs that run in a lab, and how it ends early.
//!
//! Nothing here decides anything about attacks, and nothing outside namespaces made here is touched.
#![deny(unsafe_code)]

pub mod bpffs;
pub mod capability;
pub mod captures;
pub mod checksum;
pub mod clock;
mod ethtool;
pub mod floods;
pub mod generate;
pub mod generator;
pub mod http;
pub mod inside;
pub mod ladder;
pub mod meter;
pub mod netns;
pub mod object;
pub mod packet;
pub mod process;
pub mod replay;
mod rtnl;
pub mod run;
pub mod signals;
pub mod veth;

pub use capability::skip_without_root;
