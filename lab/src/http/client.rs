//! Asks at a steady rate and keeps account of every request.

use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::message::{HttpError, connect, read_response, write_request};
use crate::clock::now;
use crate::netns::{Netns, NetnsError};

/// What one client does.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub server: SocketAddr,
    /// Requests a second, at least 1.
    pub rate: u32,
    /// One connection for all requests, or a new one for each.
    pub keep_alive: bool,
    /// A request that takes longer has failed.
    pub timeout: Duration,
}

/// Every request is either answered or lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub answered: u64,
    pub lost: u64,
    /// Of the answered ones, in the order of asking.
    pub latencies: Vec<Duration>,
    /// Why the first lost one was lost.
    pub first_loss: Option<String>,
}

impl Tally {
    pub fn requests(&self) -> u64 {
        self.answered + self.lost
    }

    /// The latency that `share` (0 to 1) of the answered requests did not exceed.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }

    /// Adds another client's account.
    pub fn merge(&mut self, other: Self) {
        self.answered += other.answered;
        self.lost += other.lost;
        self.latencies.extend(other.latencies);
        self.first_loss = self.first_loss.take().or(other.first_loss);
    }
}

/// A client inside a namespace; it stops when dropped.
pub struct Client {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    thread: Option<JoinHandle<Result<(), NetnsError>>>,
}

impl Client {
    /// Starts asking.
    ///
    /// # Errors
    /// The namespace cannot be opened.
    pub fn start(netns: &Netns, load: Load) -> Result<Self, NetnsError> {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let (stopping, account) = (stop.clone(), tally.clone());
        let thread = Some(netns.spawn(move || ask(load, &stopping, &account))?);
        Ok(Self { stop, tally, thread })
    }

    /// What happened since the last call; a request under way counts with the next call.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut *lock(&self.tally))
    }

    /// Waits for the request under way and gives the rest of the account.
    ///
    /// # Errors
    /// The namespace could not be entered: nothing was ever asked.
    pub fn finish(mut self) -> Result<Tally, NetnsError> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(result)) = self.thread.take().map(JoinHandle::join) {
            result?;
        }
        Ok(self.take())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn ask(load: Load, stop: &AtomicBool, tally: &Mutex<Tally>) {
    let started = now();
    let gap = Duration::from_secs(1) / load.rate.max(1);
    let mut connection = None;
    let mut due = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_sub(started.elapsed()));
        let asked = now();
        let result = request(&load, &mut connection);
        let took = asked.elapsed();
        let mut tally = lock(tally);
        match result {
            Ok(()) => {
                tally.answered += 1;
                tally.latencies.push(took);
            }
            Err(error) => {
                connection = None;
                tally.lost += 1;
                if tally.first_loss.is_none() {
                    tally.first_loss =
                        Some(anyhow::Error::new(error).chain().map(ToString::to_string).collect::<Vec<_>>().join(": "));
                }
            }
        }
        // A slow answer delays the next request; it does not make a burst of those that were due meanwhile.
        due = (due + gap).max(started.elapsed());
    }
}

fn request(load: &Load, connection: &mut Option<BufReader<TcpStream>>) -> Result<(), HttpError> {
    let peer = load.server;
    let fail = |source| HttpError::Io { peer, source };
    let mut reader = match connection.take() {
        Some(open) => open,
        None => BufReader::new(connect(peer, load.timeout).map_err(fail)?),
    };
    write_request(reader.get_mut(), peer, "/", &[], load.keep_alive).map_err(fail)?;
    let response = read_response(&mut reader, peer)?;
    if response.status != 200 {
        return Err(HttpError::Syntax { peer, what: "the answer is not 200" });
    }
    if load.keep_alive {
        *connection = Some(reader);
    }
    Ok(())
}

/// The account is whole after every statement: a panic elsewhere does not spoil it.
fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
