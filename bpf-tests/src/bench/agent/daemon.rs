//! The agent's own binary, run in a lab as an operator would.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;
use nix::unistd::{SysconfVar, sysconf};

use crate::bench::under_test::Wires;
use crate::bpffs::LabDir;
use crate::inside::{self, Life};
use crate::process::Process;

const PATIENCE: Duration = Duration::from_secs(30);

/// It watches all wires of a namespace, with defaults for everything else; it ends with its guard.
pub(super) struct Daemon {
    process: Process,
    program: PathBuf,
    config: PathBuf,
    dir: LabDir,
}

/// What a process has used so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// As the kernel counts it in ticks.
    pub(super) cpu_secs: f64,
    /// The same of the threads that are there, by the scheduler's clock: seconds and turns for each name.
    pub(super) threads: BTreeMap<String, (f64, f64)>,
    pub(super) resident_bytes: u64,
    pub(super) peak_bytes: u64,
    /// Anonymous memory among the resident.
    pub(super) own_bytes: u64,
}

impl Daemon {
    /// Starts the binary that was built beside this one, and waits until it enforces.
    pub(super) fn start(wires: &Wires) -> anyhow::Result<Self> {
        let helper = env::current_exe()?;
        let program = helper.with_file_name("ftagent");
        ensure!(program.is_file(), "there is no {}: run `cargo xtask bench`, which builds it", program.display());
        let dir = LabDir::create("bench").context("cannot make a directory with a BPF file system")?;
        let names: Vec<&str> = wires.pairs.iter().map(|(near, _)| near.name.as_str()).collect();
        let config = dir.path().join("ftagent.toml");
        for folder in ["state", "run"] {
            fs::create_dir(dir.path().join(folder))?;
        }
        fs::write(&config, config_text(dir.path(), &names))?;
        let mut command = inside::command(&helper, &wires.edge, &program, Life::WithParent);
        command.arg("--config").arg(&config).arg("run");
        let mut process = Process::start("the agent", command, dir.path().join("ftagent.log"))?;
        let is_ready = |line: &str| (line.trim() == "ready").then_some(());
        process.wait_for("`ready`", PATIENCE, &AtomicBool::new(false), is_ready)?;
        Ok(Self { process, program, config, dir })
    }

    /// Gives a command line to the running agent.
    pub(super) fn tell(&self, words: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        let output = command.arg("--config").arg(&self.config).args(words).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("`ftagent {}`: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// The maps that it pinned.
    pub(super) fn maps(&self) -> anyhow::Result<Maps> {
        Ok(Maps::open(&Pins::below(&self.dir.bpf())?.maps())?)
    }

    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        let folder = PathBuf::from(format!("/proc/{}", self.process.pid()));
        let read = |path: PathBuf| fs::read_to_string(&path).with_context(|| path.display().to_string());
        let mut threads = Vec::new();
        for entry in fs::read_dir(folder.join("task"))? {
            let of =
                |name: &str| fs::read_to_string(entry.as_ref().map(|e| e.path().join(name)).unwrap_or_default()).ok();
            // A thread that ends meanwhile has nothing more to say.
            threads.extend(of("comm").zip(of("schedstat")));
        }
        let ticks = sysconf(SysconfVar::CLK_TCK)?.context("the kernel has no ticks")?;
        usage(&read(folder.join("stat"))?, &threads, &read(folder.join("status"))?, ticks as f64)
            .context("/proc has another form")
    }

    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        let status = self.process.end()?;
        ensure!(status.success(), "the agent ended with {status}{}", self.process.last_words());
        Ok(())
    }
}

fn config_text(dir: &Path, interfaces: &[&str]) -> String {
    let path = |name: &str| dir.join(name);
    let mut text = format!(
        "[agent]\nname = \"bench\"\nstate_dir = {:?}\nruntime_dir = {:?}\nbpffs = {:?}\n",
        path("state"),
        path("run"),
        path("bpf")
    );
    for name in interfaces {
        text.push_str(&format!("[[interface]]\nname = {name:?}\n"));
    }
    text
}

fn usage(stat: &str, threads: &[(String, String)], status: &str, ticks: f64) -> Option<Usage> {
    // The name stands in brackets and may contain anything; user and system time are the 12th and 13th word after it.
    let mut words = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut time = || words.next()?.parse::<f64>().ok();
    let cpu_secs = (time()? + time()?) / ticks;
    let mut by_name = BTreeMap::new();
    for (name, schedstat) in threads {
        let mut words = schedstat.split_ascii_whitespace();
        // Time on a CPU and time waiting for one in nanoseconds, then turns.
        let (ns, turns): (f64, f64) = (words.next()?.parse().ok()?, words.nth(1)?.parse().ok()?);
        let sums: &mut (f64, f64) = by_name.entry(name.trim().to_owned()).or_default();
        *sums = (sums.0 + ns / 1e9, sums.1 + turns);
    }
    let bytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1_024)
    };
    Some(Usage {
        cpu_secs,
        threads: by_name,
        resident_bytes: bytes("VmRSS")?,
        peak_bytes: bytes("VmHWM")?,
        own_bytes: bytes("RssAnon")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_uses_is_read_whatever_its_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 200";
        let status = "Name:\tx\nVmHWM:\t    3000 kB\nVmRSS:\t    2000 kB\nRssAnon:\t 1000 kB\n";
        let threads = ["1500000000 0 9\n", "500000000 0 1\n"].map(|text| ("worker\n".to_owned(), text.to_owned()));
        let expected = Usage {
            cpu_secs: 3.0,
            threads: [("worker".to_owned(), (2.0, 10.0))].into(),
            resident_bytes: 2_048_000,
            peak_bytes: 3_072_000,
            own_bytes: 1_024_000,
        };
        assert_eq!(usage(stat, &threads, status, 100.0), Some(expected));
        assert_eq!(usage("7 x", &threads, status, 100.0), None);
    }

    #[test]
    fn the_agent_takes_the_configuration() {
        let text = config_text(Path::new("/nowhere"), &["edge0", "edge1"]);
        let config = ftagent::config::Config::parse(&text, Path::new("/nowhere/ftagent.toml"));
        assert!(config.is_ok(), "{config:?}");
    }
}
