//! The table of nftables for rules that ask for it, and the rungs of the ladder, of which one carries the datapath's where
//! no program can be attached or its maps have no room. The worker's; every call may wait for the kernel.

use std::collections::BTreeSet;
use std::path::Path;

use tracing::{info, warn};

use super::ladder::{Chosen, Need, Rung, choose};
use super::nftables::{Nftables, OfDatapath, Place};
use super::null_route::NullRoute;
use super::tc::Tc;
use crate::engine::{EnforceResult, Now, Point, Rule, RuleId, RuleSet};
use crate::xdp::program::interface_index;

/// Of the looks, ten seconds apart, between two tries of other rungs.
const MAX_DOUBLINGS: u32 = 5;

/// Who carries which rules.
pub(super) struct Carriers {
    order: Vec<Rung>,
    /// `inet ftagent`.
    nftables: Nftables,
    /// `netdev ftagent`.
    ingress: Nftables,
    tc: Tc,
    null_route: NullRoute,
    devices: Devices,
    overflow: BTreeSet<RuleId>,
    need: Option<Need>,
    chosen: Option<Chosen>,
    /// Every rule that the chosen rung was to carry at the last call is not in force.
    is_failing: bool,
    patience: Patience,
}

/// How long what does not work is put up with.
#[derive(Debug, Default)]
struct Patience {
    /// Looks since it began or since the last try.
    looks: u32,
    tries: u32,
}

impl Patience {
    /// Takes the newest look, and says whether another rung is to be tried: at once where none works, after three looks
    /// where one fails, and twice as late after each try, up to a quarter of an hour.
    fn is_over(&mut self, works: bool, is_there_one: bool) -> bool {
        if works {
            *self = Self::default();
            return false;
        }
        self.looks += 1;
        let needed = (if is_there_one { 3 } else { 1 }) << self.tries.min(MAX_DOUBLINGS);
        let is_over = self.looks >= needed;
        if is_over {
            (self.looks, self.tries) = (0, self.tries.saturating_add(1));
        }
        is_over
    }
}

/// The interfaces that are watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    pub all: Vec<String>,
    /// Those of them without a program.
    pub bare: Vec<String>,
}

impl Carriers {
    /// Carries what asks for nftables, and tries rungs in `order` when there is need of one; what has to be set back is
    /// remembered in `state_dir`.
    pub(super) fn new(order: Vec<Rung>, state_dir: &Path) -> Self {
        Self {
            order,
            nftables: Nftables::new(false),
            ingress: Nftables::at_ingress(Vec::new()),
            tc: Tc::default(),
            null_route: NullRoute::new(state_dir),
            devices: Devices::default(),
            overflow: BTreeSet::new(),
            need: None,
            chosen: None,
            is_failing: false,
            patience: Patience::default(),
        }
    }

    /// Looks whether another rung should carry the rules: where none works, or all fail on the one that was chosen. The
    /// next [`Self::reconcile`] moves them.
    pub(super) fn look(&mut self) {
        let (Some(need), Some(chosen)) = (self.need.clone(), &self.chosen) else { return };
        let (rung, failing) = (chosen.rung, chosen.not_in_force.clone());
        if !self.patience.is_over(rung.is_some() && !self.is_failing, rung.is_some()) {
            return;
        }
        let why = format!("every rule failed on it: {}", failing.join("; "));
        let other = self.choose(&need, |one| (Some(one) == rung).then(|| why.clone()));
        // One that fails is better than none.
        if other.rung.is_some() {
            announce(&other);
            self.chosen = Some(other);
            self.decide();
        }
    }

    fn choose(&mut self, need: &Need, fault: impl Fn(Rung) -> Option<String>) -> Chosen {
        let (tc, null_route) = (&mut self.tc, &mut self.null_route);
        let devices = need.devices();
        choose(need, &self.order, |rung| match (fault(rung), rung) {
            (Some(why), _) => Err(why),
            (None, Rung::NftablesIngress) => try_ingress(devices),
            (None, Rung::Nftables) => try_table(&Place::Prerouting),
            (None, Rung::Tc) => tc.prepare(devices),
            (None, Rung::NullRoute) => null_route.prepare(devices),
        })
    }

