//! Keeps one tool as it should be: does what is wanted, undoes what is not, and looks from time to time whether that is
//! still so. Everything passes the journal first.
//!
//! What is kept are steps, known by the object that each makes. Two actions with a step in common have one object, which
//! goes with the last of them.
//!
//! ```text
//! wanted, not there ──▶ journal, do          not wanted, in the journal ──▶ look, undo, look again, journal
//! wanted, there, ours ─▶ journal             found there, somebody else's ─▶ journal says so; never undone
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ftagent_common::api::{Look, ToolStep};
use uuid::Uuid;

use super::ToolStatus;
use super::journal::{Entry, Journal};
use super::members::{Lacking, members};
use super::record::Record;
use super::repair::Amiss;
use super::runner::{Ran, Runner};
use super::undo::Undone;
use crate::engine::{Acted, Outcome, Wanted};

/// After a crash a command of the dead agent may still run for as long as commands may. What it makes late is looked for
/// once more after this time.
pub(super) const LINGER_NS: u64 = 25_000_000_000;
/// Between two tries to undo what could not be undone: this, doubled up to sixteenfold.
const RETRY_NS: u64 = 5_000_000_000;
const MAX_RETRY: u32 = 4;
/// Of many that are stuck, so many are shown.
const MAX_SHOWN: usize = 16;

/// How far an action is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Done,
    /// Told; not tried again.
    Failed,
}

/// What is to be done for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Todo {
    Nothing,
    Run,
    /// What stands in its place is undone first.
    Replace,
}

/// What could not be undone yet.
#[derive(Clone, Debug)]
pub(super) struct Stuck {
    pub(super) why: String,
    next_ns: u64,
    tries: u32,
}

/// The keeper of one tool.
pub struct Keeper<R> {
    pub(super) runner: R,
    pub(super) journal: Journal,
    pub(super) boot: String,
    pub(super) wanted: Vec<Wanted>,
    ending: BTreeSet<Uuid>,
    progress: BTreeMap<Uuid, Progress>,
    pub(super) stuck: BTreeMap<String, Stuck>,
    /// What was run to undo each action that is ending.
    undone: BTreeMap<Uuid, Record>,
    /// Objects of an earlier process, which may still be made late.
    pub(super) inherited: BTreeSet<String>,
    /// Objects whose tool said no when they were to be made: they may not be there, and undoing them may fail.
    pub(super) refused: BTreeSet<String>,
    pub(super) opened_ns: u64,
    /// Why what is ending is not undone yet, as it was told.
    told: BTreeMap<Uuid, String>,
    pub(super) amiss: BTreeMap<Uuid, Amiss>,
    pub(super) cursor: usize,
    pub(super) renewed_ns: BTreeMap<String, u64>,
    /// When the members of an action in a set are looked at next.
    pub(super) next_list_ns: BTreeMap<(Uuid, String), u64>,
    /// Where the TCP gate keeps the value of `net.ipv4.tcp_syncookies` that it goes back to.
    pub(super) cookies: Option<PathBuf>,
}

impl<R: Runner> Keeper<R> {
    /// A keeper that takes over what `journal` says; `boot` names this boot of the machine.
    pub fn new(runner: R, journal: Journal, boot: &str, cookies: Option<PathBuf>, now_ns: u64) -> Self {
        let inherited = journal.entries().keys().cloned().collect();
        Self {
            runner,
            journal,
            boot: boot.to_owned(),
            wanted: Vec::new(),
            ending: BTreeSet::new(),
            progress: BTreeMap::new(),
            stuck: BTreeMap::new(),
            undone: BTreeMap::new(),
            inherited,
            refused: BTreeSet::new(),
            opened_ns: now_ns,
            told: BTreeMap::new(),
            amiss: BTreeMap::new(),
            cursor: 0,
            renewed_ns: BTreeMap::new(),
            next_list_ns: BTreeMap::new(),
            cookies,
        }
    }

