//! Plays one scenario and watches what comes of it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::bail;
use ftagent::xdp::{compile::Tables, counters};
use ftagent_common::abi::{MAX_INTERFACES, Reason};
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::IncidentStatus;
use ipnet::IpNet;
use uuid::Uuid;

use super::Story;
use super::report::{ScenarioReport, judge};
use super::scenario::{Scenario, Target, Traffic};
use super::stage::Stage;
use crate::clock::{Moment, now};
use crate::generator::{Bounds, Generator, Pace, Sent};
use crate::http::{Client, Load, Tally};
use crate::meter::Counts;
use crate::replay::{self, Timing};

/// Between two looks at the agent.
const LOOK: Duration = Duration::from_millis(20);
/// Clean traffic before the attack begins.
const LEAD: Duration = Duration::from_millis(300);
/// A clean request may need SYNs sent again after 1 and 3 seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Clean requests a second of each of the two clients.
const CLEAN_RATE: u32 = 50;
/// How long the report may take to the control plane, and the undoing beyond the hold-down.
const PATIENCE: Duration = Duration::from_secs(15);

/// Frames counted at one quiet moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    /// By the agent's kernel counters.
    passed: u64,
    dropped: u64,
    /// By the meters: left the client's stack, and got past XDP.
    left: Counts,
    arrived: Counts,
}

/// What was seen of the incident while the attack ran.
#[derive(Default)]
struct Seen {
    report: Option<IncidentReport>,
    detected: Option<Moment>,
    /// `CLOCK_MONOTONIC` time, and the rule's id.
    first_drop: Option<(u64, String)>,
}

/// Plays `scenario` and reports; an error means that the lab itself failed.
pub(super) fn play(
    stage: &Stage,
    scenario: &Scenario,
    target: Target,
    story: &Story,
    stop: &AtomicBool,
) -> anyhow::Result<ScenarioReport> {
    let traffic = scenario.traffic(target)?;
    let known: HashSet<Uuid> = stage.agent.incidents()?.into_iter().map(|incident| incident.uuid).collect();
    let tables = stage.maps.observe()?;
    let before = quiet_count(stage)?;
    let clients = [start_client(stage, target.v4, true)?, start_client(stage, target.v4, false)?];
    thread::sleep(LEAD);

    let mut seen = Seen::default();
    let sent = if matches!(traffic, Traffic::Clean) {
        let end = now() + scenario.lasts;
        while now() < end && !stop.load(Ordering::Relaxed) {
            look(stage, &known, &mut seen)?;
            thread::sleep(LOOK);
        }
        None
    } else {
        story.event(0.0, &format!("first attack frame; {} a second follow", scenario.rate_pps));
        Some(attack(stage, scenario, &traffic, &known, &mut seen, story, stop)?)
    };

    let mut tally = Tally::default();
    for client in clients {
        tally.merge(client.finish()?);
    }
    let after = quiet_count(stage)?;
    let mut report = ScenarioReport {
        name: scenario.name.clone(),
        expected_family: scenario.expected,
        acceptable: scenario.acceptable.clone(),
        clean_requests: tally.requests(),
        clean_lost: tally.lost,
        clean_p99_ms: tally.quantile(0.99).map(millis),
        ..ScenarioReport::default()
    };
    let contradictions = account(&mut report, before, after, sent);
    report.problems.extend(contradictions);
    if let Some(loss) = tally.first_loss {
        report.problems.push(format!("first lost request: {loss}"));
    }
    if let Some(incident) = &seen.report {
        describe(&mut report, incident, scenario.attacked(target), &seen, sent);
        finish(stage, &mut report, incident.uuid, sent, &tables, story, stop)?;
    }
    let judged = judge(&report);
    report.problems.extend(judged);
    Ok(report)
}