    /// Takes every rule of the datapath's while an interface has no program; the next [`Self::reconcile`] does it.
    pub(super) fn set_devices(&mut self, devices: Devices) {
        self.devices = devices;
        // What works may be another thing now.
        self.need = None;
        self.decide();
    }

    /// Takes these rules of the datapath's, which has no room for them.
    pub(super) fn set_overflow(&mut self, overflow: BTreeSet<RuleId>) {
        self.overflow = overflow;
        self.decide();
    }

    /// The rung that carries rules of the datapath's, where one has to.
    pub(super) fn chosen(&self) -> Option<Chosen> {
        self.chosen.clone()
    }

    fn decide(&mut self) {
        let need = if !self.devices.bare.is_empty() {
            Some(Need::NoProgram(self.devices.bare.clone()))
        } else if !self.overflow.is_empty() && !self.devices.all.is_empty() {
            Some(Need::NoRoom { rules: self.overflow.len(), devices: self.devices.all.clone() })
        } else {
            None
        };
        let is_same = match (&self.need, &need) {
            (Some(before), Some(now)) => before.is_like(now),
            (before, now) => before.is_none() && now.is_none(),
        };
        if let (true, Some(chosen), Some(need)) = (is_same, &mut self.chosen, &need) {
            chosen.why = need.text();
        } else if !is_same || need.is_none() {
            self.patience = Patience::default();
            self.chosen = need.as_ref().map(|need| self.choose(need, |_| None));
            if let Some(chosen) = &self.chosen {
                announce(chosen);
            }
        }
        let rung = self.chosen.as_ref().and_then(|chosen| chosen.rung);
        let carried = match &need {
            Some(Need::NoProgram(_)) => OfDatapath::All,
            Some(Need::NoRoom { .. }) => OfDatapath::These(self.overflow.clone()),
            None => OfDatapath::None,
        };
        let at = |here| if rung == Some(here) { carried.clone() } else { OfDatapath::None };
        self.nftables.set_fallback(at(Rung::Nftables));
        self.ingress.set_fallback(at(Rung::NftablesIngress));
        let devices = need.as_ref().map(Need::devices).unwrap_or_default();
        self.tc.set(at(Rung::Tc), devices);
        self.null_route.set(at(Rung::NullRoute), devices);
        if rung == Some(Rung::NftablesIngress) {
            self.ingress.set_devices(devices.to_vec());
        }
        self.need = need;
    }

    /// Brings every rung to `desired`, the one that carries rules first, so that nothing passes in between.
    pub(super) fn reconcile(&mut self, desired: &RuleSet, now: Now) -> Vec<EnforceResult> {
        let rung = self.chosen.as_ref().and_then(|chosen| chosen.rung);
        let mut order = Rung::ALL;
        order.sort_by_key(|one| Some(*one) != rung);
        let mut results = Vec::new();
        for one in order {
            results.extend(match one {
                Rung::NftablesIngress => self.ingress.reconcile(desired, now),
                Rung::Nftables => self.nftables.reconcile(desired, now),
                Rung::Tc => self.tc.reconcile(desired, now),
                Rung::NullRoute => self.null_route.reconcile(desired, now),
            });
        }
        if let Some(chosen) = &mut self.chosen {
            match rung {
                Some(Rung::NftablesIngress) => {
                    chosen.name(self.ingress.failing());
                    let missing = self.ingress.missing();
                    chosen.not_in_force.extend(missing.iter().map(|name| format!("all on {name}: there is none now")));
                }
                Some(Rung::Nftables) => chosen.name(self.nftables.failing()),
                Some(Rung::Tc) => chosen.name(self.tc.failing()),
                Some(Rung::NullRoute) => chosen.name(self.null_route.failing()),
                None => {}
            }
        }
        self.is_failing = rung.is_some_and(|rung| {
            let failing = match rung {
                Rung::NftablesIngress => self.ingress.failing(),
                Rung::Nftables => self.nftables.failing(),
                Rung::Tc => self.tc.failing(),
                Rung::NullRoute => self.null_route.failing(),
            };
            let mut carried = desired.rules.values().filter(|rule| self.carries(rule)).peekable();
            carried.peek().is_some() && carried.all(|rule| failing.contains_key(&rule.id))
        });
        // What one carrier lets go of because another has it is no end of the rule.
        let goes_on = |result: &EnforceResult| {
            let rule = desired.rules.get(&result.rule);
            rule.is_some_and(|rule| rule.expires_at_ns.is_none_or(|end| end > now.mono_ns))
        };
        results.retain(|result| result.installed || !goes_on(result));
        results
    }

