//! The order of the checks: cheapest and most certain first, nothing that allocates before what can reject without it.
//!
//! neighbour discovery, fail-safe, allowlist → reflectors → blocks → lists → (sketch) → TCP gate → signature rules of the target, then those of
//! all → limits of the source. What no host can have sent is refused after trust: the parser says what it is.

pub(crate) mod block;
pub(crate) mod gate;
mod limit;
pub(crate) mod list;
mod not_ip;
pub(crate) mod outer;
pub(crate) mod reflector;
mod signature;
mod source;
pub(crate) mod target;
pub(crate) mod trust;

use ftagent_common::abi::{NO_RULE, Reason, Settings, TargetCounters, feature, hash4, hash6_net, mode};
use ftagent_common::packet::{Kind, Malformed, Packet};

use crate::hook::Hook;
use crate::maps::Scratch;
use source::Weight;
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
    pub(crate) fn new(settings: &'a Settings, now_ns: u64, bytes: u64) -> Self {
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
pub(crate) fn decide<H: Hook>(
    hook: &H,
    kind: Kind,
    scratch: &mut Scratch,
    settings: &Settings,
    now_ns: u64,
    bytes: u64,
) -> Option<*mut TargetCounters> {
    scratch.verdict = Verdict { reason: Reason::Bypassed, rule: NO_RULE, would_drop: NO_RULE, sample: false, mark: 0 };
    let judged = Judged::new(settings, now_ns, bytes);
    let refused = match kind {
        Kind::Ip => None,
        // A flood of these is an attack on somebody: what is dropped stays visible. And whoever is fail-safe comes first.
        Kind::Malformed(why) if why.has_target() => Some(malformed(why, settings)),
        _ if settings.mode == mode::BYPASS => return None,
        Kind::NotIp => {
            scratch.verdict.reason = not_ip::limit(scratch, &judged);
            return None;
        }
        Kind::Tunnel => {
            scratch.verdict.reason = Reason::Malformed;
            return None;
        }
        Kind::Malformed(why) => {
            scratch.verdict.reason = malformed(why, settings);
            return None;
        }
    };
    let target = target::find(scratch, &judged);
    if settings.mode != mode::BYPASS {
        (scratch.verdict.reason, scratch.verdict.rule) = ip(hook, scratch, target, refused, &judged);
    }
    target.and_then(|target| target.counters)
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
fn ip<H: Hook>(
    hook: &H,
    scratch: &mut Scratch,
    target: Option<Found>,
    refused: Option<Reason>,
    judged: &Judged<'_>,
) -> Hit {
    if not_ip::is_neighbour_discovery(&scratch.packet) && not_ip::limit(scratch, judged) == Reason::NotIp {
        return (Reason::FailSafe, NO_RULE);
    }
    let Packet { src, version, tunnel, .. } = scratch.packet;
    let is_cleared = scratch.is_cleared;
    if !is_cleared && let Some(reason) = trust::reason(src, version, scratch, judged) {
        return (reason, NO_RULE);
    }
    if let Some(reason) = refused {
        return (reason, NO_RULE);
    }
    if target.is_some()
        && let Some(hit) = reflector::hit(&scratch.packet, judged)
    {
        return hit;
    }
    if tunnel.is_open()
        && let Some(hit) = outer::hit(judged)
    {
        return hit;
    }
    if !is_cleared {
        if let Some(hit) = block::hit(src, version, scratch, judged) {
            return hit;
        }
        if let Some(hit) = list::hit(src, version, scratch, judged) {
            return hit;
        }
    }
    let src_hash = source_hash(&scratch.packet, judged.settings.seed);
    let weight = source::note(src_hash, target, &mut scratch.cpu, judged);
    let hit = limits(hook, scratch, target, (src_hash, weight), judged);
    if weight != Weight::Light {
        let dropped = hit.0.is_drop() && judged.settings.mode == mode::ENFORCE;
        source::count(&scratch.packet, src_hash, weight, judged, dropped);
    }
    hit
}

#[inline(always)]
fn limits<H: Hook>(
    hook: &H,
    scratch: &mut Scratch,
    target: Option<Found>,
    (src_hash, weight): (u64, Weight),
    judged: &Judged<'_>,
) -> Hit {
    if target.is_some()
        && let Some(hit) = gate::hit(hook, scratch, judged)
    {
        return hit;
    }
    if let Some(found) = target
        && let Some(hit) = signature::hit(&scratch.packet, &found.target, judged)
    {
        return hit;
    }
    if let Some(hit) = source::limit(scratch, judged) {
        return hit;
    }
    if weight != Weight::Light
        && let Some(hit) = source::police(src_hash, weight, judged)
    {
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
