//! Compiles the BPF programs of the agent and puts their objects where `src/object.rs` embeds them from.

use std::process::ExitCode;

#[path = "../ftagent-ebpf/embed.rs"]
mod embed;

/// What cargo builds, and the name under which it is embedded.
const OBJECTS: [(&str, &str); 2] = [("ftagent-ebpf", "datapath.o"), ("tc-bucket", "tc_bucket.o")];

fn main() -> ExitCode {
    embed::embed(&OBJECTS)
}
