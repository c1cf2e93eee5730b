//! Who is never to be blocked stands before what blocks everybody, however plans change and whoever meddles: tools in
//! which places and order decide, on a model of tc and ufw.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ftagent::actions::keeper::Keeper;
use ftagent::actions::runner::{Ran, Runner};
use ftagent::engine::Outcome;
use ftagent_common::api::{Action, NodeMeans, PreviewContext, ToolStep, preview};
use ftagent_lab::floods::Dice;
use ipnet::IpNet;

use super::{LATER_NS, open, outcomes, wanted};

const POLICE: &str = r#"{"type":"tc_police_interface","interface":"eth0","bps":8000}"#;
const DENY: &str = r#"{"type":"ufw_deny_protocol","protocol":"tcp"}"#;
const A: &str = "192.0.2.1/32";
const B: &str = "192.0.2.2/32";
const C: &str = "192.0.2.3/32";
const SIX: &str = "2001:db8:7::/48";

#[derive(Default)]
struct Tools {
    has_qdisc: bool,
    /// By preference; one that is added twice is there twice.
    filters: BTreeMap<u32, Vec<String>>,
    /// The first that matches decides.
    ufw: Vec<String>,
    /// Whom what is in force met at any time.
    watched: Vec<IpNet>,
    met: Vec<String>,
}

