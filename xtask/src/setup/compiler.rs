//! Finding or installing a compiler that can make BPF.
//!
//! rustc can do it on every channel once `RUSTC_BOOTSTRAP=1` allows the two unstable things that are needed; what is
//! usually missing is a `core` for the target. It is compiled from rust-src, or it comes with the distribution.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{BPF_TARGET, Kind, Source, distribution};
use crate::{process, repo};

/// The oldest rustc that our dependencies for BPF compile with.
const OLDEST: (u32, u32) = (1, 95);
/// Debian's compiler for browsers and a prebuilt `core` for BPF; newer than Debian's `rustc`.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// A download of some MB; where the network is closed rustup may try for long.
const RUSTUP_LIMIT: Duration = Duration::from_secs(60);

pub(crate) const REMEDY: &str = "with rustup `rustup component add rust-src`, on Debian \
    `apt-get install --no-install-recommends rustc-web cargo-web libstd-rust-web-dev-bpf` as root";

/// A compiler that makes BPF, by the paths of its own programs (never rustup's proxies, which look at the folder they
/// are called in).
pub(crate) struct Compiler {
    pub(crate) kind: Kind,
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) version: Version,
    sysroot: PathBuf,
}

impl Compiler {
    pub(crate) fn summary(&self) -> String {
        let how = match self.kind {
            Kind::BuildStd => "core built from rust-src",
            Kind::PrebuiltCore => "prebuilt core",
        };
        format!("rustc {} at {}, {how}", self.version.release, self.rustc.display())
    }

    /// The shared LLVM that the compiler itself uses: whatever it writes, this reads.
    pub(crate) fn llvm_library(&self) -> Result<PathBuf> {
        let major = self.version.llvm_major;
        let is_llvm = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with(&format!("libLLVM.so.{major}")) || name.starts_with(&format!("libLLVM-{major}.so"))
        };
        let own = fs::read_dir(self.sysroot.join("lib")).into_iter().flatten().flatten().map(|entry| entry.path());
        if let Some(library) = own.filter(|path| is_llvm(path)).find(|path| is_elf(path)) {
            return Ok(library);
        }
        let loaded = process::capture(Command::new("ldd").arg(&self.rustc)).unwrap_or_default();
        // `    libLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x…)`
        let paths = loaded.lines().filter_map(|line| line.split_whitespace().nth(2)).map(PathBuf::from);
        paths.into_iter().find(|path| is_llvm(path) && is_elf(path)).with_context(|| {
            format!("{} has no shared libLLVM {major} that bpf-linker could use: {REMEDY}", self.rustc.display())
        })
    }
}

/// What `rustc -vV` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Version {
    pub(crate) release: String,
    pub(crate) llvm_major: u32,
}

