//! What the kernel counts.

use super::{Reason, Target, map_type};
use crate::packet::Ip;
use crate::vocab::TrafficClass;

/// Frames and their bytes as received, Ethernet header included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

impl Counter {
    /// Adds one frame; wraps after 2^64.
    #[inline(always)]
    pub fn add(&mut self, bytes: u64) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes);
    }
}

impl core::ops::AddAssign for Counter {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

/// What passed and what was dropped, apart: the end of an attack is seen while it is being dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    pub passed: Counter,
    pub dropped: Counter,
}

impl Flow {
    /// Passed and dropped together.
    pub fn total(&self) -> Counter {
        let mut sum = self.passed;
        sum += self.dropped;
        sum
    }
}

impl core::ops::AddAssign for Flow {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.dropped += other.dropped;
    }
}

/// One interface's counters on one CPU: each frame once in `reasons` and once in `classes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceCounters {
    pub reasons: [Counter; Reason::SLOTS],
    pub classes: [Flow; TrafficClass::COUNT],
}

impl Default for InterfaceCounters {
    fn default() -> Self {
        Self { reasons: [Counter::default(); Reason::SLOTS], classes: [Flow::default(); TrafficClass::COUNT] }
    }
}

impl core::ops::AddAssign<&Self> for InterfaceCounters {
    fn add_assign(&mut self, other: &Self) {
        for (sum, part) in self.reasons.iter_mut().zip(&other.reasons) {
            *sum += *part;
        }
        for (sum, part) in self.classes.iter_mut().zip(&other.classes) {
            *sum += *part;
        }
    }
}

/// Places beside each other that a target or a source may have in its CPU's part of its table.
pub const PROBES: u32 = 8;

/// The same for a target that found all of these taken.
pub const FAR_PROBES: u32 = 64;

/// After how long a heavy source that is not heavy any more is forgotten.
pub const SOURCE_SILENT_NS: u64 = 60_000_000_000;

/// Words of the estimate of distinct sources.
pub const DISTINCT_WORDS: usize = 64;

/// What came for one target address on one CPU, by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TargetCounters {
    /// The destination; all zero: the place is free.
    pub key: Ip,
    pub classes: [Flow; TrafficClass::COUNT],
    /// What the trie said of this address under `generation`: the trie is asked once for each rule set.
    pub target: Target,
    /// [`super::Settings::generation`] of `target`.
    pub generation: u32,
    /// Number of the epoch (2^30 ns) that `distinct` belongs to.
    pub epoch: u32,
    /// Distinct sources of the epoch: probabilistic counting with stochastic averaging (Flajolet and Martin).
    pub distinct: [u32; DISTINCT_WORDS],
}

impl TargetCounters {
    /// Notes a source by its keyed hash, of which the low 38 bits are used.
    #[inline(always)]
    pub fn note_source(&mut self, hash: u64, epoch: u32) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.distinct = [0; DISTINCT_WORDS];
        }
        let rest = (hash >> 6) as u32 | 1 << 31;
        let word = &mut self.distinct[hash as usize & (DISTINCT_WORDS - 1)];
        let lowest = rest & rest.wrapping_neg();
        if *word & lowest == 0 {
            *word |= lowest;
        }
    }

    /// How many distinct sources were noted in the epoch, with a standard error of 10 %.
    #[cfg(any(feature = "api", test))]
    pub fn distinct_sources(&self) -> f64 {
        /// Flajolet and Martin's correction, and the one for small counts of Scheuermann and Mauve.
        const PHI: f64 = 0.77351;
        const KAPPA: f64 = 1.75;
        let runs: u32 = self.distinct.iter().map(|word| word.trailing_ones()).sum();
        let mean = f64::from(runs) / DISTINCT_WORDS as f64;
        (DISTINCT_WORDS as f64 / PHI * (mean.exp2() - (-KAPPA * mean).exp2())).max(0.0)
    }
}

