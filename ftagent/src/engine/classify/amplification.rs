//! Answers of reflected services: known by source port **and** payload, so that a game server on 27015 or a QUIC
//! server on 443 is not called a reflector.

use std::collections::BTreeMap;

use ftagent_common::packet::{Fragment, proto};
use ftagent_common::services::amplification_of_port;
use ftagent_common::vocab::AttackFamily;

use super::features::{Ranking, Stats};
use super::payload::Shape;
use super::{Claims, Part};
use crate::engine::window::Seen;

/// Ports of published amplification measurements without a family of their own; one of them dominating, from many
/// sources and towards another port, is taken for reflection even where the answer's shape is not known.
const OTHER_REFLECTORS: &[u16] = &[
    177, 427, 523, 623, 1434, 1604, 1701, 2362, 3389, 3478, 4070, 4500, 4800, 5060, 5093, 5351, 6881, 7001, 8082, 9987,
    10074, 17185, 19132, 30718, 32410, 32414, 33848, 41794, 47808, 53413,
];

/// Reflectors are many: fewer sources than this on a port without the service's payload are no reflection.
const MANY: usize = 8;

/// Claims the answers of reflectors, one part per service, and what comes along with them: later fragments of large
/// answers, and ICMP errors of reflectors that could not answer.
pub(super) fn claim(claims: &mut Claims<'_>) {
    let ports = reflector_ports(claims);
    let mut members: BTreeMap<AttackFamily, Vec<usize>> = BTreeMap::new();
    for (i, seen) in claims.open() {
        let Some(family) = family_of(seen, &ports) else { continue };
        members.entry(family).or_default().push(i);
    }
    // Reflection without any sign of it beyond a few stray answers is background.
    let open: f64 = claims.open().map(|(_, s)| f64::from(s.weight)).sum();
    members.retain(|_, m| m.iter().map(|i| f64::from(claims.samples[*i].weight)).sum::<f64>() >= open * 0.02);
    let main = members.iter().max_by_key(|(_, m)| m.len()).map(|(family, _)| *family);
    for (family, mut of_family) in members {
        if Some(family) == main {
            of_family.extend(companions(claims, &of_family));
        }
        let part = judge(claims, family, of_family);
        claims.take(part);
    }
}

/// Source ports that many sources answer from, with the family each stands for, shape or not.
fn reflector_ports(claims: &mut Claims<'_>) -> BTreeMap<u16, AttackFamily> {
    let udp: Vec<Seen> =
        claims.open().filter(|(_, s)| s.protocol == proto::UDP && is_whole_or_first(s)).map(|(_, s)| *s).collect();
    let mut by_port: BTreeMap<u16, Vec<Seen>> = BTreeMap::new();
    for seen in &udp {
        by_port.entry(seen.src_port).or_default().push(*seen);
    }
    let mut found = BTreeMap::new();
    for (port, samples) in by_port {
        let named = amplification_of_port(port);
        let is_known = named.is_some() || OTHER_REFLECTORS.contains(&port);
        let stats = Stats::of(&samples);
        if !is_known && !is_of_servers(port, &samples, &stats) {
            continue;
        }
        let share = samples.len() as f64 / udp.len() as f64;
        let answers = samples.iter().filter(|s| matches!(s.shape, Shape::Answer(_) | Shape::NtpTime)).count();
        let peers = samples.iter().filter(|s| s.dst_port == port).count();
        let many = hosts(&samples) >= MANY.max(if named.is_some() { 0 } else { 16 });
        let family = named.unwrap_or(AttackFamily::UdpAmplification);
        if answers * 2 >= samples.len() && share >= 0.02 {
            found.insert(port, family);
        } else if !many || share < 0.1 || peers * 2 >= samples.len() || stats.application_share() > 0.5 {
            claims.reject(family, format!("port {port}: neither the service's answers nor many sources"));
        } else if named.is_none() && stats.empty_share() > 0.5 {
            claims.reject(family, format!("port {port}: nothing in the datagrams"));
        } else {
            found.insert(port, family);
        }
    }
    found
}

/// Whether very many real hosts send from one port to ever other ones: a service that somebody asked in our name,
/// published or not. Clients draw their own port and keep to the service's.
fn is_of_servers(port: u16, samples: &[Seen], stats: &Stats) -> bool {
    port != 0
        && samples.len() >= 20
        && hosts(samples) >= 40
        && stats.dst_ports.needed_for(0.9) >= 20
        && stats.ttls.distinct() >= 5
        && stats.application_share() <= 0.5
}

fn is_whole_or_first(seen: &Seen) -> bool {
    matches!(seen.fragment, Fragment::Whole | Fragment::First)
}

