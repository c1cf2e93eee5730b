//! Large sets of prefixes for the datapath.
//!
//! * [`plan`]: IPv4 prefixes as the array that [`ftagent_common::abi::prefixes`] describes; pure.
//! * [`map`]: that array in the kernel, filled through a mapping.
//! * [`slots`]: where the program finds that array.
//! * [`split6`]: IPv6 prefixes by the kernel table that holds them; pure.
//! * [`tables`]: both, for the lists in force.

pub mod map;
pub mod plan;
pub mod slots;
pub mod split6;
pub mod tables;

#[cfg(test)]
mod tests;
