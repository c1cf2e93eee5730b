//! What is played: clean traffic, recorded or generated attacks, and two floods made by the BPF generator.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use ftagent_common::packet::tcp_flag;
use ftagent_common::vocab::AttackFamily;

use super::Story;
use crate::captures::{Captures, Label};
use crate::generate;
use crate::generator::Vary;
use crate::meter::ATTACK_MAC;
use crate::packet::PacketBuilder;
use crate::replay::{Recording, Rewrite, Selection};

pub(super) const EDGE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// Recorded and generated attacks, in frames a second: six times the floor above which traffic can be an attack.
const REPLAY_PPS: u64 = 60_000;
const SYN_PPS: u64 = 150_000;
const UDP_PPS: u64 = 200_000;
const LASTS: Duration = Duration::from_millis(2500);

/// Families of captures that are played, in this order, if they are there.
const REPLAYED: [&str; 7] = [
    "syn_flood",
    "udp_flood",
    "dns_amplification",
    "snmp_amplification",
    "icmp_flood",
    "fragment_flood",
    "synack_reflection",
];

/// One thing to play.
pub(super) struct Scenario {
    pub(super) name: String,
    pub(super) title: String,
    /// What the incident should be called; nothing should be reported if there is none.
    pub(super) expected: Option<AttackFamily>,
    /// Other names that are right as well.
    pub(super) acceptable: Vec<AttackFamily>,
    pub(super) rate_pps: u64,
    pub(super) frames: u64,
    pub(super) lasts: Duration,
    source: Source,
}

/// Where the attack comes from.
enum Source {
    Clean,
    /// A capture, and the address that it attacks.
    Capture {
        path: PathBuf,
        target: IpAddr,
    },
    Generated(AttackFamily),
    SynFlood,
    UdpFlood,
}

/// The attack on the wire.
pub(super) enum Traffic {
    Clean,
    Recording(Recording),
    Flood { template: Vec<u8>, vary: Box<Vary> },
}

/// The address of each family that a scenario attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

/// Everything, in the order of playing; every attack capture instead of one of each family if `every_capture`.
pub(super) fn all(every_capture: bool, story: &Story) -> anyhow::Result<Vec<Scenario>> {
    let mut scenarios = vec![scenario("clean".into(), "clean traffic alone".into(), None, 0, Source::Clean)];
    match Captures::find()? {
        Some(captures) if every_capture => {
            scenarios.extend(captures.class("attack").filter_map(|label| recorded(&captures, label)));
        }
        Some(captures) => scenarios.extend(one_of_each(&captures)),
        None if every_capture => bail!("there is no folder of captures: set FTAGENT_CAPTURES"),
        None => {
            story.step("no folder of captures here: the attacks are generated ones");
            scenarios.extend(generated());
        }
    }
    scenarios.extend(floods());
    Ok(scenarios)
}

impl Scenario {
    /// Which of the addresses is attacked.
    pub(super) fn attacked(&self, target: Target) -> IpAddr {
        match self.source {
            Source::Capture { target: IpAddr::V6(_), .. } => IpAddr::V6(target.v6),
            _ => IpAddr::V4(target.v4),
        }
    }

    /// The attack, aimed at `target`.
    ///
    /// # Errors
    /// The capture cannot be read.
    pub(super) fn traffic(&self, target: Target) -> anyhow::Result<Traffic> {
        Ok(match &self.source {
            Source::Clean => Traffic::Clean,
            Source::Capture { path, target: attacked } => {
                let new = Rewrite {
                    src_mac: ATTACK_MAC,
                    dst_mac: EDGE_MAC,
                    target_v4: Some(target.v4),
                    target_v6: Some(target.v6),
                    sources: Vec::new(),
                };
                Traffic::Recording(Recording::load(path, &Selection::To(vec![*attacked]), &new)?)
            }
            Source::Generated(family) => {
                let attacks = generate::all(target.v4, ATTACK_MAC, EDGE_MAC);
                let frames = attacks.into_iter().find(|a| a.family == *family).map(|a| a.frames).unwrap_or_default();
                Traffic::Recording(Recording::from_frames(frames))
            }
            Source::SynFlood => {
                let template = to(target.v4).tcp(1024, 80, tcp_flag::SYN).build();
                Traffic::Flood { template, vary: Box::new(forged()) }
            }
            Source::UdpFlood => {
                let template = to(target.v4).udp(1024, 1024).payload(&[0x5a; 128]).build();
                let vary = Vary { destination_ports: Some(1024..=65535), payload: true, ..forged() };
                Traffic::Flood { template, vary: Box::new(vary) }
            }
        })
    }
}

fn to(target: Ipv4Addr) -> PacketBuilder {
    PacketBuilder::v4([64, 0, 0, 1], target).macs(ATTACK_MAC, EDGE_MAC).ttl(53)
}

