//! Connections that are held open and hardly used: followed from look to look, and judged by source.
//!
//! Three ways of holding one: sending a request so slowly that it never ends, sending nothing at all, and not reading
//! the answer. What waits for an answer (long polling), was answered and rests (keep-alive), or is answered every now
//! and then (websockets with their pings) is none of them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::input::{Connection, ConnectionReading};
use super::settings::WebSettings;
use super::verdict::{Finding, TOP, prefix};
use super::window::unit;
use crate::engine::sample::SEC;

/// Connections that are followed; further ones wait for room.
const MAX_KNOWN: usize = 65_536;
/// Who trickled does so again within this time, or gave up.
const TRICKLE_NS: u64 = 60 * SEC;
/// Share of a source's connections that must be slow: people behind one address have others too.
const MOSTLY: f64 = 0.7;
/// Silent connections, in times of the threshold, that are more than a proxy keeps in reserve.
const SPARE: u64 = 5;
/// Slow connections, in times of one source's, that are an attack even if no source has many.
const SCATTERED: u64 = 10;
const MAX_ACCUSED: usize = 1_000;

/// What was seen of one connection.
#[derive(Clone, Copy, Debug)]
struct Track {
    /// When it was seen first, and when the client last took something from the server.
    since_ns: u64,
    seen_ns: u64,
    /// At `since_ns`.
    received_then: u64,
    /// At the last look.
    received: u64,
    acked: u64,
    /// When the client last sent something that was not answered since.
    trickled_ns: Option<u64>,
    /// Since when the server has something to send, and what was acknowledged then.
    blocked: Option<(u64, u64)>,
    source: IpAddr,
    target: IpAddr,
    way: Option<Way>,
}

/// How a connection is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Trickle,
    Silent,
    Unread,
}

impl Track {
    fn new(c: &Connection, now_ns: u64) -> Self {
        Self {
            since_ns: now_ns,
            seen_ns: now_ns,
            received_then: c.received,
            received: c.received,
            acked: c.acked,
            trickled_ns: None,
            blocked: None,
            source: unit(c.source),
            target: c.target,
            way: None,
        }
    }

    fn observe(&mut self, c: &Connection, now_ns: u64, settings: &WebSettings) {
        let slow_ns = u64::from(settings.slow_secs) * SEC;
        let slow = |bytes: u64, ns: u64| bytes.saturating_mul(SEC) < settings.slow_bytes_per_sec.saturating_mul(ns);
        if c.received > self.received {
            self.trickled_ns = Some(now_ns);
        }
        if c.acked > self.acked {
            // The server answered, and the client took it: another story begins.
            (self.since_ns, self.received_then, self.trickled_ns) = (now_ns, c.received, None);
        }
        if c.unsent == 0 {
            self.blocked = None;
        } else if self.blocked.is_none() {
            self.blocked = Some((now_ns, c.acked));
        }
        (self.received, self.acked, self.seen_ns) = (c.received, c.acked, now_ns);
        let age = now_ns.saturating_sub(self.since_ns);
        self.way = if self
            .blocked
            .is_some_and(|(at, acked)| now_ns - at >= slow_ns && slow(c.acked.saturating_sub(acked), now_ns - at))
        {
            Some(Way::Unread)
        } else if c.received == 0 {
            // Browsers open connections in advance and use them within seconds.
            (age >= 2 * slow_ns).then_some(Way::Silent)
        } else {
            let trickles = self.trickled_ns.is_some_and(|at| now_ns - at <= TRICKLE_NS);
            let bytes = c.received.saturating_sub(self.received_then);
            (age >= slow_ns && trickles && slow(bytes, age)).then_some(Way::Trickle)
        };
    }
}

/// One target's or one source's connections.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: u64,
    trickle: u64,
    silent: u64,
    unread: u64,
}

impl Count {
    fn add(&mut self, way: Option<Way>) {
        self.all += 1;
        match way {
            Some(Way::Trickle) => self.trickle += 1,
            Some(Way::Silent) => self.silent += 1,
            Some(Way::Unread) => self.unread += 1,
            None => {}
        }
    }

    const fn slow(&self) -> u64 {
        self.trickle + self.silent + self.unread
    }
}

/// Slow connections of one target, whether they are an attack or not.
#[derive(Clone, Debug)]
pub(super) struct Slow {
    pub(super) target: IpAddr,
    /// Of the source with most, or of all if no source has many; against the threshold of the same kind.
    pub(super) connections: u64,
    pub(super) threshold: u64,
    pub(super) finding: Option<Finding>,
}

