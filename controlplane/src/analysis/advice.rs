//! What could be done against an attack: a pure function from its analysis. Nothing is done by itself.

use ftagent_common::api::{Action, PortProtocol, PortSide, Protocol};
use ftagent_common::vocab::AttackFamily;
use ipnet::IpNet;
use serde::Serialize;
use utoipa::ToSchema;

use super::report::{Analysis, PortShare};

/// Sources that hold this share of the packets together are worth blocking one by one.
const BLOCKABLE_SHARE: f64 = 0.8;
/// A source with a smaller share is none of them.
const SOURCE_SHARE: f64 = 0.01;
/// A port that this share of the packets has in common can be dropped instead of the protocol.
const PORT_SHARE: f64 = 0.5;
/// No limit is lower: packets per second.
const LOWEST_LIMIT: u64 = 1_000;
const HOUR: u32 = 3_600;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Advice {
    /// Fit to be the `action` of a firewall rule; absent where none of them fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// What it does and why.
    pub text: String,
    /// Whom it may hit besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub risk: Option<String>,
}

/// What could be done, the narrowest first.
pub(super) fn advice(analysis: &Analysis) -> Vec<Advice> {
    let families: Vec<AttackFamily> = match analysis.attack_vector {
        AttackFamily::Unknown => return Vec::new(),
        AttackFamily::MultiVector => analysis.vectors.iter().filter(|v| v.share >= 0.15).map(|v| v.family).collect(),
        family => vec![family],
    };
    let mut found: Vec<Advice> = sources(analysis, &families).into_iter().collect();
    for family in families {
        found.extend(against(analysis, family));
    }
    if let Some(verdicts) = analysis.verdicts.as_ref().filter(|v| v.dropped_share >= 0.95) {
        let share = verdicts.dropped_share * 100.0;
        let text = format!("{share:.1} % of the packets were dropped already: what is in force suffices.");
        found.insert(0, Advice { action: None, text, risk: None });
    }
    found
}

/// Blocks sources where few hold most of the packets and these can be their own.
fn sources(analysis: &Analysis, families: &[AttackFamily]) -> Option<Advice> {
    // One packet of each is enough to forge: SYNs and datagrams need no answer. Many alike are told by their number.
    let heavy: Vec<_> = analysis.top_sources.iter().filter(|s| s.share >= SOURCE_SHARE).collect();
    let share: f64 = heavy.iter().map(|s| s.share).sum();
    if share < BLOCKABLE_SHARE || families.iter().all(|family| family.is_amplification()) {
        return None;
    }
    let targets = analysis.target.iter().map(|t| t.ip);
    let sources: Vec<IpNet> =
        heavy.iter().map(|s| s.ip).filter(|ip| targets.clone().all(|t| t != *ip)).map(IpNet::from).collect();
    let count = sources.len();
    (count > 0).then(|| Advice {
        action: Some(Action::XdpDropSource { sources, ttl_secs: HOUR }),
        text: format!("Drop the {count} sources that send {:.0} % of the packets, for an hour.", share * 100.0),
        risk: Some("Sources may be forged; addresses that many share hit their other users.".to_owned()),
    })
}

