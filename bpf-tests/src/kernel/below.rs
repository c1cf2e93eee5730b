//! Rows about interfaces that lie on others: the agent is given a VLAN or a bond, and its program goes below.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::agent::{Running, command, configuration_for, wait_ready};
use super::stage::{BAD_UPPER_V4, GOOD_UPPER_V4, Stage, UPPER_V4, datagram, text};
use super::{Outcome, Tools, devices};

const FRAMES: u64 = 40;

/// Two VLANs of one device share its program.
pub(super) fn vlan(tools: &Tools) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    if let Err(why) = devices::vlan(&stage, tools) {
        return Ok(Outcome::Missing(why));
    }
    stage.run(&tools.ip, "link add link edge0 name edge0.8 type vlan id 8")?;
    enforces(&stage, tools, &["edge0.7", "edge0.8"], Some(devices::VLAN), &["edge0"])
}

/// A bond takes the program itself, or its port does.
pub(super) fn bond(tools: &Tools) -> Result<Outcome, String> {
    let stage = Stage::new()?;
    if let Err(why) = devices::bond_above(&stage, tools)? {
        return Ok(Outcome::Missing(why));
    }
    enforces(&stage, tools, &["bond0"], None, &["bond0", "edge0"])
}

/// Where ports have the programs, a port that joins gets one too, and those that were there keep theirs.
fn follows(stage: &Stage, tools: &Tools, config: &Path, before: &Value) -> Result<&'static str, String> {
    stage.run(&tools.ip, "link add late0 type veth peer name late1")?;
    stage.run(&tools.ip, "link set late0 master bond0")?;
    let mut last = Value::Null;
    // Loading takes seconds under emulation.
    for _ in 0..80 {
        last = wait_ready(stage, tools, config)?["interfaces"].clone();
        let named = |name: &str| last.as_array().into_iter().flatten().find(|one| one["name"] == name);
        if let (Some(old), Some(new)) = (named("edge0"), named("late0"))
            && new["mode"] == "native"
        {
            let kept = old["link_id"] == before["link_id"];
            return if kept { Ok(", a port that joined too") } else { Err(format!("another link: {last}")) };
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    Err(format!("a port that joined has no program: {last}"))
}

/// The agent for `interfaces` has one program, at one of `places`, and drops there what it is told to.
fn enforces(
    stage: &Stage,
    tools: &Tools,
    interfaces: &[&str],
    tag: Option<u16>,
    places: &[&str],
) -> Result<Outcome, String> {
    let ear = stage.listen(UPPER_V4)?;
    let config = configuration_for(stage, interfaces)?;
    let log = std::fs::File::create(config.with_extension("log")).map_err(|e| e.to_string())?;
    let child = stage
        .edge
        .run(|| command(tools, &config, "run").stdout(Stdio::null()).stderr(log).spawn())
        .map_err(text)?
        .map_err(|e| format!("{}: {e}", tools.ftagent.display()))?;
    let _running = Running(child);
    let status = wait_ready(stage, tools, &config)?;
    let programs = status["interfaces"].as_array().map_or(0, Vec::len);
    let one = &status["interfaces"][0];
    let [place, mode] = ["name", "mode"].map(|key| one[key].as_str().unwrap_or("?").to_owned());
    if programs != 1 || !places.contains(&place.as_str()) || one["serves"] != serde_json::json!(interfaces) {
        return Err(format!("not one program at {places:?} for {interfaces:?}: {}", status["interfaces"]));
    }
    let frame = |source| {
        let frame = datagram(source, UPPER_V4);
        tag.map_or(frame.clone(), |id| frame.vlan(0x8100, id)).build()
    };
    // A bond takes frames once it has chosen its active device.
    let good = frame(GOOD_UPPER_V4);
    for _ in 0..30 {
        stage.send(&good, 1)?;
        if ear.heard(1) == 1 {
            break;
        }
    }
    let bad = BAD_UPPER_V4.to_string();
    let block = stage.edge.run(|| command(tools, &config, "block").arg(bad).output()).map_err(text)?;
    let block = block.map_err(|e| e.to_string())?;
    if !block.status.success() {
        return Err(format!("block: {}", String::from_utf8_lossy(&block.stderr).trim()));
    }
    stage.send(&good, FRAMES)?;
    let clean = ear.heard(FRAMES);
    stage.send(&frame(BAD_UPPER_V4), FRAMES)?;
    let passed = ear.heard(1);
    let by_ports = interfaces == ["bond0"] && place != "bond0";
    let joined = if by_ports { follows(stage, tools, &config, one)? } else { "" };
    let said = format!(
        "{} at {place} ({mode}): {clean} of {FRAMES} clean and {passed} of {FRAMES} blocked frames passed{joined}",
        interfaces.join(", ")
    );
    match (clean, passed, mode.as_str()) {
        (FRAMES, 0, "native") => Ok(Outcome::Ok(said)),
        (FRAMES, 0, _) => Ok(Outcome::Degraded(format!("{said}; {}", one["reason"]))),
        _ => Err(said),
    }
}
