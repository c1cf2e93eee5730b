//! One simulated node: what the agent sends, when it sends it, over as many connections as it keeps.
//!
//! ```text
//! reports     samples of five seconds, every five seconds
//! heartbeats  every thirty seconds
//! stream      configuration and commands as they come, acknowledged;  or  polls of both, every fifteen seconds
//! ```
//! Where this machine has not enough open files, a node sends all of it over one connection, beside its stream.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ftagent_common::api::StreamMessage;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout};

use super::messages::{self, Identity, json, request, wall};
use super::tally::Tally;
use super::wire::{Chunks, Head, Place, Wire};
use crate::clock::now;

/// The agent's own intervals (`ftagent::sync::Timing`).
pub(super) const METRICS: Duration = Duration::from_secs(5);
pub(super) const HEARTBEAT: Duration = Duration::from_secs(30);
pub(super) const POLL: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(45);
/// Before a stream is opened again.
const AGAIN: Duration = Duration::from_millis(500);
/// Of the head of an answer.
const HEAD: usize = 16 << 10;
/// So that a stream's buffer need not grow with each configuration.
const READ: usize = 8 << 10;

/// What all nodes share.
pub(super) struct World {
    pub(super) place: Place,
    pub(super) tally: Tally,
    /// When the change for all that is under way was sent off, in nanoseconds since `began`; 0 for none.
    pub(super) change: AtomicU64,
    /// Streams that have it.
    pub(super) reached: AtomicU64,
    /// When the order that is under way was sent off.
    pub(super) order: AtomicU64,
    pub(super) arrived: AtomicBool,
    pub(super) began: Instant,
    /// Whether a node has one connection for everything but its stream.
    pub(super) frugal: bool,
}

impl World {
    pub(super) fn new(place: Place, frugal: bool) -> Self {
        Self {
            frugal,
            place,
            tally: Tally::default(),
            change: AtomicU64::new(0),
            reached: AtomicU64::new(0),
            order: AtomicU64::new(0),
            arrived: AtomicBool::new(false),
            began: now(),
        }
    }

