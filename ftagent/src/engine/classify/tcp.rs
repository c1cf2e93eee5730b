//! TCP by its flags, seen from one side: what connections explain is not a flood of the flags that they need.

use ftagent_common::packet::{Fragment, proto, tcp_flag};
use ftagent_common::vocab::{AttackFamily, TrafficClass};

use super::features::{Stats, ratio};
use super::payload::Shape;
use super::spoof;
use super::{Claims, Part, amplification};
use crate::engine::window::Seen;

/// Samples by what they do in a connection; indexes into the claims.
#[derive(Default)]
struct Roles {
    syn: Vec<usize>,
    syn_ack: Vec<usize>,
    rst: Vec<usize>,
    fin: Vec<usize>,
    odd: Vec<usize>,
    /// Acknowledgements, with payload or without.
    ack: Vec<usize>,
}

impl Roles {
    fn all(&self) -> Vec<usize> {
        [&self.syn, &self.syn_ack, &self.rst, &self.fin, &self.odd, &self.ack].into_iter().flatten().copied().collect()
    }
}

/// Where web servers listen.
const WEB_PORTS: [u16; 5] = [80, 443, 8_000, 8_080, 8_443];

/// Claims every TCP segment.
pub(super) fn claim(claims: &mut Claims<'_>) {
    let mut roles = Roles::default();
    for (i, seen) in claims.open() {
        if seen.protocol != proto::TCP || seen.fragment != Fragment::Whole {
            continue;
        }
        match seen.class {
            TrafficClass::TcpSyn => roles.syn.push(i),
            TrafficClass::TcpSynAck => roles.syn_ack.push(i),
            TrafficClass::TcpRst => roles.rst.push(i),
            TrafficClass::TcpFin => roles.fin.push(i),
            TrafficClass::TcpAck => roles.ack.push(i),
            _ => roles.odd.push(i),
        }
    }
    let all = roles.all();
    if all.is_empty() {
        return;
    }
    if let Some(part) = http(claims, &roles, &all) {
        claims.take(part);
        return;
    }
    let share = |members: &[usize]| ratio(members.len(), all.len());
    // Connections need SYN, FIN and RST too: only what exceeds their number is a flood.
    let connections = roles.ack.len();
    let excess = |members: &[usize]| members.len() > connections.max(1);
    let kinds = [&roles.syn, &roles.syn_ack, &roles.rst, &roles.fin, &roles.odd]
        .into_iter()
        .filter(|m| share(m) >= 0.12 && (excess(m) || share(m) >= 0.2))
        .count();
    if kinds + usize::from(share(&roles.ack) >= 0.12 && spread(claims, &roles.ack)) >= 3 {
        claims.take(mixed(claims, all));
        return;
    }
    let mut parts = Vec::new();
    if excess(&roles.syn_ack) && roles.syn_ack.len() >= roles.rst.len() {
        // Servers that know nothing of the connection, or know it no more, answer with RST: one attack.
        let mut members = std::mem::take(&mut roles.syn_ack);
        members.append(&mut roles.rst);
        let errors: Vec<usize> =
            claims.open().filter(|(_, s)| amplification::is_icmp_error(s)).map(|(i, _)| i).collect();
        if errors.len() * 2 <= members.len() {
            members.extend(errors);
        }
        parts.push(syn_ack(claims, members));
    }
    if excess(&roles.syn) {
        parts.push(syn(claims, std::mem::take(&mut roles.syn)));
    }
    if excess(&roles.rst) {
        let members = std::mem::take(&mut roles.rst);
        parts.push(simple(claims, AttackFamily::RstFlood, None, 0.9, "resets without connections to reset", members));
    }
    if excess(&roles.fin) {
        let members = std::mem::take(&mut roles.fin);
        parts.push(simple(claims, AttackFamily::TcpFlood, Some("fin"), 0.85, "more ends than connections", members));
    }
    if share(&roles.odd) >= 0.02 {
        let members = std::mem::take(&mut roles.odd);
        let subtype = odd_name(claims, &members);
        parts.push(simple(claims, AttackFamily::TcpFlood, Some(subtype), 0.95, "flags that no TCP sends", members));
    }
    let rest = roles.all();
    if !rest.is_empty() {
        parts.push(established(claims, rest));
    }
    for part in parts {
        claims.take(part);
    }
}

