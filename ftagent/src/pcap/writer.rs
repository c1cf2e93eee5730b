//! The thread that owns the ring and the growing captures: the only place where captures wait for a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{info, warn};
use uuid::Uuid;

use super::CapturesStatus;
use super::block::Hook;
use super::config::PcapConfig;
use super::file::{Growing, Room};
use super::id::CaptureId;
use super::pick::{Pick, Picker};
use super::record::Record;
use super::ring::Ring;
use super::shelf::{Capture, Ended, Shelf};
use crate::clock;
use crate::engine::Now;

/// Captures that grow at the same time.
const MAX_GROWING: usize = 16;
/// Between two looks at the age of captures.
const SWEEP_NS: u64 = 600 * 1_000_000_000;
/// What a killed agent may lose of a capture.
const FLUSH: Duration = Duration::from_secs(1);
/// Incidents that had their capture.
const MAX_DONE: usize = 1_024;

/// Names and hooks of the interfaces, by slot.
pub type Interfaces = BTreeMap<u16, (String, Hook)>;

/// What the daemon tells the writer.
#[derive(Debug)]
pub(super) enum Message {
    Samples(Vec<Record>),
    Incident { incident: Uuid, target: IpNet, active: bool, interfaces: Interfaces },
    Stop,
}

struct Open {
    growing: Growing,
    picker: Picker,
    capture: Capture,
    began_ns: u64,
}

/// Everything that the thread owns.
pub(super) struct Writer {
    config: PcapConfig,
    shelf: Shelf,
    status: watch::Sender<CapturesStatus>,
    ring: Ring,
    open: BTreeMap<Uuid, Open>,
    /// Incidents whose capture ended, or could not be, while they go on.
    done: BTreeSet<Uuid>,
    interfaces: Interfaces,
    os: String,
    not_begun: u64,
    fault: Option<String>,
    swept_ns: u64,
}

impl Writer {
    pub(super) fn new(config: PcapConfig, dir: PathBuf, status: watch::Sender<CapturesStatus>) -> Self {
        Self {
            ring: Ring::new(u64::from(config.pre_secs) * 1_000_000_000, config.memory_bytes),
            config,
            shelf: Shelf::at(dir),
            status,
            open: BTreeMap::new(),
            done: BTreeSet::new(),
            interfaces: Interfaces::new(),
            os: nix::sys::utsname::uname()
                .map(|u| format!("Linux {}", u.release().to_string_lossy()))
                .unwrap_or_default(),
            not_begun: 0,
            fault: None,
            swept_ns: 0,
        }
    }

