//! Flows that this node took part in, learnt from what leaves it, and what the gate is told about targets.
//!
//! A flow is a tag in a set of eight: the keyed hash of (protocol, remote address and port, local address and port)
//! chooses the set with its low bits and is compared by its high bits. Sets have a constant size and lie in plain
//! arrays, so that nothing is allocated, nothing is locked, and a look-up takes one cache line. Where a set is full, the
//! flow that would end first makes room.
//!
//! ```text
//! slot:  63 ......... 26 | 25   | 24      | 23 ............ 0
//!        tag of 38 bits  | used | closing | end, in units of 2^27 ns (0.13 s), modulo 26 days
//! ```
//!
//! A stranger's packet meets a tag by chance once in 2^35 tries. An empty slot is 0.

use super::map_type;
use crate::packet::Ip;

/// Flows that share a set.
pub const WAYS: usize = 8;
/// Sets of TCP flows: 262,144 flows, 2 MiB. A power of two.
pub const FLOW_SETS: u32 = 32_768;
/// Sets of UDP queries and ICMP echo requests: 131,072 of them, 1 MiB.
pub const QUERY_SETS: u32 = 16_384;
/// Sets of handshakes that wait for the client's acknowledgement.
pub const HALF_OPEN_SETS: u32 = 8_192;
/// Words of four remembered SYNs each: 2,097,152 of them, 4 MiB.
pub const FIRST_SYN_WORDS: u32 = 1 << 19;

const END_BITS: u32 = 24;
const END_MASK: u64 = (1 << END_BITS) - 1;
const CLOSING: u64 = 1 << END_BITS;
const USED: u64 = CLOSING << 1;
const TAG_MASK: u64 = !(END_MASK | CLOSING | USED);
/// log2 of more units than any life has: an end further ahead lies in the past.
const LIFE_BITS: u32 = 16;
/// log2 of the unit of ends, in nanoseconds.
const UNIT_SHIFT: u32 = 27;
/// An end is moved only when it moves by this much (1.07 s): a busy flow is written once a second.
const REFRESH: u64 = 8;

/// How long a flow is remembered after it was last seen leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life(u64);

impl Life {
    /// A TCP connection: as long as Linux lets one be idle before it asks (`tcp_keepalive_time`).
    pub const CONNECTION: Self = Self::secs(7_200);
    /// Our own SYN: longer than it is repeated by default (127 s).
    pub const OPENING: Self = Self::secs(130);
    /// After our FIN: TIME_WAIT, and what the other side has left to send.
    pub const CLOSING: Self = Self::secs(120);
    /// Our SYN-ACK. Who acknowledges it knows a number that only its receiver can know: this may be long.
    pub const HALF_OPEN: Self = Self::secs(300);
    pub const QUERY: Self = Self::secs(30);
    pub const ECHO: Self = Self::secs(10);

    const fn secs(secs: u64) -> Self {
        Self((secs * 1_000_000_000) >> UNIT_SHIFT)
    }
}

/// What a packet says of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// It is our last one with a sequence number: FIN.
    pub is_closing: bool,
    pub has_data: bool,
    /// No stranger can have caused it.
    pub is_proved: bool,
}

impl Seen {
    /// A packet that proves its flow by itself.
    pub const PROOF: Self = Self { is_closing: false, has_data: true, is_proved: true };
}

/// One set of flows: a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FlowSet {
    pub slots: [u64; WAYS],
}

const fn unit(now_ns: u64) -> u64 {
    now_ns >> UNIT_SHIFT
}

/// Units that are left until the end in `slot`; at least `1 << LIFE_BITS` when it is over.
#[inline(always)]
const fn left(slot: u64, now_ns: u64) -> u64 {
    slot.wrapping_sub(unit(now_ns)) & END_MASK
}

#[inline(always)]
const fn is_alive(slot: u64, now_ns: u64) -> bool {
    (slot & USED != 0) & (left(slot, now_ns) >> LIFE_BITS == 0)
}