/// Requests of the web, complete or dripping, in connections.
fn http(claims: &mut Claims<'_>, roles: &Roles, all: &[usize]) -> Option<Part> {
    let with = |shape| roles.ack.iter().filter(|i| claims.samples[**i].shape == shape).count();
    let (requests, lines, hellos) = (with(Shape::HttpRequest), with(Shape::HttpHeaderLine), with(Shape::TlsHello));
    let data = roles.ack.iter().filter(|i| claims.samples[**i].payload_len > 0).count();
    let web = requests + lines + hellos;
    // Opening requests must be a good part of all data, and connections a good part of all packets.
    if web < 3 || web * 6 < data || roles.ack.len() * 4 < all.len() || roles.syn.len() > 2 * roles.ack.len() {
        if requests > 0 {
            claims.reject(
                AttackFamily::HttpFlood,
                format!("{requests} requests among {data} packets with data of {} in all", all.len()),
            );
        }
        return None;
    }
    let senders: Vec<Seen> = roles.ack.iter().map(|i| claims.samples[*i]).filter(|s| s.payload_len > 0).collect();
    let stats = Stats::of(&senders);
    let few = if stats.source_spread() > 0.5 {
        // Nearly every sample is of another source: there are more than were seen.
        stats.estimated_sources(&senders) as usize
    } else {
        stats.sources.needed_for(0.8)
    };
    let per_source = claims.pps * ratio(web, claims.samples.len()) / few.max(1) as f64;
    let mut why = vec![format!(
        "{requests} requests, {lines} header lines without a request and {hellos} TLS greetings in {} TCP samples; \
         {few} sources send 80 % of them, {per_source:.0} a second each",
        all.len()
    )];
    let (subtype, fit) = if lines > requests {
        why.push("requests are sent line by line and never finished".to_owned());
        (Some("slow_rate"), 0.7)
    } else if hellos > requests {
        (Some("tls_handshake"), 0.4)
    } else if few <= 20 && per_source >= 100.0 && web * 12 >= all.len() {
        why.push("no person asks this often, and for this little".to_owned());
        (None, 0.65)
    } else {
        why.push("complete connections from many clients: a crowd looks like this too".to_owned());
        (None, 0.4)
    };
    Some(Part::new(AttackFamily::HttpFlood, subtype, fit, why, all.to_vec()))
}

fn syn(claims: &mut Claims<'_>, members: Vec<usize>) -> Part {
    let samples = claims.samples_of(&members);
    let stats = Stats::of(&samples);
    let bare = ratio(samples.iter().filter(|s| s.is_bare_tcp()).count(), samples.len());
    let few = stats.sources.needed_for(0.8);
    let mut why = vec![format!(
        "{} connection requests from {} sources to {} ports, {:.0} % without TCP options, no handshake follows",
        stats.n,
        stats.sources.distinct(),
        stats.dst_ports.distinct(),
        bare * 100.0
    )];
    if stats.is_scan() {
        why.push("few sources ask for ever other ports: a port scan".to_owned());
        return Part::new(AttackFamily::SynFlood, Some("port_scan"), 0.3, why, members);
    }
    let forged = spoof::judge(&stats, &samples, claims.clean);
    let fit = if forged.spoofed || bare >= 0.9 || stats.empty_share() < 0.5 {
        0.95
    } else if few <= 20 {
        0.85
    } else {
        why.push("the requests have a real system's options: a crowd at a dead service looks like this too".to_owned());
        0.65
    };
    Part::new(AttackFamily::SynFlood, None, fit, why, members)
}

fn syn_ack(claims: &Claims<'_>, members: Vec<usize>) -> Part {
    let stats = Stats::of(&claims.samples_of(&members));
    let reflected = stats.sources.distinct() >= 8 && stats.src_ports.needed_for(0.9) <= 16;
    let why = vec![format!(
        "{} sources answer from {} ports to connections that nobody opened",
        stats.sources.distinct(),
        stats.src_ports.distinct()
    )];
    Part::new(AttackFamily::SynAckFlood, reflected.then_some("reflection"), 0.92, why, members)
}

/// Whether segments look like no conversations: every one another, or from forged sources.
fn spread(claims: &Claims<'_>, members: &[usize]) -> bool {
    let samples = claims.samples_of(members);
    let stats = Stats::of(&samples);
    stats.few_sources_many_flows() || stats.n >= 20 && spoof::judge(&stats, &samples, claims.clean).spoofed
}

