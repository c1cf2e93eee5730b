//! The lab of the demonstration.
//!
//! ```text
//!   wan                              edge (protected)                    plane
//!   clean clients  \                 agent, XDP on edge0
//!   attack frames   } wan0 ── edge0  HTTP server          edge1 ── plane0  control plane
//! ```
//! Clean and attack frames share the one wire between wan0 and edge0.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail};
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;

use super::agent::{Agent, Plane};
use super::scenario::{EDGE_MAC, Target};
use super::{Options, Story, keep};
use crate::bpffs::LabDir;
use crate::http::Server;
use crate::inside::{self, Life};
use crate::meter::{Direction, Meter};
use crate::netns::Netns;
use crate::process::Process;
use crate::veth::{self, Device, EndSpec};

const WAN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
const EDGE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Protected addresses, one for each scenario in turn: an attack that returns to its target within five minutes is
/// held down longer, and by the time an address comes round again more time than that has passed.
const TARGETS: u8 = 64;
const FIRST_TARGET: u8 = 10;
const WAN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const EDGE_BACK: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
const PLANE: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 2);
/// How long a program may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time below the threshold before the agent calls an attack over.
const HOLD_DOWN: Duration = Duration::from_secs(2);
const PAGE_BYTES: usize = 8 << 10;

/// Everything that stands while scenarios are played. Fields drop in this order: programs before what they use.
pub(super) struct Stage {
    agent_process: Process,
    plane_process: Process,
    pub(super) server: Server,
    pub(super) arrived: Meter,
    pub(super) left: Meter,
    pub(super) maps: Maps,
    pub(super) wan: Netns,
    pub(super) wan0: Device,
    pub(super) plane_netns: Netns,
    edge: Netns,
    pub(super) agent: Agent,
    pub(super) plane: Plane,
    plane_program: PathBuf,
    helper: PathBuf,
    life: Life,
    dir: LabDir,
}

