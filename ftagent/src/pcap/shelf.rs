//! The captures on disk: what is known of each, which go first, and what a killed agent left.
//!
//! Beside each `<capture>.pcapng` lies `<capture>.json` with what the file itself does not say, and once its upload has
//! begun `<capture>.upload`, which is the uploader's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tracing::{info, warn};
use uuid::Uuid;

use super::file::{self, Summary};
use super::id::CaptureId;
use crate::persist::{self, PersistError};

/// Captures on disk at most, however small they are.
const MAX_FILES: usize = 1_000;

/// Why a capture has no more packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    Resolved,
    PacketLimit,
    ByteLimit,
    /// The attack went on, and so did the next part.
    Continued,
    DiskFull,
    DiskError,
    /// The agent was stopped while the attack went on.
    AgentStopped,
    /// The agent was killed; the file was finished at the next start.
    Interrupted,
}

impl Ended {
    /// As in status and captures.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resolved => "resolved",
            Self::PacketLimit => "packet_limit",
            Self::ByteLimit => "byte_limit",
            Self::Continued => "continued",
            Self::DiskFull => "disk_full",
            Self::DiskError => "disk_error",
            Self::AgentStopped => "agent_stopped",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether it holds everything that it should.
    pub const fn is_complete(self) -> bool {
        matches!(self, Self::Resolved | Self::PacketLimit | Self::ByteLimit | Self::Continued)
    }
}

/// One capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    pub incident: Uuid,
    /// Of a long attack, from 1.
    #[serde(default = "first")]
    pub part: u32,
    pub target: IpNet,
    /// When the incident opened here, or the part began.
    #[serde(with = "time::serde::rfc3339")]
    pub opened_at: OffsetDateTime,
    pub packets: u64,
    /// Packets of them that were dropped; not known of an interrupted one.
    pub dropped: Option<u64>,
    /// Samples that belong to it and were left out: to spread it over the attack, or since the disk was too slow.
    pub missed: u64,
    pub bytes: u64,
    /// Time of the first and the last packet.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub from: Option<OffsetDateTime>,
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub to: Option<OffsetDateTime>,
    /// Absent while it grows.
    pub ended: Option<Ended>,
    pub complete: bool,
}

const fn first() -> u32 {
    1
}

impl Capture {
    /// One that begins.
    pub fn new(id: impl Into<CaptureId>, target: IpNet, opened_at: OffsetDateTime) -> Self {
        let CaptureId { incident, part } = id.into();
        Self {
            incident,
            part,
            target,
            opened_at,
            packets: 0,
            dropped: Some(0),
            missed: 0,
            bytes: 0,
            from: None,
            to: None,
            ended: None,
            complete: false,
        }
    }

    pub const fn id(&self) -> CaptureId {
        CaptureId { incident: self.incident, part: self.part }
    }

    /// Takes over what the file holds.
    pub fn note(&mut self, summary: &Summary) {
        let at = |ns: u64| OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns)).ok();
        self.packets = summary.packets;
        self.missed = summary.missed;
        self.bytes = summary.bytes;
        self.from = summary.span.and_then(|(first, _)| at(first));
        self.to = summary.span.and_then(|(_, last)| at(last));
        if self.dropped.is_some() {
            self.dropped = Some(summary.dropped);
        }
    }

    /// Notes that nothing more comes.
    pub fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.complete = ended.is_complete();
    }
}

/// How long and how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub days: u32,
    pub bytes: u64,
}

/// Which of the finished captures go, so that `needed` more bytes have room: those over age, then the oldest. Captures
/// that grow never go, and count with `growing_bytes` each, which they may reach.
pub fn due<'a>(
    captures: impl Iterator<Item = &'a Capture>,
    retention: Retention,
    growing_bytes: u64,
    needed: u64,
    now: OffsetDateTime,
) -> Vec<CaptureId> {
    let (finished, growing): (Vec<_>, Vec<_>) = captures.partition(|c| c.ended.is_some());
    let mut finished = finished;
    finished.sort_by_key(|c| (c.opened_at, c.id()));
    let mut bytes = growing_bytes.saturating_mul(growing.len() as u64).saturating_add(needed);
    bytes = finished.iter().fold(bytes, |sum, c| sum.saturating_add(c.bytes));
    let mut left = finished.len() + growing.len() + usize::from(needed > 0);
    let oldest = now - time::Duration::days(i64::from(retention.days));
    let mut due = Vec::new();
    for capture in finished {
        let too_old = capture.to.unwrap_or(capture.opened_at) < oldest;
        if too_old || bytes > retention.bytes || left > MAX_FILES {
            bytes = bytes.saturating_sub(capture.bytes);
            left -= 1;
            due.push(capture.id());
        }
    }
    due
}

/// The file with the state of a capture's upload.
pub fn upload_state(dir: &Path, id: CaptureId) -> PathBuf {
    dir.join(format!("{id}.upload"))
}

/// The folder and what lies in it.
#[derive(Debug)]
pub struct Shelf {
    pub dir: PathBuf,
    /// Whether the folder could be made and read.
    usable: bool,
    captures: BTreeMap<CaptureId, Capture>,
}

impl Shelf {
    /// A shelf that is not looked at yet: it takes nothing before [`Self::load`].
    pub const fn at(dir: PathBuf) -> Self {
        Self { dir, usable: false, captures: BTreeMap::new() }
    }

