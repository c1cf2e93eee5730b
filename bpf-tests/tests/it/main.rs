//! Kernel tests: they need root and say so when they are skipped. Run with `--test-threads=1`.

mod agent;
mod bypass;
mod cookies;
mod datapath;
mod disguise;
mod endurance;
mod exporters;
mod express;
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
mod policy;
mod replay;
mod run;
mod stages;
mod sum;
mod visible;
mod wire;
