//! Follows one growing file: rotation by rename or by truncation, half lines, lines without end, and more than can be
//! read. Looks when it is asked to; nothing is ever kept but the beginning of one line.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longer lines are skipped to their end.
pub(super) const MAX_LINE: usize = 8 << 10;
/// Bytes of one file that one look reads at most.
const READ_BYTES: u64 = 4 << 20;
/// More than this that waits is skipped, but for its end.
const MAX_BACKLOG: u64 = 16 << 20;
const KEPT_BACKLOG: u64 = 1 << 20;
/// Bytes before the position that must still be there: a file that was emptied and filled again has others.
const ANCHOR: usize = 64;
/// A renamed file is still written to until the server opens the new one.
const LINGER_NS: u64 = 10_000_000_000;

/// What became of a file's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Whole lines that were met.
    pub lines: u64,
    pub too_long: u64,
    /// Bytes that were skipped because too many waited.
    pub skipped_bytes: u64,
    pub rotations: u64,
}

/// An open file and how far it was read.
#[derive(Debug)]
struct Open {
    file: File,
    id: (u64, u64),
    offset: u64,
    /// The last bytes before `offset`.
    anchor: Vec<u8>,
    /// The beginning of a line whose end is not there yet.
    half: Vec<u8>,
    /// The line that is being read is too long: its end is waited for.
    skipping: bool,
}

/// One followed file.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    open: Option<Open>,
    /// The file before a rotation, until when it is looked at.
    before: Option<(Open, u64)>,
    /// Whether a first look was taken: a file that appears later is new from its first line.
    began: bool,
    pub(super) counts: Counts,
    /// Why nothing is read.
    pub(super) problem: Option<String>,
}

impl Follower {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None, before: None, began: false, counts: Counts::default(), problem: None }
    }

    /// The file from its first line, as one that appeared while its directory was watched.
    pub(super) fn from_start(path: &Path) -> Self {
        Self { began: true, ..Self::new(path) }
    }

    /// Gives `each` every line that was written since the last look, without its end.
    pub(super) fn look(&mut self, now_ns: u64, each: &mut impl FnMut(&[u8])) {
        let counts = &mut self.counts;
        if let Some((before, until_ns)) = &mut self.before {
            before.read(counts, each);
            if *until_ns <= now_ns {
                self.before = None;
            }
        }
        let found = fs::metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        let began = std::mem::replace(&mut self.began, true);
        if let Some(open) = &mut self.open {
            open.read(counts, each);
            if found.as_ref().is_ok_and(|id| *id == open.id) {
                self.problem = None;
                return;
            }
        }
        if let Err(error) = found {
            self.problem = Some(explain(&error));
            return;
        }
        match Open::at(&self.path, !began) {
            Ok(open) => {
                if let Some(before) = self.open.replace(open) {
                    counts.rotations += 1;
                    self.before = Some((before, now_ns + LINGER_NS));
                }
                self.problem = None;
                if let Some(open) = &mut self.open {
                    open.read(counts, each);
                }
            }
            Err(error) => self.problem = Some(explain(&error)),
        }
    }
}

/// The error in the operator's words.
fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "does not exist yet; it is read from its first line when it appears".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied: let the agent's user read the file and enter its directories, as by the group adm"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

impl Open {
    fn at(path: &Path, at_end: bool) -> io::Result<Self> {
        // A FIFO of this name must not stop the thread.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("is no regular file: only files can be followed"));
        }
        let offset = if at_end { meta.len() } else { 0 };
        let mut open =
            Self { file, id: (meta.dev(), meta.ino()), offset, anchor: Vec::new(), half: Vec::new(), skipping: false };
        if at_end && offset > 0 {
            let (anchor, _) = open.bytes_before(offset)?;
            // A line that was begun before us has lost its beginning.
            open.skipping = anchor.last() != Some(&b'\n');
            open.anchor = anchor;
        }
        Ok(open)
    }

    /// The last bytes before `offset`, and whether all of them are there.
    fn bytes_before(&self, offset: u64) -> io::Result<(Vec<u8>, bool)> {
        let len = offset.min(ANCHOR as u64);
        let mut bytes = vec![0; len as usize];
        let got = self.file.read_at(&mut bytes, offset - len)?;
        bytes.truncate(got);
        Ok((bytes, got as u64 == len))
    }

    /// Whether the file is not the one any more that was read up to `offset`.
    fn was_emptied(&self, len: u64) -> bool {
        if len < self.offset {
            return true;
        }
        // Unchanged files are not read again.
        len > self.offset
            && self.bytes_before(self.offset).is_ok_and(|(bytes, whole)| !whole || !bytes.ends_with(&self.anchor))
    }

    fn read(&mut self, counts: &mut Counts, each: &mut impl FnMut(&[u8])) {
        let Ok(len) = self.file.metadata().map(|meta| meta.len()) else { return };
        if self.was_emptied(len) {
            counts.rotations += 1;
            self.offset = 0;
            self.anchor.clear();
            self.half.clear();
            self.skipping = false;
        }
        if len.saturating_sub(self.offset) > MAX_BACKLOG {
            let to = len - KEPT_BACKLOG;
            counts.skipped_bytes += to - self.offset;
            self.offset = to;
            self.half.clear();
            self.skipping = true;
        }
        let mut buffer = vec![0; (64 << 10).min(len.saturating_sub(self.offset) as usize)];
        let until = len.min(self.offset + READ_BYTES);
        while self.offset < until {
            let got = match self.file.read_at(&mut buffer, self.offset) {
                Ok(0) | Err(_) => break,
                Ok(got) => got,
            };
            self.offset += got as u64;
            let bytes = &buffer[..got];
            self.take(bytes, counts, each);
            let kept = bytes.len().min(ANCHOR);
            self.anchor.extend_from_slice(&bytes[bytes.len() - kept..]);
            let surplus = self.anchor.len().saturating_sub(ANCHOR);
            self.anchor.drain(..surplus);
        }
    }

    /// Divides bytes into lines.
    fn take(&mut self, bytes: &[u8], counts: &mut Counts, each: &mut impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (line, ended) = match piece.strip_suffix(b"\n") {
                Some(line) => (line, true),
                None => (piece, false),
            };
            if self.skipping {
                self.skipping = !ended;
                continue;
            }
            if self.half.len() + line.len() > MAX_LINE {
                counts.too_long += 1;
                self.half.clear();
                self.skipping = !ended;
                continue;
            }
            if !ended {
                self.half.extend_from_slice(line);
                continue;
            }
            counts.lines += 1;
            if self.half.is_empty() {
                each(line.strip_suffix(b"\r").unwrap_or(line));
            } else {
                self.half.extend_from_slice(line);
                each(self.half.strip_suffix(b"\r").unwrap_or(&self.half));
                self.half.clear();
            }
        }
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
