//! What carries the datapath's rules where no program can be attached: which rung, why that one, and what it lacks. Pure.

use serde::{Deserialize, Serialize};

/// A way of carrying rules, the nearest to the wire first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// `netdev ftagent`: at the ingress of the interfaces, before the IP stack.
    NftablesIngress,
    /// `inet ftagent`: before routing and connection tracking, whatever the interface.
    Nftables,
}

impl Rung {
    /// In the order in which they are tried unless the configuration says otherwise.
    pub const ALL: [Self; 2] = [Self::NftablesIngress, Self::Nftables];

    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NftablesIngress => "nftables_ingress",
            Self::Nftables => "nftables",
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
        }
    }
}

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
                vec!["their packets are counted by nftables alone, and cost more to drop".to_owned()]
            }
        }
    }
}

/// The first of `order` that is `possible`, for `need`.
pub fn choose(need: &Need, order: &[Rung], mut possible: impl FnMut(Rung) -> Result<(), String>) -> Chosen {
    let mut skipped = Vec::new();
    let why = need.text();
    for rung in order {
        match possible(*rung) {
            Ok(()) => return Chosen { rung: Some(*rung), why, lost: need.lost_on(*rung), skipped },
            Err(fault) => skipped.push((*rung, fault)),
        }
    }
    Chosen { rung: None, why, lost: vec!["nothing is enforced".to_owned()], skipped }
}

impl Chosen {
    /// For people.
    pub fn text(&self) -> String {
        let skipped = self.skipped.iter().map(|(rung, why)| format!("; {} does not work: {why}", rung.as_str()));
        let rung = self.rung.map_or("none", Rung::as_str);
        format!("{rung} ({}): {}{}", self.why, self.lost.join("; "), skipped.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_works_in_the_order_asked_for_is_taken() {
        use Rung::{Nftables, NftablesIngress};
        for (order, works, chosen, skipped) in [
            (&Rung::ALL[..], &Rung::ALL[..], Some(NftablesIngress), &[][..]),
            (&Rung::ALL, &[Nftables], Some(Nftables), &[NftablesIngress]),
            (&[Nftables, NftablesIngress], &Rung::ALL, Some(Nftables), &[]),
            (&[NftablesIngress], &[Nftables], None, &[NftablesIngress]),
            (&Rung::ALL, &[], None, &Rung::ALL),
        ] {
            let need = Need::NoProgram(vec!["eth0".to_owned()]);
            let got = choose(&need, order, |rung| if works.contains(&rung) { Ok(()) } else { Err("no".to_owned()) });
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
            Ok(())
        });
        assert_eq!(asked, [Rung::NftablesIngress]);
        assert!(chosen.text().starts_with("nftables_ingress (3 rules are not in the kernel's maps"), "{chosen:?}");
    }
}
