//! The life of actions of other tools: begun when a rule fires or an order comes, planned anew when the guard's lists
//! change, ended with the incident, at their time, or when the rule is gone.
//!
//! ```text
//! wanted ──(applied)──▶ in force ──(resolve, expiry, rule gone, guard)──▶ ending ──(undone)──▶ gone
//!   └──(failed: its tool undid what had been of it)──────────────────────────────────────────────▲
//! ```

use ftagent_common::api::{AckStatus, Action, CommandAck, ToolStep};
use ftagent_common::vocab::Mode;
use ipnet::IpNet;
use uuid::Uuid;

use super::Engine;
use super::firewall::refused;
use super::incident::{Deed, Incident};
use super::input::{Command, Now};
use super::sample::SEC;
use super::task::{Acted, ActionSet, Ending, Outcome, Task, TaskState, Wanted, Why};
use super::tool_guard::{self, MAX_MEMBERS, MAX_STEPS, MAX_TASKS, TASKS_PER_MINUTE, ToolPlan, ToolRefusal};

/// Seconds that an action of a firewall rule lasts at most, however long its incident does.
const LONGEST_SECS: u32 = 86_400;
/// Bytes of a tool's words that are kept.
const MAX_WORDS: usize = 4_096;

/// Counts new actions by the minute.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskPace {
    minute: u64,
    made: u32,
}

impl TaskPace {
    fn take(&mut self, now_ns: u64) -> Result<(), ToolRefusal> {
        let minute = now_ns / (60 * SEC);
        if minute != self.minute {
            *self = Self { minute, made: 0 };
        }
        if self.made >= TASKS_PER_MINUTE {
            return Err(ToolRefusal::TooFast);
        }
        self.made += 1;
        Ok(())
    }
}

impl Engine {
    /// Begins an action of another tool about an incident; `key` names it among the incident's deeds.
    ///
    /// # Errors
    /// Why the guard does not let it pass.
    pub(super) fn begin(
        &mut self,
        (incident, target): (Uuid, IpNet),
        key: String,
        why: Why,
        asked: &Action,
        ttl_secs: u32,
        now: Now,
    ) -> Result<(), ToolRefusal> {
        let spared = self.incidents.get(&incident).map_or(&[][..], |i| &i.spared);
        let planned = tool_guard::plan(asked, target, &self.effective, &self.allow, spared)?;
        let running = self.tasks.len();
        let steps: usize = self.tasks.values().map(|t| t.steps.len()).sum();
        if running >= MAX_TASKS {
            return Err(ToolRefusal::Quota(running));
        }
        if steps + planned.steps.len() > MAX_STEPS {
            return Err(ToolRefusal::Steps(steps, planned.steps.len()));
        }
        let in_sets = self.tasks.values().map(|t| members(&t.steps)).sum::<usize>();
        let more = members(&planned.steps);
        if more > 0 && in_sets + more > MAX_MEMBERS {
            return Err(ToolRefusal::Members(in_sets, more));
        }
        self.task_pace.take(now.mono_ns)?;
        let (rule_id, id) = match &why {
            Why::Rule { id, .. } => {
                let number = self.next_rule_id().0;
                (*id, Uuid::new_v5(&incident, format!("{key}/{number}").as_bytes()))
            }
            Why::Order { command, .. } => (0, *command),
        };
        let ttl_secs = ttl_secs.clamp(1, LONGEST_SECS);
        let ToolPlan { action, steps, excluded, more_excluded } = planned;
        let cloud = action.is_cloud().then(|| action.clone());
        if let Some(incident) = self.incidents.get_mut(&incident) {
            for why in excluded {
                incident.refuse(None, format!("{}: left out: {why}", action.kind()), now);
            }
            if more_excluded > 0 {
                let text = format!("{}: left out: {more_excluded} more sources that are never blocked", action.kind());
                incident.refuse(None, text, now);
            }
            let (run, undo) = steps.iter().map(|s| (s.run.clone(), s.undo.clone())).unzip();
            incident.add_deed(Deed { task: Some(id), ..Deed::new(key, rule_id, action, run, undo) });
        }
        let task = Task {
            id,
            why,
            incident,
            target,
            asked: asked.clone(),
            steps,
            cloud,
            since: now.wall,
            until: now.wall + time::Duration::seconds(i64::from(ttl_secs)),
            expires_at_ns: now.mono_ns + u64::from(ttl_secs) * SEC,
            state: TaskState::Wanted,
            trouble: None,
        };
        self.tasks.insert(id, task);
        self.tasks_changed = true;
        Ok(())
    }

    /// Begins the action of a firewall rule that fired.
    pub(super) fn begin_rule(&mut self, uuid: Uuid, rule: (i64, &str), key: String, asked: &Action, now: Now) {
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        let target = incident.target;
        let (id, name) = rule;
        let why = Why::Rule { id, name: name.to_owned() };
        let outcome = match self.effective.mode {
            Mode::Enforce => {
                self.begin((uuid, target), key.clone(), why, asked, LONGEST_SECS, now).map_err(|e| e.to_string())
            }
            mode => Err(format!("in mode {mode} other tools are left alone")),
        };
        let Err(why) = outcome else { return };
        self.refusals = self.refusals.saturating_add(1);
        let text = format!("firewall rule {name}: {why}");
        let Some(incident) = self.incidents.get_mut(&uuid) else { return };
        let execution = refused(incident.execution_uuid(&key, "do"), id, uuid, asked, &text, now);
        incident.refuse(Some(execution), text, now);
    }