fn against(analysis: &Analysis, family: AttackFamily) -> Vec<Advice> {
    let target = analysis.target.as_ref().map(|t| IpNet::from(t.ip));
    let whom = target.map_or_else(|| "the incident's target".to_owned(), |t| t.addr().to_string());
    match family {
        AttackFamily::SynFlood => {
            let mut found = vec![limit(analysis, Protocol::Tcp, target, &whom)];
            found.push(Advice {
                action: None,
                text:
                    "Let the node answer SYNs with cookies, or drop the first SYN of each connection: forged sources \
                       never come back."
                        .to_owned(),
                risk: None,
            });
            found
        }
        AttackFamily::HttpFlood => vec![Advice {
            action: None,
            text: "Limit requests and connections for each client where they end: at the node's web server, or at the \
                   proxy before it."
                .to_owned(),
            risk: Some("Many people behind one address look like one client.".to_owned()),
        }],
        AttackFamily::SynAckFlood | AttackFamily::AckFlood | AttackFamily::RstFlood | AttackFamily::TcpFlood => {
            vec![Advice {
                action: None,
                text: format!("Drop segments of no connection towards {whom}: the node's TCP gate does that."),
                risk: Some("Connections that the node has not seen begin are asked to begin anew.".to_owned()),
            }]
        }
        AttackFamily::IcmpFlood => {
            let is_six = target.is_some_and(|t| t.addr().is_ipv6());
            vec![limit(analysis, if is_six { Protocol::Icmpv6 } else { Protocol::Icmp }, target, &whom)]
        }
        AttackFamily::GreFlood => vec![Advice {
            action: Some(Action::XdpDropProtocol { protocol: Protocol::Gre, target, ttl_secs: HOUR }),
            text: format!("Drop GRE towards {whom} for an hour."),
            risk: Some("Tunnels that end there break.".to_owned()),
        }],
        AttackFamily::FragmentFlood => vec![Advice {
            action: None,
            text: format!("Drop fragments towards {whom} with a signature of the incident."),
            risk: Some("Large datagrams, such as long DNS answers, come in fragments.".to_owned()),
        }],
        AttackFamily::ProtocolFlood => vec![Advice {
            action: None,
            text: format!("Drop what {whom} does not speak: protocols are in `protocols`."),
            risk: None,
        }],
        family => udp(analysis, family, target, &whom),
    }
}

fn udp(analysis: &Analysis, family: AttackFamily, target: Option<IpNet>, whom: &str) -> Vec<Advice> {
    let drop = |port: &PortShare, side: PortSide, text: String, risk: &str| Advice {
        action: Some(Action::XdpDropPort {
            protocol: PortProtocol::Udp,
            port: port.port,
            side,
            target,
            ttl_secs: HOUR,
        }),
        text,
        risk: Some(risk.to_owned()),
    };
    let is_udp = |port: &&PortShare| port.protocol == "udp" && port.port != 0;
    let service = analysis.source_ports.iter().filter(is_udp).find(|p| p.reflector == Some(family));
    let mut found = Vec::new();
    if let Some(port) = service.filter(|_| family.is_amplification()) {
        let text = format!(
            "Drop UDP from port {} towards {whom} for an hour: {:.0} % of all packets.",
            port.port,
            port.share * 100.0
        );
        found.push(drop(
            port,
            PortSide::Source,
            text,
            "Answers of this service that the target asked for are dropped as well.",
        ));
    } else if let Some(port) = analysis.source_ports.iter().find(is_udp).filter(|p| p.share >= PORT_SHARE) {
        let share = port.share * 100.0;
        let text = format!("Drop UDP from port {} towards {whom} for an hour: {share:.0} % of all packets.", port.port);
        found.push(drop(port, PortSide::Source, text, "Whoever speaks from this port is dropped as well."));
    } else if let Some(port) = analysis.destination_ports.iter().find(is_udp).filter(|p| p.share >= PORT_SHARE)
        && family == AttackFamily::UdpFlood
    {
        let share = port.share * 100.0;
        let text = format!("Drop UDP to port {} of {whom} for an hour: {share:.0} % of all packets.", port.port);
        found.push(drop(port, PortSide::Destination, text, "A service on this port is cut off from everybody."));
    }
    found.push(limit(analysis, Protocol::Udp, target, whom));
    found
}

/// A tenth of what came: whoever sets it knows better what the target needs.
fn limit(analysis: &Analysis, protocol: Protocol, target: Option<IpNet>, whom: &str) -> Advice {
    let tenth = analysis.pps.map_or(0, |pps| (pps / 10.0) as u64);
    let pps = tenth.clamp(LOWEST_LIMIT, 100_000_000);
    let word = protocol.as_str().to_uppercase();
    Advice {
        action: Some(Action::XdpRateLimitTarget {
            protocol: Some(protocol),
            pps: Some(pps),
            bps: None,
            target,
            ttl_secs: HOUR,
        }),
        text: format!("Limit {word} towards {whom} to {pps} packets a second for an hour; set what it needs in peace."),
        risk: Some("Ordinary packets are dropped with the others while the limit is exceeded.".to_owned()),
    }
}