    /// Reads the folder, making it if need be; files that a killed agent left growing are finished or deleted.
    ///
    /// # Errors
    /// The folder cannot be made or read. What is wrong with single files is logged.
    pub fn load(&mut self, max_bytes: u64) -> Result<(), PersistError> {
        persist::make_dir(&self.dir)?;
        let entries = fs::read_dir(&self.dir).map_err(|e| PersistError::io(&self.dir, "read", e))?;
        self.usable = true;
        for entry in entries.flatten() {
            let name = entry.file_name();
            // Only names of ours are looked at; whatever else lies here is left alone.
            let Some((id, kind)) = name.to_str().and_then(|n| n.split_once('.')) else { continue };
            let Ok(id) = id.parse::<CaptureId>() else { continue };
            if !entry.file_type().is_ok_and(|t| t.is_file()) {
                continue;
            }
            match kind {
                "pcapng" | "pcapng.part" => self.take_in(id, kind == "pcapng.part", max_bytes),
                "json" | "upload"
                    if !file::finished(&self.dir, id).exists() && !file::growing(&self.dir, id).exists() =>
                {
                    self.forget_file(&entry.path());
                }
                "json.tmp" | "upload.tmp" => self.forget_file(&entry.path()),
                _ => {}
            }
        }
        Ok(())
    }

    fn take_in(&mut self, id: CaptureId, is_growing: bool, max_bytes: u64) {
        if self.captures.get(&id).is_some_and(|c| c.ended.is_some()) {
            return;
        }
        let known = match persist::load(&self.about(id)) {
            Ok(bytes) => bytes.and_then(|b| serde_json::from_slice::<Capture>(&b).ok()),
            Err(error) => return warn!(%error, "what is known of a capture cannot be read"),
        };
        let known = known.filter(|capture| capture.id() == id);
        if !is_growing {
            match known {
                Some(capture) if capture.ended.is_some() => self.show(capture),
                Some(mut capture) => {
                    // Killed between the file's end and the note of it.
                    capture.dropped = None;
                    match fs::File::open(file::finished(&self.dir, id)) {
                        Ok(file) => capture.note(&file::scan(&file, max_bytes)),
                        Err(error) => return warn!(capture = %id, %error, "a capture cannot be read"),
                    }
                    capture.end(Ended::Interrupted);
                    self.put(capture);
                }
                None => warn!(capture = %id, "a capture without its .json is left alone"),
            }
            return;
        }
        let Some(mut capture) = known else {
            // Without its note nobody knows whose it is: it cannot be listed, nor kept in bounds.
            return self.forget_file(&file::growing(&self.dir, id));
        };
        match file::recover(&self.dir, id, max_bytes) {
            Ok(summary) if summary.packets == 0 => self.forget_file(&self.about(id)),
            Ok(summary) => {
                info!(capture = %id, packets = summary.packets, "a capture that was interrupted is finished");
                capture.dropped = None;
                capture.note(&summary);
                capture.end(Ended::Interrupted);
                self.put(capture);
            }
            Err(error) => warn!(capture = %id, %error, "a capture that was interrupted cannot be finished"),
        }
    }

    fn about(&self, id: CaptureId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn forget_file(&self, path: &Path) {
        if let Err(error) = persist::remove(path) {
            warn!(%error, "a file of captures stays");
        }
    }

    /// Notes a capture and what is known of it; false if the disk did not take the note.
    pub fn put(&mut self, capture: Capture) -> bool {
        if !self.usable {
            return false;
        }
        let saved = persist::save_json(&self.about(capture.id()), &capture);
        self.captures.insert(capture.id(), capture);
        saved.inspect_err(|error| warn!(%error, "what is known of a capture is not saved")).is_ok()
    }

    /// Notes it without the disk: while it grows.
    pub fn show(&mut self, capture: Capture) {
        self.captures.insert(capture.id(), capture);
    }

    /// Deletes a capture with its files.
    pub fn delete(&mut self, id: CaptureId) {
        // The file first: a note without a file is cleared at the next start.
        self.forget_file(&file::finished(&self.dir, id));
        self.forget_file(&upload_state(&self.dir, id));
        self.forget_file(&self.about(id));
        self.captures.remove(&id);
    }

    /// Deletes what [`due`] says.
    pub fn sweep(&mut self, retention: Retention, growing_bytes: u64, needed: u64, now: OffsetDateTime) {
        for id in due(self.captures.values(), retention, growing_bytes, needed, now) {
            info!(capture = %id, "a capture is deleted: pcap.keep_days, pcap.max_disk_bytes");
            self.delete(id);
        }
    }

    /// How many parts there were of this incident, up to the last one that is there.
    pub fn parts_of(&self, incident: Uuid) -> u32 {
        let all = CaptureId { incident, part: 0 }..=CaptureId { incident, part: u32::MAX };
        self.captures.range(all).next_back().map_or(0, |(id, _)| id.part)
    }

    /// Bytes of finished captures, and how many grow.
    pub fn sizes(&self) -> (u64, u64) {
        let (finished, growing): (Vec<_>, Vec<_>) = self.captures.values().partition(|c| c.ended.is_some());
        (finished.iter().map(|c| c.bytes).sum(), growing.len() as u64)
    }

    /// All of them, oldest first.
    pub fn list(&self) -> Vec<Capture> {
        let mut list: Vec<Capture> = self.captures.values().cloned().collect();
        list.sort_by_key(|c| (c.opened_at, c.id()));
        list
    }

    /// Bytes on disk, as noted.
    pub fn bytes(&self) -> u64 {
        self.captures.values().map(|c| c.bytes).sum()
    }
}
