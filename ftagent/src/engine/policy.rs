//! What to do about a classified attack: the narrowest response first, wider ones while it is not contained.

use ftagent_common::api::{Action, PortProtocol, PortSide, Protocol};
use ftagent_common::packet::{Ip, proto, tcp_flag};
use ftagent_common::vocab::{AttackFamily, TrafficClass};
use ipnet::IpNet;

use super::classify::signature::matches_of;
use super::classify::{REAL_FIT, Vector};
use super::rules::{Matches, Verdict};
use super::words::words;

/// How wide the response is; each step keeps what the earlier ones installed, and goes before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// What hits the attack alone: its sources, its reflectors, its signature.
    #[default]
    Narrow,
    /// And a limit on the attack's class of traffic towards the target.
    Class,
    /// And a limit on everything towards the target.
    Target,
}

impl Width {
    /// The next wider step, if there is one.
    pub const fn wider(self) -> Option<Self> {
        match self {
            Self::Narrow => Some(Self::Class),
            Self::Class => Some(Self::Target),
            Self::Target => None,
        }
    }
}

/// What should be in force against one incident.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Sources to drop, heaviest first.
    pub sources: Vec<IpNet>,
    /// Rules of the target, the narrowest first.
    pub target: Vec<Planned>,
    /// Whether the target belongs behind the TCP gate: segments of forged sources, or of too many to name.
    pub gate: bool,
}

/// One rule of a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub matches: Matches,
    pub verdict: Verdict,
    /// A word on it.
    pub what: &'static str,
    /// The step that it belongs to, and goes with.
    pub width: Width,
}

impl Plan {
    fn add(&mut self, matches: Matches, verdict: Verdict, what: &'static str, width: Width) {
        match self.target.iter_mut().find(|p| p.matches == matches && p.verdict == verdict) {
            Some(known) => known.width = known.width.min(width),
            None => self.target.push(Planned { matches, verdict, what, width }),
        }
    }
}

/// What the plan may rest on besides the verdict.
pub struct Situation<'a> {
    pub target: IpNet,
    pub width: Width,
    pub max_sources: u32,
    /// Packets per second of a class that are let through where it must be limited.
    pub normal_pps: &'a dyn Fn(TrafficClass) -> u64,
    /// Packets per second that the target as a whole is limited to.
    pub target_pps: u64,
    /// Whether a source was there before the attack.
    pub is_known: &'a dyn Fn(Ip) -> bool,
}

/// The sources of a vector must hold this share of it for blocking them to be a response.
const SOURCES_COVER: f64 = 0.8;
/// More sources than this are left to a signature where there is one.
const FEW: usize = 64;
/// Share of a vector that makes a class worth a limit of its own.
const COMPANION: f64 = 0.02;

/// Plans the response to `vectors`.
pub fn plan(vectors: &[Vector], at: &Situation<'_>) -> Plan {
    let mut plan = Plan::default();
    for vector in vectors.iter().filter(|v| v.fit >= REAL_FIT) {
        let named = plan.sources.len();
        let narrow = narrow(vector, at, &mut plan);
        // The gate costs honest clients a second, or the options of their connections; a signature costs them nothing.
        let is_wanted = !narrow || at.width >= Width::Class;
        plan.gate |= is_wanted && is_of_segments(vector.family) && plan.sources.len() == named;
        if !narrow || at.width >= Width::Class {
            // Besides its own class a vector has companions: errors of reflectors, later fragments.
            for (class, _) in vector.classes.iter().filter(|(_, share)| *share >= COMPANION) {
                limit_class(*class, vector, at, &mut plan);
            }
        }
    }
    if at.width == Width::Target && !vectors.is_empty() {
        let limit = limit(at.target_pps);
        plan.add(Matches::target(at.target), limit, "limit of the whole target", Width::Target);
    }
    plan.target.sort_by_key(|p| p.width);
    plan.sources.truncate(at.max_sources as usize);
    plan
}

/// Whether the family floods with segments that no handshake stands behind.
const fn is_of_segments(family: AttackFamily) -> bool {
    use AttackFamily as F;
    matches!(family, F::SynFlood | F::AckFlood | F::RstFlood | F::SynAckFlood | F::TcpFlood)
}

