//! Keeps what one provider holds for us as it should be: tries again what may still succeed, tells what cannot, undoes
//! what is not wanted, and looks from time to time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use uuid::Uuid;

use super::api::{Api, Fault};
use super::{CloudConfig, CloudEntry, LINGER_NS, Made, Place, Provider, Work, narrow, provider};
use crate::actions::journal::{Journal, Kept as _};
use crate::actions::lane;
use crate::actions::record::Record;
use crate::actions::{Closing, ToolStatus};
use crate::clock;
use crate::engine::{Acted, Outcome, Wanted};

const SEC: u64 = 1_000_000_000;
/// Between two looks at a place, at most; each node takes up to so much less, so that not all look at once.
const LOOK_NS: u64 = 30 * SEC;
const SPREAD_NS: u64 = 5 * SEC;
/// After a change the first look comes sooner: another node may have changed it at the same time.
const SOON_NS: u64 = 5 * SEC;
/// Between two tries: from the first to the last, doubled from one to the next.
const RETRY_NS: u64 = SEC;
const MAX_DOUBLINGS: u32 = 6;
/// What is not done by then is told as failed.
const GIVE_UP_NS: u64 = 600 * SEC;
/// Of many that are stuck, so many are shown.
const MAX_SHOWN: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    New,
    Done,
    /// Told; not tried again.
    Failed,
}

/// An action that is wanted.
struct Job {
    place: Place,
    sources: Vec<IpNet>,
    progress: Progress,
    /// When it was tried first.
    begun_ns: Option<u64>,
    record: Record,
    told: Option<String>,
}

/// How a place does.
#[derive(Default)]
struct At {
    /// Something that is not wanted may be there.
    is_dirty: bool,
    next_ns: u64,
    tries: u32,
    look_ns: u64,
    /// Why the last try to undo did not do it.
    stuck: Option<String>,
}

impl At {
    fn put_off(&mut self, fault: &Fault, now_ns: u64) {
        let wait = RETRY_NS << self.tries.min(MAX_DOUBLINGS);
        let asked = match fault {
            Fault::Later { after_secs: Some(secs), .. } => secs * SEC,
            _ => 0,
        };
        self.tries = self.tries.saturating_add(1);
        self.next_ns = now_ns + wait.max(asked);
    }
}

/// The keeper of one provider.
pub struct CloudKeeper {
    provider: Box<dyn Provider>,
    api: Api,
    journal: Journal<CloudEntry>,
    mark: Result<String, String>,
    jobs: BTreeMap<Uuid, Job>,
    places: BTreeMap<Place, At>,
    /// Where an action acted, as far as this process knows, and on whom.
    ending: BTreeMap<Uuid, Option<(Place, Vec<IpNet>)>>,
    undone: BTreeMap<Uuid, Record>,
    told: BTreeMap<Uuid, String>,
    /// What was done without an action that is known.
    nobodys: Record,
    unsure: BTreeMap<String, u64>,
    /// The provider asked to be left alone until then.
    not_before_ns: u64,
    /// Actions that came without saying what they are.
    unknown: Vec<Uuid>,
}

impl CloudKeeper {
    /// A keeper that takes over what `journal` says; `mark` is the node's, or why there is none.
    pub fn new(
        tool: &'static str,
        config: Option<CloudConfig>,
        journal: Journal<CloudEntry>,
        mark: Result<String, String>,
        closing: Arc<Closing>,
        now_ns: u64,
    ) -> Self {
        let may_come_late = |entry: &&CloudEntry| !matches!(entry.made, Made::Object { id: Some(_), .. });
        let late = journal.entries().values().filter(may_come_late).map(|entry| (entry.name(), now_ns + LINGER_NS));
        let (unsure, places) = (late.collect(), BTreeMap::new());
        let mut keeper = Self {
            provider: provider(tool),
            api: Api::new(tool, config, closing),
            journal,
            mark,
            jobs: BTreeMap::new(),
            places,
            ending: BTreeMap::new(),
            undone: BTreeMap::new(),
            told: BTreeMap::new(),
            nobodys: Record::default(),
            unsure,
            not_before_ns: 0,
            unknown: Vec::new(),
        };
        let places: BTreeSet<Place> = keeper.journal.entries().values().map(|entry| entry.place.clone()).collect();
        places.into_iter().for_each(|place| keeper.soil(&place));
        keeper
    }

