//! `cargo xtask test --kernels`: what of ftagent works on Debian's kernels, old and new, under emulation.
//!
//! ```text
//! apt (a state of its own) -> target/kernels/<name>/: packages, unpacked   image.rs, apt.rs
//! bpf-tests' kernel_matrix + ftagent + modules -> initramfs                initramfs.rs, modules.rs
//! qemu -> lines of JSON on the serial console -> the table                 emulate.rs, table.rs
//! ```
//! Nothing of the kernels is installed on this machine; emulation needs no KVM, so it runs wherever QEMU does.

mod apt;
mod emulate;
mod image;
mod initramfs;
mod modules;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use self::image::Image;
use self::table::{Report, Run};
use crate::{process, repo, setup};

/// A kernel of the matrix and the suite that holds it.
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    suite: &'static str,
    /// Older suites get their kernels by this one, if the machine knows a source of security updates.
    security: Option<&'static str>,
}

/// The long-term kernels that Debian's releases have, and the newest there is.
const KERNELS: [Kernel; 4] = [
    Kernel { name: "5.10", suite: "bullseye", security: Some("bullseye-security") },
    Kernel { name: "6.1", suite: "bookworm", security: Some("bookworm-security") },
    Kernel { name: "6.12", suite: "bookworm-backports", security: None },
    Kernel { name: "newest", suite: "sid", security: None },
];

pub(crate) struct Options<'a> {
    /// Names of kernels; empty for all.
    pub(crate) only: &'a [String],
    pub(crate) allow_missing: bool,
    /// Look for newer packages even if some are there.
    pub(crate) refresh: bool,
    /// Only rows whose names contain this.
    pub(crate) row: Option<&'a str>,
}

/// The names that `--only` takes.
pub(crate) fn names() -> Vec<&'static str> {
    KERNELS.iter().map(|kernel| kernel.name).collect()
}

pub(crate) fn run(options: &Options<'_>) -> Result<ExitCode> {
    let began = Instant::now();
    setup::ensure(&setup::Options::default())?;
    let wanted = KERNELS.iter().filter(|k| options.only.is_empty() || options.only.iter().any(|name| name == k.name));
    let programs = programs()?;
    let emulator = emulate::ensure();
    let mut runs = Vec::new();
    for kernel in wanted {
        let report = match &emulator {
            Ok(emulator) => one(kernel, emulator, &programs, options),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        if let Err(error) = &report {
            eprintln!("kernels: {}: not run: {error:#}", kernel.name);
        }
        runs.push(Run { name: kernel.name, report: report.map_err(|error| format!("{error:#}")) });
    }
    print!("{}", table::text(&runs));
    println!("in {:.0} s", began.elapsed().as_secs_f64());
    let failed = runs.iter().any(|run| run.report.as_ref().is_ok_and(|report| !report.is_well()));
    let missing = runs.iter().any(|run| run.report.is_err());
    if missing && !options.allow_missing {
        eprintln!("error: not every kernel was run; --allow-missing makes that no error");
    }
    Ok(if failed || (missing && !options.allow_missing) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn one(kernel: &Kernel, emulator: &std::path::Path, programs: &Programs, options: &Options<'_>) -> Result<Report> {
    let folder = repo::target().join("kernels").join(kernel.name);
    let image = Image::ensure(kernel, &folder, options.refresh)?;
    let modules = modules::closure(&image.modules)?;
    let initramfs = folder.join("initramfs.cpio");
    initramfs::write(&initramfs, programs, &modules).context("cannot make the initramfs")?;
    let console = folder.join("console.log");
    let report = emulate::boot(emulator, kernel.name, &image.vmlinuz, &initramfs, &console, options.row)?;
    eprintln!("kernels: {}: {}", kernel.name, report.summary());
    Ok(report)
}

/// What goes into every initramfs.
pub(crate) struct Programs {
    /// (path inside, path here)
    pub(crate) files: Vec<(&'static str, PathBuf)>,
}

/// Builds ours and finds the others.
fn programs() -> Result<Programs> {
    eprintln!("kernels: compiling");
    let mut build = repo::cargo();
    build.args(["build", "-p", "ftagent", "-p", "bpf-tests", "--bin", "ftagent", "--bin", "kernel_matrix"]);
    process::run(build.env("FTAGENT_REQUIRE_EBPF", "1"))?;
    let ours = repo::target().join("debug");
    let found = |program: &str| process::find_program(program).with_context(|| format!("there is no {program}"));
    Ok(Programs {
        files: vec![
            ("init", ours.join("kernel_matrix")),
            ("bin/ftagent", ours.join("ftagent")),
            ("bin/ip", found("ip")?),
            ("bin/tc", found("tc")?),
        ],
    })
}
