//! A list's file as bytes: bounded, and whole or not at all.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// What changes when a file is written to or replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    pub device: u64,
    pub inode: u64,
    pub bytes: u64,
    /// Nanoseconds since 1970.
    pub modified_ns: i128,
    /// The same of the inode: a file that was put back with its old time has changed all the same.
    pub changed_ns: i128,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let nanos = |secs: i64, nanos: i64| i128::from(secs) * 1_000_000_000 + i128::from(nanos);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_ns: nanos(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanos(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Of the file at `path` now.
    ///
    /// # Errors
    /// When there is none that can be looked at.
    pub(super) fn at(path: &Path) -> Result<Self, FileError> {
        let metadata = std::fs::metadata(path).map_err(|source| FileError::open(path, source))?;
        Ok(Self::of(&metadata))
    }
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {source}")]
    Open { path: String, source: io::Error },
    #[error("{path} is no regular file")]
    NotAFile { path: String },
    #[error("{path} is empty; to empty a list on purpose leave a comment in it")]
    Empty { path: String },
    #[error("{path} has {bytes} bytes, and the limit is {limit}")]
    TooLarge { path: String, bytes: u64, limit: u64 },
    #[error("{path} was written to while it was read; put new lists into place by renaming")]
    Changed { path: String },
}

impl FileError {
    fn open(path: &Path, source: io::Error) -> Self {
        Self::Open { path: path.display().to_string(), source }
    }
}

/// Reads the file at `path` if it has no more than `limit` bytes and nobody writes to it meanwhile.
///
/// # Errors
/// When it cannot be read whole.
pub(super) fn read(path: &Path, limit: u64) -> Result<(Vec<u8>, Stamp), FileError> {
    read_while(path, limit, || {})
}

/// `meanwhile` runs after the last byte was read: where a writer would be noticed.
fn read_while(path: &Path, limit: u64, meanwhile: impl FnOnce()) -> Result<(Vec<u8>, Stamp), FileError> {
    let shown = || path.display().to_string();
    let error = |source| FileError::open(path, source);
    // Opening a pipe that has no writer would wait for one.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    let before = Stamp::of(&metadata);
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: shown() });
    }
    if before.bytes > limit {
        return Err(FileError::TooLarge { path: shown(), bytes: before.bytes, limit });
    }
    let bytes = read_all(&file, before.bytes).map_err(error)?;
    meanwhile();
    let after = Stamp::of(&file.metadata().map_err(error)?);
    // The inode's time also moves when the file is renamed over, which does not touch what was read.
    let same = (after.bytes, after.modified_ns) == (before.bytes, before.modified_ns);
    if !same || bytes.len() as u64 != before.bytes {
        return Err(FileError::Changed { path: shown() });
    }
    if bytes.is_empty() {
        return Err(FileError::Empty { path: shown() });
    }
    Ok((bytes, before))
}

/// One byte more than expected at most: that it grew is enough to know.
fn read_all(file: &File, expected: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    file.take(expected + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text).expect("room");
        file
    }

    #[test]
    fn a_quiet_file_is_read_with_its_stamp() {
        let file = file(b"198.51.100.7\n");
        let (bytes, stamp) = read(file.path(), 100).expect("small");
        assert_eq!((bytes.as_slice(), stamp.bytes), (b"198.51.100.7\n".as_slice(), 13));
        assert_eq!(Stamp::at(file.path()).expect("there"), stamp);
    }

    #[test]
    fn a_file_that_grows_or_shrinks_meanwhile_is_not_taken() {
        for append in [true, false] {
            let file = file(b"198.51.100.7\n198.51.100.8\n");
            let write = || {
                let mut writer = OpenOptions::new().write(true).append(append).open(file.path()).expect("ours");
                if append {
                    writer.write_all(b"198.51.100.9\n").expect("room");
                } else {
                    writer.set_len(5).expect("ours");
                }
            };
            assert!(matches!(read_while(file.path(), 100, write), Err(FileError::Changed { .. })), "append {append}");
        }
    }

    #[test]
    fn a_file_that_is_replaced_by_renaming_meanwhile_is_taken_as_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, fresh) = (dir.path().join("list"), dir.path().join("fresh"));
        std::fs::write(&path, "198.51.100.7\n").expect("room");
        std::fs::write(&fresh, "198.51.100.8\n198.51.100.9\n").expect("room");
        let rename = || std::fs::rename(&fresh, &path).expect("one folder");
        let (bytes, stamp) = read_while(&path, 100, rename).expect("whole");
        assert_eq!(bytes, b"198.51.100.7\n");
        assert_ne!(Stamp::at(&path).expect("there"), stamp);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(matches!(read(dir.path(), 100), Err(FileError::NotAFile { .. })));
        assert!(matches!(read(&dir.path().join("none"), 100), Err(FileError::Open { .. })));
        assert!(matches!(read(file(b"").path(), 100), Err(FileError::Empty { .. })));
        assert!(matches!(read(file(b"12345").path(), 4), Err(FileError::TooLarge { bytes: 5, limit: 4, .. })));
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
        assert!(matches!(read(&pipe, 100), Err(FileError::NotAFile { .. })));
    }
}
