//! TCP by its flags, seen from one side: what connections explain is not a flood of the flags that they need.

use ftagent_common::packet::{Fragment, proto, tcp_flag};
use ftagent_common::vocab::{AttackFamily, TrafficClass};

use super::features::{Stats, ratio};
use super::{Claims, Part, amplification, conversation, http, spoof};

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
pub(super) const WEB_PORTS: [u16; 5] = [80, 443, 8_000, 8_080, 8_443];

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
    let segments = http::Segments { syn: roles.syn.len(), ack: &roles.ack, all: &all };
    let web = http::part(claims, &segments);
    if let Some(part) = web.or_else(|| http::unasked(claims, &all)) {
        claims.take(part);
        return;
    }
    let share = |members: &[usize]| ratio(members.len(), all.len());
    // Connections need SYN, FIN and RST too: only what exceeds their number is a flood. A connection that says nothing
    // has one of each.
    let acks = claims.samples_of(&roles.ack);
    let is_crafted = conversation::crafted(claims, &acks).is_some();
    let connections = if is_crafted { 0 } else { roles.ack.len() };
    let excess = |members: &[usize]| members.len() * 4 > connections * 5 + 4 && (!is_crafted || share(members) >= 0.12);
    let kinds = [&roles.syn, &roles.syn_ack, &roles.rst, &roles.fin, &roles.odd]
        .into_iter()
        .filter(|m| share(m) >= 0.12 && (excess(m) || share(m) >= 0.2))
        .count();
    if kinds + usize::from(share(&roles.ack) >= 0.12 && is_crafted) >= 3 {
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
        parts.push(conversation::part(claims, rest));
    }
    for part in parts {
        claims.take(part);
    }
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