fn start_client(stage: &Stage, target: Ipv4Addr, keep_alive: bool) -> anyhow::Result<Client> {
    let server = SocketAddr::from((target, stage.server.address().port()));
    Ok(Client::start(&stage.wan, Load { server, rate: CLEAN_RATE, keep_alive, timeout: REQUEST_TIMEOUT })?)
}

/// Sends the attack and looks at the agent until the last frame is out.
fn attack(
    stage: &Stage,
    scenario: &Scenario,
    traffic: &Traffic,
    known: &HashSet<Uuid>,
    seen: &mut Seen,
    story: &Story,
    stop: &AtomicBool,
) -> anyhow::Result<Sent> {
    let begun = Moment::now();
    let (wan, device) = (&stage.wan, stage.wan0.index);
    thread::scope(|scope| {
        let sender = scope.spawn(move || wan.run(|| send(scenario, traffic, device, stop)));
        let mut told = (false, false);
        while !sender.is_finished() {
            look(stage, known, seen)?;
            if let (Some(incident), false, Some(at)) = (&seen.report, told.0, seen.detected) {
                told.0 = true;
                let forged = if incident.spoofed { ", forged sources" } else { "" };
                story.event(
                    millis(at - begun),
                    &format!(
                        "incident: {}, confidence {:.2}{forged}, target {}",
                        incident.family, incident.confidence, incident.target
                    ),
                );
            }
            if let (Some((at_ns, rule)), false) = (&seen.first_drop, told.1) {
                told.1 = true;
                let after = at_ns.saturating_sub(begun.mono_ns) as f64 / 1e6;
                story.event(after, &format!("first frame dropped in the kernel, by rule {rule}"));
            }
            thread::sleep(LOOK);
        }
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        // The last rates and the last rule counters need one more tick of the agent.
        thread::sleep(Duration::from_millis(100));
        look(stage, known, seen)?;
        story.event(millis(sent.last - begun), &format!("last attack frame, {} sent", sent.frames));
        Ok(sent)
    })
}

fn send(scenario: &Scenario, traffic: &Traffic, device: u32, stop: &AtomicBool) -> anyhow::Result<Sent> {
    let pace = Pace::PerSecond(scenario.rate_pps);
    // A machine that cannot keep the rate gets more time, not fewer frames.
    let bounds = Bounds { frames: scenario.frames, time: scenario.lasts * 4, stop: Some(stop) };
    match traffic {
        Traffic::Clean => bail!("clean traffic is not sent as an attack"),
        Traffic::Recording(recording) => Ok(replay::send("wan0", recording, Timing::Paced(pace), bounds)?),
        Traffic::Flood { template, vary } => {
            let mut generator = Generator::load(template, vary, Moment::now().mono_ns)?;
            Ok(generator.send(device, pace, bounds)?)
        }
    }
}

/// Asks the agent for an incident that was not there before, and for the first drop by a rule of it.
fn look(stage: &Stage, known: &HashSet<Uuid>, seen: &mut Seen) -> anyhow::Result<()> {
    let at = Moment::now();
    let wanted = seen.report.as_ref().map(|report| report.uuid);
    let found = stage.agent.incidents()?.into_iter().find(|incident| match wanted {
        Some(uuid) => incident.uuid == uuid,
        None => !known.contains(&incident.uuid) && incident.status == IncidentStatus::Active,
    });
    let Some(incident) = found else { return Ok(()) };
    seen.detected.get_or_insert(at);
    if seen.first_drop.is_none() {
        let rules = stage.agent.rules()?.into_iter().filter(|rule| rule.belongs_to(incident.uuid));
        let hits = rules.filter_map(|rule| Some((rule.first_hit_mono_ns?, rule.id.to_string())));
        seen.first_drop = hits.filter(|(ns, _)| *ns > 0).min();
    }
    seen.report = Some(incident);
    Ok(())
}

