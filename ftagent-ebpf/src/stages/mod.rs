//! The order of the checks: cheapest and most certain first, nothing that allocates before what can reject without it.
//!
//! neighbour discovery, fail-safe, allowlist → blocks → (sketch) → rules and limits of the target → limits of the source

mod block;
mod limit;
mod not_ip;
mod source;
mod target;
mod trust;

use ftagent_common::abi::{NO_RULE, Reason, Settings, feature, mode};
use ftagent_common::packet::{Kind, Malformed, Packet};

/// What a frame met, and by which rule.
pub(crate) struct Verdict {
    pub(crate) reason: Reason,
    /// Counter slot of the rule, or [`NO_RULE`].
    pub(crate) rule: u32,
    /// Whether the destination is one that the node protects.
    pub(crate) is_protected: bool,
}

/// A reason and the rule behind it.
pub(crate) type Hit = (Reason, u32);

/// Judges a parsed frame.
#[inline(always)]
pub(crate) fn decide(kind: Kind, packet: &Packet, settings: &Settings, now_ns: u64, bytes: u64) -> Verdict {
    let mut verdict = Verdict { reason: Reason::Bypassed, rule: NO_RULE, is_protected: false };
    match kind {
        Kind::Ip => {
            let policy = target::policy(packet);
            verdict.is_protected = policy.is_some();
            if settings.mode != mode::BYPASS {
                (verdict.reason, verdict.rule) = ip(packet, policy, settings, now_ns, bytes);
            }
        }
        _ if settings.mode == mode::BYPASS => {}
        Kind::NotIp => verdict.reason = not_ip::limit(settings, now_ns, bytes),
        Kind::Malformed(_) if settings.features & feature::PASS_MALFORMED != 0 => {
            verdict.reason = Reason::MalformedPassed;
        }
        Kind::Malformed(Malformed::TinyFragment) => verdict.reason = Reason::TinyFragment,
        Kind::Malformed(_) => verdict.reason = Reason::Malformed,
    }
    verdict
}

#[inline(always)]
fn ip(packet: &Packet, policy: Option<u32>, settings: &Settings, now_ns: u64, bytes: u64) -> Hit {
    if not_ip::is_neighbour_discovery(packet) && not_ip::limit(settings, now_ns, bytes) == Reason::NotIp {
        return (Reason::FailSafe, NO_RULE);
    }
    if let Some(reason) = trust::reason(packet, settings) {
        return (reason, NO_RULE);
    }
    if let Some(hit) = block::hit(packet, settings, now_ns, bytes) {
        return hit;
    }
    let is_heavy = policy.is_some() && source::is_heavy(packet, settings, now_ns);
    let hit = limits(packet, policy, is_heavy, settings, now_ns, bytes);
    if is_heavy {
        let dropped = hit.is_some() && settings.mode == mode::ENFORCE;
        source::count(packet, settings, dropped, now_ns, bytes);
    }
    hit.unwrap_or((Reason::Clean, NO_RULE))
}

#[inline(always)]
fn limits(
    packet: &Packet,
    policy: Option<u32>,
    is_heavy: bool,
    settings: &Settings,
    now_ns: u64,
    bytes: u64,
) -> Option<Hit> {
    if let Some(policy) = policy
        && policy != 0
        && let Some(hit) = target::hit(packet, policy, settings, now_ns, bytes)
    {
        return Some(hit);
    }
    if let Some(hit) = source::limit(packet, settings, now_ns, bytes) {
        return Some(hit);
    }
    if is_heavy { source::police(packet, settings, now_ns, bytes) } else { None }
}