/// The mark of a slot that holds the very flow, above every rank.
const SAME: u64 = 1 << 40;

impl FlowSet {
    /// Whether the flow with this hash is known.
    #[inline(always)]
    pub fn knows(&self, hash: u64, now_ns: u64) -> bool {
        for slot in &self.slots {
            if (slot ^ hash) & TAG_MASK == 0 && is_alive(*slot, now_ns) {
                return true;
            }
        }
        false
    }

    /// Moves the end of a known flow, or adds the flow if it is proved.
    ///
    /// Data tells a new connection on old ports from the end of the old one: nobody sends any after a FIN.
    /// `pick` is any word in memory that the verifier does not follow: it would go every way through the eight slots.
    #[inline(always)]
    pub fn learn(&mut self, pick: &mut u64, hash: u64, now_ns: u64, life: Life, what: Seen) {
        let pick: *mut u64 = pick;
        // SAFETY: a reference.
        unsafe { pick.write_volatile(0) };
        for (i, slot) in self.slots.iter().enumerate() {
            // The longer over, the higher; alive ones below those, by their end; empty ones above all.
            let over = (1u64 << LIFE_BITS).wrapping_sub(left(*slot, now_ns)) & END_MASK;
            let mut rank = (((!*slot & USED) | over) << 3) | i as u64;
            if (slot ^ hash) & TAG_MASK == 0 && is_alive(*slot, now_ns) {
                rank |= SAME;
            }
            // SAFETY: as above.
            if rank >= unsafe { pick.read_volatile() } {
                // SAFETY: as above.
                unsafe { pick.write_volatile(rank) };
            }
        }
        // SAFETY: as above.
        let picked = unsafe { pick.read_volatile() };
        let is_known = picked & SAME != 0;
        if !is_known && !what.is_proved {
            return;
        }
        let at = picked as usize & (WAYS - 1);
        let there = self.slots[at];
        let was_closing = is_known && there & CLOSING != 0;
        let closing = what.is_closing || (was_closing && !what.has_data);
        let life = if closing { Life::CLOSING } else { life };
        let end = unit(now_ns).wrapping_add(life.0) & END_MASK;
        let moved = end.wrapping_sub(there) & END_MASK;
        if is_known && closing == was_closing && (moved < REFRESH || moved >> LIFE_BITS != 0) {
            return;
        }
        self.slots[at] = (hash & TAG_MASK) | USED | if closing { CLOSING } else { 0 } | end;
    }

    /// Flows of the set that have not ended.
    pub fn alive(&self, now_ns: u64) -> usize {
        self.slots.iter().filter(|slot| is_alive(**slot, now_ns)).count()
    }
}

/// log2 of the age unit of remembered SYNs: 0.27 s.
const SYN_UNIT_SHIFT: u32 = 28;
const SYN_AGE_MASK: u64 = 0x7f;
/// A repeated SYN counts from 0.27 to 0.54 s on: every system waits a second or longer before it repeats one.
const SYN_AGE_MIN: u64 = 2;

/// What drop-first does with a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstSyn {
    /// It was here some seconds ago: this is somebody who waits.
    Repeated,
    /// The word to remember it by.
    Remember(u64),
    /// It was here a moment ago.
    TooSoon,
}

/// Judges a SYN by the word of four that its hash leads to. A cell is 9 bits of tag above 7 bits of time (34 s).
///
/// What a flood pushes out is the oldest of four, so that an honest SYN survives until it is repeated as long as fewer
/// than about a million forged ones come in that second; beyond it the second repetition, after three seconds, has to do.
#[inline(always)]
pub fn first_syn(word: u64, hash: u64, now_ns: u64) -> FirstSyn {
    // Cell 0 with tag 0 means empty: no tag is 0.
    let tag = (hash >> 55) | 1;
    let now = now_ns >> SYN_UNIT_SHIFT;
    let mut oldest = 0;
    let mut most = 0;
    let mut is_there = false;
    let mut age_there = 0;
    for i in 0..4 {
        let cell = (word >> (i * 16)) & 0xffff;
        let age = if cell == 0 { SYN_AGE_MASK + 1 } else { now.wrapping_sub(cell) & SYN_AGE_MASK };
        if cell >> 7 == tag {
            is_there = true;
            age_there = age;
        }
        if age > most {
            most = age;
            oldest = i;
        }
    }
    if is_there {
        return if age_there >= SYN_AGE_MIN { FirstSyn::Repeated } else { FirstSyn::TooSoon };
    }
    let cell = (tag << 7) | (now & SYN_AGE_MASK);
    FirstSyn::Remember((word & !(0xffff << (oldest * 16))) | (cell << (oldest * 16)))
}

