//! UDP that is nobody's answer: query floods to port 53 and plain floods.

use ftagent_common::packet::{Fragment, proto};
use ftagent_common::vocab::AttackFamily;

use super::features::Stats;
use super::payload::Shape;
use super::spoof;
use super::{Claims, Part};

/// Claims DNS queries, then every other UDP datagram.
pub(super) fn claim(claims: &mut Claims<'_>) {
    let queries = claims.select(|s| s.protocol == proto::UDP && s.shape == Shape::DnsQuery);
    if !queries.is_empty() {
        let part = dns(claims, queries);
        claims.take(part);
    }
    let rest = claims.select(|s| s.protocol == proto::UDP && s.fragment == Fragment::Whole);
    if !rest.is_empty() {
        let part = flood(claims, rest);
        claims.take(part);
    }
}

fn dns(claims: &Claims<'_>, members: Vec<usize>) -> Part {
    let samples = claims.samples_of(&members);
    let stats = Stats::of(&samples);
    let forged = spoof::judge(&stats, &samples, claims.clean);
    let mut why = vec![format!("{} sources send DNS queries to port 53", stats.sources.distinct())];
    let fit = if forged.spoofed {
        0.92
    } else if stats.sources.top_share() >= 0.5 {
        why.push(format!("one source sends {:.0} % of them", stats.sources.top_share() * 100.0));
        0.7
    } else {
        why.push("a name server's clients look like this too".to_owned());
        0.45
    };
    Part::new(AttackFamily::DnsFlood, None, fit, why, members)
}

fn flood(claims: &Claims<'_>, members: Vec<usize>) -> Part {
    let samples = claims.samples_of(&members);
    let stats = Stats::of(&samples);
    let forged = spoof::judge(&stats, &samples, claims.clean);
    let application = stats.application_share() > 0.5;
    let one_payload = stats.prefixes.top_share() >= 0.9 && stats.lengths.top_share() >= 0.9;
    let scattered = stats.n >= 20 && stats.dst_ports.distinct() * 10 >= stats.n * 3;
    let port_zero = stats.dst_ports.top() == Some(0) && stats.dst_ports.top_share() >= 0.5;
    // Probes are small; a flood from one socket to every port is not.
    let scan = stats.is_scan() && stats.src_ports.needed_for(0.9) <= 4 && stats.mean_len < 100.0;
    // (what was seen, how sure it makes us)
    let signs: [(bool, f64, &str); 8] = [
        (port_zero, 0.95, "the datagrams go to port 0"),
        (forged.spoofed, 0.92, "the sources are judged forged"),
        (stats.few_sources_many_flows(), 0.92, "few sources send every packet from another port"),
        (stats.n >= 10 && stats.empty_share() >= 0.9, 0.9, "the datagrams are empty"),
        (scattered && stats.src_ports.top_share() < 0.5 && !application, 0.85, "the packets are scattered over ports"),
        (one_payload && stats.flows >= 20 && !application, 0.8, "every source sends the same bytes"),
        (stats.lengths.top_share() >= 0.95 && stats.flows >= 20 && !application, 0.7, "every source sends one length"),
        (one_payload && stats.n >= 20 && !application, 0.65, "the same bytes over and over"),
    ];
    let best = signs.iter().filter(|(seen, ..)| *seen && !scan).max_by(|a, b| a.1.total_cmp(&b.1));
    let ordinary = if scan {
        "few sources probe ever other ports: a port scan"
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
    let subtype = if port_zero {
        Some("port_zero")
    } else if scattered {
        Some("random_ports")
    } else {
        None
    };
    Part::new(AttackFamily::UdpFlood, subtype, fit, why, members)
}
