//! The agent's parts against the outside, and the engine against scripts, generated floods, real captures and random
//! inputs: one binary.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod actions;
mod captures;
mod clouds;
mod cost;
mod floods;
mod kernel;
mod profiles;
mod properties;
mod replay;
mod returns;
mod scenes;
mod scripts;
mod steps;
mod sync;
mod tools;
mod transit;
