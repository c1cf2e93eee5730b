//! What user space tells the programs: one small value read once per frame, and the bitmaps in front of the tries.

use super::map_type;

/// The stages that are in the path; a stage that is off costs one test of a bit.
pub mod feature {
    /// The trust trie has entries.
    pub const TRUST: u32 = 1;
    /// There are exact blocks of IPv4 addresses.
    pub const BLOCK4: u32 = 1 << 1;
    /// There are blocks of IPv4 prefixes.
    pub const BLOCK4_PREFIX: u32 = 1 << 2;
    /// There are exact blocks of IPv6 addresses.
    pub const BLOCK6: u32 = 1 << 3;
    /// There are blocks of IPv6 /64, /56 or /48 networks.
    pub const BLOCK6_NET: u32 = 1 << 4;
    /// There are blocks of other IPv6 prefixes.
    pub const BLOCK6_PREFIX: u32 = 1 << 5;
    /// There are limited sources.
    pub const SOURCE_LIMIT: u32 = 1 << 6;
    /// Sources are counted in the sketch and heavy ones by themselves.
    pub const SOURCES: u32 = 1 << 7;
    /// Every heavy source is held to [`super::Settings::source_rate`].
    pub const SOURCE_POLICER: u32 = 1 << 8;
    /// Frames are sampled.
    pub const SAMPLE: u32 = 1 << 9;
    /// Malformed frames pass.
    pub const PASS_MALFORMED: u32 = 1 << 10;
    /// There are rules without a target, in group 0.
    pub const GLOBAL_RULES: u32 = 1 << 11;
    /// There is a table of IPv4 prefixes from lists.
    pub const LISTS4: u32 = 1 << 12;
    /// There are rules that compare payloads.
    pub const PAYLOADS: u32 = 1 << 15;
    /// Among the IPv6 networks are /56 ones.
    pub const BLOCK6_56: u32 = 1 << 13;
    /// Among the IPv6 networks are /48 ones.
    pub const BLOCK6_48: u32 = 1 << 14;
    /// Answers that nobody asked for are dropped; needs what the egress program learns.
    pub const REFLECTORS: u32 = 1 << 24;
    /// There are targets behind the TCP gate.
    pub const GATE: u32 = 1 << 25;
}

/// Stages that a copy of the programs has at all; what is left out costs not one instruction.
pub mod stage {
    /// What no host can have sent is dropped.
    pub const SANITY: u32 = 1;
    /// Tunnels are opened.
    pub const TUNNELS: u32 = 1 << 1;
    /// Lists of prefixes.
    pub const LISTS: u32 = 1 << 2;
    /// Signature rules.
    pub const SIGNATURES: u32 = 1 << 3;
    /// Sources are counted.
    pub const SOURCES: u32 = 1 << 4;
    /// Distinct sources of each target are estimated.
    pub const DISTINCT: u32 = 1 << 5;
    /// Frames are sampled.
    pub const SAMPLES: u32 = 1 << 6;
    /// Every stage that needs nothing beyond kernel 5.10.
    pub const ALL: u32 = (1 << 7) - 1;
    /// Reflectors.
    pub const REFLECTORS: u32 = 1 << 7;
    /// The TCP gate.
    pub const GATE: u32 = 1 << 8;
}

/// Numbers of [`crate::vocab::Mode`] in [`Settings::mode`].
pub mod mode {
    pub const ENFORCE: u32 = 0;
    pub const EVALUATE: u32 = 1;
    pub const BYPASS: u32 = 2;
}

/// The one value that every frame reads first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// See [`mode`].
    pub mode: u32,
    /// See [`feature`].
    pub features: u32,
    /// When user space last said that it lives, nanoseconds of the monotonic clock.
    pub heartbeat_ns: u64,
    /// After how much silence automatic rules are ignored; 0: never.
    pub dead_man_ns: u64,
    /// Policer of frames that are not IP, per CPU.
    pub not_ip: super::Rate,
    /// Policer of every heavy source by itself.
    pub source_rate: super::Rate,
    /// Upper bound of samples, per CPU.
    pub sample_rate: super::Rate,
    /// A frame is sampled if a random 32-bit number is below this.
    pub sample_below: u32,
    /// How many frames a sample stands for at that probability.
    pub sample_one_in: u32,
    /// Packets in one sketch epoch (2^30 ns) that make a source heavy.
    pub promote_at: u32,
    /// How many packets one that the sketch sees stands for; see [`Self::promoting_at`].
    pub sketch_one_in: u32,
    /// The sketch sees a packet if a number between 0 and 2^32 that wanders evenly is at most this.
    pub sketch_below: u32,
    /// Counts rule sets; 0 is never used. Its lowest bit is the active slot (see [`super::Slotted`]), so that a swap is
    /// one aligned write, and what was remembered of an older rule set is known to be stale.
    pub generation: u32,
    /// The key of all hashes, drawn when the maps are made.
    pub seed: u64,
}

