//! How soon an attack is dropped: an agent in a namespace, a flood, and the time of the first frame that a rule dropped.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ftagent_common::packet::tcp_flag;
use ftagent_lab::bpffs::LabDir;
use ftagent_lab::clock::{Moment, now};
use ftagent_lab::generator::{Bounds, Generator, Pace, Vary};
use ftagent_lab::inside::{self, Life};
use ftagent_lab::meter::ATTACK_MAC;
use ftagent_lab::netns::Netns;
use ftagent_lab::packet::PacketBuilder;
use ftagent_lab::process::Process;
use ftagent_lab::veth::{self, Device, EndSpec};
use serde::Serialize;
use serde_json::Value;

/// The rate of the attack, a tenth of what one core can send.
const ATTACK_PPS: u64 = 100_000;
/// How long an attack goes on when nothing drops it.
const LONGEST: Duration = Duration::from_secs(10);
/// How long the agent may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// Traffic's first seconds belong to the agent's own start.
const SETTLE: Duration = Duration::from_millis(300);
/// Between two looks at the agent's rules.
const LOOK: Duration = Duration::from_millis(20);
const TARGET: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const TARGET_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// The times of all runs.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    pub attack: &'static str,
    pub attack_pps: u64,
    /// Milliseconds from the first frame sent to the first frame that a rule dropped, in the order of the runs.
    ///
    /// The kernel stamps drops with its coarse clock, which may lag behind by one timer tick.
    pub first_drop_ms: Vec<f64>,
    pub median_ms: f64,
}

/// Attacks an agent `runs` times; each is started for the attack, with the default settings of detection.
///
/// # Errors
/// The lab cannot be built, the agent does not start, an attack was not dropped, or `stop` became true.
pub(super) fn measure(runs: u32, stop: &AtomicBool, progress: &mut dyn FnMut(&str)) -> Result<Latency> {
    let (wan, edge) = (Netns::create("wan")?, Netns::create("edge")?);
    let end = |name: &str, mac, address: Ipv4Addr, default_route| EndSpec {
        name: name.into(),
        mac,
        addresses: vec![(IpAddr::V4(address), 24)],
        queues: 1,
        default_route,
    };
    let near = end("edge0", TARGET_MAC, TARGET, true);
    let far = end("wan0", [0x02, 0, 0, 0, 0, 0x02], Ipv4Addr::new(10, 99, 0, 2), false);
    let (_, wan0) = veth::connect((&edge, &near), (&wan, &far))?;
    let mut first_drop_ms = Vec::new();
    for run in 1..=runs {
        let ms = attack(&wan, &wan0, &edge, stop).with_context(|| format!("attack {run} of {runs}"))?;
        progress(&format!("attack {run} of {runs}: first drop after {ms:.0} ms"));
        first_drop_ms.push(ms);
    }
    let mut sorted = first_drop_ms.clone();
    sorted.sort_by(f64::total_cmp);
    let median_ms = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    Ok(Latency { attack: "SYN flood, forged sources", attack_pps: ATTACK_PPS, first_drop_ms, median_ms })
}

/// One agent and one attack: the milliseconds to its first drop.
fn attack(wan: &Netns, wan0: &Device, edge: &Netns, stop: &AtomicBool) -> Result<f64> {
    let program = std::env::current_exe().context("this program's own path")?;
    let dir = LabDir::create("latency").context("cannot make a directory with a BPF file system")?;
    let config = write_config(dir.path())?;
    let mut command = inside::command(&program, edge, &program, Life::WithParent);
    command.arg("--config").arg(&config).arg("run");
    let mut agent = Process::start("the agent", command, dir.path().join("ftagent.log"))?;
    agent.wait_for("`ready`", PATIENCE, stop, |line| (line.trim() == "ready").then_some(()))?;
    thread::sleep(SETTLE);

    let (began, over) = (OnceLock::new(), AtomicBool::new(false));
    let first_hit = thread::scope(|scope| {
        let flood = scope.spawn(|| wan.run(|| send(wan0.index, &began, &over)));
        let watched = watch(&program, &config, stop, || flood.is_finished());
        over.store(true, Ordering::Relaxed);
        flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        watched
    })?;
    let began: &Moment = began.get().context("not one frame was sent")?;
    let Some(first_hit) = first_hit else {
        bail!("no rule dropped a frame within {LONGEST:?}{}", agent.last_words());
    };
    Ok(first_hit.saturating_sub(began.mono_ns) as f64 / 1e6)
}

