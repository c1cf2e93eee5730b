//! The thread of the decisions: LAPI's answers in, what is to be in force out.
//!
//! A runtime of its own, since parsing and sorting hundreds of thousands of decisions takes longer than the daemon's loop
//! may stand still. It ends when its handle is dropped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::client::{Client, Failure};
use super::force::{self, Decided};
use super::keeper::Keeper;
use super::status::CrowdsecStatus;
use super::stream::Reading;
use super::{CrowdsecConfig, Spared, Told, file};
use crate::clock;
use crate::engine::Now;
use crate::persist;
use crate::sync::ServerError;
use crate::xdp::info::trim_memory;

const SECOND_NS: u64 = 1_000_000_000;
/// Between two publications: what ends in between is let go by the kernel anyway.
const SPACING_NS: u64 = SECOND_NS / 2;
/// Nothing is in force for so long while nobody knows where LAPI is.
const LEARN_NS: u64 = 10 * SECOND_NS;
/// Between two saves.
const SAVE_NS: u64 = 2 * SECOND_NS;
/// A look at the clock after so long, whatever happens.
const LONGEST_NS: u64 = 60 * SECOND_NS;
/// Decisions in an answer from which on its memory is given back.
const MANY: usize = 10_000;

/// The thread's own side.
pub struct Worker {
    config: CrowdsecConfig,
    path: PathBuf,
    client: Option<Client>,
    keeper: Keeper,
    spared: watch::Receiver<Spared>,
    /// The newest that was readable.
    readable: Option<Spared>,
    /// Where LAPI is.
    peers: Vec<IpAddr>,
    decided: watch::Sender<Option<Arc<Decided>>>,
    status: watch::Sender<CrowdsecStatus>,
    /// Since when there is something new to publish; absent: there is not.
    stale_since_ns: Option<u64>,
    published_ns: u64,
    began_ns: u64,
    /// What is known is not on disk.
    unsaved: bool,
    saved_ns: u64,
}

/// The daemon's side.
pub struct Handle {
    pub spared: watch::Sender<Spared>,
    /// What is to be in force; none before it is known for the first time.
    pub decided: watch::Receiver<Option<Arc<Decided>>>,
    pub status: watch::Receiver<CrowdsecStatus>,
}

impl Worker {
    /// Makes the thread's work, which keeps its bans in `path`.
    ///
    /// # Errors
    /// The URL or the authorities' file cannot be used.
    pub fn new(config: &CrowdsecConfig, path: PathBuf, spared: Spared) -> Result<(Self, Handle), ServerError> {
        let client = Client::new(config)?;
        let (spared_sender, spared) = watch::channel(spared);
        let (decided, decided_receiver) = watch::channel(None);
        let (status, status_receiver) = watch::channel(CrowdsecStatus::new(&config.url, config.action));
        let worker = Self {
            config: config.clone(),
            path,
            client: Some(client),
            keeper: Keeper::new(config.max_decisions),
            spared,
            readable: None,
            peers: Vec::new(),
            decided,
            status,
            stale_since_ns: None,
            published_ns: 0,
            began_ns: 0,
            unsaved: false,
            saved_ns: 0,
        };
        Ok((worker, Handle { spared: spared_sender, decided: decided_receiver, status: status_receiver }))
    }

