//! Signature rules: the rows of all fields are combined once, and only rules that match are looked at.

use ftagent_common::abi::{
    EVALUATE, MATCHES_ASKED, MAX_SIGNATURES, NO_RULE, RULES_PER_GROUP, Reason, SIGNATURE_GROUPS, Signature, Target,
    feature, lowest_bit, rule_action, stage,
};

use super::{Hit, Judged, block, limit};
use ftagent_common::packet::Packet;

use crate::maps::Scratch;
use crate::{count, maps};

/// The first rule of the target, then of all, that decides.
///
/// Most packets match no rule at all, which is seen here: a call would cost as much as all of this.
#[inline(always)]
pub(super) fn hit(packet: &Packet, target: &Target, judged: &Judged<'_>) -> Option<Hit> {
    if maps::STAGES.load() & stage::SIGNATURES == 0 {
        return None;
    }
    let has_global = judged.settings.features & feature::GLOBAL_RULES != 0;
    if target.rules == 0 && !has_global {
        return None;
    }
    let rules = maps::SIGNATURES.get(judged.slot())?;
    let own = rules.candidates(packet, target.group) & target.rules;
    let global = if has_global { rules.candidates(packet, 0) } else { 0 };
    if own != 0
        && let Some(hit) = unpack(ftagent_ask_rules(target.group, own, judged.generation, judged.now_ns))
    {
        return Some(hit);
    }
    if global != 0 { unpack(ftagent_ask_rules(0, global, judged.generation, judged.now_ns)) } else { None }
}

/// What [`ftagent_ask_rules`] returns when no rule decides.
const NOTHING: u64 = u64::MAX;

#[inline(always)]
fn unpack(answer: u64) -> Option<Hit> {
    let reason = match (answer >> 32) as u8 {
        _ if answer == NOTHING => return None,
        code if code == Reason::TargetRule as u8 => Reason::TargetRule,
        code if code == Reason::TargetLimit as u8 => Reason::TargetLimit,
        _ => Reason::RulePassed,
    };
    Some((reason, answer as u32))
}

/// Asks the rules of `group` whose bits are set in `candidates`: reason and rule of the first that decides, or
/// [`NOTHING`].
///
/// A global function, so that the verifier follows its loop once and not once for every way here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ftagent_ask_rules(group: u32, candidates: u64, generation: u32, now_ns: u64) -> u64 {
    let (Some(scratch), Some(settings)) = (crate::scratch(), maps::SETTINGS.get(0)) else { return NOTHING };
    let Some(rules) = maps::SIGNATURES.get(generation & 1) else { return NOTHING };
    let judged = Judged { settings, generation, now_ns, bytes: scratch.wire_len as u64 };
    let mut candidates = candidates;
    let base = (group as usize & (SIGNATURE_GROUPS - 1)) * RULES_PER_GROUP;
    for _ in 0..MATCHES_ASKED {
        if candidates == 0 {
            break;
        }
        let bit = lowest_bit(candidates) as usize;
        candidates &= candidates - 1;
        let rule = &rules.rules[count::opaque(base + bit) & (MAX_SIGNATURES - 1)];
        if let Some((reason, rule)) = apply(scratch, rule, &judged) {
            return (u64::from(reason as u8) << 32) | u64::from(rule);
        }
    }
    NOTHING
}

/// What one rule decides, or nothing if the next one is asked.
#[inline(always)]
fn apply(scratch: &mut Scratch, rule: &Signature, judged: &Judged<'_>) -> Option<Hit> {
    if !rule.is_source(&scratch.packet.src)
        || !block::is_in_force(rule.expires_at_ns, rule.flags, judged)
        || (rule.payload_len != 0 && !rule.is_payload(&scratch.payload, scratch.payload_len))
    {
        return None;
    }
    let reason = match rule.action {
        rule_action::DROP => Reason::TargetRule,
        rule_action::LIMIT => {
            let state = maps::RULE_STATES.get_ptr_mut(rule.rule)?;
            // SAFETY: a word of the map.
            if !unsafe { limit::is_over(&rule.rate, state, judged.now_ns, judged.bytes) } {
                return None;
            }
            Reason::TargetLimit
        }
        rule_action::PASS => Reason::RulePassed,
        action => {
            count::rule(rule.rule, judged.now_ns, judged.bytes);
            if rule.flags & EVALUATE == 0 {
                scratch.verdict.sample |= action == rule_action::SAMPLE;
                if action == rule_action::MARK {
                    scratch.verdict.mark = rule.dscp + 1;
                }
            }
            return None;
        }
    };
    if rule.flags & EVALUATE != 0 {
        count::rule(rule.rule, judged.now_ns, judged.bytes);
        if reason.is_drop() && scratch.verdict.would_drop == NO_RULE {
            scratch.verdict.would_drop = rule.rule;
        }
        return None;
    }
    Some((reason, rule.rule))
}
