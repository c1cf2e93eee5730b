//! Requests of the web, complete or dripping, in connections; and pages that nobody asked for.

use ftagent_common::vocab::{AttackFamily, TrafficClass};

use super::features::{Stats, ratio};
use super::payload::Shape;
use super::{Claims, Part};
use crate::engine::window::Seen;

/// Requests a second of an average client beyond which a crowd is none: a page with all its parts in a second, and the
/// next one in the second after that.
const MOST_OF_A_PERSON: f64 = 20.0;
/// The same for what may be a proxy.
const MOST_OF_A_PROXY: f64 = 100.0;
/// Sources that are few.
const FEW: usize = 20;

/// What a part of the TCP segments is about.
pub(super) struct Segments<'a> {
    pub(super) syn: usize,
    pub(super) ack: &'a [usize],
    pub(super) all: &'a [usize],
}

/// Claims everything of TCP if requests are what it is about.
pub(super) fn part(claims: &mut Claims<'_>, of: &Segments<'_>) -> Option<Part> {
    let Segments { syn, ack, all } = *of;
    let with = |shape| ack.iter().filter(|i| claims.samples[**i].shape == shape).count();
    let (requests, lines, hellos) = (with(Shape::HttpRequest), with(Shape::HttpHeaderLine), with(Shape::TlsHello));
    let spoken: Vec<Seen> = ack.iter().map(|i| claims.samples[*i]).filter(|s| s.payload_len > 0).collect();
    let web = requests + lines + hellos;
    // Opening requests must be a good part of all data, and connections a good part of all packets.
    if web < 3 || web * 6 < spoken.len() || ack.len() * 4 < all.len() || syn > 2 * ack.len() {
        if requests > 0 {
            let why = format!("{requests} requests among {} packets with data of {} in all", spoken.len(), all.len());
            claims.reject(AttackFamily::HttpFlood, why);
        }
        return None;
    }
    let stats = Stats::of(&spoken);
    // Where nearly every sample is of another source, there are more than were seen.
    let few = if stats.source_spread() > 0.5 {
        stats.estimated_sources(&spoken) as usize
    } else {
        stats.sources.needed_for(0.8)
    };
    let pps = claims.pps * ratio(web, claims.samples.len());
    let each = pps / few.max(1) as f64;
    let mut why = vec![format!(
        "{requests} requests, {lines} header lines without a request and {hellos} TLS greetings in {} TCP samples; \
         {few} sources send 80 % of them, {each:.1} a second each",
        all.len()
    )];
    let all_of_tcp = Stats::of(&claims.samples_of(all));
    // A page is asked for with all its parts at once, once: what a client does in a moment says little of a second.
    let is_lasting = each * claims.span_secs >= 10.0;
    let is_beyond = |most: f64| stats.sources_are_counted() && is_lasting && each >= most;
    let is_copied = all_of_tcp.sources.distinct() >= 40
        && all_of_tcp.src_ports.needed_for(0.95) * 6 <= all_of_tcp.sources.distinct();
    // Downloads are mostly acknowledgements, behind few requests.
    let is_asking = web * 12 >= all.len();
    let is_machine = is_asking
        && (few <= FEW && each >= MOST_OF_A_PROXY
            || is_beyond(MOST_OF_A_PROXY)
            || is_beyond(MOST_OF_A_PERSON) && stats.lengths.needed_for(0.8) <= 12);
    let (subtype, fit, sign) = if lines > requests {
        (Some("slow_rate"), 0.7, "requests are sent line by line and never finished".to_owned())
    } else if is_copied {
        let sign = format!(
            "{} sources use the same {} ports: copies of one client, since systems draw theirs",
            all_of_tcp.sources.distinct(),
            all_of_tcp.src_ports.needed_for(0.95)
        );
        ((lines > 0).then_some("slow_rate"), 0.65, sign)
    } else if hellos > requests && is_machine {
        (Some("tls_handshake"), 0.6, "no client greets this often: it keeps its connections".to_owned())
    } else if hellos > requests {
        (Some("tls_handshake"), 0.4, CROWD.to_owned())
    } else if is_machine {
        (None, 0.65, "no person asks this often, and for this little".to_owned())
    } else {
        (None, 0.4, CROWD.to_owned())
    };
    why.push(sign);
    Some(Part::new(AttackFamily::HttpFlood, subtype, fit, why, all.to_vec()))
}

const CROWD: &str = "complete connections from many clients: a crowd looks like this too";

/// Claims pages that came without a connection: what middleboxes answer to forged requests for forbidden sites.
///
/// Whoever asked would have had the servers' half of the handshakes first.
pub(super) fn unasked(claims: &Claims<'_>, all: &[usize]) -> Option<Part> {
    let samples = claims.samples_of(all);
    let pages: Vec<Seen> = samples.iter().filter(|s| s.shape == Shape::HttpAnswer).copied().collect();
    let handshakes = samples.iter().filter(|s| s.class == TrafficClass::TcpSynAck).count();
    let stats = Stats::of(&pages);
    let is_flood = pages.len() >= 10
        && pages.len() * 3 >= samples.len()
        && handshakes * 50 <= samples.len()
        && stats.flow_spread() >= 0.5
        && stats.sources.needed_for(0.8) >= 10;
    is_flood.then(|| {
        let why = vec![
            format!(
                "{} sources send {} beginnings of web pages in {} segments",
                stats.sources.distinct(),
                pages.len(),
                samples.len()
            ),
            "without the handshakes of connections: middleboxes answer requests that others forged".to_owned(),
        ];
        Part::new(AttackFamily::TcpFlood, Some("reflection"), 0.8, why, all.to_vec())
    })
}
