//! `cargo xtask setup`: what the eBPF build, the labs and the tests need beside cargo.
//!
//! ```text
//! tools (table)  ->  a compiler for BPF  ->  a bpf-linker for that compiler's LLVM  ->  target/toolchain/bpf.json
//! ```
//! Each step first looks whether its result is already there, so that a second run does nothing and one that was
//! killed half-way goes on where it stopped. `ftagent-ebpf/embed.rs` reads the record; nothing else passes between them.

mod compiler;
mod distribution;
mod firewalls;
mod linker;
mod record;
pub(crate) mod tools;

use std::fs::{self, File};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

pub(crate) use self::distribution::install_with as install;
pub(crate) use self::record::{BPF_TARGET, Kind, Record, read as recorded};
use crate::repo;

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only report what is there and what is missing; exit status 1 when something is
    #[arg(long)]
    pub(crate) check: bool,
    /// Take the compiler for BPF from there instead of from whichever has one
    #[arg(long, value_enum)]
    pub(crate) compiler: Option<Source>,
    /// Also install what the drop ladder compares with and tests of actions run: iptables, ipset and xdp-filter
    #[arg(long)]
    pub(crate) peers: bool,
    /// Also install the servers that the tests start for themselves: PostgreSQL and Prometheus
    #[arg(long)]
    pub(crate) databases: bool,
    /// Also fetch, but not install, the firewalls that the tests start for themselves: ufw, firewalld, fail2ban, CrowdSec
    #[arg(long)]
    pub(crate) firewalls: bool,
}

/// Where a compiler for BPF can come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Source {
    /// A rustup toolchain with the component rust-src; `core` is compiled with the datapath
    Rustup,
    /// The distribution's compiler with a `core` that was compiled for BPF
    Distribution,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.check {
        return check(options);
    }
    ensure(options)?;
    Ok(ExitCode::SUCCESS)
}

/// Sees to it that everything is there, and says in one line that it is.
///
/// # Errors
/// With the command that mends it, when something is missing and cannot be installed from here.
pub(crate) fn ensure(options: &Options) -> Result<Record> {
    let folder = record::folder();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let _held = lock()?;

    if options.peers {
        // The ladder leaves out what cannot be had here, and says so.
        if let Err(error) = tools::install(&tools::missing(tools::PEERS)) {
            eprintln!("  going on without: {error:#}");
        }
    }
    if options.firewalls {
        // The tests that need them are skipped and say so.
        if let Err(error) = firewalls::fetch() {
            eprintln!("  going on without: {error:#}");
        }
    }
    let mut missing = tools::missing(tools::TOOLS);
    if options.databases {
        missing.extend(tools::missing(tools::DATABASES));
    }
    if missing.is_empty()
        && let Some(record) = record::read().filter(|record| record.is_usable(options.compiler))
    {
        eprintln!("setup: ready ({})", record.summary());
        return Ok(record);
    }

    let began = Instant::now();
    eprintln!("setup: finding or installing what the eBPF build and the labs need");
    tools::install(&missing)?;
    let compiler = compiler::ensure(options.compiler)?;
    let linker = linker::ensure(&compiler)?;
    let record = Record::new(compiler, linker);
    record.write()?;
    eprintln!("setup: ready after {} s ({})", began.elapsed().as_secs(), record.summary());
    Ok(record)
}

fn check(options: &Options) -> Result<ExitCode> {
    let mut complete = true;
    let peers = if options.peers { tools::PEERS } else { &[] };
    let databases = if options.databases { tools::DATABASES } else { &[] };
    for tool in tools::TOOLS.iter().chain(databases).chain(peers) {
        match tool.find() {
            Some(path) => println!("ok       {:<10} {}", tool.program, path.display()),
            None => {
                complete = false;
                println!("missing  {:<10} {} (package {})", tool.program, tool.purpose, tool.package());
            }
        }
    }
    match compiler::find(options.compiler) {
        Some(compiler) => println!("ok       {:<10} {}", "compiler", compiler.summary()),
        None => {
            complete = false;
            println!("missing  {:<10} compiles the datapath for BPF ({})", "compiler", compiler::REMEDY);
        }
    }
    match record::read().filter(|record| record.is_usable(options.compiler)) {
        Some(record) => println!("ok       {:<10} {}", "bpf-linker", record.bpf_linker.display()),
        None => {
            complete = false;
            println!("missing  {:<10} links the datapath for BPF (built by `cargo xtask setup`)", "bpf-linker");
        }
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One set-up at a time: the second waits and then finds everything done.
fn lock() -> Result<File> {
    let path = repo::target().join("toolchain.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("setup: waiting for another set-up of this target folder");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
