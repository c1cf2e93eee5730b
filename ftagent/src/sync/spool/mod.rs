//! The queue of messages for the control plane: on disk first, in order, bounded.
//!
//! Called by the link's tasks. Incident reports and acknowledgements are durable when [`Spool::push`] returns;
//! metrics are written but not waited for. When the queue is full the least valuable message goes, the newcomer
//! included, and the loss is counted. When the disk is full the queue goes on in memory, says so, and returns to the
//! disk by itself.

mod log;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ftagent_common::api::{CommandAck, IncidentReport, MetricsBatch, ProfileReport};
use ftagent_common::vocab::IncidentStatus;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::log::{Log, MAX_PAYLOAD};
use crate::persist::{self, PersistError};

/// One thing to tell the control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Incident(Box<IncidentReport>),
    Metrics(MetricsBatch),
    Ack(CommandAck),
    Profile(ProfileReport),
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Messages, on disk and in memory together.
    pub messages: usize,
    /// Bytes of live messages; the file may have twice as much until it is rewritten.
    pub bytes: u64,
    /// Bytes of messages that wait in memory because the disk is full.
    pub memory_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { messages: 8_192, bytes: 16 << 20, memory_bytes: 2 << 20 }
    }
}

/// What was lost since the start, by what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Metrics batches that had to make room.
    pub metrics: u64,
    /// Incident reports that a later one of the same incident had made superfluous.
    pub superseded: u64,
    /// Latest reports of incidents: real losses.
    pub incidents: u64,
    /// Acknowledgements, whose commands the control plane repeats, and reports of profiles.
    pub acks: u64,
    /// Messages that the control plane refused for good.
    pub refused: u64,
    /// Bytes of damaged records found in the file.
    pub damaged_bytes: u64,
}

impl Losses {
    /// Messages lost in all.
    pub fn messages(&self) -> u64 {
        self.metrics + self.superseded + self.incidents + self.acks + self.refused
    }
}

/// The queue, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolStatus {
    pub queued: u64,
    pub bytes: u64,
    pub lost: Losses,
    /// Why messages wait in memory alone; absent while the disk works.
    pub fault: Option<String>,
}

/// The queue itself; one process may have it open.
#[derive(Debug)]
pub struct Spool {
    log: Log,
    limits: Limits,
    /// By number, which is the order of arrival.
    entries: BTreeMap<u64, Entry>,
    next: u64,
    bytes: u64,
    memory_bytes: usize,
    lost: Losses,
    fault: Option<String>,
    /// The file is not rewritten below this size: it failed there.
    compact_from: u64,
    path: std::path::PathBuf,
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    len: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Disk { offset: u64 },
    Memory(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Metrics,
    Incident { uuid: Uuid, revision: u32, update: bool },
    Ack,
    Profile,
}

/// Removed messages in the file that are worth a rewrite.
const COMPACT_BYTES: u64 = 256 << 10;

/// The number's message is done with.
const REMOVED: u8 = 0;

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Metrics => 1,
            Self::Incident { .. } => 2,
            Self::Ack => 3,
            Self::Profile => 4,
        }
    }
}

impl Message {
    fn kind(&self) -> Kind {
        match self {
            Self::Metrics(_) => Kind::Metrics,
            Self::Ack(_) => Kind::Ack,
            Self::Profile(_) => Kind::Profile,
            Self::Incident(report) => {
                let update = report.status == IncidentStatus::Active && report.revision > 1;
                Kind::Incident { uuid: report.uuid, revision: report.revision, update }
            }
        }
    }

    fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        match self {
            Self::Metrics(batch) => serde_json::to_vec(batch),
            Self::Incident(report) => serde_json::to_vec(report),
            Self::Ack(ack) => serde_json::to_vec(ack),
            Self::Profile(report) => serde_json::to_vec(report),
        }
    }

    fn decode(code: u8, payload: &[u8]) -> Option<Self> {
        match code {
            1 => serde_json::from_slice(payload).ok().map(Self::Metrics),
            2 => serde_json::from_slice(payload).ok().map(Self::Incident),
            3 => serde_json::from_slice(payload).ok().map(Self::Ack),
            4 => serde_json::from_slice(payload).ok().map(Self::Profile),
            _ => None,
        }
    }
}