impl Settings {
    /// Sources are heavy from `promote_at` packets in an epoch on, 1 to [`SKETCH_MAX`], and the sketch sees as many
    /// packets as it takes to find them: 60 before one is promoted, so that chance is off by an eighth, and no less than
    /// one in 8.
    #[must_use]
    pub const fn promoting_at(mut self, promote_at: u32) -> Self {
        self.promote_at = promote_at;
        self.sketch_one_in = match promote_at / 60 {
            0 | 1 => 1,
            2 | 3 => 2,
            4..=7 => 4,
            _ => 8,
        };
        self.sketch_below = u32::MAX / self.sketch_one_in;
        self
    }
}

/// Words of a bitmap over the first 16 bits of an address.
pub const BITMAP_WORDS: usize = 1_024;

/// Bitmaps over the first 16 bits of source addresses: a clear bit means that no entry of the trie behind it can match.
///
/// User space sets bits before it inserts and clears them after it deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Bitmaps {
    pub trust4: [u64; BITMAP_WORDS],
    pub trust6: [u64; BITMAP_WORDS],
    pub block4: [u64; BITMAP_WORDS],
    pub block6: [u64; BITMAP_WORDS],
    pub limit4: [u64; BITMAP_WORDS],
    pub limit6: [u64; BITMAP_WORDS],
    /// Exact blocks of addresses and of IPv6 networks by their keyed hash, see [`super::filter_bit`].
    pub blocks: [u64; super::FILTER_WORDS],
}

/// Lines of the source sketch, a power of two.
pub const SKETCH_LINES: usize = 4_096;
/// Cells of one line: 64 bytes, one line of the processor's cache.
pub const SKETCH_CELLS: usize = 16;

/// A count-min sketch of sources (Cormode and Muthukrishnan) with conservative update, one per CPU.
///
/// A source's four cells lie in one cache line, each in a quarter of its own: four rows would be four misses. A cell
/// holds the low 4 bits of its epoch above two counts of 14 bits, of the epoch before and of this one, so that a
/// source is not forgotten when an epoch ends and nobody needs to clear the sketch. Counts stop at their largest value.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Sketch {
    pub lines: [[u32; SKETCH_CELLS]; SKETCH_LINES],
    /// The low 16 bits of the epoch in which the sketch found a source of this hash heavy, so that the packets of heavy
    /// sources are known among those that it does not see. What was never written says so of everybody, once in 19
    /// hours, for three epochs: a look at a table that has none of them.
    pub heavy: [u16; SKETCH_HEAVY],
}

/// Places for hashes of heavy sources, a power of two: a part of the processor's nearest cache, so that looking there
/// costs next to nothing.
pub const SKETCH_HEAVY: usize = 4_096;

/// Epochs in which a place of [`Sketch::heavy`] holds.
pub const SKETCH_HEAVY_EPOCHS: u16 = 3;

/// The largest count of a cell, and the largest sensible [`Settings::promote_at`].
pub const SKETCH_MAX: u32 = (1 << 14) - 1;

/// State of one CPU's random numbers and policers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CpuState {
    /// xorshift; 0 means not yet seeded.
    pub random: u64,
    /// Multiples of the golden ratio modulo 1, in units of 2^-64 (Weyl): whom the sketch sees.
    pub weyl: u64,
    pub sample_state: u64,
    pub not_ip_state: u64,
    /// The clock in nanoseconds, as it was read in the jiffy `jiffies`.
    pub now_ns: u64,
    pub jiffies: u64,
}

/// Interfaces that one agent can watch.
pub const MAX_INTERFACES: u32 = 32;

map_type!(Settings = 128, Bitmaps = 180224, CpuState = 48);
const _: () = assert!(size_of::<Sketch>() == 270_336);
