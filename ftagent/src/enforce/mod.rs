//! Where rules are carried out.

pub mod datapath;
pub mod gate;
mod left;
pub mod nftables;
pub mod worker;
