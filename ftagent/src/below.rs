//! Where the programs go for the interfaces that the configuration names. Pure: the daemon asks the kernel and attaches.
//!
//! ```text
//! eth0.100 ─┐                    bond0 ─> bond0, if it takes a program natively
//! eth0.200 ─┴─> eth0             (team0)  else its ports: eth0, eth1
//! bond0.100 ─> bond0 ─> as above
//! ```
//!
//! A VLAN's own device takes generic mode alone, after the kernel has made a socket buffer of every frame; its parent
//! sees the same frames in the driver, with their tags, which the parser knows. Interfaces of one device share its
//! program and its counters.

use std::collections::BTreeSet;

use ftagent_common::abi::MAX_INTERFACES;
use ftagent_common::vocab::AttachMode;

use crate::host::{Interface, LinkKind};
use crate::xdp::program::{AttachChoice, InterfacePlan};

/// VLANs on VLANs on a bond: nobody has more, and a circle ends.
const DEPTH: u32 = 8;

/// One interface of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub name: String,
    pub choice: AttachChoice,
    /// Its program goes where it is, whatever lies below it.
    pub at_own_device: bool,
}

/// One device that gets a program, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub plan: InterfacePlan,
    /// The kernel's index; none while there is no such device.
    pub index: Option<u32>,
    /// Interfaces of the configuration, in its order.
    pub serves: Vec<String>,
    /// A bond or team that has not said yet whether it takes a program natively. Its plan asks for that mode alone; if
    /// it refuses, the ports are next.
    pub is_asked: bool,
    /// There are VLANs on it: frames may have lost their tags in the network card when a program sees them, so that
    /// none can be sent back.
    pub has_vlans: bool,
}

/// Why programs cannot be attached as the configuration says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BelowError {
    #[error("interfaces {first} and {second} share the device {device}, which cannot be attached in two ways")]
    Differ { first: String, second: String, device: String },
    #[error("the interfaces need programs at {count} devices, and there can be {MAX_INTERFACES}")]
    TooMany { count: usize },
}

/// The devices for `wanted`, each once, in the order of the configuration. `links` are all interfaces of the node; one
/// that is not among them is planned as it is named, so that attaching says that it does not exist. `by_ports` are the
/// bonds that take no program natively. A device that was among those `before` keeps the slot of its counters.
///
/// # Errors
/// See [`BelowError`].
pub fn devices(
    wanted: &[Wanted],
    links: &[Interface],
    by_ports: &BTreeSet<String>,
    before: &[Device],
) -> Result<Vec<Device>, BelowError> {
    let mut lowest: Vec<Shared> = Vec::new();
    for interface in wanted {
        share(&mut lowest, Shared::of(interface, links))?;
    }
    let mut asked = BTreeSet::new();
    let mut places: Vec<Shared> = Vec::new();
    for shared in lowest {
        let ports = ports(&shared, links);
        if ports.is_empty() {
            share(&mut places, shared)?;
        } else if by_ports.contains(&shared.device) {
            for port in ports {
                share(&mut places, Shared { device: port.name.clone(), ..shared.clone() })?;
            }
        } else {
            asked.insert(shared.device.clone());
            share(&mut places, Shared { choice: AttachChoice::Native, ..shared })?;
        }
    }
    if places.len() > MAX_INTERFACES as usize {
        return Err(BelowError::TooMany { count: places.len() });
    }
    let slot_before = |name: &str| before.iter().find(|device| device.plan.name == name).map(|device| device.plan.slot);
    let mut taken: BTreeSet<u32> = places.iter().filter_map(|place| slot_before(&place.device)).collect();
    let devices = places.into_iter().map(|place| {
        let free = || (0..MAX_INTERFACES).find(|slot| !taken.contains(slot));
        let slot = slot_before(&place.device).or_else(free).expect("no more devices than slots");
        taken.insert(slot);
        let link = links.iter().find(|link| link.name == place.device);
        Device {
            index: link.map(|link| link.index),
            is_asked: asked.contains(&place.device),
            has_vlans: link.is_some_and(|link| has_vlans(link, links)),
            serves: place.serves,
            plan: InterfacePlan { name: place.device, slot, choice: place.choice },
        }
    });
    Ok(devices.collect())
}

