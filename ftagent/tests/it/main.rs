//! The agent's parts against the outside: one binary.

mod sync;
