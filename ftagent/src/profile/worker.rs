//! The thread that carries profiles out: one order after the other, the journal before each, and a look every few
//! seconds whether all is as it should be.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ftagent_common::api::{
    AckStatus, CommandAck, Kept, NodeCommand, Order, ProfileReport, ProfileState, Suite, compile,
};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::course::{Current, End, Journal, Moment, Next, Past, Phase, Wanted};
use super::tools::Tools;
use super::{Event, Friends, ProfileOrder, ProfileStatus, kept, suites};
use crate::clock;
use crate::engine::OrderOutcome;
use crate::persist::{self, Loaded, PersistError};

/// Between two looks, and before what failed is tried again.
const LOOK: Duration = Duration::from_secs(5);
/// Whether a look may begin so many seconds before the end of a trial, which it could delay: firewalld takes a command for
/// each rule.
fn has_time(suite: Suite, left_secs: Option<u64>) -> bool {
    let enough = match suite {
        Suite::Iptables | Suite::Nftables | Suite::Ufw => 5,
        Suite::Firewalld => 60,
    };
    left_secs.is_none_or(|left| left > enough)
}

/// How often the clocks are read while something is on trial.
const SECOND: Duration = Duration::from_secs(1);

/// What the daemon wants.
pub(super) enum Asked {
    Command(Box<NodeCommand>),
    Operator(ProfileOrder, oneshot::Sender<OrderOutcome>),
    Friends(Friends),
}

/// What the thread owns.
pub(super) struct Worker {
    pub(super) journal: Journal,
    pub(super) path: PathBuf,
    pub(super) boot: String,
    pub(super) tools: Tools,
    /// Whom the node keeps by its own.
    pub(super) friends: Friends,
    /// Where the SSH server's configuration is.
    pub(super) ssh: PathBuf,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) status: Arc<Mutex<Option<ProfileStatus>>>,
    pub(super) next_look_ns: u64,
    pub(super) repairs: u64,
    /// Why the profile is not as it should be.
    pub(super) fault: Option<String>,
    /// Why what is on disk is not what is so, for the operator.
    pub(super) unsaved: Arc<Mutex<Option<String>>>,
    /// The journal could not be read: it may say that something is in force, and is not written over.
    pub(super) is_unread: bool,
}

impl Worker {
    /// Reads what the last agent left, if that can be; if not, nothing new is begun and it is tried again.
    pub(super) fn try_open(&mut self) {
        let why = self.open().err().map(|error| error.to_string());
        self.is_unread = why.is_some();
        let before = std::mem::replace(&mut *self.lock_unsaved(), why.clone());
        if let Some(why) = why.filter(|why| before.as_ref() != Some(why)) {
            error!(why, "no profile is put in force or taken back");
        }
    }

    /// Reads what the last agent left; answers what of a profile that nobody knows any more could not be taken back.
    pub(super) fn open(&mut self) -> Result<Vec<String>, PersistError> {
        match persist::load_json(&self.path, clock::wall().unix_timestamp())? {
            Loaded::There(journal) => self.journal = journal,
            Loaded::Missing => {}
            Loaded::Corrupt { moved_to, why } => {
                error!(moved_to = %moved_to.display(), why, "the journal of profiles is corrupt: ours is taken back");
                let left = suites::take_leftovers(&mut self.tools);
                for fault in &left {
                    warn!(fault, "part of a profile that nobody knows any more may be left");
                }
                return Ok(left);
            }
        }
        Ok(Vec::new())
    }

