//! The drop ladder: what one dropped packet costs its receiver, for every way to drop it that this machine has.
//!
//! Each peer gets a namespace of its own at the end of a wire. A generator floods one after the other, once in every
//! round, right after the floor (an XDP program that drops everything and looks at nothing), because the speed of a
//! machine moves from second to second: ratios are taken between neighbours. The cost is the time inside the soft
//! interrupt of network reception, divided by the packets that arrived; the generator's own cost is not in it.

mod batch;
mod commands;
mod measure;
mod peer;
mod programs;
mod row;
mod site;
mod stopwatch;
mod table;
mod tool;
mod xdp_filter;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::clock::now;
use crate::generator::{Entries, Listed};
use crate::netns::Netns;
use measure::{Generators, Measured};
use row::Collected;

pub use peer::{Holds, Peer, Standing, peers};
pub use row::{Row, Sources};
pub use site::{ADDRESS, MAC, Site};
pub use stopwatch::Stopwatch;
pub use table::text;

/// Setting up a list of this length takes some tools seconds.
const LONG_LIST: u32 = 100_000;

/// What is measured, and how long.
pub struct Options {
    /// How often each peer gets its turn, at least 1.
    pub rounds: u32,
    /// How long one peer is flooded in one round from one kind of sources.
    pub time: Duration,
    /// How many sources are blocked, 1 to [`Listed::MAX`]; every number is a ladder of its own.
    pub entries: Vec<u32>,
    pub sources: Vec<Sources>,
    /// Only the peers of these names; all if it is empty.
    pub only: Vec<String>,
    /// Peers beside those of this library.
    pub more: Vec<Box<dyn Peer>>,
    /// Ends the run with an error once it is true; everything is taken down first.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rounds: 5,
            time: Duration::from_millis(100),
            entries: vec![1, 1_000, 100_000],
            sources: vec![Sources::Random],
            only: Vec::new(),
            more: Vec::new(),
            stop: None,
        }
    }
}

/// A peer that stands. What it put up goes before the namespace it stands in.
struct Stand<'a> {
    peer: &'a dyn Peer,
    _standing: Box<dyn Any>,
    site: Site,
    collected: Vec<Collected>,
}

/// Measures every peer and returns a row for each, number of entries and kind of sources, the slowest first.
///
/// A peer that this machine does not have gets a row that says why. `progress` is told each step in a line.
///
/// # Errors
/// The lab itself cannot be built, a name in [`Options::only`] is nobody's, or the run was stopped.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Row>> {
    let own = peers();
    let all: Vec<&dyn Peer> = own.iter().chain(&options.more).map(AsRef::as_ref).collect();
    for name in &options.only {
        if !all.iter().any(|peer| peer.name() == name) {
            let names: Vec<&str> = all.iter().map(|peer| peer.name()).collect();
            bail!("nobody is called {name:?}; there are {}", names.join(", "));
        }
    }
    let chosen: Vec<&dyn Peer> = all
        .into_iter()
        .filter(|p| options.only.is_empty() || options.only.iter().any(|name| name == p.name()))
        .collect();

    let longest = options.entries.iter().copied().max();
    let mut rows = Vec::new();
    for &entries in &options.entries {
        // What has no list is measured once, with the most sources.
        let has_turn = |peer: &&dyn Peer| peer.holds() != Holds::Everything || Some(entries) == longest;
        let here: Vec<&dyn Peer> = chosen.iter().copied().filter(has_turn).collect();
        rows.extend(measure_all(options, &here, entries, progress)?);
    }
    rows.sort_by(|a, b| b.ns_median.total_cmp(&a.ns_median));
    Ok(rows)
}

/// One ladder.
fn measure_all(
    options: &Options,
    peers: &[&dyn Peer],
    entries: u32,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Row>> {
    let wan = Netns::create("wan")?;
    let floor_site = Site::build(&wan, 0).context("the wire of the floor")?;
    let floor = programs::floor();
    let _floor_standing = floor.set_up(&floor_site, Listed::new(Entries::Addresses, 1)).context("the floor")?;

    let mut rows = Vec::new();
    let mut missing = |peer: &dyn Peer, why: String, progress: &mut dyn FnMut(&str)| {
        progress(&format!("{entries} blocked: {} is not available: {why}", peer.title()));
        rows.extend(options.sources.iter().map(|&sources| Row::missing(peer, entries, sources, &why)));
    };
    let mut stands = Vec::new();
    for (number, &peer) in (1..).zip(peers) {
        stopped(options)?;
        let (kind, at_most) = match peer.holds() {
            Holds::Everything => (Entries::Addresses, u32::MAX),
            Holds::Addresses { at_most } => (Entries::Addresses, at_most),
            Holds::Networks { at_most } => (Entries::Networks, at_most),
        };
        if entries > at_most {
            missing(peer, format!("it holds no more than {at_most} entries"), progress);
            continue;
        }
        let site = Site::build(&wan, number).with_context(|| format!("the wire of {}", peer.name()))?;
        if entries >= LONG_LIST {
            progress(&format!("{entries} blocked: setting up {}", peer.title()));
        }
        let began = now();
        match peer.set_up(&site, Listed::new(kind, entries)) {
            Ok(standing) => {
                let setup = began.elapsed();
                let collected = options.sources.iter().map(|_| Collected::new(setup)).collect();
                stands.push(Stand { peer, _standing: standing, site, collected });
            }
            Err(error) => missing(peer, format!("{error:#}"), progress),
        }
    }

    let mut generators = Generators::ready(&wan, entries)?;
    let outcome = rounds(options, entries, &mut generators, &floor_site, &mut stands, progress);
    generators.put_away(&wan);
    outcome?;
    for stand in stands {
        for (collected, &sources) in stand.collected.into_iter().zip(&options.sources) {
            rows.push(collected.row(stand.peer, entries, sources));
        }
    }
    Ok(rows)
}

fn rounds(
    options: &Options,
    entries: u32,
    generators: &mut Generators,
    floor: &Site,
    stands: &mut [Stand<'_>],
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    // Programs and tables are warm, and what their making left to do is done.
    thread::sleep(Duration::from_millis(200));
    for round in 0..options.rounds.max(1) {
        progress(&format!(
            "{entries} blocked: round {} of {}, {} peers",
            round + 1,
            options.rounds.max(1),
            stands.len()
        ));
        let count = stands.len().max(1);
        for turn in 0..stands.len() {
            // Nobody always follows the same neighbour.
            let stand = &mut stands[(turn + round as usize) % count];
            for (index, &sources) in options.sources.iter().enumerate() {
                stopped(options)?;
                let kind = if matches!(stand.peer.holds(), Holds::Networks { .. }) {
                    Entries::Networks
                } else {
                    Entries::Addresses
                };
                let measure = |generators: &mut Generators, site: &Site, time: Duration| -> anyhow::Result<Measured> {
                    generators.measure(site, sources, kind, time)
                };
                let below = measure(generators, floor, options.time / 4).context("the floor")?;
                let collected = &mut stand.collected[index];
                match measure(generators, &stand.site, options.time) {
                    Ok(measured) => collected.add(&measured, &below),
                    Err(error) => collected.fail(format!("{error:#}")),
                }
            }
        }
    }
    Ok(())
}

fn stopped(options: &Options) -> anyhow::Result<()> {
    if options.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
        bail!("interrupted");
    }
    Ok(())
}