    fn at(&mut self, place: &Place) -> &mut At {
        self.places.entry(place.clone()).or_default()
    }

    fn soil(&mut self, place: &Place) {
        self.at(place).is_dirty = true;
    }

    /// Takes the newest word on what should be in force and on what should not.
    pub fn set(&mut self, wanted: Vec<Wanted>, ending: impl IntoIterator<Item = Uuid>) {
        let mut jobs = BTreeMap::new();
        for one in wanted {
            let Some((place, sources)) = one.cloud.as_ref().and_then(Place::of) else {
                self.unknown.push(one.task);
                continue;
            };
            let job = match self.jobs.remove(&one.task) {
                Some(known) if known.place == place && known.sources == sources => known,
                known => {
                    // Another plan of the same action: what is new of it is done, what is not in it any more undone.
                    known.iter().for_each(|known| self.soil(&known.place));
                    Job {
                        place,
                        sources,
                        progress: Progress::New,
                        begun_ns: None,
                        record: Record::default(),
                        told: None,
                    }
                }
            };
            jobs.insert(one.task, job);
        }
        let before = std::mem::replace(&mut self.jobs, jobs);
        before.values().for_each(|job| self.soil(&job.place));
        let ending: BTreeSet<Uuid> = ending.into_iter().collect();
        self.ending.retain(|task, _| ending.contains(task));
        for task in ending {
            let known = before.get(&task).map(|job| (job.place.clone(), job.sources.clone()));
            self.ending.entry(task).or_insert(known);
        }
        self.told.retain(|task, _| self.jobs.contains_key(task) || self.ending.contains_key(task));
        self.undone.retain(|task, _| self.ending.contains_key(task));
    }

    /// What is to stay at a place: what is wanted, and what actions behind `but` that end will undo in their turn.
    fn keep(&self, place: &Place, but: Option<Uuid>) -> Vec<IpNet> {
        let jobs = self.jobs.values().filter(|job| job.place == *place && job.progress != Progress::Failed);
        let ending = self.ending.iter().filter(|(task, _)| Some(**task) > but);
        let ending = ending.filter_map(|(_, known)| known.as_ref()).filter(|(at, _)| at == place);
        let sources = jobs.flat_map(|job| &job.sources).chain(ending.flat_map(|(_, sources)| sources));
        unique(sources.copied())
    }

    /// All of that, and whatever the journal has there: for when nothing is to be undone.
    fn keep_all(&self, place: &Place) -> Vec<IpNet> {
        let entries = self.journal.entries().values().filter(|entry| entry.place == *place);
        let made = entries.flat_map(|entry| match &entry.made {
            Made::Object { source, .. } => vec![*source],
            Made::Taken { taken, .. } => taken.nets.clone(),
        });
        unique(self.keep(place, None).into_iter().chain(made))
    }

    /// What is in force at a place.
    fn in_force(&self, place: &Place) -> Vec<IpNet> {
        let done = self.jobs.values().filter(|job| job.place == *place && job.progress == Progress::Done);
        unique(done.flat_map(|job| &job.sources).copied())
    }

