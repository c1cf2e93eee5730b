//! An agent in front of a network that it forwards to, and the wire that attacks come from.

use std::collections::HashSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ftagent::control::{Answer, Question};
use ftagent::status::RuleStatus;
use ftagent::xdp::counters;
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;
use ftagent_common::abi::Reason;
use ftagent_common::api::IncidentReport;
use uuid::Uuid;

use crate::bpffs::LabDir;
use crate::inside::{self, Life};
use crate::ladder::MAC;
use crate::netns::Netns;
use crate::process::Process;
use crate::veth::{self, EndSpec};

/// How long the agent may take to be ready, and to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The device that attacks are sent from.
pub(super) const WAN: &str = "wan0";

/// Fields drop in this order: the agent before what it uses.
pub(super) struct Site {
    agent: Process,
    maps: Maps,
    socket: PathBuf,
    /// Incidents of attacks that are over.
    pub(super) known: HashSet<Uuid>,
    pub(super) wan: Netns,
    edge: Netns,
    program: PathBuf,
    dir: LabDir,
}

impl Site {
    /// Starts `program`; it ends with the thread that calls this.
    pub(super) fn build(program: &Path) -> anyhow::Result<Self> {
        let dir = LabDir::create("latency").context("cannot make a directory with a BPF file system")?;
        let (edge, wan) = (Netns::create("edge")?, Netns::create("wan")?);
        let end = |name: &str, mac, host, default_route| EndSpec {
            name: name.into(),
            mac,
            addresses: vec![(IpAddr::from(Ipv4Addr::new(10, 99, 0, host)), 24)],
            queues: 1,
            default_route,
        };
        veth::connect((&edge, &end("edge0", MAC, 1, true)), (&wan, &end(WAN, [2, 0, 0, 0, 0, 2], 2, false)))?;
        for folder in ["state", "run"] {
            fs::create_dir(dir.path().join(folder))?;
        }
        let config = config_path(&dir);
        fs::write(&config, config_text(dir.path()))?;
        let helper = std::env::current_exe().context("this program's own path")?;
        let mut command = inside::command(&helper, &edge, program, Life::WithParent);
        command.arg("--config").arg(&config).arg("run");
        let mut agent = Process::start("the agent", command, dir.path().join("ftagent.log"))?;
        let never = AtomicBool::new(false);
        agent.wait_for("`ready`", PATIENCE, &never, |line| (line.trim() == "ready").then_some(()))?;
        let maps = Maps::open(&Pins::below(&dir.bpf())?.maps()).context("the agent pinned no maps")?;
        let socket = dir.path().join("run/ftagent.sock");
        Ok(Self { agent, maps, socket, known: HashSet::new(), wan, edge, program: program.to_owned(), dir })
    }

    /// Frames dropped so far by any stage.
    pub(super) fn dropped(&self) -> anyhow::Result<u64> {
        let counted = counters::interface(&self.maps, 0)?;
        let drops = Reason::ALL.iter().filter(|reason| reason.is_drop());
        Ok(drops.map(|reason| counted.reasons[reason.index()].packets).sum())
    }

    pub(super) fn rules(&mut self) -> anyhow::Result<Vec<RuleStatus>> {
        let Answer::Rules { rules } = self.ask(&Question::Rules {})? else { bail!("no rules are answered") };
        serde_json::from_value(rules).context("the agent's rules")
    }

    pub(super) fn incidents(&mut self) -> anyhow::Result<Vec<IncidentReport>> {
        let Answer::Incidents { incidents } = self.ask(&Question::Incidents {})? else {
            bail!("no incidents are answered")
        };
        serde_json::from_value(incidents).context("the agent's incidents")
    }

    fn ask(&mut self, question: &Question) -> anyhow::Result<Answer> {
        let talk = || -> anyhow::Result<Answer> {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut line = serde_json::to_vec(question)?;
            line.push(b'\n');
            stream.write_all(&line)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(serde_json::from_slice(&answer)?)
        };
        let answer = talk();
        if let Some(status) = self.agent.ended()? {
            bail!("the agent ended with {status}{}", self.agent.last_words());
        }
        answer.context("the agent does not answer")
    }

    /// Ends the agent and detaches its datapath.
    pub(super) fn take_down(mut self) -> anyhow::Result<()> {
        let status = self.agent.end()?;
        if !status.success() {
            bail!("the agent ended with {status}{}", self.agent.last_words());
        }
        let helper = std::env::current_exe().context("this program's own path")?;
        let mut detach: Command = inside::command(&helper, &self.edge, &self.program, Life::WithParent);
        let detached =
            detach.arg("--config").arg(config_path(&self.dir)).arg("detach").stdin(Stdio::null()).output()?;
        if !detached.status.success() {
            bail!("`ftagent detach`: {}", String::from_utf8_lossy(&detached.stderr).trim());
        }
        Ok(())
    }
}

fn config_path(dir: &LabDir) -> PathBuf {
    dir.path().join("ftagent.toml")
}

/// The agent's configuration: the defaults but for places and the two settings that say why.
fn config_text(dir: &Path) -> String {
    // Debug quoting of a path is a TOML string as long as it has no control characters, and we made up these names.
    format!(
        r#"[agent]
name = "bench"
state_dir = {state:?}
runtime_dir = {run:?}
bpffs = {bpffs:?}

[[interface]]
name = "edge0"
attach = "native"

[protect]
prefixes = ["10.64.0.0/16", "fd99::/48"]

[detection]
# Five attacks a second, each of them over at its first drop: with ten seconds, fifty of them would lie open.
hold_down_ms = 2000

[datapath.gate]
# Measured is how soon a rule drops: without questions, reflections would be dropped from their first frame on.
reflectors = false
"#,
        state = dir.join("state"),
        run = dir.join("run"),
        bpffs = dir.join("bpf"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_takes_the_configuration_and_protects_every_target() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = ftagent::config::Config::parse(&config_text(dir.path()), &dir.path().join("ftagent.toml"));
        let config = config.expect("a configuration");
        use super::super::frames::Wrapping;
        for number in [0, 999, 1_999] {
            for wrapping in [Wrapping::V4, Wrapping::V6, Wrapping::Tagged] {
                let target = wrapping.target(number);
                assert!(config.protect.iter().any(|net| net.contains(&target)), "{target}");
            }
        }
    }
}
