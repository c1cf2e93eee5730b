//! What of ftagent works on this kernel; see `bpf_tests::kernel`.

use std::path::PathBuf;
use std::process::ExitCode;

use bpf_tests::kernel::{self, Tools, init};
use clap::Parser;

/// Tells of the running kernel. Needs root; works in network namespaces of its own.
#[derive(Parser)]
#[command(name = "kernel-matrix")]
struct Arguments {
    /// The agent's binary
    #[arg(long, value_name = "PATH")]
    ftagent: PathBuf,
    /// Only rows whose names contain this
    #[arg(long, value_name = "PART")]
    row: Option<String>,
}

fn main() -> ExitCode {
    if init::is_first() {
        init::main();
        return ExitCode::FAILURE;
    }
    let arguments = Arguments::parse();
    let tools = Tools { ftagent: arguments.ftagent, ip: "ip".into(), tc: "tc".into() };
    if kernel::run(&tools, arguments.row.as_deref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
