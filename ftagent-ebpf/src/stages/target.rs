//! Rules and limits of a protected destination.

use aya_ebpf::maps::lpm_trie::Key;
use ftagent_common::abi::{
    EVALUATE, MAX_POLICIES, RULES_PER_TARGET, Reason, Settings, TargetRule, fragment_match, rule_action,
};
use ftagent_common::packet::{Fragment, Packet};

use super::{Hit, block, limit};
use crate::{count, maps};

/// The rule list of the destination, or nothing if the node does not protect it.
#[inline(always)]
pub(super) fn policy(packet: &Packet) -> Option<u32> {
    maps::PROTECTED.get(Key::new(128, packet.dst)).copied()
}

/// The first rule of the list that stops the packet.
#[inline(always)]
pub(super) fn hit(packet: &Packet, policy: u32, settings: &Settings, now_ns: u64, bytes: u64) -> Option<Hit> {
    let list = maps::POLICIES.get(policy)?;
    for i in 0..RULES_PER_TARGET {
        if i as u32 >= list.count {
            return None;
        }
        let rule = &list.rules[i];
        if !matches(rule, packet) || !block::is_in_force(rule.expires_at_ns, rule.flags, settings, now_ns) {
            continue;
        }
        let reason = match rule.action {
            rule_action::PASS => return None,
            rule_action::LIMIT => {
                let slot = (policy & (MAX_POLICIES - 1)) * RULES_PER_TARGET as u32 + i as u32;
                let state = maps::POLICY_STATES.get_ptr_mut(slot)?;
                // SAFETY: a word of the map.
                if !unsafe { limit::is_over(&rule.rate, state, now_ns, bytes) } {
                    continue;
                }
                Reason::TargetLimit
            }
            _ => Reason::TargetRule,
        };
        if rule.flags & EVALUATE != 0 {
            count::rule(rule.rule, now_ns, bytes);
            continue;
        }
        return Some((reason, rule.rule));
    }
    None
}

#[inline(always)]
fn within<T: PartialOrd + Copy>(range: [T; 2], value: T) -> bool {
    range[0] <= value && value <= range[1]
}

#[inline(always)]
fn matches(rule: &TargetRule, packet: &Packet) -> bool {
    let is_fragment = !matches!(packet.fragment, Fragment::Whole);
    (rule.protocol == 0 || rule.protocol == packet.protocol)
        && (rule.fragment == fragment_match::ANY || (rule.fragment == fragment_match::FRAGMENT) == is_fragment)
        && packet.tcp_flags & rule.tcp_mask == rule.tcp_value
        && within(rule.src_port, packet.src_port)
        && within(rule.dst_port, packet.dst_port)
        && within(rule.length, packet.ip_len)
        && within(rule.ttl, packet.ttl)
        && within(rule.icmp_type, packet.icmp_type)
}