fn family_of(seen: &Seen, ports: &BTreeMap<u16, AttackFamily>) -> Option<AttackFamily> {
    if seen.protocol != proto::UDP || !is_whole_or_first(seen) {
        return None;
    }
    match (seen.shape, ports.get(&seen.src_port)) {
        (Shape::Answer(family), _) => Some(family),
        (_, Some(family)) => Some(*family),
        _ => None,
    }
}

/// Later fragments of UDP answers, and ICMP errors that quote the forged requests.
fn companions(claims: &Claims<'_>, answers: &[usize]) -> Vec<usize> {
    let firsts = answers.iter().filter(|i| claims.samples[**i].fragment == Fragment::First).count();
    let later: Vec<usize> =
        claims.open().filter(|(_, s)| s.protocol == proto::UDP && !is_whole_or_first(s)).map(|(i, _)| i).collect();
    // A datagram of 64 KiB has 44 fragments: fewer firsts than that are not theirs.
    let theirs = firsts * 45 >= later.len() || answers.len() * 12 >= later.len();
    let mut taken = if theirs { later } else { Vec::new() };
    let errors: Vec<usize> = claims.open().filter(|(_, s)| is_icmp_error(s)).map(|(i, _)| i).collect();
    if errors.len() * 2 <= answers.len() {
        taken.extend(errors);
    }
    taken
}

/// Reflectors count by address, however near each other they are.
fn hosts(samples: &[Seen]) -> usize {
    Ranking::of(samples, |s| s.src).distinct()
}

/// Destination unreachable, time exceeded and their kin.
pub(super) fn is_icmp_error(seen: &Seen) -> bool {
    seen.fragment == Fragment::Whole
        && match seen.protocol {
            proto::ICMP => matches!(seen.icmp_type, 3 | 4 | 11 | 12),
            proto::ICMPV6 => matches!(seen.icmp_type, 1..=4),
            _ => false,
        }
}

const fn is_used_in_bulk(family: AttackFamily) -> bool {
    use AttackFamily as F;
    matches!(
        family,
        F::SnmpAmplification
            | F::TftpAmplification
            | F::RpcbindAmplification
            | F::NetbiosAmplification
            | F::MdnsAmplification
            | F::Ripv1Amplification
            | F::IsakmpAmplification
            | F::OpenvpnAmplification
            | F::CoapAmplification
            | F::UdpAmplification
    )
}

fn judge(claims: &Claims<'_>, family: AttackFamily, members: Vec<usize>) -> Part {
    let samples: Vec<Seen> = members.iter().map(|i| claims.samples[*i]).collect();
    let answers: Vec<Seen> =
        samples.iter().filter(|s| is_whole_or_first(s) && s.protocol == proto::UDP).copied().collect();
    let stats = Stats::of(&answers);
    let shaped = answers.iter().filter(|s| s.shape == Shape::Answer(family)).count();
    let shaped_share = shaped as f64 / answers.len().max(1) as f64;
    let sources = hosts(&answers);
    let mut why = vec![format!(
        "{sources} sources answer from port {}; {:.0} % of the payloads are such answers, {:.0} bytes on average",
        stats.src_ports.top().unwrap_or(0),
        shaped_share * 100.0,
        stats.mean_len
    )];
    let fit = if shaped_share >= 0.5 {
        match family {
            // Resolvers and their clients see DNS answers every day: size, repetition or fragments must tell.
            AttackFamily::DnsAmplification => {
                let fragmented = answers.iter().filter(|s| s.fragment == Fragment::First).count();
                let is_large = stats.mean_len >= 1_000.0 || fragmented * 20 >= answers.len();
                // A resolver asks for a name once: it keeps the answer.
                let is_repeated = answers.len() >= 10 && stats.prefixes.top_share() >= 0.1;
                if is_repeated {
                    why.push(format!("{:.0} % answer the same question", stats.prefixes.top_share() * 100.0));
                }
                match (sources >= MANY, is_repeated, is_large) {
                    (true, true, _) => 0.92,
                    (true, false, true) => 0.8,
                    (false, true, true) => 0.8,
                    (false, true, false) => 0.6,
                    _ => {
                        why.push("the answers that a resolver gets look like this too".to_owned());
                        0.45
                    }
                }
            }
            // Documents are sent over UDP by others too.
            AttackFamily::WsdAmplification if sources >= MANY && stats.src_ports.top() != Some(3_702) => 0.75,
            _ if sources >= MANY => 0.95,
            // Networks poll, boot and mount over these: one busy server is no reflection.
            _ if is_used_in_bulk(family) => 0.45,
            _ => 0.8,
        }
    } else if sources >= MANY {
        why.push("the payload is not known, the ports and the number of sources are a reflector's".to_owned());
        if stats.mean_len >= 200.0 { 0.7 } else { 0.6 }
    } else {
        0.35
    };
    Part::new(family, None, fit, why, members)
}
