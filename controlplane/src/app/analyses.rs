//! What captures hold, for operators: read on threads of their own, few at a time, and remembered.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::App;
use crate::analysis::{Analysis, Budget, MAX_ANALYSED, MAX_LISTED, PacketPage, analyse, packets};
use crate::domain::{Actor, Page};
use crate::store::{Result, StoreError};

/// Files that are read at the same time: each takes a core, and up to 20 MB.
const MAX_READING: usize = 2;
/// Requests that wait for one of these; more are sent away.
const MAX_WAITING: usize = 32;
/// Analyses that are remembered, of a few kilobytes each.
const MAX_REMEMBERED: usize = 256;

/// Whose turn it is to read, and what was read.
pub(super) struct Analyses {
    waiting: Semaphore,
    reading: Arc<Semaphore>,
    remembered: Mutex<Remembered>,
}

impl Default for Analyses {
    fn default() -> Self {
        Self {
            waiting: Semaphore::new(MAX_READING + MAX_WAITING),
            reading: Arc::new(Semaphore::new(MAX_READING)),
            remembered: Mutex::new(Remembered::keeping(MAX_REMEMBERED)),
        }
    }
}

/// Analyses by the hash of their file; the one that was asked for longest ago goes first.
struct Remembered {
    by_hash: HashMap<String, (u64, Arc<Analysis>)>,
    asked: u64,
    most: usize,
}

impl Remembered {
    fn keeping(most: usize) -> Self {
        Self { by_hash: HashMap::new(), asked: 0, most }
    }

    fn recall(&mut self, hash: &str) -> Option<Arc<Analysis>> {
        self.asked += 1;
        let (asked, analysis) = self.by_hash.get_mut(hash)?;
        *asked = self.asked;
        Some(Arc::clone(analysis))
    }

    fn remember(&mut self, hash: String, analysis: Arc<Analysis>) {
        self.asked += 1;
        if self.by_hash.len() >= self.most && !self.by_hash.contains_key(&hash) {
            let oldest = self.by_hash.iter().min_by_key(|(_, (asked, _))| *asked).map(|(hash, _)| hash.clone());
            oldest.and_then(|hash| self.by_hash.remove(&hash));
        }
        self.by_hash.insert(hash, (self.asked, analysis));
    }
}

/// Turns true when whoever waits for an answer goes.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Analyses {
    fn remembered(&self, hash: &str) -> Option<Arc<Analysis>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).recall(hash)
    }

    /// Runs `work` on a file when it is its turn. Whoever gives up waiting stops it.
    async fn read<T: Send + 'static>(
        &self,
        file: File,
        max_records: u64,
        known: impl FnOnce() -> Option<T>,
        work: impl FnOnce(File, Budget<'_>) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let failed = |source| StoreError::Disk { reason: "a capture's file cannot be read", source };
        let Ok(_place) = self.waiting.try_acquire() else {
            let reason = "too many captures are being read at the same time";
            return Err(StoreError::Disk { reason, source: io::ErrorKind::ResourceBusy.into() });
        };
        let turn = Arc::clone(&self.reading).acquire_owned().await.expect("it is never closed");
        // Somebody else may have asked for the same, and was first.
        if let Some(known) = known() {
            return Ok(known);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let _guard = StopOnDrop(Arc::clone(&stop));
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(file, Budget::until(max_records, &stop))
        });
        reading.await.expect("reading a capture does not panic, and the runtime outlives its tasks").map_err(failed)
    }
}

impl App {
    /// Some packets of a capture, in its order.
    pub(crate) async fn pcap_packets(&self, actor: &Actor, id: i64, page: Page) -> Result<PacketPage> {
        let (_, file) = self.pcap(actor, id).await?;
        let work = move |file, budget: Budget<'_>| packets(file, page, budget);
        self.captures.analyses.read(file, MAX_LISTED, || None, work).await
    }

    /// What the packets of a capture are.
    pub(crate) async fn pcap_analysis(&self, actor: &Actor, id: i64) -> Result<Arc<Analysis>> {
        let (pcap, file) = self.pcap(actor, id).await?;
        let analyses = &self.captures.analyses;
        if let Some(known) = analyses.remembered(&pcap.sha256) {
            return Ok(known);
        }
        let work = |file, budget: Budget<'_>| analyse(file, budget).map(Arc::new);
        let analysis = analyses.read(file, MAX_ANALYSED, || analyses.remembered(&pcap.sha256), work).await?;
        let mut remembered = analyses.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.remember(pcap.sha256, Arc::clone(&analysis));
        Ok(analysis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> Arc<Analysis> {
        Arc::new(analyse(io::empty(), Budget::of(1)).expect("nothing is read"))
    }

    #[test]
    fn what_was_asked_for_longest_ago_is_forgotten_first() {
        let mut remembered = Remembered::keeping(2);
        remembered.remember("a".to_owned(), any());
        remembered.remember("b".to_owned(), any());
        assert!(remembered.recall("a").is_some());
        remembered.remember("c".to_owned(), any());
        assert!(remembered.recall("b").is_none() && remembered.recall("a").is_some());
        remembered.remember("a".to_owned(), any());
        assert!(remembered.recall("c").is_some(), "one that is there takes no other's place");
    }

    #[tokio::test]
    async fn too_many_at_once_are_sent_away_and_whoever_leaves_makes_room() {
        let analyses = Arc::new(Analyses::default());
        let file = || tempfile::tempfile().expect("a file");
        let gate = Arc::new(AtomicBool::new(false));
        let begin = || {
            let (analyses, gate, file) = (Arc::clone(&analyses), Arc::clone(&gate), file());
            tokio::spawn(async move {
                let work = move |_, _: Budget<'_>| {
                    while !gate.load(Ordering::Relaxed) {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    Ok(1)
                };
                analyses.read(file, 1, || None, work).await
            })
        };
        let mut running: Vec<_> = (0..MAX_READING + MAX_WAITING).map(|_| begin()).collect();
        while analyses.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = analyses.read(file(), 1, || None, |_, _| Ok(1)).await;
        assert!(matches!(refused, Err(StoreError::Disk { .. })));
        running.pop().expect("there are many").abort();
        while analyses.waiting.available_permits() == 0 {
            tokio::task::yield_now().await;
        }
        gate.store(true, Ordering::Relaxed);
        for task in running {
            assert!(matches!(task.await, Ok(Ok(1))));
        }
        assert!(matches!(analyses.read(file(), 1, || None, |_, _| Ok(2)).await, Ok(2)));
    }
}
