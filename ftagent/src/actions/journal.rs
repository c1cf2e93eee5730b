//! What was done in other tools and is not undone: on disk before it is done.
//!
//! ```text
//! line: CRC-32 of the rest (8 hex digits) | space | JSON record | newline
//! ```
//! Only ever appended to, or replaced whole. A crash can tear the last line alone, and then what it says was not begun:
//! it is cut. A line damaged elsewhere is an error: what is readable is still undone, and nothing new is begun.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ftagent_common::api::ToolStep;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::persist::{self, PersistError};

/// A journal longer than this is written anew with what still counts.
const COMPACT_BYTES: u64 = 1 << 20;
/// A journal never grows beyond this: twice the members that sets may have of us, of the longest kind, before and after
/// a change of them all.
const MAX_BYTES: u64 = persist::MAX_BYTES;
/// A member of a set, as an IPv6 address is written.
const MEMBER_BYTES: u64 = 46;

/// Why a journal takes no record.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{path}: line {line} is damaged ({why}): nothing new is begun; look at it, then move it away", path = .path.display())]
    Damaged { path: PathBuf, line: usize, why: String },
    #[error("{path}: {bytes} bytes are more than it may have: nothing new is begun", path = .path.display())]
    Full { path: PathBuf, bytes: u64 },
    #[error(transparent)]
    Persist(#[from] PersistError),
}

/// One step that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The action that it was begun for.
    pub task: Uuid,
    pub step: ToolStep,
    /// Its place in that action's plan: what comes later is undone sooner.
    pub place: u32,
    /// The object was there before, and is somebody else's: it is not undone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub found: bool,
    /// The value that the step replaced, for tools that have values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The boot in which that value was true.
    pub boot: String,
    /// Of the step's members those that were there before, in order: they are not taken out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub theirs: Vec<IpNet>,
}

/// What a journal keeps.
pub trait Kept: Clone + Serialize + DeserializeOwned {
    /// The name of the object: what is begun again under the same name takes the place of what was begun before.
    fn name(&self) -> String;

    /// An estimate of what a record of it is long.
    fn bytes(&self, name: &str) -> u64 {
        2 * name.len() as u64 + 400
    }
}

impl Kept for Entry {
    fn name(&self) -> String {
        self.step.object()
    }

