//! What carries the datapath's rules where no program can be attached: which rung, why that one, and what it lacks. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::RuleId;

/// A way of carrying rules, the nearest to the wire first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// `netdev ftagent`: at the ingress of the interfaces, before the IP stack.
    NftablesIngress,
    /// `inet ftagent`: before routing and connection tracking, whatever the interface.
    Nftables,
    /// Filters of traffic control at the ingress of the interfaces.
    Tc,
    /// Blackhole routes: of sources alone.
    NullRoute,
}

impl Rung {
    /// In the order in which they are tried unless the configuration says otherwise.
    pub const ALL: [Self; 4] = [Self::NftablesIngress, Self::Nftables, Self::Tc, Self::NullRoute];

    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NftablesIngress => "nftables_ingress",
            Self::Nftables => "nftables",
            Self::Tc => "tc",
            Self::NullRoute => "null_route",
        }
    }

    /// What is less precise than with a program, in an operator's words.
    pub fn lost(self) -> &'static [&'static str] {
        match self {
            Self::NftablesIngress => &[
                "nothing is counted or sampled: attacks are not detected",
                "lists and decisions of CrowdSec are not enforced",
                "rules on payload or DSCP, the TCP gate and limits of heavy sources are left out",
                "frames with VLAN tags pass where the tag's device is not the interface itself",
            ],
            Self::Nftables => &[
                "nothing is counted or sampled: attacks are not detected",
                "lists and decisions of CrowdSec are not enforced",
                "rules on payload or DSCP, the TCP gate and limits of heavy sources are left out",
                "packets are dropped after the IP stack has taken them, at more cost, whatever interface they came by",
            ],
            Self::Tc => &[
                "nothing is counted or sampled: attacks are not detected",
                "lists and decisions of CrowdSec are not enforced",
                "rules on payload or lengths, ports of fragments, the TCP gate and limits of heavy sources are left out",
                "frames with VLAN tags pass where the tag's device is not the interface itself",
                "a limit counts for each interface, family and protocol alone, and what the driver put together as one \
                 packet",
                "who is allowed skips the filters of others that stand behind",
                ENDS,
            ],
            Self::NullRoute => &[
                "nothing is counted or sampled: attacks are not detected",
                "lists and decisions of CrowdSec are not enforced",
                "only blocks of sources are carried: no limit, no rule of a target, port or protocol",
                "nobody here reaches a blocked source, and its packets are dropped by routing, at more cost, whatever \
                 interface they came by",
                "IPv4 sources that no route leads to are dropped as well: rp_filter is set to 2 where it is 0",
                "IPv6 packets to the node itself pass, and only the answers are dropped; what it forwards is dropped",
                ENDS,
            ],
        }
    }
}

/// Of the rungs whose objects have no end in the kernel.
const ENDS: &str = "rules end by the agent alone: all are taken away when it stops, and stay when it is killed until it \
                    starts again or `ftagent detach`";

/// Of many rules that are not in force, so many are named.
const MAX_NAMED: usize = 16;

/// The rung that was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// Absent: none works, and nothing is enforced.
    pub rung: Option<Rung>,
    /// What it is needed for, in an operator's words.
    pub why: String,
    /// What is less precise on it.
    pub lost: Vec<String>,
    /// Rungs above it that do not work here, and why.
    pub skipped: Vec<(Rung, String)>,
    /// Rules that it cannot carry, and why; of many the first, and how many more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_in_force: Vec<String>,
}

/// What a rung is needed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// These interfaces have no program: for every rule.
    NoProgram(Vec<String>),
    /// So many rules have no entry in the kernel's maps, as when these are full: for them, on these interfaces.
    NoRoom { rules: usize, devices: Vec<String> },
}

impl Need {
    /// The interfaces that rules are needed on.
    pub fn devices(&self) -> &[String] {
        match self {
            Self::NoProgram(devices) | Self::NoRoom { devices, .. } => devices,
        }
    }

    /// Whether the same rung serves both.
    pub fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.devices() == other.devices()
    }

    /// In an operator's words.
    pub fn text(&self) -> String {
        match self {
            Self::NoProgram(devices) => format!("{} without a program", devices.join(", ")),
            Self::NoRoom { rules, .. } => format!("{rules} rules are not in the kernel's maps"),
        }
    }

    fn lost_on(&self, rung: Rung) -> Vec<String> {
        match self {
            Self::NoProgram(_) => rung.lost().iter().map(|lost| (*lost).to_owned()).collect(),
            Self::NoRoom { .. } => {
                let mut lost = vec!["their packets are not counted here, and cost more to drop".to_owned()];
                // What this rung does to others, too.
                if matches!(rung, Rung::Tc | Rung::NullRoute) {
                    lost.extend(rung.lost().iter().skip(2).map(|lost| (*lost).to_owned()));
                }
                lost
            }
        }
    }
}

