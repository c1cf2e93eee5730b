//! One attack: sent until a rule drops it, and judged by what the agent says of it.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use ftagent::status::RuleStatus;
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::AttackFamily;
use ipnet::IpNet;
use nix::time::{ClockId, clock_getres};

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
    let incidents = site.incidents()?;
    let rules = site.rules()?;
    Ok(judge(&incidents, &rules, family, target).map(|(incident, first_hit_ns)| {
        // The rule's stamp lags by up to a tick of the kernel, the look comes late: both are never too early, so the
        // earlier one is nearer.
        let by_stamp = (first_hit_ns + coarse_tick_ns()).saturating_sub(began.mono_ns);
        let by_look = seen.map_or(u64::MAX, |seen| seen.mono_ns.saturating_sub(began.mono_ns));
        let opened = incident.timeline.iter().find(|entry| entry.kind == "opened").map(|entry| entry.at);
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

/// The right incident, and the stamp of the first frame that a rule of it dropped.
fn judge<'a>(
    incidents: &'a [IncidentReport],
    rules: &[RuleStatus],
    family: AttackFamily,
    target: IpAddr,
) -> Result<(&'a IncidentReport, u64), Failure> {
    let is_ours = |incident: &&IncidentReport| incident.target == IpNet::from(target);
    // Every run has a target of its own, so wider incidents cover what was never attacked.
    if let Some(stray) = incidents.iter().find(|i| i.target.prefix_len() != i.target.max_prefix_len()) {
        return Err(Failure::Target(stray.target.to_string()));
    }
    let incident = incidents.iter().find(is_ours).ok_or(Failure::Undetected)?;
    if incident.family != family {
        return Err(Failure::Family(incident.family));
    }
    let of_it = rules.iter().filter(|rule| rule.origin.incident() == Some(incident.uuid));
    let first = of_it.filter_map(|rule| rule.first_hit_mono_ns.filter(|ns| *ns > 0)).min();
    first.map(|ns| (incident, ns)).ok_or(Failure::Undropped)
}

/// How far the clock that drops are stamped with may lag.
pub(super) fn coarse_tick_ns() -> u64 {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).expect("every Linux has a coarse clock");
    Duration::from(tick).as_nanos() as u64
}