    /// Works until nobody asks any more. A profile that nobody confirmed does not stay behind.
    pub(super) fn run(mut self, asked: &Receiver<Asked>) {
        self.begin();
        self.publish();
        loop {
            match asked.recv_timeout(self.pause()) {
                Ok(asked) => self.on_asked(asked),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.on_time();
            self.publish();
        }
        if self.journal.on_stop().is_some() {
            self.end_by_itself();
        }
    }

    /// Puts right what the last agent left half done.
    fn begin(&mut self) {
        if self.journal.on_start(&self.moment()).is_some() {
            self.end_by_itself();
        }
        // Taken back without an agent, or by one that was killed before it could say so.
        for past in self.journal.untold() {
            self.report_end(&past);
        }
    }

    fn pause(&self) -> Duration {
        let Some(current) = &self.journal.current else {
            return if self.is_unsaved() { LOOK } else { Duration::from_secs(3_600) };
        };
        match current.left_ns(&self.moment()) {
            Some(left) => SECOND.min(Duration::from_nanos(left)),
            None => Duration::from_nanos(self.next_look_ns.saturating_sub(clock::mono_ns())),
        }
    }

    fn moment(&self) -> Moment {
        let now = clock::now();
        let wall_ns = i64::try_from(now.wall.unix_timestamp_nanos()).unwrap_or(i64::MAX);
        Moment { boot: self.boot.clone(), mono_ns: now.mono_ns, wall_ns }
    }

    fn on_asked(&mut self, asked: Asked) {
        match asked {
            Asked::Command(command) => self.on_command(*command),
            Asked::Operator(order, answer) => {
                let outcome = match self.on_operator(order) {
                    Ok(detail) => OrderOutcome::Done { detail },
                    Err(why) => OrderOutcome::Refused { why },
                };
                self.publish();
                // Whoever asked may have gone.
                drop(answer.send(outcome));
            }
            Asked::Friends(friends) => {
                if self.friends != friends {
                    self.friends = friends;
                    self.next_look_ns = 0;
                }
            }
        }
    }

    fn on_command(&mut self, command: NodeCommand) {
        let done = match command.order {
            _ if self.is_unread => Err(self.unread()),
            Order::ApplyProfile { application, profile, suite, rules, custom, keep, confirm_secs } => {
                let wanted = Wanted { application, profile, suite, rules, custom, keep, confirm_secs };
                match self.journal.on_apply(&wanted) {
                    Next::Apply => self.apply(wanted),
                    Next::Answer(answer) => answer,
                    Next::Keep(_) | Next::TakeBack => Err("an order that cannot be".to_owned()),
                }
            }
            Order::ConfirmProfile { application } => self.confirm(application),
            Order::RollBackProfile { application } => {
                let next = self.journal.on_roll_back(application, "the control plane said so");
                let done = self.roll_back(next);
                if done.is_ok() {
                    self.tell(application);
                }
                done.map(|(detail, _)| detail)
            }
            Order::Block { .. } | Order::Unblock { .. } | Order::ResolveIncident { .. } | Order::Apply { .. } => return,
        };
        self.publish();
        let (status, error, output) = match done {
            Ok(output) => (AckStatus::Applied, String::new(), output),
            Err(error) => (AckStatus::Failed, error, String::new()),
        };
        self.say(Event::Ack(CommandAck { command_id: command.command_id, status, error, output }));
    }

    fn on_operator(&mut self, order: ProfileOrder) -> Result<String, String> {
        if self.is_unread {
            return Err(self.unread());
        }
        let Some(current) = &self.journal.current else {
            return Err("there is no profile on this node".to_owned());
        };
        let application = current.wanted.application;
        match order {
            ProfileOrder::Confirm => {
                let detail = self.confirm(application)?;
                let reason = "an operator confirmed it at the node".to_owned();
                self.report(ProfileReport { application, state: ProfileState::Confirmed, reason });
                Ok(detail)
            }
            ProfileOrder::RollBack => {
                let next = self.journal.on_roll_back(application, "an operator took it back at the node");
                let (detail, past) = self.roll_back(next)?;
                if let Some(past) = &past {
                    self.report_end(past);
                }
                Ok(detail)
            }
        }
    }

    fn unread(&self) -> String {
        let why = self.lock_unsaved().clone().unwrap_or_default();
        format!("nothing was done, for what this node has cannot be read: {why}")
    }

    fn apply(&mut self, wanted: Wanted) -> Result<String, String> {
        let application = wanted.application;
        match self.prepare(wanted) {
            Ok((current, note)) => self.put_in_force(current).map(|()| format!("in force, on trial{note}")),
            Err(why) => {
                warn!(%application, why, "profile refused");
                self.journal.remember(Past { application, end: End::Failed, reason: why.clone(), told: false });
                self.save().unwrap_or_else(|error| warn!(%error, "a refused profile is not noted"));
                Err(why)
            }
        }
    }

    /// Everything that can fail without a trace.
    fn prepare(&mut self, wanted: Wanted) -> Result<(Current, String), String> {
        if !(30..=3_600).contains(&wanted.confirm_secs) {
            return Err(format!("confirm_secs must be 30 to 3600, got {}", wanted.confirm_secs));
        }
        let friends = self.friends();
        let (kept, cut) = kept::together(&wanted.keep, &friends)?;
        let in_use = friends.in_use;
        // The same strict reading as in the control plane: what came is not trusted for having come.
        let compiled = compile(wanted.suite, &wanted.rules, &wanted.custom, &kept).map_err(|e| e.to_string())?;
        let (seen, noted, steps) = (String::new(), Vec::new(), compiled.steps);
        let mut current = Current { wanted, phase: Phase::Applying, kept, in_use, steps, seen, noted };
        let note = suites::prepare(&mut self.tools, &mut current)?;
        Ok((current, note + &cut.map(|cut| format!("; {cut}")).unwrap_or_default()))
    }

    fn put_in_force(&mut self, current: Current) -> Result<(), String> {
        let application = current.wanted.application;
        self.journal.current = Some(current);
        if let Err(error) = self.save() {
            self.journal.current = None;
            return Err(format!("nothing was done, for it could not be noted first: {error}"));
        }
        self.publish();
        let done = self.put().and_then(|()| {
            let began = self.moment();
            if let Some(current) = &mut self.journal.current {
                current.phase = Phase::Trial { began };
            }
            self.save().map_err(|error| format!("it could not be noted: {error}"))
        });
        let Err(why) = done else {
            info!(%application, "profile in force, on trial");
            return Ok(());
        };
        self.journal.begin_to_take_back(End::Failed, &why);
        match self.take_back() {
            Ok(_) => Err(why),
            Err(left) => Err(format!("{why}; what was done is not undone yet: {left}")),
        }
    }

    /// Brings the tools to the steps and notes what they show then.
    fn put(&mut self) -> Result<(), String> {
        let Some(current) = &mut self.journal.current else { return Ok(()) };
        suites::put(&mut self.tools, current)?;
        let seen = suites::observe(&mut self.tools, current)?;
        if !seen.contains("FTAGENT-") && !seen.contains(ftagent_common::api::PROFILE_TABLE) {
            return Err("the tool took it, and shows nothing of it".to_owned());
        }
        current.seen = seen;
        self.next_look_ns = clock::mono_ns() + LOOK.as_nanos() as u64;
        Ok(())
    }

    fn confirm(&mut self, application: uuid::Uuid) -> Result<String, String> {
        let before = self.journal.clone();
        match self.journal.on_confirm(application, &self.moment()) {
            Next::Keep(detail) => {
                if let Err(error) = self.save() {
                    self.journal = before;
                    return Err(format!("still on trial, for it could not be noted: {error}"));
                }
                info!(%application, "profile confirmed");
                Ok(detail)
            }
            Next::Answer(answer) => answer,
            Next::Apply | Next::TakeBack => {
                let past = self.end_by_itself();
                Err(past.map_or_else(|| "it lapsed".to_owned(), |past| past.words()))
            }
        }
    }

    /// With what was taken back just now.
    fn roll_back(&mut self, next: Next) -> Result<(String, Option<Past>), String> {
        match next {
            Next::TakeBack => self.take_back().map(|past| ("taken back: nothing of it is left".to_owned(), Some(past))),
            Next::Answer(answer) => answer.map(|detail| (detail, None)),
            Next::Keep(detail) => {
                self.save().unwrap_or_else(|error| warn!(%error, "an order to roll back is not noted"));
                Ok((detail, None))
            }
            Next::Apply => Err("an order that cannot be".to_owned()),
        }
    }

    /// Takes back what the course ended without an order, and tells the control plane.
    fn end_by_itself(&mut self) -> Option<Past> {
        let past = self.take_back().ok()?;
        warn!(application = %past.application, why = past.words(), "profile taken back");
        self.report_end(&past);
        Some(past)
    }

    fn take_back(&mut self) -> Result<Past, String> {
        // Without a note of it the next start would do the same by its own clocks.
        self.save().unwrap_or_else(|error| warn!(%error, "that a profile is taken back is not noted"));
        self.publish();
        let Some(current) = &self.journal.current else { return Err("there is no profile".to_owned()) };
        self.next_look_ns = clock::mono_ns() + LOOK.as_nanos() as u64;
        if let Err(why) = suites::take(&mut self.tools, current) {
            self.note_fault(format!("it is not taken back yet: {why}"));
            return Err(why);
        }
        let past = self.journal.taken_back().ok_or("there is no profile")?;
        self.fault = None;
        self.repairs = 0;
        if let Err(error) = self.save() {
            warn!(%error, "that a profile was taken back is not noted");
            // What is there says that it is in force, and the next start would put it there again. This takes no room.
            persist::remove(&self.path)
                .unwrap_or_else(|error| error!(%error, "a profile may come back at the next start"));
        }
        info!(application = %past.application, "nothing of the profile is left");
        Ok(past)
    }

    fn on_time(&mut self) {
        let now = self.moment();
        if self.journal.on_time(&now).is_some() {
            self.end_by_itself();
            return;
        }
        let is_due = now.mono_ns >= self.next_look_ns;
        if is_due && self.is_unread {
            self.next_look_ns = now.mono_ns + LOOK.as_nanos() as u64;
            self.try_open();
            if !self.is_unread {
                self.begin();
            }
        } else if is_due && self.is_unsaved() {
            self.next_look_ns = now.mono_ns + LOOK.as_nanos() as u64;
            // Why not stands in the warnings.
            drop(self.save());
        }
        let Some(current) = &self.journal.current else { return };
        if !is_due || !has_time(current.wanted.suite, current.left_secs(&now)) {
            return;
        }
        if matches!(current.phase, Phase::TakingBack { .. }) {
            self.end_by_itself();
        } else {
            self.next_look_ns = now.mono_ns + LOOK.as_nanos() as u64;
            match self.look() {
                Ok(None) => self.fault = None,
                Ok(Some(cut)) => self.note_fault(cut),
                Err(why) => self.note_fault(format!("it is not as it should be: {why}")),
            }
        }
    }

    /// Repairs what others changed, and follows what the node keeps; answers what of that there is no room for.
    fn look(&mut self) -> Result<Option<String>, String> {
        let mut friends = self.friends();
        let Some(current) = &mut self.journal.current else { return Ok(None) };
        friends.in_use = kept::still(&current.in_use, &friends.in_use);
        let (kept, cut) = kept::together(&current.wanted.keep, &friends)?;
        let in_use = friends.in_use;
        let follows = kept != current.kept;
        if follows {
            let wanted = &current.wanted;
            let compiled = compile(wanted.suite, &wanted.rules, &wanted.custom, &kept).map_err(|e| e.to_string())?;
            let mut next = Current { kept, in_use, steps: compiled.steps, ..current.clone() };
            suites::fit(&mut self.tools, &mut next)?;
            *current = next;
            self.save().map_err(|error| error.to_string())?;
        }
        let Some(current) = &self.journal.current else { return Ok(cut) };
        if !follows && suites::observe(&mut self.tools, current)? == current.seen {
            return Ok(cut);
        }
        self.put()?;
        if !follows {
            self.repairs += 1;
            warn!(repairs = self.repairs, "somebody changed the profile's rules: repaired");
        }
        self.save().map(|()| cut).map_err(|error| error.to_string())
    }

    fn friends(&self) -> Friends {
        let mut friends = self.friends.clone();
        friends.kept.ports.extend(kept::ssh_ports(&self.ssh));
        friends
    }

    fn note_fault(&mut self, fault: String) {
        if self.fault.as_ref() != Some(&fault) {
            error!(fault, "profile");
            self.fault = Some(fault);
        }
    }

    fn save(&mut self) -> Result<(), PersistError> {
        self.tools.at("journal");
        if self.is_unread {
            return Err(PersistError::io(&self.path, "write over", io::Error::other(self.unread())));
        }
        let saved = persist::save_json(&self.path, &self.journal);
        self.tools.at("journal");
        *self.lock_unsaved() = saved.as_ref().err().map(ToString::to_string);
        saved
    }

    fn is_unsaved(&self) -> bool {
        self.lock_unsaved().is_some()
    }

    fn lock_unsaved(&self) -> MutexGuard<'_, Option<String>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report_end(&mut self, past: &Past) {
        if let Some(state) = past.end.state() {
            self.report(ProfileReport { application: past.application, state, reason: past.words() });
            self.tell(past.application);
        }
    }

