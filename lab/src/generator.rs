//! Sends an exact number of frames, forged from one template, with XDP live frames. Needs kernel 5.18.
//!
//! The kernel runs `lab_generate` on each frame and transmits it from the device, without a socket or a queueing
//! discipline. A veth device takes such frames only while its peer has a native XDP program or receive offload; frames
//! that did not fit the peer's ring are counted, so that sent = received + [`Sent::ring_dropped`] always holds.

use std::io;
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{ProgramError, TestRun, Xdp};
use aya::util::nr_cpus;
use aya::{Ebpf, TestRunAttrs, TestRunOptions};
use ipnet::IpNet;

use crate::clock::{Moment, now};
use crate::object::{self, LabProgramError};
use crate::rtnl::Rtnl;
use crate::run::xdp_context;

mod listed;
mod settings;
mod spare;

pub use listed::{Entries, Listed};

const PROGRAM: &str = "lab_generate";
/// Frames that the kernel transmits in one go; the ring of a veth device holds 256.
const BATCH: u32 = 64;
/// Frames of one system call: below it a time limit or a stop is not noticed.
const CHUNK: u64 = 1 << 16;
/// Frames of one system call of a paced run: what a late wake-up left undone must not overflow the peer's ring.
const PACED_CHUNK: u64 = 128;
const TICK: Duration = Duration::from_micros(500);
/// How far a paced run may lag behind its schedule and still catch up.
const MAX_LAG: Duration = Duration::from_millis(5);

/// What differs between the frames; what is `None` or false stays as in the template.
#[derive(Clone, Debug, Default)]
pub struct Vary {
    /// Random source addresses within a prefix.
    pub sources: Option<IpNet>,
    /// Random sources out of a list.
    pub listed: Option<Listed>,
    /// Random source ports.
    pub source_ports: Option<RangeInclusive<u16>>,
    /// Random destination ports.
    pub destination_ports: Option<RangeInclusive<u16>>,
    /// Destination addresses in turn over a prefix (carpet bombing); at most the last 32 bits count.
    pub destinations: Option<IpNet>,
    pub ttls: Option<RangeInclusive<u8>>,
    /// The first four bytes of the payload are random.
    pub payload: bool,
    /// The identification of IPv4 headers is random.
    pub ip_id: bool,
}

/// Why frames could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum GeneratorError {
    #[error(transparent)]
    Program(#[from] LabProgramError),
    #[error("the template cannot be used: {0}")]
    Template(&'static str),
    #[error("the kernel refused to send frames from device {device}")]
    Send {
        device: u32,
        #[source]
        source: ProgramError,
    },
    #[error("cannot read the statistics of device {device}")]
    Stats {
        device: u32,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a device beside device {device} that holds the program")]
    Spare {
        device: u32,
        #[source]
        source: io::Error,
    },
    #[error("{0} frames were shorter than the template says")]
    Short(u64),
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Full,
    /// Frames a second, at least 1.
    PerSecond(u64),
}

/// Where a run ends, whatever comes first.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    pub frames: u64,
    pub time: Duration,
    pub stop: Option<&'a AtomicBool>,
    /// Told the moment before the first frame, while the run goes on.
    pub began: Option<&'a OnceLock<Moment>>,
}

impl Bounds<'_> {
    /// At most so many frames in at most so much time.
    pub fn new(frames: u64, time: Duration) -> Self {
        Self { frames, time, stop: None, began: None }
    }

    /// The moment before the first frame.
    pub(crate) fn begin(&self) -> Moment {
        let first = Moment::now();
        if let Some(cell) = self.began {
            // A cell that is filled already keeps the first of several runs.
            cell.set(first).ok();
        }
        first
    }

    pub(crate) fn is_over(&self, sent: u64, elapsed: Duration) -> bool {
        sent >= self.frames || elapsed >= self.time || self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}

/// A steady rate without bursts: who comes late goes on from there.
pub(crate) struct Clockwork {
    rate: u64,
    started: Instant,
}

impl Clockwork {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), started: now() }
    }

    /// Frames that are due when `sent` are sent; what more than [`MAX_LAG`] has piled up is put off.
    pub(crate) fn due(&mut self, sent: u64) -> u64 {
        let elapsed = self.started.elapsed();
        let planned = Duration::from_nanos((u128::from(sent) * 1_000_000_000 / u128::from(self.rate)) as u64);
        if let Some(lag) = elapsed.checked_sub(planned + MAX_LAG) {
            self.started += lag;
        }
        let due = (self.started.elapsed().as_nanos() * u128::from(self.rate) / 1_000_000_000) as u64 + 1;
        due.saturating_sub(sent)
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Frames handed to the device, counted by the BPF program itself.
    pub frames: u64,
    /// Frames of these that did not fit the ring of the device's peer and never arrived.
    pub ring_dropped: u64,
    /// Times that the device refused a frame and said so; such a frame was sent again.
    pub refused: u64,
    /// A moment just before the first frame.
    pub first: Moment,
    /// A moment just after the last frame.
    pub last: Moment,
}

impl Sent {
    /// Frames that reached the other end.
    pub fn arrived(&self) -> u64 {
        self.frames.saturating_sub(self.ring_dropped)
    }
}

/// A loaded generator for one template.
pub struct Generator {
    ebpf: Ebpf,
    template: Vec<u8>,
    held: Option<spare::Spare>,
}

