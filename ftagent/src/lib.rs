//! The agent: everything that runs on an edge node.

pub mod object;
