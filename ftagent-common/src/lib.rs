//! What kernel and user space, agent and control plane have in common.
//!
//! * [`vocab`]: the field's words as small enums, each spelled once.
//! * [`abi`]: everything that crosses the kernel/user boundary, with fixed layouts.
//! * [`frame`] and [`packet`]: bounds-checked packet parsing, the same source in the kernel and in tests.
//! * `api` (feature `api`): the agent protocol and firewall rules as JSON.
//!
//! No I/O may live here, and without the feature `api` the crate is `no_std`: it is compiled for the BPF target.
#![cfg_attr(not(any(feature = "api", test)), no_std)]

pub mod abi;
#[cfg(feature = "api")]
pub mod api;
pub mod frame;
pub mod packet;
pub mod services;
pub mod vocab;