    fn settle(
        &mut self,
        place: &Place,
        add: &[IpNet],
        keep: &[IpNet],
        record: &mut Record,
        now_ns: u64,
    ) -> Result<bool, Fault> {
        // Narrowing knows no sources, but addresses.
        let keep = match place {
            Place::Firewall(_) | Place::Group(_) => narrow::subtract(keep, &[]),
            Place::Zone(_) | Place::List { .. } => keep.to_vec(),
        };
        let mark = self.mark.as_ref().map_err(|why| Fault::refused(why.clone()))?;
        let mut work =
            Work { api: &mut self.api, journal: &mut self.journal, record, mark, now_ns, unsure: &mut self.unsure };
        let settled = self.provider.settle(place, add, &keep, &mut work);
        if let Err(Fault::Later { after_secs: Some(secs), .. }) = &settled {
            self.not_before_ns = now_ns + secs * SEC;
        }
        settled
    }

    /// Does what is new and undoes what is not wanted.
    pub fn work(&mut self, now_ns: u64) -> Vec<Acted> {
        let mut results = Vec::new();
        for task in std::mem::take(&mut self.unknown) {
            let why = "it does not say what is to be done at which provider".to_owned();
            results.push(Record::default().acted(task, Outcome::Failed(why)));
        }
        let new: Vec<Uuid> =
            self.jobs.iter().filter(|(_, job)| job.progress == Progress::New).map(|(task, _)| *task).collect();
        for task in new {
            results.extend(self.try_new(task, now_ns));
        }
        let dirty: Vec<Place> =
            self.places.iter().filter(|(_, at)| at.is_dirty).map(|(place, _)| place.clone()).collect();
        for place in dirty {
            self.clean(&place, now_ns);
        }
        self.tell_endings(&mut results);
        results
    }

    fn try_new(&mut self, task: Uuid, now_ns: u64) -> Option<Acted> {
        let job = self.jobs.get_mut(&task)?;
        let (place, sources) = (job.place.clone(), job.sources.clone());
        let mut record = std::mem::take(&mut job.record);
        let begun_ns = *job.begun_ns.get_or_insert(now_ns);
        // Time is short when the agent stops, and all of it for undoing.
        let is_late = self.api.is_closing();
        let is_early = self.not_before_ns > now_ns || self.at(&place).next_ns > now_ns || is_late;
        if is_early {
            self.jobs.get_mut(&task)?.record = record;
            return None;
        }
        let add = unique(self.in_force(&place).into_iter().chain(sources));
        let keep = unique(self.keep_all(&place).into_iter().chain(add.iter().copied()));
        let settled = match self.journal.fault() {
            Some(fault) => Err(Fault::refused(fault)),
            None => self.settle(&place, &add, &keep, &mut record, now_ns),
        };
        let job = self.jobs.get_mut(&task)?;
        let at = self.places.entry(place.clone()).or_default();
        match settled {
            Ok(_) => {
                job.progress = Progress::Done;
                (at.tries, at.next_ns, at.look_ns) = (0, 0, now_ns + SOON_NS);
                Some(record.acted(task, Outcome::Applied))
            }
            Err(fault) => {
                at.put_off(&fault, now_ns);
                let next_ns = at.next_ns.max(self.not_before_ns);
                let is_over = next_ns.saturating_sub(begun_ns) >= GIVE_UP_NS;
                let why = fault.why().to_owned();
                if is_over || matches!(fault, Fault::Refused { .. }) {
                    job.progress = Progress::Failed;
                    // What had been of it goes at once, as far as the provider lets it.
                    (at.is_dirty, at.tries, at.next_ns) = (true, 0, 0);
                    return Some(record.acted(task, Outcome::Failed(why)));
                }
                tracing::warn!(%task, %why, "not done at the provider; it is tried again");
                job.record = record;
                let is_news = job.told.as_ref() != Some(&why);
                job.told = Some(why.clone());
                is_news.then(|| Record::default().acted(task, Outcome::Amiss(Some(why))))
            }
        }
    }

