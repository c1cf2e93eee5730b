//! Floods of live frames: what a frame costs its receiver, and how many a CPU drops.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::under_test::Wires;
use crate::generator::{Bounds, Generator, Pace, Vary};
use crate::ladder::Stopwatch;

/// Frames that warm caches and tell how long the others will take.
const PILOT: u64 = 16_384;
const LONGEST: Duration = Duration::from_secs(10);

/// A flood, ready to be sent on any wire.
pub(crate) struct Flood {
    generator: Generator,
    cpu: usize,
}

/// What one flood gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Time in the soft interrupt of reception for each frame that arrived.
    pub(crate) receive_ns: f64,
    /// On the clock, the generator's own work included.
    pub(crate) wall_ns: f64,
}

/// CPUs on which this process may run.
pub(crate) fn cpus() -> anyhow::Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect())
}

impl Flood {
    /// Loads it for `cpu`, which sends and receives.
    pub(crate) fn new(template: &[u8], vary: &Vary, cpu: usize) -> anyhow::Result<Self> {
        Ok(Self { generator: Generator::load(template, vary, 1 + cpu as u64)?, cpu })
    }

    /// Floods wire `pair` for about so long.
    pub(crate) fn send(
        &mut self,
        wires: &Wires,
        pair: usize,
        stopwatch: &Stopwatch,
        time: Duration,
    ) -> anyhow::Result<Cost> {
        let (generator, cpu, device) = (&mut self.generator, self.cpu, wires.pairs[pair].1.index);
        wires.wan.run(|| {
            let mut only = CpuSet::new();
            only.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &only).context("cannot stay on one CPU")?;
            let pilot = generator.send(device, Pace::Full, Bounds::new(PILOT, LONGEST))?;
            let pilot_ns = (pilot.last - pilot.first).as_nanos().max(1) as f64 / PILOT as f64;
            let frames = ((time.as_nanos() as f64 / pilot_ns) as u64).max(PILOT);
            let before = stopwatch.spent_ns(cpu)?;
            let sent = generator.send(device, Pace::Full, Bounds::new(frames, LONGEST))?;
            // What a kernel thread was left to do.
            thread::sleep(Duration::from_millis(2));
            let spent = stopwatch.spent_ns(cpu)? - before;
            if sent.arrived() < sent.frames / 2 {
                bail!("{} of {} frames did not fit the device's ring", sent.ring_dropped, sent.frames);
            }
            let arrived = sent.arrived() as f64;
            let wall_ns = (sent.last - sent.first).as_nanos() as f64 / arrived;
            Ok(Cost { receive_ns: spent as f64 / arrived, wall_ns })
        })?
    }
}