impl Version {
    /// Asks `rustc`.
    pub(crate) fn of(rustc: &Path) -> Result<Self> {
        let text = process::capture(Command::new(rustc).arg("-vV"))?;
        Self::parse(&text).with_context(|| format!("cannot read the version of {}", rustc.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let llvm_major = value("LLVM version: ")?.split('.').next()?.parse().ok()?;
        Some(Self { release: value("release: ")?.to_owned(), llvm_major })
    }

    fn is_recent(&self) -> bool {
        let mut numbers = self.release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(OLDEST.0), Some(OLDEST.1))
    }
}

/// A compiler that is there, or that can be installed.
pub(crate) fn ensure(source: Option<Source>) -> Result<Compiler> {
    if let Some(compiler) = find(source) {
        eprintln!("  compiler for BPF: {}", compiler.summary());
        return Ok(compiler);
    }
    eprintln!("  no compiler here has a `core` for BPF: installing one");
    if source != Some(Source::Distribution) {
        match add_rust_src() {
            Ok(()) => {}
            Err(error) if source.is_none() => eprintln!("  rustup cannot help here: {error:#}"),
            Err(error) => return Err(error),
        }
    }
    if source != Some(Source::Rustup) && find(source).is_none() {
        distribution::install(&DEBIAN_PACKAGES).with_context(|| format!("no compiler for BPF: {REMEDY}"))?;
    }
    let compiler = find(source).with_context(|| format!("what was installed cannot compile for BPF: {REMEDY}"))?;
    eprintln!("  compiler for BPF: {}", compiler.summary());
    Ok(compiler)
}

/// The first compiler that is there: rustup's toolchains, then what stands in PATH.
pub(crate) fn find(source: Option<Source>) -> Option<Compiler> {
    let rustup = (source != Some(Source::Distribution)).then(|| rustup_compilers().into_iter());
    let installed = (source != Some(Source::Rustup)).then(|| installed_compilers().into_iter());
    rustup.into_iter().flatten().chain(installed.into_iter().flatten()).find(|compiler| compiler.version.is_recent())
}

/// rustup's toolchains that hold rust-src, the active one first.
fn rustup_compilers() -> Vec<Compiler> {
    let mut names = vec![None];
    let listed = rustup().and_then(|mut rustup| process::capture(rustup.args(["toolchain", "list"])));
    let listed = listed.unwrap_or_default();
    names.extend(listed.lines().filter_map(|line| line.split_whitespace().next()).map(Some));
    let compilers = names.into_iter().filter_map(|name| {
        let mut which = rustup().ok()?;
        which.args(["which", "rustc"]);
        if let Some(name) = name {
            which.args(["--toolchain", name]);
        }
        let rustc = PathBuf::from(process::capture(&mut which).ok()?.trim());
        let sysroot = rustc.parent()?.parent()?.to_owned();
        let has_source = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file();
        has_source.then(|| compiler(Kind::BuildStd, rustc, sysroot))?
    });
    compilers.collect()
}

/// Compilers in PATH with a `core` for BPF.
fn installed_compilers() -> Vec<Compiler> {
    let compilers = process::programs("rustc").into_iter().filter_map(|rustc| {
        // A proxy answers for a toolchain that was looked at already, and may try to download one.
        if rustc.canonicalize().is_ok_and(|path| path.ends_with("rustup")) || is_rustup_proxy(&rustc) {
            return None;
        }
        let sysroot = process::capture(Command::new(&rustc).args(["--print", "sysroot"])).ok()?;
        let sysroot = PathBuf::from(sysroot.trim());
        let libraries = sysroot.join(format!("lib/rustlib/{BPF_TARGET}/lib"));
        let has_core = fs::read_dir(libraries).ok()?.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        });
        has_core.then(|| compiler(Kind::PrebuiltCore, rustc, sysroot))?
    });
    compilers.collect()
}

fn is_rustup_proxy(rustc: &Path) -> bool {
    let (Ok(ours), Some(beside)) = (fs::metadata(rustc), rustc.parent().map(|folder| folder.join("rustup"))) else {
        return false;
    };
    // Proxies are links to rustup, or copies of it where links were not possible.
    fs::metadata(beside).is_ok_and(|rustup| rustup.len() == ours.len())
}

fn compiler(kind: Kind, rustc: PathBuf, sysroot: PathBuf) -> Option<Compiler> {
    let cargo = rustc.with_file_name("cargo");
    let version = Version::of(&rustc).ok()?;
    cargo.is_file().then_some(Compiler { kind, cargo, rustc, version, sysroot })
}

fn add_rust_src() -> Result<()> {
    let mut command = rustup()?;
    command.args(["component", "add", "rust-src"]);
    let step = "rustup component add rust-src (the source of `core`)";
    let took = process::run_long(step, &mut command, Some(RUSTUP_LIMIT))?;
    eprintln!("  {step}: {} s", took.as_secs());
    Ok(())
}

fn rustup() -> Result<Command> {
    let Some(path) = process::find_program("rustup") else { bail!("there is no rustup") };
    let mut command = Command::new(path);
    command.current_dir(repo::root());
    // cargo, called through a proxy, names its own toolchain; rust-toolchain.toml is to decide.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUST_BACKTRACE");
    Ok(command)
}

fn is_elf(path: &Path) -> bool {
    // rustup ships a linker script of a few bytes beside the library.
    fs::File::open(path).is_ok_and(|mut file| {
        let mut magic = [0; 4];
        std::io::Read::read_exact(&mut file, &mut magic).is_ok() && magic == *b"\x7fELF"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    #[test]
    fn release_and_llvm_are_read_from_what_rustc_says() {
        let version = Version::parse(DEBIAN).expect("a version");
        assert_eq!(version, Version { release: "1.96.0".into(), llvm_major: 22 });
        assert_eq!(Version::parse("rustc 1.96.0\n"), None);
    }

    #[test]
    fn old_compilers_are_passed_over() {
        let cases = [("1.96.0", true), ("1.95.0", true), ("1.97.0-nightly", true), ("2.0.0", true), ("1.94.1", false)];
        for (release, recent) in cases {
            assert_eq!(Version { release: release.into(), llvm_major: 22 }.is_recent(), recent, "{release}");
        }
    }
}
