//! Who sent the tunnel's packets: trusted, blocked and listed as the sources inside are.

use ftagent_common::abi::{NO_RULE, Reason};

use super::{Hit, Judged, block, list, trust};
use crate::maps;

/// What [`ftagent_ask_outer`] returns when nothing is known of the source.
const NOTHING: u64 = u64::MAX;

/// What the source of the packet around is met with, if anything.
#[inline(always)]
pub(super) fn hit(judged: &Judged<'_>) -> Option<Hit> {
    let answer = ftagent_ask_outer(judged.generation, judged.now_ns);
    let reason = match (answer >> 32) as u8 {
        _ if answer == NOTHING => return None,
        code if code == Reason::FailSafe as u8 => Reason::FailSafe,
        code if code == Reason::Allowlisted as u8 => Reason::Allowlisted,
        code if code == Reason::BlockedSource as u8 => Reason::BlockedSource,
        code if code == Reason::BlockedPrefix as u8 => Reason::BlockedPrefix,
        _ => Reason::Listed,
    };
    Some((reason, answer as u32))
}

/// Reason and rule of what the source of the packet around meets, or [`NOTHING`].
///
/// A global function: few frames are tunnels, and the verifier goes through it once for itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_ask_outer(generation: u32, now_ns: u64) -> u64 {
    let (Some(scratch), Some(settings)) = (crate::scratch(), maps::SETTINGS.get(0)) else { return NOTHING };
    let judged = Judged { settings, generation, now_ns, bytes: scratch.wire_len as u64 };
    let source = scratch.packet.outer_src;
    let version = if source.is_v4() { 4 } else { 6 };
    let hit = match trust::reason(source, version, scratch, &judged) {
        Some(reason) => Some((reason, NO_RULE)),
        None => block::hit(source, version, scratch, &judged).or_else(|| list::hit(source, version, scratch, &judged)),
    };
    hit.map_or(NOTHING, |(reason, rule)| (u64::from(reason as u8) << 32) | u64::from(rule))
}
