//! What must survive a killed agent, so that undo still happens and what is normal need not be learnt again.

use std::collections::VecDeque;

use ftagent_common::api::{AllowEntry, CommandAck, NodeConfig};
use ftagent_common::vocab::IncidentStatus;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Engine;
use super::baseline::{Baseline, BaselineState};
use super::incident::Incident;
use super::input::Now;
use super::rules::Rule;
use super::settings::Settings;
use super::task::{Task, TaskState};
use super::web::WebState;

/// Everything of the engine that outlives its process. Monotonic times are only good within one boot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EngineState {
    /// When it was saved.
    pub saved_mono_ns: u64,
    pub next_rule: u64,
    pub rules: Vec<Rule>,
    /// Actions of other tools, with those whose undoing is not confirmed.
    #[serde(default)]
    pub tasks: Vec<Task>,
    /// Active incidents, and resolved ones whose rules are not yet known to be gone.
    pub incidents: Vec<Incident>,
    /// Resolved ones that the same attack would open again.
    #[serde(default)]
    pub dormant: Vec<Incident>,
    pub operator_allow: Vec<AllowEntry>,
    /// Firewall rule, target, and until when it does not fire again.
    pub cooldowns: Vec<(i64, IpNet, u64)>,
    pub baselines: Vec<(IpNet, BaselineState)>,
    /// What is usual at sites with access logs.
    #[serde(default)]
    pub web: Vec<WebState>,
    /// The control plane's newest configuration: it holds while the control plane is away.
    pub remote: Option<NodeConfig>,
    pub answered: Vec<(Uuid, CommandAck)>,
}

/// More revisions than an incident sends between two saved states, at one in five seconds.
const REVISION_GAP: u32 = 10_000;

impl Engine {
    /// What to save; see [`super::Command::Persist`].
    pub fn state(&self) -> EngineState {
        EngineState {
            saved_mono_ns: self.now_ns,
            next_rule: self.next_rule,
            rules: self.rules.values().cloned().collect(),
            tasks: self.tasks.values().cloned().collect(),
            incidents: self.incidents.values().cloned().collect(),
            dormant: self.dormant.iter().cloned().collect(),
            operator_allow: self.operator_allow.clone(),
            cooldowns: self.cooldowns.iter().map(|((rule, target), until)| (*rule, *target, *until)).collect(),
            baselines: self.baseline_states(),
            web: self.web_states(),
            remote: self.remote.clone(),
            answered: self.answered.iter().cloned().collect(),
        }
    }

    /// Continues from a saved state. `same_boot` says whether the kernel, its monotonic clock and what was pinned in
    /// it are still those of the saved state.
    ///
    /// After a reboot nothing is in the kernel any more: incidents are closed with a note and blocks of operators and
    /// of the control plane are installed again for what was left of their time.
    pub fn restore(settings: Settings, mut state: EngineState, now: Now, same_boot: bool) -> Self {
        for incident in state.incidents.iter_mut().chain(&mut state.dormant) {
            // Reports sent after the state was saved must not outrank what comes now.
            incident.revision = incident.revision.saturating_add(REVISION_GAP);
        }
        let mut engine = Self::new(settings, now);
        engine.next_rule = state.next_rule.max(state.rules.iter().map(|r| r.id.0 + 1).max().unwrap_or(0));
        engine.operator_allow = state.operator_allow;
        engine.remote = state.remote;
        engine.answered = VecDeque::from(state.answered);
        for (target, saved) in &state.baselines {
            engine.restored.insert(*target, Baseline::restore(saved));
        }
        engine.restore_web(state.web);
        if same_boot {
            engine.cooldowns =
                state.cooldowns.into_iter().map(|(rule, target, until)| ((rule, target), until)).collect();
            // While nobody looked it may have been back.
            state.incidents.iter_mut().for_each(|incident| incident.calm_since = None);
            engine.incidents = state.incidents.into_iter().map(|i| (i.uuid, i)).collect();
            engine.dormant = state.dormant.into();
            engine.forget_dormant(now);
            engine.rules = state.rules.into_iter().map(|r| (r.id, r)).collect();
            engine.tasks = state.tasks.into_iter().map(|t| (t.id, t)).collect();
            let closing: Vec<Uuid> = engine.incidents.values().filter(|i| !i.is_active()).map(|i| i.uuid).collect();
            for uuid in closing {
                engine.closing.insert(uuid, now.mono_ns);
            }
        } else {
            for mut rule in state.rules.into_iter().filter(|r| !r.origin.is_automatic()) {
                rule.expires_at_ns =
                    rule.expires_at_ns.map(|end| now.mono_ns + end.saturating_sub(state.saved_mono_ns));
                engine.rules.insert(rule.id, rule);
            }
            // What they left in files and servers of other tools, those undo by their own journal.
            let lasts = |t: &Task| !t.ends_with_incident() && t.state != TaskState::Ending;
            for mut task in state.tasks.into_iter().filter(lasts) {
                task.state = TaskState::Wanted;
                task.expires_at_ns = now.mono_ns + task.expires_at_ns.saturating_sub(state.saved_mono_ns);
                engine.tasks.insert(task.id, task);
            }
            for mut incident in state.incidents.into_iter().filter(Incident::is_active) {
                incident.status = IncidentStatus::Resolved;
                incident.resolved_at = Some(now.wall);
                incident.note(
                    "resolved",
                    "the machine was restarted: nothing of the response is in force any more",
                    now,
                );
                engine.send(&mut incident, now);
                engine.remember(incident.snapshot());
            }
        }
        (engine.rules_changed, engine.tasks_changed) = (true, true);
        engine.merge_settings(now);
        engine.finish(now);
        engine
    }
}
