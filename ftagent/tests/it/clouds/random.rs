//! Sequences of doing, undoing, dying and starting again while the provider fails at random: in the end it holds what it
//! held in the beginning.

use std::time::Duration;

use ftagent::engine::Wanted;
use ftagent_lab::floods::Dice;
use uuid::Uuid;

use super::receiver::Trouble;
use super::{CASES, Case, SEC, Site};
use crate::actions::random::count;

const SOURCES: [&str; 4] = ["198.51.100.6/32", "198.51.100.7/32", "198.51.101.0/24", "2001:db8::7/128"];

fn trouble(dice: &mut Dice) -> Trouble {
    match dice.below(6) {
        0 => Trouble::Status(500, None),
        1 => Trouble::Status(503, Some("3")),
        2 => Trouble::Status(429, Some("7")),
        3 => Trouble::Garbage,
        after => Trouble::Drop { after: after == 4 },
    }
}

fn some_sources(case: Case, dice: &mut Dice) -> Vec<&'static str> {
    if case.tool == "vultr" {
        return vec![SOURCES[dice.below(2) as usize]];
    }
    let some: Vec<&str> = SOURCES.into_iter().filter(|_| dice.below(2) == 0).collect();
    if some.is_empty() { vec![SOURCES[0]] } else { some }
}

fn sequence(case: Case, seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut site = Site::new(case.tool);
    site.timeout = Duration::from_secs(2);
    let before = site.receiver.snapshot();
    let mut now_ns = SEC;
    let mut keeper = site.keeper(case.tool, now_ns);
    let (mut set, mut ending): (Vec<Wanted>, Vec<Uuid>) = (Vec::new(), Vec::new());
    let mut log = Vec::new();
    for _ in 0..4 + dice.below(8) {
        now_ns += dice.below(30) * SEC;
        if dice.below(2) == 0 {
            let some =
                (0..dice.below(12)).map(|_| (dice.below(3) == 0).then(|| trouble(&mut dice))).collect::<Vec<_>>();
            site.trouble_with_changes(some);
            let some = (0..dice.below(4)).map(|_| (dice.below(3) == 0).then(|| trouble(&mut dice))).collect::<Vec<_>>();
            site.trouble(some);
        }
        match dice.below(8) {
            0..=4 => {
                let number = u128::from(dice.below(3)) + 1;
                match set.iter().position(|one| one.task == Uuid::from_u128(number)) {
                    Some(at) => ending.push(set.remove(at).task),
                    None => {
                        ending.retain(|task| *task != Uuid::from_u128(number));
                        set.push(case.wanted(number, &some_sources(case, &mut dice)));
                    }
                }
                log.push(format!("want {:?}", set.iter().map(|one| one.task.as_u128()).collect::<Vec<_>>()));
            }
            5 => {
                log.push(format!("look {:?}", keeper.repair(now_ns).len()));
                continue;
            }
            // It dies, having heard the last answer or not, and is started again.
            _ => {
                drop(keeper);
                keeper = site.keeper(case.tool, now_ns);
                log.push("start".to_owned());
            }
        }
        keeper.set(set.clone(), ending.clone());
        let acted = keeper.work(now_ns);
        log.push(format!("work {:?}", acted.iter().map(|one| &one.outcome).collect::<Vec<_>>()));
    }
    ending.extend(set.drain(..).map(|one| one.task));
    site.trouble([]);
    site.trouble_with_changes([]);
    keeper.set(Vec::new(), ending);
    for _ in 0..6 {
        now_ns += 200 * SEC;
        keeper.work(now_ns);
    }
    assert_eq!(keeper.stuck(), Vec::<String>::new(), "{case:?} seed {seed}: {log:#?}");
    assert!(keeper.is_idle(), "{case:?} seed {seed}: {log:#?} {:?}", keeper.journal().entries());
    assert_eq!(site.receiver.snapshot(), before, "{case:?} seed {seed}: {log:#?}");
}

#[test]
fn a_provider_holds_what_it_held_after_any_sequence() {
    let each = count(24).max(24) / 4;
    for case in CASES {
        for seed in 1..=u64::from(each) {
            sequence(case, seed);
        }
    }
    println!("{} sequences on receivers", each * 4);
}