impl Stage {
    /// Builds the namespaces and starts the programs.
    pub(super) fn build(options: &Options, story: &Story, stop: &AtomicBool) -> anyhow::Result<Self> {
        let dir = LabDir::create("demo").context("cannot make a directory with a BPF file system")?;
        let edge = Netns::create("edge")?;
        let wan = Netns::create("wan")?;
        let plane_netns = Netns::create("plane")?;
        let end = |name: &str, mac, address: Ipv4Addr, default_route| EndSpec {
            name: name.into(),
            mac,
            addresses: vec![(IpAddr::V4(address), 24)],
            queues: 1,
            default_route,
        };
        let mut edge_end = end("edge0", EDGE_MAC, EDGE, true);
        for target in (0..usize::from(TARGETS)).map(target) {
            edge_end.addresses.extend([(IpAddr::V4(target.v4), 24), (IpAddr::V6(target.v6), 64)]);
        }
        // Answers to forged sources leave by the wire they came from and are lost in wan, which forwards nothing.
        let (_, wan0) = veth::connect((&edge, &edge_end), (&wan, &end("wan0", WAN_MAC, WAN, false)))?;
        veth::connect(
            (&edge, &end("edge1", [0x02, 0, 0, 0, 0, 0x11], EDGE_BACK, false)),
            (&plane_netns, &end("plane0", [0x02, 0, 0, 0, 0, 0x12], PLANE, false)),
        )?;
        story.step(&format!(
            "lab: {} -- wan0/edge0 -- {} -- edge1/plane0 -- {}",
            wan.name(),
            edge.name(),
            plane_netns.name()
        ));

        let life = if options.keep { Life::Own } else { Life::WithParent };
        let (plane_process, plane) = start_plane(options, life, &plane_netns, &dir, stop)?;
        story.step(&format!("control plane at {} (SQLite, made a moment ago)", plane.address));
        let config = write_config(&dir, &plane)?;
        let agent = Agent { program: options.ftagent.clone(), config };
        let agent_process = start_agent(&agent, &options.helper, life, &edge, dir.path().join("ftagent.log"), stop)?;
        let status = agent.status().context("the agent is ready but does not answer")?;
        story.step(&format!("agent ready, {}", describe(&status)));

        let pins = Pins::below(&dir.bpf()).context("the lab's BPF file system")?;
        let maps = Maps::open(&pins.maps()).context("the agent pinned no maps: is the datapath attached?")?;
        let server = Server::start(&edge, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80)), PAGE_BYTES)?;
        let arrived = edge.run(|| Meter::attach("edge0", Direction::In))??;
        let left = wan.run(|| Meter::attach("wan0", Direction::Out))??;
        Ok(Self {
            agent_process,
            plane_process,
            server,
            arrived,
            left,
            maps,
            wan,
            wan0,
            plane_netns,
            edge,
            agent,
            plane,
            plane_program: options.controlplane.clone(),
            helper: options.helper.clone(),
            life,
            dir,
        })
    }

    /// Ends the programs, detaches the datapath and proves that nothing of it is left.
    pub(super) fn take_down(mut self, story: &Story) -> anyhow::Result<()> {
        let status = self.agent_process.end()?;
        if !status.success() {
            bail!("the agent ended with {status}{}", self.agent_process.last_words());
        }
        let mut detach = inside::command(&self.helper, &self.edge, &self.agent.program, Life::WithParent);
        self.agent.detach(&mut detach)?;
        // The file system itself has files that show its programs and maps; ours lie in a folder.
        let left = walk(&self.dir.bpf().join("ftagent"));
        if !left.is_empty() {
            bail!("`ftagent detach` left pins behind: {left:?}");
        }
        self.plane_process.end()?;
        story.step("agent stopped, datapath detached, no pin left; the lab is gone");
        Ok(())
    }

    /// Leaves everything running and says how to look at it.
    pub(super) fn keep(mut self, story: &Story) -> anyhow::Result<()> {
        let programs = [&mut self.agent_process, &mut self.plane_process];
        let mut pids = Vec::new();
        for process in programs {
            process.leave_alone();
            pids.push(process.pid());
        }
        keep::remember(self.dir.path(), &pids)?;
        for netns in [&mut self.wan, &mut self.plane_netns, &mut self.edge] {
            netns.keep();
        }
        self.dir.keep();
        let program = self.agent.program.display();
        let config = self.agent.config.display();
        story.heading("the lab stays; the next demonstration takes it down");
        for line in [
            format!("{program} --config {config} status"),
            format!("{program} --config {config} incidents"),
            format!("ip netns exec {} ip -s link show edge0", self.edge.name()),
            format!(
                "ip netns exec {} curl -H \"Authorization: Bearer $(cat {})\" http://{}/api/v1/incidents",
                self.plane_netns.name(),
                self.dir.path().join("deploy-token").display(),
                self.plane.address
            ),
            format!("ls {}", self.dir.path().display()),
        ] {
            story.note(&line);
        }
        Ok(())
    }

    /// Kills the agent as a crash would: nothing of it gets to clean up.
    pub(super) fn kill_agent(&mut self) -> anyhow::Result<()> {
        self.agent_process.kill()
    }

    /// Starts the agent again on what the one before left.
    pub(super) fn restart_agent(&mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        let log = self.dir.path().join("ftagent-restarted.log");
        self.agent_process = start_agent(&self.agent, &self.helper, self.life, &self.edge, log, stop)?;
        Ok(())
    }

    /// Kills the control plane as a crash would.
    pub(super) fn kill_plane(&mut self) -> anyhow::Result<()> {
        self.plane_process.kill()
    }

    /// Starts the control plane again on its data.
    pub(super) fn restart_plane(&mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        let command = plane_command(&self.helper, &self.plane_program, self.life, &self.plane_netns, &self.dir);
        let log = self.dir.path().join("controlplane-restarted.log");
        self.plane_process = Process::start("the control plane", command, log)?;
        self.plane_process
            .wait_for("its address", PATIENCE, stop, |line| line.starts_with("listening on ").then_some(()))
    }

    /// An error if a program of the lab is gone.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        for process in [&mut self.agent_process, &mut self.plane_process] {
            if let Some(status) = process.ended()? {
                bail!("{} ended with {status}{}", process.name(), process.last_words());
            }
        }
        Ok(())
    }

    /// Shows the ends of the logs, for whoever has to find out what went wrong.
    pub(super) fn show_logs(&self, story: &Story) {
        for process in [&self.agent_process, &self.plane_process] {
            story.note(&format!("{} said at last:{}", process.name(), process.last_words()));
        }
    }

    pub(super) fn hold_down(&self) -> Duration {
        HOLD_DOWN
    }
}

/// The address that the scenario of this number attacks and asks for pages.
pub(super) fn target(number: usize) -> Target {
    let turn = FIRST_TARGET + (number % usize::from(TARGETS)) as u8;
    Target { v4: Ipv4Addr::new(10, 99, 0, turn), v6: Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, turn.into()) }
}

