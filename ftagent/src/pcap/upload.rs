//! Which captures go to the control plane, in which chunks, and how far each is.
//!
//! The link sends them (`sync/captures.rs`). Beside each capture lies `<capture>.upload`, so that a restart goes on
//! where it was.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;
use uuid::Uuid;

use super::file::finished;
use super::id::CaptureId;
use super::shelf::{Capture, upload_state};
use crate::persist;

/// Bytes of a chunk, and of a capture that goes as one.
pub const CHUNK_BYTES: u64 = 2 << 20;

/// How far an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Chunks are missing there.
    UnderWay,
    Uploaded,
    /// The control plane will never take it; the file stays here.
    Refused,
}

/// One capture's upload, as it is kept on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// By which the control plane knows it.
    pub id: Uuid,
    /// Of the whole capture, 64 hex digits.
    pub sha256: String,
    pub bytes: u64,
    /// The chunk that goes next.
    pub next: u32,
    /// Chunks that are there.
    pub received: u32,
    pub progress: Progress,
    /// Why it was refused.
    #[serde(default)]
    pub why: Option<String>,
}

impl Upload {
    /// Reads the capture through and gives its upload a name.
    ///
    /// # Errors
    /// The capture cannot be read.
    pub fn begin(dir: &Path, capture: CaptureId, id: Uuid) -> io::Result<Self> {
        let mut file = File::open(finished(dir, capture))?;
        let mut hasher = Sha256::new();
        let mut piece = vec![0; 64 << 10];
        let mut bytes = 0;
        loop {
            let length = file.read(&mut piece)?;
            if length == 0 {
                break;
            }
            bytes += length as u64;
            hasher.update(&piece[..length]);
        }
        let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { id, sha256, bytes, next: 0, received: 0, progress: Progress::UnderWay, why: None })
    }

    /// How many chunks it has.
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(CHUNK_BYTES).max(1)).unwrap_or(u32::MAX)
    }

    /// The bytes of the chunk that goes next.
    ///
    /// # Errors
    /// The capture cannot be read, or is not what it was.
    pub fn chunk(&self, dir: &Path, capture: CaptureId) -> io::Result<Vec<u8>> {
        let file = File::open(finished(dir, capture))?;
        if file.metadata()?.len() != self.bytes {
            return Err(io::Error::other("it is not the capture that it was"));
        }
        let from = u64::from(self.next) * CHUNK_BYTES;
        let length = self.bytes.saturating_sub(from).min(CHUNK_BYTES);
        let mut chunk = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut chunk, from)?;
        Ok(chunk)
    }

    /// Takes an answer to the chunk that went: those that are missing there. False if it makes no sense.
    pub fn on_answer(&mut self, complete: bool, missing: &[u32]) -> bool {
        if complete {
            self.received = self.chunks();
            self.progress = Progress::Uploaded;
            return true;
        }
        let Some(next) = missing.iter().copied().min().filter(|next| *next < self.chunks()) else { return false };
        if missing.contains(&self.next) {
            return false;
        }
        self.received = self.chunks().saturating_sub(u32::try_from(missing.len()).unwrap_or(u32::MAX));
        self.next = next;
        true
    }
}

/// All uploads, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadsStatus {
    /// By the capture's name; those that did not begin yet are not here.
    pub uploads: BTreeMap<String, Upload>,
    /// Captures that are not at the control plane yet.
    pub waiting: u64,
    /// Bytes that the control plane took since the start.
    pub sent_bytes: u64,
    /// Why nothing goes at the moment.
    pub trouble: Option<String>,
}

/// The uploads of the captures that are there.
#[derive(Debug, Default)]
pub struct Uploads {
    known: BTreeMap<CaptureId, Known>,
    sent_bytes: u64,
    trouble: Option<String>,
}

#[derive(Debug)]
struct Known {
    /// Absent before it begins.
    upload: Option<Upload>,
    tries: u32,
    /// Its file cannot be read: not before the next start.
    skip: bool,
    capture: Capture,
}

impl Known {
    fn is_waiting(&self) -> bool {
        !self.skip && self.upload.as_ref().is_none_or(|upload| upload.progress == Progress::UnderWay)
    }
}

impl Uploads {
    /// Learns of new captures and forgets those that are gone. Reads the state of the new ones.
    pub fn look(&mut self, dir: &Path, captures: &[Capture]) {
        let finished = captures.iter().filter(|c| c.ended.is_some() && c.packets > 0);
        let there: BTreeMap<CaptureId, &Capture> = finished.map(|c| (c.id(), c)).collect();
        self.known.retain(|id, _| there.contains_key(id));
        for (id, capture) in there {
            self.known.entry(id).or_insert_with(|| {
                let upload = persist::load(&upload_state(dir, id))
                    .inspect_err(|error| warn!(%error, "the state of an upload cannot be read: it begins anew"))
                    .ok()
                    .flatten()
                    .and_then(|bytes| serde_json::from_slice(&bytes).ok());
                Known { upload, tries: 0, skip: false, capture: capture.clone() }
            });
        }
    }

    /// The captures that wait, those with the fewest tries first, then the oldest.
    pub fn waiting(&self) -> Vec<CaptureId> {
        let mut waiting: Vec<_> = self.known.iter().filter(|(_, known)| known.is_waiting()).collect();
        waiting.sort_by_key(|(id, known)| (known.tries, known.capture.opened_at, **id));
        waiting.into_iter().map(|(id, _)| *id).collect()
    }