    fn bytes(&self, name: &str) -> u64 {
        let members = self.step.members.as_ref().map_or(0, |members| members.prefixes.len()) + self.theirs.len();
        2 * name.len() as u64 + 400 + MEMBER_BYTES * members as u64
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record<E> {
    Begun(E),
    /// The object of this name is undone.
    Gone(String),
}

/// The open journal of one tool.
#[derive(Debug)]
pub struct Journal<E = Entry> {
    path: PathBuf,
    /// Absent where it cannot be opened for writing.
    file: Option<File>,
    len: u64,
    entries: BTreeMap<String, E>,
    fault: Option<JournalError>,
}

impl Journal {
    /// Sets what is only remembered until the next start.
    pub fn set_place(&mut self, object: &str, task: Uuid, place: u32) {
        if let Some(entry) = self.entries.get_mut(object) {
            (entry.task, entry.place) = (task, place);
        }
    }
}

impl<E: Kept> Journal<E> {
    /// Opens or makes the journal at `path`. What is wrong with it, [`Self::fault`] says.
    pub fn open(path: &Path) -> Self {
        let mut journal = Self { path: path.into(), file: None, len: 0, entries: BTreeMap::new(), fault: None };
        if let Err(fault) = journal.read() {
            journal.fault = Some(fault);
        }
        journal
    }

    fn read(&mut self) -> Result<(), JournalError> {
        let io = |doing| {
            let path = self.path.clone();
            move |error| JournalError::from(PersistError::io(&path, doing, error))
        };
        let bytes = match std::fs::metadata(&self.path) {
            Ok(metadata) if metadata.len() > 2 * MAX_BYTES => {
                return Err(JournalError::Full { path: self.path.clone(), bytes: metadata.len() });
            }
            Ok(_) => std::fs::read(&self.path).map_err(io("read"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io("look at")(error)),
        };
        let mut damaged = None;
        let mut sound = 0;
        let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
        for (at, line) in lines.iter().enumerate() {
            match parse(line) {
                Ok(record) => {
                    sound += line.len();
                    apply(&mut self.entries, record);
                }
                // Nothing that this line says was begun: it was not on the disk yet.
                Err(_) if at + 1 == lines.len() && !line.ends_with(b"\n") => break,
                Err(why) => {
                    sound += line.len();
                    damaged.get_or_insert(JournalError::Damaged { path: self.path.clone(), line: at + 1, why });
                }
            }
        }
        if let Some(damaged) = damaged {
            return Err(damaged);
        }
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(&self.path).map_err(io("open"))?;
        if sound < bytes.len() {
            file.set_len(sound as u64).and_then(|()| file.sync_all()).map_err(io("cut"))?;
        }
        persist::sync_parent(&self.path)?;
        (self.file, self.len) = (Some(file), sound as u64);
        Ok(())
    }

    /// Why nothing new is begun, if so.
    pub fn fault(&self) -> Option<String> {
        self.fault.as_ref().map(ToString::to_string)
    }

    /// What was begun and is not undone, by [`Kept::name`].
    pub fn entries(&self) -> &BTreeMap<String, E> {
        &self.entries
    }

    /// Writes that these are begun, and waits for the disk.
    ///
    /// # Errors
    /// Then none of them may be begun.
    pub fn begin(&mut self, entries: Vec<E>) -> Result<(), JournalError> {
        if entries.is_empty() {
            return Ok(());
        }
        if let Some(fault) = &self.fault {
            return Err(PersistError::io(&self.path, "write", io::Error::other(fault.to_string())).into());
        }
        let records: Vec<Record<E>> = entries.into_iter().map(Record::Begun).collect();
        self.write(&records)?;
        records.into_iter().for_each(|record| apply(&mut self.entries, record));
        Ok(())
    }

    /// Writes that the object is undone. When that fails, it is looked for again at the next start, which does no harm.
    ///
    /// # Errors
    /// The disk's.
    pub fn gone(&mut self, object: &str) -> Result<(), JournalError> {
        self.all_gone(&[object.to_owned()])
    }

    /// The same of several at once.
    ///
    /// # Errors
    /// The disk's.
    pub fn all_gone(&mut self, objects: &[String]) -> Result<(), JournalError> {
        objects.iter().for_each(|object| drop(self.entries.remove(object)));
        if self.file.is_none() || objects.is_empty() {
            return Ok(());
        }
        let records: Vec<Record<E>> = objects.iter().cloned().map(Record::Gone).collect();
        self.write(&records)
    }

    fn write(&mut self, records: &[Record<E>]) -> Result<(), JournalError> {
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend(line(record));
        }
        if self.len + bytes.len() as u64 > COMPACT_BYTES.max(2 * self.live_bytes()) {
            self.compact()?;
        }
        if self.len + bytes.len() as u64 > MAX_BYTES {
            return Err(JournalError::Full { path: self.path.clone(), bytes: self.len });
        }
        let path = self.path.clone();
        let Some(file) = &mut self.file else {
            return Err(PersistError::io(&path, "write", io::Error::other("it is not open")).into());
        };
        if let Err(error) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
            // A part of it must not stand before what is written next.
            drop(file.set_len(self.len));
            return Err(PersistError::io(&path, "write", error).into());
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn live_bytes(&self) -> u64 {
        self.entries.iter().map(|(name, entry)| entry.bytes(name)).sum()
    }

    /// Replaces the file by one with what still counts.
    fn compact(&mut self) -> Result<(), JournalError> {
        let mut bytes = Vec::new();
        for entry in self.entries.values() {
            bytes.extend(line(&Record::Begun(entry.clone())));
        }
        persist::save(&self.path, &bytes)?;
        let opened = OpenOptions::new().append(true).open(&self.path);
        self.file = Some(opened.map_err(|error| PersistError::io(&self.path, "open", error))?);
        self.len = bytes.len() as u64;
        Ok(())
    }
}

fn line<E: Kept>(record: &Record<E>) -> Vec<u8> {
    let json = serde_json::to_string(record).expect("strings, numbers and maps of them have a JSON form");
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).into_bytes()
}

fn parse<E: Kept>(line: &[u8]) -> Result<Record<E>, String> {
    let text = std::str::from_utf8(line).map_err(|e| e.to_string())?;
    let text = text.strip_suffix('\n').ok_or("it has no end")?;
    let (sum, json) = text.split_once(' ').ok_or("it has no checksum")?;
    let sum = u32::from_str_radix(sum, 16).map_err(|e| e.to_string())?;
    if crc32fast::hash(json.as_bytes()) != sum {
        return Err("the checksum is another".to_owned());
    }
    serde_json::from_str(json).map_err(|e| e.to_string())
}

fn apply<E: Kept>(entries: &mut BTreeMap<String, E>, record: Record<E>) {
    match record {
        Record::Begun(entry) => drop(entries.insert(entry.name(), entry)),
        Record::Gone(object) => drop(entries.remove(&object)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        let step = ToolStep {
            run: vec!["make".into(), name.into()],
            undo: vec!["unmake".into(), name.into()],
            unless: Vec::new(),
            members: None,
        };
        Entry { task: Uuid::nil(), step, place: 0, found: false, before: None, boot: "b".into(), theirs: Vec::new() }
    }

    fn names(journal: &Journal) -> Vec<&str> {
        journal.entries.values().map(|e| e.step.run[1].as_str()).collect()
    }

    #[test]
    fn what_was_begun_is_known_after_any_cut_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut journal: Journal = Journal::open(&path);
        journal.begin(vec![entry("a"), entry("b")]).unwrap();
        let two = std::fs::metadata(&path).unwrap().len();
        journal.gone(&entry("a").step.object()).unwrap();
        journal.begin(vec![entry("c")]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let journal = Journal::open(&path);
            assert_eq!(journal.fault(), None, "{cut}");
            let known = names(&journal);
            if cut as u64 >= two {
                assert!(known.contains(&"b"), "{cut}: {known:?}");
            }
            if cut == whole.len() {
                assert_eq!(known, ["b", "c"]);
            }
            // And the file goes on behind the cut.
            drop(journal);
            let mut journal: Journal = Journal::open(&path);
            journal.begin(vec![entry("z")]).unwrap();
            assert!(names(&Journal::open(&path)).contains(&"z"), "{cut}");
        }
    }

    #[test]
    fn a_damaged_line_refuses_what_is_new_and_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut journal: Journal = Journal::open(&path);
        journal.begin(vec![entry("a"), entry("b"), entry("c")]).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let second = bytes.iter().position(|b| *b == b'\n').unwrap() + 30;
        bytes[second] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let mut journal: Journal = Journal::open(&path);
        assert!(journal.fault().is_some_and(|f| f.contains("line 2")), "{:?}", journal.fault());
        assert_eq!(names(&journal), ["a", "c"]);
        let refused = journal.begin(vec![entry("d")]).unwrap_err().to_string();
        assert!(refused.contains("line 2"), "{refused}");
        journal.gone(&entry("a").step.object()).unwrap();
        assert_eq!(names(&journal), ["c"]);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "it is left as it is for people to look at");
    }

    #[test]
    fn it_is_written_anew_before_it_grows_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut journal: Journal = Journal::open(&path);
        let long = "x".repeat(10_000);
        journal.begin(vec![entry("kept")]).unwrap();
        for n in 0..400 {
            let one = entry(&format!("{long}{n}"));
            journal.begin(vec![one.clone()]).unwrap();
            journal.gone(&one.step.object()).unwrap();
        }
        assert!(std::fs::metadata(&path).unwrap().len() <= COMPACT_BYTES + 100_000);
        assert_eq!(names(&Journal::open(&path)), ["kept"]);
    }

    #[test]
    fn a_full_disk_begins_nothing() {
        crate::on_a_small_disk(64 << 10, |dir| {
            let path = dir.join("j");
            let mut journal: Journal = Journal::open(&path);
            journal.begin(vec![entry("a")]).unwrap();
            let big = entry(&"y".repeat(1 << 20));
            assert!(journal.begin(vec![big]).is_err());
            assert_eq!(names(&journal), ["a"]);
            journal.begin(vec![entry("b")]).unwrap();
            assert_eq!(names(&Journal::open(&path)), ["a", "b"]);
        });
    }
}
