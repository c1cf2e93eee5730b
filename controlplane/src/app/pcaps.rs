//! Captures of incidents: chunk by chunk from nodes, whole to operators.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;

use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tracing::{info, warn};
use uuid::Uuid;

use super::App;
use super::analyses::Analyses;
use crate::domain::{Actor, Listed, NewChunk, Page, Pcap, Problem, Quota};
use crate::store::files::{CaptureFiles, Receiving, Refused};
use crate::store::{Opened, Result, StoreError, UnderWay};

/// Bodies that are received at the same time, all nodes together.
const MAX_RECEIVING: usize = 256;
/// Bodies that are in memory at the same time, 2 MiB each.
const MAX_UNPACKING: usize = 8;
/// An upload that stands still for a day is forgotten.
const STILL_SECS: i64 = 86_400;

/// How much is taken and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureLimits {
    /// Of one capture.
    pub max_bytes: u64,
    pub keep_days: i64,
    /// Of all captures; uploads under way may take as much again.
    pub max_disk_bytes: u64,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, keep_days: 30, max_disk_bytes: 10_000_000_000 }
    }
}

/// The folder of captures with its rules.
pub struct Captures {
    files: CaptureFiles,
    limits: CaptureLimits,
    receiving: Semaphore,
    unpacking: Semaphore,
    /// Held while a file and its row come or go together.
    shelf: Mutex<()>,
    pub(super) analyses: Analyses,
}

impl Captures {
    pub fn new(files: CaptureFiles, limits: CaptureLimits) -> Self {
        Self {
            files,
            limits,
            receiving: Semaphore::new(MAX_RECEIVING),
            unpacking: Semaphore::new(MAX_UNPACKING),
            shelf: Mutex::default(),
            analyses: Analyses::default(),
        }
    }
}

/// What a node hears of its upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) received: Vec<u32>,
    pub(crate) missing: Vec<u32>,
    /// The capture, once it is whole.
    pub(crate) pcap: Option<Pcap>,
}

impl Progress {
    fn done(chunk: &NewChunk, pcap: Pcap) -> Self {
        Self { received: (0..chunk.total).collect(), missing: Vec::new(), pcap: Some(pcap) }
    }
}

/// A chunk that may come, or need not.
pub(crate) enum Begun {
    Receive(Uuid),
    Done(Progress),
}

impl App {
    /// Says whether a chunk is to come, before its bytes are read.
    pub(crate) async fn begin_chunk(&self, node: Uuid, chunk: &NewChunk) -> Result<(Quota, Begun)> {
        let room = self.captures.limits.max_disk_bytes;
        let Opened { quota, evicted, under_way } = self.store.open_upload(node, chunk, room, self.now()).await?;
        for key in evicted {
            info!(%node, "an upload of a capture is given up: the node began too many others");
            self.with_files(move |files| files.forget(key)).await;
        }
        let begun = match under_way {
            UnderWay::Key(key) => Begun::Receive(key),
            UnderWay::Done(pcap) => Begun::Done(Progress::done(chunk, pcap)),
        };
        Ok((quota, begun))
    }

    /// The largest capture that is taken.
    pub(crate) fn max_capture_bytes(&self) -> u64 {
        self.captures.limits.max_bytes
    }

    /// A place for a body, and leave to receive it.
    pub(crate) async fn receive(&self) -> Result<(Receiving, SemaphorePermit<'_>)> {
        let Ok(permit) = self.captures.receiving.try_acquire() else {
            let source = std::io::ErrorKind::ResourceBusy.into();
            return Err(StoreError::Disk { reason: "too many captures arrive at the same time", source });
        };
        Ok((self.captures.files.receive().await?, permit))
    }

    /// Takes the file out of a multipart body.
    pub(crate) async fn unpack(
        &self,
        mut received: Receiving,
        file_in: impl FnOnce(&[u8]) -> Option<Range<usize>> + Send + 'static,
    ) -> Result<Receiving> {
        let _turn = self.captures.unpacking.acquire().await.expect("it is never closed");
        let unpacked =
            self.with_files(move |files| files.unpack(&mut received, file_in).map(|is| is.then_some(received)));
        unpacked.await?.ok_or_else(|| Problem::field("body", "has no file in it").into())
    }

    /// Keeps a chunk that was received whole; the last one completes the capture.
    pub(crate) async fn keep_chunk(
        &self,
        actor: &Actor,
        node: Uuid,
        chunk: &NewChunk,
        key: Uuid,
        received: Receiving,
    ) -> Result<Progress> {
        if received.bytes() == 0 {
            return Err(Problem::field("body", "must not be empty").into());
        }
        if chunk.index == 0 && !received.begins_a_capture() {
            return Err(Problem::field("body", "is neither pcap nor pcapng").into());
        }
        let index = chunk.index;
        let there = move |files: &CaptureFiles| {
            files.place(received, key, index)?;
            files.chunks(key)
        };
        let there = self.with_files(there).await?;
        if u32::try_from(there.len()).is_ok_and(|there| there < chunk.total) {
            let missing = (0..chunk.total).filter(|index| !there.contains(index)).collect();
            return Ok(Progress { received: there.into_iter().collect(), missing, pcap: None });
        }
        self.complete(actor, node, chunk, key).await
    }