    /// Takes the newest word on what should be in force and on what should not.
    pub fn set(&mut self, wanted: Vec<Wanted>, ending: impl IntoIterator<Item = Uuid>) {
        for one in &wanted {
            // Another plan of the same action: what is new of it is done.
            let before = self.wanted.iter().find(|w| w.task == one.task);
            if before.is_some_and(|before| before.steps != one.steps) {
                self.progress.remove(&one.task);
            }
            for (place, step) in one.steps.iter().enumerate() {
                self.journal.set_place(&step.object(), one.task, u32::try_from(place).unwrap_or(u32::MAX));
            }
        }
        self.wanted = wanted;
        self.ending = ending.into_iter().collect();
        self.progress.retain(|task, _| self.wanted.iter().any(|w| w.task == *task));
        self.next_list_ns.retain(|(task, _), _| self.wanted.iter().any(|w| w.task == *task));
        self.told.retain(|task, _| self.ending.contains(task));
        self.amiss.retain(|task, _| self.wanted.iter().any(|w| w.task == *task));
    }

    /// Does what is new and undoes what is not wanted.
    pub fn work(&mut self, now_ns: u64) -> Vec<Acted> {
        let mut results = Vec::new();
        let new = self.wanted.iter().filter(|w| !self.progress.contains_key(&w.task));
        for one in new.cloned().collect::<Vec<_>>() {
            let (outcome, record) = match self.carry_out(&one, now_ns) {
                Ok(record) => (Outcome::Applied, record),
                Err((why, record)) => (Outcome::Failed(why), record),
            };
            let progress = if outcome == Outcome::Applied { Progress::Done } else { Progress::Failed };
            self.progress.insert(one.task, progress);
            // Whatever was told of it before.
            self.amiss.remove(&one.task);
            results.push(record.acted(one.task, outcome));
        }
        self.undo_unwanted(now_ns);
        self.tell_endings(&mut results);
        results
    }

    /// Whether there is anything to look after.
    pub fn is_idle(&self) -> bool {
        self.wanted.is_empty() && self.journal.entries().is_empty()
    }

    /// Whether nothing of what should be in force is: all of it failed and is undone.
    pub fn is_idle_but_wanted(&self) -> bool {
        self.journal.entries().is_empty() && !self.progress.values().any(|p| *p == Progress::Done)
    }

    /// Who runs the commands.
    pub fn runner_mut(&mut self) -> &mut R {
        &mut self.runner
    }

    /// What could not be undone, with the tool's words.
    pub fn stuck(&self) -> Vec<String> {
        self.stuck.values().map(|stuck| stuck.why.clone()).take(MAX_SHOWN).collect()
    }

    /// Writes into `status` what is in force and what is not as it should be.
    pub(super) fn describe(&self, status: &mut ToolStatus) {
        status.actions = self.progress.values().filter(|p| **p == Progress::Done).count();
        let objects = |entry| members(entry).map_or(1, |members| members.prefixes.len());
        status.objects = self.journal.entries().values().map(objects).sum();
        (status.stuck, status.fault) = (self.stuck(), self.journal.fault());
    }

    /// The objects of all steps that should be in force.
    pub(super) fn objects(&self) -> BTreeSet<String> {
        let alive = self.wanted.iter().filter(|w| self.progress.get(&w.task) != Some(&Progress::Failed));
        alive.flat_map(|w| &w.steps).map(ToolStep::object).collect()
    }

    /// Whether an action is in force.
    pub(super) fn is_done(&self, task: Uuid) -> bool {
        self.progress.get(&task) == Some(&Progress::Done)
    }

