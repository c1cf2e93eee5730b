//! Kernel tests: they need root and say so when they are skipped. Run with `--test-threads=1`.

mod agent;
mod bypass;
mod datapath;
mod disguise;
mod endurance;
mod gate;
mod generator;
mod guards;
mod http;
mod kernel;
mod lab;
mod lab_command;
mod ladder;
mod policy;
mod relief;
mod replay;
mod run;
mod stages;
mod sum;
mod survival;
mod wire;
