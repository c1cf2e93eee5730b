//! `target/toolchain/bpf.json`: what was found, for `ftagent-ebpf/embed.rs` and the next set-up.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Source;
use super::compiler::{Compiler, Version};
use super::linker::{self, Linker};
use crate::repo;

/// The target of the datapath on this machine.
pub(crate) const BPF_TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Where `core` for BPF comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Compiled from rust-src with the datapath.
    BuildStd,
    /// Comes with the compiler.
    PrebuiltCore,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) rustc_version: String,
    pub(crate) llvm_major: u32,
    pub(crate) llvm_library: PathBuf,
    pub(crate) bpf_linker: PathBuf,
    pub(crate) bpf_linker_version: String,
}

impl Record {
    pub(crate) fn new(compiler: Compiler, linker: Linker) -> Self {
        Self {
            kind: compiler.kind,
            cargo: compiler.cargo,
            rustc: compiler.rustc,
            rustc_version: compiler.version.release,
            llvm_major: compiler.version.llvm_major,
            llvm_library: linker.llvm_library,
            bpf_linker: linker.path,
            bpf_linker_version: linker.version,
        }
    }

    /// Whether all of it is still there and of the same version, and from `source` when that is given.
    pub(crate) fn is_usable(&self, source: Option<Source>) -> bool {
        let wanted = match source {
            None => true,
            Some(Source::Rustup) => self.kind == Kind::BuildStd,
            Some(Source::Distribution) => self.kind == Kind::PrebuiltCore,
        };
        let version = Version { release: self.rustc_version.clone(), llvm_major: self.llvm_major };
        wanted
            && self.cargo.is_file()
            && self.has_core()
            && Version::of(&self.rustc).is_ok_and(|found| found == version)
            && linker::works(&self.bpf_linker)
    }

    /// rust-src can be removed while its toolchain stays; a prebuilt `core` is a package of its own too.
    fn has_core(&self) -> bool {
        let Some(sysroot) = self.rustc.parent().and_then(Path::parent) else { return false };
        match self.kind {
            Kind::BuildStd => sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file(),
            Kind::PrebuiltCore => ["bpfel", "bpfeb"]
                .iter()
                .any(|target| sysroot.join(format!("lib/rustlib/{target}-unknown-none/lib")).is_dir()),
        }
    }

    /// `program`, one of this compiler's own, called with `subcommand` for the datapath's crate as
    /// `ftagent-ebpf/embed.rs` calls it.
    pub(crate) fn command(&self, program: &Path, subcommand: &str) -> Command {
        let mut command = Command::new(program);
        for (key, _) in env::vars_os() {
            let key_text = key.to_string_lossy();
            if ["CARGO_", "RUST", "LD_LIBRARY_PATH"].iter().any(|start| key_text.starts_with(start))
                && ![
                    "CARGO_HOME",
                    "CARGO_NET",
                    "CARGO_HTTP",
                    "CARGO_REGISTR",
                    "CARGO_SOURCE",
                    "CARGO_TERM",
                    "RUSTUP_HOME",
                ]
                .iter()
                .any(|start| key_text.starts_with(start))
            {
                command.env_remove(&key);
            }
        }
        let linker = self.bpf_linker.parent().unwrap_or(Path::new("/"));
        let path = env::var_os("PATH").unwrap_or_default();
        if let Ok(path) = env::join_paths([linker.to_owned()].into_iter().chain(env::split_paths(&path))) {
            command.env("PATH", path);
        }
        command.current_dir(repo::root().join("ftagent-ebpf"));
        command.env("CARGO", &self.cargo).env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        command.args([subcommand, "--release", "--bins", "--target", BPF_TARGET]);
        command.arg("--target-dir").arg(repo::target().join("ebpf"));
        if self.kind == Kind::BuildStd {
            command.args(["-Z", "build-std=core"]);
        }
        command
    }

    pub(crate) fn summary(&self) -> String {
        let core = match self.kind {
            Kind::BuildStd => "core from rust-src",
            Kind::PrebuiltCore => "prebuilt core",
        };
        let (rustc, llvm, linker) = (&self.rustc_version, self.llvm_major, &self.bpf_linker_version);
        format!("rustc {rustc} with {core}, LLVM {llvm}, bpf-linker {linker}")
    }

    /// Replaces the record as a whole, and only when it changed: its age decides what is built again.
    pub(crate) fn write(&self) -> Result<()> {
        if read().as_ref() == Some(self) {
            return Ok(());
        }
        let (path, draft) = (path(), folder().join("bpf.json.new"));
        let text = serde_json::to_string_pretty(self).context("a record of paths is always JSON")?;
        fs::write(&draft, text + "\n").with_context(|| format!("cannot write {}", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The record, unless there is none or an older xtask wrote it.
pub(crate) fn read() -> Option<Record> {
    serde_json::from_slice(&fs::read(path()).ok()?).ok()
}

pub(crate) fn folder() -> PathBuf {
    repo::target().join("toolchain")
}

fn path() -> PathBuf {
    folder().join("bpf.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_keeps_the_names_that_the_build_script_reads() {
        let record = Record {
            kind: Kind::PrebuiltCore,
            cargo: "/usr/bin/cargo".into(),
            rustc: "/usr/bin/rustc".into(),
            rustc_version: "1.96.0".into(),
            llvm_major: 22,
            llvm_library: "/usr/lib/libLLVM.so.22.1".into(),
            bpf_linker: "/t/bin/bpf-linker".into(),
            bpf_linker_version: "0.13.0".into(),
        };
        let text = serde_json::to_string(&record).expect("JSON");
        for part in [r#""kind":"prebuilt-core""#, r#""cargo":"/usr/bin/cargo""#, r#""rustc":"/usr/bin/rustc""#] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(text.contains(r#""bpf_linker":"/t/bin/bpf-linker""#), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).expect("a record"), record);
    }
}
