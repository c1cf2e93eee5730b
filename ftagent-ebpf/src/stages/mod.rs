//! The order of the checks: cheapest and most certain first, nothing that allocates before what can reject without it.
//!
//! neighbour discovery, fail-safe, allowlist → blocks → lists → (sketch) → signature rules of the target, then those of
//! all → limits of the source. What no host can have sent went before all of these: the parser says so.

mod block;
mod limit;
mod list;
mod not_ip;
mod signature;
mod source;
mod target;
mod trust;

use ftagent_common::abi::{NO_RULE, Reason, Settings, TargetCounters, feature, hash4, hash6_net, mode};
use ftagent_common::packet::{Kind, Malformed, Packet};

use crate::maps::Scratch;
use target::Found;

/// What a frame met, and by which rule.
#[derive(Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) reason: Reason,
    /// Counter slot of the rule, or [`NO_RULE`].
    pub(crate) rule: u32,
    /// Counter slot of a rule that is being evaluated and would have dropped it, or [`NO_RULE`].
    pub(crate) would_drop: u32,
    /// Copy it to user space, whatever chance says.
    pub(crate) sample: bool,
    /// The differentiated services field to set, plus one.
    pub(crate) mark: u8,
}

/// A reason and the rule behind it.
pub(crate) type Hit = (Reason, u32);

/// What the stages read of a frame.
pub(crate) struct Judged<'a> {
    pub(crate) settings: &'a Settings,
    /// Read once: user space may swap rule sets at any moment.
    pub(crate) generation: u32,
    pub(crate) now_ns: u64,
    pub(crate) bytes: u64,
}

impl<'a> Judged<'a> {
    #[inline(always)]
    fn new(settings: &'a Settings, now_ns: u64, bytes: u64) -> Self {
        // SAFETY: an aligned word of the map.
        let generation = unsafe { (&raw const settings.generation).read_volatile() };
        Self { settings, generation, now_ns, bytes }
    }

    /// The active rule set.
    #[inline(always)]
    pub(crate) const fn slot(&self) -> u32 {
        self.generation & 1
    }
}

/// Judges a parsed frame into `scratch.verdict`; the counters of the destination, if the node protects it.
#[inline(always)]
pub(crate) fn decide(
    kind: Kind,
    scratch: &mut Scratch,
    settings: &Settings,
    now_ns: u64,
    bytes: u64,
) -> Option<*mut TargetCounters> {
    scratch.verdict = Verdict { reason: Reason::Bypassed, rule: NO_RULE, would_drop: NO_RULE, sample: false, mark: 0 };
    let judged = Judged::new(settings, now_ns, bytes);
    match kind {
        Kind::Ip => {
            let target = target::find(scratch, &judged);
            if settings.mode != mode::BYPASS {
                (scratch.verdict.reason, scratch.verdict.rule) = ip(scratch, target, &judged);
            }
            return target.and_then(|target| target.counters);
        }
        _ if settings.mode == mode::BYPASS => {}
        Kind::NotIp => scratch.verdict.reason = not_ip::limit(scratch, &judged),
        Kind::Tunnel => scratch.verdict.reason = Reason::Malformed,
        Kind::Malformed(why) => {
            scratch.verdict.reason = malformed(why, settings);
            if why.has_target() {
                // A flood of these is an attack on somebody: what is dropped stays visible.
                return target::find(scratch, &judged).and_then(|target| target.counters);
            }
        }
    }
    None
}

#[inline(always)]
fn malformed(why: Malformed, settings: &Settings) -> Reason {
    match why {
        Malformed::MartianSource => Reason::MartianSource,
        Malformed::Land => Reason::Land,
        Malformed::PortZero => Reason::PortZero,
        Malformed::ImpossibleFlags => Reason::ImpossibleFlags,
        Malformed::BadLength => Reason::BadLength,
        _ if settings.features & feature::PASS_MALFORMED != 0 => Reason::MalformedPassed,
        Malformed::TinyFragment => Reason::TinyFragment,
        Malformed::Truncated | Malformed::BadHeader | Malformed::TooDeep => Reason::Malformed,
    }
}

#[inline(always)]
fn ip(scratch: &mut Scratch, target: Option<Found>, judged: &Judged<'_>) -> Hit {
    if not_ip::is_neighbour_discovery(&scratch.packet) && not_ip::limit(scratch, judged) == Reason::NotIp {
        return (Reason::FailSafe, NO_RULE);
    }
    if let Some(reason) = trust::reason(scratch, judged) {
        return (reason, NO_RULE);
    }
    if let Some(hit) = block::hit(scratch, judged) {
        return hit;
    }
    if let Some(hit) = list::hit(scratch, judged) {
        return hit;
    }
    let src_hash = source_hash(&scratch.packet, judged.settings.seed);
    let is_heavy = source::note(src_hash, target, judged);
    let hit = limits(scratch, target, is_heavy, judged);
    if is_heavy {
        let dropped = hit.0.is_drop() && judged.settings.mode == mode::ENFORCE;
        source::count(&scratch.packet, src_hash, judged, dropped);
    }
    hit
}

#[inline(always)]
fn limits(scratch: &mut Scratch, target: Option<Found>, is_heavy: bool, judged: &Judged<'_>) -> Hit {
    if let Some(found) = target
        && let Some(hit) = signature::hit(&found.target, judged)
    {
        return hit;
    }
    if let Some(hit) = source::limit(scratch, judged) {
        return hit;
    }
    if is_heavy && let Some(hit) = source::police(&scratch.packet, judged) {
        return hit;
    }
    (Reason::Clean, NO_RULE)
}

/// The hash that a source is counted under: IPv6 ones by their /64.
#[inline(always)]
fn source_hash(packet: &Packet, seed: u64) -> u64 {
    let src = packet.src.0;
    if packet.version == 4 { hash4(src[3], seed) } else { hash6_net([src[0], src[1]], 64, seed) }
}
