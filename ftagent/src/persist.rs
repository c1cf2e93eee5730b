//! Durable small files of the agent's state directory: written whole or not at all.
//!
//! Called by the daemon, the spool and the control-plane link. A file that cannot be understood is kept under another
//! name for an operator to look at; nothing here decides what the contents mean.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most that one state file may hold: many times a full state, and still nothing that fills memory.
pub const MAX_BYTES: u64 = 64 << 20;

/// Why a state file could not be used; each message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    #[error("{path}: no space left on the disk; free some, the file's previous content is intact", path = .path.display())]
    DiskFull { path: PathBuf, source: io::Error },
    #[error("{path}: permission denied; the agent must own its state directory", path = .path.display())]
    Denied { path: PathBuf, source: io::Error },
    #[error("{path}: cannot {doing}: {source}", path = .path.display())]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path}: {bytes} bytes, more than the {limit} that a state file may have; move it away", path = .path.display())]
    TooBig { path: PathBuf, bytes: u64, limit: u64 },
    #[error("{path}: cannot be written as JSON: {source}", path = .path.display())]
    Encode { path: PathBuf, source: serde_json::Error },
    #[error(
        "{path}: in use by another agent (pid {pid}); stop it, or give this one a state directory of its own",
        path = .path.display()
    )]
    Locked { path: PathBuf, pid: String },
}

impl PersistError {
    pub(crate) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, source },
            io::ErrorKind::PermissionDenied => Self::Denied { path, source },
            _ => Self::Io { path, doing, source },
        }
    }

    /// Whether room on the disk is all that is missing.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }
}

/// What was found in place of a file.
#[derive(Debug, PartialEq)]
pub enum Loaded<T> {
    There(T),
    Missing,
    /// The file made no sense; it was kept under `moved_to`.
    Corrupt {
        moved_to: PathBuf,
        why: String,
    },
}

impl<T> Loaded<T> {
    /// What was there, if it was readable.
    pub fn there(self) -> Option<T> {
        match self {
            Self::There(value) => Some(value),
            Self::Missing | Self::Corrupt { .. } => None,
        }
    }
}

/// Makes `dir` and its parents with mode 0700.
///
/// # Errors
/// Names the directory.
pub fn make_dir(dir: &Path) -> Result<(), PersistError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| PersistError::io(dir, "make the directory", e))
}

/// Replaces `path` by `bytes` so that a crash at any moment leaves the old content or the new; mode 0600.
///
/// # Errors
/// Leaves the old content and names the file and the remedy.
pub fn save(path: &Path, bytes: &[u8]) -> Result<(), PersistError> {
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if len > MAX_BYTES {
        return Err(PersistError::TooBig { path: path.into(), bytes: len, limit: MAX_BYTES });
    }
    let temporary = with_suffix(path, ".tmp");
    let written = write_durably(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // A part of the new content must not stay and fill the disk further; that it goes is not certain.
        drop(fs::remove_file(&temporary));
        return Err(PersistError::io(path, "write", error));
    }
    sync_parent(path)
}

/// [`save`] of `value` as JSON.
///
/// # Errors
/// As [`save`], and if `value` has no JSON form.
pub fn save_json<T: Serialize>(path: &Path, value: &T) -> Result<(), PersistError> {
    let bytes = serde_json::to_vec(value).map_err(|source| PersistError::Encode { path: path.into(), source })?;
    save(path, &bytes)
}

/// Reads `path`, at most [`MAX_BYTES`]; nothing if it does not exist.
///
/// # Errors
/// Names the file.
pub fn load(path: &Path) -> Result<Option<Vec<u8>>, PersistError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(PersistError::io(path, "open", e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| PersistError::io(path, "read", e))?;
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if len > MAX_BYTES {
        return Err(PersistError::TooBig { path: path.into(), bytes: len, limit: MAX_BYTES });
    }
    Ok(Some(bytes))
}

/// Reads `path` as JSON. A file that is not what it should be moves to `NAME.corrupt-<unix_secs>` and is reported.
///
/// # Errors
/// Names the file that could not be read or moved.
pub fn load_json<T: DeserializeOwned>(path: &Path, unix_secs: i64) -> Result<Loaded<T>, PersistError> {
    let why = match load(path) {
        Ok(None) => return Ok(Loaded::Missing),
        Ok(Some(bytes)) => match serde_json::from_slice(&bytes) {
            Ok(value) => return Ok(Loaded::There(value)),
            Err(e) => e.to_string(),
        },
        Err(e @ PersistError::TooBig { .. }) => e.to_string(),
        Err(e) => return Err(e),
    };
    Ok(Loaded::Corrupt { moved_to: move_aside(path, unix_secs)?, why })
}

/// Renames a file that cannot be understood to `NAME.corrupt-<unix_secs>`; a later one of the same second gets a
/// number, so that none is overwritten.
///
/// # Errors
/// Names the file.
pub fn move_aside(path: &Path, unix_secs: i64) -> Result<PathBuf, PersistError> {
    let mut aside = with_suffix(path, &format!(".corrupt-{unix_secs}"));
    let mut n = 1;
    while aside.exists() {
        aside = with_suffix(path, &format!(".corrupt-{unix_secs}-{n}"));
        n += 1;
    }
    fs::rename(path, &aside).map_err(|e| PersistError::io(path, "move aside", e))?;
    sync_parent(path)?;
    Ok(aside)
}

