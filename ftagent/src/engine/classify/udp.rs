//! UDP that is nobody's answer: plain floods, and what looks like them.

use ftagent_common::packet::{Fragment, proto};
use ftagent_common::vocab::AttackFamily;

use super::features::{Stats, ratio};
use super::payload::Shape;
use super::{Claims, Part, dns, spoof};

/// Packets a second beyond which a source is no player's and no caller's.
const MOST_OF_A_PLAYER: f64 = 400.0;
/// Bytes of a datagram, headers included, from which on voice and games need no such.
const LARGE: f64 = 300.0;

/// Claims DNS queries, then every other UDP datagram.
pub(super) fn claim(claims: &mut Claims<'_>) {
    let queries = claims.select(|s| s.protocol == proto::UDP && s.shape == Shape::DnsQuery);
    if !queries.is_empty() {
        let part = dns::part(claims, queries);
        claims.take(part);
    }
    let rest = claims.select(|s| s.protocol == proto::UDP && s.fragment == Fragment::Whole);
    if !rest.is_empty() {
        let part = flood(claims, rest);
        claims.take(part);
    }
}

fn flood(claims: &Claims<'_>, members: Vec<usize>) -> Part {
    let samples = claims.samples_of(&members);
    let stats = Stats::of(&samples);
    let forged = spoof::judge(&stats, &samples, claims.clean);
    let is_application = stats.application_share() > 0.5;
    let is_one_length = stats.lengths.top_share() >= 0.95;
    let is_one_payload = stats.prefixes.top_share() >= 0.9 && stats.lengths.top_share() >= 0.9;
    let is_scattered = stats.n >= 20 && stats.dst_ports.distinct() * 10 >= stats.n * 3;
    let is_port_zero = stats.dst_ports.top() == Some(0) && stats.dst_ports.top_share() >= 0.5;
    let filler = ratio(samples.iter().filter(|s| s.shape == Shape::Filler).count(), samples.len());
    // Probes are small; a flood from one socket to every port is not.
    let is_scan = stats.is_scan() && stats.src_ports.needed_for(0.9) <= 4 && stats.mean_len < 100.0;
    let pps = claims.pps * ratio(samples.len(), claims.samples.len());
    let is_fast = stats.per_source(&samples, pps).is_some_and(|each| each >= MOST_OF_A_PLAYER);
    // (what was seen, how sure it makes us)
    let signs: [(bool, f64, &str); 9] = [
        (is_port_zero, 0.95, "the datagrams go to port 0"),
        (forged.spoofed && (forged.is_certain || !is_application), 0.92, "the sources are judged forged"),
        (
            stats.few_sources_many_sockets() && !is_application && !stats.flows_last(&samples, pps),
            0.92,
            "few sources send every packet from another port",
        ),
        (stats.n >= 10 && stats.empty_share() >= 0.9, 0.9, "the datagrams are empty"),
        (
            is_scattered && stats.src_ports.top_share() < 0.5 && !is_application,
            0.85,
            "the packets are scattered over ports",
        ),
        (stats.n >= 10 && filler >= 0.9, 0.85, "the datagrams are one byte over and over"),
        (is_one_payload && stats.flows >= 20 && !is_application, 0.8, "every source sends the same bytes"),
        (
            is_one_length && stats.flows >= 20 && !is_application && (stats.mean_len >= LARGE || is_fast),
            0.7,
            "every source sends one length, and more than conversations need",
        ),
        (is_one_payload && stats.n >= 20 && !is_application, 0.65, "the same bytes over and over"),
    ];
    let best = signs.iter().filter(|(seen, ..)| *seen && !is_scan).max_by(|a, b| a.1.total_cmp(&b.1));
    let ordinary = if is_scan {
        "few sources probe ever other ports: a port scan"
    } else if is_application {
        "the packets of an application that fills lines by itself"
    } else {
        "lasting conversations of varied packets: busy, but ordinary"
    };
    let (fit, sign) = best.map_or((0.35, ordinary), |b| (b.1, b.2));
    let why = vec![
        format!(
            "{} sources, {} flows in {} samples, {} destination ports, {:.0} bytes on average",
            stats.sources.distinct(),
            stats.flows,
            stats.n,
            stats.dst_ports.distinct(),
            stats.mean_len
        ),
        sign.to_owned(),
    ];
    let subtype = if is_port_zero {
        Some("port_zero")
    } else if is_scattered {
        Some("random_ports")
    } else {
        None
    };
    Part::new(AttackFamily::UdpFlood, subtype, fit, why, members)
}
