//! Rows about the agent's own program: it starts, enforces and says what this kernel lacks.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::stage::{BAD_V4, EDGE_V4, Stage, datagram, text};
use super::{Outcome, Tools};

const FRAMES: u64 = 40;

/// Ends with its guard.
pub(super) struct Running(pub(super) Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn configuration(stage: &Stage) -> Result<PathBuf, String> {
    configuration_for(stage, &["edge0"])
}

pub(super) fn configuration_for(stage: &Stage, interfaces: &[&str]) -> Result<PathBuf, String> {
    let dir = stage.dir.path();
    let path = |name: &str| dir.join(name).display().to_string();
    let interfaces: String = interfaces.iter().map(|name| format!("[[interface]]\nname = {name:?}\n")).collect();
    let text = format!(
        "[agent]\nname = \"edge\"\nstate_dir = {:?}\nruntime_dir = {:?}\nbpffs = {:?}\n\
         {interfaces}[datapath]\nmax_blocks = 4096\nmax_prefixes = 4096\n",
        path("state"),
        path("run"),
        path("bpf"),
    );
    let config = dir.join("ftagent.toml");
    std::fs::write(&config, text).map_err(|e| e.to_string())?;
    Ok(config)
}

pub(super) fn command(tools: &Tools, config: &Path, word: &str) -> Command {
    let mut command = Command::new(&tools.ftagent);
    command.arg("--config").arg(config).arg(word).stdin(Stdio::null());
    command
}

/// The daemon starts, blocks what it is told to and ends.
pub(super) fn runs(tools: &Tools) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    let ear = stage.listen(EDGE_V4)?;
    let config = configuration(&stage)?;
    let log_path = config.with_extension("log");
    let log = std::fs::File::create(&log_path).map_err(|e| e.to_string())?;
    let child = stage
        .edge
        .run(|| command(tools, &config, "run").stdout(Stdio::null()).stderr(log).spawn())
        .map_err(text)?
        .map_err(|e| format!("{}: {e}", tools.ftagent.display()))?;
    let _running = Running(child);
    let log = || std::fs::read_to_string(&log_path).unwrap_or_default().lines().rev().take(4).collect::<String>();
    let status = wait_ready(&stage, tools, &config).map_err(|why| format!("{why}; {}", log()))?;
    let mode = status["interfaces"][0]["mode"].as_str().unwrap_or("?").to_owned();
    let block = stage.edge.run(|| command(tools, &config, "block").arg(BAD_V4.to_string()).output()).map_err(text)?;
    let block = block.map_err(|e| e.to_string())?;
    if !block.status.success() {
        return Err(format!("block: {}", String::from_utf8_lossy(&block.stderr).trim()));
    }
    stage.send(&datagram(BAD_V4, EDGE_V4).build(), FRAMES)?;
    let passed = ear.heard(1);
    let said = format!("ready, attached {mode}, {passed} of {FRAMES} blocked frames passed");
    if passed == 0 { Ok(Outcome::Ok(said)) } else { Err(said) }
}

pub(super) fn wait_ready(stage: &Stage, tools: &Tools, config: &Path) -> Result<Value, String> {
    let mut last = String::new();
    for _ in 0..40 {
        let output = stage.edge.run(|| command(tools, config, "status").arg("--json").output()).map_err(text)?;
        let output = output.map_err(|e| e.to_string())?;
        if let Ok(status) = serde_json::from_slice::<Value>(&output.stdout)
            && status["ready"] == true
        {
            return Ok(status);
        }
        last = String::from_utf8_lossy(&output.stderr).into_owned();
        std::thread::sleep(Duration::from_millis(250));
    }
    Err(format!("never ready: {}", last.trim()))
}

/// What `ftagent check` prints here.
pub(super) fn check(tools: &Tools) -> Vec<String> {
    let said = Stage::new().and_then(|stage| {
        let config = configuration(&stage)?;
        let output = stage.edge.run(|| command(tools, &config, "check").output()).map_err(text)?;
        output.map_err(|e| e.to_string())
    });
    match said {
        Ok(output) => [&output.stdout, &output.stderr]
            .iter()
            .flat_map(|bytes| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect(),
        Err(why) => vec![why],
    }
}