    /// Undoes what is at a place and not wanted: that of each action that ends by itself, then what nobody knows.
    fn clean(&mut self, place: &Place, now_ns: u64) {
        if self.at(place).next_ns > now_ns || self.not_before_ns > now_ns {
            return;
        }
        let here = |known: &Option<(Place, Vec<IpNet>)>| known.as_ref().is_some_and(|(at, _)| at == place);
        let mut turns: Vec<Option<Uuid>> =
            self.ending.iter().filter(|(_, known)| here(known)).map(|(task, _)| Some(*task)).collect();
        if turns.is_empty() {
            turns.push(None);
        }
        let last = turns.len() - 1;
        for (turn, task) in turns.into_iter().enumerate() {
            let keep = self.keep(place, Some(task.unwrap_or(Uuid::max())));
            let mut record = match task {
                Some(task) => self.undone.remove(&task).unwrap_or_default(),
                None => std::mem::take(&mut self.nobodys),
            };
            let has_any = self.journal.entries().values().any(|entry| entry.place == *place);
            let settled = if has_any { self.settle(place, &[], &keep, &mut record, now_ns) } else { Ok(false) };
            match task {
                Some(task) => drop(self.undone.insert(task, record)),
                // It belongs to an action of an earlier process, or to one that failed and is told.
                None if self.ending.values().any(Option::is_none) => self.nobodys = record,
                None => {}
            }
            let at = self.places.entry(place.clone()).or_default();
            match settled {
                Ok(is_pending) if turn == last => {
                    (at.is_dirty, at.tries, at.stuck) = (is_pending, 0, None);
                    at.next_ns = if is_pending { now_ns + SOON_NS } else { 0 };
                    at.look_ns = now_ns + SOON_NS;
                }
                Ok(_) => {}
                Err(fault) => {
                    at.put_off(&fault, now_ns);
                    let why = fault.why().to_owned();
                    tracing::error!(?place, %why, "not undone at the provider; it is tried again");
                    at.stuck = Some(why);
                    return;
                }
            }
        }
    }

    fn tell_endings(&mut self, results: &mut Vec<Acted>) {
        let is_clean = |place: &Place| self.places.get(place).is_none_or(|at| !at.is_dirty);
        let all_clean = self.places.keys().all(is_clean);
        let why_at = |place: &Place| self.places.get(place).and_then(|at| at.stuck.clone());
        let mut over = Vec::new();
        let mut stuck = Vec::new();
        for (task, known) in &self.ending {
            let (is_over, why) = match known {
                Some((place, _)) => (is_clean(place), why_at(place)),
                // Which place it was, only an earlier process knew.
                None => (all_clean, self.places.keys().find_map(why_at)),
            };
            match why {
                _ if is_over => over.push(*task),
                Some(why) if self.told.get(task) != Some(&why) => stuck.push((*task, why)),
                _ => {}
            }
        }
        for task in over {
            let known = self.ending.remove(&task).flatten();
            self.told.remove(&task);
            let mut record = self.undone.remove(&task).unwrap_or_default();
            if known.is_none() {
                record = std::mem::take(&mut self.nobodys);
            }
            results.push(record.acted(task, Outcome::Undone));
        }
        for (task, why) in stuck {
            self.told.insert(task, why.clone());
            results.push(Record::default().acted(task, Outcome::Stuck(why)));
        }
    }

