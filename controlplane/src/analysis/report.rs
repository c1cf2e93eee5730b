//! The analysis of a capture as it is shown: a pure function from what was counted.

use std::net::IpAddr;

use ftagent_common::abi::Reason;
use ftagent_common::packet::Ip;
use ftagent_common::services::amplification_of_port;
use ftagent_common::vocab::AttackFamily;
use serde::Serialize;
use utoipa::ToSchema;

use super::advice::{self, Advice};
use super::link;
use super::names::{ether_name, protocol_name};
use super::packets::{flag_names, rfc3339};
use super::summary;
use super::tally::{Features, Protocol, SIZES, Tally};
use super::vector::{self, Vector};

const TOP_SOURCES: usize = 20;
const TOP_DESTINATIONS: usize = 10;
const TOP_PORTS: usize = 20;
const TOP_TTLS: usize = 16;
/// An address that less than this share of the packets goes to is not the target.
const TARGET_SHARE: f64 = 0.3;

/// A part of the traffic, by what it would be if it was an attack.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
// Incidents have such a thing too, with other fields.
#[schema(as = CapturedVectorShare)]
pub struct VectorShare {
    pub family: AttackFamily,
    pub packets: u64,
    /// Of the packets that were judged, 0 to 1.
    pub share: f64,
}

/// An address and what it has of the traffic.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct AddressShare {
    #[schema(value_type = String)]
    pub ip: IpAddr,
    pub packets: u64,
    pub bytes: u64,
    /// Of all packets, 0 to 1.
    pub share: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = CapturedPortShare)]
