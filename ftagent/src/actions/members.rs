//! Members of sets: one listing says what is there, one run puts in what is missing or takes out what is not wanted.
//!
//! Runs are chunks of members, and so are the journal's records; whose a member is and who wants it is known of each by
//! itself, so that two actions may share some, and what was there before either of them stays.
//!
//! ```text
//! member there, in no record ──▶ somebody else's: the record says so      there, in a record ──▶ ours
//! record not wanted ──▶ out with its members, but for those of somebody else and those that a wanted record has too
//! ```

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use ftagent_common::api::{Members, SetListing, ToolStep};
use ipnet::IpNet;
use uuid::Uuid;

use super::journal::Entry;
use super::keeper::{Keeper, LINGER_NS};
use super::record::Record;
use super::runner::{Ran, Runner};
use super::undo::{PAUSE, TRIES, Undone};
use crate::engine::Wanted;

/// A listing of a large set is work for the machine: it takes a hundredth of the time at most.
const REST: u64 = 100;

/// What a set holds of the members that were asked for.
#[derive(Debug, Default)]
pub(super) struct Held {
    is_there: bool,
    listing: SetListing,
    /// In order.
    seen: Vec<IpNet>,
    took_us: u64,
}

impl Held {
    fn has(&self, prefix: &IpNet) -> bool {
        self.seen.binary_search(prefix).is_ok()
    }
}

/// What is to be written and put in before the members of an action are there.
#[derive(Debug, Default)]
pub(super) struct Lacking {
    pub(super) entries: Vec<Entry>,
    /// By the object of the step; nothing: all of it is there.
    pub(super) missing: BTreeMap<String, Vec<IpNet>>,
}

/// An object, and what became of it.
type Gone = (String, Result<Undone, String>);

/// A run that took out members.
#[derive(Debug)]
pub(super) struct Fed {
    pub(super) object: String,
    pub(super) argv: Vec<String>,
    pub(super) lines: usize,
    pub(super) what: String,
    pub(super) ran: Ran,
}