/// The first of `order` that is `possible`, for `need`; `possible` says what else is lost by it on this machine.
pub fn choose(need: &Need, order: &[Rung], mut possible: impl FnMut(Rung) -> Result<Vec<String>, String>) -> Chosen {
    let mut skipped = Vec::new();
    let why = need.text();
    for rung in order {
        match possible(*rung) {
            Ok(more) => {
                let lost = [need.lost_on(*rung), more].concat();
                return Chosen { rung: Some(*rung), why, lost, skipped, not_in_force: Vec::new() };
            }
            Err(fault) => skipped.push((*rung, fault)),
        }
    }
    let lost = vec!["nothing is enforced".to_owned()];
    Chosen { rung: None, why, lost, skipped, not_in_force: Vec::new() }
}

impl Chosen {
    /// Names the rules that are not in force.
    pub fn name(&mut self, failing: &BTreeMap<RuleId, String>) {
        self.not_in_force = failing.iter().take(MAX_NAMED).map(|(id, why)| format!("rule {}: {why}", id.0)).collect();
        if failing.len() > MAX_NAMED {
            self.not_in_force.push(format!("and {} more", failing.len() - MAX_NAMED));
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let skipped = self.skipped.iter().map(|(rung, why)| format!("; {} does not work: {why}", rung.as_str()));
        let rung = self.rung.map_or("none", Rung::as_str);
        let named = if self.not_in_force.is_empty() { "" } else { "; NOT IN FORCE: " };
        let (lost, rules) = (self.lost.join("; "), self.not_in_force.join("; "));
        format!("{rung} ({}): {lost}{}{named}{rules}", self.why, skipped.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_works_in_the_order_asked_for_is_taken() {
        use Rung::{Nftables, NftablesIngress, NullRoute, Tc};
        for (order, works, chosen, skipped) in [
            (&Rung::ALL[..], &Rung::ALL[..], Some(NftablesIngress), &[][..]),
            (&Rung::ALL, &[Nftables], Some(Nftables), &[NftablesIngress]),
            (&[Nftables, NftablesIngress], &Rung::ALL, Some(Nftables), &[]),
            (&[NftablesIngress], &[Nftables], None, &[NftablesIngress]),
            (&Rung::ALL, &[NullRoute, Tc], Some(Tc), &[NftablesIngress, Nftables]),
            (&Rung::ALL, &[NullRoute], Some(NullRoute), &[NftablesIngress, Nftables, Tc]),
            (&Rung::ALL, &[], None, &Rung::ALL),
        ] {
            let need = Need::NoProgram(vec!["eth0".to_owned()]);
            let got =
                choose(&need, order, |rung| if works.contains(&rung) { Ok(vec![]) } else { Err("no".to_owned()) });
            let names: Vec<Rung> = got.skipped.iter().map(|(rung, _)| *rung).collect();
            assert_eq!((got.rung, &names[..]), (chosen, skipped), "{order:?} of {works:?}");
            assert!(!got.lost.is_empty() && got.text().contains(chosen.map_or("none", Rung::as_str)));
        }
    }

    #[test]
    fn no_rung_is_asked_after_the_one_that_works() {
        let mut asked = Vec::new();
        let need = Need::NoRoom { rules: 3, devices: vec!["eth0".to_owned()] };
        let chosen = choose(&need, &Rung::ALL, |rung| {
            asked.push(rung);
            Ok(vec!["more".to_owned()])
        });
        assert_eq!(asked, [Rung::NftablesIngress]);
        assert!(chosen.text().starts_with("nftables_ingress (3 rules are not in the kernel's maps"), "{chosen:?}");
        assert!(chosen.text().ends_with("; more"), "{chosen:?}");
    }

    #[test]
    fn rules_that_are_not_in_force_are_named_up_to_a_bound() {
        let need = Need::NoProgram(vec!["eth0".to_owned()]);
        let mut chosen = choose(&need, &Rung::ALL, |_| Ok(Vec::new()));
        let failing = |count: u64| (1..=count).map(|id| (RuleId(id), "no limits".to_owned())).collect();
        chosen.name(&failing(1));
        assert!(chosen.text().ends_with("; NOT IN FORCE: rule 1: no limits"), "{}", chosen.text());
        chosen.name(&failing(20));
        assert_eq!((chosen.not_in_force.len(), chosen.not_in_force[16].as_str()), (17, "and 4 more"));
        chosen.name(&failing(0));
        assert!(!chosen.text().contains("NOT IN FORCE"));
    }
}
