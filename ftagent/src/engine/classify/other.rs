//! Fragments, ICMP, GRE and every other protocol.

use ftagent_common::packet::{Fragment, proto};
use ftagent_common::vocab::AttackFamily;

use super::features::{Stats, ratio};
use super::payload::Shape;
use super::spoof;
use super::{Claims, Part};
use crate::engine::window::Seen;

/// Claims fragments that belong to no amplification.
pub(super) fn claim_fragments(claims: &mut Claims<'_>) {
    let members = claims.select(|s| s.fragment != Fragment::Whole);
    if members.is_empty() {
        return;
    }
    let samples = claims.samples_of(&members);
    let stats = Stats::of(&samples);
    let firsts = ratio(samples.iter().filter(|s| s.fragment == Fragment::First).count(), samples.len());
    let small = ratio(samples.iter().filter(|s| s.fragment != Fragment::Last && s.ip_len < 400).count(), samples.len());
    let forged = spoof::judge(&stats, &samples, claims.clean);
    let heads: Vec<Seen> = samples.iter().filter(|s| s.fragment == Fragment::First).copied().collect();
    let of_icmp =
        ratio(samples.iter().filter(|s| matches!(s.protocol, proto::ICMP | proto::ICMPV6)).count(), samples.len());
    let mut why = vec![format!(
        "{} fragments from {} sources, {:.0} % of them first ones, {:.0} bytes on average",
        stats.n,
        stats.sources.distinct(),
        firsts * 100.0,
        stats.mean_len
    )];
    let fit = if forged.spoofed {
        0.92
    } else if samples.len() >= 10 && !(0.02..=0.9).contains(&firsts) {
        why.push("they cannot be put together".to_owned());
        0.9
    } else if small > 0.5 {
        why.push("no system cuts datagrams this small".to_owned());
        0.85
    } else if of_icmp >= 0.8 {
        why.push("nobody needs pings of several packets".to_owned());
        0.85
    } else if let Some(sign) = of_no_service(&heads) {
        why.push(sign.to_owned());
        0.75
    } else if stats.sources.distinct() >= 50 || stats.sources_are_counted() && stats.estimated_sources(&samples) >= 50 {
        why.push("no service sends large datagrams to one host from so many".to_owned());
        0.7
    } else {
        why.push("large datagrams in pieces: storage and tunnels send them too".to_owned());
        0.4
    };
    claims.take(Part::new(AttackFamily::FragmentFlood, None, fit, why, members));
}

/// What the first fragments show: filler, or ever other ports of few senders.
fn of_no_service(heads: &[Seen]) -> Option<&'static str> {
    let stats = Stats::of(heads);
    let filler = ratio(heads.iter().filter(|s| s.shape == Shape::Filler).count(), heads.len());
    if heads.len() >= 5 && filler >= 0.9 {
        Some("the datagrams are one byte over and over")
    } else if heads.len() >= 20 && stats.flow_spread() >= 0.8 && stats.sources.distinct() * 3 <= heads.len() {
        Some("every datagram comes from another port")
    } else {
        None
    }
}

/// Claims ICMP and ICMPv6.
pub(super) fn claim_icmp(claims: &mut Claims<'_>) {
    let members = claims.select(|s| matches!(s.protocol, proto::ICMP | proto::ICMPV6));
    if members.is_empty() {
        return;
    }
    let samples = claims.samples_of(&members);
    let types = super::features::Ranking::of(&samples, |s| (s.version, s.icmp_type));
    let subtype = if types.top_share() < 0.6 {
        None
    } else {
        match types.top() {
            Some((4, 8) | (6, 128)) => Some("echo_request"),
            Some((4, 0) | (6, 129)) => Some("echo_reply"),
            Some((4, 3) | (6, 1)) => Some("unreachable"),
            Some((4, 11) | (6, 3)) => Some("time_exceeded"),
            Some((6, 133..=137)) => Some("neighbour_discovery"),
            _ => None,
        }
    };
    let stats = Stats::of(&samples);
    let why = vec![format!(
        "{} sources send ICMP of {} types, {:.0} % of one",
        stats.sources.distinct(),
        types.distinct(),
        types.top_share() * 100.0
    )];
    claims.take(Part::new(AttackFamily::IcmpFlood, subtype, 0.9, why, members));
}

/// Claims GRE.
pub(super) fn claim_gre(claims: &mut Claims<'_>) {
    let members = claims.select(|s| s.protocol == proto::GRE);
    tunnel(claims, AttackFamily::GreFlood, members);
}

/// Claims what is left, by any protocol.
pub(super) fn claim_rest(claims: &mut Claims<'_>) {
    let members = claims.select(|_| true);
    tunnel(claims, AttackFamily::ProtocolFlood, members);
}

/// Protocols that tunnels and routers use, so that a lasting stream of them is ordinary.
const ORDINARY: [u8; 9] = [proto::IPIP, proto::SIX_IN_FOUR, proto::GRE, proto::ESP, 2, 51, 89, 112, 132];

fn tunnel(claims: &mut Claims<'_>, family: AttackFamily, members: Vec<usize>) {
    if members.is_empty() {
        return;
    }
    let samples = claims.samples_of(&members);
    let stats = Stats::of(&samples);
    let forged = spoof::judge(&stats, &samples, claims.clean);
    let protocol = stats.protocols.top().unwrap_or(0);
    let mut why = vec![format!(
        "{} sources send protocol {protocol} ({:.0} %), {:.0} bytes on average",
        stats.sources.distinct(),
        stats.protocols.top_share() * 100.0,
        stats.mean_len
    )];
    let fit = if forged.spoofed || stats.sources.distinct() >= 50 {
        why.push("no node keeps that many tunnels".to_owned());
        0.92
    } else if !ORDINARY.contains(&protocol) {
        why.push("no service uses this protocol".to_owned());
        0.88
    } else if stats.n >= 20 && stats.lengths.top_share() >= 0.95 {
        why.push("every packet has the same length".to_owned());
        0.75
    } else {
        why.push("few peers and varied packets: a tunnel looks like this".to_owned());
        0.4
    };
    let subtype = (family == AttackFamily::ProtocolFlood).then_some(match protocol {
        proto::ESP => "esp",
        51 => "ah",
        2 => "igmp",
        proto::IPIP => "ipip",
        proto::SIX_IN_FOUR => "6in4",
        132 => "sctp",
        _ => "other",
    });
    claims.take(Part::new(family, subtype, fit, why, members));
}
