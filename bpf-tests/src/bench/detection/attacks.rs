//! The attacks: real captures and generated floods, at three rates and three samplings.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Checks, Kind, Packet, parse_into};
use ftagent_common::vocab::AttackFamily;
use ftagent_lab::captures::{Captures, Label};
use ftagent_lab::floods::{Dice, FLOODS, Maker};
use ftagent_lab::replay::each;

use super::judge::Trial;
use super::trial::{Play, play};

/// Packets per second to each target, and for how long: twice, six times and twenty times the floor. Few samples need more time.
const RATES: [(u64, u64); 3] = [(20_000, 3_000), (60_000, 1_500), (200_000, 1_000)];
const SAMPLINGS: [u32; 3] = [1, 100, 1_000];
/// The agent's tick in milliseconds; attacks begin at every moment of it.
const TICK_MS: u64 = 50;

/// Where and how floods arrive.
const WIRES: [(&str, &str, Option<u16>); 3] =
    [("IPv4", "203.0.113.5", None), ("IPv6", "2001:db8:5::5", None), ("VLAN", "203.0.113.5", Some(7))];

/// Every way to play an attack; `number` moves its beginning.
fn plays(number: usize, quick: bool) -> impl Iterator<Item = Play> {
    let all = RATES.into_iter().flat_map(|rate| SAMPLINGS.map(|one_in| (rate, one_in))).enumerate();
    // Each rate and each sampling once.
    let chosen = all.filter(move |(i, _)| !quick || i % 4 == 0);
    chosen.map(move |(i, ((pps, lasts_ms), one_in))| {
        // Multiples of an odd number visit every moment of the tick.
        let phase_ms = (number as u64 * 9 + i as u64) * 37 % TICK_MS;
        Play { pps, one_in, lasts_ms, phase_ms }
    })
}

/// A frame of a capture, with its length on the wire.
struct Recorded {
    bytes: Vec<u8>,
    wire_len: usize,
}

/// A labelled capture: its frames towards the targets.
pub(super) struct Attack {
    label: Label,
    targets: BTreeSet<IpAddr>,
    frames: Vec<Recorded>,
}

/// Reads the captures of a class.
pub(super) fn read(captures: &Captures, class: &str) -> anyhow::Result<Vec<Attack>> {
    let labels: Vec<&Label> = captures.class(class).collect();
    labels.into_iter().map(|label| attack(captures, label).with_context(|| label.file.clone())).collect()
}

fn attack(captures: &Captures, label: &Label) -> anyhow::Result<Attack> {
    let mut frames: Vec<(IpAddr, Recorded)> = Vec::new();
    each(&captures.path(label), &mut |packet| {
        let mut parsed = Packet::EMPTY;
        // Without checks: floods have what no host sends.
        if parse_into(&Frame::new(&packet.frame), packet.wire_len, Checks::NONE, &mut parsed) == Kind::Ip {
            frames.push((parsed.dst.into(), Recorded { bytes: packet.frame, wire_len: packet.wire_len }));
        }
        ControlFlow::Continue(())
    })?;
    let mut targets: BTreeSet<IpAddr> = label.targets().into_iter().collect();
    if targets.is_empty() {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        frames.iter().for_each(|(dst, _)| *counts.entry(*dst).or_default() += 1);
        targets.extend(counts.into_iter().max_by_key(|(_, count)| *count).map(|(dst, _)| dst));
    }
    let frames = frames.into_iter().filter(|(dst, _)| targets.contains(dst)).map(|(_, frame)| frame).collect();
    Ok(Attack { label: label.clone(), targets, frames })
}

