//! Which of the ways to limit an interface this node's kernel has: found out by doing each for a moment, past a journal
//! of its own, where no frame is met.
//!
//! A kernel may load modules for it, so that what nothing needs is not tried.

use std::path::Path;

use ftagent_common::api::{PoliceLack, PoliceMeans, PoliceWay, police_trial};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use super::journal::Journal;
use super::keeper::Keeper;
use super::runner::{Runner, System};
use super::{DIR, journal_of};
use crate::engine::{Outcome, Wanted};
use crate::persist;

/// The name of the journal.
pub(super) const TRIAL: &str = "tc_trial";
/// Where the answer stands, so that what is in force after a start of the agent is planned as before it.
const ANSWER: &str = "tc_police.json";
/// Of a tool's words.
const MAX_WHY: usize = 300;
/// There is nobody else whose commands could come late.
const LATER_NS: u64 = u64::MAX / 2;

#[derive(Serialize, Deserialize)]
struct Answer {
    /// Another boot may be of another kernel.
    boot: String,
    means: PoliceMeans,
}

/// The answer of an earlier start, if that was in this boot.
pub fn remembered(state_dir: &Path, boot: &str) -> Option<PoliceMeans> {
    let bytes = persist::load(&state_dir.join(DIR).join(ANSWER)).ok()??;
    // One that makes no sense is written anew.
    let answer: Answer = serde_json::from_slice(&bytes).ok()?;
    (answer.boot == boot).then_some(answer.means)
}

/// Tries in a thread of its own, and tells when that is anything new.
pub fn start(state_dir: &Path, boot: &str, told: watch::Sender<Option<PoliceMeans>>) {
    let (state_dir, boot) = (state_dir.to_owned(), boot.to_owned());
    let run = move || find_out(System, &state_dir, boot, &told);
    if let Err(error) = std::thread::Builder::new().name("tc-trial".to_owned()).spawn(run) {
        tracing::warn!(%error, "how an interface is limited is not tried");
    }
}

/// Tries, remembers and tells.
fn find_out(runner: impl Runner, state_dir: &Path, boot: String, told: &watch::Sender<Option<PoliceMeans>>) {
    // Whoever carries out actions makes it too, and comes later.
    drop(persist::make_dir(&state_dir.join(DIR)));
    let Some(means) = police(runner, state_dir, &boot) else { return };
    tracing::info!(ways = ?means.ways, lacking = ?means.lacking, "how tc_police_interface would be done");
    let answer = Answer { boot, means: means.clone() };
    if let Err(error) = persist::save_json(&state_dir.join(DIR).join(ANSWER), &answer) {
        tracing::warn!(%error, "how an interface is limited is not remembered: it is tried again at the next start");
    }
    told.send_if_modified(|known| known.replace(means.clone()) != Some(means));
}

/// Tries each way that matters. None: without a journal nothing may be tried.
pub fn police(runner: impl Runner, state_dir: &Path, boot: &str) -> Option<PoliceMeans> {
    let journal = Journal::open(&journal_of(&state_dir.join(DIR), TRIAL));
    if let Some(why) = journal.fault() {
        tracing::warn!(%why, "how an interface is limited is not tried");
        return None;
    }
    let mut keeper = Keeper::new(runner, journal, boot, None, 0);
    // What one left who was killed meanwhile.
    keeper.work(LATER_NS);
    let mut means = PoliceMeans::default();
    for way in PoliceWay::ALL {
        if way == PoliceWay::Ifb && means.ways.contains(&PoliceWay::Police) {
            continue;
        }
        let task = Uuid::from_u128(1);
        keeper.set(vec![Wanted { task, tool: "tc", steps: police_trial(way), cloud: None }], []);
        match keeper.work(LATER_NS).pop().map(|acted| acted.outcome) {
            Some(Outcome::Failed(why)) => {
                means.lacking.push(PoliceLack { way, why: why.chars().take(MAX_WHY).collect() });
            }
            _ => means.ways.push(way),
        }
        keeper.set(Vec::new(), [task]);
        keeper.work(LATER_NS);
    }
    for why in keeper.stuck() {
        tracing::warn!(%why, "what was tried is not taken away; it is tried again at the next start");
    }
    Some(means)
}

#[cfg(test)]
mod tests {
    use super::super::runner::Ran;
    use super::*;

    /// Runs nothing; commands that hold one of these words fail.
    struct Lacks(&'static [&'static str], Vec<String>);

    impl Runner for Lacks {
        fn run(&mut self, argv: &[String]) -> Ran {
            let line = argv.join(" ");
            let is_look = [" show ", " list "].iter().any(|word| line.contains(word));
            let fails = !is_look && self.0.iter().any(|word| line.contains(word));
            if !is_look && !fails {
                self.1.push(line);
            }
            let output = if fails { "Error: not found.".to_owned() } else { String::new() };
            Ran { exit: Some(if fails { 2 } else { 0 }), output, took_us: 0 }
        }

        fn feed(&mut self, argv: &[String], _: &str) -> Ran {
            unreachable!("{argv:?}")
        }

        fn list(&mut self, argv: &[String], _: &mut dyn FnMut(&str)) -> Ran {
            unreachable!("{argv:?}")
        }
    }

    #[test]
    fn what_fails_is_lacking_and_what_nothing_needs_is_not_tried() {
        use PoliceWay::{Ifb, Police, Program};
        for (lacks, ways, lacking) in [
            (&[][..], vec![Police, Program], vec![]),
            (&[" police "], vec![Ifb, Program], vec![Police]),
            (&[" police ", "mirred"], vec![Program], vec![Police, Ifb]),
            (&[" police ", " tbf ", "ftagent"], vec![], vec![Police, Ifb, Program]),
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            persist::make_dir(&dir.path().join(DIR)).expect("made");
            let means = police(Lacks(lacks, Vec::new()), dir.path(), "boot").expect("tried");
            assert_eq!(means.ways, ways, "{lacks:?}");
            assert_eq!(means.lacking.iter().map(|lack| lack.way).collect::<Vec<_>>(), lacking, "{lacks:?}");
            assert!(means.lacking.iter().all(|lack| lack.why.contains("not found")), "{means:?}");
        }
    }

    #[test]
    fn the_answer_of_another_boot_does_not_count() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(police(Lacks(&[], Vec::new()), dir.path(), "boot"), None, "there is no place for a journal");
        persist::make_dir(&dir.path().join(DIR)).expect("made");
        assert_eq!(remembered(dir.path(), "boot"), None);
        let (told, mut heard) = watch::channel(None);
        let find_out = |lacks| find_out(Lacks(lacks, Vec::new()), dir.path(), "boot".to_owned(), &told);
        find_out(&[" police "]);
        assert!(heard.has_changed().expect("told"));
        assert_eq!(remembered(dir.path(), "boot"), heard.borrow_and_update().clone());
        assert_eq!(remembered(dir.path(), "another boot"), None);
        find_out(&[" police "]);
        assert!(!heard.has_changed().expect("alive"), "nothing new");
        find_out(&[]);
        assert!(heard.has_changed().expect("alive"));
    }
}
