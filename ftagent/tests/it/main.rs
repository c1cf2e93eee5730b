//! The agent's parts against the outside: one binary.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod sync;
