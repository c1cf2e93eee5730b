//! A lab that stays after its maker ended, and how the next one takes it down.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::Story;
use crate::bpffs::{self, KEPT};
use crate::netns;

#[derive(Serialize, Deserialize)]
struct Kept {
    processes: Vec<KeptProcess>,
}

/// A process id is used again some day; with its start time it is not.
#[derive(Serialize, Deserialize)]
struct KeptProcess {
    pid: u32,
    /// Ticks since boot.
    started: u64,
}

/// Writes down in the lab's directory which processes stay.
pub(super) fn remember(dir: &Path, pids: &[u32]) -> anyhow::Result<()> {
    let process = |&pid: &u32| Some(KeptProcess { pid, started: start_time(pid)? });
    let processes = pids.iter().map(process).collect::<Option<Vec<_>>>().context("a program of the lab has ended")?;
    Ok(fs::write(dir.join(KEPT), serde_json::to_vec(&Kept { processes })?)?)
}

/// Takes down a lab that was kept, and what killed demonstrations and tests left.
pub(super) fn clear_earlier(story: &Story) {
    for dir in bpffs::kept() {
        let kept = fs::read(dir.join(KEPT)).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
        for process in kept.into_iter().flat_map(|kept| kept.processes) {
            end_kept(&process);
        }
        // Without it the sweep below takes the rest.
        fs::remove_file(dir.join(KEPT)).ok();
    }
    let swept = netns::sweep().len() + bpffs::sweep().len();
    if swept > 0 {
        story.step(&format!("swept {swept} leftovers of earlier labs"));
    }
}

fn end_kept(process: &KeptProcess) {
    let is_ours = || start_time(process.pid) == Some(process.started);
    let pid = Pid::from_raw(process.pid as i32);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if !is_ours() || kill(pid, signal).is_err() {
            return;
        }
        for _ in 0..100 {
            if !is_ours() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// When a process started, in ticks since boot (field 22 of `/proc/PID/stat`).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_tells_processes_apart() {
        let own = start_time(std::process::id()).expect("this process runs");
        assert!(own > 0);
        assert_eq!(start_time(u32::MAX), None);
    }
}