impl Tools {
    fn run(&mut self, argv: &[String]) -> (i32, String) {
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["tc", "qdisc", "add", ..] => (i32::from(std::mem::replace(&mut self.has_qdisc, true)), String::new()),
            ["tc", "qdisc", "del", ..] => {
                self.filters.clear();
                (i32::from(!std::mem::take(&mut self.has_qdisc)), String::new())
            }
            ["tc", "qdisc", "show", ..] => {
                (0, if self.has_qdisc { "qdisc clsact ffff:\n".to_owned() } else { String::new() })
            }
            ["tc", "filter", "show", _, _, _, "pref", place] => {
                (0, self.filters.get(&place.parse().unwrap()).map_or_else(String::new, |all| all.concat()))
            }
            ["tc", "filter", "show", _, _, "ingress"] => (0, self.filters.values().flatten().cloned().collect()),
            ["tc", "filter", "show", ..] => (0, String::new()),
            ["tc", "filter", "add", _, _, _, "pref", place, rest @ ..] => {
                self.filters.entry(place.parse().unwrap()).or_default().push(rest.join(" ") + "\n");
                (0, String::new())
            }
            ["tc", "filter", "del", _, _, _, "pref", place] => {
                (if self.filters.remove(&place.parse().unwrap()).is_some() { 0 } else { 2 }, String::new())
            }
            // Neither its files nor its chains are where they are looked for: it is asked itself.
            ["grep", ..] => (2, "grep: No such file or directory".to_owned()),
            ["iptables", "-w", "5", "-C", ..] => (1, "Bad rule".to_owned()),
            ["ufw", "status"] => (0, "Status: active\n".to_owned()),
            ["ufw", "show", "added"] => (0, self.ufw.iter().map(|rule| format!("ufw {}\n", added(rule))).collect()),
            ["ufw", "prepend", rule @ ..] => {
                let rule = rule.join(" ");
                if !self.ufw.contains(&rule) {
                    self.ufw.insert(0, rule);
                }
                (0, String::new())
            }
            ["ufw", "delete", rule @ ..] => {
                let rule = rule.join(" ");
                self.ufw.retain(|one| *one != rule);
                (0, String::new())
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn polices(&self) -> bool {
        self.filters.values().flatten().any(|f| f.contains("police"))
    }

    /// Whether what everybody meets is met by packets from `source`.
    fn meets(&self, source: &IpNet) -> bool {
        let deny = self.ufw.iter().find(|r| r.contains("from any") || r.contains(&format!("from {} ", short(source))));
        let passes = format!("src {source} flowid");
        deny.is_some_and(|rule| rule.starts_with("deny"))
            || self.polices() && !self.filters.values().flatten().any(|f| f.contains(&passes))
    }
}

fn short(source: &IpNet) -> String {
    if source.prefix_len() == source.max_prefix_len() { source.addr().to_string() } else { source.to_string() }
}

/// As ufw writes it down.
fn added(rule: &str) -> String {
    match rule.split(' ').collect::<Vec<_>>().as_slice() {
        [verb, "proto", protocol, "from", "any", ..] => format!("{verb} to any proto {protocol}"),
        [verb, "proto", protocol, "from", source, ..] => format!("{verb} from {source} proto {protocol}"),
        other => panic!("{other:?}"),
    }
}

#[derive(Clone)]
struct Model(Rc<RefCell<Tools>>);

impl Runner for Model {
    fn run(&mut self, argv: &[String]) -> Ran {
        let mut tools = self.0.borrow_mut();
        let (exit, output) = tools.run(argv);
        let met: Vec<_> = tools.watched.iter().filter(|s| tools.meets(s)).map(|s| format!("{s}: {argv:?}")).collect();
        tools.met.extend(met);
        Ran { exit: Some(exit), output, took_us: 0 }
    }

    fn feed(&mut self, argv: &[String], _: &str) -> Ran {
        unreachable!("no action here has members: {argv:?}")
    }

    fn list(&mut self, argv: &[String], _: &mut dyn FnMut(&str)) -> Ran {
        unreachable!("no action here has members: {argv:?}")
    }
}

/// The plan of an action when these are spared.
fn plan(json: &str, spared: &[&str]) -> Vec<ToolStep> {
    let action: Action = serde_json::from_str(json).unwrap();
    let context = PreviewContext {
        target: "203.0.113.5/32".parse().unwrap(),
        sources: Vec::new(),
        spoofed: false,
        spared: spared.iter().map(|s| s.parse().unwrap()).collect(),
        node: NodeMeans::default(),
    };
    preview(&action, &context).steps()
}

/// A keeper, what it works on, and where its journal is.
fn scene() -> (Keeper<Model>, Rc<RefCell<Tools>>, tempfile::TempDir) {
    // Without a disk below it: some ask for its word thousands of times.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let tools = Rc::new(RefCell::new(Tools::default()));
    (open(Model(Rc::clone(&tools)), dir.path(), 0), tools, dir)
}

fn brings(keeper: &mut Keeper<Model>, json: &str, spared: &[&str]) -> Vec<Outcome> {
    keeper.set(vec![wanted(1, plan(json, spared))], []);
    outcomes(&keeper.work(0)).into_iter().cloned().collect()
}

fn check_police(tools: &Tools, spared: &[&str]) {
    assert!(tools.polices());
    for source in [A, B, C, SIX] {
        let is_met = tools.meets(&source.parse().unwrap());
        assert_eq!(is_met, !spared.contains(&source), "{source} of {spared:?}: {:#?}", tools.filters);
    }
    assert!(tools.filters.values().all(|at| at.len() == 1), "{:#?}", tools.filters);
    let others = ["arp", "0x84", "0x88", "police"];
    assert!(others.iter().all(|one| tools.filters.values().flatten().any(|f| f.contains(one))));
    assert_eq!(tools.filters.len(), spared.len() + others.len(), "{:#?}", tools.filters);
}

#[test]
fn a_filter_of_tc_passes_whom_the_newest_plan_spares() {
    let (mut keeper, tools, dir) = scene();
    let changes: [&[&str]; 8] = [&[A, C], &[A, B, C], &[A, C], &[A, C, SIX], &[A, B, C, SIX], &[SIX], &[C, SIX], &[C]];
    for spared in changes {
        assert_eq!(brings(&mut keeper, POLICE, spared), [Outcome::Applied], "{spared:?}");
        check_police(&tools.borrow(), spared);
        // Whoever starts next finds the same, and changes it alike.
        keeper = open(Model(Rc::clone(&tools)), dir.path(), 0);
    }
    // A journal that was lost: what stands there is not taken for what is wanted.
    std::fs::remove_file(dir.path().join("journal")).unwrap();
    keeper = open(Model(Rc::clone(&tools)), dir.path(), 0);
    brings(&mut keeper, POLICE, &[A]);
    check_police(&tools.borrow(), &[A]);
    keeper.set(Vec::new(), []);
    keeper.work(LATER_NS);
    assert!(tools.borrow().filters.is_empty() && keeper.is_idle());
}

#[test]
fn any_change_of_who_is_spared_comes_to_tc_whenever_the_agent_dies() {
    for seed in 1..=60_u64 {
        let (mut keeper, tools, dir) = scene();
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..6 {
            let some = [A, B, C, SIX].into_iter().filter(|_| dice.below(2) == 0);
            let spared: Vec<&str> = std::iter::once("198.51.100.9/32").chain(some).collect();
            if dice.below(2) == 0 {
                let death = super::Death { after: dice.below(25) as usize, has_run: dice.below(2) == 0 };
                let mortal = super::Mortal { inner: Model(Rc::clone(&tools)), death: Some(death) };
                let mut dying = open(mortal, dir.path(), 0);
                dying.set(vec![wanted(1, plan(POLICE, &spared))], []);
                drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dying.work(0))));
                keeper = open(Model(Rc::clone(&tools)), dir.path(), 0);
            }
            brings(&mut keeper, POLICE, &spared);
            check_police(&tools.borrow(), &spared);
        }
    }
}

