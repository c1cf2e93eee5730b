//! Undoing one step: looked for, undone, looked for again.

use std::time::Duration;

use ftagent_common::api::VALUE_BEFORE;

use super::journal::Entry;
use super::keeper::{Keeper, LINGER_NS};
use super::record::Record;
use super::runner::Runner;

/// Runs of the same command: the kernel lets go of some objects a moment after their last user, and a crash at the wrong
/// moment makes a rule twice.
pub(super) const TRIES: usize = 6;
pub(super) const PAUSE: Duration = Duration::from_millis(30);

/// How an undoing ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undone {
    Gone,
    /// It is not there, and a command of the process before might still make it.
    NotSeen,
}

impl<R: Runner> Keeper<R> {
    /// Undoes what the journal has as `object`.
    pub(super) fn undo_one(&mut self, object: &str, record: &mut Record, now_ns: u64) -> Result<Undone, String> {
        let Some(entry) = self.journal.entries().get(object).cloned() else { return Ok(Undone::Gone) };
        if entry.found || entry.step.undo.is_empty() {
            return Ok(Undone::Gone);
        }
        let (there, said) = self.look(&entry.step)?;
        if entry.step.has_value() {
            return self.undo_value(&entry, &said, record);
        }
        if there == Some(false) {
            let is_young = now_ns.saturating_sub(self.opened_ns) < LINGER_NS;
            return Ok(if is_young && self.inherited.contains(object) { Undone::NotSeen } else { Undone::Gone });
        }
        for user in entry.step.users() {
            let ran = self.runner.run(&user.argv);
            if user.sees(ran.exit, &ran.output) == Some(true) {
                // Somebody else builds on it now: it is theirs.
                return Ok(Undone::Gone);
            }
        }
        let mut why = String::new();
        for attempt in 0..TRIES {
            let ran = self.runner.run(&entry.step.undo);
            record.add(&entry.step.undo, &ran);
            match (self.look(&entry.step)?.0, ran.is_success()) {
                (Some(false), _) | (None, true) => return Ok(Undone::Gone),
                (Some(true), true) => {}
                (None, false) if self.refused.contains(object) => return Ok(Undone::Gone),
                (_, false) => {
                    why = format!("{}: {}", entry.step.undo.join(" "), ran.text());
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
                std::fs::write(saved, before).map_err(|error| format!("{}: {error}", saved.display()))?;
            }
            return Ok(Undone::Gone);
        }
        let undo: Vec<String> = entry.step.undo.iter().map(|word| word.replace(VALUE_BEFORE, before)).collect();
        let ran = self.runner.run(&undo);
        record.add(&undo, &ran);
        if ran.is_success() { Ok(Undone::Gone) } else { Err(format!("{}: {}", undo.join(" "), ran.text())) }
    }
}