/// What one machine sends that forges its sources: public unicast addresses all over, but one distance to all of them
/// and headers without the options of a real system. Nothing leaves the lab.
fn forged() -> Vary {
    Vary {
        sources: Some("64.0.0.0/3".parse().expect("a prefix")),
        source_ports: Some(1024..=65535),
        ip_id: true,
        ..Vary::default()
    }
}

fn scenario(name: String, title: String, expected: Option<AttackFamily>, rate_pps: u64, source: Source) -> Scenario {
    let frames = (u128::from(rate_pps) * LASTS.as_millis() / 1000) as u64;
    Scenario { name, title, expected, acceptable: Vec::new(), rate_pps, frames, lasts: LASTS, source }
}

/// One capture of each family, named by the family.
fn one_of_each(captures: &Captures) -> Vec<Scenario> {
    let play = |family: &&str| {
        let found = captures.class("attack").filter(|label| label.family == *family);
        let mut scenario =
            found.filter(|label| label.targets().iter().any(IpAddr::is_ipv4)).find_map(|l| recorded(captures, l))?;
        scenario.name = format!("capture_{}", scenario.expected?);
        Some(scenario)
    };
    REPLAYED.iter().filter_map(play).collect()
}

/// The scenario of a capture that names its target and whose family we have a word for.
fn recorded(captures: &Captures, label: &Label) -> Option<Scenario> {
    let target = label.targets().into_iter().next()?;
    let mut acceptable: Vec<AttackFamily> = label.also_acceptable.iter().filter_map(|name| our_family(name)).collect();
    if label.family == "udp_reflection_other" {
        // Whatever its service is called.
        acceptable.extend(AttackFamily::ALL.iter().filter(|family| family.is_amplification()));
        acceptable.push(AttackFamily::MultiVector);
    }
    let expected = our_family(&label.family)?;
    let path = captures.path(label);
    let title = format!("{}, a real capture over and over", words(expected));
    let name = path.file_stem()?.to_str()?.to_owned();
    let played = scenario(name, title, Some(expected), REPLAY_PPS, Source::Capture { path, target });
    Some(Scenario { acceptable, ..played })
}

fn generated() -> Vec<Scenario> {
    let families = generate::all(Ipv4Addr::LOCALHOST, ATTACK_MAC, EDGE_MAC).into_iter().map(|attack| attack.family);
    let play = |family| {
        let title = format!("{}, generated", words(family));
        scenario(format!("generated_{family}"), title, Some(family), REPLAY_PPS, Source::Generated(family))
    };
    families.map(play).collect()
}

/// The flood that is over UDP.
pub(super) fn udp_flood() -> Scenario {
    let [_, udp] = floods();
    udp
}

fn floods() -> [Scenario; 2] {
    let (syn, udp) = (Some(AttackFamily::SynFlood), Some(AttackFamily::UdpFlood));
    let syn_title = "flood of forged SYNs at the HTTP server".into();
    [
        scenario("forged_syn_flood".into(), syn_title, syn, SYN_PPS, Source::SynFlood),
        scenario("forged_udp_flood".into(), "UDP flood from forged sources".into(), udp, UDP_PPS, Source::UdpFlood),
    ]
}

/// The project's word for a collector's.
fn our_family(label: &str) -> Option<AttackFamily> {
    match label {
        "synack_reflection" | "tcp_reflection" => Some(AttackFamily::SynAckFlood),
        "slowloris" => Some(AttackFamily::HttpFlood),
        "dhcp_flood" => Some(AttackFamily::UdpFlood),
        "udp_reflection_other" => Some(AttackFamily::UdpAmplification),
        word => word.parse().ok(),
    }
}

fn words(family: AttackFamily) -> String {
    family.as_str().replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capture_family_has_a_word_of_ours() {
        for family in REPLAYED {
            assert!(our_family(family).is_some(), "{family}");
        }
    }

    #[test]
    fn without_captures_there_are_at_least_five_attacks_and_the_floods() {
        assert!(generated().len() >= 5);
        let [syn, udp] = floods();
        assert!(syn.rate_pps >= 100_000 && syn.frames == 375_000);
        assert_eq!(udp.expected, Some(AttackFamily::UdpFlood));
    }

    #[test]
    fn every_attack_that_needs_no_capture_is_aimed_at_the_target() {
        let target = Target { v4: Ipv4Addr::new(10, 99, 0, 42), v6: Ipv6Addr::LOCALHOST };
        for scenario in generated().into_iter().chain(floods()) {
            let frames = match scenario.traffic(target).expect("no file is needed") {
                Traffic::Clean => panic!("{} is no attack", scenario.name),
                Traffic::Recording(recording) => recording.frames.into_iter().map(|f| f.bytes).collect(),
                Traffic::Flood { template, .. } => vec![template],
            };
            assert!(!frames.is_empty() && frames.iter().all(|f| f[30..34] == target.v4.octets()), "{}", scenario.name);
        }
    }

    #[test]
    fn names_of_scenarios_are_unique() {
        let mut names: Vec<String> = generated().into_iter().chain(floods()).map(|s| s.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