fn start_plane(
    options: &Options,
    life: Life,
    netns: &Netns,
    dir: &LabDir,
    stop: &AtomicBool,
) -> anyhow::Result<(Process, Plane)> {
    fs::create_dir(dir.path().join("plane"))?;
    let command = plane_command(&options.helper, &options.controlplane, life, netns, dir);
    let mut process = Process::start("the control plane", command, dir.path().join("controlplane.log"))?;
    let mut token = None;
    let mut address: Option<SocketAddr> = None;
    let (token, address) = process.wait_for("its deploy token and address", PATIENCE, stop, |line| {
        if let Some(value) = line.strip_prefix("deploy token: ") {
            token = Some(value.trim().to_owned());
        }
        if let Some(value) = line.strip_prefix("listening on http://") {
            address = value.trim().trim_end_matches('/').parse().ok();
        }
        token.clone().zip(address)
    })?;
    Ok((process, Plane { address, token }))
}

fn plane_command(helper: &Path, program: &Path, life: Life, netns: &Netns, dir: &LabDir) -> Command {
    let mut command = inside::command(helper, netns, program, life);
    command.args(["serve", "--listen", &format!("{PLANE}:8080"), "--data"]).arg(dir.path().join("plane"));
    // The network is a namespace of this machine.
    command.env("FTAGENT_CP_ALLOW_PLAIN_HTTP", "true");
    command
}

fn start_agent(
    agent: &Agent,
    helper: &Path,
    life: Life,
    netns: &Netns,
    log: PathBuf,
    stop: &AtomicBool,
) -> anyhow::Result<Process> {
    let mut command: Command = inside::command(helper, netns, &agent.program, life);
    command.arg("--config").arg(&agent.config).arg("run");
    let mut process = Process::start("the agent", command, log)?;
    process.wait_for("`ready`", PATIENCE, stop, |line| (line.trim() == "ready").then_some(()))?;
    Ok(process)
}

fn write_config(dir: &LabDir, plane: &Plane) -> anyhow::Result<PathBuf> {
    let token = dir.path().join("deploy-token");
    fs::write(&token, &plane.token)?;
    for folder in ["state", "run"] {
        fs::create_dir(dir.path().join(folder))?;
    }
    let path = dir.path().join("ftagent.toml");
    fs::write(&path, config_text(dir.path(), plane.address))?;
    Ok(path)
}

/// The agent's configuration; everything that it keeps lies in `dir`.
fn config_text(dir: &Path, plane: SocketAddr) -> String {
    // Debug quoting of a path is a TOML string as long as it has no control characters, and we made up these names.
    format!(
        r#"[agent]
name = "demo-edge"
state_dir = {state:?}
runtime_dir = {run:?}
bpffs = {bpffs:?}

[[interface]]
name = "edge0"
attach = "native"

[protect]
prefixes = ["10.99.0.0/24", "fd99::/64"]

[management]
sources = ["{PLANE}/32"]
ports = [22]

[detection]
hold_down_ms = {hold_down}

[response]
automatic = true

[datapath.gate]
# Shown is how soon a rule drops: without questions, reflections would be dropped before any rule.
reflectors = false

[control_plane]
url = "http://{plane}"
deploy_token_file = {token:?}
"#,
        state = dir.join("state"),
        run = dir.join("run"),
        bpffs = dir.join("bpf"),
        token = dir.join("deploy-token"),
        hold_down = HOLD_DOWN.as_millis(),
    )
}

/// The interfaces of a status in a few words.
fn describe(status: &serde_json::Value) -> String {
    let word = |value: &serde_json::Value, key: &str| match value.get(key) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "?".into(),
    };
    let interfaces = status.get("interfaces").and_then(serde_json::Value::as_array);
    let each = interfaces.into_iter().flatten().map(|i| {
        format!(
            "{} {} (link {}, program {})",
            word(i, "name"),
            word(i, "mode"),
            word(i, "link_id"),
            word(i, "program_id")
        )
    });
    each.collect::<Vec<_>>().join(", ")
}

/// Files below `folder`, which has few.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.extend(walk(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_takes_the_configuration() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("deploy-token"), "0".repeat(64)).expect("a token");
        let text = config_text(dir.path(), SocketAddr::from((PLANE, 8080)));
        let config = ftagent::config::Config::parse(&text, &dir.path().join("ftagent.toml"));
        assert!(config.is_ok(), "{config:?}");
    }

    #[test]
    fn a_status_is_described_by_its_interfaces() {
        let status =
            serde_json::json!({ "interfaces": [{ "name": "edge0", "mode": "native", "link_id": 4, "program_id": 9 }] });
        assert_eq!(describe(&status), "edge0 native (link 4, program 9)");
        assert_eq!(describe(&serde_json::json!({})), "");
    }
}
