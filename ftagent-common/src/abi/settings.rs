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
    /// There are blocks of IPv6 /64 networks.
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
    pub padding: u32,
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
}

/// Rows and columns of the source sketch.
pub const SKETCH_ROWS: usize = 4;
/// A power of two.
pub const SKETCH_COLUMNS: usize = 8_192;

/// A count-min sketch of sources (Cormode and Muthukrishnan), one per CPU.
///
/// A cell holds the low 8 bits of its epoch above 24 bits of count; a cell of another epoch counts as empty, so that
/// nobody needs to clear the sketch.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Sketch {
    pub cells: [[u32; SKETCH_COLUMNS]; SKETCH_ROWS],
}

/// State of one CPU's random numbers and policers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CpuState {
    /// xorshift; 0 means not yet seeded.
    pub random: u64,
    pub sample_state: u64,
    pub not_ip_state: u64,
}

/// Interfaces that one agent can watch.
pub const MAX_INTERFACES: u32 = 32;

map_type!(Settings = 112, Bitmaps = 32768, CpuState = 24);
const _: () = assert!(size_of::<Sketch>() == 131_072);
