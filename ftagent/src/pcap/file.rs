//! One capture on its way to disk: blocks appended in whole, bounded in packets and bytes.
//!
//! While it grows it is `<capture>.pcapng.part`; finished it loses the suffix. Names are made of ids alone.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::block::{self, Hook};
use super::id::CaptureId;
use super::record::Record;

/// Blocks that are collected before they are written.
const BUFFER_BYTES: usize = 64 << 10;
/// Kept for the blocks that end the file.
const TRAILER_BYTES: u64 = 16 << 10;

/// The file of a finished capture.
pub fn finished(dir: &Path, id: impl Into<CaptureId>) -> PathBuf {
    dir.join(format!("{}.pcapng", id.into()))
}

/// The file of a capture that grows.
pub fn growing(dir: &Path, id: impl Into<CaptureId>) -> PathBuf {
    dir.join(format!("{}.pcapng.part", id.into()))
}

/// What bounds one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub max_packets: u64,
    pub max_bytes: u64,
    pub snap_bytes: u32,
}

/// Whether there is room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    More,
    /// The bound of packets is reached.
    Packets,
    /// The bound of bytes is reached.
    Bytes,
}

/// The capture that is being written.
#[derive(Debug)]
pub struct Growing {
    file: File,
    dir: PathBuf,
    id: CaptureId,
    bounds: Bounds,
    /// Wall clock minus monotonic clock when the capture began: a clock that is set meanwhile tears nothing.
    wall_minus_mono_ns: i128,
    buffer: Vec<u8>,
    /// Bytes in the file, all of them whole blocks.
    written: u64,
    packets: u64,
    dropped: u64,
    missed: u64,
    span: Option<(u64, u64)>,
    /// By slot: its number in the section, and its counts.
    interfaces: BTreeMap<u16, Interface>,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    number: u32,
    hook: Hook,
    samples: u64,
    missed: u64,
    /// Missed since the last packet.
    gap: u64,
}

impl Growing {
    /// Makes the file with its section.
    ///
    /// # Errors
    /// The disk's; nothing is left behind.
    pub fn create(
        dir: &Path,
        id: impl Into<CaptureId>,
        bounds: Bounds,
        wall_minus_mono_ns: i128,
        comment: &str,
        os: &str,
    ) -> io::Result<Self> {
        let id = id.into();
        let path = growing(dir, id);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let mut growing = Self {
            file,
            dir: dir.to_owned(),
            id,
            bounds,
            wall_minus_mono_ns,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            written: 0,
            packets: 0,
            dropped: 0,
            missed: 0,
            span: None,
            interfaces: BTreeMap::new(),
        };
        block::section(&mut growing.buffer, comment, os);
        if let Err(error) = growing.flush() {
            // What does not go now goes at the next start.
            drop(std::fs::remove_file(&path));
            return Err(error);
        }
        Ok(growing)
    }

    /// Appends a sample; `name` tells of an interface that is met for the first time.
    ///
    /// # Errors
    /// The disk's; the file still ends with a whole block.
    pub fn push(&mut self, record: &Record, name: impl FnOnce() -> (String, Hook)) -> io::Result<Room> {
        if self.packets >= self.bounds.max_packets {
            return Ok(Room::Packets);
        }
        let before = self.buffer.len();
        let is_new = !self.interfaces.contains_key(&record.interface);
        let snap = self.bounds.snap_bytes;
        let next = u32::try_from(self.interfaces.len()).expect("slots are 16 bits");
        let buffer = &mut self.buffer;
        let interface = self.interfaces.entry(record.interface).or_insert_with(|| {
            let (name, hook) = name();
            let description = "sampled: the comment of each packet says of how many frames it is one";
            block::interface(buffer, &name, description, snap);
            Interface { number: next, hook, samples: 0, missed: 0, gap: 0 }
        });
        let wall_ns = i128::from(record.time_ns).saturating_add(self.wall_minus_mono_ns);
        let wall_ns = u64::try_from(wall_ns).unwrap_or(0);
        block::packet(buffer, interface.number, wall_ns, record, snap, interface.hook, interface.gap);
        if self.written + self.buffer.len() as u64 + TRAILER_BYTES > self.bounds.max_bytes {
            if is_new {
                self.interfaces.remove(&record.interface);
            }
            self.buffer.truncate(before);
            return Ok(Room::Bytes);
        }
        if let Some(interface) = self.interfaces.get_mut(&record.interface) {
            interface.samples += 1;
            interface.gap = 0;
        }
        self.packets += 1;
        self.dropped += u64::from(matches!(record.fate, super::record::Fate::Dropped | super::record::Fate::Answered));
        let (first, last) = self.span.unwrap_or((wall_ns, wall_ns));
        self.span = Some((first.min(wall_ns), last.max(wall_ns)));
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(Room::More)
    }

