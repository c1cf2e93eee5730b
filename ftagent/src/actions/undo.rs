//! Undoing one step: looked for, undone, looked for again.

use std::time::Duration;

use ftagent_common::api::VALUE_BEFORE;

use super::journal::Entry;
use super::keeper::{Keeper, LINGER_NS};
use super::record::Record;
use super::runner::Runner;
use crate::persist;

/// Runs of the same command: the kernel lets go of some objects a moment after their last user, and a crash at the wrong
/// moment makes a rule twice.
pub(super) const TRIES: usize = 6;
pub(super) const PAUSE: Duration = Duration::from_millis(30);

/// How an undoing ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undone {
    Gone,
    /// It is not there, and a command of the process before might still make it; or something else has to go first.
    Later,
}

impl<R: Runner> Keeper<R> {
    /// Undoes what the journal has as `object`.
    pub(super) fn undo_one(&mut self, object: &str, record: &mut Record, now_ns: u64) -> Result<Undone, String> {
        let Some(entry) = self.journal.entries().get(object).cloned() else { return Ok(Undone::Gone) };
        if entry.found || entry.step.undo.is_empty() {
            return Ok(Undone::Gone);
        }
        let (there, said) = self.look_for_rest(&entry.step)?;
        if entry.step.has_value() {
            return self.undo_value(&entry, &said, record);
        }
        if there == Some(false) {
            let is_young = now_ns.saturating_sub(self.opened_ns) < LINGER_NS;
            return Ok(if is_young && self.inherited.contains(object) { Undone::Later } else { Undone::Gone });
        }
        for user in entry.step.users() {
            let ran = self.runner.run(&user.argv);
            if user.sees(ran.exit, &ran.output) == Some(true) {
                // Somebody else builds on it now: it is theirs. While something of ours is in it, that is not known.
                let mut known = self.journal.entries().values().filter(|other| !other.found);
                let is_early = known.any(|other| other.step.is_within(&entry.step));
                return Ok(if is_early { Undone::Later } else { Undone::Gone });
            }
        }
        let mut why = String::new();
        for attempt in 0..TRIES {
            let ran = self.runner.run(&entry.step.undo);
            record.add(&entry.step.undo, &ran);
            match (self.look_for_rest(&entry.step)?.0, ran.has_done(&entry.step.undo)) {
                (Some(false), _) | (None, true) => return Ok(Undone::Gone),
                (Some(true), true) => {}
                (None, false) if self.refused.contains(object) => return Ok(Undone::Gone),
                (_, false) => {
                    why = ran.story(&entry.step.undo);
                    if attempt + 1 < TRIES {
                        std::thread::sleep(PAUSE);
                    }
                }
            }
        }
        if why.is_empty() {
            why = format!("{}: it is still there", entry.step.undo.join(" "));
        }
        Err(why)
    }

    /// Goes back to the value before, unless somebody else changed it since.
    fn undo_value(&mut self, entry: &Entry, now: &str, record: &mut Record) -> Result<Undone, String> {
        let (Some(before), Some((_, ours))) = (&entry.before, entry.step.run.last().and_then(|w| w.split_once('=')))
        else {
            return Ok(Undone::Gone);
        };
        if entry.boot != self.boot {
            return Ok(Undone::Gone);
        }
        if now.trim() != ours {
            // The TCP gate may have it at another value and go back to ours.
            if let Some(saved) = &self.cookies
                && std::fs::read_to_string(saved).is_ok_and(|text| text.trim() == ours)
            {
                // Whole or not at all: the gate reads it in a thread of its own.
                persist::save(saved, before.as_bytes()).map_err(|error| error.to_string())?;
            }
            return Ok(Undone::Gone);
        }
        let undo: Vec<String> = entry.step.undo.iter().map(|word| word.replace(VALUE_BEFORE, before)).collect();
        let ran = self.runner.run(&undo);
        record.add(&undo, &ran);
        if ran.is_success() { Ok(Undone::Gone) } else { Err(format!("{}: {}", undo.join(" "), ran.text())) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use ftagent_common::api::{Action, PreviewContext, preview};
    use uuid::Uuid;

    use super::super::journal::Journal;
    use super::super::runner::Ran;
    use super::*;
    use crate::engine::Wanted;

    /// `net.ipv4.tcp_syncookies`, which somebody else sets too.
    struct Cookies(&'static str);

    impl Runner for Cookies {
        fn run(&mut self, argv: &[String]) -> Ran {
            assert_eq!(argv[..2], ["sysctl", "-n"].map(str::to_owned).as_slice()[..2], "{argv:?}");
            Ran { exit: Some(0), output: self.0.to_owned(), took_us: 0 }
        }

        fn feed(&mut self, argv: &[String], _: &str) -> Ran {
            unreachable!("a value has no members: {argv:?}")
        }

        fn list(&mut self, argv: &[String], _: &mut dyn FnMut(&str)) -> Ran {
            unreachable!("a value has no members: {argv:?}")
        }
    }

    #[test]
    fn what_the_gate_goes_back_to_is_replaced_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let (saved, journal) = (dir.path().join("saved"), dir.path().join("journal"));
        std::fs::write(&saved, "1\n").expect("written");
        let inode = std::fs::metadata(&saved).expect("there").ino();
        let action: Action = serde_json::from_str(r#"{"type":"syn_cookies"}"#).expect("an action");
        let target = "203.0.113.5/32".parse().expect("a prefix");
        let context = PreviewContext::of(target);
        let steps = preview(&action, &context).steps();
        let (task, place) = (Uuid::nil(), 0);
        let mut kept: Journal = Journal::open(&journal);
        let step = steps[0].clone();
        let (found, before, boot, theirs) = (false, Some("0".into()), "b".into(), Vec::new());
        kept.begin(vec![Entry { task, step, place, found, before, boot, theirs }]).expect("room");
        // The gate has set it to 2, and means to go back to our 1.
        let mut keeper = Keeper::new(Cookies("2"), kept, "b", Some(saved.clone()), 0);
        keeper.set(Vec::<Wanted>::new(), []);
        keeper.work(u64::MAX / 2);
        assert!(keeper.is_idle(), "{:?}", keeper.stuck());
        assert_eq!(std::fs::read_to_string(&saved).expect("there").trim(), "0");
        assert_ne!(std::fs::metadata(&saved).expect("there").ino(), inode, "another file in its place");
    }
}