/// Follows connections from look to look.
#[derive(Clone, Debug, Default)]
pub(super) struct Tracker {
    known: HashMap<u64, Track>,
}

impl Tracker {
    /// Takes a look and judges every target in it.
    pub(super) fn observe(&mut self, reading: &ConnectionReading, settings: &WebSettings, now_ns: u64) -> Vec<Slow> {
        for c in &reading.connections {
            let full = self.known.len() >= MAX_KNOWN;
            match self.known.get_mut(&c.cookie) {
                Some(track) => track.observe(c, now_ns, settings),
                None if !full => {
                    self.known.insert(c.cookie, Track::new(c, now_ns));
                }
                None => {}
            }
        }
        // A look that did not reach the end says nothing of those that it lacks, but old ones must make room.
        let patience = if reading.truncated { TRICKLE_NS } else { 0 };
        self.known.retain(|_, track| track.seen_ns + patience >= now_ns);

        let mut targets: BTreeMap<IpAddr, BTreeMap<IpAddr, Count>> = BTreeMap::new();
        for track in self.known.values() {
            targets.entry(track.target).or_default().entry(track.source).or_default().add(track.way);
        }
        targets.into_iter().map(|(target, sources)| judge(target, &sources, settings)).collect()
    }
}

fn judge(target: IpAddr, sources: &BTreeMap<IpAddr, Count>, settings: &WebSettings) -> Slow {
    let least = u64::from(settings.slow_connections);
    let mut ranked: Vec<(IpAddr, Count)> =
        sources.iter().map(|(ip, c)| (*ip, *c)).filter(|(_, c)| c.slow() > 0).collect();
    ranked.sort_by(|a, b| b.1.slow().cmp(&a.1.slow()).then(a.0.cmp(&b.0)));
    let all: u64 = sources.values().map(|c| c.all).sum();
    let mut sum = Count::default();
    for (_, c) in &ranked {
        sum.trickle += c.trickle;
        sum.silent += c.silent;
        sum.unread += c.unread;
    }
    let (mut accused, mut spared, mut most) = (Vec::new(), Vec::new(), 0);
    for (ip, c) in ranked.iter().filter(|(_, c)| c.slow() >= least) {
        let words = format!("{} of {} connections are slow", c.slow(), c.all);
        let net = prefix(*ip);
        if settings.is_proxy(*ip) {
            spared.push((net, format!("{words}, as a trusted proxy: a block would hit everybody behind it")));
        } else if ip.is_loopback() {
            spared.push((net, format!("{words}, from this machine")));
        } else if c.trickle + c.unread < least && c.silent < least * SPARE {
            spared.push((net, format!("{words}, and most say nothing: a proxy's spare connections look like this")));
        } else if (c.slow() as f64) < MOSTLY * c.all as f64 {
            spared.push((net, format!("{words}: several people behind one address")));
        } else {
            most = most.max(c.slow());
            if accused.len() < MAX_ACCUSED {
                accused.push(net);
            }
        }
    }
    spared.truncate(TOP);
    let scattered = sum.slow() >= least * SCATTERED && sum.slow() * 2 >= all;
    let what = format!(
        "{} of {all} connections to {target} are held open and hardly used: {} send a request bit by bit, {} say \
         nothing, {} do not read their answer",
        sum.slow(),
        sum.trickle,
        sum.silent,
        sum.unread
    );
    let top = ranked.iter().take(TOP).map(|(ip, c)| (*ip, c.slow() as f64, c.slow() as f64 / sum.slow().max(1) as f64));
    let found = |confidence: f64, why: String| Finding {
        subtype: "slow_rate".to_owned(),
        confidence: (confidence * 100.0).round() / 100.0,
        reasons: vec![what.clone(), why],
        accused: accused.clone(),
        spared: spared.clone(),
        top: top.clone().collect(),
        sources: ranked.len() as u64,
    };
    let (connections, threshold, finding) = if accused.is_empty() {
        let why = "no source has many of them, so that nobody is blocked".to_owned();
        (sum.slow(), least * SCATTERED, scattered.then(|| found(0.45, why)))
    } else {
        let certain = 0.7 + 0.25 * ((most - least) as f64 / (least * 9).max(1) as f64).min(1.0);
        let why = format!("{} sources have {least} or more slow ones each, the busiest {most}", accused.len());
        (most, least, Some(found(certain, why)))
    };
    Slow { target, connections, threshold, finding }
}
