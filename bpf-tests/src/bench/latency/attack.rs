//! One attack: sent until a rule drops it, and judged by what the agent says of it.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::AttackFamily;
use ipnet::IpNet;
use nix::time::{ClockId, clock_getres};
use uuid::Uuid;

use super::figures::{Dropped, Failure, TIME_OUT};
use super::frames::{self, Wrapping};
use super::site::{Site, WAN};
use crate::clock::{Moment, now};
use crate::generator::{Bounds, Pace};
use crate::replay::{self, Recording, Timing};

/// Frames a second, a tenth of what one core can send: ten times the floor above which traffic can be an attack. Below
/// five times the floor an incident waits for its confirmation, 300 ms with default settings.
pub(super) const RATE: u64 = 100_000;
/// Between two looks at the counters.
const LOOK: Duration = Duration::from_millis(1);

/// Sends the attack of this number and says when it was dropped, or what went wrong.
///
/// # Errors
/// When the lab itself fails.
pub(super) fn play(
    site: &mut Site,
    family: AttackFamily,
    number: u32,
    turn: u32,
) -> anyhow::Result<Result<Dropped, Failure>> {
    let wrapping = Wrapping::of_turn(turn);
    let target = wrapping.target(number);
    let recording = Recording::from_frames(frames::of(family, wrapping, target));
    let (began, over) = (OnceLock::new(), AtomicBool::new(false));
    let before = site.dropped()?;
    let (site_now, wan) = (&*site, &site.wan);
    let seen = thread::scope(|scope| {
        let flood = scope.spawn(|| wan.run(|| send(&recording, &began, &over)));
        let seen = watch(site_now, before, || flood.is_finished());
        over.store(true, Ordering::Relaxed);
        flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        seen
    })?;
    let began = *began.get().context("not one frame was sent")?;
    // Rules go with their incident, which is remembered for a while.
    let rules = site.rules()?;
    let incidents = site.incidents()?;
    let fresh: Vec<&IncidentReport> = incidents.iter().filter(|incident| site.known.insert(incident.uuid)).collect();
    let named: Vec<Named> = fresh.iter().map(|i| Named { uuid: i.uuid, target: i.target, family: i.family }).collect();
    let hits: Vec<Hit> =
        rules.iter().filter_map(|rule| Some((rule.origin.incident()?, rule.first_hit_mono_ns.unwrap_or(0)))).collect();
    Ok(judge(&named, &hits, family, target, seen.is_some()).map(|(uuid, first_hit_ns)| {
        // The rule's stamp lags by up to a tick of the kernel, the look comes late: both are never too early, so the
        // earlier one is nearer.
        let by_stamp = (first_hit_ns + coarse_tick_ns()).saturating_sub(began.mono_ns);
        let by_look = seen.map_or(u64::MAX, |seen| seen.mono_ns.saturating_sub(began.mono_ns));
        let incident = fresh.iter().find(|incident| incident.uuid == uuid);
        let opened =
            incident.and_then(|i| i.timeline.iter().find(|entry| entry.kind == "opened")).map(|entry| entry.at);
        Dropped {
            first_drop_ms: by_stamp.min(by_look) as f64 / 1e6,
            opened_ms: opened.map(|at| (at - time::OffsetDateTime::from(began.wall)).as_seconds_f64() * 1e3),
        }
    }))
}

fn send(recording: &Recording, began: &OnceLock<Moment>, over: &AtomicBool) -> anyhow::Result<()> {
    let bounds = Bounds { stop: Some(over), began: Some(began), ..Bounds::new(u64::MAX, TIME_OUT) };
    replay::send(WAN, recording, Timing::Paced(Pace::PerSecond(RATE)), bounds)?;
    Ok(())
}

/// Waits for the first drop: the moment when it was seen, or nothing when the attack was over before.
fn watch(site: &Site, before: u64, is_over: impl Fn() -> bool) -> anyhow::Result<Option<Moment>> {
    let deadline = now() + TIME_OUT * 2;
    while !is_over() && now() < deadline {
        if site.dropped()? > before {
            return Ok(Some(Moment::now()));
        }
        thread::sleep(LOOK);
    }
    Ok(None)
}

/// What the agent says of an incident that was not there before.
#[derive(Clone, Copy, Debug)]
struct Named {
    uuid: Uuid,
    target: IpNet,
    family: AttackFamily,
}

/// A rule's incident, and when the rule dropped its first frame; 0: never.
type Hit = (Uuid, u64);

/// The incident of an attack of `family` on `target`, and the first drop by a rule of it.
fn judge(
    fresh: &[Named],
    hits: &[Hit],
    family: AttackFamily,
    target: IpAddr,
    seen: bool,
) -> Result<(Uuid, u64), Failure> {
    let target = IpNet::from(target);
    if let Some(stray) = fresh.iter().find(|incident| incident.target != target) {
        return Err(Failure::Target(stray.target.to_string()));
    }
    let incident = fresh.first().ok_or(Failure::Undetected)?;
    if incident.family != family {
        return Err(Failure::Family(incident.family));
    }
    let of_it = || hits.iter().filter(|(uuid, _)| *uuid == incident.uuid);
    let first = of_it().filter(|(_, ns)| *ns > 0).min_by_key(|(_, ns)| *ns);
    first.copied().ok_or_else(|| Failure::Undropped { rules: of_it().count(), seen })
}

/// How far the clock that drops are stamped with may lag.
pub(super) fn coarse_tick_ns() -> u64 {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).expect("every Linux has a coarse clock");
    Duration::from(tick).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_incident_and_a_drop_by_its_own_rule_count() {
        let family = AttackFamily::SynFlood;
        let target = IpAddr::from([10, 64, 1, 1]);
        let named = |number, target: &str, family| Named {
            uuid: Uuid::from_u128(number),
            target: target.parse().expect("a prefix"),
            family,
        };
        let right = named(1, "10.64.1.1/32", family);
        let hits = [(Uuid::from_u128(2), 5), (right.uuid, 0), (right.uuid, 9), (right.uuid, 7)];
        assert_eq!(judge(&[right], &hits, family, target, true), Ok((right.uuid, 7)));
        assert_eq!(judge(&[right], &hits[..2], family, target, true), Err(Failure::Undropped { rules: 1, seen: true }));
        assert_eq!(judge(&[], &hits, family, target, true), Err(Failure::Undetected));
        let other = named(1, "10.64.1.1/32", AttackFamily::TcpFlood);
        assert_eq!(judge(&[other], &hits, family, target, true), Err(Failure::Family(AttackFamily::TcpFlood)));
        for stray in ["10.64.1.0/24", "10.64.1.2/32"] {
            let fresh = [right, named(3, stray, family)];
            assert_eq!(judge(&fresh, &hits, family, target, true), Err(Failure::Target(stray.to_owned())));
        }
    }
}
