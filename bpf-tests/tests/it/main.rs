//! Kernel tests: they need root and say so when they are skipped.
//!
//! `cargo xtask test` runs some of them beside each other, and those that `xtask/src/test/passes.rs` names alone. Whoever
//! runs this program by hand does without the latter, or runs it with `--test-threads=1`.

mod actions;
mod agent;
mod bypass;
mod captures;
mod cookies;
mod crowdsec;
mod datapath;
mod disguise;
mod endurance;
mod exporters;
mod express;
mod fallback;
mod gate;
mod gate_state;
mod generator;
mod guards;
mod http;
mod jumbo;
mod kernel;
mod lab;
mod lab_command;
mod ladder;
mod lists;
mod many;
mod policy;
mod relief;
mod replay;
mod run;
mod service;
mod sessions;
mod sources;
mod stages;
mod sum;
mod survival;
mod targets;
mod tools;
mod upload;
mod versions;
mod visible;
mod web;
mod wire;