    /// Nanoseconds since the beginning, at least 1.
    pub(super) fn mark(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    fn since(&self, mark: &AtomicU64) -> Option<Duration> {
        let sent = mark.load(Ordering::Acquire);
        (sent > 0).then(|| Duration::from_nanos(self.mark().saturating_sub(sent)))
    }

    /// How long ago the change for all that is under way was sent off.
    pub(super) fn since_change(&self) -> Option<Duration> {
        self.since(&self.change)
    }

    /// Sends a request of an agent and counts what became of it.
    pub(super) async fn call(&self, wire: &Mutex<Wire>, request: &[u8]) -> Option<Vec<u8>> {
        let mut wire = wire.lock().await;
        let sent = now();
        match wire.call(&self.place, request).await {
            Ok(answer) => {
                self.tally.agents.add(sent.elapsed());
                self.tally.answered(answer.status).then_some(answer.body)
            }
            Err(_) => {
                self.tally.lost.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

/// Runs a node until it is dropped. `offset` is its place within every interval, 0 to 1.
pub(super) async fn run(world: Arc<World>, identity: Identity, number: u32, streams: bool, offset: f64) {
    let wires: [Mutex<Wire>; 3] = Default::default();
    // The first one is everybody's where there is to be one.
    let wire = |n: usize| if world.frugal { &wires[0] } else { &wires[n] };
    let follow = async {
        if streams {
            follow(&world, &identity, wire(0)).await;
        } else {
            poll(&world, &identity, offset, wire(2)).await;
        }
    };
    let report = report(&world, &identity, number, offset, wire(0));
    tokio::join!(report, beat(&world, &identity, offset, wire(1)), follow);
}

/// Ticks whose first is `offset` of an interval from now.
fn ticks(every: Duration, offset: f64) -> tokio::time::Interval {
    let mut ticks = interval_at(tokio::time::Instant::from_std(now() + every.mul_f64(offset)), every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn report(world: &World, identity: &Identity, number: u32, offset: f64, wire: &Mutex<Wire>) {
    let mut ticks = ticks(METRICS, offset);
    loop {
        ticks.tick().await;
        let body = json(&messages::metrics(wall(), 5, number));
        if world.call(wire, &request(identity, "POST", "/metrics", "", &body)).await.is_some() {
            world.tally.samples.fetch_add(5, Ordering::Relaxed);
            world.tally.reports.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn beat(world: &World, identity: &Identity, offset: f64, wire: &Mutex<Wire>) {
    let mut ticks = ticks(HEARTBEAT, offset);
    let beat = request(identity, "POST", "/heartbeat", "", &json(&messages::heartbeat(1)));
    loop {
        ticks.tick().await;
        if world.call(wire, &beat).await.is_some() {
            world.tally.reports.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn poll(world: &World, identity: &Identity, offset: f64, wire: &Mutex<Wire>) {
    let mut ticks = ticks(POLL, offset);
    let commands = request(identity, "GET", "/commands", "", b"");
    let mut version = None;
    loop {
        ticks.tick().await;
        let known = version.map_or_else(String::new, |v: u64| format!("if-none-match: \"{v}\"\r\n"));
        if let Some(body) = world.call(wire, &request(identity, "GET", "/config", &known, b"")).await
            && let Ok(config) = serde_json::from_slice::<ftagent_common::api::NodeConfig>(&body)
        {
            version = Some(config.version);
        }
        world.call(wire, &commands).await;
    }
}

async fn follow(world: &World, identity: &Identity, wire: &Mutex<Wire>) {
    let mut version = 0;
    loop {
        // However it ends, the next one goes on with the version that is there.
        drop(read_stream(world, identity, &mut version, wire).await);
        sleep(AGAIN).await;
    }
}

/// How many streams are open, by those that are.
struct Open<'a>(&'a AtomicU64);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn read_stream(world: &World, identity: &Identity, version: &mut u64, wire: &Mutex<Wire>) -> io::Result<()> {
    let mut stream = world.place.connect().await?;
    stream.write_all(&request(identity, "GET", &format!("/stream?from={version}"), "", b"")).await?;
    let mut bytes = Vec::with_capacity(READ);
    let head = loop {
        if let Some(head) = Head::read(&bytes)? {
            break head;
        }
        let read = timeout(SILENCE, stream.read_buf(&mut bytes)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if read == 0 || bytes.len() > HEAD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    if !world.tally.answered(head.status) {
        return Err(io::Error::other("no stream"));
    }
    world.tally.streams.fetch_add(1, Ordering::Relaxed);
    let _open = Open(&world.tally.streams);
    bytes.drain(..head.bytes);
    let (mut chunks, mut line) = (Chunks::default(), Vec::new());
    loop {
        let mut lines = Vec::new();
        let open = chunks.feed(&bytes, |part| {
            for part in part.split_inclusive(|b| *b == b'\n') {
                line.extend_from_slice(part);
                if part.ends_with(b"\n") {
                    lines.push(std::mem::take(&mut line));
                }
            }
        })?;
        for line in lines {
            take(world, identity, &line, version, wire).await?;
        }
        if !open {
            return Ok(());
        }
        bytes.clear();
        let read = timeout(SILENCE, stream.read_buf(&mut bytes)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

const CONFIG: &[u8] = br#"{"type":"config","config":{"version":"#;

async fn take(
    world: &World,
    identity: &Identity,
    line: &[u8],
    version: &mut u64,
    wire: &Mutex<Wire>,
) -> io::Result<()> {
    // Read as a whole by one node in 32: a thousand readings at once would be what the bench measures.
    let whole = identity.uuid.as_bytes()[0] < 8;
    if let Some(rest) = line.strip_prefix(CONFIG)
        && !whole
    {
        let digits: Vec<u8> = rest.iter().copied().take_while(u8::is_ascii_digit).collect();
        let new = std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok());
        *version = new.ok_or_else(|| io::Error::other("a configuration without a version"))?;
        changed(world);
        return Ok(());
    }
    match serde_json::from_slice::<StreamMessage>(line).map_err(io::Error::other)? {
        StreamMessage::Config { config } => {
            *version = config.version;
            changed(world);
        }
        StreamMessage::Command { command } => {
            if let Some(time) = world.since(&world.order) {
                world.tally.orders.add(time);
                world.arrived.store(true, Ordering::Release);
            }
            let ack = json(&messages::acknowledgement(command.command_id));
            world.call(wire, &request(identity, "POST", "/commands/ack", "", &ack)).await;
        }
        StreamMessage::Ping { version: known } if known != *version => {
            return Err(io::Error::other("a ping with another version than that of the configuration"));
        }
        StreamMessage::Ping { .. } => {}
    }
    Ok(())
}

fn changed(world: &World) {
    if let Some(time) = world.since_change() {
        world.tally.changes.add(time);
        world.reached.fetch_add(1, Ordering::AcqRel);
    }
}
