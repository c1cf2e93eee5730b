//! Reads the kernel's counters as the engine's input.

use std::net::IpAddr;

use ftagent_common::abi::{Counter, Health, InterfaceCounters, RuleHits, SourceCounters, TargetCounters};
use ftagent_common::packet::Ip;

use super::maps::Maps;
use super::program::Attached;
use super::table::TableError;
use crate::engine::CounterReading;

/// One reading of everything that detection needs.
///
/// # Errors
/// On a failed system call.
pub fn read(maps: &Maps, interfaces: &[Attached]) -> Result<CounterReading, TableError> {
    let mut reading = CounterReading::default();
    for interface in interfaces {
        reading.interfaces.push((interface.interface.clone(), self::interface(maps, interface.slot)?));
    }
    maps.targets.for_each(|ip, values| reading.targets.push((IpAddr::from(*ip), sum_target(values))))?;
    maps.sources.for_each(|ip, values| reading.sources.push((IpAddr::from(*ip), sum_source(values))))?;
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

fn sum_target(values: &[TargetCounters]) -> TargetCounters {
    let mut sum = TargetCounters::default();
    for part in values {
        sum += part;
    }
    sum
}

fn sum_source(values: &[SourceCounters]) -> SourceCounters {
    let mut sum = SourceCounters::default();
    for part in values {
        sum.flow += part.flow;
        sum.last_seen_ns = sum.last_seen_ns.max(part.last_seen_ns);
    }
    sum
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

/// Sources silent for this long are swept out of the map.
const SILENT_NS: u64 = 60_000_000_000;

/// Deletes heavy sources that went silent. Returns how many.
///
/// # Errors
/// On a failed system call.
pub fn sweep_sources(maps: &Maps, now_mono_ns: u64) -> Result<usize, TableError> {
    let mut silent: Vec<Ip> = Vec::new();
    maps.sources.for_each(|ip, values| {
        if sum_source(values).last_seen_ns.saturating_add(SILENT_NS) < now_mono_ns {
            silent.push(*ip);
        }
    })?;
    for ip in &silent {
        maps.sources.remove(ip)?;
        maps.source_states.remove(ip)?;
    }
    Ok(silent.len())
}
