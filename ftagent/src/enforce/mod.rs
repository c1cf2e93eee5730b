//! Where rules are carried out.

pub mod carriers;
pub mod datapath;
pub mod gate;
pub mod ladder;
mod left;
mod netlink;
pub mod nftables;
pub mod null_route;
mod rtnetlink;
mod split;
pub mod tc;
mod told;
pub mod worker;
