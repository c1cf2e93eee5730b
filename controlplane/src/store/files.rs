//! The bytes of captures: one folder, names of our own making, nothing half done under a final name.
//!
//! ```text
//! incoming/<uuid>.tmp            a body that is being received
//! incoming/<key>/<index>         a chunk that is here whole
//! files/<sha256>                 a capture; rows with the same hash share it
//! ```
//! Nothing that a node says becomes part of a path. Everything but receiving waits for the disk: call it where that
//! holds nobody up.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use super::{Assembled, Result, StoreError};
use crate::domain::{PcapFormat, parse_sha256, sha256_text};

/// What is read and written at once.
const PIECE: usize = 64 << 10;
/// First bytes, by which captures are known.
const HEAD: usize = 24;

/// The folder.
#[derive(Clone, Debug)]
pub struct CaptureFiles {
    incoming: PathBuf,
    files: PathBuf,
}

/// Why chunks make no capture.
#[derive(Debug)]
pub enum Refused {
    /// The first bytes are those of no capture.
    Format,
    /// It is not what the node announced.
    Hash,
    /// It is larger than allowed.
    Size,
}

impl CaptureFiles {
    /// Makes the folder if need be, with mode 0700.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let folder = |path: PathBuf| {
            DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            Ok::<_, io::Error>(path)
        };
        Ok(Self { incoming: folder(dir.join("incoming"))?, files: folder(dir.join("files"))? })
    }

    /// Deletes bodies whose receiver died: before anything is received.
    pub fn clear(&self) -> Result<()> {
        let failed = |error| disk("what was half received cannot be cleared", error);
        for entry in fs::read_dir(&self.incoming).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|e| e == "tmp") {
                fs::remove_file(path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// A place for a body that is being received.
    pub async fn receive(&self) -> Result<Receiving> {
        let path = self.incoming.join(format!("{}.tmp", Uuid::new_v4()));
        let file = tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).await;
        let mut file = file.map_err(|e| disk("a body cannot be received", e))?;
        file.set_max_buf_size(PIECE);
        Ok(Receiving { file, path, bytes: 0, head: Vec::new() })
    }

    /// The indices of the chunks that are here whole.
    pub fn chunks(&self, key: Uuid) -> Result<BTreeSet<u32>> {
        let entries = match fs::read_dir(self.chunk_dir(key)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(disk("chunks cannot be listed", error)),
        };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Puts a body in the place of a chunk, whatever was there.
    pub fn place(&self, received: Receiving, key: Uuid, index: u32) -> Result<()> {
        let failed = |error| disk("a chunk cannot be kept", error);
        let dir = self.chunk_dir(key);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
        fs::rename(&received.path, dir.join(index.to_string())).map_err(failed)?;
        sync_dir(&dir).map_err(failed)
    }

    /// Cuts the file out of a multipart body, in place; false if there is none in it.
    pub fn unpack(
        &self,
        received: &mut Receiving,
        file_in: impl FnOnce(&[u8]) -> Option<Range<usize>>,
    ) -> Result<bool> {
        let failed = |error| disk("a body cannot be read", error);
        let body = fs::read(&received.path).map_err(failed)?;
        let Some(file) = file_in(&body).and_then(|range| body.get(range)) else { return Ok(false) };
        received.bytes = file.len() as u64;
        received.head = file[..file.len().min(HEAD)].to_vec();
        let mut out = OpenOptions::new().write(true).truncate(true).open(&received.path).map_err(failed)?;
        out.write_all(file).and_then(|()| out.sync_data()).map_err(failed)?;
        Ok(true)
    }

    /// Puts the chunks of `key` together under the name of their hash. The chunks stay.
    pub fn assemble(
        &self,
        key: Uuid,
        total: u32,
        max_bytes: u64,
        announced: Option<[u8; 32]>,
    ) -> Result<std::result::Result<Assembled, Refused>> {
        let path = self.incoming.join(format!("{}.tmp", Uuid::new_v4()));
        // Goes unless it is given its name; then nothing is under this one any more.
        let _temporary = Temporary(path.clone());
        let failed = |error| disk("a capture cannot be put together", error);
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let mut hasher = Sha256::new();
        let (mut bytes, mut format) = (0_u64, None);
        let mut piece = vec![0; PIECE];
        for index in 0..total {
            let mut chunk = File::open(self.chunk_dir(key).join(index.to_string())).map_err(failed)?;
            loop {
                let length = chunk.read(&mut piece).map_err(failed)?;
                if length == 0 {
                    break;
                }
                if bytes == 0 {
                    format = PcapFormat::of(&piece[..length]);
                }
                bytes += length as u64;
                if format.is_none() {
                    return Ok(Err(Refused::Format));
                }
                if bytes > max_bytes {
                    return Ok(Err(Refused::Size));
                }
                hasher.update(&piece[..length]);
                out.write_all(&piece[..length]).map_err(failed)?;
            }
        }
        let Some(format) = format else { return Ok(Err(Refused::Format)) };
        let sha256: [u8; 32] = hasher.finalize().into();
        if announced.is_some_and(|announced| announced != sha256) {
            return Ok(Err(Refused::Hash));
        }
        out.sync_all().map_err(failed)?;
        fs::rename(&path, self.path(&sha256)).map_err(failed)?;
        sync_dir(&self.files).map_err(failed)?;
        Ok(Ok(Assembled { format, bytes, sha256 }))
    }

    /// Deletes the chunks of an upload; what stays goes with the next sweep.
    pub fn forget(&self, key: Uuid) {
        let dir = self.chunk_dir(key);
        if let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %dir.display(), "chunks stay");
        }
    }

    /// A capture's file.
    ///
    /// # Errors
    /// It cannot be opened, or is not there any more.
    pub fn open_file(&self, sha256: &[u8; 32]) -> Result<File> {
        File::open(self.path(sha256)).map_err(|e| disk("a capture's file cannot be opened", e))
    }

    /// The uploads and the captures that have files here.
    pub fn names(&self) -> Result<(Vec<Uuid>, Vec<[u8; 32]>)> {
        let names = |dir: &Path| {
            let entries = fs::read_dir(dir).map_err(|e| disk("the folder cannot be listed", e))?;
            Ok::<_, StoreError>(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect::<Vec<_>>())
        };
        let keys = names(&self.incoming)?.iter().filter_map(|name| name.parse().ok()).collect();
        Ok((keys, names(&self.files)?.iter().filter_map(|name| parse_sha256(name)).collect()))
    }

    /// Deletes a capture's file.
    pub fn remove(&self, sha256: &[u8; 32]) -> Result<()> {
        fs::remove_file(self.path(sha256)).map_err(|e| disk("a capture's file cannot be deleted", e))
    }

    fn chunk_dir(&self, key: Uuid) -> PathBuf {
        self.incoming.join(key.to_string())
    }

    fn path(&self, sha256: &[u8; 32]) -> PathBuf {
        self.files.join(sha256_text(sha256))
    }
}

/// A body on its way to the disk; deleted if nobody places it.
#[derive(Debug)]
pub struct Receiving {
    file: tokio::fs::File,
    path: PathBuf,
    bytes: u64,
    head: Vec<u8>,
}

impl Receiving {
    /// Appends a piece.
    pub async fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.bytes += piece.len() as u64;
        self.head.extend_from_slice(&piece[..piece.len().min(HEAD - self.head.len())]);
        self.file.write_all(piece).await.map_err(|e| disk("a body cannot be received", e))
    }

    /// Waits until it is on disk.
    pub async fn finish(&mut self) -> Result<()> {
        let failed = |e| disk("a body cannot be received", e);
        self.file.flush().await.map_err(failed)?;
        self.file.sync_data().await.map_err(failed)
    }

    /// Whether it begins as a capture does.
    pub fn begins_a_capture(&self) -> bool {
        PcapFormat::of(&self.head).is_some()
    }

    /// Bytes received, or cut out.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // One that was placed is not there any more.
        drop(fs::remove_file(&self.path));
    }
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn disk(what: &'static str, source: io::Error) -> StoreError {
    let reason = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "its disk is full",
        _ => what,
    };
    StoreError::Disk { reason, source }
}

#[cfg(test)]
mod tests;
