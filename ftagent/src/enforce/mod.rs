//! Where rules are carried out.

pub mod datapath;