    async fn complete(&self, actor: &Actor, node: Uuid, chunk: &NewChunk, key: Uuid) -> Result<Progress> {
        let shelf = self.captures.shelf.lock().await;
        // The same chunk may have come twice, and the other one was first.
        if let (_, Begun::Done(progress)) = self.begin_chunk(node, chunk).await? {
            self.with_files(move |files| files.forget(key)).await;
            return Ok(progress);
        }
        let (total, max_bytes, announced) = (chunk.total, self.captures.limits.max_bytes, chunk.sha256);
        let assembled = self.with_files(move |files| files.assemble(key, total, max_bytes, announced)).await?;
        let assembled = match assembled {
            Ok(assembled) => assembled,
            Err(refused) => {
                self.store.forget_upload(key).await?;
                self.with_files(move |files| files.forget(key)).await;
                return Err(match refused {
                    Refused::Format => Problem::field("body", "is neither pcap nor pcapng"),
                    Refused::Hash => Problem::field("X-Capture-Sha256", "is not that of the chunks: begin anew"),
                    Refused::Size => Problem::field("body", format!("a capture has at most {max_bytes} bytes")),
                }
                .into());
            }
        };
        let fact = self.fact(actor, "pcap.upload", "pcap");
        let pcap = self.store.keep_pcap(key, chunk, &assembled, fact).await?;
        drop(shelf);
        info!(%node, incident = %chunk.incident, part = chunk.part, bytes = pcap.bytes, "a capture is here");
        self.with_files(move |files| files.forget(key)).await;
        self.prune_pcaps().await?;
        Ok(Progress::done(chunk, pcap))
    }

    pub(crate) async fn pcaps(&self, actor: &Actor, page: Page) -> Result<Listed<Pcap>> {
        self.store.pcaps(actor.workspace(), page).await
    }

    /// A capture and its bytes.
    pub(crate) async fn pcap(&self, actor: &Actor, id: i64) -> Result<(Pcap, File)> {
        let (pcap, sha256) = self.store.pcap(actor.workspace(), id).await?;
        let file = self.with_files(move |files| files.open_file(&sha256)).await?;
        Ok((pcap, file))
    }

    pub(crate) async fn delete_pcap(&self, actor: &Actor, id: i64) -> Result<()> {
        let fact = self.fact(actor, "pcap.delete", format!("pcap/{id}"));
        self.store.delete_pcap(actor.workspace(), id, fact).await?;
        self.sweep_or_say().await;
        Ok(())
    }

    /// Sweeps after what cannot be undone; what fails now is done by the next job.
    pub(super) async fn sweep_or_say(&self) {
        if let Err(error) = self.sweep_captures().await {
            warn!(%error, "files of captures stay for now");
        }
    }

    /// Clears what an earlier process left half received. Only the process that serves may do so.
    pub async fn start_captures(&self) -> Result<()> {
        self.with_files(CaptureFiles::clear).await
    }

    /// Gives up uploads that stand still, and deletes captures that are too old or too many.
    pub(super) async fn prune_pcaps(&self) -> Result<()> {
        let now = self.now();
        for key in self.store.forget_uploads(now.plus_secs(-STILL_SECS)).await? {
            self.with_files(move |files| files.forget(key)).await;
        }
        let CaptureLimits { keep_days, max_disk_bytes, .. } = self.captures.limits;
        let gone = self.store.prune_pcaps(now.plus_secs(-keep_days * 86_400), max_disk_bytes).await?;
        if gone > 0 {
            info!(gone, "captures are deleted: pcap_keep_days, pcap_max_disk_bytes");
            self.sweep_or_say().await;
        }
        Ok(())
    }

    /// Deletes the files that no upload and no capture needs any more.
    pub async fn sweep_captures(&self) -> Result<()> {
        let _shelf = self.captures.shelf.lock().await;
        // The folder before the database: what comes in between is in the database first.
        let (keys, hashes) = self.with_files(CaptureFiles::names).await?;
        let (known_keys, known_hashes) = self.store.pcap_files().await?;
        let known_keys: HashSet<_> = known_keys.into_iter().collect();
        let known_hashes: HashSet<_> = known_hashes.into_iter().collect();
        self.with_files(move |files| {
            keys.into_iter().filter(|key| !known_keys.contains(key)).for_each(|key| files.forget(key));
            let mut unknown = hashes.iter().filter(|hash| !known_hashes.contains(*hash));
            unknown.try_for_each(|hash| files.remove(hash))
        })
        .await
    }

    /// Runs `work` where waiting for the disk holds nobody up.
    async fn with_files<T: Send + 'static>(&self, work: impl FnOnce(&CaptureFiles) -> T + Send + 'static) -> T {
        let files = self.captures.files.clone();
        let done = tokio::task::spawn_blocking(move || work(&files)).await;
        done.expect("work on files does not panic, and the runtime outlives its tasks")
    }
}