    /// Does the steps of an action that are not there; when one fails, the others are undone.
    fn carry_out(&mut self, one: &Wanted, now_ns: u64) -> Result<Record, (String, Record)> {
        let mut record = Record::default();
        if let Some(fault) = self.journal.fault() {
            return Err((fault, record));
        }
        if let Some(other) = self.holder_of_a_place(one) {
            return Err((format!("another action has the same place: {}", other.run.join(" ")), record));
        }
        // None of these changes anything: they are run together, and each question is asked once.
        let need = one.steps.iter().find_map(ToolStep::needs);
        let looks: Vec<Look> = one.steps.iter().filter_map(ToolStep::look).chain(need.clone()).collect();
        let rans = self.see(&looks);
        if let Some(need) = need {
            let (need, ran) = last_word(&need, &rans);
            if ran.and_then(|ran| need.sees(ran.exit, &ran.output)) != Some(true) {
                let why = ran.map_or_else(|| need.argv.join(" "), |ran| ran.story(&need.argv));
                return Err((why, record));
            }
        }
        let (many, alone): (Vec<_>, Vec<_>) = one.steps.iter().enumerate().partition(|(_, s)| s.members.is_some());
        let members = self
            .held_by_sets(&many.iter().map(|(_, step)| *step).collect::<Vec<_>>())
            .and_then(|held| self.lacking(one.task, &many, &held));
        let Lacking { mut entries, missing: lacking } = match members {
            Ok(lacking) => lacking,
            Err(why) => return Err((why, record)),
        };
        let mut missing = Vec::new();
        let mut replaced = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (place, step) in alone {
            if !seen.insert(step.object()) {
                continue;
            }
            match self.prepare_seen(one.task, step, place, &rans) {
                Ok((entry, todo)) => {
                    // It stands behind what is put first now.
                    let is_behind = step.is_stacked()
                        && step.spares()
                        && missing.iter().any(|(_, s): &(usize, &ToolStep)| !s.spares());
                    let todo = if is_behind && todo == Todo::Nothing { Todo::Replace } else { todo };
                    missing.extend((todo != Todo::Nothing).then_some((place, step)));
                    if todo == Todo::Replace {
                        replaced.insert(step.object(), entry);
                    } else {
                        entries.extend(entry);
                    }
                }
                Err(why) => return Err((why, record)),
            }
        }
        if let Err(error) = self.journal.begin(entries) {
            return Err((error.to_string(), record));
        }
        missing.extend(many);
        missing.sort_by_key(|(place, _)| *place);
        let missing: Vec<&ToolStep> = missing.into_iter().map(|(_, step)| step).collect();
        for step in &missing {
            let object = step.object();
            let cleared = match replaced.remove(&object) {
                Some(entry) => self.clear(&object, entry, &mut record, now_ns),
                None => Ok(()),
            };
            let done = cleared.and_then(|()| match lacking.get(&object) {
                Some(some) => self.put_in(step, some, &mut record),
                None => self.run_one(step, &object, &mut record),
            });
            if let Err(why) = done {
                self.progress.insert(one.task, Progress::Failed);
                self.roll_back(&missing, &mut record, now_ns);
                return Err((why, record));
            }
            // Members that were there already run out when they would have.
            let all = step.members.as_ref().map_or(0, |members| members.prefixes.len());
            if step.renew_secs().is_some() && lacking.get(&object).is_none_or(|some| some.len() == all) {
                self.renewed_ns.insert(object, now_ns);
            }
        }
        Ok(record)
    }

    /// What another action has where this one would have something else, of places that hold one thing alone.
    fn holder_of_a_place(&self, one: &Wanted) -> Option<&ToolStep> {
        let others = self.wanted.iter().filter(|w| w.task != one.task && self.is_done(w.task));
        let places = |step: &&ToolStep| step.is_by_place() && !step.spares();
        others.flat_map(|w| &w.steps).filter(places).find(|other| {
            let ours = one.steps.iter().filter(places);
            ours.filter(|step| step.object() == other.object()).any(|step| step.run != other.run)
        })
    }

