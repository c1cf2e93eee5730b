//! The link to the control plane.

pub mod spool;
