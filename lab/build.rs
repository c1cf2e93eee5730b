//! Compiles the lab's BPF programs and puts their objects where `src/object.rs` embeds them from.

use std::process::ExitCode;

#[path = "../ftagent-ebpf/embed.rs"]
mod embed;

/// What cargo builds, and the name under which it is embedded.
const OBJECTS: [(&str, &str); 3] =
    [("lab-generator", "lab_generator.o"), ("lab-ladder", "lab_ladder.o"), ("lab-stopwatch", "lab_stopwatch.o")];

fn main() -> ExitCode {
    embed::embed(&OBJECTS)
}
