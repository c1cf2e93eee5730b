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

/// What is not as it should be of an action in force.
#[derive(Debug, Default)]
pub(super) struct Amiss {
    /// The object of each such step, or none for the members of sets, and why, in the order in which they were found. A
    /// look goes through some of the steps only: what it does not come to is as it was.
    found: Vec<(Option<String>, String)>,
    /// Which of them was told.
    told: Option<(Option<String>, String)>,
}

impl Amiss {
    /// What is to be told. Of several that are amiss one is, for as long as it is.
    fn news(&mut self) -> Option<Outcome> {
        if self.told.as_ref().is_some_and(|told| self.found.contains(told)) {
            return None;
        }
        let before = std::mem::replace(&mut self.told, self.found.first().cloned());
        let now = self.told.clone().map(|(_, why)| why);
        (before.is_some() || now.is_some()).then_some(Outcome::Amiss(now))
    }
}

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
        if all.is_empty() {
            return Vec::new();
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
        let mut seen: BTreeMap<Uuid, Record> = BTreeMap::new();
        for (task, place, step) in some {
            let end = self.make_again(task, place, &step, seen.entry(task).or_default(), now_ns);
            self.note(task, Some(step.object()), end);
        }
        // The sets themselves were looked at before.
        self.repair_members(&mut seen, now_ns);
        let news = |(task, amiss): (&Uuid, &mut Amiss)| {
            let outcome = amiss.news()?;
            Some(seen.remove(task).unwrap_or_default().acted(*task, outcome))
        };
        self.amiss.iter_mut().filter_map(news).collect()
    }

    /// Takes note of how the look at a step of an action ended, or that at all of its members.
    pub(super) fn note(&mut self, task: Uuid, object: Option<String>, end: Result<(), String>) {
        let Err(why) = end else {
            if let Some(amiss) = self.amiss.get_mut(&task) {
                amiss.found.retain(|(other, _)| *other != object);
            }
            return;
        };
        let found = &mut self.amiss.entry(task).or_default().found;
        match found.iter_mut().find(|(other, _)| *other == object) {
            Some((_, known)) => *known = why,
            None => found.push((object, why)),
        }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ftagent_common::api::{Action, PreviewContext, preview};

    use super::super::journal::Journal;
    use super::super::runner::Ran;
    use super::*;
    use crate::engine::Wanted;

    /// A tool that says so of each source: there, or not, and not to be made.
    #[derive(Default)]
    struct Tool {
        there: BTreeSet<String>,
        refused: BTreeSet<String>,
        /// The sets cannot be listed.
        is_mute: bool,
    }

    fn ran(exit: i32, output: &str) -> Ran {
        Ran { exit: Some(exit), output: output.to_owned(), took_us: 0 }
    }

    impl Runner for Tool {
        fn run(&mut self, argv: &[String]) -> Ran {
            let [_, _, _, verb, rule @ ..] = argv else { return ran(0, "") };
            let rule = rule.join(" ");
            let is_done = match verb.as_str() {
                "-C" => self.there.contains(&rule),
                "-A" if self.refused.contains(&rule) => return ran(4, &format!("{rule} is refused")),
                "-A" => self.there.insert(rule),
                _ => true,
            };
            ran(i32::from(!is_done), "")
        }

        fn feed(&mut self, _: &[String], _: &str) -> Ran {
            ran(0, "")
        }

        fn list(&mut self, _: &[String], hear: &mut dyn FnMut(&str)) -> Ran {
            if self.is_mute {
                return ran(3, "no list");
            }
            hear("create set hash:net family inet hashsize 1024 maxelem 262144");
            hear("add set 198.51.100.7");
            ran(0, "")
        }
    }

    impl Keeper<Tool> {
        fn take_away(&mut self, rule: &str) {
            self.runner.there.remove(rule);
            self.runner.refused.insert(rule.to_owned());
        }
    }

    const STEPS: usize = 80;

    fn rule(n: usize) -> String {
        format!("INPUT -s 198.51.100.{n} -j DROP")
    }

    fn steps() -> Vec<ToolStep> {
        let argv = |verb, n| format!("iptables -w 5 {verb} {}", rule(n)).split(' ').map(str::to_owned).collect();
        let step = |n| ToolStep { run: argv("-A", n), undo: argv("-D", n), unless: Vec::new(), members: None };
        (0..STEPS).map(step).collect()
    }

    fn in_force(steps: Vec<ToolStep>) -> (Keeper<Tool>, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a folder");
        let mut keeper = Keeper::new(Tool::default(), Journal::open(&dir.path().join("journal")), "boot", None, 0);
        keeper.set(vec![Wanted { task: Uuid::nil(), tool: "iptables", steps, cloud: None }], []);
        assert_eq!(told(&keeper.work(0)), ["Applied"]);
        (keeper, dir)
    }

    /// What comes of looks, so many that all steps are looked at.
    fn looks(keeper: &mut Keeper<Tool>, rounds: usize) -> Vec<String> {
        (0..rounds * STEPS.div_ceil(AT_ONCE)).flat_map(|_| told(&keeper.repair(0))).collect()
    }

    fn told(acted: &[Acted]) -> Vec<String> {
        let words = |outcome: &Outcome| match outcome {
            Outcome::Amiss(None) => "well".to_owned(),
            Outcome::Amiss(Some(why)) => why.rsplit(": ").next().unwrap_or_default().to_owned(),
            other => format!("{other:?}"),
        };
        acted.iter().map(|a| words(&a.outcome)).collect()
    }

    #[test]
    fn a_look_at_other_steps_does_not_say_that_it_is_well() {
        let (mut keeper, _dir) = in_force(steps());
        assert_eq!(looks(&mut keeper, 2), Vec::<String>::new());
        keeper.take_away(&rule(5));
        assert_eq!(looks(&mut keeper, 4), [format!("{} is refused", rule(5))]);
        keeper.runner.refused.clear();
        assert_eq!(looks(&mut keeper, 4), ["well"]);
        assert!(keeper.runner.there.contains(&rule(5)));
    }

    #[test]
    fn one_of_several_that_are_amiss_is_told_until_all_are_well() {
        let (mut keeper, _dir) = in_force(steps());
        let refused = |n| format!("{} is refused", rule(n));
        [70, 5, 6].into_iter().for_each(|n| keeper.take_away(&rule(n)));
        assert_eq!(looks(&mut keeper, 4), [refused(5)]);
        keeper.runner.refused.remove(&rule(5));
        assert_eq!(looks(&mut keeper, 4), [refused(6)]);
        // What is found later is not told while another one is.
        keeper.take_away(&rule(1));
        assert_eq!(looks(&mut keeper, 4), Vec::<String>::new());
        keeper.runner.refused.clear();
        let end = looks(&mut keeper, 4);
        assert_eq!((end.last().map(String::as_str), end.iter().filter(|t| *t == "well").count()), (Some("well"), 1));
    }

    #[test]
    fn another_plan_forgets_what_was_amiss_of_the_one_before() {
        let (mut keeper, _dir) = in_force(steps());
        keeper.take_away(&rule(5));
        assert_eq!(looks(&mut keeper, 1).len(), 1);
        let fewer = steps().split_off(6);
        keeper.set(vec![Wanted { task: Uuid::nil(), tool: "iptables", steps: fewer, cloud: None }], []);
        assert_eq!(told(&keeper.work(u64::MAX / 2)), ["Applied"]);
        assert_eq!(looks(&mut keeper, 4), Vec::<String>::new());
    }

    #[test]
    fn members_that_cannot_be_seen_are_amiss_though_the_set_is_there() {
        let action: Action =
            serde_json::from_str(r#"{"type":"ipset_ban","set":"set","sources":["198.51.100.7/32"]}"#).expect("one");
        let target = "203.0.113.5/32".parse().expect("a prefix");
        let context = PreviewContext::of(target);
        let (mut keeper, _dir) = in_force(preview(&action, &context).steps());
        assert_eq!(looks(&mut keeper, 2), Vec::<String>::new());
        keeper.runner.is_mute = true;
        assert_eq!(looks(&mut keeper, 4), ["no list"]);
        keeper.runner.is_mute = false;
        assert_eq!(looks(&mut keeper, 4), ["well"]);
    }
}
