//! Lists of IPv4 prefixes: one look-up, whatever their number.

use ftagent_common::abi::prefixes;
use ftagent_common::abi::{Block, EVALUATE, PRESENT, Reason, feature, stage};
use ftagent_common::packet::Ip;

use super::{Hit, Judged, block};
use crate::maps::Scratch;
use crate::{count, maps};

/// The list that the source is on, if one is in force.
#[inline(always)]
pub(super) fn hit(source: Ip, version: u8, scratch: &mut Scratch, judged: &Judged<'_>) -> Option<Hit> {
    if maps::STAGES.load() & stage::LISTS == 0 || judged.settings.features & feature::LISTS4 == 0 || version != 4 {
        return None;
    }
    let list = found(source.0[3], judged)?;
    if list.flags & EVALUATE != 0 {
        count::rule(list.rule, judged.now_ns, judged.bytes);
        scratch.verdict.would_drop = list.rule;
        return None;
    }
    Some((Reason::Listed, list.rule))
}

/// What the lists say of an IPv4 source, evaluated ones included.
#[inline(always)]
pub(crate) fn of_plain(source: u32, judged: &Judged<'_>) -> Option<&'static Block> {
    if maps::STAGES.load() & stage::LISTS == 0 || judged.settings.features & feature::LISTS4 == 0 {
        return None;
    }
    found(source, judged)
}

/// The list in force that has the address.
#[inline(always)]
fn found(address: u32, judged: &Judged<'_>) -> Option<&'static Block> {
    let table = maps::LISTS4.get(judged.slot())?;
    let value = prefixes::lookup(|index| table.get(index).copied(), u32::from_be(address));
    if value == prefixes::NONE {
        return None;
    }
    let slot = u32::from(value) - 1;
    let list: &Block = maps::LIST_RULES.get(slot & (ftagent_common::abi::MAX_LISTS - 1))?.at(judged.slot());
    if list.flags & PRESENT == 0 || !block::is_in_force(list.expires_at_ns, list.flags, judged) {
        return None;
    }
    Some(list)
}
