//! One flood of one site.

use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::row::Sources;
use super::site::{self, Site};
use super::stopwatch::Stopwatch;
use crate::generator::{Bounds, Entries, Generator, Listed, Pace, Sent, Vary};
use crate::meter::ATTACK_MAC;
use crate::netns::Netns;
use crate::packet::PacketBuilder;

/// Frames that warm caches and tell how long the others will take.
const PILOT: u64 = 8_192;
/// The smallest Ethernet frame, without its check sequence.
const FRAME: usize = 60;
/// Ends a flood of a peer that is slower than its pilot said.
const LONGEST: Duration = Duration::from_secs(10);

/// What one flood cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) arrived: u64,
    pub(super) leaked: u64,
    /// Of the receiver, for each packet that arrived.
    pub(super) receive_ns: f64,
    /// On the clock, the generator's work included.
    pub(super) wall_ns: f64,
}

/// Three floods that differ in their sources, ready to be sent from one namespace.
pub(super) struct Generators {
    hot: Generator,
    networks: Generator,
    addresses: Generator,
    stopwatch: Stopwatch,
    netns: std::fs::File,
    cpu: usize,
}

impl Generators {
    /// Loads them for lists of `entries`.
    pub(super) fn ready(wan: &Netns, entries: u32) -> anyhow::Result<Self> {
        let stopwatch = Stopwatch::start().context("the time of receivers cannot be taken")?;
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let cpu = (0..CpuSet::count()).rev().find(|&cpu| allowed.is_set(cpu).unwrap_or(false));
        let cpu = cpu.context("this process may run on no CPU")?;
        let netns = wan.open()?;
        let load = |vary: Vary, list: Listed| -> anyhow::Result<Generator> {
            let mut generator = Generator::load(&template(list), &vary, 1)?;
            generator.keep_ready()?;
            Ok(generator)
        };
        let listed = |kind| Listed::new(kind, entries);
        let random = |kind| load(Vary { listed: Some(listed(kind)), ..Vary::default() }, listed(kind));
        let (hot, networks, addresses) = wan.run(|| -> anyhow::Result<_> {
            // The first entry of both kinds of list is the same address, or lies in the same network.
            Ok((
                load(Vary::default(), listed(Entries::Addresses))?,
                random(Entries::Networks)?,
                random(Entries::Addresses)?,
            ))
        })??;
        Ok(Self { hot, networks, addresses, stopwatch, netns, cpu })
    }

    /// Removes what they need in their namespace.
    pub(super) fn put_away(self, wan: &Netns) {
        // With the namespace everything goes at the latest.
        wan.run(|| drop(self)).ok();
    }

    /// Floods `site` for about so long, from the CPU that receives as well.
    pub(super) fn measure(
        &mut self,
        site: &Site,
        sources: Sources,
        entries: Entries,
        time: Duration,
    ) -> anyhow::Result<Measured> {
        let generator = match (sources, entries) {
            (Sources::Hot, _) => &mut self.hot,
            (Sources::Random, Entries::Networks) => &mut self.networks,
            (Sources::Random, Entries::Addresses) => &mut self.addresses,
        };
        let (stopwatch, cpu, device) = (&self.stopwatch, self.cpu, site.wan.index);
        let leaked_before = site.leaked()?;
        let flood = || -> anyhow::Result<(Sent, Sent, u64)> {
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
            Ok((pilot, sent, stopwatch.spent_ns(cpu)? - before))
        };
        let (pilot, sent, spent) = inside(&self.netns, flood)?;
        let leaked = site.leaked()? - leaked_before;
        if sent.arrived() < sent.frames / 2 {
            bail!("{} of {} frames did not fit the device's ring", sent.ring_dropped, sent.frames);
        }
        let arrived = sent.arrived().max(1);
        Ok(Measured {
            arrived: arrived + pilot.arrived(),
            leaked,
            receive_ns: spent as f64 / arrived as f64,
            wall_ns: (sent.last - sent.first).as_nanos() as f64 / arrived as f64,
        })
    }
}

/// Runs `work` on a thread inside the namespace.
fn inside<T: Send>(netns: &std::fs::File, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            crate::netns::enter(netns)?;
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn template(list: Listed) -> Vec<u8> {
    const HEADERS: usize = 14 + 20 + 8;
    let builder = PacketBuilder::v4(list.first(), site::ADDRESS).macs(ATTACK_MAC, site::MAC);
    builder.udp(53, 4_242).payload(&[0; FRAME - HEADERS]).build()
}
