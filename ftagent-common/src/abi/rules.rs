//! Rules as the kernel sees them.

use super::map_type;

/// The rule's effect ends when user space has been silent for [`super::Settings::dead_man_ns`].
pub const AUTOMATIC: u8 = 1;
/// Hits are counted and sampled, nothing is dropped.
pub const EVALUATE: u8 = 2;

/// No rule: the counter slot of frames that no rule judged.
pub const NO_RULE: u32 = u32::MAX;

/// Counter slots of rules; a rule keeps its slot while it lives.
pub const MAX_RULES: u32 = 8_192;

/// A blocked source or prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Block {
    /// Nanoseconds of the monotonic clock after which the entry counts as absent; 0: it has no end.
    pub expires_at_ns: u64,
    /// Counter slot, below [`MAX_RULES`].
    pub rule: u32,
    /// [`AUTOMATIC`], [`EVALUATE`].
    pub flags: u8,
    pub padding: [u8; 3],
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
    /// The theoretical arrival time, written by the kernel.
    pub state: u64,
    pub rule: u32,
    pub flags: u8,
    pub padding: [u8; 3],
}

/// Rules that one target can have at once.
pub const RULES_PER_TARGET: usize = 16;
/// Rule lists that exist at once; list 0 is empty and means "count only".
pub const MAX_POLICIES: u32 = 1_024;

/// What a [`TargetRule`] does to a frame that it matches.
pub mod rule_action {
    pub const DROP: u8 = 0;
    /// Drops what is over the rule's rate; the rest is judged on.
    pub const LIMIT: u8 = 1;
    /// Asks no further rule of the target.
    pub const PASS: u8 = 2;
}

/// Which parts of a datagram a [`TargetRule`] matches.
pub mod fragment_match {
    pub const ANY: u8 = 0;
    pub const WHOLE: u8 = 1;
    pub const FRAGMENT: u8 = 2;
}

/// One match-and-action of a target: all parts must match, ranges are inclusive and in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TargetRule {
    pub expires_at_ns: u64,
    pub rate: Rate,
    pub rule: u32,
    pub src_port: [u16; 2],
    pub dst_port: [u16; 2],
    /// Length of the IP datagram.
    pub length: [u16; 2],
    pub ttl: [u8; 2],
    pub icmp_type: [u8; 2],
    /// 0: any protocol.
    pub protocol: u8,
    pub tcp_mask: u8,
    /// Compared with the flags under `tcp_mask`.
    pub tcp_value: u8,
    /// See [`fragment_match`].
    pub fragment: u8,
    /// See [`rule_action`].
    pub action: u8,
    pub flags: u8,
    pub padding: [u8; 2],
}

impl TargetRule {
    /// Matches every packet, drops it, has no end.
    pub const ANY: Self = Self {
        expires_at_ns: 0,
        rate: Rate { cost: 0, burst: 0, per_byte: 0, padding: 0 },
        rule: NO_RULE,
        src_port: [0, u16::MAX],
        dst_port: [0, u16::MAX],
        length: [0, u16::MAX],
        ttl: [0, u8::MAX],
        icmp_type: [0, u8::MAX],
        protocol: 0,
        tcp_mask: 0,
        tcp_value: 0,
        fragment: fragment_match::ANY,
        action: rule_action::DROP,
        flags: 0,
        padding: [0; 2],
    };
}

/// The rules of a target, asked in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Policy {
    /// How many of `rules` are in use.
    pub count: u32,
    pub padding: u32,
    pub rules: [TargetRule; RULES_PER_TARGET],
}

impl Default for Policy {
    fn default() -> Self {
        Self { count: 0, padding: 0, rules: [TargetRule::ANY; RULES_PER_TARGET] }
    }
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

map_type!(Block = 16, Rate = 24, SourceLimit = 48, TargetRule = 64, Policy = 1032, Trust = 24);

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