    /// What is known of a capture, and of its upload if that began.
    pub fn of(&self, id: CaptureId) -> Option<(&Capture, Option<&Upload>)> {
        self.known.get(&id).map(|known| (&known.capture, known.upload.as_ref()))
    }

    /// Tries that failed since the start.
    pub fn tries(&self, id: CaptureId) -> u32 {
        self.known.get(&id).map_or(0, |known| known.tries)
    }

    /// Notes how far an upload is.
    pub fn note(&mut self, id: CaptureId, upload: Upload) {
        if let Some(known) = self.known.get_mut(&id) {
            known.upload = Some(upload);
        }
    }

    /// Notes that a chunk was taken.
    pub fn sent(&mut self, bytes: u64) {
        self.sent_bytes += bytes;
        self.trouble = None;
    }

    /// Notes a try that failed, so that others are tried as well. False if it failed for the same reason as before.
    pub fn failed(&mut self, id: CaptureId, why: &str) -> bool {
        if let Some(known) = self.known.get_mut(&id) {
            known.tries = known.tries.saturating_add(1);
        }
        let is_new = self.trouble.as_deref() != Some(why);
        self.trouble = Some(why.to_owned());
        is_new
    }

    /// Leaves a capture alone whose file cannot be read.
    pub fn skip(&mut self, id: CaptureId) {
        if let Some(known) = self.known.get_mut(&id) {
            known.skip = true;
        }
    }

    /// For status and metrics.
    pub fn status(&self) -> UploadsStatus {
        let begun = self.known.iter().filter_map(|(id, known)| Some((id.to_string(), known.upload.clone()?)));
        let waiting = self.known.values().filter(|known| known.is_waiting()).count() as u64;
        UploadsStatus {
            uploads: begun.collect(),
            waiting,
            sent_bytes: self.sent_bytes,
            trouble: self.trouble.clone().filter(|_| waiting > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::shelf::Ended;
    use super::*;

    const A: Uuid = Uuid::from_u128(0xa);

    fn capture(part: u32, ended: Option<Ended>) -> Capture {
        let at = time::OffsetDateTime::UNIX_EPOCH + time::Duration::minutes(part.into());
        let target = "10.0.0.1/32".parse().expect("a prefix");
        let mut capture = Capture::new(CaptureId { incident: A, part }, target, at);
        capture.packets = 1;
        capture.ended = ended;
        capture
    }

    #[test]
    fn what_grows_waits_and_what_failed_comes_after_the_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut uploads = Uploads::default();
        let mut captures =
            vec![capture(2, Some(Ended::Resolved)), capture(1, Some(Ended::Continued)), capture(3, None)];
        uploads.look(dir.path(), &captures);
        let parts = |uploads: &Uploads| uploads.waiting().iter().map(|id| id.part).collect::<Vec<_>>();
        assert_eq!(parts(&uploads), [1, 2]);
        assert!(uploads.failed(CaptureId { incident: A, part: 1 }, "busy"));
        assert_eq!((parts(&uploads), uploads.status().trouble), (vec![2, 1], Some("busy".to_owned())));
        captures.remove(0);
        captures[1].ended = Some(Ended::Resolved);
        uploads.look(dir.path(), &captures);
        assert_eq!(parts(&uploads), [3, 1], "one is gone, one has ended");
        uploads.skip(CaptureId { incident: A, part: 3 });
        assert_eq!((parts(&uploads), uploads.status().waiting), (vec![1], 1));
    }

    #[test]
    fn a_restart_goes_on_where_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let id = CaptureId::from(A);
        let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n / 3) as u8).collect();
        std::fs::write(finished(dir.path(), id), &bytes).expect("written");
        let mut upload = Upload::begin(dir.path(), id, Uuid::from_u128(1)).expect("read");
        assert_eq!((upload.bytes, upload.chunks(), upload.next), (5_000_000, 3, 0));
        assert!(upload.on_answer(false, &[1, 2]));
        persist::save_json(&upload_state(dir.path(), id), &upload).expect("saved");

        let mut uploads = Uploads::default();
        uploads.look(dir.path(), &[capture(1, Some(Ended::Resolved))]);
        let mut upload = uploads.of(id).and_then(|(_, upload)| upload.cloned()).expect("begun");
        assert_eq!((upload.id, upload.next, upload.received), (Uuid::from_u128(1), 1, 1));
        assert!(upload.chunk(dir.path(), id).expect("read") == bytes[2_097_152..4_194_304]);
        assert!(!upload.on_answer(false, &[1, 2]), "what was sent is still missing");
        assert!(!upload.on_answer(false, &[]) && !upload.on_answer(false, &[7]), "no sense");
        assert!(upload.on_answer(false, &[2]));
        assert!(upload.chunk(dir.path(), id).expect("read") == bytes[4_194_304..]);
        // It forgot everything but the last.
        assert!(upload.on_answer(false, &[0, 1]) && upload.next == 0 && upload.received == 1);
        assert!(upload.on_answer(true, &[]));
        uploads.note(id, upload.clone());
        assert_eq!((uploads.waiting(), upload.progress), (vec![], Progress::Uploaded));
        std::fs::write(finished(dir.path(), id), b"another").expect("written");
        assert!(upload.chunk(dir.path(), id).is_err());
    }

    #[test]
    fn a_state_that_makes_no_sense_begins_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(upload_state(dir.path(), A.into()), b"{\"id\": 5").expect("written");
        let mut uploads = Uploads::default();
        uploads.look(dir.path(), &[capture(1, Some(Ended::Resolved))]);
        assert_eq!(uploads.of(A.into()).map(|(_, upload)| upload.is_none()), Some(true));
    }
}