/// A device, and those of the configuration whose frames it brings.
#[derive(Clone)]
struct Shared {
    device: String,
    choice: AttachChoice,
    serves: Vec<String>,
    own: bool,
}

impl Shared {
    /// What lies below the VLANs of an interface.
    fn of(wanted: &Wanted, links: &[Interface]) -> Self {
        let own = wanted.at_own_device || wanted.choice == AttachChoice::Nftables;
        let mut device = wanted.name.as_str();
        for _ in 0..if own { 0 } else { DEPTH } {
            let Some(link) = links.iter().find(|link| link.name == device) else { break };
            let below = link.below.filter(|_| link.kind == LinkKind::Vlan);
            let Some(below) = below.and_then(|below| links.iter().find(|link| link.index == below)) else { break };
            device = &below.name;
        }
        Self { device: device.to_owned(), choice: wanted.choice, serves: vec![wanted.name.clone()], own }
    }
}

/// Adds to the devices. Of two choices for one the more definite counts, unless one of them is to have no program.
fn share(devices: &mut Vec<Shared>, new: Shared) -> Result<(), BelowError> {
    let Some(there) = devices.iter_mut().find(|there| there.device == new.device) else {
        devices.push(new);
        return Ok(());
    };
    there.choice = match (there.choice, new.choice) {
        (choice, other) if choice == other => choice,
        (AttachChoice::Auto, definite) | (definite, AttachChoice::Auto) if definite != AttachChoice::Nftables => {
            definite
        }
        _ => {
            return Err(BelowError::Differ {
                first: there.serves.first().cloned().unwrap_or_default(),
                second: new.serves.first().cloned().unwrap_or_default(),
                device: new.device,
            });
        }
    };
    there.own |= new.own;
    there.serves.extend(new.serves);
    Ok(())
}

/// The ports of a bond or team that could have the program in its place: in native mode alone, since generic mode and
/// tc see a bond's frames where they have become the bond's.
fn ports<'a>(shared: &Shared, links: &'a [Interface]) -> Vec<&'a Interface> {
    let bond = links.iter().find(|link| link.name == shared.device);
    let bond = bond.filter(|link| matches!(link.kind, LinkKind::Bond | LinkKind::Team) && !shared.own);
    let is_native = matches!(shared.choice, AttachChoice::Auto | AttachChoice::Native);
    let Some(bond) = bond.filter(|_| is_native) else { return Vec::new() };
    links.iter().filter(|port| port.controller == Some(bond.index)).collect()
}

fn has_vlans(link: &Interface, links: &[Interface]) -> bool {
    let on = |below: u32| links.iter().any(|other| other.kind == LinkKind::Vlan && other.below == Some(below));
    on(link.index) || link.controller.is_some_and(on)
}

/// The bonds whose ports have pinned programs while they have none: an earlier agent found that they take none, and
/// asking again would take the ports' programs away meanwhile.
pub fn by_ports_already(links: &[Interface], pinned: &[(AttachMode, String)]) -> BTreeSet<String> {
    let is_pinned = |name: &str| pinned.iter().any(|(_, pinned)| pinned == name);
    let bonds = links.iter().filter(|link| matches!(link.kind, LinkKind::Bond | LinkKind::Team));
    bonds
        .filter(|bond| !is_pinned(&bond.name))
        .filter(|bond| links.iter().any(|port| port.controller == Some(bond.index) && is_pinned(&port.name)))
        .map(|bond| bond.name.clone())
        .collect()
}

