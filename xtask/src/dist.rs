//! `cargo xtask dist`: what is installed on a machine, in `target/dist/`.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{process, repo, setup};

const PROGRAMS: [&str; 2] = ["ftagent", "controlplane"];
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

pub(crate) fn run() -> Result<ExitCode> {
    setup::ensure(&setup::Options::default())?;
    let step = "building the release";
    let mut build = repo::cargo();
    build.args(["build", "--release", "--locked", "--bin", "ftagent", "--bin", "controlplane"]);
    build.env("FTAGENT_REQUIRE_EBPF", "1");
    let took = process::run_long(step, &mut build, None)?;
    eprintln!("  {step}: {} s", took.as_secs());

    let dist = repo::target().join("dist");
    if dist.exists() {
        fs::remove_dir_all(&dist).with_context(|| format!("cannot empty {}", dist.display()))?;
    }
    fs::create_dir_all(dist.join("completions"))?;
    for program in PROGRAMS {
        let built = repo::target().join("release").join(program);
        fs::copy(&built, dist.join(program)).with_context(|| format!("cannot copy {}", built.display()))?;
        for shell in SHELLS {
            // A program without completions for this shell says so by its exit status.
            let script = process::capture(Command::new(&built).args(["completions", shell])).unwrap_or_default();
            if !script.is_empty() {
                fs::write(dist.join(format!("completions/{program}.{shell}")), script)?;
            }
        }
    }
    for file in repo::files()? {
        // Units and example configurations.
        let shipped = file.starts_with("dist");
        let name = file.file_name().context("git lists files by name")?;
        let text = file.parent().is_some_and(|folder| folder.as_os_str().is_empty())
            && ["LICENSE", "README", "CHANGELOG"].iter().any(|word| name.to_string_lossy().starts_with(word));
        if shipped || text {
            fs::copy(repo::root().join(&file), dist.join(name))?;
        }
    }
    println!("{}", dist.display());
    Ok(ExitCode::SUCCESS)
}