impl<R: Runner> Keeper<R> {
    /// What `set` holds of `asked`.
    fn held<'a>(&mut self, set: &str, asked: impl Iterator<Item = &'a [IpNet]>) -> Result<Held, String> {
        let mut all: Vec<IpNet> = asked.flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        let mut held = Held::default();
        let argv = SetListing::argv(set);
        let ran = self.runner.list(&argv, &mut |line| {
            if let Some(member) = held.listing.take(line)
                && all.binary_search(&member).is_ok()
            {
                held.seen.push(member);
            }
        });
        held.took_us = ran.took_us;
        held.is_there =
            SetListing::is_there(ran.exit, &ran.output).ok_or_else(|| format!("{}: {}", argv.join(" "), ran.text()))?;
        held.seen.sort_unstable();
        Ok(held)
    }

    /// What the sets of `steps` hold of their members.
    pub(super) fn held_by_sets(&mut self, steps: &[&ToolStep]) -> Result<BTreeMap<String, Held>, String> {
        let mut sets: BTreeMap<&str, Vec<&[IpNet]>> = BTreeMap::new();
        for members in steps.iter().filter_map(|step| step.members.as_ref()) {
            sets.entry(&members.set).or_default().push(&members.prefixes);
        }
        let mut all = BTreeMap::new();
        for (set, asked) in sets {
            all.insert(set.to_owned(), self.held(set, asked.into_iter())?);
        }
        Ok(all)
    }

    /// What the journal is to say of the members of an action, and which are to be put in.
    ///
    /// # Errors
    /// When a set does not take them: nothing was put in.
    pub(super) fn lacking(
        &self,
        task: Uuid,
        steps: &[(usize, &ToolStep)],
        held: &BTreeMap<String, Held>,
    ) -> Result<Lacking, String> {
        let mut lacking = Lacking::default();
        for (set, held) in held {
            let ours = self.ours(set);
            let mut new = Vec::new();
            for (place, step) in steps {
                let Some(members) = step.members.as_ref().filter(|members| members.set == *set) else { continue };
                let (there, missing): (Vec<IpNet>, Vec<IpNet>) = members.prefixes.iter().partition(|p| held.has(p));
                let known = self.journal.entries().get(&step.object());
                let theirs: Vec<IpNet> = match known {
                    // One that was somebody else's and is gone is ours when it is put in again.
                    Some(known) => known.theirs.iter().filter(|p| held.has(p)).copied().collect(),
                    None => there.into_iter().filter(|p| ours.binary_search(p).is_err()).collect(),
                };
                if known.is_none_or(|known| known.theirs != theirs) {
                    let place = u32::try_from(*place).unwrap_or(u32::MAX);
                    let step = (*step).clone();
                    let boot = self.boot.clone();
                    lacking.entries.push(Entry { task, step, place, found: false, before: None, boot, theirs });
                }
                new.extend_from_slice(&missing);
                lacking.missing.insert(step.object(), missing);
            }
            if let Some(why) = held.listing.why_not(set, &new).filter(|_| held.is_there && !new.is_empty()) {
                return Err(why);
            }
        }
        Ok(lacking)
    }

    /// The members of `set` that the journal has as ours, in order.
    fn ours(&self, set: &str) -> Vec<IpNet> {
        let mut ours = Vec::new();
        for entry in self.journal.entries().values() {
            if let Some(members) = members(entry).filter(|members| members.set == set) {
                ours.extend(own(entry, &members));
            }
        }
        ours.sort_unstable();
        ours
    }

    /// Puts `missing` in.
    pub(super) fn put_in(&mut self, step: &ToolStep, missing: &[IpNet], record: &mut Record) -> Result<(), String> {
        let Some(members) = step.members.as_ref().filter(|_| !missing.is_empty()) else { return Ok(()) };
        let ran = self.runner.feed(&step.run, &members.to_add(missing));
        record.add_fed(&step.run, missing.len(), &members.words(), &ran);
        if ran.is_success() { Ok(()) } else { Err(format!("{}: {}", step.run.join(" "), ran.text())) }
    }

    /// Takes out what the journal has as `objects`, all of one set, but for what others want.
    pub(super) fn take_out(
        &mut self,
        set: &str,
        objects: &[String],
        wanted: &BTreeSet<String>,
        now_ns: u64,
    ) -> (Vec<Fed>, Vec<Gone>) {
        let mut kept: Vec<IpNet> = Vec::new();
        for (object, entry) in self.journal.entries() {
            if let Some(members) = members(entry)
                && members.set == set
                && wanted.contains(object)
                && !objects.contains(object)
            {
                kept.extend(own(entry, &members));
            }
        }
        kept.sort_unstable();
        // What is to go, by object.
        let mut going: Vec<(String, Entry, Vec<IpNet>)> = Vec::new();
        for object in objects {
            let Some(entry) = self.journal.entries().get(object) else { continue };
            let Some(members) = members(entry) else { continue };
            let some = own(entry, &members).filter(|p| kept.binary_search(p).is_err()).collect();
            going.push((object.clone(), entry.clone(), some));
        }
        let mut fed = Vec::new();
        let mut ends = Vec::new();
        if going.iter().all(|(_, _, some)| some.is_empty()) {
            ends.extend(going.into_iter().map(|(object, ..)| (object, Ok(Undone::Gone))));
            return (fed, ends);
        }
        let mut why = None;
        for attempt in 0..=TRIES {
            let held = match self.held(set, going.iter().map(|(_, _, some)| &some[..])) {
                Ok(held) => held,
                Err(words) => {
                    why = Some(words);
                    break;
                }
            };
            if held.seen.is_empty() {
                why = None;
                break;
            }
            if attempt == TRIES {
                why.get_or_insert_with(|| format!("ipset {set}: {} members are still there", held.seen.len()));
                break;
            }
            if attempt > 0 {
                std::thread::sleep(PAUSE);
            }
            for (object, entry, some) in &going {
                let there: Vec<IpNet> = some.iter().filter(|p| held.has(p)).copied().collect();
                let Some(members) = members(entry).filter(|_| !there.is_empty()) else { continue };
                // An older agent had a command for each.
                let argv = SetListing::restore();
                let ran = self.runner.feed(&argv, &members.to_delete(&there));
                if !ran.is_success() {
                    why = Some(format!("{}: {}", argv.join(" "), ran.text()));
                }
                fed.push(Fed { object: object.clone(), argv, lines: there.len(), what: members.words(), ran });
            }
        }
        let is_young = now_ns.saturating_sub(self.opened_ns) < LINGER_NS;
        for (object, ..) in going {
            // The run of a dead agent may be in the middle of its lines: what it adds late is looked for once more.
            let late = is_young && self.inherited.contains(&object);
            let end = match &why {
                Some(why) => Err(why.clone()),
                None => Ok(if late { Undone::Later } else { Undone::Gone }),
            };
            ends.push((object, end));
        }
        (fed, ends)
    }

    /// Puts in again what somebody took out or what ran out, and keeps the rest from running out.
    pub(super) fn repair_members(&mut self, seen: &mut BTreeMap<Uuid, Record>, now_ns: u64) {
        let has_members = |w: &&Wanted| w.steps.iter().any(|step| step.members.is_some());
        let done: Vec<Wanted> =
            self.wanted.iter().filter(has_members).filter(|w| self.is_done(w.task)).cloned().collect();
        for one in done {
            let steps: Vec<(usize, &ToolStep)> =
                one.steps.iter().enumerate().filter(|(_, step)| step.members.is_some()).collect();
            let record = seen.entry(one.task).or_default();
            match self.repair_members_of(one.task, &steps, record, now_ns) {
                Ok(false) => {}
                Ok(true) => self.note(one.task, None, Ok(())),
                Err(why) => self.note(one.task, None, Err(why)),
            }
        }
    }

    /// Whether they were looked at.
    fn repair_members_of(
        &mut self,
        task: Uuid,
        steps: &[(usize, &ToolStep)],
        record: &mut Record,
        now_ns: u64,
    ) -> Result<bool, String> {
        for (_, step) in steps {
            if self.is_to_renew(step, now_ns) {
                let object = step.object();
                let entry = self.journal.entries().get(&object);
                let ours: Vec<IpNet> = entry.and_then(|e| Some(own(e, &*members(e)?).collect())).unwrap_or_default();
                self.put_in(step, &ours, record)?;
                self.renewed_ns.insert(object, now_ns);
            }
        }
        let is_due = |(_, step): &&(usize, &ToolStep)| {
            let set = step.members.as_ref().map_or("", |members| &members.set);
            self.next_list_ns.get(&(task, set.to_owned())).is_none_or(|next| *next <= now_ns)
        };
        let due: Vec<(usize, &ToolStep)> = steps.iter().filter(is_due).copied().collect();
        if due.is_empty() {
            return Ok(false);
        }
        let held = self.held_by_sets(&due.iter().map(|(_, step)| *step).collect::<Vec<_>>())?;
        for (set, held) in &held {
            let next_ns = now_ns + held.took_us.saturating_mul(1_000 * REST);
            self.next_list_ns.insert((task, set.clone()), next_ns);
        }
        let lacking = self.lacking(task, &due, &held)?;
        let missing: usize = lacking.missing.values().map(Vec::len).sum();
        if missing == 0 {
            return Ok(true);
        }
        tracing::warn!(missing, "members of a set were taken out by somebody else: they are put in again");
        self.journal.begin(lacking.entries).map_err(|error| error.to_string())?;
        for (_, step) in due {
            if let Some(missing) = lacking.missing.get(&step.object()) {
                self.put_in(step, missing, record)?;
            }
        }
        Ok(true)
    }
}

/// The members that an entry is about; those of an older agent were one to an entry.
pub(super) fn members(entry: &Entry) -> Option<Cow<'_, Members>> {
    if let Some(members) = &entry.step.members {
        return Some(Cow::Borrowed(members));
    }
    let [program, verb, set, member, ..] = entry.step.run.as_slice() else { return None };
    if program != "ipset" || verb != "add" {
        return None;
    }
    let prefix = member.parse().or_else(|_| member.parse::<std::net::IpAddr>().map(IpNet::from)).ok()?;
    Members::of(set, 0, vec![prefix]).pop().map(Cow::Owned)
}

/// Those of `members` that are not somebody else's.
fn own<'a>(entry: &'a Entry, members: &'a Members) -> impl Iterator<Item = IpNet> + 'a {
    let is_own = |p: &&IpNet| !entry.found && entry.theirs.binary_search(p).is_err();
    members.prefixes.iter().filter(is_own).copied()
}