/// What programs are attached to, to be compared: a device that was made anew has another index.
pub fn attached_to(devices: &[Device]) -> Vec<(&str, Option<u32>)> {
    devices.iter().map(|device| (device.plan.name.as_str(), device.index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: LinkKind, below: Option<u32>, controller: Option<u32>) -> Interface {
        Interface { index, name: name.to_owned(), kind, below, controller, ..Interface::default() }
    }

    /// Two cards in a bond with two VLANs, one of them with a VLAN inside; a card with two VLANs; a team; an empty bond.
    fn links() -> Vec<Interface> {
        use LinkKind::{Bond, Other, Team, Vlan};
        vec![
            link(1, "lo", Other, None, None),
            link(2, "eth0", Other, None, Some(4)),
            link(3, "eth1", Other, None, Some(4)),
            link(4, "bond0", Bond, None, None),
            link(5, "bond0.7", Vlan, Some(4), None),
            link(6, "bond0.7.9", Vlan, Some(5), None),
            link(7, "eth2", Other, None, None),
            link(8, "eth2.100", Vlan, Some(7), None),
            link(9, "eth2.200", Vlan, Some(7), None),
            link(10, "eth3", Other, None, Some(11)),
            link(11, "team0", Team, None, None),
            link(12, "bond1", Bond, None, None),
            // Its card was moved into another namespace's hands.
            link(13, "far.5", Vlan, None, None),
            link(14, "mv0", Other, Some(7), None),
        ]
    }

    fn wanted(names: &[&str], choice: AttachChoice) -> Vec<Wanted> {
        names.iter().map(|name| Wanted { name: (*name).to_owned(), choice, at_own_device: false }).collect()
    }

    fn named(devices: &[Device]) -> Vec<String> {
        let one = |device: &Device| {
            let asked = if device.is_asked { "?" } else { "" };
            format!("{}>{}{asked}", device.serves.join("+"), device.plan.name)
        };
        devices.iter().map(one).collect()
    }

    #[test]
    fn each_interface_has_its_device() {
        let none: &[&str] = &[];
        type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str], &'a [&'a str]);
        let rows: [Row<'_>; 12] = [
            ("an ordinary one", &["eth2"], none, &["eth2>eth2"]),
            ("a VLAN", &["eth2.100"], none, &["eth2.100>eth2"]),
            ("two VLANs of one card", &["eth2.100", "eth2.200"], none, &["eth2.100+eth2.200>eth2"]),
            ("a VLAN and its card", &["eth2.100", "eth2"], none, &["eth2.100+eth2>eth2"]),
            ("a bond", &["bond0"], none, &["bond0>bond0?"]),
            ("a bond that refused", &["bond0"], &["bond0"], &["bond0>eth0", "bond0>eth1"]),
            ("a VLAN in a VLAN on a bond", &["bond0.7.9"], none, &["bond0.7.9>bond0?"]),
            ("the same, refused", &["bond0.7.9"], &["bond0"], &["bond0.7.9>eth0", "bond0.7.9>eth1"]),
            ("a team that refused", &["team0"], &["team0"], &["team0>eth3"]),
            ("a bond without ports", &["bond1"], none, &["bond1>bond1"]),
            ("what lies in another namespace", &["far.5"], none, &["far.5>far.5"]),
            ("no VLAN, and nothing of the kind", &["mv0", "eth9"], none, &["mv0>mv0", "eth9>eth9"]),
        ];
        for (name, interfaces, by_ports, expected) in rows {
            let by_ports = by_ports.iter().map(|name| (*name).to_owned()).collect();
            let found = devices(&wanted(interfaces, AttachChoice::Auto), &links(), &by_ports, &[]).expect(name);
            assert_eq!(named(&found), expected, "{name}");
            let slots: Vec<u32> = found.iter().map(|device| device.plan.slot).collect();
            assert_eq!(slots, (0..found.len() as u32).collect::<Vec<_>>(), "{name}: each device has its counters");
        }
    }

    #[test]
    fn a_bond_is_asked_natively_and_other_modes_go_to_itself() {
        for (choice, expected, asked) in [
            (AttachChoice::Auto, AttachChoice::Native, true),
            (AttachChoice::Native, AttachChoice::Native, true),
            (AttachChoice::Generic, AttachChoice::Generic, false),
            (AttachChoice::Tc, AttachChoice::Tc, false),
            (AttachChoice::Nftables, AttachChoice::Nftables, false),
        ] {
            let found = devices(&wanted(&["bond0"], choice), &links(), &BTreeSet::new(), &[]).expect("a plan");
            assert_eq!((found[0].plan.choice, found[0].is_asked), (expected, asked), "{choice:?}");
        }
        let refused = BTreeSet::from(["bond0".to_owned()]);
        let found = devices(&wanted(&["bond0"], AttachChoice::Auto), &links(), &refused, &[]).expect("a plan");
        assert!(found.iter().all(|device| device.plan.choice == AttachChoice::Auto), "ports fall back like any other");
    }

    #[test]
    fn an_interface_can_keep_its_program_to_itself() {
        let mut own = wanted(&["eth2.100", "eth2.200"], AttachChoice::Auto);
        own[0].at_own_device = true;
        let found = devices(&own, &links(), &BTreeSet::new(), &[]).expect("a plan");
        assert_eq!(named(&found), ["eth2.100>eth2.100", "eth2.200>eth2"]);
    }

    #[test]
    fn a_shared_device_is_attached_in_one_way() {
        use AttachChoice::{Auto, Generic, Native, Nftables, Tc};
        let rows = [
            (Auto, Generic, Some(Generic)),
            (Native, Auto, Some(Native)),
            (Tc, Tc, Some(Tc)),
            (Native, Generic, None),
            (Generic, Tc, None),
        ];
        for (first, second, expected) in rows {
            let mut both = wanted(&["eth2.100", "eth2.200"], first);
            both[1].choice = second;
            let found = devices(&both, &links(), &BTreeSet::new(), &[]);
            assert_eq!(found.ok().map(|found| found[0].plan.choice), expected, "{first:?} and {second:?}");
        }
        // A device is not without a program for one and with it for the other.
        let mut both = wanted(&["eth2", "eth2.100"], Nftables);
        both[1].choice = Auto;
        let error = devices(&both, &links(), &BTreeSet::new(), &[]).expect_err("refused").to_string();
        assert!(error.contains("eth2 and eth2.100 share the device eth2"), "{error}");
    }

    #[test]
    fn a_devices_counters_stay_its_own_when_others_come_and_go() {
        let refused = BTreeSet::from(["bond0".to_owned()]);
        let plan = |names: &[&str], before: &[Device]| {
            devices(&wanted(names, AttachChoice::Auto), &links(), &refused, before).expect("a plan")
        };
        let slots = |devices: &[Device]| {
            devices.iter().map(|device| format!("{} {}", device.plan.name, device.plan.slot)).collect::<Vec<_>>()
        };
        let before = plan(&["eth2", "bond0"], &[]);
        assert_eq!(slots(&before), ["eth2 0", "eth0 1", "eth1 2"]);
        assert_eq!(slots(&plan(&["bond0", "team0"], &before)), ["eth0 1", "eth1 2", "team0 0"]);
    }

    #[test]
    fn frames_of_vlans_are_known_where_they_come_in() {
        let refused = BTreeSet::from(["bond0".to_owned()]);
        let has = |name: &str| {
            let found = devices(&wanted(&[name], AttachChoice::Auto), &links(), &refused, &[]).expect("a plan");
            found.iter().map(|device| device.has_vlans).collect::<Vec<_>>()
        };
        assert_eq!(has("eth2"), [true]);
        assert_eq!(has("bond0"), [true, true], "tags come in by the ports");
        assert_eq!(has("team0"), [false]);
        assert_eq!(has("lo"), [false]);
    }

    #[test]
    fn what_an_earlier_agent_found_out_of_a_bond_is_kept() {
        let pinned = |names: &[&str]| names.iter().map(|n| (AttachMode::Native, (*n).to_owned())).collect::<Vec<_>>();
        assert_eq!(by_ports_already(&links(), &pinned(&["eth0", "eth1"])), BTreeSet::from(["bond0".to_owned()]));
        assert!(by_ports_already(&links(), &pinned(&["bond0"])).is_empty());
        assert!(by_ports_already(&links(), &pinned(&["bond0", "eth0"])).is_empty(), "the bond takes it");
        assert!(by_ports_already(&links(), &pinned(&["eth2"])).is_empty());
        assert!(by_ports_already(&links(), &[]).is_empty());
    }

    #[test]
    fn a_circle_ends() {
        let circle = [link(1, "a", LinkKind::Vlan, Some(2), None), link(2, "b", LinkKind::Vlan, Some(1), None)];
        assert_eq!(
            devices(&wanted(&["a"], AttachChoice::Auto), &circle, &BTreeSet::new(), &[]).expect("ends").len(),
            1
        );
    }

    #[test]
    fn there_are_no_more_devices_than_places_for_their_counters() {
        let mut links = vec![link(1, "bond0", LinkKind::Bond, None, None)];
        links.extend((0..40).map(|n| link(n + 2, &format!("eth{n}"), LinkKind::Other, None, Some(1))));
        let refused = BTreeSet::from(["bond0".to_owned()]);
        let found = devices(&wanted(&["bond0"], AttachChoice::Auto), &links, &refused, &[]);
        assert_eq!(found, Err(BelowError::TooMany { count: 40 }));
    }
}
