//! What the agent costs a node.

mod daemon;
mod requests;

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use aya::maps::MapData;

use self::daemon::{Daemon, Usage};
use super::under_test::{Load, UnderTest, Wires};
use super::{Goal, Options};
use crate::clock::now;

/// After it nothing of the start is left to do.
const SETTLED: Duration = Duration::from_secs(3);

/// Measures the maps, the idle daemon, and what clean traffic keeps of its speed.
///
/// # Errors
/// When the lab cannot be built.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    progress("agent: bytes of the maps");
    let under_test = UnderTest::new(Wires::new(1)?, &Load::default())?;
    let bytes = map_bytes(&under_test)?;
    drop(under_test);
    let megabytes = bytes as f64 / 1e6;
    let maps = Goal {
        value: Some(megabytes),
        met: Some(megabytes <= 48.0),
        minimum: Some(megabytes),
        median: Some(megabytes),
        rounds: 1,
        ..Goal::missing(
            "P12c",
            "maps of default sizes",
            "MB",
            "<= 48 MB on 2 CPUs",
            &format!(
                "what the kernel holds for every pinned map, on {} CPUs",
                aya::util::nr_cpus().map_or(0, |cpus| cpus)
            ),
        )
    };
    let mut goals = vec![maps];
    progress("agent: idle");
    goals.extend(idle(options)?);
    progress("agent: request and response beside a flood");
    goals.extend(requests::run(options)?);
    Ok(goals)
}

/// P12a and P12b: a daemon with the default configuration that nothing happens to.
fn idle(options: &Options) -> anyhow::Result<Vec<Goal>> {
    let goals = |why: &str| {
        vec![
            Goal::missing("P12a", "agent idle", "%", "<= 0.5 % of a CPU", why),
            Goal::missing("P12b", "agent resident", "MB", "<= 32 MB", why),
        ]
    };
    let wires = Wires::new(1)?;
    let mut daemon = match Daemon::start(&wires) {
        Ok(daemon) => daemon,
        Err(error) => return Ok(goals(&format!("{error:#}"))),
    };
    thread::sleep(SETTLED);
    let (began, before) = (now(), daemon.usage()?);
    thread::sleep(Duration::from_secs(if options.quick { 10 } else { 30 }));
    let (after, secs) = (daemon.usage()?, began.elapsed().as_secs_f64());
    let percent = (after.cpu_secs - before.cpu_secs) / secs * 100.0;
    let threads = shares(&before, &after, secs);
    let megabytes = after.resident_bytes as f64 / 1e6;
    let mut goals = goals("");
    let [cpu, memory] = goals.as_mut_slice() else { anyhow::bail!("two goals were made") };
    for (goal, value, met) in [(cpu, percent, percent <= 0.5), (memory, megabytes, megabytes <= 32.0)] {
        (goal.value, goal.minimum, goal.median) = (Some(value), Some(value), Some(value));
        (goal.met, goal.rounds) = (Some(met), 1);
    }
    goals[0].detail = format!(
        "utime + stime over {secs:.0} s without traffic, one interface, default configuration; by the scheduler's own clock, and \
         turns a second: {threads}"
    );
    goals[1].detail = format!(
        "at the most {:.1} MB since the start; {:.1} MB of it is memory of its own, the rest the program's file and maps",
        after.peak_bytes as f64 / 1e6,
        after.own_bytes as f64 / 1e6
    );
    daemon.end()?;
    Ok(goals)
}

/// What each kind of thread used, the largest first.
fn shares(before: &Usage, after: &Usage, secs: f64) -> String {
    let mut rows: Vec<(&str, f64, f64)> = after
        .threads
        .iter()
        .map(|(name, (used, turns))| {
            let was = before.threads.get(name).copied().unwrap_or_default();
            (name.as_str(), (used - was.0) / secs * 100.0, (turns - was.1) / secs)
        })
        .collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let said: Vec<String> =
        rows.iter().take(6).map(|(name, percent, turns)| format!("{name} {percent:.2} %, {turns:.0}")).collect();
    said.join("; ")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_by_what_they_used_meanwhile() {
        let of = |rows: &[(&str, f64, f64)]| Usage {
            threads: rows.iter().map(|(name, used, turns)| ((*name).to_owned(), (*used, *turns))).collect(),
            ..Usage::default()
        };
        let (before, after) = (of(&[("a", 5.0, 100.0)]), of(&[("a", 5.1, 150.0), ("b", 0.5, 10.0)]));
        assert_eq!(shares(&before, &after, 10.0), "b 5.00 %, 1; a 1.00 %, 5");
    }
}