    /// Takes away what stands in the place of a step, of which the journal says then what `entry` says.
    fn clear(&mut self, object: &str, entry: Option<Entry>, record: &mut Record, now_ns: u64) -> Result<(), String> {
        if let Some(mut unknown) = entry.clone().filter(|_| !self.journal.entries().contains_key(object)) {
            // Of a journal that was lost. Nobody knows what it is, only how it goes.
            unknown.step.run = unknown.step.undo.clone();
            self.journal.begin(vec![unknown]).map_err(|error| error.to_string())?;
        }
        self.undo_one(object, record, now_ns)?;
        self.journal.begin(entry.into_iter().collect()).map_err(|error| error.to_string())
    }

    fn run_one(&mut self, step: &ToolStep, object: &str, record: &mut Record) -> Result<(), String> {
        let ran = self.runner.run(&step.run);
        record.add(&step.run, &ran);
        if ran.has_done(&step.run) {
            return Ok(());
        }
        if ran.exit.is_some() {
            self.refused.insert(object.to_owned());
        }
        Err(ran.story(&step.run))
    }

    /// Has the journal say of a step what it is to say, and its place made free; whether the step is to be run.
    pub(super) fn prepare(
        &mut self,
        task: Uuid,
        step: &ToolStep,
        place: usize,
        record: &mut Record,
        now_ns: u64,
    ) -> Result<bool, String> {
        let rans = self.see(step.look().as_slice());
        let (entry, todo) = self.prepare_seen(task, step, place, &rans)?;
        if todo == Todo::Replace {
            self.clear(&step.object(), entry, record, now_ns)?;
        } else {
            self.journal.begin(entry.into_iter().collect()).map_err(|error| error.to_string())?;
        }
        Ok(todo != Todo::Nothing)
    }

    /// The same, when it was looked at already.
    fn prepare_seen(
        &self,
        task: Uuid,
        step: &ToolStep,
        place: usize,
        rans: &Rans,
    ) -> Result<(Option<Entry>, Todo), String> {
        let known = self.journal.entries().get(&step.object()).cloned();
        let (there, said) = judge(step, rans)?;
        if let Some(look) = step.look()
            && let Some(other) = rans.get(&look.argv).and_then(|ran| look.taken(ran.exit, &ran.output))
        {
            return Err(format!("another rule stands in the place of {}, and would stay: {other}", step.run.join(" ")));
        }
        let has_value = step.has_value();
        let entry = |found, before| Entry {
            task,
            step: step.clone(),
            place: u32::try_from(place).unwrap_or(u32::MAX),
            found,
            before,
            boot: self.boot.clone(),
            theirs: Vec::new(),
        };
        let is_other = known.as_ref().is_none_or(|known| known.step.run != step.run);
        Ok(match (there, known) {
            // Another plan had, or has, something else in this place, or what is there does not work any more.
            (there, _) if step.is_by_place() && (is_other || there == Some(false)) => {
                (Some(entry(false, None)), if is_taken_up(step, rans) { Todo::Replace } else { Todo::Run })
            }
            // Its place is unknown, and the tool has the same rule only once.
            (Some(true), known) if step.is_stacked() && step.spares() && known.as_ref().is_none_or(|k| k.found) => {
                return Err(format!(
                    "somebody else has this rule already, perhaps behind what it must stand before: {}",
                    step.run.join(" ")
                ));
            }
            // It is ours, or known not to be.
            (Some(true), Some(_)) => (None, Todo::Nothing),
            (Some(true), None) => {
                let is_marked = step.look().is_some_and(|look| look.is_marked) && step.unless.is_empty();
                (Some(entry(!is_marked, None)), Todo::Nothing)
            }
            (_, Some(known)) if !known.found && (known.before.is_some() || !has_value) => (None, Todo::Run),
            (None, _) if has_value => return Err(format!("its value cannot be read: {said}")),
            // The value of another boot is not what to go back to.
            (_, _) => (Some(entry(false, has_value.then(|| said.trim().to_owned()))), Todo::Run),
        })
    }

