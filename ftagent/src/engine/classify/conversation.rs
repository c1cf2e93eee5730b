//! Segments inside connections, seen from one side and often from the middle: what real conversations look like, and
//! what crafted segments do not.
//!
//! A connection has time stamps or sends data in full segments and rests of messages; a tool writes one header over and
//! over. That many connections come from few addresses says nothing: translators, proxies and balancers do that.

use ftagent_common::packet::tcp_flag;
use ftagent_common::vocab::{AttackFamily, TrafficClass};

use super::features::{Ranking, Stats, ratio};
use super::tcp::WEB_PORTS;
use super::{Claims, Part, spoof};
use crate::engine::window::Seen;

/// Time stamps with their padding (RFC 7323 section 3): what most systems put into every segment.
const STAMPS: u16 = 12;
/// Payloads of segments that are as full as a path lets them be.
const FULL: u16 = 1_200;

fn share(samples: &[Seen], is: impl Fn(&Seen) -> bool) -> f64 {
    ratio(samples.iter().filter(|s| is(s)).count(), samples.len())
}

/// Whether the segments carry the messages of programs: many lengths, and time stamps or full segments of one size.
fn are_messages(stats: &Stats, segments: &[Seen]) -> bool {
    let full: Vec<Seen> = segments.iter().filter(|s| s.payload_len >= FULL).copied().collect();
    let of_one_size = Ranking::of(&full, |s| s.payload_len).top_share() * ratio(full.len(), segments.len());
    // Bulk data in lasting connections.
    if of_one_size >= 0.5 && stats.flow_spread() < 0.5 {
        return true;
    }
    let is_varied = stats.lengths.needed_for(0.9) >= 5 || stats.lengths.distinct() >= 5 && of_one_size >= 0.2;
    is_varied && (share(segments, |s| s.tcp_options() >= STAMPS) >= 0.3 || of_one_size >= 0.05)
}

/// What shows that segments belong to no connection: how sure that is, and the sign.
pub(super) fn crafted(claims: &Claims<'_>, segments: &[Seen]) -> Option<(f64, String)> {
    if segments.len() < 20 {
        return None;
    }
    let stats = Stats::of(segments);
    let are_messages = are_messages(&stats, segments);
    let forged = spoof::judge(&stats, segments, claims.clean);
    // A proxy or a site gives one TTL to all that comes through it: with messages inside these are no flood.
    if forged.spoofed && (forged.is_certain || !are_messages) {
        return Some((0.92, "the sources are judged forged: they have no connections".to_owned()));
    }
    let stamped = share(segments, |s| s.tcp_options() >= STAMPS);
    if are_messages || stamped >= 0.3 {
        return None;
    }
    let pps = claims.pps * ratio(segments.len(), claims.samples.len());
    let few = stats.few_sources_many_sockets() || stats.few_sources_many_flows();
    if few && !stats.flows_last(segments, pps) {
        let why = "few sources, and every segment of another connection, without the options of connections";
        return Some((0.92, why.to_owned()));
    }
    if stats.is_portless() {
        return Some((0.9, "neither side keeps to its ports, and no segment has options".to_owned()));
    }
    let is_of_many = stats.sources.distinct() >= 20 && stats.flow_spread() >= 0.95;
    if segments.len() >= 50 && is_of_many && stamped < 0.02 && stats.empty_share() >= 0.98 {
        return Some((
            0.6,
            "acknowledgements alone, of many systems and no two of a connection, none with options".to_owned(),
        ));
    }
    let len = stats.lengths.top().unwrap_or(0);
    let data = share(segments, |s| s.payload_len > 0);
    if stats.lengths.top_share() >= 0.95 && data >= 0.95 && len < FULL && stats.flows >= 20 {
        return Some((0.75, format!("all segments have {len} bytes and no options: no conversation is like that")));
    }
    None
}