impl Default for TargetCounters {
    fn default() -> Self {
        Self {
            key: Ip([0; 4]),
            classes: [Flow::default(); TrafficClass::COUNT],
            target: Target { rules: 0, group: 0, flags: 0, padding: [0; 3] },
            generation: 0,
            epoch: 0,
            distinct: [0; DISTINCT_WORDS],
        }
    }
}

impl core::ops::AddAssign<&Self> for TargetCounters {
    fn add_assign(&mut self, other: &Self) {
        for (sum, part) in self.classes.iter_mut().zip(&other.classes) {
            *sum += *part;
        }
        // CPUs that see no packet of the target stay in an older epoch: the newest counts.
        if other.epoch.wrapping_sub(self.epoch) as i32 > 0 {
            self.epoch = other.epoch;
            self.distinct = other.distinct;
        } else if other.epoch == self.epoch {
            self.distinct.iter_mut().zip(&other.distinct).for_each(|(word, part)| *word |= part);
        }
    }
}

/// What one heavy source sent, counted from the moment the sketch promoted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SourceCounters {
    /// The source, or its /64; all zero: the place is free.
    pub key: Ip,
    pub flow: Flow,
    /// When the source was last found heavy, nanoseconds of the monotonic clock. Not so for [`SOURCE_SILENT_NS`], it is no
    /// longer one and its place may be taken.
    pub last_seen_ns: u64,
}

/// The policer of one heavy source, on all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SourceState {
    /// The source's keyed hash with its lowest bit set; 0: the place is free.
    pub tag: u64,
    /// Of [`super::Rate::conform`].
    pub state: u64,
}

/// Places beside each other that the policer of a heavy source may have.
pub const STATE_PROBES: u32 = 4;

/// What one rule did on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RuleHits {
    pub counter: Counter,
    /// Nanoseconds of the coarse monotonic clock; 0: never hit.
    pub first_ns: u64,
    pub last_ns: u64,
}

/// Events that concern the engine itself; slots of a per-CPU array, see [`Health`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// A target could not be counted by itself because the map is full.
    TargetsFull = 0,
    /// A heavy source could not be promoted because the map is full.
    SourcesFull = 1,
    /// A sample was lost because the ring buffer was full.
    SamplesLost = 2,
    /// Automatic rules were ignored because user space is silent for too long; counted once per frame.
    DeadMan = 3,
}

impl Health {
    /// Slots in the map.
    pub const SLOTS: u32 = 8;
    /// Every event in slot order.
    pub const ALL: &'static [Self] = &[Self::TargetsFull, Self::SourcesFull, Self::SamplesLost, Self::DeadMan];

    /// The spelling in status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TargetsFull => "targets_full",
            Self::SourcesFull => "sources_full",
            Self::SamplesLost => "samples_lost",
            Self::DeadMan => "dead_man",
        }
    }
}

/// Bytes of the frame that a sample carries at most, from the Ethernet header on.
pub const SAMPLE_BYTES: usize = 128;

/// One sampled frame, as it lies in the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SampleEvent {
    /// Nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// Length of the frame in bytes.
    pub wire_len: u32,
    /// How many frames this one stands for.
    pub one_in: u32,
    /// Counter slot of the rule that judged it, or `u32::MAX`.
    pub rule: u32,
    /// Slot of the interface.
    pub interface: u16,
    /// Bytes of `frame` that are filled in.
    pub captured: u16,
    /// [`Reason`] as a number.
    pub reason: u8,
    /// 1: the rule is being evaluated and would have dropped the frame, which `reason` says the fate of.
    pub would_drop: u8,
    /// 1: a tunnel that was judged from outside, since nobody here protects whom its packet is for.
    pub closed: u8,
    pub padding: [u8; 5],
    pub frame: [u8; SAMPLE_BYTES],
}

map_type!(
    Counter = 16,
    Flow = 32,
    InterfaceCounters = 1024,
    TargetCounters = 808,
    SourceCounters = 56,
    SourceState = 16,
    RuleHits = 32,
    SampleEvent = 160
);