    /// Runs until it is told to stop, or nobody can tell it anything any more.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        if let Err(error) = self.shelf.load(self.config.bounds.max_bytes) {
            warn!(%error, "there will be no captures");
            self.fault = Some(error.to_string());
        }
        let mut flushed_ns = 0;
        loop {
            match messages.recv_timeout(FLUSH) {
                Ok(Message::Samples(records)) => self.take(&records),
                Ok(Message::Incident { incident, target, active, interfaces }) => {
                    self.interfaces = interfaces;
                    self.on_incident(incident, target, active, clock::now());
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = clock::now();
            if now.mono_ns.saturating_sub(flushed_ns) >= FLUSH.as_nanos() as u64 {
                flushed_ns = now.mono_ns;
                self.flush(now);
            }
        }
        for incident in self.open.keys().copied().collect::<Vec<_>>() {
            self.end(incident, Ended::AgentStopped);
        }
        self.publish();
    }

    fn take(&mut self, records: &[Record]) {
        for record in records {
            self.ring.push(*record);
            if self.open.is_empty() {
                continue;
            }
            let mut ended = Vec::new();
            for (incident, open) in &mut self.open {
                let pick = open.picker.after(record);
                if let Some(why) = add(open, record, pick, &self.interfaces) {
                    ended.push((*incident, why));
                }
            }
            for (incident, why) in ended {
                self.end_for(incident, why, clock::now());
                if let Some(open) = self.open.get_mut(&incident) {
                    let pick = open.picker.after(record);
                    // It had no room in the part before. What goes wrong with it shows at the next write.
                    drop(add(open, record, pick, &self.interfaces));
                }
            }
        }
    }

    fn on_incident(&mut self, incident: Uuid, target: IpNet, active: bool, now: Now) {
        if let Some(open) = self.open.get_mut(&incident) {
            open.picker.aim(target);
            open.capture.target = target;
            if !active {
                self.end(incident, Ended::Resolved);
            }
        } else if !active {
            self.done.remove(&incident);
        } else if !self.done.contains(&incident) {
            // After a restart the incident goes on in a part of its own.
            let part = self.shelf.parts_of(incident) + 1;
            if part > self.config.max_parts {
                self.is_done(incident);
            } else {
                self.begin(CaptureId { incident, part }, target, true, now);
            }
        }
        self.publish();
    }

    /// Begins a capture; `with_before` with the seconds before it.
    fn begin(&mut self, id: CaptureId, target: IpNet, with_before: bool, now: Now) {
        let incident = id.incident;
        if let Err(why) = self.make_room(now) {
            return self.refuse(incident, why);
        }
        let bounds = self.config.bounds;
        let offset = now.wall.unix_timestamp_nanos() - i128::from(now.mono_ns);
        let comment = format!(
            "incident {incident} on {target}, part {}; sampled frames of at most {} bytes: the comment of each packet has its \
             verdict and of how many frames it is one; a drop count is samples left out before the packet",
            id.part, bounds.snap_bytes
        );
        // The note goes first: a file without one belongs to nobody after a crash.
        let capture = Capture::new(id, target, now.wall);
        if !self.shelf.put(capture.clone()) {
            self.shelf.delete(id);
            return self.refuse(incident, "its note cannot be written".to_owned());
        }
        let created = Growing::create(&self.shelf.dir, id, bounds, offset, &comment, &self.os);
        let growing = match created {
            Ok(growing) => growing,
            Err(error) => {
                self.shelf.delete(id);
                return self.refuse(incident, error.to_string());
            }
        };
        info!(%incident, part = id.part, %target, "capturing");
        let picker = Picker::new(target, bounds.max_packets, now.mono_ns);
        let mut open = Open { growing, picker, capture, began_ns: now.mono_ns };
        let ended = if with_before { self.add_before(&mut open, now) } else { None };
        self.open.insert(incident, open);
        if let Some(why) = ended {
            self.end_for(incident, why, now);
        }
    }

    /// Adds the samples of the seconds before.
    fn add_before(&self, open: &mut Open, now: Now) -> Option<Why> {
        let mut surplus = open.picker.surplus(self.ring.records(now.mono_ns));
        for record in self.ring.records(now.mono_ns) {
            if surplus > 0 {
                // Others of that time are left out with it.
                surplus -= u64::from(open.picker.is_of_target(record));
                continue;
            }
            let pick = open.picker.before(record);
            if let Some(why) = add(open, record, pick, &self.interfaces) {
                return Some(why);
            }
        }
        None
    }

    /// Deletes what is due, and sees that one more capture has room.
    fn make_room(&mut self, now: Now) -> Result<(), String> {
        if self.open.len() >= MAX_GROWING {
            return Err(format!("{MAX_GROWING} captures grow already"));
        }
        let max = self.config.bounds.max_bytes;
        let retention = self.config.retention;
        self.shelf.sweep(retention, max, max, now.wall);
        let (finished, growing) = self.shelf.sizes();
        if finished.saturating_add(max.saturating_mul(growing + 1)) > retention.bytes {
            return Err("pcap.max_disk_bytes is taken by captures that grow".to_owned());
        }
        Ok(())
    }

    fn refuse(&mut self, incident: Uuid, why: String) {
        warn!(%incident, why, "no capture of an incident");
        self.not_begun += 1;
        self.fault = Some(format!("no capture of incident {incident}: {why}"));
        self.is_done(incident);
    }

    fn is_done(&mut self, incident: Uuid) {
        if self.done.len() >= MAX_DONE {
            self.done.pop_first();
        }
        self.done.insert(incident);
    }

    fn end_for(&mut self, incident: Uuid, why: Why, now: Now) {
        match why {
            Why::Full(ended) => self.rotate(incident, ended, now),
            Why::Disk(error) => {
                warn!(%incident, %error, "a capture ends: the disk does not take it");
                self.fault = Some(format!("the capture of incident {incident} ended: {error}"));
                self.end(incident, disk_end(&error));
            }
        }
    }

    /// Ends a part, and begins the next one if there may be one.
    fn rotate(&mut self, incident: Uuid, ended: Ended, now: Now) {
        let Some(Open { capture, .. }) = self.open.get(&incident) else { return };
        let (part, target) = (capture.part, capture.target);
        self.end(incident, ended);
        if part < self.config.max_parts {
            self.done.remove(&incident);
            self.begin(CaptureId { incident, part: part + 1 }, target, false, now);
        }
    }

    fn end(&mut self, incident: Uuid, ended: Ended) {
        let Some(Open { growing, mut capture, .. }) = self.open.remove(&incident) else { return };
        let healthy = !matches!(ended, Ended::DiskFull | Ended::DiskError);
        if ended != Ended::Resolved {
            self.is_done(incident);
        }
        match growing.finish(ended.as_str(), healthy) {
            Ok(summary) if summary.packets == 0 => self.shelf.delete(capture.id()),
            Ok(summary) => {
                info!(%incident, part = capture.part, packets = summary.packets, bytes = summary.bytes, ended = ended.as_str(), "captured");
                capture.note(&summary);
                capture.end(ended);
                self.shelf.put(capture);
                if healthy && ended != Ended::AgentStopped {
                    self.fault = None;
                }
            }
            Err(error) => {
                warn!(%incident, %error, "a capture cannot be finished; the next start tries again");
                self.fault = Some(format!("the capture of incident {incident} cannot be finished: {error}"));
                capture.end(Ended::DiskError);
                self.shelf.show(capture);
            }
        }
        self.publish();
    }

    fn flush(&mut self, now: Now) {
        let (mut failed, mut old) = (Vec::new(), Vec::new());
        let part_ns = u64::from(self.config.part_secs) * 1_000_000_000;
        for (incident, open) in &mut self.open {
            if let Err(error) = open.growing.flush() {
                failed.push((*incident, error));
                continue;
            }
            open.capture.note(&open.growing.summary());
            self.shelf.show(open.capture.clone());
            let is_old = now.mono_ns.saturating_sub(open.began_ns) >= part_ns;
            // The last part lasts until the attack ends or its bounds are reached.
            if is_old && open.capture.packets > 0 && open.capture.part < self.config.max_parts {
                old.push(*incident);
            }
        }
        for incident in old {
            self.rotate(incident, Ended::Continued, now);
        }
        for (incident, error) in failed {
            self.end_for(incident, Why::Disk(error), now);
        }
        if now.mono_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = now.mono_ns;
            let (retention, max) = (self.config.retention, self.config.bounds.max_bytes);
            self.shelf.sweep(retention, max, 0, now.wall);
        }
        self.publish();
    }

    fn publish(&self) {
        let now = CapturesStatus {
            dir: self.shelf.dir.clone(),
            bytes: self.shelf.bytes(),
            captures: self.shelf.list(),
            growing: self.open.len() as u64,
            memory_bytes: self.ring.bytes(),
            not_begun: self.not_begun,
            // Counted where they are lost.
            samples_lost: 0,
            fault: self.fault.clone(),
            // The link's.
            uploads: None,
        };
        self.status.send_if_modified(|status| {
            let changed = *status != now;
            *status = now;
            changed
        });
    }
}

/// Why a capture ends by itself.
enum Why {
    Full(Ended),
    Disk(io::Error),
}

fn add(open: &mut Open, record: &Record, pick: Pick, interfaces: &Interfaces) -> Option<Why> {
    match pick {
        Pick::Leave => return None,
        Pick::Thin => {
            open.growing.miss(record);
            return None;
        }
        Pick::Take => {}
    }
    let name = || {
        let known = interfaces.get(&record.interface).cloned();
        known.unwrap_or_else(|| (format!("slot {}", record.interface), Hook::Xdp))
    };
    match open.growing.push(record, name) {
        Ok(Room::More) => None,
        Ok(Room::Packets) => Some(Why::Full(Ended::PacketLimit)),
        Ok(Room::Bytes) => Some(Why::Full(Ended::ByteLimit)),
        Err(error) => Some(Why::Disk(error)),
    }
}

fn disk_end(error: &io::Error) -> Ended {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Ended::DiskFull,
        _ => Ended::DiskError,
    }
}
