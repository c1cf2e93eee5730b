//! Rules as the kernel sees them.

use super::map_type;

/// The rule's effect ends when user space has been silent for [`super::Settings::dead_man_ns`].
pub const AUTOMATIC: u8 = 1;
/// Hits are counted and sampled, nothing is dropped.
pub const EVALUATE: u8 = 2;
/// The entry exists in this slot; all zero is an entry that does not.
pub const PRESENT: u8 = 4;

/// What an entry is in the rule set of slot 0 and in that of slot 1. A frame reads which slot is active once, so it
/// is judged wholly by one rule set; outside a swap both are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slotted<V>(pub [V; 2]);

impl<V: Copy> Slotted<V> {
    /// The same in both rule sets.
    pub const fn both(value: V) -> Self {
        Self([value, value])
    }

    /// What the rule set of `slot` says.
    #[inline(always)]
    pub const fn at(&self, slot: u32) -> &V {
        &self.0[(slot & 1) as usize]
    }
}

// SAFETY: two values of a type without padding, one after the other.
#[cfg(feature = "user")]
unsafe impl<V: aya::Pod> aya::Pod for Slotted<V> {}

/// No rule: the counter slot of frames that no rule judged.
pub const NO_RULE: u32 = u32::MAX;

/// Counter slots of rules; a rule keeps its slot while it lives.
pub const MAX_RULES: u32 = 16_384;

/// Lists of prefixes, and other sources of the prefix table, that exist at once.
pub const MAX_LISTS: u32 = 16_384;

/// A blocked source or prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Block {
    /// Nanoseconds of the monotonic clock after which the entry counts as absent; 0: it has no end.
    pub expires_at_ns: u64,
    /// Counter slot, below [`MAX_RULES`].
    pub rule: u32,
    /// [`PRESENT`], [`AUTOMATIC`], [`EVALUATE`].
    pub flags: u8,
    pub padding: [u8; 3],
}

/// Places of [`NearBlock`]s, a power of two: four times the rules that can be.
pub const NEAR_BLOCKS: u32 = 65_536;
/// Places beside each other that a [`NearBlock`] may have.
pub const NEAR_PROBES: u32 = 4;

/// A blocked IPv4 address and its entry, in a table that user space writes through its own memory.
///
/// The key is written last and taken away first, so that who finds the key finds the whole entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NearBlock {
    /// See [`Self::key_of`]; 0: the place is free.
    pub key: u64,
    pub block: Slotted<Block>,
}

impl NearBlock {
    /// The key of an address in memory order; never 0.
    #[inline(always)]
    pub const fn key_of(address: u32) -> u64 {
        1 << 32 | address as u64
    }
}

/// Where an address of this hash may lie.
#[inline(always)]
pub const fn near_place(hash: u64, probe: u32) -> u32 {
    ((hash >> 20) as u32).wrapping_add(probe) & (NEAR_BLOCKS - 1)
}

/// A rate limit as virtual scheduling (GCRA, ITU-T I.371): a packet conforms if the theoretical arrival time lies at
/// most `burst` in the future. One word of state, one compare-and-swap to pass, none to drop.
///
/// Times here are 1/256 nanoseconds, compared modulo 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// What one packet costs, or one byte if `per_byte`.
    pub cost: u64,
    /// How far ahead of the clock the state may run.
    pub burst: u64,
    /// 0: packets are counted; 1: bytes of the frame.
    pub per_byte: u32,
    pub padding: u32,
}

impl Rate {
    /// 1/256 nanoseconds in a second.
    pub const UNITS_PER_SEC: u64 = 256 * 1_000_000_000;
    /// The coarse clock advances in steps of up to 10 ms (`CONFIG_HZ=100`): a shorter burst would drop what conforms.
    pub const MIN_BURST_UNITS: u64 = Self::UNITS_PER_SEC / 50;
    /// A longer one would let a flood through for that long: ten minutes' worth.
    const MAX_BURST_UNITS: u64 = Self::UNITS_PER_SEC * 600;

    /// `pps` packets per second (at least 1), of which `burst` packets may come at once.
    pub fn packets(pps: u64, burst: u64) -> Self {
        let cost = Self::UNITS_PER_SEC / pps.max(1);
        Self { cost, burst: Self::bounded(cost, burst), per_byte: 0, padding: 0 }
    }

    /// `bps` bits per second (at least 1,000), of which `burst` bits may come at once.
    pub fn bits(bps: u64, burst: u64) -> Self {
        let cost = (Self::UNITS_PER_SEC / (bps / 8).max(125)).max(1);
        Self { cost, burst: Self::bounded(cost, burst / 8), per_byte: 1, padding: 0 }
    }