impl Generator {
    /// Loads the program and tells it what varies. `seed` makes the run repeatable on one CPU.
    ///
    /// # Errors
    /// The template is no parsable IP frame or has no room for what shall vary; the programs are not built; the kernel
    /// refused them.
    pub fn load(template: &[u8], vary: &Vary, seed: u64) -> Result<Self, GeneratorError> {
        let words = settings::words(template, vary).map_err(GeneratorError::Template)?;
        Self::with_settings(template, &words, seed).map_err(GeneratorError::Program)
    }

    fn with_settings(template: &[u8], words: &settings::Words, seed: u64) -> Result<Self, LabProgramError> {
        let fail = |source| LabProgramError::Program { program: PROGRAM, source };
        let mut ebpf = object::load()?;
        let program = ebpf.program_mut(PROGRAM).ok_or(LabProgramError::Missing(PROGRAM))?;
        let program: &mut Xdp = program.try_into().map_err(fail)?;
        program.load().map_err(fail)?;
        let map = ebpf.map_mut("LAB_SETTINGS").ok_or(LabProgramError::Missing("LAB_SETTINGS"))?;
        Array::<&mut MapData, settings::Words>::try_from(map)?.set(0, words, 0)?;
        let map = ebpf.map_mut("LAB_PROGRESS").ok_or(LabProgramError::Missing("LAB_PROGRESS"))?;
        let cpus = nr_cpus().map_err(|(_, e)| aya::maps::MapError::IoError(e))?;
        let slots: Vec<[u64; 3]> =
            (0..cpus as u64).map(|cpu| [0, 0, (seed ^ (cpu << 56)).wrapping_mul(0x9e37_79b9_7f4a_7c15)]).collect();
        let slots = PerCpuValues::try_from(slots).map_err(aya::maps::MapError::IoError)?;
        PerCpuArray::<&mut MapData, [u64; 3]>::try_from(map)?.set(0, slots, 0)?;
        Ok(Self { ebpf, template: template.to_vec(), held: None })
    }

    /// Sends from a device of the calling thread's network namespace until a bound is reached.
    ///
    /// # Errors
    /// The kernel refused; what was sent until then is lost to the caller.
    pub fn send(&mut self, device: u32, pace: Pace, bounds: Bounds<'_>) -> Result<Sent, GeneratorError> {
        let stats = || {
            let read = Rtnl::open().and_then(|rtnl| rtnl.stats(device));
            read.map_err(|source| GeneratorError::Stats { device, source })
        };
        let _held = if self.held.is_none() { Some(self.hold(device)?) } else { None };
        let (before, dropped_before) = (self.progress()?, stats()?.tx_dropped);
        let first = bounds.begin();
        let started = now();
        let mut clockwork = match pace {
            Pace::Full => None,
            Pace::PerSecond(rate) => Some(Clockwork::new(rate)),
        };
        let mut sent = 0;
        while !bounds.is_over(sent, started.elapsed()) {
            let left = bounds.frames - sent;
            let chunk = match &mut clockwork {
                None => left.min(CHUNK),
                Some(clockwork) => clockwork.due(sent).min(left).min(PACED_CHUNK),
            };
            if chunk == 0 {
                thread::sleep(TICK);
                continue;
            }
            self.send_chunk(device, chunk as u32)?;
            sent += chunk;
            if pace != Pace::Full {
                // To whoever empties the ring, if that is another thread.
                thread::yield_now();
            }
        }
        let last = Moment::now();
        let after = self.progress()?;
        if after.1 != before.1 {
            return Err(GeneratorError::Short(after.1 - before.1));
        }
        Ok(Sent {
            frames: after.0 - before.0,
            ring_dropped: stats()?.tx_dropped - dropped_before,
            refused: 0,
            first,
            last,
        })
    }

    /// Keeps what [`Self::send`] otherwise makes and removes each time, for many short runs.
    ///
    /// Call it, and drop the generator, in the network namespace that the frames are sent from.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn keep_ready(&mut self) -> Result<(), GeneratorError> {
        if self.held.is_none() {
            self.held = Some(self.hold(0)?);
        }
        Ok(())
    }

    /// Attaches the program to a device without traffic while frames are sent.
    fn hold(&mut self, device: u32) -> Result<spare::Spare, GeneratorError> {
        let spare = spare::Spare::create().map_err(|source| GeneratorError::Spare { device, source })?;
        spare.hold(&mut self.ebpf, PROGRAM)?;
        Ok(spare)
    }

    fn send_chunk(&mut self, device: u32, frames: u32) -> Result<(), GeneratorError> {
        let fail = |source| GeneratorError::Send { device, source };
        let context = xdp_context(self.template.len(), device);
        let mut options = TestRunOptions::new();
        options.data_in = Some(&self.template);
        options.ctx_in = Some(&context);
        options.repeat = frames;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let program = self.ebpf.program_mut(PROGRAM).ok_or(LabProgramError::Missing(PROGRAM))?;
        let program: &mut Xdp = program.try_into().map_err(fail)?;
        program.test_run(options).map(drop).map_err(fail)
    }

    /// Frames sent and frames refused so far, over all CPUs.
    fn progress(&self) -> Result<(u64, u64), LabProgramError> {
        let map = self.ebpf.map("LAB_PROGRESS").ok_or(LabProgramError::Missing("LAB_PROGRESS"))?;
        let slots = PerCpuArray::<&MapData, [u64; 3]>::try_from(map)?.get(&0, 0)?;
        Ok(slots.iter().fold((0, 0), |(sent, failed), slot| (sent + slot[0], failed + slot[1])))
    }
}
