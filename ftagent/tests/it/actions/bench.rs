//! How long an action takes from the word to the effect, by tool. Figures are printed and not judged: the machine is
//! shared.

use std::time::Duration;

use ftagent::actions::Actions;
use ftagent::actions::cloud::Clouds;
use ftagent::clock;
use ftagent::engine::{ActionSet, Ending, Outcome, Wanted};
use ftagent_common::api::Action;
use uuid::Uuid;

use super::real::inside;
use super::{LOCAL, steps};

#[test]
fn the_time_from_the_word_to_the_effect_is_printed() {
    inside(|| {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (mut actions, mut results) = Actions::open(dir.path(), "this boot", "node", Clouds::default()).unwrap();
        for json in [LOCAL[0], LOCAL[2], LOCAL[8], LOCAL[10], LOCAL[12]] {
            let action: Action = serde_json::from_str(json).unwrap();
            let mut took_us = Vec::new();
            for number in 0..20_u128 {
                let task = Uuid::from_u128(number);
                let mut next = |set: ActionSet, expected: Outcome| {
                    let began_ns = clock::mono_ns();
                    actions.act(&set);
                    runtime.block_on(async {
                        loop {
                            let wait = tokio::time::timeout(Duration::from_secs(30), results.recv());
                            let acted = wait.await.expect("in time").expect("a result");
                            if let Some(one) = acted.iter().find(|a| a.task == task) {
                                assert_eq!(one.outcome, expected, "{json}: {one:?}");
                                return (one.at_mono_ns - began_ns) / 1_000;
                            }
                        }
                    })
                };
                let wanted = Wanted { task, tool: action.tool(), steps: steps(json), cloud: None };
                took_us.push(next(ActionSet { wanted: vec![wanted], ending: vec![] }, Outcome::Applied));
                let ending = vec![Ending { task, tool: action.tool() }];
                next(ActionSet { wanted: vec![], ending }, Outcome::Undone);
            }
            took_us.sort_unstable();
            println!(
                "{:<28} {:>2} commands: fastest {:>6} us, median {:>6} us, slowest of 20 {:>6} us",
                action.kind(),
                steps(json).len(),
                took_us[0],
                took_us[10],
                took_us[19]
            );
        }
        actions.stop();
    });
}