/// Plans what hits the vector alone; whether there is such a thing.
fn narrow(vector: &Vector, at: &Situation<'_>, plan: &mut Plan) -> bool {
    if vector.family.is_amplification() && reflectors(vector, at, plan) {
        return true;
    }
    if !vector.spoofed && !vector.family.is_amplification() && sources(vector, at, plan) {
        return true;
    }
    let Some(measured) = vector.signature.as_ref().filter(|m| m.usable) else { return false };
    let matches = Matches { target: Some(at.target), ..matches_of(&measured.signature) };
    plan.add(matches, Verdict::Drop, "signature of the attack", Width::Narrow);
    true
}

/// UDP from the reflectors' ports, with the length of their answers where that is one.
fn reflectors(vector: &Vector, at: &Situation<'_>, plan: &mut Plan) -> bool {
    let ports: Vec<u16> = vector
        .stats
        .src_ports
        .shares(4)
        .into_iter()
        .filter(|(port, share)| *share >= 0.1 && *port != 0)
        .map(|(port, _)| port)
        .collect();
    let length = vector.signature.as_ref().and_then(|m| m.signature.length);
    for port in &ports {
        let one = Some([*port, *port]);
        let length = length.filter(|_| ports.len() == 1);
        let matches = Matches { src_port: one, length, ..Matches::target(at.target).protocol(Protocol::Udp) };
        plan.add(matches, Verdict::Drop, "answers of reflectors", Width::Narrow);
    }
    // Large answers come in fragments, which carry no ports.
    if vector.stats.src_ports.shares(8).iter().any(|(port, share)| *port == 0 && *share >= 0.1) {
        let matches = Matches { fragment: Some(true), ..Matches::target(at.target).protocol(Protocol::Udp) };
        let limit = limit((at.normal_pps)(TrafficClass::Fragment));
        plan.add(matches, limit, "fragments of reflected answers", Width::Narrow);
    }
    !ports.is_empty()
}

/// The addresses that send the attack, if they are few enough.
fn sources(vector: &Vector, at: &Situation<'_>, plan: &mut Plan) -> bool {
    let stats = &vector.stats;
    // Where hardly any source was seen twice, neither their number nor their part is known.
    if vector.estimated_sources > u64::from(at.max_sources) || stats.n < 5 || stats.source_spread() > 0.5 {
        return false;
    }
    let average = 1.0 / stats.sources.distinct().max(1) as f64;
    let chosen: Vec<(Ip, f64)> = stats
        .sources
        .shares(at.max_sources as usize)
        .into_iter()
        // Who was there before is spared unless he sends far more than the others.
        .filter(|(ip, share)| *share >= average * 0.25 && (!(at.is_known)(*ip) || *share >= (average * 5.0).min(0.5)))
        .collect();
    let covered: f64 = chosen.iter().map(|(_, share)| share).sum();
    if covered < SOURCES_COVER {
        return false;
    }
    // A large botnet shows its members one by one; a filter that covers all of them acts at once.
    if chosen.len() > FEW && vector.signature.as_ref().is_some_and(|m| m.usable) {
        return false;
    }
    plan.sources.extend(chosen.into_iter().map(|(ip, _)| stats.prefix_of(ip)));
    true
}

/// Limits a class that the vector consists of.
fn limit_class(class: TrafficClass, vector: &Vector, at: &Situation<'_>, plan: &mut Plan) {
    let target = Matches::target(at.target);
    let (matches, what) = match class {
        TrafficClass::Fragment => (Matches { fragment: Some(true), ..target }, "limit of fragments"),
        TrafficClass::Icmp => (target.protocol(Protocol::Icmp), "limit of ICMP"),
        TrafficClass::Icmpv6 => (target.protocol(Protocol::Icmpv6), "limit of ICMPv6"),
        TrafficClass::Gre => (target.protocol(Protocol::Gre), "limit of GRE"),
        TrafficClass::Esp => (target.protocol(Protocol::Esp), "limit of ESP"),
        TrafficClass::DnsQuery => {
            (Matches { dst_port: Some([53, 53]), ..target.protocol(Protocol::Udp) }, "limit of DNS queries")
        }
        TrafficClass::Udp | TrafficClass::Reflector => {
            let dst_port = vector.signature.as_ref().and_then(|m| m.signature.dst_port);
            (Matches { dst_port, ..target.protocol(Protocol::Udp) }, "limit of UDP")
        }
        TrafficClass::OtherIp => {
            let protocol = vector.stats.protocols.top().filter(|p| !matches!(*p, proto::TCP | proto::UDP));
            if protocol.is_none() {
                return;
            }
            (Matches { protocol, ..target }, "limit of the protocol")
        }
        tcp => {
            let tcp_flags = tcp_flags(tcp, vector.family);
            (Matches { tcp_flags, ..target.protocol(Protocol::Tcp) }, "limit of TCP by flags")
        }
    };
    plan.add(matches, limit((at.normal_pps)(class)), what, Width::Class);
}