    fn tell(&mut self, application: uuid::Uuid) {
        self.journal.tell(application);
        // What is told twice does no harm.
        self.save().unwrap_or_else(|error| warn!(%error, "that the control plane knows is not noted"));
    }

    fn report(&self, report: ProfileReport) {
        self.say(Event::Report(report));
    }

    fn say(&self, event: Event) {
        // A daemon that stops hears nothing any more; the control plane asks again.
        drop(self.events.send(event));
    }

    pub(super) fn publish(&self) {
        let now = self.moment();
        let status = self.journal.current.as_ref().map(|current| ProfileStatus {
            application: current.wanted.application,
            profile: current.wanted.profile.clone(),
            suite: current.wanted.suite,
            phase: current.phase.as_str().to_owned(),
            left_secs: current.left_secs(&now),
            rules: current.wanted.rules.len(),
            custom: current.wanted.custom.len(),
            kept: current.kept.clone(),
            repairs: self.repairs,
            fault: self.fault.clone(),
        });
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// Takes a profile back where no agent runs; answers which it was.
pub(super) fn take_back_alone(path: PathBuf, tools: Tools) -> Result<Option<Past>, String> {
    let (events, _) = mpsc::unbounded_channel();
    let nobody = Kept { ports: vec![], sources: vec![] };
    let mut worker = Worker {
        journal: Journal::default(),
        path,
        boot: String::new(),
        tools,
        friends: Friends { kept: nobody.clone(), allow: vec![], in_use: nobody },
        ssh: PathBuf::new(),
        events,
        status: Arc::default(),
        next_look_ns: 0,
        repairs: 0,
        fault: None,
        unsaved: Arc::default(),
        is_unread: false,
    };
    let left = worker.open().map_err(|error| error.to_string())?;
    if !left.is_empty() {
        return Err(format!("its journal was corrupt, and of what it was part may be left: {}", left.join("; ")));
    }
    let Some(current) = &worker.journal.current else { return Ok(None) };
    let application = current.wanted.application;
    worker.journal.on_roll_back(application, "an operator took it back at the node, without the agent");
    worker.take_back().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_look_begins_that_could_delay_the_end_of_a_trial() {
        for (suite, left, expected) in [
            (Suite::Nftables, Some(5), false),
            (Suite::Nftables, Some(6), true),
            (Suite::Firewalld, Some(6), false),
            (Suite::Firewalld, Some(61), true),
            (Suite::Firewalld, None, true),
        ] {
            assert_eq!(has_time(suite, left), expected, "{suite:?} {left:?}");
        }
    }
}