    fn bounded(cost: u64, burst: u64) -> u64 {
        cost.saturating_mul(burst).clamp(Self::MIN_BURST_UNITS.max(cost), Self::MAX_BURST_UNITS.max(cost))
    }

    /// Judges one frame of `bytes` at `now_ns`: the new state if it conforms, or nothing if it is over the limit.
    ///
    /// `state` is the theoretical arrival time; 0 means never used.
    #[inline(always)]
    pub fn conform(&self, state: u64, now_ns: u64, bytes: u64) -> Option<u64> {
        let now = now_ns.wrapping_mul(256);
        // Behind the clock, or never used: the bucket is full.
        let ahead = state.wrapping_sub(now);
        let behind = state == 0 || ahead > i64::MAX as u64;
        if !behind && ahead > self.burst {
            return None;
        }
        let from = if behind { now } else { state };
        let cost = if self.per_byte != 0 { self.cost.wrapping_mul(bytes) } else { self.cost };
        Some(from.wrapping_add(cost))
    }
}

/// A limited source or prefix; all of a prefix share one state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SourceLimit {
    pub expires_at_ns: u64,
    pub rate: Rate,
    pub rule: u32,
    pub flags: u8,
    pub padding: [u8; 3],
}

/// A protected destination: which signature rules are asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// The rules of `group` that belong to the destination, a bit each; none: it is only counted.
    pub rules: u64,
    /// See [`super::SIGNATURE_GROUPS`].
    pub group: u32,
    /// [`PRESENT`].
    pub flags: u8,
    pub padding: [u8; 3],
}

/// Ports that one trusted prefix is safe on.
pub const TRUSTED_PORTS: usize = 8;
/// The prefix is on the allowlist: it passes whatever the rules say, on every port.
pub const TRUST_ALLOW: u32 = 1;
/// The prefix is fail-safe on the ports listed.
pub const TRUST_PORTS: u32 = 2;
/// The prefix is fail-safe on every port: gateway, control plane.
pub const TRUST_ALL: u32 = 4;

/// A trusted prefix. The longest match alone counts, so user space writes into it what its parents grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Trust {
    /// [`TRUST_ALLOW`], [`TRUST_PORTS`], [`TRUST_ALL`].
    pub flags: u32,
    /// How many of `ports` are in use.
    pub port_count: u32,
    /// Destination ports in host order, or source ports of answers to our own connections.
    pub ports: [u16; TRUSTED_PORTS],
}

map_type!(Block = 16, NearBlock = 40, Rate = 24, SourceLimit = 40, Target = 16, Trust = 24);

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames that conform out of `sent` frames spaced `gap_ns` apart.
    fn conforming(rate: Rate, sent: u64, gap_ns: u64, bytes: u64) -> u64 {
        let mut state = 0;
        let mut passed = 0;
        for i in 0..sent {
            if let Some(next) = rate.conform(state, 1_000_000_000 + i * gap_ns, bytes) {
                state = next;
                passed += 1;
            }
        }
        passed
    }

    #[test]
    fn a_packet_limit_lets_its_rate_and_its_burst_pass() {
        // 10 s of 10,000 pps against 1,000 pps with a burst of 100.
        let passed = conforming(Rate::packets(1_000, 100), 100_000, 100_000, 64);
        assert!((10_000..=10_102).contains(&passed), "{passed}");
    }

    #[test]
    fn traffic_below_the_limit_is_never_dropped() {
        assert_eq!(conforming(Rate::packets(1_000, 1), 5_000, 1_000_000, 64), 5_000);
    }

    #[test]
    fn a_bit_limit_counts_bytes() {
        // 1 Gbit/s of 1,250-byte frames (100 kpps) for 1 s against 100 Mbit/s.
        let passed = conforming(Rate::bits(100_000_000, 0), 100_000, 10_000, 1_250);
        assert!((9_990..=10_250).contains(&passed), "{passed}");
    }

    #[test]
    fn the_state_survives_the_wrap_of_its_unit() {
        let rate = Rate::packets(1_000, 1);
        // 2^64 / 256 ns is 833 days of uptime; the state lies just beyond it.
        let before_wrap = (u64::MAX / 256) - 1_000;
        let state = rate.conform(0, before_wrap, 64).expect("a fresh bucket is full");
        assert!(rate.conform(state, before_wrap + 2_000_000_000, 64).is_some());
    }

    #[test]
    fn rates_are_bounded_at_both_ends() {
        assert!(Rate::packets(0, 0).cost > 0);
        assert!(Rate::bits(1_000_000_000_000, 0).cost >= 1);
        assert!(Rate::packets(1, u64::MAX).burst < u64::MAX / 2);
    }
}
