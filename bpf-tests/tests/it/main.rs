//! Kernel tests: they need root and say so when they are skipped. Run with `--test-threads=1`.

mod agent;
mod datapath;
mod generator;
mod guards;
mod http;
mod kernel;
mod lab;
mod lab_command;
mod ladder;
mod replay;
mod run;
mod stages;
mod wire;