    /// Whether a rung has to carry this rule.
    fn carries(&self, rule: &Rule) -> bool {
        rule.point == Point::Datapath
            && match &self.need {
                Some(Need::NoProgram(_)) => true,
                Some(Need::NoRoom { .. }) => self.overflow.contains(&rule.id),
                None => false,
            }
    }

    /// Takes away what the kernel would keep for ever: nobody would end it.
    pub(super) fn leave(&mut self) {
        let Self { tc, null_route, .. } = self;
        for left in [persist_in(|| tc.remove_all()), persist_in(|| null_route.remove_all())] {
            if let Err(error) = left {
                warn!(%error, "a rung of the ladder is not taken away; `ftagent detach` tries again");
            }
        }
    }
}

/// Tries more than once: nobody comes back to it.
fn persist_in(mut remove: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    remove().or_else(|_| remove()).or_else(|_| remove())
}

fn announce(chosen: &Chosen) {
    match chosen.rung {
        None => warn!(chosen = chosen.text(), "no rung carries these rules"),
        Some(_) => info!(chosen = chosen.text(), "a rung carries rules of the datapath"),
    }
}

/// A device that is gone for the moment holds up none of the others.
fn try_ingress(devices: &[String]) -> Result<Vec<String>, String> {
    let place = Place::Ingress(devices.to_vec());
    let present = place.present(|name| interface_index(name).is_some());
    try_table(&place).or_else(|why| if present == Place::Ingress(Vec::new()) { Err(why) } else { try_table(&present) })
}