    /// Counts a sample that belongs here and is not written.
    pub fn miss(&mut self, record: &Record) {
        self.missed += 1;
        if let Some(interface) = self.interfaces.get_mut(&record.interface) {
            interface.samples += 1;
            interface.missed += 1;
            interface.gap += 1;
        }
    }

    /// Writes what is collected; on an error the file is cut back to its last whole block.
    ///
    /// # Errors
    /// The disk's.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Err(error) = self.file.write_all(&self.buffer) {
            self.buffer.clear();
            self.file.set_len(self.written)?;
            return Err(error);
        }
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the file with the interfaces' counts and gives it its name. `healthy` says whether the disk took
    /// everything until now; if not, or if it does not now, the file ends where it is.
    ///
    /// # Errors
    /// The file keeps the name of one that grows; the next start finishes it.
    pub fn finish(mut self, ended: &str, mut healthy: bool) -> io::Result<Summary> {
        if healthy {
            let span = self.span.unwrap_or_default();
            for interface in self.interfaces.values() {
                let Interface { number, samples, missed, .. } = *interface;
                block::statistics(&mut self.buffer, number, span, samples, missed, ended);
            }
            healthy = self.flush().is_ok();
        }
        let summary = self.summary();
        if summary.packets == 0 {
            std::fs::remove_file(growing(&self.dir, self.id))?;
            return Ok(summary);
        }
        if healthy {
            self.file.sync_all()?;
        }
        std::fs::rename(growing(&self.dir, self.id), finished(&self.dir, self.id))?;
        File::open(&self.dir)?.sync_all()?;
        Ok(summary)
    }

    /// What is in it up to now.
    pub fn summary(&self) -> Summary {
        Summary {
            packets: self.packets,
            dropped: self.dropped,
            missed: self.missed,
            bytes: self.written + self.buffer.len() as u64,
            span: self.span,
        }
    }
}

/// What a capture holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub packets: u64,
    /// Packets of them that went no further.
    pub dropped: u64,
    /// Samples that belong here and are not there.
    pub missed: u64,
    pub bytes: u64,
    /// Nanoseconds since 1970 of the first and the last packet.
    pub span: Option<(u64, u64)>,
}

/// Finishes the file that a killed agent left growing: cuts it after its last whole block and gives it its name. One
/// without a packet is deleted.
///
/// # Errors
/// The disk's.
pub fn recover(dir: &Path, id: impl Into<CaptureId>, max_bytes: u64) -> io::Result<Summary> {
    let id = id.into();
    let path = growing(dir, id);
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let len = file.metadata()?.len();
    let summary = scan(&file, max_bytes);
    if summary.packets == 0 {
        std::fs::remove_file(&path)?;
        return Ok(summary);
    }
    if summary.bytes < len {
        file.set_len(summary.bytes)?;
    }
    file.sync_all()?;
    std::fs::rename(&path, finished(dir, id))?;
    Ok(summary)
}

/// What lies in the whole blocks of a file, of at most about `max_bytes`.
pub fn scan(file: &File, max_bytes: u64) -> Summary {
    let mut summary = Summary::default();
    let mut reader = io::BufReader::new(file.take(max_bytes.saturating_add(TRAILER_BYTES)));
    let mut block = Vec::new();
    let mut header = [0; 8];
    while reader.read_exact(&mut header).is_ok() {
        let Some(wanted) = block::block_len(header) else { break };
        block.clear();
        block.extend(header);
        block.resize(wanted as usize, 0);
        if reader.read_exact(&mut block[8..]).is_err() || !block.ends_with(&wanted.to_le_bytes()) {
            break;
        }
        summary.bytes += u64::from(wanted);
        if let Some(at) = block::packet_time(&block) {
            summary.packets += 1;
            let (first, last) = summary.span.unwrap_or((at, at));
            summary.span = Some((first.min(at), last.max(at)));
        }
    }
    summary
}