#[test]
fn whom_ufw_lets_in_stands_before_what_it_denies() {
    let meets = |tools: &RefCell<Tools>, source: &str| tools.borrow().meets(&source.parse().unwrap());
    let (mut keeper, tools, dir) = scene();
    tools.borrow_mut().ufw.push("allow proto udp from 192.0.2.1 to any".to_owned());
    for spared in [&[A, SIX][..], &[A, B, SIX], &[B], &[A, B, C, SIX]] {
        assert_eq!(brings(&mut keeper, DENY, spared), [Outcome::Applied]);
        for source in [A, B, C, SIX] {
            assert_eq!(
                meets(&tools, source),
                !spared.contains(&source),
                "{source} of {spared:?}: {:?}",
                tools.borrow().ufw
            );
        }
    }
    // Somebody took the first rule away while no agent ran: it comes before the others again.
    tools.borrow_mut().ufw.retain(|rule| !rule.starts_with("deny"));
    keeper = open(Model(Rc::clone(&tools)), dir.path(), 0);
    assert_eq!(brings(&mut keeper, DENY, &[A, B, C, SIX]), [Outcome::Applied]);
    assert!(meets(&tools, "192.0.2.9/32"));
    assert_eq!([A, B, C, SIX].map(|source| meets(&tools, source)), [false; 4], "{:?}", tools.borrow().ufw);
    keeper.set(Vec::new(), []);
    keeper.work(LATER_NS);
    assert_eq!(tools.borrow().ufw, ["allow proto udp from 192.0.2.1 to any"]);
}

#[test]
fn a_rule_of_ufw_that_somebody_else_has_keeps_the_action_from_cutting_him() {
    let (mut keeper, tools, _dir) = scene();
    let own = "allow proto tcp from 192.0.2.1 to any".to_owned();
    tools.borrow_mut().ufw.push(own.clone());
    let done = brings(&mut keeper, DENY, &[A]);
    assert!(matches!(done.as_slice(), [Outcome::Failed(why)] if why.contains("192.0.2.1")), "{done:?}");
    assert_eq!(tools.borrow().ufw, std::slice::from_ref(&own));
    // The same when he becomes a friend while it is in force.
    let (mut keeper, tools, _dir) = scene();
    assert_eq!(brings(&mut keeper, DENY, &[B]), [Outcome::Applied]);
    tools.borrow_mut().ufw.push(own.clone());
    let done = brings(&mut keeper, DENY, &[A, B]);
    assert!(matches!(done.as_slice(), [Outcome::Failed(_)]), "{done:?}");
    assert_eq!(tools.borrow().ufw, [own]);
}

#[test]
fn two_actions_never_change_what_is_in_one_place_by_turns() {
    let (mut keeper, tools, _dir) = scene();
    let burst = POLICE.replace("8000}", r#"8000,"burst_bytes":2048}"#);
    let (one, other) = (wanted(1, plan(POLICE, &[A])), wanted(2, plan(&burst, &[A])));
    keeper.set(vec![one.clone(), other.clone()], []);
    let acted = keeper.work(0);
    let [Outcome::Applied, Outcome::Failed(why)] = outcomes(&acted)[..] else { panic!("{acted:#?}") };
    assert!(why.contains("another action has the same place: tc filter add dev eth0"), "{why}");
    check_police(&tools.borrow(), &[A]);
    assert!(keeper.repair(0).is_empty());
    // Another plan of the first is none of another's, and neither is one of another rate.
    let faster = wanted(3, plan(&POLICE.replace("8000", "9000"), &[A]));
    keeper.set(vec![wanted(1, plan(POLICE, &[A, B])), wanted(3, plan(&POLICE.replace("8000", "9000"), &[A, B]))], []);
    assert_eq!(outcomes(&keeper.work(0)), [&Outcome::Applied, &Outcome::Applied]);
    keeper.set(vec![faster], []);
    keeper.work(0);
    keeper.set(vec![other], []);
    assert_eq!(outcomes(&keeper.work(0)), [&Outcome::Applied]);
}

#[test]
fn a_repair_never_makes_the_police_before_those_who_pass_it() {
    let friends: Vec<String> = (1..=40).map(|n| format!("192.0.2.{n}/32")).collect();
    let friends: Vec<&str> = friends.iter().map(String::as_str).collect();
    // Wherever the look begins that finds out.
    for looks in 0..4 {
        let (mut keeper, tools, _dir) = scene();
        assert_eq!(brings(&mut keeper, POLICE, &friends), [Outcome::Applied]);
        for at in 0..looks {
            keeper.repair(at);
        }
        // Somebody takes all of it away.
        tools.borrow_mut().filters.clear();
        tools.borrow_mut().watched = friends.iter().map(|f| f.parse().unwrap()).collect();
        for at in 0..4 {
            keeper.repair(at);
        }
        let tools = tools.borrow();
        assert!(tools.polices() && tools.filters.len() == 44, "{looks}: {:#?}", tools.filters);
        assert_eq!(tools.met, Vec::<String>::new(), "{looks}");
    }
}