/// Plays every capture in every way.
pub(super) fn captures(attacks: &[Attack], quick: bool) -> Vec<Trial> {
    let jobs: Vec<(&Attack, Play)> = attacks
        .iter()
        .enumerate()
        .flat_map(|(n, attack)| plays(n, quick).map(move |play| (attack, play)))
        .filter(|(attack, _)| !attack.frames.is_empty())
        .collect();
    in_parallel(&jobs, |(attack, how)| {
        let mut frames = attack.frames.iter().cycle();
        // The floor is that of an address.
        let all = Play { pps: how.pps * attack.targets.len() as u64, ..*how };
        let found = play(all, || {
            let frame = frames.next().expect("a capture without frames is no job");
            (Cow::Borrowed(frame.bytes.as_slice()), frame.wire_len)
        });
        Trial {
            name: attack.label.file.rsplit('/').next().unwrap_or_default().to_owned(),
            label: attack.label.family.clone(),
            acceptable: attack.label.also_acceptable.clone(),
            targets: attack.targets.clone(),
            play: *how,
            found,
        }
    })
}

/// A generated flood, and how it arrives.
#[derive(Clone, Copy)]
struct Flood {
    number: usize,
    family: AttackFamily,
    make: Maker,
    wire: &'static str,
    target: &'static str,
    vlan: Option<u16>,
}

fn all_floods() -> Vec<Flood> {
    let over = |number, (family, make): (AttackFamily, Maker)| {
        WIRES.map(|(wire, target, vlan)| Flood { number, family, make, wire, target, vlan })
    };
    let all = FLOODS.iter().enumerate().flat_map(|(number, flood)| over(number, *flood));
    // RIP version 1 knows no IPv6.
    all.filter(|flood| flood.wire != "IPv6" || flood.family != AttackFamily::Ripv1Amplification).collect()
}

/// Plays a generated flood of every family in every way over IPv4, IPv6 and a VLAN.
pub(super) fn floods(quick: bool) -> Vec<Trial> {
    let floods = all_floods();
    let jobs: Vec<(Flood, Play)> =
        floods.iter().enumerate().flat_map(|(i, flood)| plays(i, quick).map(move |play| (*flood, play))).collect();
    in_parallel(&jobs, |(flood, how)| {
        let target: IpAddr = flood.target.parse().expect("an address of this file");
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let found = play(*how, || {
            let mut spec = (flood.make)(&mut dice, target);
            spec.vlan = flood.vlan;
            let frame = spec.frame();
            let len = frame.len();
            (Cow::Owned(frame), len)
        });
        Trial {
            name: format!("generated flood {} over {}", flood.number, flood.wire),
            label: flood.family.as_str().to_owned(),
            acceptable: Vec::new(),
            targets: [target].into(),
            play: *how,
            found,
        }
    })
}

/// Does all jobs on every CPU; the results are in the order of the jobs.
pub(super) fn in_parallel<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(jobs.len()));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cpus.min(jobs.len()) {
            scope.spawn(|| {
                while let Some((n, job)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, jobs.get(n)?)))
                {
                    let result = work(job);
                    done.lock().expect("nobody panics with the lock").push((n, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("nobody panics with the lock");
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_of_the_vocabulary_has_a_flood() {
        let made: BTreeSet<AttackFamily> = FLOODS.iter().map(|(family, _)| *family).collect();
        let missing: Vec<_> =
            AttackFamily::ALL.iter().filter(|f| **f != AttackFamily::Unknown && !made.contains(f)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn a_quick_run_has_every_rate_and_every_sampling() {
        let quick: Vec<Play> = plays(0, true).collect();
        let of = |value: fn(&Play) -> u64| quick.iter().map(value).collect::<BTreeSet<u64>>().len();
        assert_eq!((quick.len(), of(|p| p.pps), of(|p| p.one_in.into())), (3, 3, 3));
        assert_eq!(plays(0, false).count(), 9);
    }

    #[test]
    fn results_keep_the_order_of_their_jobs() {
        let jobs: Vec<u32> = (0..100).collect();
        assert_eq!(in_parallel(&jobs, |n| n * 2), jobs.iter().map(|n| n * 2).collect::<Vec<_>>());
        assert!(in_parallel(&[] as &[u32], |n| *n).is_empty());
    }
}