pub struct PortShare {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    pub port: u16,
    pub packets: u64,
    /// Of all packets, 0 to 1.
    pub share: f64,
    /// The family of the service that is used for reflection from this port, where there is one. A port alone proves
    /// nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reflector: Option<AttackFamily>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ProtocolShare {
    /// Such as `udp` or `arp`; `ip_<number>`, `ethertype_<hex>`, `link_<name>` where nothing else is known, and
    /// `unreadable`.
    pub protocol: String,
    pub packets: u64,
    pub bytes: u64,
    /// Of all packets, 0 to 1.
    pub share: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SizeShare {
    /// Bytes of the frame on the wire.
    pub from: u32,
    /// Inclusive; absent for the largest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u32>,
    pub packets: u64,
    /// Of all packets, 0 to 1.
    pub share: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct FlagsShare {
    /// Those that are set; none at all is an empty list.
    pub flags: Vec<&'static str>,
    pub packets: u64,
    /// Of TCP segments, 0 to 1.
    pub share: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TtlShare {
    pub ttl: u8,
    pub packets: u64,
    /// Of IP packets, 0 to 1.
    pub share: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct LinkShare {
    /// As tcpdump.org numbers them (`LINKTYPE_…`); 4294967295 for packets whose interface nothing describes.
    pub number: u32,
    pub name: String,
    pub packets: u64,
    /// Whether packets of it are looked into.
    pub decoded: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ReasonCount {
    /// As in the node's `status`, such as `blocked_source`.
    pub reason: &'static str,
    pub packets: u64,
}

/// What became of the packets, as the agent wrote it beside each.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct VerdictCounts {
    pub passed: u64,
    /// Those that were answered with a cookie included.
    pub dropped: u64,
    /// They passed, and would not have in mode `enforce`.
    pub would_drop: u64,
    /// Packets beside which nothing is written.
    pub unmarked: u64,
    /// Dropped ones of those with a verdict, 0 to 1.
    pub dropped_share: f64,
    pub reasons: Vec<ReasonCount>,
}

/// What the packets of a capture say, computed from their numbers alone.
///
/// Packets, bytes, rates and shares are scaled: each packet counts as many frames as it is a sample of, and those that
/// were left out before it. `packets_in_file` is not.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Analysis {
    /// By the packets towards the target if there is one, else by all. `unknown` where ordinary traffic looks the same:
    /// a capture shows neither what came before it nor the target's thresholds.
    pub attack_vector: AttackFamily,
    /// The parts, largest first, with 5 % and more.
    pub vectors: Vec<VectorShare>,
    /// Why, in sentences.
    pub evidence: Vec<String>,
    /// The address that most packets go to, if it is at least 30 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<AddressShare>,
    pub total_packets: u64,
    pub total_bytes: u64,
    pub packets_in_file: u64,
    /// Bytes of the packets that are in the file.
    pub captured_bytes: u64,
    /// Whether packets are samples, so that the numbers are estimates.
    pub scaled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub first_packet_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub last_packet_at: Option<String>,
    /// From the earliest to the latest packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_secs: Option<f64>,
    /// Packets a second; absent where no time passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pps: Option<f64>,
    /// Bits a second, of whole frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps: Option<f64>,
    pub unique_sources: u64,
    /// Above 65,536 sources their number is an estimate (within 5 %), and `top_sources` may be short.
    pub unique_sources_approximate: bool,
    pub top_sources: Vec<AddressShare>,
    /// By how many packets an entry of `top_sources` may be short; 0 where all were counted.
    pub top_sources_short_by: u64,
    /// Null: countries come from a database of addresses, and none is configured.
    pub top_source_countries: Option<Vec<String>>,
    pub top_destinations: Vec<AddressShare>,
    pub source_ports: Vec<PortShare>,
    pub destination_ports: Vec<PortShare>,
    pub protocols: Vec<ProtocolShare>,
    pub packet_sizes: Vec<SizeShare>,
    pub tcp_flags: Vec<FlagsShare>,
    pub ttls: Vec<TtlShare>,
    pub fragments: u64,
    /// Packets that the datapath's parser refuses.
    pub malformed: u64,
    /// Packets that are not IP, or of a link layer that is not read.
    pub not_ip: u64,
    /// Absent where no packet has a verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<VerdictCounts>,
    pub link_types: Vec<LinkShare>,
    pub recommended_actions: Vec<Advice>,
    pub summary: String,
    /// The file breaks off, is damaged, or has more than is read at once: the numbers are of what was read.
    pub truncated: bool,
    /// What is wrong with the file, in words.
    pub errors: Vec<String>,
}

/// Puts an analysis together.
pub(super) fn report(tally: &Tally) -> Analysis {
    let share = |packets: u64| packets as f64 / tally.packets.max(1) as f64;
    let address =
        |(ip, packets, bytes): (Ip, u64, u64)| AddressShare { ip: ip.into(), packets, bytes, share: share(packets) };
    let secs = seconds(tally);
    let target = target(tally);
    let judged = target.map_or(&tally.whole, |(_, _, features)| features);
    let Vector { family, parts, why } = vector::vector(judged, secs);
    let is_exact = tally.sources.lost() == 0;
    let ports = |of: &super::heavy::Heavy<(u8, u16), ()>, from: bool| {
        let shown = |((protocol, port), packets, ()): ((u8, u16), u64, &())| PortShare {
            protocol: protocol_name(protocol).unwrap_or("ip"),
            port,
            packets,
            share: share(packets),
            reflector: if from && protocol == 17 { amplification_of_port(port) } else { None },
        };
        of.top(TOP_PORTS).into_iter().map(shown).collect::<Vec<_>>()
    };
    let mut analysis = Analysis {
        attack_vector: family,
        vectors: parts
            .into_iter()
            .map(|p| VectorShare { family: p.family, packets: p.packets, share: p.share })
            .collect(),
        evidence: why,
        target: target.map(|(ip, packets, features)| address((ip, packets, features.bytes))),
        total_packets: tally.packets,
        total_bytes: tally.bytes,
        packets_in_file: tally.seen,
        captured_bytes: tally.captured_bytes,
        scaled: tally.is_sampled,
        first_packet_at: tally.first_ns.and_then(rfc3339),
        last_packet_at: tally.last_ns.and_then(rfc3339),
        duration_secs: tally.first_ns.zip(tally.last_ns).map(|(first, last)| (last - first) as f64 / 1e9),
        pps: secs.map(|secs| tally.packets as f64 / secs),
        bps: secs.map(|secs| tally.bytes as f64 * 8.0 / secs),
        unique_sources: if is_exact { tally.sources.len() as u64 } else { tally.distinct.estimate() },
        unique_sources_approximate: !is_exact,
        top_sources: tally.sources.top(TOP_SOURCES).into_iter().map(|(ip, n, b)| address((ip, n, *b))).collect(),
        top_sources_short_by: tally.sources.lost(),
        top_source_countries: None,
        top_destinations: tally
            .targets
            .top(TOP_DESTINATIONS)
            .into_iter()
            .map(|(ip, n, features)| address((ip, n, features.bytes)))
            .collect(),
        source_ports: ports(&tally.src_ports, true),
        destination_ports: ports(&tally.dst_ports, false),
        protocols: protocols(tally),
        packet_sizes: sizes(tally),
        tcp_flags: tcp_flags(tally),
        ttls: ttls(tally),
        fragments: tally.fragments,
        malformed: tally.malformed,
        not_ip: tally.other,
        verdicts: verdicts(tally),
        link_types: links(tally),
        recommended_actions: Vec::new(),
        summary: String::new(),
        truncated: tally.flaws.truncated,
        errors: tally.flaws.sentences(),
    };
    analysis.recommended_actions = advice::advice(&analysis);
    analysis.summary = summary::summary(&analysis);
    analysis
}

/// From the earliest to the latest packet, if that is longer than nothing.
fn seconds(tally: &Tally) -> Option<f64> {
    let nanos = tally.last_ns?.checked_sub(tally.first_ns?)?;
    (nanos > 0).then_some(nanos as f64 / 1e9)
}

fn target(tally: &Tally) -> Option<(Ip, u64, &Features)> {
    let busiest = tally.targets.top(1).into_iter().next()?;
    (busiest.1 as f64 >= tally.whole.packets as f64 * TARGET_SHARE).then_some(busiest)
}

fn part_of(packets: u64, all: u64) -> f64 {
    packets as f64 / all.max(1) as f64
}

fn protocols(tally: &Tally) -> Vec<ProtocolShare> {
    let name = |protocol: Protocol| match protocol {
        Protocol::Ip(n) => protocol_name(n).map_or_else(|| format!("ip_{n}"), str::to_owned),
        Protocol::Ether(n) => ether_name(n).map_or_else(|| format!("ethertype_{n:04x}"), str::to_owned),
        Protocol::Link(n) => format!("link_{}", link::name(n)),
        Protocol::Unreadable => "unreadable".to_owned(),
    };
    let mut shown: Vec<ProtocolShare> = Vec::new();
    for (protocol, packets, bytes) in tally.protocols.top(32) {
        let share = part_of(packets, tally.packets);
        shown.push(ProtocolShare { protocol: name(protocol), packets, bytes: *bytes, share });
    }
    shown
}

fn sizes(tally: &Tally) -> Vec<SizeShare> {
    let of = |(index, packets): (usize, &u64)| SizeShare {
        from: if index == 0 { 0 } else { SIZES[index - 1] + 1 },
        to: SIZES.get(index).copied(),
        packets: *packets,
        share: part_of(*packets, tally.packets),
    };
    tally.sizes.iter().enumerate().map(of).collect()
}

fn tcp_flags(tally: &Tally) -> Vec<FlagsShare> {
    let all = tally.tcp_flags.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
    let mut shown: Vec<FlagsShare> = (0_u8..)
        .zip(&tally.tcp_flags)
        .filter(|(_, packets)| **packets > 0)
        .map(|(flags, packets)| FlagsShare {
            flags: flag_names(flags),
            packets: *packets,
            share: part_of(*packets, all),
        })
        .collect();
    shown.sort_by_key(|flags| std::cmp::Reverse(flags.packets));
    shown
}

fn ttls(tally: &Tally) -> Vec<TtlShare> {
    let all = tally.ttls.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
    let mut shown: Vec<TtlShare> = (0..=u8::MAX)
        .zip(&tally.ttls)
        .filter(|(_, packets)| **packets > 0)
        .map(|(ttl, packets)| TtlShare { ttl, packets: *packets, share: part_of(*packets, all) })
        .collect();
    shown.sort_by_key(|ttl| std::cmp::Reverse(ttl.packets));
    shown.truncate(TOP_TTLS);
    shown
}

fn links(tally: &Tally) -> Vec<LinkShare> {
    let shown = |(number, packets, ()): (u32, u64, &())| LinkShare {
        number,
        name: link::name(number).into_owned(),
        packets,
        decoded: link::is_decoded(number),
    };
    tally.links.top(16).into_iter().map(shown).collect()
}

fn verdicts(tally: &Tally) -> Option<VerdictCounts> {
    let v = &tally.verdicts;
    let dropped = v.dropped.saturating_add(v.answered);
    let judged = dropped.saturating_add(v.passed).saturating_add(v.would_drop);
    if judged == 0 {
        return None;
    }
    let mut reasons: Vec<ReasonCount> = Reason::ALL
        .iter()
        .map(|reason| ReasonCount { reason: reason.as_str(), packets: v.reasons[reason.index()] })
        .filter(|count| count.packets > 0)
        .collect();
    reasons.sort_by_key(|count| std::cmp::Reverse(count.packets));
    Some(VerdictCounts {
        passed: v.passed,
        dropped,
        would_drop: v.would_drop,
        unmarked: v.unmarked,
        dropped_share: part_of(dropped, judged),
        reasons,
    })
}
