//! Plays one scenario and watches what comes of it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::bail;
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::IncidentStatus;
use ipnet::IpNet;
use uuid::Uuid;

use super::Story;
use super::account::{account, quiet_count};
use super::ending::{fetch_from_plane, wait_until_undone};
use super::report::{ScenarioReport, judge};
use super::scenario::{Scenario, Target, Traffic};
use super::stage::Stage;
use crate::clock::{Moment, now};
use crate::generator::{Bounds, Generator, Pace, Sent};
use crate::http::{Client, Load, Tally};
use crate::replay::{self, Timing};

/// Between two looks at the agent.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// Clean traffic before the attack begins.
const LEAD: Duration = Duration::from_millis(300);
/// A clean request may need SYNs sent again after 1 and 3 seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Clean requests a second of each of the two clients.
const CLEAN_RATE: u32 = 50;

/// What was seen of the incident while the attack ran.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) report: Option<IncidentReport>,
    detected: Option<Moment>,
    /// `CLOCK_MONOTONIC` time, and the rule's id.
    pub(super) first_drop: Option<(u64, String)>,
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
        wait_until_undone(stage, &mut report, incident.uuid, sent, &tables, story, stop)?;
        // The verdict may have changed with the last samples.
        look(stage, &known, &mut seen)?;
    }
    if let Some(incident) = &seen.report {
        describe(&mut report, incident, scenario.attacked(target), &seen, sent);
        fetch_from_plane(stage, &mut report, incident, story, stop)?;
    }
    let judged = judge(&report);
    report.problems.extend(judged);
    Ok(report)
}

pub(super) fn start_client(stage: &Stage, target: Ipv4Addr, keep_alive: bool) -> anyhow::Result<Client> {
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
    let began = OnceLock::new();
    let (wan, device) = (&stage.wan, stage.wan0.index);
    thread::scope(|scope| {
        let sender = scope.spawn(|| wan.run(|| send(scenario, traffic, device, &began, stop)));
        let mut told = (false, false, false);
        while !sender.is_finished() {
            look(stage, known, seen)?;
            let Some(&begun) = began.get() else {
                thread::sleep(LOOK);
                continue;
            };
            if !told.2 {
                told.2 = true;
                story.event(0.0, &format!("first attack frame; {} a second shall follow", scenario.rate_pps));
            }
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
        let took = sent.last - sent.first;
        let rate = sent.frames as f64 / took.as_secs_f64();
        story.event(millis(took), &format!("last attack frame; {rate:.0} a second were sent"));
        Ok(sent)
    })
}

fn send(
    scenario: &Scenario,
    traffic: &Traffic,
    device: u32,
    began: &OnceLock<Moment>,
    stop: &AtomicBool,
) -> anyhow::Result<Sent> {
    let pace = Pace::PerSecond(scenario.rate_pps);
    // A machine that cannot keep the rate gets more time, not fewer frames.
    let bounds = Bounds { frames: scenario.frames, time: scenario.lasts * 4, stop: Some(stop), began: Some(began) };
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
pub(super) fn look(stage: &Stage, known: &HashSet<Uuid>, seen: &mut Seen) -> anyhow::Result<()> {
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

/// Fills in what the agent says of the incident.
pub(super) fn describe(
    report: &mut ScenarioReport,
    incident: &IncidentReport,
    target: IpAddr,
    seen: &Seen,
    sent: Option<Sent>,
) {
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

/// For reports.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
