//! The look, every few seconds, whether what is in force is still there.

use std::collections::BTreeMap;

use ftagent_common::api::ToolStep;
use uuid::Uuid;

use super::keeper::Keeper;
use super::record::Record;
use super::runner::Runner;
use crate::engine::{Acted, Outcome};

/// Steps that one look goes through; the next one goes on behind them.
const AT_ONCE: usize = 32;

impl<R: Runner> Keeper<R> {
    /// Makes again what somebody took away, and keeps from ending what would end by itself.
    pub fn repair(&mut self, now_ns: u64) -> Vec<Acted> {
        if self.journal.fault().is_some() {
            return Vec::new();
        }
        let mut all: Vec<(Uuid, usize, ToolStep)> = Vec::new();
        for one in self.wanted.iter().filter(|w| self.is_done(w.task)) {
            let alone = one.steps.iter().enumerate().filter(|(_, step)| step.members.is_none());
            all.extend(alone.map(|(place, step)| (one.task, place, step.clone())));
        }
        let mut results = Vec::new();
        if all.is_empty() {
            return results;
        }
        let begin = self.cursor % all.len();
        let some: Vec<_> = all.iter().cycle().skip(begin).take(AT_ONCE.min(all.len())).cloned().collect();
        self.cursor = begin + some.len();
        let renewals: Vec<_> = all.iter().filter(|(_, _, step)| self.is_to_renew(step, now_ns)).take(AT_ONCE).collect();
        for (_, _, step) in renewals {
            let ran = self.runner.run(&step.run);
            if ran.is_success() {
                self.renewed_ns.insert(step.object(), now_ns);
            }
        }
        // By action: one is well when none of its steps that were looked at is amiss.
        let mut seen: BTreeMap<Uuid, (Option<String>, Record)> = BTreeMap::new();
        for (task, place, step) in some {
            let (amiss, record) = seen.entry(task).or_default();
            if let Err(why) = self.make_again(task, place, &step, record, now_ns) {
                amiss.get_or_insert(why);
            }
        }
        for (task, (amiss, record)) in seen {
            let outcome = match amiss {
                None if self.told.remove(&task).is_some() => Outcome::Amiss(None),
                None => continue,
                Some(why) if self.told.get(&task) == Some(&why) => continue,
                Some(why) => {
                    self.told.insert(task, why.clone());
                    Outcome::Amiss(Some(why))
                }
            };
            results.push(record.acted(task, outcome));
        }
        // The sets themselves were looked at before.
        results.extend(self.repair_members(now_ns));
        results
    }

    pub(super) fn is_to_renew(&self, step: &ToolStep, now_ns: u64) -> bool {
        let Some(secs) = step.renew_secs() else { return false };
        let is_ours = self.journal.entries().get(&step.object()).is_some_and(|entry| !entry.found);
        // What an earlier process made was renewed at a time that nobody knows.
        let last_ns = self.renewed_ns.get(&step.object()).copied().unwrap_or(0);
        is_ours && now_ns.saturating_sub(last_ns) >= secs.saturating_mul(1_000_000_000)
    }

    fn make_again(
        &mut self,
        task: Uuid,
        place: usize,
        step: &ToolStep,
        record: &mut Record,
        now_ns: u64,
    ) -> Result<(), String> {
        let (there, _) = self.look(step)?;
        if there != Some(false) {
            return Ok(());
        }
        tracing::warn!(command = step.run.join(" "), "it was taken away by somebody else: it is made again");
        let plan = self.wanted.iter().find(|w| w.task == task).map(|w| w.steps.clone()).unwrap_or_default();
        if !step.is_stacked() && plan.iter().any(ToolStep::spares) {
            // Nobody who is spared is to meet this one meanwhile: what stands before it comes first.
            for (at, earlier) in plan.iter().enumerate().take(place) {
                if self.look(earlier)?.0 == Some(false) {
                    self.run_again(task, at, earlier, record, now_ns)?;
                }
            }
        }
        // Where the newest comes first, what belongs before this one has to come after it again.
        let later: Vec<ToolStep> =
            if step.is_stacked() { plan.into_iter().skip(place + 1).collect() } else { Vec::new() };
        for step in later.iter().rev() {
            if self.journal.entries().get(&step.object()).is_some_and(|entry| !entry.found) {
                self.undo_one(&step.object(), record, now_ns)?;
            }
        }
        for (at, step) in std::iter::once(step).chain(&later).enumerate() {
            self.run_again(task, place + at, step, record, now_ns)?;
        }
        Ok(())
    }

    fn run_again(
        &mut self,
        task: Uuid,
        place: usize,
        step: &ToolStep,
        record: &mut Record,
        now_ns: u64,
    ) -> Result<(), String> {
        if self.prepare(task, step, place, record, now_ns)? {
            let ran = self.runner.run(&step.run);
            record.add(&step.run, &ran);
            if !ran.has_done(&step.run) {
                return Err(ran.story(&step.run));
            }
            self.renewed_ns.insert(step.object(), now_ns);
        }
        Ok(())
    }
}