fn try_table(place: &Place) -> Result<Vec<String>, String> {
    Nftables::try_at(place).map(|()| Vec::new()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use ftagent_common::api::AllowEntry;

    use super::*;
    use crate::clock;
    use crate::engine::{Matches, Origin, Verdict};
    use crate::test_ground::{in_an_empty_network, run};

    fn rule(id: u64, point: Point) -> Rule {
        Rule {
            id: RuleId(id),
            matches: Matches::source(format!("198.51.100.{id}/32").parse().expect("a prefix")),
            verdict: Verdict::Drop,
            point,
            origin: Origin::Operator,
            expires_at_ns: None,
            evaluate: false,
        }
    }

    /// Nothing is saved there.
    fn dir() -> std::path::PathBuf {
        "/nonexistent".into()
    }

    /// One rule for each point, and an allowlist.
    fn wanted() -> RuleSet {
        let allow = AllowEntry { prefix: "203.0.113.0/24".parse().expect("a prefix"), label: String::new() };
        let rules = [rule(1, Point::Datapath), rule(2, Point::Nftables)];
        RuleSet { rules: rules.map(|rule| (rule.id, rule)).into(), allow: vec![allow], ..RuleSet::default() }
    }

    /// What came into force and what ended.
    fn told(results: &[EnforceResult]) -> Vec<(u64, bool)> {
        for result in results {
            assert_eq!(result.result, Ok(()), "{result:?}");
        }
        results.iter().map(|result| (result.rule.0, result.installed)).collect()
    }

    /// The families of our tables, each with the rules in it.
    fn tables() -> Vec<(&'static str, bool, bool)> {
        let all = run("nft", &["list", "ruleset"]);
        let table = |family: &'static str| {
            let text = all.split("table ").find(|text| text.starts_with(&format!("{family} ftagent")))?;
            Some((family, text.contains("ftagent:1"), text.contains("ftagent:2")))
        };
        ["inet", "netdev"].into_iter().filter_map(table).collect()
    }

    #[test]
    fn rules_move_from_rung_to_rung_and_never_end_by_it() {
        in_an_empty_network(|| {
            run("ip", &["link", "set", "lo", "up"]);
            run("nft", &["add", "table", "netdev", "somebody"]);
            let before = run("nft", &["-s", "list", "ruleset"]);
            let wanted = wanted();
            let devices = |bare: &[&str]| Devices {
                all: vec!["lo".to_owned()],
                bare: bare.iter().map(|name| (*name).to_owned()).collect(),
            };
            let mut carriers = Carriers::new(Rung::ALL.to_vec(), &dir());
            assert_eq!(told(&carriers.reconcile(&wanted, clock::now())), [(2, true)], "the datapath has the other");
            carriers.set_devices(devices(&["lo"]));
            let chosen = carriers.chosen().expect("one is needed");
            assert_eq!((chosen.rung, chosen.skipped.len()), (Some(Rung::NftablesIngress), 0));
            assert_eq!(told(&carriers.reconcile(&wanted, clock::now())), [(1, true)]);
            assert_eq!(tables(), [("inet", false, true), ("netdev", true, false)]);
            // An heir whose configuration wants the other one.
            let mut heir = Carriers::new(vec![Rung::Nftables], &dir());
            heir.set_devices(devices(&["lo"]));
            assert_eq!(heir.chosen().and_then(|chosen| chosen.rung), Some(Rung::Nftables));
            assert_eq!(told(&heir.reconcile(&wanted, clock::now())), [(1, true), (2, true)]);
            assert_eq!(tables(), [("inet", true, true)]);
            assert_eq!(told(&heir.reconcile(&wanted, clock::now())), []);
            // A program is attached again: the rule goes on in the datapath.
            heir.set_devices(devices(&[]));
            assert_eq!(heir.chosen(), None);
            assert_eq!(told(&heir.reconcile(&wanted, clock::now())), []);
            assert_eq!(tables(), [("inet", false, true)]);
            assert_eq!(told(&heir.reconcile(&RuleSet::default(), clock::now())), [(2, false)]);
            assert_eq!(run("nft", &["-s", "list", "ruleset"]), before, "what is somebody else's is as it was");
        });
    }

    #[test]
    fn what_is_taken_away_for_good_is_tried_three_times() {
        for (failures, tries, is_done) in [(0, 1, true), (2, 3, true), (9, 3, false)] {
            let mut tried = 0;
            let done = persist_in(|| {
                tried += 1;
                if tried > failures { Ok(()) } else { Err("busy".to_owned()) }
            });
            assert_eq!((tried, done.is_ok()), (tries, is_done), "{failures}");
        }
    }

    #[test]
    fn a_rung_that_does_not_work_is_skipped_and_said() {
        in_an_empty_network(|| {
            let mut carriers = Carriers::new(Rung::ALL.to_vec(), &dir());
            carriers.set_devices(Devices { all: Vec::new(), bare: vec!["far-too-long-a-name".to_owned()] });
            let chosen = carriers.chosen().expect("one is needed");
            assert_eq!(chosen.rung, Some(Rung::Nftables));
            assert!(chosen.text().contains("nftables_ingress does not work"), "{}", chosen.text());
            told(&carriers.reconcile(&wanted(), clock::now()));
            assert_eq!(tables(), [("inet", true, true)]);
            let mut carriers = Carriers::new(vec![Rung::NftablesIngress], &dir());
            carriers.set_devices(Devices { all: Vec::new(), bare: vec!["far-too-long-a-name".to_owned()] });
            let chosen = carriers.chosen().expect("one is needed");
            assert_eq!((chosen.rung, chosen.lost), (None, vec!["nothing is enforced".to_owned()]));
        });
    }

    #[test]
    fn what_does_not_work_is_put_up_with_for_a_while() {
        let looks = |is_there_one| {
            let mut patience = Patience::default();
            (1..=200).filter(|_| patience.is_over(false, is_there_one)).collect::<Vec<u32>>()
        };
        assert_eq!(looks(false)[..4], [1, 3, 7, 15]);
        assert_eq!(looks(true)[..4], [3, 9, 21, 45]);
        let mut patience = Patience { looks: 2, tries: 3 };
        assert!(!patience.is_over(true, true) && (patience.looks, patience.tries) == (0, 0));
    }

    #[test]
    fn a_rung_that_begins_to_work_is_taken_and_one_that_fails_gives_way() {
        in_an_empty_network(|| {
            run("ip", &["link", "set", "lo", "up"]);
            let mut carriers = Carriers::new(vec![Rung::NftablesIngress], &dir());
            carriers.set_devices(Devices { all: Vec::new(), bare: vec!["far-too-long-a-name".to_owned()] });
            let rung = |carriers: &Carriers| carriers.chosen().and_then(|chosen| chosen.rung);
            carriers.look();
            assert_eq!(rung(&carriers), None, "it does not work yet");
            // As if the kernel could meanwhile.
            carriers.need = Some(Need::NoProgram(vec!["lo".to_owned()]));
            carriers.devices.bare = vec!["lo".to_owned()];
            (0..2).for_each(|_| carriers.look());
            assert_eq!(rung(&carriers), Some(Rung::NftablesIngress));
            told(&carriers.reconcile(&wanted(), clock::now()));
            (0..10).for_each(|_| carriers.look());
            assert_eq!(rung(&carriers), Some(Rung::NftablesIngress), "it works");
            // All that it should carry fails.
            carriers.order = vec![Rung::NftablesIngress, Rung::Nftables];
            carriers.ingress.set_devices(vec!["far-too-long-a-name".to_owned()]);
            carriers.reconcile(&wanted(), clock::now());
            (0..2).for_each(|_| carriers.look());
            assert_eq!(rung(&carriers), Some(Rung::NftablesIngress));
            carriers.look();
            let chosen = carriers.chosen().expect("one is needed");
            assert_eq!(chosen.rung, Some(Rung::Nftables));
            assert!(chosen.text().contains("nftables_ingress does not work: every rule failed on it: rule 1: "));
            assert!(carriers.reconcile(&wanted(), clock::now()).iter().all(|result| result.result.is_ok()));
        });
    }

    #[test]
    fn rules_without_room_are_carried_until_there_is_some() {
        in_an_empty_network(|| {
            run("ip", &["link", "set", "lo", "up"]);
            let before = run("nft", &["-s", "list", "ruleset"]);
            let mut wanted = wanted();
            wanted.rules.insert(RuleId(3), rule(3, Point::Datapath));
            let mut carriers = Carriers::new(Rung::ALL.to_vec(), &dir());
            carriers.set_devices(Devices { all: vec!["lo".to_owned()], bare: Vec::new() });
            assert_eq!(told(&carriers.reconcile(&wanted, clock::now())), [(2, true)]);
            assert_eq!(carriers.chosen(), None);
            carriers.set_overflow([RuleId(1)].into());
            assert_eq!(told(&carriers.reconcile(&wanted, clock::now())), [(1, true)]);
            assert_eq!(tables(), [("inet", false, true), ("netdev", true, false)]);
            assert!(!run("nft", &["list", "ruleset"]).contains("ftagent:3"), "the datapath has it");
            assert!(carriers.chosen().is_some_and(|chosen| chosen.why.starts_with("1 rules")));
            carriers.set_overflow(BTreeSet::new());
            assert_eq!(told(&carriers.reconcile(&wanted, clock::now())), [], "it goes on in the datapath");
            assert_eq!(tables(), [("inet", false, true)]);
            told(&carriers.reconcile(&RuleSet::default(), clock::now()));
            assert_eq!(run("nft", &["-s", "list", "ruleset"]), before);
        });
    }
}