impl Spool {
    /// Opens `dir/spool.log`, made if it is not there, with everything that was not acknowledged.
    ///
    /// # Errors
    /// Names the file if it cannot be opened or read.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, PersistError> {
        let path = dir.join("spool.log");
        let io = |source| PersistError::Io { path: path.clone(), doing: "open the message queue", source };
        let opened = Log::open(&path).map_err(io)?;
        let mut spool = Self {
            log: opened.log,
            limits,
            entries: BTreeMap::new(),
            next: 1,
            bytes: 0,
            memory_bytes: 0,
            lost: Losses { damaged_bytes: opened.damaged, ..Losses::default() },
            fault: None,
            compact_from: 0,
            path: path.clone(),
        };
        for record in opened.records {
            spool.next = spool.next.max(record.number.saturating_add(1));
            if record.kind == REMOVED {
                spool.forget(record.number);
                continue;
            }
            let payload = spool.log.read(record.offset, record.len).map_err(io)?;
            let Some(message) = Message::decode(record.kind, &payload) else {
                spool.lost.damaged_bytes += record.file_bytes();
                continue;
            };
            let place = Place::Disk { offset: record.offset };
            spool.insert(record.number, Entry { kind: message.kind(), len: record.len, place });
        }
        spool.make_room();
        Ok(spool)
    }

    /// Takes a message; false if it waits in memory because the disk does not take it.
    pub fn push(&mut self, message: &Message) -> bool {
        let kind = message.kind();
        let payload = match message.encode() {
            Ok(payload) if payload.len() <= MAX_PAYLOAD => payload,
            Ok(payload) => {
                tracing::error!(bytes = payload.len(), "a message is too large for the queue and is lost");
                self.count_loss(kind, false);
                return true;
            }
            Err(error) => {
                tracing::error!(%error, "a message has no JSON form and is lost");
                self.count_loss(kind, false);
                return true;
            }
        };
        if self.fault.is_some() {
            self.retry_disk();
        }
        let number = self.next;
        self.next += 1;
        let len = payload.len();
        let place = match self.log.append(number, kind.code(), &payload, kind != Kind::Metrics) {
            Ok(offset) => Place::Disk { offset },
            Err(error) => {
                self.failed(&error);
                Place::Memory(payload)
            }
        };
        let durable = matches!(place, Place::Disk { .. });
        self.insert(number, Entry { kind, len, place });
        self.make_room();
        self.compact_if_worth_it();
        durable
    }

    /// The oldest incident report or acknowledgement, with the number to [`Spool::acknowledge`] it by.
    pub fn next_report(&mut self) -> Option<(u64, Message)> {
        loop {
            let number = *self.entries.iter().find(|(_, e)| e.kind != Kind::Metrics)?.0;
            match self.read(number) {
                Some(message) => return Some((number, message)),
                None => self.lose(number),
            }
        }
    }

    /// The incidents of which reports wait.
    pub fn incidents(&self) -> BTreeSet<Uuid> {
        let uuid = |entry: &Entry| if let Kind::Incident { uuid, .. } = entry.kind { Some(uuid) } else { None };
        self.entries.values().filter_map(uuid).collect()
    }

    /// The oldest metrics, as many batches as have at most `max_samples` samples together, as one.
    pub fn next_metrics(&mut self, max_samples: usize) -> Option<(Vec<u64>, MetricsBatch)> {
        let waiting: Vec<u64> = self.entries.iter().filter(|(_, e)| e.kind == Kind::Metrics).map(|(n, _)| *n).collect();
        let mut numbers = Vec::new();
        let mut samples = Vec::new();
        for number in waiting {
            let Some(Message::Metrics(batch)) = self.read(number) else {
                self.lose(number);
                continue;
            };
            if !numbers.is_empty() && samples.len() + batch.samples.len() > max_samples {
                break;
            }
            numbers.push(number);
            samples.extend(batch.samples);
        }
        (!numbers.is_empty()).then_some((numbers, MetricsBatch { samples }))
    }

    /// Removes a message that arrived. One that was removed meanwhile is as good.
    pub fn acknowledge(&mut self, number: u64) {
        if self.forget(number) {
            self.note_removal(number);
        }
    }

    /// Removes a message that the control plane will never take.
    pub fn refuse(&mut self, number: u64) {
        if self.forget(number) {
            self.lost.refused += 1;
            self.note_removal(number);
        }
    }

    /// Moves what waits in memory to the disk, if that works again.
    pub fn retry_disk(&mut self) {
        let waiting: Vec<u64> =
            self.entries.iter().filter(|(_, e)| matches!(e.place, Place::Memory(_))).map(|(n, _)| *n).collect();
        for number in waiting {
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            let Place::Memory(payload) = &entry.place else { continue };
            match self.log.append(number, entry.kind.code(), payload, true) {
                Ok(offset) => {
                    entry.place = Place::Disk { offset };
                    self.memory_bytes -= entry.len;
                }
                Err(error) => return self.failed(&error),
            }
        }
        if self.fault.take().is_some() {
            tracing::info!(path = %self.path.display(), "the message queue is on disk again");
        }
    }

    /// Depth, losses and faults.
    pub fn status(&self) -> SpoolStatus {
        SpoolStatus {
            queued: u64::try_from(self.entries.len()).unwrap_or(u64::MAX),
            bytes: self.bytes,
            lost: self.lost,
            fault: self.fault.clone(),
        }
    }

    fn insert(&mut self, number: u64, entry: Entry) {
        self.bytes += log::file_bytes(entry.len);
        if matches!(entry.place, Place::Memory(_)) {
            self.memory_bytes += entry.len;
        }
        self.entries.insert(number, entry);
    }

    fn forget(&mut self, number: u64) -> bool {
        let Some(entry) = self.entries.remove(&number) else { return false };
        self.bytes -= log::file_bytes(entry.len);
        if matches!(entry.place, Place::Memory(_)) {
            self.memory_bytes -= entry.len;
        }
        true
    }

    /// A removal that does not reach the disk costs a repeated message after a crash, which the receiver ignores.
    fn note_removal(&mut self, number: u64) {
        let noted = if self.entries.is_empty() {
            self.log.clear()
        } else {
            self.log.append(number, REMOVED, &[], false).map(|_| ())
        };
        if let Err(error) = noted {
            self.failed(&error);
        }
        self.compact_if_worth_it();
    }

    fn read(&self, number: u64) -> Option<Message> {
        let entry = self.entries.get(&number)?;
        match &entry.place {
            Place::Memory(payload) => Message::decode(entry.kind.code(), payload),
            Place::Disk { offset } => {
                let payload = self.log.read(*offset, entry.len).ok()?;
                Message::decode(entry.kind.code(), &payload)
            }
        }
    }

    /// Evicts until every limit holds.
    fn make_room(&mut self) {
        while self.entries.len() > self.limits.messages || self.bytes > self.limits.bytes {
            let Some(number) = self.least_valuable(|_| true) else { return };
            self.lose(number);
        }
        while self.memory_bytes > self.limits.memory_bytes {
            let Some(number) = self.least_valuable(|e| matches!(e.place, Place::Memory(_))) else { return };
            self.lose(number);
        }
    }

    fn lose(&mut self, number: u64) {
        let Some(entry) = self.entries.get(&number) else { return };
        let (kind, superseded) = (entry.kind, self.superseded(number, entry.kind));
        self.count_loss(kind, superseded);
        self.forget(number);
        self.note_removal(number);
    }

    fn count_loss(&mut self, kind: Kind, superseded: bool) {
        match kind {
            Kind::Metrics => self.lost.metrics += 1,
            Kind::Ack | Kind::Profile => self.lost.acks += 1,
            Kind::Incident { .. } if superseded => self.lost.superseded += 1,
            Kind::Incident { uuid, revision, .. } => {
                self.lost.incidents += 1;
                tracing::error!(incident = %uuid, revision, "the message queue is full: an incident report is lost");
            }
        }
    }

    /// The oldest of the lowest rank: metrics, superseded updates, superseded openings, updates, acknowledgements,
    /// and only then the latest opening or resolution of an incident.
    fn least_valuable(&self, among: impl Fn(&Entry) -> bool) -> Option<u64> {
        let mut latest: BTreeMap<Uuid, u32> = BTreeMap::new();
        for entry in self.entries.values() {
            if let Kind::Incident { uuid, revision, .. } = entry.kind {
                let highest = latest.entry(uuid).or_default();
                *highest = revision.max(*highest);
            }
        }
        let rank = |kind: Kind| match kind {
            Kind::Metrics => 0,
            Kind::Incident { uuid, revision, update } => match (latest.get(&uuid) > Some(&revision), update) {
                (true, true) => 1,
                (true, false) => 2,
                (false, true) => 3,
                (false, false) => 5,
            },
            Kind::Ack | Kind::Profile => 4,
        };
        let candidates = self.entries.iter().filter(|(_, e)| among(e));
        candidates.min_by_key(|(number, e)| (rank(e.kind), **number)).map(|(number, _)| *number)
    }

    fn superseded(&self, number: u64, kind: Kind) -> bool {
        let Kind::Incident { uuid, revision, .. } = kind else { return false };
        self.entries.iter().any(|(other, e)| {
            *other != number
                && matches!(e.kind, Kind::Incident { uuid: u, revision: r, .. } if u == uuid && r > revision)
        })
    }

    /// Rewrites the file once more than half of it (and [`COMPACT_BYTES`]) is removed messages.
    fn compact_if_worth_it(&mut self) {
        let dead = self.log.len().saturating_sub(self.bytes);
        if dead < COMPACT_BYTES || dead < self.bytes || self.log.len() < self.compact_from {
            return;
        }
        let numbers: Vec<u64> =
            self.entries.iter().filter(|(_, e)| matches!(e.place, Place::Disk { .. })).map(|(n, _)| *n).collect();
        let mut records = Vec::with_capacity(numbers.len());
        for number in &numbers {
            let Some(entry) = self.entries.get(number) else { continue };
            let Place::Disk { offset } = entry.place else { continue };
            match self.log.read(offset, entry.len) {
                Ok(payload) => records.push((*number, entry.kind.code(), payload)),
                Err(error) => return self.not_compacted(&error),
            }
        }
        match self.log.replace(&records) {
            Ok(offsets) => {
                for ((number, ..), offset) in records.iter().zip(offsets) {
                    if let Some(entry) = self.entries.get_mut(number) {
                        entry.place = Place::Disk { offset };
                    }
                }
            }
            Err(error) => self.not_compacted(&error),
        }
    }

    /// The old file is as good, only larger.
    fn not_compacted(&mut self, error: &std::io::Error) {
        tracing::warn!(path = %self.path.display(), %error, "the message queue could not be rewritten smaller");
        self.compact_from = self.log.len() + COMPACT_BYTES;
    }

    fn failed(&mut self, error: &std::io::Error) {
        if self.fault.is_none() {
            tracing::warn!(path = %self.path.display(), %error, "the disk does not take messages: they wait in memory");
        }
        let remedy = persist::remedy(error);
        self.fault = Some(format!("{}: {error}; {remedy}", self.path.display()));
    }
}

#[cfg(test)]
mod tests;