/// A keyed hash of a flow, or of a flow and a sequence number. The secret is drawn once and lives with the tables.
///
/// The finaliser of MurmurHash3 between secrets: enough against somebody who never sees a result.
#[inline(always)]
pub fn flow_hash(secret: &[u64; 2], remote: &Ip, local: &Ip, ports: [u16; 2], protocol: u8, number: u32) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let ends = (u64::from(ports[0]) << 48) | (u64::from(ports[1]) << 32) | u64::from(number);
    let mut hash = secret[0];
    if !remote.is_v4() {
        hash = mix(hash ^ pair(remote.0[0], remote.0[1]));
        hash = mix(hash.wrapping_add(pair(remote.0[2], local.0[0])));
        hash = mix(hash.wrapping_add(pair(local.0[1], local.0[2])));
    }
    hash = mix(hash ^ pair(remote.0[3], local.0[3]));
    mix(hash.wrapping_add(ends) ^ secret[1] ^ u64::from(protocol).wrapping_mul(ODD))
}

#[inline(always)]
const fn pair(high: u32, low: u32) -> u64 {
    ((high as u64) << 32) | low as u64
}

#[inline(always)]
const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Words of a bitmap over ports.
pub const PORT_WORDS: usize = 1_024;

/// What reflectors and the gate are told; written by user space alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct GateSettings {
    /// Key of every hash here. Drawn once: with another one, what was learnt would be forgotten.
    pub secret: [u64; 2],
    /// From when on a TCP flow that is not in the table is none of ours, nanoseconds of the monotonic clock; 0: never.
    /// Until then the kernel's own sockets are asked.
    pub flows_from_ns: u64,
    /// The same of queries.
    pub queries_from_ns: u64,
    /// UDP source ports that answers come from.
    pub reflectors: [u64; PORT_WORDS],
    /// UDP destination ports that this node itself serves: a packet to one is a question, whatever port it comes from.
    pub served: [u64; PORT_WORDS],
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            secret: [0; 2],
            flows_from_ns: 0,
            queries_from_ns: 0,
            reflectors: [0; PORT_WORDS],
            served: [0; PORT_WORDS],
        }
    }
}

/// Whether the bit of `port` is set.
#[inline(always)]
pub fn has_port(bitmap: &[u64; PORT_WORDS], port: u16) -> bool {
    // As with reflector ports: without this the compiler leaves the mask out, and verifiers before 6.8 refuse.
    let word = core::hint::black_box(u32::from(port) >> 6) as usize & (PORT_WORDS - 1);
    bitmap[word] & (1 << (port & 63)) != 0
}

/// What is done for a target behind the gate.
pub mod gate {
    /// The target is an address of this node: its sockets can be asked.
    pub const LOCAL: u8 = 1;
    /// SYNs are answered with cookies where a socket listens.
    pub const COOKIES: u8 = 2;
}

/// A target behind the TCP gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GatedTarget {
    pub expires_at_ns: u64,
    /// Counter slot of the rule.
    pub rule: u32,
    /// As in [`super::Block`].
    pub flags: u8,
    /// See [`gate`].
    pub how: u8,
    pub padding: [u8; 2],
}

/// Targets that can be behind the gate at once.
pub const MAX_GATED: u32 = 1_024;

map_type!(FlowSet = 64, GateSettings = 16_416, GatedTarget = 16);

#[cfg(test)]
mod tests;
