//! Reads the kernel's counters as the engine's input.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ftagent_common::abi::{
    Counter, Health, InterfaceCounters, RuleHits, SOURCE_SILENT_NS, SourceCounters, TargetCounters,
};
use ftagent_common::packet::Ip;

use super::maps::Maps;
use super::program::Attached;
use super::table::TableError;
use crate::clock;
use crate::engine::CounterReading;

/// One reading of everything that detection needs.
///
/// While no frame has come since `last`, its targets and sources still hold: every frame is in a counter of its
/// interface, and these were read before the tables. An agent without traffic reads nothing else.
///
/// # Errors
/// On a failed system call.
pub fn read(maps: &Maps, interfaces: &[Attached], last: Option<&CounterReading>) -> Result<CounterReading, TableError> {
    let now_ns = clock::mono_ns();
    let mut reading = CounterReading::default();
    for interface in interfaces {
        reading.interfaces.push((interface.interface.clone(), self::interface(maps, interface.slot)?));
    }
    if let Some(last) = last.filter(|last| last.interfaces == reading.interfaces && !last.interfaces.is_empty()) {
        reading.targets.clone_from(&last.targets);
        let is_fresh = |counters: &SourceCounters| now_ns.saturating_sub(counters.last_seen_ns) < SOURCE_SILENT_NS;
        reading.sources = last.sources.iter().filter(|(_, counters)| is_fresh(counters)).copied().collect();
        return Ok(reading);
    }
    let mut targets: BTreeMap<Ip, TargetCounters> = BTreeMap::new();
    maps.targets.for_each(|part| *targets.entry(part.key).or_default() += part);
    reading.targets = targets.into_iter().map(|(ip, sum)| (IpAddr::from(ip), sum)).collect();
    reading.sources = heavy_sources(maps, now_ns);
    Ok(reading)
}

/// The counters of one interface, summed over CPUs.
///
/// # Errors
/// On a failed system call.
pub fn interface(maps: &Maps, slot: u32) -> Result<InterfaceCounters, TableError> {
    let mut sum = InterfaceCounters::default();
    for part in maps.verdicts.lookup_all(&slot)?.iter().flatten() {
        sum += part;
    }
    Ok(sum)
}

/// Sources that the sketch promoted and that are not silent, summed over CPUs.
pub fn heavy_sources(maps: &Maps, now_mono_ns: u64) -> Vec<(IpAddr, SourceCounters)> {
    let mut sources: BTreeMap<Ip, SourceCounters> = BTreeMap::new();
    maps.sources.for_each(|part| {
        if now_mono_ns.saturating_sub(part.last_seen_ns) < SOURCE_SILENT_NS {
            let sum = sources.entry(part.key).or_default();
            sum.flow += part.flow;
            sum.last_seen_ns = sum.last_seen_ns.max(part.last_seen_ns);
        }
    });
    sources.into_iter().map(|(ip, sum)| (IpAddr::from(ip), sum)).collect()
}

/// What a rule did, summed over CPUs.
///
/// # Errors
/// On a failed system call.
pub fn rule_hits(maps: &Maps, slot: u32) -> Result<RuleHits, TableError> {
    let mut sum = RuleHits::default();
    for part in maps.rule_hits.lookup_all(&slot)?.iter().flatten() {
        sum.counter += part.counter;
        if part.first_ns != 0 && (sum.first_ns == 0 || part.first_ns < sum.first_ns) {
            sum.first_ns = part.first_ns;
        }
        sum.last_ns = sum.last_ns.max(part.last_ns);
    }
    Ok(sum)
}

/// What went wrong inside the datapath, by event.
///
/// # Errors
/// On a failed system call.
pub fn health(maps: &Maps) -> Result<Vec<(Health, u64)>, TableError> {
    let mut events = Vec::new();
    for event in Health::ALL {
        let values: Vec<Counter> = maps.health.lookup_all(&(*event as u32))?.unwrap_or_default();
        events.push((*event, values.iter().map(|c| c.packets).sum()));
    }
    Ok(events)
}