/// Waits until nothing moves any more and counts.
fn quiet_count(stage: &Stage) -> anyhow::Result<Count> {
    let mut last = count(stage)?;
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(50));
        let next = count(stage)?;
        if next == last {
            return Ok(next);
        }
        last = next;
    }
    bail!("the wire does not become quiet: {last:?}")
}

fn count(stage: &Stage) -> anyhow::Result<Count> {
    let (mut passed, mut dropped) = (0, 0);
    for slot in 0..MAX_INTERFACES {
        let counters = counters::interface(&stage.maps, slot)?;
        for reason in Reason::ALL {
            let packets = counters.reasons[reason.index()].packets;
            *if reason.is_drop() { &mut dropped } else { &mut passed } += packets;
        }
    }
    Ok(Count { passed, dropped, left: stage.left.counts()?, arrived: stage.arrived.counts()? })
}

/// Fills in the frames and says where the counters contradict each other.
fn account(report: &mut ScenarioReport, before: Count, after: Count, sent: Option<Sent>) -> Vec<String> {
    let (left, arrived) = (after.left - before.left, after.arrived - before.arrived);
    let (passed, dropped) = (after.passed - before.passed, after.dropped - before.dropped);
    let mut problems = Vec::new();
    if arrived.other > left.other {
        problems.push(format!("{} clean frames arrived, but only {} left", arrived.other, left.other));
    }
    report.clean_frames_dropped = left.other.saturating_sub(arrived.other);
    report.sent = sent.map_or(0, |sent| sent.arrived());
    report.lost_on_wire = sent.map_or(0, |sent| sent.ring_dropped);
    report.passed = arrived.attack;
    // What the kernel dropped, less the clean frames among it.
    report.dropped = dropped.saturating_sub(report.clean_frames_dropped);
    if passed != arrived.attack + arrived.other {
        problems.push(format!(
            "the agent counted {passed} frames as passed, {} arrived behind it",
            arrived.attack + arrived.other
        ));
    }
    problems
}

/// Fills in what the agent says of the incident.
fn describe(report: &mut ScenarioReport, incident: &IncidentReport, target: IpAddr, seen: &Seen, sent: Option<Sent>) {
    report.family = Some(incident.family);
    report.target_ok = Some(incident.target == IpNet::from(target));
    report.confidence = Some(incident.confidence);
    report.spoofed = Some(incident.spoofed);
    let Some(sent) = sent else { return };
    // By the agent's own time line where it has one; when we saw it at the latest.
    let opened = incident.timeline.iter().find(|entry| entry.kind == "opened").map(|entry| entry.at);
    let by_report = opened.map(|at| (at - time::OffsetDateTime::from(sent.first.wall)).as_seconds_f64() * 1e3);
    let by_look = seen.detected.map(|at| millis(at - sent.first));
    report.detect_ms = by_report.filter(|ms| *ms >= 0.0).or(by_look);
    // The kernel stamps with its coarse clock, which may lag behind by one timer tick.
    report.drop_ms = seen.first_drop.as_ref().map(|(ns, _)| ns.saturating_sub(sent.first.mono_ns) as f64 / 1e6);
}

