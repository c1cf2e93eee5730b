//! What the agent costs a node.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::Context as _;
use aya::maps::MapData;

use super::under_test::{Load, UnderTest, Wires};
use super::{Goal, Options};

/// Measures what the maps take; what the daemon takes is not measured in this build, and said so.
///
/// # Errors
/// When the lab cannot be built.
pub fn run(_options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    progress("agent: bytes of the maps");
    let under_test = UnderTest::new(Wires::new(1)?, &Load::default())?;
    let bytes = map_bytes(&under_test)?;
    let megabytes = bytes as f64 / 1e6;
    Ok(vec![
        Goal {
            id: "P12c",
            what: "maps of default sizes".to_owned(),
            value: Some(megabytes),
            unit: "MB",
            floor: None,
            peer: None,
            goal: "<= 48 MB on 2 CPUs".to_owned(),
            met: Some(megabytes <= 48.0),
            minimum: Some(megabytes),
            median: Some(megabytes),
            rounds: 1,
            detail: format!(
                "what the kernel holds for every pinned map, on {} CPUs",
                aya::util::nr_cpus().map_or(0, |cpus| cpus)
            ),
        },
        Goal::missing("P12a", "agent idle", "%", "<= 0.5 % of a CPU", "not measured in this build"),
        Goal::missing("P12b", "agent resident", "MB", "<= 32 MB", "not measured in this build"),
        Goal::missing(
            "P8",
            "clean request/response beside a flood",
            "%",
            ">= 98 % idle, >= 90 % under flood",
            "not measured in this build",
        ),
    ])
}

/// Bytes that the kernel holds for all pinned maps.
fn map_bytes(under_test: &UnderTest) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(under_test.pins().maps())? {
        let path = entry?.path();
        let map = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
        let memory = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no line memlock")?;
        sum += memory.trim().parse::<u64>()?;
    }
    Ok(sum)
}