/// `[mask, value]` of the flags that tell the class.
fn tcp_flags(class: TrafficClass, family: AttackFamily) -> Option<[u8; 2]> {
    use tcp_flag::{ACK, FIN, RST, SYN};
    let all = SYN | ACK | FIN | RST;
    match class {
        TrafficClass::TcpSyn => Some([all, SYN]),
        TrafficClass::TcpSynAck => Some([all, SYN | ACK]),
        TrafficClass::TcpAck if family != AttackFamily::HttpFlood => Some([all, ACK]),
        TrafficClass::TcpRst => Some([RST, RST]),
        TrafficClass::TcpFin => Some([all, FIN | ACK]),
        _ => None,
    }
}

/// A limit with a tenth of a second's burst.
pub fn limit(pps: u64) -> Verdict {
    Verdict::LimitPps { pps, burst: (pps / 10).max(1) }
}

/// The action that comes nearest to a rule, for the record of what was done.
pub fn action_of(matches: &Matches, verdict: Verdict, ttl_secs: u32) -> Action {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Icmpv6, Protocol::Gre, Protocol::Esp]
        .into_iter()
        .find(|p| Some(p.number()) == matches.protocol);
    let target = matches.target;
    match (verdict, protocol) {
        (Verdict::LimitPps { pps, .. }, _) => {
            Action::XdpRateLimitTarget { protocol, pps: Some(pps), bps: None, target, ttl_secs }
        }
        (Verdict::LimitBps { bps, .. }, _) => {
            Action::XdpRateLimitTarget { protocol, pps: None, bps: Some(bps), target, ttl_secs }
        }
        (Verdict::Drop, Some(p @ (Protocol::Tcp | Protocol::Udp))) => {
            let port_protocol = if p == Protocol::Tcp { PortProtocol::Tcp } else { PortProtocol::Udp };
            let single = |range: Option<[u16; 2]>| range.filter(|[low, high]| low == high).map(|[low, _]| low);
            match (single(matches.src_port), single(matches.dst_port)) {
                (Some(port), _) => {
                    Action::XdpDropPort { protocol: port_protocol, port, side: PortSide::Source, target, ttl_secs }
                }
                (None, Some(port)) => {
                    let side = PortSide::Destination;
                    Action::XdpDropPort { protocol: port_protocol, port, side, target, ttl_secs }
                }
                (None, None) => Action::XdpDropProtocol { protocol: p, target, ttl_secs },
            }
        }
        // Fragments of any protocol have no action of their own: the commands say what was dropped.
        // The agent's own responses pass, sample and mark nothing.
        (Verdict::Drop | Verdict::Pass | Verdict::Sample | Verdict::Mark { .. }, other) => {
            Action::XdpDropProtocol { protocol: other.unwrap_or(Protocol::Udp), target, ttl_secs }
        }
    }
}

/// The argument vectors of making and unmaking a rule of a target.
pub fn commands(matches: &Matches, verdict: Verdict, ttl_secs: u32) -> (Vec<String>, Vec<String>) {
    let target = matches.target.map(|t| t.to_string()).unwrap_or_default();
    let verdict = match verdict {
        Verdict::Drop => "drop".to_owned(),
        Verdict::LimitPps { pps, .. } => format!("limit {pps}pps"),
        Verdict::LimitBps { bps, .. } => format!("limit {bps}bps"),
        Verdict::Pass => "pass".to_owned(),
        Verdict::Sample => "sample".to_owned(),
        Verdict::Mark { dscp } => format!("mark dscp {dscp}"),
    };
    let rule = |verb: &str| -> Vec<String> {
        ["ftagent", "rules", verb, "--target", &target, "--match", &words(matches), "--action", &verdict]
            .into_iter()
            .map(str::to_owned)
            .collect()
    };
    let mut add = rule("add");
    add.extend(["--ttl".to_owned(), format!("{ttl_secs}s")]);
    (add, rule("delete"))
}