    /// Makes again what somebody took away.
    pub fn repair(&mut self, now_ns: u64) -> Vec<Acted> {
        let mut results = Vec::new();
        if self.journal.fault().is_some() {
            return results;
        }
        let places: BTreeSet<Place> =
            self.jobs.values().filter(|job| job.progress == Progress::Done).map(|job| job.place.clone()).collect();
        for place in places {
            let at = self.at(&place);
            if at.look_ns > now_ns || at.next_ns > now_ns || self.not_before_ns > now_ns || self.api.is_closing() {
                continue;
            }
            let (add, keep) = (self.in_force(&place), self.keep_all(&place));
            let mark = self.mark.as_deref().unwrap_or_default();
            let look_ns = LOOK_NS - u64::from(crc32fast::hash(mark.as_bytes())) * SEC / 1_000 % SPREAD_NS;
            let mut record = Record::default();
            let settled = self.settle(&place, &add, &keep, &mut record, now_ns);
            let at = self.at(&place);
            let told = match &settled {
                Ok(_) => {
                    (at.tries, at.next_ns) = (0, 0);
                    at.look_ns = now_ns + if record.is_empty() { look_ns } else { SOON_NS };
                    None
                }
                Err(fault) => {
                    at.put_off(fault, now_ns);
                    Some(fault.why().to_owned())
                }
            };
            if settled.is_ok() && !record.is_empty() {
                tracing::warn!(?place, "somebody else changed it at the provider: it is made again");
            }
            let done = self.jobs.iter_mut().filter(|(_, job)| job.place == place && job.progress == Progress::Done);
            for (task, job) in done {
                if job.told != told {
                    job.told.clone_from(&told);
                    results.push(Record::default().acted(*task, Outcome::Amiss(told.clone())));
                }
            }
        }
        results
    }

    /// Whether there is anything to look after.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
            && self.ending.is_empty()
            && self.unknown.is_empty()
            && self.journal.entries().is_empty()
            && self.places.values().all(|at| !at.is_dirty)
    }

    /// What could not be undone, with the provider's words.
    pub fn stuck(&self) -> Vec<String> {
        let stuck = self.places.values().filter(|at| at.is_dirty).filter_map(|at| at.stuck.clone());
        stuck.take(MAX_SHOWN).collect()
    }

    /// What was begun and is not undone.
    pub fn journal(&self) -> &Journal<CloudEntry> {
        &self.journal
    }
}

impl lane::Work for CloudKeeper {
    fn set(&mut self, wanted: Vec<Wanted>, ending: Vec<Uuid>) {
        Self::set(self, wanted, ending);
    }

    fn work(&mut self, now_ns: u64) -> Vec<Acted> {
        Self::work(self, now_ns)
    }

    fn repair(&mut self, now_ns: u64) -> Vec<Acted> {
        Self::repair(self, now_ns)
    }

    fn is_idle(&self) -> bool {
        Self::is_idle(self)
    }

    fn describe(&self, status: &mut ToolStatus) {
        status.actions = self.jobs.values().filter(|job| job.progress == Progress::Done).count();
        status.objects = self.journal.entries().len();
        status.stuck = self.stuck();
        status.fault = self.journal.fault().or_else(|| self.mark.as_ref().err().cloned());
    }

    fn rest(&self, now_ns: u64) -> Duration {
        let of = |place: &Place| self.places.get(place).map_or(0, |at| at.next_ns);
        let new = self.jobs.values().filter(|job| job.progress == Progress::New).map(|job| of(&job.place));
        let done = self.jobs.values().filter(|job| job.progress == Progress::Done);
        let looks = done.map(|job| self.places.get(&job.place).map_or(0, |at| at.look_ns.max(at.next_ns)));
        let dirty = self.places.values().filter(|at| at.is_dirty).map(|at| at.next_ns);
        let next_ns = new.chain(looks).chain(dirty).min().unwrap_or(now_ns + LOOK_NS).max(self.not_before_ns);
        Duration::from_nanos(next_ns.saturating_sub(now_ns).clamp(SEC / 10, LOOK_NS))
    }

    fn configure(&mut self, config: Option<CloudConfig>) {
        self.api.configure(config);
        // The key may be another one now.
        self.not_before_ns = 0;
        self.places.values_mut().for_each(|at| (at.next_ns, at.tries) = (0, 0));
    }

    fn stop(&mut self) {
        self.not_before_ns = 0;
        self.places.values_mut().for_each(|at| at.next_ns = 0);
        Self::set(self, Vec::new(), []);
        Self::work(self, clock::mono_ns());
    }
}

fn unique(nets: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    nets.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}
