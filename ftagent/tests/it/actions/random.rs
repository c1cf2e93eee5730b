//! Sequences of doing, undoing, dying and starting again, of somebody else's hands in between: in the end everything is as
//! it was in the beginning.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;

use ftagent::actions::keeper::Keeper;
use ftagent::actions::runner::Runner;
use ftagent::engine::{Outcome, Wanted};
use ftagent_lab::floods::Dice;
use uuid::Uuid;

use super::model::{Model, World};
use super::{Dead, Death, LATER_NS, LOCAL, Mortal, open, steps, wanted};

/// One sequence of some operations on `actions`; `runner` makes a runner of the same tools, `meddle` lets somebody else
/// take away one of our objects.
pub(super) fn sequence<R: Runner>(
    dice: &mut Dice,
    dir: &Path,
    actions: &[&str],
    runner: impl Fn() -> R,
    mut meddle: impl FnMut(&mut Dice, &[Wanted]),
) -> Vec<String> {
    let mut log = Vec::new();
    let mortal = |death| Mortal { inner: runner(), death };
    let mut now_ns = 0;
    let mut keeper = open(mortal(None), dir, now_ns);
    let (mut set, mut ending): (Vec<Wanted>, Vec<Uuid>) = (Vec::new(), Vec::new());
    for _ in 0..4 + dice.below(6) {
        now_ns += dice.below(20) * 1_000_000_000;
        match dice.below(10) {
            0..=4 => {
                let number = dice.below(actions.len() as u64) as usize;
                match set.iter().position(|w| w.task == Uuid::from_u128(number as u128)) {
                    Some(at) => ending.push(set.remove(at).task),
                    None => {
                        ending.retain(|task| *task != Uuid::from_u128(number as u128));
                        set.push(wanted(number, steps(actions[number])));
                    }
                }
                log.push(format!("want {:?}", set.iter().map(|w| w.task.as_u128()).collect::<Vec<_>>()));
            }
            5 => {
                meddle(dice, &set);
                log.push("somebody else".to_owned());
            }
            6 => {
                let acted = work(&mut keeper, None, true, now_ns).expect("nobody dies");
                log.push(format!("repair {acted}"));
            }
            7 => {
                keeper = open(mortal(None), dir, now_ns);
                log.push("start".to_owned());
            }
            _ => {
                let death = Death { after: dice.below(30) as usize, has_run: dice.below(2) == 0 };
                keeper.set(set.clone(), ending.clone());
                let dead = work(&mut keeper, Some(death), false, now_ns).is_none();
                log.push(format!("{death:?}: {dead}"));
                keeper = open(mortal(None), dir, now_ns);
            }
        }
        keeper.set(set.clone(), ending.clone());
        let acted = work(&mut keeper, None, false, now_ns).expect("nobody dies");
        log.push(format!("work {acted}"));
    }
    ending.extend(set.drain(..).map(|w| w.task));
    keeper.set(Vec::new(), ending);
    work(&mut keeper, None, false, now_ns);
    work(&mut keeper, None, false, now_ns + LATER_NS);
    assert_eq!(keeper.stuck(), Vec::<String>::new(), "{log:#?}");
    assert!(keeper.is_idle(), "{log:#?}");
    log
}

/// Works or repairs; the outcomes, or none for a death on the way.
fn work<R: Runner>(keeper: &mut Keeper<Mortal<R>>, death: Option<Death>, repair: bool, now_ns: u64) -> Option<String> {
    keeper.runner_mut().death = death;
    let acted = catch_unwind(AssertUnwindSafe(|| if repair { keeper.repair(now_ns) } else { keeper.work(now_ns) }));
    match acted {
        Ok(acted) => {
            keeper.runner_mut().death = None;
            for one in &acted {
                assert!(!matches!(one.outcome, Outcome::Stuck(_)), "{one:?}");
            }
            Some(format!("{:?}", acted.iter().map(|a| &a.outcome).collect::<Vec<_>>()))
        }
        Err(panic) if panic.is::<Dead>() => None,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A folder without a disk below it: sequences ask for its word thousands of times.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub(crate) fn count(default: u32) -> u32 {
    std::env::var("FTAGENT_ACTION_SEQUENCES").ok().map_or(default, |n| n.parse().expect("a number"))
}

#[test]
fn a_model_of_the_tools_is_as_before_after_any_sequence() {
    let sequences = count(2_000).max(2_000);
    for seed in 1..=u64::from(sequences) {
        let dir = in_memory();
        let mut before = World::new();
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Things of others, some of which our plans would make too.
        before.chains.get_mut("iptables INPUT").unwrap().push("-p tcp -j ACCEPT".to_owned());
        if dice.below(3) == 0 {
            before.sets.insert("banned".to_owned(), ["198.51.100.8".to_owned()].into());
        }
        before.cookies = dice.below(3).to_string();
        let world = Rc::new(RefCell::new(before.clone()));
        let log = sequence(
            &mut dice,
            dir.path(),
            &LOCAL,
            || Model(Rc::clone(&world)),
            |dice, set| {
                take_away(&mut world.borrow_mut(), dice, set);
            },
        );
        assert_eq!(*world.borrow(), before, "seed {seed}: {log:#?}");
    }
    println!("{sequences} sequences on the model");
}

/// Somebody else removes a rule or a route of ours.
fn take_away(world: &mut World, dice: &mut Dice, set: &[Wanted]) {
    let all: Vec<_> = set
        .iter()
        .flat_map(|w| &w.steps)
        .filter(|s| s.run[0] != "sysctl" && (s.run[0] != "ipset" || s.members.is_some()))
        .collect();
    if !all.is_empty() {
        let step = all[dice.below(all.len() as u64) as usize];
        match &step.members {
            // Not the one that may be somebody else's: what comes after it is ours.
            Some(members) => {
                let ours = members.prefixes.iter().filter(|p| p.to_string() != "198.51.100.8/32");
                let ours: Vec<_> = ours.copied().collect();
                world.feed(&step.undo, &members.to_delete(&ours));
            }
            None => drop(world.run(&step.undo)),
        }
    }
}
