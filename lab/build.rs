//! Compiles the lab's BPF programs and puts their objects where `src/object.rs` embeds them from.

use std::process::ExitCode;

#[path = "../ftagent-ebpf/embed.rs"]
mod embed;

/// What cargo builds, and the name under which it is embedded.
const OBJECTS: [(&str, &str); 1] = [("lab-generator", "lab_generator.o")];

fn main() -> ExitCode {
    embed::embed(&OBJECTS)
}
