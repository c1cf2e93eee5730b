//! The agent's parts against the outside: one binary.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod sync;
//! The engine against scripts, generated floods, real captures and random inputs.

mod captures;
mod cost;
mod floods;
mod frames;
mod kernel;
mod properties;
mod scripts;