/// Acknowledgements and what goes with them.
pub(super) fn part(claims: &mut Claims<'_>, members: Vec<usize>) -> Part {
    let samples = claims.samples_of(&members);
    let acks: Vec<Seen> = samples.iter().filter(|s| s.class == TrafficClass::TcpAck).copied().collect();
    let stats = Stats::of(&samples);
    let pushed = share(&acks, |s| s.tcp_flags & tcp_flag::PSH != 0);
    let data = share(&samples, |s| s.payload_len > 0);
    let requests = share(&samples, |s| s.class == TrafficClass::TcpSyn);
    let mut why = vec![format!(
        "{} segments of {} flows from {} sources, {:.0} % with PSH, {:.0} % with data",
        stats.n,
        stats.flows,
        stats.sources.distinct(),
        pushed * 100.0,
        data * 100.0
    )];
    let (family, subtype) =
        if pushed >= 0.5 { (AttackFamily::TcpFlood, Some("psh_ack")) } else { (AttackFamily::AckFlood, None) };
    if stats.is_scan() && stats.src_ports.needed_for(0.9) <= 4 {
        why.push("few sources try ever other ports: a port scan".to_owned());
        return Part::new(family, subtype, 0.3, why, members);
    }
    if let Some((fit, sign)) = crafted(claims, &acks) {
        why.push(sign);
        return Part::new(family, subtype, fit, why, members);
    }
    if requests >= 0.2 && data < 0.05 {
        let (fit, sign) = idle(claims, &stats, &samples, requests);
        why.push(sign);
        return Part::new(AttackFamily::TcpFlood, Some("connections"), fit, why, members);
    }
    let to_web = stats.dst_ports.top_share() >= 0.9 && stats.dst_ports.top().is_some_and(|p| WEB_PORTS.contains(&p));
    let spoken: Vec<Seen> = acks.iter().filter(|s| s.payload_len > 0).copied().collect();
    let tiny = share(&spoken, |s| s.payload_len <= 8);
    if to_web && spoken.len() >= 10 && tiny >= 0.7 {
        why.push(format!("{:.0} % of the data comes in eight bytes or fewer: requests that never end", tiny * 100.0));
        return Part::new(AttackFamily::HttpFlood, Some("slow_rate"), 0.65, why, members);
    }
    if let Some(sign) = repeats(&spoken, data) {
        why.push(sign);
        return Part::new(family, subtype, 0.6, why, members);
    }
    if to_web && data >= 0.1 {
        why.push(
            "conversations with a web server whose requests cannot be read: a crowd, or an attack on it".to_owned(),
        );
        return Part::new(AttackFamily::HttpFlood, None, 0.3, why, members);
    }
    why.push("the segments belong to lasting connections: ordinary traffic looks like this".to_owned());
    Part::new(family, subtype, 0.3, why, members)
}

/// Connections that are opened and left: how sure that is an attack, and the sign.
fn idle(claims: &Claims<'_>, stats: &Stats, samples: &[Seen], requests: f64) -> (f64, String) {
    let pps = claims.pps * requests * ratio(samples.len(), claims.samples.len());
    let each = stats.per_source(samples, pps).filter(|each| *each >= 5.0);
    match each {
        Some(each) => (0.6, format!("each source opens {each:.0} connections a second and says nothing in them")),
        None if stats.source_spread() <= 0.5 && stats.sources.needed_for(0.8) <= 20 => {
            (0.6, "few sources open connections and say nothing in them".to_owned())
        }
        None => (0.4, "connections are opened and nothing is said".to_owned()),
    }
}

/// One short text in nearly every segment. Records of one protocol begin alike too, but have many lengths.
fn repeats(spoken: &[Seen], data: f64) -> Option<String> {
    let stats = Stats::of(spoken);
    let is_one = stats.prefixes.top_share() >= 0.95 && stats.lengths.needed_for(0.95) <= 6;
    let is_short = stats.mean_len < f64::from(FULL);
    (spoken.len() >= 20 && data >= 0.7 && is_one && is_short && stats.flows >= 5)
        .then(|| "every connection says the same few bytes over and over".to_owned())
}
