//! Compiles the datapath and puts its object where `src/object.rs` embeds it from.

use std::process::ExitCode;

#[path = "../ftagent-ebpf/embed.rs"]
mod embed;

/// What cargo builds, and the name under which it is embedded.
const OBJECTS: [(&str, &str); 1] = [("ftagent-ebpf", "datapath.o")];

fn main() -> ExitCode {
    embed::embed(&OBJECTS)
}