    /// Takes back those that `which` says; `why` stands in their incidents.
    pub(super) fn retract(&mut self, which: impl Fn(&Task) -> bool, why: &str, now: Now) {
        for task in self.tasks.values_mut().filter(|t| t.state != TaskState::Ending && which(t)) {
            task.state = TaskState::Ending;
            task.trouble = None;
            self.tasks_changed = true;
            if let Some(incident) = self.incidents.get_mut(&task.incident) {
                let deeds = incident.deeds.iter_mut().filter(|d| d.task == Some(task.id));
                deeds.for_each(|deed| deed.withdrawn = true);
                incident.note("note", format!("{} is undone: {why}", task.asked.kind()), now);
            }
            Self::answer(&mut self.answered, &mut self.commands, task, AckStatus::Failed, &format!("undone: {why}"));
        }
    }

    /// Plans all anew, after settings, lists or the mode changed: what the guard forbids now is taken back.
    pub(super) fn recheck_tasks(&mut self, now: Now) {
        if self.effective.mode != Mode::Enforce {
            let why = format!("in mode {} other tools are left alone", self.effective.mode);
            return self.retract(|_| true, &why, now);
        }
        let rules = std::mem::take(&mut self.effective.rules);
        let is_gone = |task: &Task| match &task.why {
            Why::Rule { id, .. } => !rules.iter().any(|r| r.id == *id && is_same_kind(&r.action, &task.asked)),
            Why::Order { .. } => false,
        };
        self.retract(is_gone, "its rule was changed, disabled or deleted", now);
        self.effective.rules = rules;
        let ids: Vec<Uuid> = self.tasks.values().filter(|t| t.state != TaskState::Ending).map(|t| t.id).collect();
        for id in ids {
            self.plan_anew(id, now);
        }
    }

    fn plan_anew(&mut self, id: Uuid, now: Now) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let spared = self.incidents.get(&task.incident).map_or(&[][..], |i| &i.spared);
        match tool_guard::plan(&task.asked, task.target, &self.effective, &self.allow, spared) {
            Ok(planned) if planned.steps == task.steps => {}
            Ok(planned) => {
                task.steps = planned.steps;
                task.cloud = planned.action.is_cloud().then_some(planned.action);
                self.tasks_changed = true;
            }
            Err(why) => {
                self.refusals = self.refusals.saturating_add(1);
                self.retract(|t| t.id == id, &why.to_string(), now);
            }
        }
    }

    /// Leaves `source` out of every action from now on; of how many it was a part.
    pub(super) fn lift_from_tasks(&mut self, source: IpNet, now: Now) -> usize {
        let names =
            |t: &&mut Task| t.state != TaskState::Ending && t.asked.sources().is_some_and(|all| all.contains(&source));
        let ids: Vec<Uuid> = self.tasks.values_mut().filter(names).map(|t| t.id).collect();
        for id in &ids {
            let Some(task) = self.tasks.get_mut(id) else { continue };
            if let Some(sources) = task.asked.sources_mut() {
                sources.retain(|s| *s != source);
            }
            let (incident, is_empty) = (task.incident, task.asked.sources().is_some_and(<[_]>::is_empty));
            if let Some(incident) = self.incidents.get_mut(&incident) {
                incident.spared.push(source);
                incident.note("undone", format!("{source} was unblocked by an operator"), now);
            }
            if is_empty {
                self.retract(|t| t.id == *id, "its last source was unblocked", now);
            } else {
                self.plan_anew(*id, now);
            }
        }
        ids.len()
    }

    /// Makes those of one incident the other's, which goes on instead of it.
    pub(super) fn hand_over_tasks(&mut self, from: Uuid, to: Uuid) {
        let standing = self.tasks.values_mut().filter(|t| t.incident == from && t.state != TaskState::Ending);
        standing.for_each(|task| task.incident = to);
    }

    /// Ends those whose time is over.
    pub(super) fn expire_tasks(&mut self, now: Now) {
        let is_over = |t: &Task| t.expires_at_ns <= now.mono_ns;
        // An attack that outlasts a day meets the rule again.
        for task in self.tasks.values().filter(|t| is_over(t)) {
            if let (Why::Rule { id, .. }, Some(incident)) = (&task.why, self.incidents.get_mut(&task.incident)) {
                incident.fired.remove(id);
            }
        }
        self.retract(is_over, "its time is over", now);
    }

    /// Takes note of what the tools did.
    pub(super) fn on_acted(&mut self, results: Vec<Acted>, now: Now) {
        for result in results {
            let Some(task) = self.tasks.get_mut(&result.task) else { continue };
            self.state_changed = true;
            let incident = self.incidents.get_mut(&task.incident);
            match &result.outcome {
                Outcome::Applied => {
                    if task.state == TaskState::Wanted {
                        task.state = TaskState::InForce;
                    }
                    task.trouble = None;
                    Self::answer(&mut self.answered, &mut self.commands, task, AckStatus::Applied, &result.output);
                }
                Outcome::Failed(why) => {
                    Self::answer(&mut self.answered, &mut self.commands, task, AckStatus::Failed, why);
                }
                Outcome::Undone => {}
                Outcome::Stuck(why) => task.trouble = Some(words(why)),
                Outcome::Amiss(why) => task.trouble = why.as_deref().map(words),
            }
            if let Some(incident) = incident {
                incident.learn(&result, task.asked.kind(), now);
            }
            if matches!(result.outcome, Outcome::Failed(_) | Outcome::Undone) {
                self.tasks.remove(&result.task);
                self.tasks_changed = true;
            }
        }
    }

    /// Answers the order that wanted a task, once.
    fn answer(
        answered: &mut std::collections::VecDeque<(Uuid, CommandAck)>,
        commands: &mut std::collections::VecDeque<Command>,
        task: &mut Task,
        status: AckStatus,
        text: &str,
    ) {
        let Why::Order { command, answered: done @ false, .. } = &mut task.why else { return };
        *done = true;
        let (error, output) = match status {
            AckStatus::Applied => (String::new(), words(text)),
            AckStatus::Failed => (words(text), String::new()),
        };
        let ack = CommandAck { command_id: *command, status, error, output };
        super::orders::remember(answered, ack.clone());
        commands.push_back(Command::Ack(ack));
    }

    /// Whether something of an incident is still to be undone.
    pub(super) fn has_ending(&self, incident: Uuid) -> bool {
        self.tasks.values().any(|t| t.incident == incident && t.state == TaskState::Ending)
    }

    /// What should be in force in other tools.
    pub fn desired_actions(&self) -> ActionSet {
        let (ending, wanted): (Vec<&Task>, Vec<&Task>) =
            self.tasks.values().partition(|t| t.state == TaskState::Ending);
        let one =
            |t: &Task| Wanted { task: t.id, tool: t.asked.tool(), steps: t.steps.clone(), cloud: t.cloud.clone() };
        ActionSet {
            wanted: wanted.into_iter().map(one).collect(),
            ending: ending.into_iter().map(|t| Ending { task: t.id, tool: t.asked.tool() }).collect(),
        }
    }
}