    /// Works until the handle is dropped.
    ///
    /// # Errors
    /// When there is no runtime to be had.
    pub fn run(self) -> std::io::Result<()> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.work());
        Ok(())
    }

    /// As if the task that asks had failed.
    #[cfg(test)]
    pub(super) fn without_client(mut self) -> Self {
        self.client = None;
        self
    }

    async fn work(mut self) {
        self.restore(clock::now());
        // Before anything is in force: a ban that meets LAPI itself would keep every better word away.
        if let Some(client) = &self.client {
            let found = client.peers().await;
            self.take_peers(found, clock::now());
        }
        self.began_ns = clock::mono_ns();
        self.stale_since_ns = Some(self.began_ns);
        let (told, mut tells) = mpsc::channel(1);
        let client = self.client.take().map(|client| tokio::spawn(client.run(told)));
        let mut is_asking = true;
        loop {
            let now = clock::now();
            if self.keeper.expire(now.mono_ns) {
                self.changed(now);
            }
            self.publish_if_due(now);
            self.save_if_due(clock::now());
            let rest = Duration::from_nanos(self.next_ns().saturating_sub(clock::mono_ns()));
            tokio::select! {
                told = tells.recv(), if is_asking => match told {
                    Some(told) => self.on_told(told, clock::now()),
                    None => {
                        is_asking = false;
                        let why = "the task that asks LAPI failed: restart the agent".to_owned();
                        self.on_failure(Failure { kind: "internal", why });
                    }
                },
                changed = self.spared.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.stale_since_ns.get_or_insert(clock::mono_ns());
                }
                () = tokio::time::sleep(rest) => {}
            }
        }
        if let Some(client) = client {
            client.abort();
        }
        self.save(clock::now());
    }

    /// When there is something to do even if nobody says anything.
    fn next_ns(&self) -> u64 {
        let end = self.keeper.next_end_ns();
        let learn = if self.peers.is_empty() { self.began_ns + LEARN_NS } else { 0 };
        let publish = self.stale_since_ns.map(|_| learn.max(self.published_ns + SPACING_NS));
        let save = self.unsaved.then_some(self.saved_ns + SAVE_NS);
        let longest = clock::mono_ns() + LONGEST_NS;
        end.into_iter().chain(publish).chain(save).fold(longest, u64::min)
    }

    fn changed(&mut self, now: Now) {
        self.stale_since_ns.get_or_insert(now.mono_ns);
        self.unsaved = true;
    }

    fn on_told(&mut self, told: Told, now: Now) {
        match told {
            Told::Reading { reading, peers } => self.on_reading(&reading, peers, now),
            Told::Failed { failure, peers } => {
                self.take_peers(peers, now);
                self.on_failure(failure);
            }
        }
    }

    /// Takes where LAPI is. A name that is not resolved says nothing of it.
    fn take_peers(&mut self, peers: Vec<IpAddr>, now: Now) {
        if !peers.is_empty() && peers != self.peers {
            self.peers = peers;
            self.changed(now);
        }
    }

    fn on_reading(&mut self, reading: &Reading, peers: Vec<IpAddr>, now: Now) {
        let changed = self.keeper.take(reading, now.mono_ns);
        if changed {
            self.changed(now);
        }
        self.take_peers(peers, now);
        let was_away = !self.status.borrow().connected;
        self.status.send_modify(|status| {
            status.connected = true;
            status.answered_at = Some(now.wall);
            status.last_error = None;
            *(if reading.is_whole { &mut status.whole_answers } else { &mut status.changes }) += 1;
        });
        self.count();
        if was_away || changed {
            let (new, deleted) = (reading.new.len(), reading.deleted.len());
            info!(url = %self.config.url, whole = reading.is_whole, new, deleted, "decisions of CrowdSec");
        }
    }

    fn on_failure(&mut self, failure: Failure) {
        let Failure { kind, why } = failure;
        let is_new = self.status.borrow().last_error.as_ref() != Some(&why);
        if is_new {
            warn!(url = %self.config.url, kind, why, "no decisions of CrowdSec: what is known stays until it ends");
        }
        self.status.send_modify(|status| {
            status.connected = false;
            *status.failures.entry(kind.to_owned()).or_default() += 1;
            status.last_error = Some(why);
        });
    }

    /// Publishes what is to be in force, unless that was done a moment ago or nobody knows what the node itself is.
    fn publish_if_due(&mut self, now: Now) {
        let Some(since_ns) = self.stale_since_ns else { return };
        if now.mono_ns < self.published_ns + SPACING_NS && self.published_ns != 0 {
            return;
        }
        if self.peers.is_empty() && now.mono_ns < self.began_ns + LEARN_NS {
            return;
        }
        let newest = self.spared.borrow_and_update().clone();
        let is_kept_back = newest.unreadable;
        if !newest.unreadable {
            self.readable = Some(newest);
        }
        self.status.send_if_modified(|status| std::mem::replace(&mut status.kept_back, is_kept_back) != is_kept_back);
        self.published_ns = now.mono_ns;
        // A wrong ban costs more than a late one. When the addresses can be read that is told.
        let Some(spared) = self.readable.clone().filter(|_| !is_kept_back) else { return };
        let spared = self.with_lapi(spared);
        let forced = force::force(self.keeper.bans(), &spared);
        let lists = force::lists(&forced.prefixes, self.config.action, now.mono_ns);
        let mut not_enforced = self.keeper.others();
        for (why, count) in &forced.refused {
            *not_enforced.entry(*why).or_default() += count;
        }
        let mut not_enforced: BTreeMap<String, u64> =
            not_enforced.into_iter().map(|(why, count)| (why.as_str().to_owned(), count)).collect();
        if self.keeper.beyond() > 0 {
            not_enforced.insert("beyond_max".to_owned(), self.keeper.beyond());
        }
        let mut in_force: BTreeMap<String, u64> = BTreeMap::new();
        for (prefix, _) in &forced.prefixes {
            *in_force.entry(kind(prefix).to_owned()).or_default() += 1;
        }
        let is_large = forced.prefixes.len() >= MANY;
        self.decided.send_modify(|decided| {
            let revision = decided.as_ref().map_or(0, |decided| decided.revision) + 1;
            *decided = Some(Arc::new(Decided { lists, revision }));
        });
        self.stale_since_ns = None;
        self.status.send_modify(|status| {
            status.in_force = in_force;
            status.not_enforced = not_enforced;
            status.took_ms = clock::mono_ns().saturating_sub(since_ns) / 1_000_000;
        });
        self.count();
        if is_large {
            trim_memory();
        }
    }

    fn count(&self) {
        let bans = self.keeper.bans().count() as u64;
        self.status.send_modify(|status| status.bans = bans);
    }

    fn with_lapi(&self, mut spared: Spared) -> Spared {
        spared.own.extend(self.peers.iter().map(|ip| IpNet::from(*ip)));
        spared
    }

    /// Takes what an agent before this one knew.
    fn restore(&mut self, now: Now) {
        let fault = match persist::load(&self.path) {
            Ok(None) => return,
            Ok(Some(bytes)) => match file::decode(&bytes, now) {
                Ok(file::Known { bans, peers }) => {
                    info!(bans = bans.len(), "decisions of CrowdSec restored");
                    self.peers = peers;
                    return self.keeper.restore(bans, now.mono_ns);
                }
                Err(why) => match persist::move_aside(&self.path, now.wall.unix_timestamp()) {
                    Ok(aside) => format!("{}: {why}; moved to {}", self.path.display(), aside.display()),
                    Err(error) => error.to_string(),
                },
            },
            Err(error) => error.to_string(),
        };
        warn!(fault, "decisions of CrowdSec are not restored: LAPI has to tell them anew");
    }

    fn save_if_due(&mut self, now: Now) {
        if self.unsaved && now.mono_ns >= self.saved_ns + SAVE_NS {
            self.save(now);
        }
    }

    fn save(&mut self, now: Now) {
        if !self.unsaved {
            return;
        }
        self.saved_ns = now.mono_ns;
        match persist::save(&self.path, &file::encode(self.keeper.bans(), &self.peers, now)) {
            Ok(()) => {
                self.unsaved = false;
                self.set_fault(None);
            }
            Err(error) => self.set_fault(Some(format!("a restart would forget decisions: {error}"))),
        }
    }

    fn set_fault(&self, fault: Option<String>) {
        self.status.send_if_modified(|status| {
            let is_new = status.fault != fault;
            if let Some(fault) = fault.as_ref().filter(|_| is_new) {
                warn!(fault, "decisions of CrowdSec");
            }
            status.fault = fault;
            is_new
        });
    }
}

fn kind(prefix: &IpNet) -> &'static str {
    match (prefix.addr().is_ipv4(), prefix.prefix_len() == prefix.max_prefix_len()) {
        (true, true) => "ipv4_addresses",
        (true, false) => "ipv4_ranges",
        (false, true) => "ipv6_addresses",
        (false, false) => "ipv6_ranges",
    }
}