/// Forged SYNs as one machine sends them.
fn send(device: u32, began: &OnceLock<Moment>, over: &AtomicBool) -> Result<()> {
    let template = PacketBuilder::v4([64, 0, 0, 1], TARGET)
        .macs(ATTACK_MAC, TARGET_MAC)
        .ttl(53)
        .tcp(1_024, 80, tcp_flag::SYN)
        .build();
    let vary = Vary {
        sources: Some("64.0.0.0/3".parse().context("a prefix")?),
        source_ports: Some(1_024..=u16::MAX),
        ip_id: true,
        ..Vary::default()
    };
    let mut generator = Generator::load(&template, &vary, Moment::now().mono_ns)?;
    let bounds = Bounds { stop: Some(over), began: Some(began), ..Bounds::new(u64::MAX, LONGEST) };
    generator.send(device, Pace::PerSecond(ATTACK_PPS), bounds)?;
    Ok(())
}

/// Asks for the rules until one has dropped: the time of its first drop, or nothing when the attack was over before.
fn watch(program: &Path, config: &Path, stop: &AtomicBool, is_over: impl Fn() -> bool) -> Result<Option<u64>> {
    let deadline = now() + LONGEST + PATIENCE;
    loop {
        let ended = is_over();
        let rules = rules(program, config);
        // Ctrl-C ends the agent as well, which then does not answer.
        if stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let hits: Vec<u64> =
            rules?.iter().filter_map(|rule| rule.get("first_hit_mono_ns")?.as_u64().filter(|ns| *ns > 0)).collect();
        if let Some(first) = hits.into_iter().min() {
            return Ok(Some(first));
        }
        if ended || now() > deadline {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

fn rules(program: &Path, config: &Path) -> Result<Vec<Value>> {
    let output = Command::new(program)
        .arg("--config")
        .arg(config)
        .args(["rules", "--json"])
        .stdin(Stdio::null())
        .output()
        .context("cannot ask the agent for its rules")?;
    if !output.status.success() {
        bail!("the agent does not tell its rules: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let answer: Value = serde_json::from_slice(&output.stdout).context("the agent's rules are not JSON")?;
    Ok(answer.get("rules").and_then(Value::as_array).cloned().unwrap_or_default())
}

fn write_config(dir: &Path) -> Result<PathBuf> {
    for folder in ["state", "run"] {
        fs::create_dir(dir.join(folder))?;
    }
    let path = dir.join("ftagent.toml");
    fs::write(&path, config_text(dir))?;
    Ok(path)
}

/// The agent's configuration: the defaults but for the places; everything that it keeps lies in `dir`.
fn config_text(dir: &Path) -> String {
    // Debug quoting of a path is a TOML string as long as it has no control characters, and we made up these names.
    format!(
        r#"[agent]
name = "lab"
state_dir = {state:?}
runtime_dir = {run:?}
bpffs = {bpffs:?}

[[interface]]
name = "edge0"

[protect]
prefixes = ["10.99.0.0/24"]

[response]
automatic = true
"#,
        state = dir.join("state"),
        run = dir.join("run"),
        bpffs = dir.join("bpf"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_agent_takes_the_configuration() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config::parse(&config_text(dir.path()), &dir.path().join("ftagent.toml"));
        assert!(config.is_ok(), "{config:?}");
    }
}
