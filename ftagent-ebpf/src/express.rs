//! The frames that floods are made of, on the shortest way: see [`Plain`].
//!
//! Nothing decided here differs from what parser and stages would decide; it is only decided from registers, and before
//! anything is paid for that clean traffic alone needs. What is strange about a frame is left to them.

use ftagent_common::abi::{EVALUATE, NO_RULE, Reason, Settings, feature, mode, stage};
use ftagent_common::packet::{AddressFault, Checks, Ip, Plain};

use crate::flows::Ends;
use crate::hook::Hook;
use crate::maps::Scratch;
use crate::sample::Draw;
use crate::stages::{Hit, Judged, block, list, reflector, target, trust};
use crate::{clock, count, maps, sample};

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Dropped, and counted.
    Drop,
    /// Parsed into the scratch memory.
    Parsed,
    /// It is of another shape: nothing was done.
    Other,
}

/// What the first stages say of a frame.
enum Outcome {
    Nothing,
    Drop(Hit),
    /// Only the stages themselves can say.
    Ask,
}

/// Judges a frame that is plain.
#[inline(always)]
pub(crate) fn judge<H: Hook>(
    hook: &H,
    wire_len: usize,
    checks: Checks,
    settings: &Settings,
    scratch: &mut Scratch,
) -> Way {
    scratch.is_cleared = false;
    scratch.draw = Draw::Not;
    let Some(mut plain) = Plain::parse(&hook.frame(), wire_len, checks) else { return Way::Other };
    // Through memory, so that the verifier follows what comes now once and not for every class by itself.
    scratch.packet.class = plain.class;
    scratch.packet.address_fault = plain.address_fault;
    // SAFETY: written in the lines above.
    plain.class = unsafe { (&raw const scratch.packet.class).read_volatile() };
    // SAFETY: as above.
    plain.address_fault = unsafe { (&raw const scratch.packet.address_fault).read_volatile() };
    if settings.mode == mode::ENFORCE && !may_be_trusted(&plain, settings) {
        let judged = Judged::new(settings, clock::now(&mut scratch.cpu), wire_len as u64);
        match refused(&plain, scratch, &judged) {
            Outcome::Nothing => scratch.is_cleared = true,
            Outcome::Ask => {}
            Outcome::Drop((reason, rule)) => {
                scratch.verdict.reason = reason;
                // SAFETY: written in the line above; through memory for the reason given there.
                let hit = (unsafe { (&raw const scratch.verdict.reason).read_volatile() }, rule);
                if let Some(counters) = target::known(plain.dst, &judged)
                    && !is_sampled(scratch, settings)
                {
                    count::drop(plain.class, hit, counters, judged.now_ns, judged.bytes);
                    return Way::Drop;
                }
            }
        }
    }
    plain.fill(&mut scratch.packet);
    Way::Parsed
}

/// Whether the fail-safe sources or the allowlist have a say.
#[inline(always)]
fn may_be_trusted(plain: &Plain, settings: &Settings) -> bool {
    if settings.features & feature::TRUST == 0 {
        return false;
    }
    let Some(bitmaps) = maps::BITMAPS.get(0) else { return true };
    trust::is_set(&bitmaps.trust4, &Ip([0, 0, 0, plain.src]), 4)
}

/// Whether it is an answer that nobody asked for. Counts for protected targets alone: others are left to the stages, as
/// every frame is whose target is not known here.
#[inline(always)]
fn is_reflection(plain: &Plain, judged: &Judged<'_>) -> bool {
    let (remote, local) = (Ip::of_v4(plain.src), Ip::of_v4(plain.dst));
    let ports = [plain.src_port, plain.dst_port];
    let ends = Ends { remote: &remote, local: &local, ports, protocol: plain.protocol };
    reflector::of(&ends, judged).is_some()
}

#[inline(always)]
fn refused(plain: &Plain, scratch: &mut Scratch, judged: &Judged<'_>) -> Outcome {
    match plain.address_fault {
        AddressFault::None => {}
        AddressFault::Martian => return Outcome::Drop((Reason::MartianSource, NO_RULE)),
        AddressFault::Land => return Outcome::Drop((Reason::Land, NO_RULE)),
    }
    if maps::STAGES.load() & stage::REFLECTORS != 0
        && judged.settings.features & feature::REFLECTORS != 0
        && reflector::is_asked(plain.protocol, plain.src_port, plain.icmp[0])
    {
        return if is_reflection(plain, judged) { Outcome::Drop((Reason::Reflection, NO_RULE)) } else { Outcome::Ask };
    }
    let found = match block::of_plain(plain.src, scratch, judged) {
        Some(found) => Some((found.rule, found.flags, found.reason)),
        None => list::of_plain(plain.src, judged).map(|list| (list.rule, list.flags, Reason::Listed)),
    };
    match found {
        None => Outcome::Nothing,
        Some((_, flags, _)) if flags & EVALUATE != 0 => Outcome::Ask,
        Some((rule, _, reason)) => Outcome::Drop((reason, rule)),
    }
}

/// Draws whether the frame is sampled, once for whoever judges it in the end.
#[inline(always)]
fn is_sampled(scratch: &mut Scratch, settings: &Settings) -> bool {
    if maps::STAGES.load() & stage::SAMPLES == 0 || settings.features & feature::SAMPLE == 0 {
        return false;
    }
    let is_drawn = sample::draw(&mut scratch.cpu, settings);
    scratch.draw = if is_drawn { Draw::Sampled } else { Draw::NotSampled };
    is_drawn
}