/// Whether a rule's action is still the one that fired: the same but for the sources, which came from the incident.
fn is_same_kind(rule: &Action, asked: &Action) -> bool {
    let bare = |action: &Action| {
        let mut action = action.clone();
        if let Some(sources) = action.sources_mut() {
            sources.clear();
        }
        action
    };
    bare(rule) == bare(asked)
}

/// How many members steps put into sets.
fn members(steps: &[ToolStep]) -> usize {
    steps.iter().filter_map(|step| step.members.as_ref()).map(|members| members.prefixes.len()).sum()
}

fn words(text: &str) -> String {
    text.chars().take(MAX_WORDS / 4).collect()
}

impl Incident {
    /// Notes what became of the action of another tool.
    fn learn(&mut self, result: &Acted, kind: &str, now: Now) {
        let opened_ns = self.opened_ns;
        let Some(deed) = self.deeds.iter_mut().find(|d| d.task == Some(result.task)) else { return };
        let commands = || result.commands.iter().take(64).cloned().collect::<Vec<_>>();
        match &result.outcome {
            Outcome::Applied if deed.applied_at.is_none() => {
                deed.applied_at = Some(now.wall);
                deed.latency_us = result.at_mono_ns.saturating_sub(opened_ns) / 1_000;
                (deed.commands, deed.output) = (commands(), words(&result.output));
                // A request's body may be long, and stands in the execution.
                let text: String =
                    deed.commands.first().map(|c| c.join(" ").chars().take(300).collect()).unwrap_or_default();
                let text = format!("{} command(s) of {kind}: {text}", result.commands.len());
                self.note("mitigated", text, now);
            }
            Outcome::Applied | Outcome::Amiss(None) => {}
            Outcome::Failed(why) => {
                deed.failed = Some(words(why));
                deed.withdrawn = true;
                deed.latency_us = result.at_mono_ns.saturating_sub(opened_ns) / 1_000;
                deed.commands = commands();
                self.note("note", format!("{kind} failed: {}", words(why)), now);
            }
            Outcome::Undone if deed.undone_at.is_none() => {
                deed.undone_at = Some(now.wall);
                (deed.undo, deed.undo_output) = (commands(), words(&result.output));
                self.note("undone", format!("{kind} undone"), now);
            }
            Outcome::Undone => {}
            Outcome::Stuck(why) => {
                let text = format!("{kind} could not be undone yet: {}", words(why));
                if self.told.insert(text.clone()) {
                    self.note("note", text, now);
                }
            }
            Outcome::Amiss(Some(why)) => {
                let text = format!("a part of {kind} is missing: {}", words(why));
                if self.told.insert(text.clone()) {
                    self.note("note", text, now);
                }
            }
        }
    }
}
