//! Large sets of prefixes for the datapath.
//!
//! * [`plan`]: IPv4 prefixes as the array that [`ftagent_common::abi::prefixes`] describes; pure.
//! * [`map`]: that array in the kernel, filled through a mapping.
//! * [`split6`]: IPv6 prefixes by the kernel table that holds them; pure.

pub mod map;
pub mod plan;
pub mod split6;

#[cfg(test)]
mod tests;
