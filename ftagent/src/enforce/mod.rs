//! Where rules are carried out.

pub mod datapath;
pub mod gate;
pub mod nftables;
pub mod worker;
