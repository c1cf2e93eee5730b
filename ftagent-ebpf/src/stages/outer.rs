//! Who sent the tunnel's packets: trusted, blocked and listed as the sources inside are.

use ftagent_common::abi::{NO_RULE, Reason};
use ftagent_common::packet::Kind;

use super::{Hit, Judged, block, list, target, trust};
use crate::{clock, maps};

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

/// Closes a tunnel again that is for an address that the node protects, whose packet is for none, and of whose sender
/// nothing is known; unless who sent the tunnel is fail-safe on the packet's ports.
///
/// A flood of packets in tunnels that are for nobody here is one on whom the tunnels are for, and nothing would see it if
/// the packets inside were what counts. A global function as the one below.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_close_tunnel() -> u32 {
    let (Some(scratch), Some(settings)) = (crate::scratch(), maps::SETTINGS.get(0)) else { return 0 };
    if !matches!(scratch.kind, Kind::Ip) {
        return 0;
    }
    let judged = Judged::new(settings, clock::now(&mut scratch.cpu), 0);
    let (inside, around) = (scratch.packet.dst, scratch.around.dst);
    if target::is_protected(inside, scratch, &judged) || !target::is_protected(around, scratch, &judged) {
        return 0;
    }
    let outer_src = scratch.packet.outer_src;
    scratch.packet.outer_src = scratch.packet.src;
    let answer = ftagent_ask_outer(judged.generation, judged.now_ns);
    scratch.packet.outer_src = outer_src;
    if answer != NOTHING {
        return 0;
    }
    // Who is fail-safe on some ports is so on those inside: closed, the packet has none.
    if (ftagent_ask_outer(judged.generation, judged.now_ns) >> 32) as u8 != Reason::FailSafe as u8 {
        scratch.packet.copy_from(&scratch.around);
        scratch.packet.close();
    }
    0
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
