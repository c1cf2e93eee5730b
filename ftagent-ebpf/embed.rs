//! The build script of the packages that embed BPF objects: compiles `ftagent-ebpf` and copies what they ask for.
//!
//! It is a module of `ftagent/build.rs` and `lab/build.rs`. Both build the whole package into the same folder, so that the
//! second one finds everything done.
//!
//! `cargo xtask setup` finds or installs a compiler for BPF and writes down which. Without that record the objects are
//! empty: everything that never loads a program still builds and is tested, on any machine. `FTAGENT_REQUIRE_EBPF=1`
//! makes that an error; CI, releases, `cargo xtask test` and `demo` set it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use serde_json::Value;

type Failure = Box<dyn std::error::Error>;

/// Compiles and copies each of `objects`: the binary that cargo builds, and the name under which it is embedded.
pub(crate) fn embed(objects: &[(&str, &str)]) -> ExitCode {
    match build(objects) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn build(objects: &[(&str, &str)]) -> Result<(), Failure> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?);
    let workspace = package.parent().ok_or("the package is a folder of the workspace")?;
    let required = env::var_os("FTAGENT_REQUIRE_EBPF").is_some_and(|value| value == "1");

    let sources = ["ftagent-ebpf/src", "ftagent-ebpf/Cargo.toml", "ftagent-ebpf/Cargo.lock"];
    let shared =
        ["ftagent-ebpf/.cargo/config.toml", "ftagent-common/src", "ftagent-common/Cargo.toml", "ftagent-ebpf/embed.rs"];
    for path in sources.iter().chain(&shared) {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }

    let target = target_folder(&out, workspace);
    let Some(toolchain) = Toolchain::read(&target)? else {
        // Only now does the variable matter: building with and without it takes turns, and must not rebuild all.
        println!("cargo::rerun-if-env-changed=FTAGENT_REQUIRE_EBPF");
        if required {
            return Err("no compiler for BPF is recorded: run `cargo xtask setup`".into());
        }
        println!("cargo::warning=the datapath is not built, so no program can be loaded: run `cargo xtask setup`");
        for (_, object) in objects {
            fs::write(out.join(object), [])?;
        }
        return Ok(());
    };
    let built = toolchain.compile(&workspace.join("ftagent-ebpf"), &target.join("ebpf"), required)?;
    for (binary, object) in objects {
        let from = built.join(binary);
        fs::copy(&from, out.join(object)).map_err(|error| format!("{}: {error}", from.display()))?;
    }
    Ok(())
}

/// The target folder that holds the record, and where the datapath is built for every profile.
///
/// rust-analyzer and `--target` put folders of their own between the target folder and ours: the record decides.
fn target_folder(out: &Path, workspace: &Path) -> PathBuf {
    let recorded = out.ancestors().take(8).find(|folder| folder.join("toolchain/bpf.json").is_file());
    recorded.map_or_else(|| workspace.join("target"), Path::to_owned)
}

/// What `cargo xtask setup` found.
struct Toolchain {
    builds_core: bool,
    cargo: PathBuf,
    rustc: PathBuf,
    bpf_linker: PathBuf,
}

impl Toolchain {
    fn read(target: &Path) -> Result<Option<Self>, Failure> {
        let folder = target.join("toolchain");
        let path = folder.join("bpf.json");
        let Ok(text) = fs::read(&path) else {
            // cargo always runs us again for a path that does not exist, so we watch the folder for the record.
            fs::create_dir_all(&folder)?;
            println!("cargo::rerun-if-changed={}", folder.display());
            return Ok(None);
        };
        println!("cargo::rerun-if-changed={}", path.display());
        let record: Value = serde_json::from_slice(&text)?;
        let word = |key: &str| {
            let word = record.get(key).and_then(Value::as_str);
            word.ok_or_else(|| format!("{} has no {key}: run `cargo xtask setup`", path.display()))
        };
        let builds_core = match word("kind")? {
            "build-std" => true,
            "prebuilt-core" => false,
            other => return Err(format!("{}: unknown kind {other}", path.display()).into()),
        };
        let [cargo, rustc, bpf_linker] = ["cargo", "rustc", "bpf_linker"].map(word);
        Ok(Some(Self { builds_core, cargo: cargo?.into(), rustc: rustc?.into(), bpf_linker: bpf_linker?.into() }))
    }

    /// Compiles `package` and returns the folder of its objects.
    ///
    /// The folder is shared by all profiles, and only this inner cargo locks it, which never waits for the outer one.
    fn compile(&self, package: &Path, target: &Path, locked: bool) -> Result<PathBuf, Failure> {
        let big = env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|endian| endian == "big");
        let triple = if big { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
        let linker = self.bpf_linker.parent().ok_or("the path of bpf-linker has a folder")?;
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([linker.to_owned()].into_iter().chain(env::split_paths(&path)))?;

        let mut cargo = Command::new(&self.cargo);
        for (key, _) in env::vars_os().filter(|(key, _)| is_ours_alone(key)) {
            cargo.env_remove(key);
        }
        // The two unstable things that BPF needs, inline assembly and building `core`, are the same on every channel.
        cargo.current_dir(package).env("PATH", path).env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        cargo.args(["build", "--release", "--bins", "--color", "never", "--target", triple]);
        cargo.arg("--target-dir").arg(target);
        if self.builds_core {
            cargo.args(["-Z", "build-std=core"]);
        }
        if locked {
            cargo.arg("--locked");
        }
        let output = cargo
            .output()
            .map_err(|error| format!("cannot run {}: {error}; run `cargo xtask setup`", self.cargo.display()))?;
        if !output.status.success() {
            let messages = String::from_utf8_lossy(&output.stderr);
            return Err(format!("the datapath does not compile ({}):\n{messages}", output.status).into());
        }
        Ok(target.join(triple).join("release"))
    }
}

/// Whether a variable speaks of the outer build: another compiler, other flags, another package.
fn is_ours_alone(key: &OsStr) -> bool {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_BUILD_JOBS"];
    const OTHER: [&str; 14] = [
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "MAKEFLAGS",
        "MFLAGS",
        "TARGET",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "PROFILE",
        "DEBUG",
        "OUT_DIR",
        "LD_LIBRARY_PATH",
    ];
    let Some(key) = key.to_str() else { return false };
    let cargos = key.starts_with("CARGO") && !KEPT.iter().any(|kept| key.starts_with(kept));
    cargos || key.starts_with("RUSTC_") || key.starts_with("RUSTDOC") || OTHER.contains(&key)
}
