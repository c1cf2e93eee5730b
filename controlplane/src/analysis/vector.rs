//! Which attack the packets are: a pure function from what was counted.
//!
//! The node that saw the attack judged it by every sample and by what the target saw before; a capture has neither.
//! So this says `unknown` where ordinary traffic looks the same, and always says why.

use ftagent_common::vocab::{AttackFamily, TrafficClass};

use super::tally::Features;

/// Fewer packets say nothing.
const FEW_PACKETS: u64 = 20;
/// Fewer a second, to one target, are no flood.
const SLOW_PPS: f64 = 100.0;
/// No conversation of few has more a second.
const BUSY_PPS: f64 = 10_000.0;
/// A scan has one source, or a few that share the work.
const FEW_SOURCES: u64 = 8;
/// Reflectors are many.
const MANY_SOURCES: u64 = 8;
/// Parts with a smaller share are not named.
const SMALL_SHARE: f64 = 0.05;
/// A part with a larger share is the attack.
const MAIN_SHARE: f64 = 0.7;
/// Each part of an attack with several vectors has at least this share.
const PART_SHARE: f64 = 0.15;

/// A part of the traffic, by what it would be if it was an attack.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) family: AttackFamily,
    pub(super) packets: u64,
    /// Of all packets that were judged, 0 to 1.
    pub(super) share: f64,
}

/// What the packets are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Vector {
    pub(super) family: AttackFamily,
    /// Largest first.
    pub(super) parts: Vec<Part>,
    /// Why, in sentences.
    pub(super) why: Vec<String>,
}

/// Judges packets that came within `secs`, if that is known and not 0.
pub(super) fn vector(features: &Features, secs: Option<f64>) -> Vector {
    let mut parts = Vec::new();
    let mut add = |family: AttackFamily, packets: u64| {
        if packets > 0 {
            parts.push(Part { family, packets, share: (packets as f64 / features.packets.max(1) as f64).min(1.0) });
        }
    };
    let class = |class: TrafficClass| features.class(class);
    let mut services = reflected(features);
    let known: u64 = services.iter().map(|(_, packets)| *packets).fold(0, u64::saturating_add);
    let of_ports = features.answers.iter().chain(&features.from_ports).fold(0, |sum: u64, n| sum.saturating_add(*n));
    let mut fragments = class(TrafficClass::Fragment).saturating_sub(features.reflected_firsts);
    // Later fragments belong to large answers where there are such: a datagram of 64 KiB has 44 of them.
    if let Some((_, packets)) = services.iter_mut().max_by_key(|(_, packets)| *packets)
        && packets.saturating_mul(44) >= features.udp_fragments
    {
        *packets = packets.saturating_add(features.udp_fragments);
        fragments = fragments.saturating_sub(features.udp_fragments);
    }
    services.into_iter().for_each(|(family, packets)| add(family, packets));
    add(AttackFamily::FragmentFlood, fragments);
    add(AttackFamily::UdpFlood, features.plain_udp.saturating_add(of_ports.saturating_sub(known)));
    add(AttackFamily::DnsFlood, class(TrafficClass::DnsQuery));
    add(AttackFamily::IcmpFlood, class(TrafficClass::Icmp).saturating_add(class(TrafficClass::Icmpv6)));
    add(AttackFamily::GreFlood, class(TrafficClass::Gre));
    add(AttackFamily::ProtocolFlood, class(TrafficClass::Esp).saturating_add(class(TrafficClass::OtherIp)));
    tcp(features).into_iter().for_each(|(family, packets)| add(family, packets));
    parts.sort_by(|a, b| b.packets.cmp(&a.packets).then(a.family.cmp(&b.family)));
    parts.retain(|part| part.share >= SMALL_SHARE);

    let mut why: Vec<String> = parts.iter().map(|part| words(part, features)).collect();
    let family = match (weighed(&parts), doubt(features, &parts, secs)) {
        (_, Some(doubt)) => {
            why.push(doubt);
            AttackFamily::Unknown
        }
        (family, None) => family,
    };
    Vector { family, parts, why }
}

/// The services whose answers these are, with their packets.
fn reflected(features: &Features) -> Vec<(AttackFamily, u64)> {
    let sources = features.sources.estimate();
    let mut found = Vec::new();
    for (index, family) in AttackFamily::ALL.iter().enumerate() {
        let (answers, others) = (features.answers[index], features.from_ports[index]);
        // Without the service's form it takes the number of sources to tell.
        if answers > 0 && answers >= others || sources >= MANY_SOURCES && others > 0 {
            found.push((*family, answers.saturating_add(others)));
        } else if answers > 0 {
            found.push((*family, answers));
        }
    }
    found
}