/// Deletes `path`; one that is not there is as good.
///
/// # Errors
/// Names the file.
pub fn remove(path: &Path) -> Result<(), PersistError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PersistError::io(path, "delete", e)),
        _ => sync_parent(path),
    }
}

/// Holds the state directory for one agent until it is dropped or the process ends.
#[derive(Debug)]
pub struct StateLock {
    /// The kernel's lock lives as long as the open file.
    _file: File,
}

impl StateLock {
    /// Takes `dir/lock`.
    ///
    /// # Errors
    /// [`PersistError::Locked`] with the holder's process id if another agent has it.
    pub fn take(dir: &Path) -> Result<Self, PersistError> {
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = opened.map_err(|e| PersistError::io(&path, "open", e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = file.take(16).read_to_string(&mut pid);
                let pid = if read.is_ok() && !pid.trim().is_empty() { pid.trim().into() } else { "unknown".into() };
                return Err(PersistError::Locked { path, pid });
            }
            Err(fs::TryLockError::Error(e)) => return Err(PersistError::io(&path, "lock", e)),
        }
        let noted = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
        match noted.map_err(|e| PersistError::io(&path, "write", e)) {
            // The lock is the kernel's: a full disk takes the name from it and no more.
            Err(error) if !error.is_disk_full() => Err(error),
            _ => Ok(Self { _file: file }),
        }
    }
}

/// What an operator can do about an error of the disk.
pub(crate) fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space",
        io::ErrorKind::ReadOnlyFilesystem => "mount it for writing",
        io::ErrorKind::PermissionDenied => "let the agent own its state directory",
        _ => "look at the disk",
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a rename or a deletion in the directory of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), PersistError> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(dir).and_then(|d| d.sync_all());
    synced.map_err(|e| PersistError::io(dir, "make durable", e))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn a_file_is_replaced_whole_and_only_the_owner_reads_it() {
        let dir = dir();
        let path = dir.path().join("state.json");
        assert_eq!(load_json::<Vec<u8>>(&path, 0).unwrap(), Loaded::Missing);
        save_json(&path, &vec![1_u8, 2]).unwrap();
        save_json(&path, &vec![3_u8]).unwrap();
        assert_eq!(load_json::<Vec<u8>>(&path, 0).unwrap(), Loaded::There(vec![3]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_torn_temporary_file_of_a_crash_does_no_harm() {
        let dir = dir();
        let path = dir.path().join("state.json");
        save(&path, b"[1]").unwrap();
        fs::write(with_suffix(&path, ".tmp"), b"[1,2").unwrap();
        assert_eq!(load_json::<Vec<u8>>(&path, 0).unwrap(), Loaded::There(vec![1]));
        save(&path, b"[9]").unwrap();
        assert_eq!(load(&path).unwrap().as_deref(), Some(&b"[9]"[..]));
    }

    #[test]
    fn a_corrupt_file_is_kept_and_reported() {
        let dir = dir();
        let path = dir.path().join("state.json");
        for name in ["state.json.corrupt-77", "state.json.corrupt-77-1"] {
            fs::write(&path, name).unwrap();
            let Loaded::Corrupt { moved_to, why } = load_json::<Vec<u8>>(&path, 77).unwrap() else {
                panic!("not reported")
            };
            assert_eq!(moved_to, dir.path().join(name));
            assert!(!why.is_empty());
            assert_eq!(fs::read_to_string(&moved_to).unwrap(), name);
            assert!(!path.exists());
        }
    }

    #[test]
    fn an_oversized_file_is_neither_read_nor_written() {
        let dir = dir();
        let path = dir.path().join("big");
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(load(&path), Err(PersistError::TooBig { .. })));
        assert!(matches!(load_json::<u8>(&path, 1).unwrap(), Loaded::Corrupt { .. }));
        let too_big = vec![0; usize::try_from(MAX_BYTES).unwrap() + 1];
        assert!(matches!(save(&path, &too_big), Err(PersistError::TooBig { .. })));
    }

    #[test]
    fn a_second_agent_is_refused_with_the_first_ones_pid() {
        let dir = dir();
        let first = StateLock::take(dir.path()).unwrap();
        let refused = StateLock::take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(first);
        StateLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = save(Path::new("/nonexistent/ftagent/x"), b"1").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ftagent/x"), "{error}");
    }

    #[test]
    fn a_full_disk_leaves_the_old_content() {
        crate::on_a_small_disk(64 << 10, |dir| {
            let path = dir.join("state.json");
            save(&path, b"old").unwrap();
            let error = save(&path, &vec![b'x'; 1 << 20]).unwrap_err();
            assert!(error.is_disk_full(), "{error}");
            assert!(error.to_string().contains("free some"), "{error}");
            assert_eq!(load(&path).unwrap().as_deref(), Some(&b"old"[..]));
            save(&path, b"new").unwrap();
            assert_eq!(load(&path).unwrap().as_deref(), Some(&b"new"[..]));
        });
    }
}
