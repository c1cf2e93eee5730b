//! Building bpf-linker for the LLVM of the compiler that was found.
//!
//! bpf-linker reads the LLVM bitcode that rustc writes, so both must use the same LLVM. It is linked with the very
//! library that the compiler loads: no headers, no `llvm-config`, and one download less.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::compiler::Compiler;
use super::record;
use crate::{process, repo};

/// Supports LLVM 21 to 23 by one feature each.
const VERSION: &str = "0.13.0";

pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    pub(crate) version: String,
    pub(crate) llvm_library: PathBuf,
}

/// Builds bpf-linker into the target folder unless one for this LLVM is there already.
pub(crate) fn ensure(compiler: &Compiler) -> Result<Linker> {
    let llvm_library = compiler.llvm_library()?;
    let path = record::folder().join("bin/bpf-linker");
    let linker = Linker { path: path.clone(), version: VERSION.to_owned(), llvm_library: llvm_library.clone() };
    let prefix = llvm_prefix(&llvm_library)?;
    if built_for(&llvm_library) && works(&path) {
        eprintln!("  bpf-linker {VERSION}: {}", path.display());
        return Ok(linker);
    }

    let major = compiler.version.llvm_major;
    eprintln!("  bpf-linker links the datapath; it has to be built for LLVM {major}, about a minute");
    let step = format!("building bpf-linker {VERSION}");
    let mut command = repo::cargo();
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"] {
        command.env_remove(variable);
    }
    command.env("LLVM_PREFIX", &prefix);
    command.args(["install", "bpf-linker", "--locked", "--force", "--no-default-features"]);
    command.args(["--version", &format!("={VERSION}"), "--features", &format!("llvm-{major}")]);
    command.arg("--root").arg(record::folder()).arg("--target-dir").arg(repo::target().join("toolchain-build"));
    let took = process::run_long(&step, &mut command, None).with_context(|| {
        format!("bpf-linker {VERSION} could not be built for LLVM {major} (it needs the crates registry once)")
    })?;
    start(&path).context("the bpf-linker that was built does not run")?;
    fs::write(stamp(), llvm_library.as_os_str().as_encoded_bytes())?;
    eprintln!("  {step}: {} s", took.as_secs());
    Ok(linker)
}

/// Whether `linker` starts: it does not when its LLVM is gone.
pub(crate) fn works(linker: &Path) -> bool {
    start(linker).is_ok_and(|text| text.contains(VERSION))
}

fn start(linker: &Path) -> Result<String> {
    // cargo puts its own compiler's folder there, in which a missing LLVM would be found after all.
    process::capture(Command::new(linker).arg("--version").env_remove("LD_LIBRARY_PATH"))
}

/// A folder that looks like an installed LLVM to bpf-linker's build, which also becomes its run path.
fn llvm_prefix(library: &Path) -> Result<PathBuf> {
    let name = library.file_name().context("the path of libLLVM names a file")?;
    // A folder for each library: cargo links again because the folder's name changed, not its content.
    let prefix = record::folder().join("llvm").join(name);
    let folder = prefix.join("lib");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Once by the name the linker asks for, once by the name that is written into the program.
    for link in [folder.join("libLLVM.so"), folder.join(name)] {
        if fs::read_link(&link).is_ok_and(|target| target == library) {
            continue;
        }
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        symlink(library, &link).with_context(|| format!("cannot make {}", link.display()))?;
    }
    Ok(prefix)
}

/// Written after a build that came to its end, with the library it was built for.
fn stamp() -> PathBuf {
    record::folder().join("bpf-linker.built-for")
}

fn built_for(library: &Path) -> bool {
    fs::read(stamp()).is_ok_and(|bytes| bytes == library.as_os_str().as_encoded_bytes())
}