/// The parts of TCP.
fn tcp(features: &Features) -> Vec<(AttackFamily, u64)> {
    let class = |class: TrafficClass| features.class(class);
    let ack = class(TrafficClass::TcpAck).saturating_add(class(TrafficClass::TcpFin));
    let all: u64 = TrafficClass::ALL.iter().filter(|c| c.is_tcp()).map(|c| class(*c)).fold(0, u64::saturating_add);
    let web = features.requests.saturating_add(features.header_lines).saturating_add(features.hellos);
    // Requests are a good part of all data, and connections of all packets: else it is something inside connections.
    if web >= 3 && web.saturating_mul(6) >= features.tcp_data && ack.saturating_mul(4) >= all {
        return vec![(AttackFamily::HttpFlood, all)];
    }
    vec![
        (AttackFamily::SynFlood, class(TrafficClass::TcpSyn)),
        (AttackFamily::SynAckFlood, class(TrafficClass::TcpSynAck)),
        (AttackFamily::AckFlood, ack),
        (AttackFamily::RstFlood, class(TrafficClass::TcpRst)),
        (AttackFamily::TcpFlood, class(TrafficClass::TcpOdd)),
    ]
}

fn weighed(parts: &[Part]) -> AttackFamily {
    let large = parts.iter().filter(|part| part.share >= PART_SHARE).count();
    match parts.first() {
        None => AttackFamily::Unknown,
        Some(main) if main.share >= MAIN_SHARE || large == 1 => main.family,
        Some(_) if large >= 2 => AttackFamily::MultiVector,
        Some(_) => AttackFamily::Unknown,
    }
}

/// Why it may well be no attack.
fn doubt(features: &Features, parts: &[Part], secs: Option<f64>) -> Option<String> {
    let main = parts.first()?;
    if features.seen < FEW_PACKETS {
        return Some(format!("{} packets are too few to judge by", features.seen));
    }
    let sources = features.sources.estimate();
    // Requests that never end need not be many, and nobody gets answers of many servers that were not asked.
    let is_slow = main.family == AttackFamily::HttpFlood && features.header_lines > features.requests;
    let is_unasked = main.family.is_amplification()
        && main.family != AttackFamily::DnsAmplification
        && sources >= MANY_SOURCES
        && features.answers[main.family as usize] >= main.packets / 2;
    let pps = secs.map(|secs| features.packets as f64 / secs);
    if let Some(pps) = pps.filter(|pps| *pps < SLOW_PPS && !is_slow && !is_unasked) {
        return Some(format!("{pps:.1} packets a second are no flood"));
    }
    let answered = features.sent as f64 / features.packets.max(1) as f64;
    let is_busy = pps.is_none_or(|pps| pps >= BUSY_PPS);
    let ports = features.ports.estimate();
    match main.family {
        AttackFamily::SynFlood if sources <= FEW_SOURCES && ports >= 64 && ports >= features.seen / 4 => {
            Some(format!("few sources ({sources}) that try about {ports} ports are a scan"))
        }
        AttackFamily::AckFlood if answered >= 0.2 || features.tcp_data.saturating_mul(2) >= main.packets => {
            Some("segments with data, or answered ones, are what connections consist of".to_owned())
        }
        AttackFamily::UdpFlood if answered >= 0.2 && sources < MANY_SOURCES && !is_busy => {
            Some(format!("few sources ({sources}) that are answered are what conversations look like"))
        }
        AttackFamily::DnsAmplification
            if sources < MANY_SOURCES && features.reflected_bytes / main.packets.max(1) < 1_000 =>
        {
            Some(format!("small answers of few sources ({sources}) are what a resolver's clients get"))
        }
        _ => None,
    }
}

fn words(part: &Part, features: &Features) -> String {
    let what = match part.family {
        AttackFamily::SynFlood => "SYN segments",
        AttackFamily::SynAckFlood => "SYN-ACK segments",
        AttackFamily::AckFlood => "segments of connections",
        AttackFamily::RstFlood => "RST segments",
        AttackFamily::TcpFlood => "segments with flags that no stack sends",
        AttackFamily::HttpFlood => {
            return format!(
                "{:.1} % are TCP with {} requests, {} header lines without one and {} TLS greetings",
                part.share * 100.0,
                features.requests,
                features.header_lines,
                features.hellos
            );
        }
        AttackFamily::UdpFlood => "UDP datagrams",
        AttackFamily::DnsFlood => "DNS queries",
        AttackFamily::IcmpFlood => "ICMP messages",
        AttackFamily::GreFlood => "GRE packets",
        AttackFamily::ProtocolFlood => "packets of other protocols",
        AttackFamily::FragmentFlood => "fragments",
        family => {
            let shaped = features.answers[family as usize] as f64 / part.packets.max(1) as f64;
            return format!(
                "{:.1} % come from the service's port or have its form; {:.0} % of these have the form of its answers",
                part.share * 100.0,
                shaped.min(1.0) * 100.0
            );
        }
    };
    format!("{:.1} % are {what}", part.share * 100.0)
}

#[cfg(test)]
mod tests;
