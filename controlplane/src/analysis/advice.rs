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
    let is_target = |ip| analysis.target.as_ref().is_some_and(|target| target.ip == ip);
    let heavy: Vec<_> = analysis.top_sources.iter().filter(|s| s.share >= SOURCE_SHARE && !is_target(s.ip)).collect();
    let share: f64 = heavy.iter().map(|s| s.share).sum();
    // Reflectors are too many, and somebody else's.
    if share < BLOCKABLE_SHARE || families.iter().all(|family| family.is_amplification()) {
        return None;
    }
    let sources: Vec<IpNet> = heavy.iter().map(|s| IpNet::from(s.ip)).collect();
    let count = sources.len();
    Some(Advice {
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

#[cfg(test)]
mod tests {
    use super::super::report::{AddressShare, VectorShare, VerdictCounts};
    use super::super::{Budget, analyse};
    use super::*;
    use AttackFamily as F;

    fn source(ip: &str, share: f64) -> AddressShare {
        AddressShare { ip: ip.parse().expect("an address"), packets: 1, bytes: 1, share }
    }

    fn port(port: u16, share: f64, reflector: Option<F>) -> PortShare {
        PortShare { protocol: "udp", port, packets: 1, share, reflector }
    }

    /// An analysis of 50,000 packets a second, changed by `with`.
    fn analysis(family: F, with: impl FnOnce(&mut Analysis)) -> Analysis {
        let mut analysis = analyse(std::io::empty(), Budget::of(1)).expect("nothing is read");
        analysis.attack_vector = family;
        analysis.pps = Some(50_000.0);
        analysis.target = Some(source("203.0.113.5", 1.0));
        with(&mut analysis);
        analysis
    }

    #[test]
    fn what_is_recommended_follows_from_the_vector_and_its_numbers() {
        let few = |a: &mut Analysis| {
            a.top_sources =
                vec![source("198.51.100.7", 0.6), source("198.51.100.8", 0.3), source("198.51.100.9", 0.001)];
        };
        let verdicts = VerdictCounts {
            passed: 1,
            dropped: 99,
            would_drop: 0,
            unmarked: 0,
            dropped_share: 0.99,
            reasons: Vec::new(),
        };
        for (name, analysis, expected) in [
            ("no attack", analysis(F::Unknown, few), &[][..]),
            ("syn", analysis(F::SynFlood, |_| ()), &["xdp_rate_limit_target", "-"]),
            ("syn of few", analysis(F::SynFlood, few), &["xdp_drop_source", "xdp_rate_limit_target", "-"]),
            ("icmp", analysis(F::IcmpFlood, |_| ()), &["xdp_rate_limit_target"]),
            ("gre", analysis(F::GreFlood, |_| ()), &["xdp_drop_protocol"]),
            ("http", analysis(F::HttpFlood, |_| ()), &["-"]),
            ("rst", analysis(F::RstFlood, |_| ()), &["-"]),
            ("udp", analysis(F::UdpFlood, |_| ()), &["xdp_rate_limit_target"]),
            (
                "udp to a port",
                analysis(F::UdpFlood, |a| a.destination_ports = vec![port(80, 0.9, None)]),
                &["xdp_drop_port", "xdp_rate_limit_target"],
            ),
            (
                "reflectors are not blocked one by one",
                analysis(F::NtpAmplification, |a| {
                    few(a);
                    a.source_ports = vec![port(9, 0.5, None), port(123, 0.4, Some(F::NtpAmplification))];
                }),
                &["xdp_drop_port", "xdp_rate_limit_target"],
            ),
            (
                "several",
                analysis(F::MultiVector, |a| {
                    a.vectors = [(F::SynFlood, 0.6), (F::GreFlood, 0.3), (F::IcmpFlood, 0.1)]
                        .map(|(family, share)| VectorShare { family, packets: 1, share })
                        .to_vec();
                }),
                &["xdp_rate_limit_target", "-", "xdp_drop_protocol"],
            ),
            ("dropped already", analysis(F::GreFlood, |a| a.verdicts = Some(verdicts)), &["-", "xdp_drop_protocol"]),
        ] {
            let found = advice(&analysis);
            let kinds: Vec<&str> = found.iter().map(|a| a.action.as_ref().map_or("-", Action::kind)).collect();
            assert_eq!(kinds, expected, "{name}");
            for advice in &found {
                assert!(!advice.text.is_empty(), "{name}");
                assert_eq!(
                    advice.action.as_ref().map(Action::validate),
                    advice.action.as_ref().map(|_| Ok(())),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn the_narrowest_parameters_are_taken() {
        let found = advice(&analysis(F::SynFlood, |a| {
            a.top_sources =
                vec![source("198.51.100.7", 0.85), source("203.0.113.5", 0.14), source("198.51.100.9", 0.001)];
        }));
        let sources = vec!["198.51.100.7/32".parse().expect("a prefix")];
        assert_eq!(found[0].action, Some(Action::XdpDropSource { sources, ttl_secs: HOUR }), "never the target");
        let Some(Action::XdpRateLimitTarget { pps, target, .. }) = &found[1].action else { panic!("{found:?}") };
        assert_eq!((*pps, target.map(|t| t.to_string()).as_deref()), (Some(5_000), Some("203.0.113.5/32")));
    }
}
