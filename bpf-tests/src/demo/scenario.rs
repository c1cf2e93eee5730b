//! What is played: clean traffic, recorded or generated attacks, and two floods made by the BPF generator.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ftagent_common::packet::tcp_flag;
use ftagent_common::vocab::AttackFamily;

use super::Story;
use crate::captures::{Captures, Label};
use crate::generate;
use crate::generator::Vary;
use crate::meter::ATTACK_MAC;
use crate::packet::PacketBuilder;
use crate::replay::{Recording, Rewrite, Selection};

/// The protected node: the HTTP server listens here, and every attack goes here.
pub(super) const TARGET: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
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
    pub(super) traffic: Traffic,
    pub(super) rate_pps: u64,
    pub(super) frames: u64,
    pub(super) lasts: Duration,
}

/// The attack on the wire.
pub(super) enum Traffic {
    Clean,
    Recording(Recording),
    Flood { template: Vec<u8>, vary: Box<Vary> },
}

/// Everything, in the order of playing.
pub(super) fn all(story: &Story) -> anyhow::Result<Vec<Scenario>> {
    let mut scenarios = vec![Scenario {
        name: "clean".into(),
        title: "clean traffic alone".into(),
        expected: None,
        acceptable: Vec::new(),
        traffic: Traffic::Clean,
        rate_pps: 0,
        frames: 0,
        lasts: LASTS,
    }];
    match Captures::find()? {
        Some(captures) => scenarios.extend(recorded(&captures)?),
        None => {
            story.step("no folder of captures here: the attacks are generated ones");
            scenarios.extend(generated());
        }
    }
    scenarios.extend(floods());
    Ok(scenarios)
}

fn recorded(captures: &Captures) -> anyhow::Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for family in REPLAYED {
        let found = captures.class("attack").find(|label| label.family == family && target(label).is_some());
        let Some((label, target)) = found.and_then(|label| Some((label, target(label)?))) else { continue };
        let new = Rewrite {
            src_mac: ATTACK_MAC,
            dst_mac: EDGE_MAC,
            target_v4: Some(TARGET),
            target_v6: None,
            sources: Vec::new(),
        };
        let recording = Recording::load(&captures.path(label), &Selection::To(vec![target]), &new)?;
        let mut names = label.also_acceptable.iter().filter_map(|name| our_family(name)).collect::<Vec<_>>();
        let Some(expected) = our_family(family) else { continue };
        names.retain(|name| *name != expected);
        let title = format!("{} (capture, {} frames over and over)", words(expected), recording.frames.len());
        scenarios.push(replayed(format!("capture_{expected}"), title, expected, names, recording));
    }
    Ok(scenarios)
}

fn generated() -> Vec<Scenario> {
    let attacks = generate::all(TARGET, ATTACK_MAC, EDGE_MAC).into_iter();
    attacks
        .map(|attack| {
            let title = format!("{} (generated)", words(attack.family));
            let recording = Recording::from_frames(attack.frames);
            replayed(format!("generated_{}", attack.family), title, attack.family, Vec::new(), recording)
        })
        .collect()
}

fn replayed(
    name: String,
    title: String,
    expected: AttackFamily,
    acceptable: Vec<AttackFamily>,
    recording: Recording,
) -> Scenario {
    Scenario {
        name,
        title,
        expected: Some(expected),
        acceptable,
        traffic: Traffic::Recording(recording),
        rate_pps: REPLAY_PPS,
        frames: frames(REPLAY_PPS),
        lasts: LASTS,
    }
}

fn floods() -> [Scenario; 2] {
    let to_target = || PacketBuilder::v4([64, 0, 0, 1], TARGET).macs(ATTACK_MAC, EDGE_MAC);
    // Public unicast addresses: on a real network forged sources look like this, and here nothing leaves the lab.
    let forged = Some("64.0.0.0/3".parse().expect("a prefix"));
    let syn = Vary {
        sources: forged,
        source_ports: Some(1024..=65535),
        ttls: Some(40..=120),
        ip_id: true,
        ..Vary::default()
    };
    let udp = Vary { destination_ports: Some(1024..=65535), payload: true, ..syn.clone() };
    let flood = |name: &str, title: &str, family, template, vary, rate_pps| Scenario {
        name: name.into(),
        title: title.into(),
        expected: Some(family),
        acceptable: Vec::new(),
        traffic: Traffic::Flood { template, vary: Box::new(vary) },
        rate_pps,
        frames: frames(rate_pps),
        lasts: LASTS,
    };
    [
        flood(
            "forged_syn_flood",
            "flood of forged SYNs at the HTTP server",
            AttackFamily::SynFlood,
            to_target().tcp(1024, 80, tcp_flag::SYN).tcp_options(&[2, 4, 0x05, 0xb4]).build(),
            syn,
            SYN_PPS,
        ),
        flood(
            "udp_flood",
            "UDP flood from forged sources",
            AttackFamily::UdpFlood,
            to_target().udp(1024, 1024).payload(&[0x5a; 128]).build(),
            udp,
            UDP_PPS,
        ),
    ]
}

fn frames(rate_pps: u64) -> u64 {
    (u128::from(rate_pps) * LASTS.as_millis() / 1000) as u64
}

/// The capture's IPv4 target.
fn target(label: &Label) -> Option<IpAddr> {
    label.targets().into_iter().find(IpAddr::is_ipv4)
}

/// The project's word for a collector's.
fn our_family(label: &str) -> Option<AttackFamily> {
    match label {
        "synack_reflection" | "tcp_reflection" => Some(AttackFamily::SynAckFlood),
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
    fn names_of_scenarios_are_unique() {
        let mut names: Vec<String> = generated().into_iter().chain(floods()).map(|s| s.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
