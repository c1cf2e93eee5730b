//! Captures of incidents: the seconds before it, and what follows, each packet with its verdict.
//!
//! The daemon hands samples and incidents over and never waits: a thread owns the ring, the files and the disk.
//!
//! ```text
//! daemon ──samples, incidents──> bounded queue ──> writer: ring ──> <incident>.pcapng.part ──> <incident>.pcapng
//! ```
//! Of a long attack the next part begins when one is full or old enough, so that it can leave the node.

pub mod block;
pub mod config;
pub mod file;
pub mod id;
mod pick;
mod record;
mod ring;
pub mod shelf;
pub mod upload;
mod writer;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::error;
use uuid::Uuid;

pub use self::block::Hook;
pub use self::config::PcapConfig;
pub use self::id::CaptureId;
pub use self::record::{Fate, Record};
use self::shelf::Capture;
use self::upload::UploadsStatus;
pub use self::writer::Interfaces;
use self::writer::{Message, Writer};

/// Samples of one message, and messages that wait: 6 MiB in all.
const BATCH: usize = 512;
const QUEUE: usize = 64;
/// News of incidents that wait for a place in the queue.
const MAX_WAITING: usize = 256;

/// Captures, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturesStatus {
    pub dir: PathBuf,
    pub captures: Vec<Capture>,
    /// Of all of them.
    pub bytes: u64,
    pub growing: u64,
    /// Memory of the seconds before an incident.
    pub memory_bytes: u64,
    /// Incidents that have no capture, for want of room.
    pub not_begun: u64,
    /// Samples that no capture got to see: the disk was slower than the samples.
    pub samples_lost: u64,
    pub fault: Option<String>,
    /// Absent where captures stay at the node.
    #[serde(default)]
    pub uploads: Option<UploadsStatus>,
}

/// The daemon's end.
#[derive(Debug)]
pub struct Captures {
    sender: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
    status: watch::Receiver<CapturesStatus>,
    batch: Vec<Record>,
    /// News of incidents that found the queue full.
    waiting: VecDeque<Message>,
    samples_lost: u64,
}

impl Captures {
    /// Starts the writer for captures in `dir`. A folder that cannot be used is a fault in the status, no more.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(config: PcapConfig, dir: PathBuf) -> std::io::Result<Self> {
        let (sender, messages) = sync_channel(QUEUE);
        let (status_in, status) = watch::channel(CapturesStatus::default());
        let writer = Writer::new(config, dir, status_in);
        let thread = std::thread::Builder::new().name("captures".to_owned()).spawn(move || writer.run(&messages))?;
        Ok(Self {
            sender,
            thread: Some(thread),
            status,
            batch: Vec::with_capacity(BATCH),
            waiting: VecDeque::new(),
            samples_lost: 0,
        })
    }

    /// Takes a sample.
    pub fn sample(&mut self, record: Record) {
        self.batch.push(record);
        if self.batch.len() >= BATCH {
            self.hand_over();
        }
    }

    /// Hands over what was taken, without waiting.
    pub fn hand_over(&mut self) {
        if !self.batch.is_empty() {
            let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
            let samples = batch.len() as u64;
            if self.sender.try_send(Message::Samples(batch)).is_err() {
                self.samples_lost += samples;
            }
        }
        while let Some(message) = self.waiting.pop_front() {
            if let Err(TrySendError::Full(message)) = self.sender.try_send(message) {
                self.waiting.push_front(message);
                return;
            }
        }
    }

    /// Tells of an incident; one that is unknown and active is captured from now on.
    pub fn incident(&mut self, incident: Uuid, target: IpNet, active: bool, interfaces: Interfaces) {
        if self.waiting.len() >= MAX_WAITING {
            error!(%incident, "the disk of captures does not answer: an incident is not captured");
            return;
        }
        // In order behind the samples that opened it.
        self.waiting.push_back(Message::Incident { incident, target, active, interfaces });
        self.hand_over();
    }

    /// The newest status, for whoever sends captures on.
    pub fn watch(&self) -> watch::Receiver<CapturesStatus> {
        self.status.clone()
    }

    /// How it goes.
    pub fn status(&self) -> CapturesStatus {
        let mut status = self.status.borrow().clone();
        status.samples_lost = self.samples_lost;
        status.fault = self.fault();
        status
    }

    /// What needs an operator's look.
    pub fn fault(&self) -> Option<String> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            return Some("the thread that writes captures ended; restart the agent".to_owned());
        }
        self.status.borrow().fault.clone()
    }

    /// Ends every capture where it is, and the thread. Waits for the disk.
    pub fn stop(mut self) {
        self.hand_over();
        // A writer that is gone needs no word; one that is behind gets it in its turn.
        drop(self.sender.send(Message::Stop));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that writes captures panicked");
        }
    }
}

#[cfg(test)]
mod tests;