    /// Whether a step's object is there, and what the tool said. None: it cannot be told.
    pub(super) fn look(&mut self, step: &ToolStep) -> Result<(Option<bool>, String), String> {
        let rans = self.see(step.look().as_slice());
        judge(step, &rans)
    }

    /// The same for who undoes it: of what is known by its place, whatever is there is meant.
    pub(super) fn look_for_rest(&mut self, step: &ToolStep) -> Result<(Option<bool>, String), String> {
        let rans = self.see(step.look().as_slice());
        let (there, said) = judge(step, &rans)?;
        Ok((if step.is_by_place() && is_taken_up(step, &rans) { Some(true) } else { there }, said))
    }

    /// Runs looks together, each question once, and then what is asked where one had no answer.
    fn see(&mut self, looks: &[Look]) -> Rans {
        let mut rans = Rans::new();
        self.ask(looks.iter(), &mut rans);
        let silent: Vec<&Look> = looks.iter().filter(|look| !has_answer(look, &rans)).collect();
        self.ask(silent.into_iter().filter_map(|look| look.otherwise.as_deref()), &mut rans);
        rans
    }

    fn ask<'a>(&mut self, looks: impl Iterator<Item = &'a Look>, rans: &mut Rans) {
        let questions: BTreeSet<&Vec<String>> = looks.map(|look| &look.argv).collect();
        let questions: Vec<Vec<String>> = questions.into_iter().cloned().collect();
        let answers = self.runner.look_at(&questions);
        rans.extend(questions.into_iter().zip(answers));
    }

    /// Undoes the steps of an action that failed half-way, but for what others want.
    fn roll_back(&mut self, steps: &[&ToolStep], record: &mut Record, now_ns: u64) {
        let others = self.objects();
        let objects = steps.iter().rev().map(|step| step.object()).filter(|object| !others.contains(object));
        let objects: Vec<(Uuid, String)> = objects.map(|object| (Uuid::nil(), object)).collect();
        let mut records = BTreeMap::from([(Uuid::nil(), std::mem::take(record))]);
        self.undo(&objects, &others, &mut records, now_ns);
        *record = records.remove(&Uuid::nil()).unwrap_or_default();
    }

    fn undo_unwanted(&mut self, now_ns: u64) {
        let wanted = self.objects();
        let entries = self.journal.entries().iter().filter(|(object, _)| !wanted.contains(*object));
        // What several actions build on comes last, wherever it stands in the plan of one of them.
        let place = |entry: &Entry| if entry.step.users().is_empty() { entry.place.saturating_add(1) } else { 0 };
        let mut unwanted: Vec<(u32, Uuid, String)> =
            entries.map(|(object, entry)| (place(entry), entry.task, object.clone())).collect();
        unwanted.sort_by(|a, b| b.cmp(a));
        let due = |object: &String| self.stuck.get(object).is_none_or(|stuck| stuck.next_ns <= now_ns);
        let unwanted = unwanted.into_iter().filter(|(_, _, object)| due(object));
        let unwanted: Vec<(Uuid, String)> = unwanted.map(|(_, task, object)| (task, object)).collect();
        let mut records = std::mem::take(&mut self.undone);
        self.undo(&unwanted, &wanted, &mut records, now_ns);
        let ending = &self.ending;
        records.retain(|task, _| ending.contains(task));
        self.undone = records;
    }

    /// Undoes what the journal has as `objects`, but for what is `wanted`; what is run is written into the record of the
    /// id beside the object.
    fn undo(
        &mut self,
        objects: &[(Uuid, String)],
        wanted: &BTreeSet<String>,
        records: &mut BTreeMap<Uuid, Record>,
        now_ns: u64,
    ) {
        // Members first, before the set that they are in.
        let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut alone = Vec::new();
        for (task, object) in objects {
            match self.journal.entries().get(object).and_then(|entry| Some(members(entry)?.set.clone())) {
                Some(set) => sets.entry(set).or_default().push(object.clone()),
                None => alone.push((*task, object)),
            }
        }
        let tasks: BTreeMap<&String, Uuid> = objects.iter().map(|(task, object)| (object, *task)).collect();
        for (set, objects) in sets {
            let (fed, ends) = self.take_out(&set, &objects, wanted, now_ns);
            for one in fed {
                let record = records.entry(tasks.get(&one.object).copied().unwrap_or_default()).or_default();
                record.add_fed(&one.argv, one.lines, &one.what, &one.ran);
            }
            self.settle(ends, now_ns);
        }
        for (task, object) in alone {
            let end = self.undo_one(object, records.entry(task).or_default(), now_ns);
            self.settle(vec![(object.clone(), end)], now_ns);
        }
    }

    /// Takes note of how the undoing of objects ended.
    fn settle(&mut self, ends: Vec<(String, Result<Undone, String>)>, now_ns: u64) {
        let mut gone = Vec::new();
        for (object, end) in ends {
            match end {
                Ok(Undone::Gone) => {
                    self.stuck.remove(&object);
                    self.inherited.remove(&object);
                    self.refused.remove(&object);
                    self.renewed_ns.remove(&object);
                    gone.push(object);
                }
                Ok(Undone::Later) => drop(self.stuck.remove(&object)),
                Err(why) => {
                    let tries = self.stuck.get(&object).map_or(0, |stuck| stuck.tries);
                    let next_ns = now_ns + (RETRY_NS << tries.min(MAX_RETRY));
                    tracing::error!(object = object.replace('\u{1f}', " "), %why, "not undone; it is tried again");
                    self.stuck.insert(object, Stuck { why, next_ns, tries: tries + 1 });
                }
            }
        }
        // What is not written is looked for again at the next start.
        drop(self.journal.all_gone(&gone));
    }

    fn tell_endings(&mut self, results: &mut Vec<Acted>) {
        for task in self.ending.clone() {
            let entries = self.journal.entries().iter().filter(|(_, entry)| entry.task == task);
            let why = entries.filter_map(|(object, _)| self.stuck.get(object)).map(|stuck| stuck.why.clone()).next();
            let record = self.undone.remove(&task).unwrap_or_default();
            match why {
                None => {
                    self.ending.remove(&task);
                    self.told.remove(&task);
                    results.push(record.acted(task, Outcome::Undone));
                }
                Some(why) => {
                    if self.told.get(&task) != Some(&why) {
                        self.told.insert(task, why.clone());
                        results.push(record.acted(task, Outcome::Stuck(why)));
                    } else {
                        self.undone.insert(task, record);
                    }
                }
            }
        }
    }
}