/// Acknowledgements and what goes with them.
fn established(claims: &mut Claims<'_>, members: Vec<usize>) -> Part {
    let samples = claims.samples_of(&members);
    let acks: Vec<Seen> = samples.iter().filter(|s| s.class == TrafficClass::TcpAck).copied().collect();
    let pushed = ratio(acks.iter().filter(|s| s.tcp_flags & tcp_flag::PSH != 0).count(), acks.len());
    let loose = spread(claims, &members);
    let stats = Stats::of(&samples);
    let mut why = vec![format!(
        "{} segments of {} flows from {} sources, {:.0} % with PSH",
        stats.n,
        stats.flows,
        stats.sources.distinct(),
        pushed * 100.0
    )];
    let share = |is: &dyn Fn(&Seen) -> bool| ratio(samples.iter().filter(|s| is(s)).count(), samples.len());
    let data = share(&|s| s.payload_len > 0);
    let requests = share(&|s| s.class == TrafficClass::TcpSyn);
    let to_web = stats.dst_ports.top_share() >= 0.9 && stats.dst_ports.top().is_some_and(|p| WEB_PORTS.contains(&p));
    let scan = stats.is_scan() && stats.src_ports.needed_for(0.9) <= 4;
    if requests >= 0.2 && data < 0.05 && !scan {
        let few = stats.source_spread() <= 0.5 && stats.sources.needed_for(0.8) <= 20;
        why.push("connections are opened and nothing is said".to_owned());
        let fit = if few { 0.6 } else { 0.4 };
        return Part::new(AttackFamily::TcpFlood, Some("connections"), fit, why, members);
    }
    if to_web && !loose && data >= 0.1 {
        why.push(
            "conversations with a web server whose requests cannot be read: a crowd, or an attack on it".to_owned(),
        );
        return Part::new(AttackFamily::HttpFlood, None, 0.3, why, members);
    }
    let fit = if loose && !scan {
        why.push("every segment belongs to another connection".to_owned());
        0.92
    } else if scan {
        why.push("few sources try ever other ports: a port scan".to_owned());
        0.3
    } else {
        why.push("the segments belong to lasting connections: ordinary traffic looks like this".to_owned());
        0.3
    };
    if pushed >= 0.5 {
        Part::new(AttackFamily::TcpFlood, Some("psh_ack"), fit, why, members)
    } else {
        Part::new(AttackFamily::AckFlood, None, fit, why, members)
    }
}

fn mixed(claims: &Claims<'_>, members: Vec<usize>) -> Part {
    let stats = Stats::of(&claims.samples_of(&members));
    let why = vec![format!("{} different sets of flags, none explained by connections", stats.flags.distinct())];
    Part::new(AttackFamily::TcpFlood, Some("mixed"), 0.9, why, members)
}

fn simple(
    claims: &Claims<'_>,
    family: AttackFamily,
    subtype: Option<&'static str>,
    fit: f64,
    sign: &str,
    members: Vec<usize>,
) -> Part {
    let stats = Stats::of(&claims.samples_of(&members));
    let mut why = vec![format!("{} segments from {} sources: {sign}", stats.n, stats.sources.distinct())];
    // A flooder draws both ports; a scanner keeps its own.
    if stats.is_scan() && stats.src_ports.needed_for(0.9) <= 4 {
        why.push("few sources try ever other ports: a port scan".to_owned());
        return Part::new(family, Some("port_scan"), 0.3, why, members);
    }
    Part::new(family, subtype, fit, why, members)
}

/// The name of the set of flags that most of the odd segments carry.
fn odd_name(claims: &Claims<'_>, members: &[usize]) -> &'static str {
    use tcp_flag::{ACK, FIN, PSH, RST, SYN, URG};
    let stats = Stats::of(&claims.samples_of(members));
    if stats.flags.top_share() < 0.6 {
        return "mixed";
    }
    let flags = stats.flags.top().unwrap_or(0);
    match flags {
        0 => "null",
        _ if flags & (FIN | URG | PSH) == FIN | URG | PSH => "xmas",
        _ if flags & (SYN | FIN) == SYN | FIN => "syn_fin",
        _ if flags & (SYN | RST) == SYN | RST => "syn_rst",
        _ if flags & !(URG | PSH) == FIN => "fin",
        _ if flags & ACK == 0 && flags & URG != 0 => "urg",
        _ => "odd",
    }
}
