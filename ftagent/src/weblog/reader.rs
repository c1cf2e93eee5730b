//! The thread that follows all access logs: looks five times a second, reads what is new, and hands it to the daemon.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::config::AccessLog;
use super::entry::Entry;
use super::follow::{Counts, Follower};
use super::formats::is_client;
use crate::engine::web::{RequestBatch, WebRequest};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_millis(200);
/// Between two looks for files that a pattern names.
const RESCAN_NS: u64 = 5_000_000_000;
/// Files that are followed.
const MAX_FILES: usize = 64;
/// Lines that one look reads; further ones are counted.
const LINES_PER_LOOK: usize = 10_000;

/// One file as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    pub path: PathBuf,
    pub format: String,
    /// Why nothing is read, if so.
    pub problem: Option<String>,
    #[serde(flatten)]
    pub counts: Counts,
    /// Lines that are no request in this format.
    pub malformed: u64,
    /// Lines that were counted and not read, because there were too many.
    pub unread: u64,
}

/// What a look found.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub batch: RequestBatch,
    pub logs: Vec<LogStatus>,
    /// Patterns name more files than are followed.
    pub too_many: bool,
}

/// What the reader works by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub logs: Vec<AccessLog>,
    pub trusted_proxies: Vec<IpNet>,
    /// The target of logs that name none.
    pub first_address: Option<IpAddr>,
}

/// The running thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Reader {
    orders: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Starts it; what it finds comes over the channel. `clock` gives monotonic nanoseconds.
    ///
    /// # Errors
    /// The system's, when no thread can be made.
    pub fn start(work: Work, clock: fn() -> u64) -> std::io::Result<(Self, mpsc::Receiver<Told>)> {
        let (orders, new_orders) = channel();
        // A loop that does not keep up reads less: what waits stays in the files.
        let (found, told) = mpsc::channel(4);
        let run = move || run(work, &new_orders, &found, clock);
        let thread = thread::Builder::new().name("access-logs".to_owned()).spawn(run)?;
        Ok((Self { orders: Some(orders), thread: Some(thread) }, told))
    }

    /// Works by something else from the next look on.
    pub fn configure(&self, work: Work) {
        if let Some(orders) = &self.orders {
            // A thread that ended reads nothing any more; the channel of what it found says so.
            drop(orders.send(work));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run(work: Work, orders: &Receiver<Work>, found: &mpsc::Sender<Told>, clock: fn() -> u64) {
    let mut desk = Desk::new(work);
    loop {
        if found.capacity() > 0 && found.try_send(desk.look(clock())).is_err() {
            return;
        }
        match orders.recv_timeout(LOOK) {
            Ok(work) => desk.configure(work),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// One followed file and how it is read.
#[derive(Debug)]
struct Followed {
    follower: Follower,
    /// Index into the work's logs.
    log: usize,
    malformed: u64,
    unread: u64,
}

/// All followed files.
#[derive(Debug)]
pub(super) struct Desk {
    work: Work,
    files: BTreeMap<PathBuf, Followed>,
    scanned_ns: Option<u64>,
    too_many: bool,
}

impl Desk {
    pub(super) fn new(work: Work) -> Self {
        Self { work, files: BTreeMap::new(), scanned_ns: None, too_many: false }
    }

    /// Files that are still wanted go on where they are.
    fn configure(&mut self, work: Work) {
        self.work = work;
        let began = self.scanned_ns.take().is_some();
        self.scan(!began);
    }

    /// Looks for the files that patterns name.
    fn scan(&mut self, first: bool) {
        let mut wanted: BTreeMap<PathBuf, usize> = BTreeMap::new();
        self.too_many = false;
        for (index, log) in self.work.logs.iter().enumerate() {
            let text = log.path.to_string_lossy();
            let found: Vec<PathBuf> = if text.contains(['*', '?', '[']) {
                // Each is one readdir a level; a pattern that names too much is cut, and said so.
                glob::glob(&text).map(|paths| paths.flatten().take(MAX_FILES + 1).collect()).unwrap_or_default()
            } else {
                vec![log.path.clone()]
            };
            for path in found {
                if wanted.len() >= MAX_FILES {
                    self.too_many |= !wanted.contains_key(&path);
                    continue;
                }
                wanted.entry(path).or_insert(index);
            }
        }
        self.files.retain(|path, _| wanted.contains_key(path));
        for (path, log) in wanted {
            let is_pattern = self.work.logs[log].path != path;
            let followed = self.files.entry(path).or_insert_with_key(|path| Followed {
                // What a pattern finds later is new; a renamed old file is not, but it is not written to either.
                follower: if is_pattern && !first { fresh(path) } else { Follower::new(path) },
                log,
                malformed: 0,
                unread: 0,
            });
            followed.log = log;
        }
    }

    /// Reads what is new.
    pub(super) fn look(&mut self, now_ns: u64) -> Told {
        if self.scanned_ns.is_none_or(|at| now_ns.saturating_sub(at) >= RESCAN_NS) {
            let first = self.scanned_ns.is_none();
            self.scan(first && self.files.is_empty());
            self.scanned_ns = Some(now_ns);
        }
        let mut told = Told { too_many: self.too_many, ..Told::default() };
        let (work, batch) = (&self.work, &mut told.batch);
        for followed in self.files.values_mut() {
            let log = &work.logs[followed.log];
            let default = log.target.or(work.first_address);
            let (malformed, unread) = (&mut followed.malformed, &mut followed.unread);
            followed.follower.look(now_ns, &mut |line| {
                if batch.requests.len() >= LINES_PER_LOOK {
                    *unread += 1;
                    if let Some(target) = default {
                        *batch.unread.entry(target).or_default() += 1;
                    }
                    return;
                }
                // Formats may have comments at the top, and syslog has empty lines.
                let read = log.format.read(line).and_then(|entry| request(&entry, log, default, work));
                match read {
                    Some(request) => batch.requests.push(request),
                    None => *malformed += 1,
                }
            });
        }
        told.logs = self
            .files
            .iter()
            .map(|(path, f)| LogStatus {
                path: path.clone(),
                format: work.logs[f.log].format.as_str().to_owned(),
                problem: f.follower.problem.clone(),
                counts: f.follower.counts,
                malformed: f.malformed,
                unread: f.unread,
            })
            .collect();
        told
    }
}

/// A file that a pattern found: one that was just made is read whole, an old one that was renamed is not.
fn fresh(path: &Path) -> Follower {
    let is_young = std::fs::metadata(path).is_ok_and(|meta| meta.len() < 1 << 20)
        && !path.extension().is_some_and(|end| end.to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    if is_young { Follower::from_start(path) } else { Follower::new(path) }
}

fn request(entry: &Entry, log: &AccessLog, default: Option<IpAddr>, work: &Work) -> Option<WebRequest> {
    let is_proxy = |ip: IpAddr| work.trusted_proxies.iter().any(|net| net.contains(&ip));
    let by_proxy = is_proxy(entry.peer);
    let client = by_proxy.then(|| entry.client_behind(is_proxy)).flatten();
    let source = client.unwrap_or(entry.peer);
    Some(WebRequest {
        target: log.target.or(entry.server).or(default)?,
        source: is_client(source).then_some(source)?,
        proxied: log.behind_proxy || client.is_some(),
        method: entry.method,
        status: entry.status,
        bytes: entry.bytes,
        millis: entry.millis,
        path: entry.path,
        query: entry.query,
        agent: entry.agent,
        asset: entry.asset,
        crawler: entry.crawler,
    })
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