/// How looks ended.
type Rans = BTreeMap<Vec<String>, Ran>;

fn has_answer(look: &Look, rans: &Rans) -> bool {
    rans.get(&look.argv).is_some_and(|ran| look.sees(ran.exit, &ran.output).is_some())
}

/// The look that had an answer, or the last that was asked.
fn last_word<'a>(look: &'a Look, rans: &'a Rans) -> (&'a Look, Option<&'a Ran>) {
    let look = look.otherwise.as_deref().filter(|_| !has_answer(look, rans)).unwrap_or(look);
    (look, rans.get(&look.argv))
}

/// Whether anything stands in the place of a step.
fn is_taken_up(step: &ToolStep, rans: &Rans) -> bool {
    let ran = step.look().and_then(|look| rans.get(&look.argv));
    ran.is_some_and(|ran| Look::is_taken_up(ran.exit, &ran.output))
}

/// What a look at a step says, and the tool's words.
fn judge(step: &ToolStep, rans: &Rans) -> Result<(Option<bool>, String), String> {
    let Some(look) = step.look() else { return Ok((None, String::new())) };
    let (look, Some(ran)) = last_word(&look, rans) else { return Ok((None, String::new())) };
    match ran.exit {
        // Neither would what comes next.
        None => Err(ran.story(&look.argv)),
        Some(_) => Ok((look.sees(ran.exit, &ran.output), ran.output.clone())),
    }
}