/// Fetches the incident by REST, waits until everything is undone, and fetches it again.
fn finish(
    stage: &Stage,
    report: &mut ScenarioReport,
    uuid: Uuid,
    sent: Option<Sent>,
    tables: &Tables,
    story: &Story,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let last = sent.map_or_else(Moment::now, |sent| sent.last);
    let at_plane = until(PATIENCE, stop, || {
        let incident = stage.plane.incident(&stage.plane_netns, uuid)?;
        Ok(incident.filter(|incident| same_family(incident, report)))
    });
    match at_plane? {
        Some(_) => {
            report.incident_uuid = Some(uuid);
            story.note(&format!("by REST: /api/v1/incidents/{uuid}"));
        }
        None => {
            report.problems.push(format!("the control plane does not have incident {uuid} as the agent reports it"))
        }
    }
    let undone = until(stage.hold_down() + PATIENCE, stop, || {
        let rules = stage.agent.rules()?.into_iter().filter(|rule| rule.belongs_to(uuid)).count();
        let incidents = stage.agent.incidents()?;
        let active = incidents.iter().any(|i| i.uuid == uuid && i.status == IncidentStatus::Active);
        let clear = rules == 0 && !active && stage.maps.observe()? == *tables;
        Ok(clear.then(Moment::now))
    })?;
    if let Some(at) = undone {
        report.undo_ms = Some(millis(at - last));
        story.note(&format!(
            "undone {:.1} s after the last attack frame: no rule, no map entry left",
            (at - last).as_secs_f64()
        ));
        let resolved = until(PATIENCE, stop, || {
            let incident = stage.plane.incident(&stage.plane_netns, uuid)?;
            Ok(incident.filter(|i| i.get("status").and_then(serde_json::Value::as_str) == Some("resolved")))
        })?;
        if resolved.is_none() {
            report.problems.push("the control plane never heard that the incident is resolved".into());
        }
    }
    Ok(())
}

fn same_family(incident: &serde_json::Value, report: &ScenarioReport) -> bool {
    incident.get("family").and_then(serde_json::Value::as_str) == report.family.map(|family| family.as_str())
}

/// Asks again and again until there is an answer; nothing after `patience`.
fn until<T>(
    patience: Duration,
    stop: &AtomicBool,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    let deadline = now() + patience;
    loop {
        if let Some(found) = ask()? {
            return Ok(Some(found));
        }
        if stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        if now() > deadline {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(passed: u64, dropped: u64, left: u64, arrived: (u64, u64)) -> Count {
        let arrived = Counts { attack: arrived.0, other: arrived.1 };
        Count { passed, dropped, left: Counts { attack: 0, other: left }, arrived }
    }

    fn sent(frames: u64, ring_dropped: u64) -> Option<Sent> {
        Some(Sent { frames, ring_dropped, first: Moment::now(), last: Moment::now() })
    }

    fn accounted(after: Count, sent: Option<Sent>) -> (ScenarioReport, Vec<String>) {
        let mut report = ScenarioReport::default();
        let problems = account(&mut report, counted(5, 5, 5, (5, 5)), after, sent);
        (report, problems)
    }

    #[test]
    fn attack_frames_are_what_was_sent_less_what_the_wire_lost() {
        let (report, problems) = accounted(counted(5 + 130, 5 + 867, 5 + 100, (5 + 30, 5 + 100)), sent(900, 3));
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!((report.sent, report.lost_on_wire, report.passed, report.dropped), (897, 3, 30, 867));
    }

    #[test]
    fn clean_frames_that_were_dropped_are_not_taken_for_attack_frames() {
        let (report, problems) = accounted(counted(5 + 128, 5 + 872, 5 + 100, (5 + 30, 5 + 98)), sent(900, 0));
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!((report.clean_frames_dropped, report.dropped, report.passed), (2, 870, 30));
    }

    #[test]
    fn counters_that_contradict_each_other_are_a_problem() {
        let (_, problems) = accounted(counted(5 + 129, 5, 5 + 100, (5 + 30, 5 + 100)), sent(30, 0));
        assert_eq!(problems.len(), 1);
        let (_, problems) = accounted(counted(5 + 131, 5, 5 + 100, (5 + 30, 5 + 101)), sent(30, 0));
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn waiting_ends_with_an_answer_with_patience_or_with_a_stop() {
        let stop = AtomicBool::new(false);
        assert_eq!(until(Duration::from_secs(9), &stop, || Ok(Some(1))).expect("an answer"), Some(1));
        assert_eq!(until(Duration::ZERO, &stop, || Ok(None::<u8>)).expect("no answer"), None);
        stop.store(true, Ordering::Relaxed);
        assert!(until(Duration::from_secs(9), &stop, || Ok(None::<u8>)).is_err());
    }
}
