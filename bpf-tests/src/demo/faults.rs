//! Programs are killed in the middle of a flood.
//!
//! Without the agent the kernel goes on dropping, and a restarted agent takes over what is there, link and maps and
//! incident. Without the control plane the agent goes on, and the incident arrives later, once, with its own times.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use ftagent_common::vocab::AttackFamily;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::Story;
use super::account::{account, count, quiet_count};
use super::ending::{fetch_from_plane, wait_until_undone};
use super::report::{ScenarioReport, judge};
use super::scenario::{self, Target, Traffic};
use super::stage::Stage;
use super::watch::{LOOK, Seen, describe, look, millis, start_client};
use crate::clock::{Moment, now};
use crate::generator::{Bounds, Generator, Pace, Sent};
use crate::http::Tally;

const RATE_PPS: u64 = 100_000;
const LASTS: Duration = Duration::from_secs(8);
/// How long nobody is there.
const ABSENT: Duration = Duration::from_secs(2);
/// How long the agent may take to drop the flood at all.
const PATIENCE: Duration = Duration::from_secs(4);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    AgentKilled,
    PlaneAway,
}

impl Fault {
    pub(super) const ALL: [Self; 2] = [Self::AgentKilled, Self::PlaneAway];

    fn name(self) -> &'static str {
        match self {
            Self::AgentKilled => "agent_killed",
            Self::PlaneAway => "control_plane_away",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::AgentKilled => "the agent is killed in the middle of a UDP flood",
            Self::PlaneAway => "the control plane is killed at the beginning of a UDP flood",
        }
    }
}

/// Plays it and reports; an error means that the lab itself failed.
pub(super) fn play(
    stage: &mut Stage,
    fault: Fault,
    target: Target,
    story: &Story,
    stop: &AtomicBool,
) -> anyhow::Result<ScenarioReport> {
    let known: HashSet<Uuid> = stage.agent.incidents()?.into_iter().map(|incident| incident.uuid).collect();
    let tables = stage.maps.observe()?;
    let before = quiet_count(stage)?;
    let clients = [start_client(stage, target.v4, true)?, start_client(stage, target.v4, false)?];
    let mut report = ScenarioReport {
        name: fault.name().into(),
        expected_family: Some(AttackFamily::UdpFlood),
        ..ScenarioReport::default()
    };

    let end = Arc::new(AtomicBool::new(false));
    let sender = spawn_flood(stage, target, end.clone())?;
    let mut seen = Seen::default();
    let played = match fault {
        Fault::AgentKilled => kill_the_agent(stage, &known, &mut seen, &mut report, story, stop),
        Fault::PlaneAway => kill_the_plane(stage, &known, &mut seen, story, stop),
    };
    end.store(played.is_err(), Ordering::Relaxed);
    let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
    played?;

    let mut tally = Tally::default();
    for client in clients {
        tally.merge(client.finish()?);
    }
    let after = quiet_count(stage)?;
    report.clean_requests = tally.requests();
    report.clean_lost = tally.lost;
    report.clean_p99_ms = tally.quantile(0.99).map(millis);
    let contradictions = account(&mut report, before, after, Some(sent));
    report.problems.extend(contradictions);
    if let Some(loss) = tally.first_loss {
        report.problems.push(format!("first lost request: {loss}"));
    }
    if let Some(uuid) = seen.report.as_ref().map(|incident| incident.uuid) {
        wait_until_undone(stage, &mut report, uuid, Some(sent), &tables, story, stop)?;
        look(stage, &known, &mut seen)?;
    }
    if let Some(incident) = &seen.report {
        describe(&mut report, incident, target.v4.into(), &seen, Some(sent));
        fetch_from_plane(stage, &mut report, incident, story, stop)?;
        let reported = stage.plane.incidents_on(&stage.plane_netns, target.v4.into())?;
        let problems = once_with_its_own_times(&reported, incident.started_at);
        report.problems.extend(problems);
    }
    let judged = judge(&report);
    report.problems.extend(judged);
    Ok(report)
}

type Sending = thread::JoinHandle<Result<anyhow::Result<Sent>, crate::netns::NetnsError>>;

fn spawn_flood(stage: &Stage, target: Target, end: Arc<AtomicBool>) -> anyhow::Result<Sending> {
    let Traffic::Flood { template, vary } = scenario::udp_flood().traffic(target)? else {
        bail!("the UDP flood is made by the generator");
    };
    let device = stage.wan0.index;
    let frames = RATE_PPS * LASTS.as_secs();
    Ok(stage.wan.spawn(move || {
        let mut generator = Generator::load(&template, &vary, Moment::now().mono_ns)?;
        let bounds = Bounds { stop: Some(&end), ..Bounds::new(frames, LASTS * 4) };
        Ok(generator.send(device, Pace::PerSecond(RATE_PPS), bounds)?)
    })?)
}

fn kill_the_agent(
    stage: &mut Stage,
    known: &HashSet<Uuid>,
    seen: &mut Seen,
    report: &mut ScenarioReport,
    story: &Story,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    if !wait_for_a_drop(stage, known, seen, stop)? {
        return Ok(());
    }
    // The response is complete a few ticks after its first drop.
    thread::sleep(Duration::from_millis(500));
    let ids = ids(&stage.agent.status()?)?;
    story.step(&format!("the flood is being dropped by {ids}; now the agent is killed (SIGKILL)"));
    stage.kill_agent()?;
    let killed = count(stage)?;
    thread::sleep(ABSENT);
    let alone = count(stage)?;
    let (passed, dropped) = (alone.arrived.attack - killed.arrived.attack, alone.dropped - killed.dropped);
    story.note(&format!(
        "{:.0} s without an agent: {dropped} attack frames dropped, {passed} passed",
        ABSENT.as_secs_f64()
    ));
    if dropped == 0 || passed * 20 > dropped {
        report.problems.push(format!("without the agent {passed} attack frames passed and {dropped} were dropped"));
    }
    let started = now();
    stage.restart_agent(stop)?;
    let now_ids = self::ids(&stage.agent.status()?)?;
    story.step(&format!("agent started again in {:.0} ms on {now_ids}", millis(started.elapsed())));
    if now_ids.link != ids.link {
        report.problems.push(format!("the restarted agent did not adopt the link: {ids}, then {now_ids}"));
    }
    Ok(())
}

fn kill_the_plane(
    stage: &mut Stage,
    known: &HashSet<Uuid>,
    seen: &mut Seen,
    story: &Story,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    stage.kill_plane()?;
    let dropping = wait_for_a_drop(stage, known, seen, stop)?;
    if dropping {
        story.step("the control plane is gone; the agent detects and drops without it");
    }
    thread::sleep(ABSENT);
    stage.restart_plane(stop)?;
    story.step("control plane started again");
    Ok(())
}

/// Looks until a rule of the new incident dropped a frame; false if that does not happen.
fn wait_for_a_drop(stage: &Stage, known: &HashSet<Uuid>, seen: &mut Seen, stop: &AtomicBool) -> anyhow::Result<bool> {
    let deadline = now() + PATIENCE;
    while seen.first_drop.is_none() {
        if now() > deadline || stop.load(Ordering::Relaxed) {
            // `judge` says what is missing.
            return Ok(false);
        }
        look(stage, known, seen)?;
        thread::sleep(LOOK);
    }
    Ok(true)
}

/// What is wrong with the control plane's incidents on the target.
fn once_with_its_own_times(reported: &[Value], started_at: OffsetDateTime) -> Vec<String> {
    let [only] = reported else {
        return vec![format!("the control plane has {} incidents on the target, not one", reported.len())];
    };
    let text = only.get("started_at").and_then(Value::as_str).unwrap_or_default();
    match OffsetDateTime::parse(text, &Rfc3339) {
        // The control plane keeps microseconds.
        Ok(there) if (there - started_at).abs() < time::Duration::MILLISECOND => Vec::new(),
        _ => vec![format!("the control plane says that the incident began at {text}, the agent {started_at}")],
    }
}

/// What holds the program on the first interface.
struct Ids {
    link: u64,
    program: u64,
}

impl std::fmt::Display for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "link {} and program {}", self.link, self.program)
    }
}

fn ids(status: &Value) -> anyhow::Result<Ids> {
    let interface = status.get("interfaces").and_then(|list| list.get(0)).context("a status without an interface")?;
    let number = |key: &'static str| interface.get(key).and_then(Value::as_u64).with_context(|| format!("no {key}"));
    Ok(Ids { link: number("link_id")?, program: number("program_id")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_first_interface() {
        let status = serde_json::json!({ "interfaces": [{ "name": "edge0", "link_id": 4, "program_id": 9 }] });
        assert_eq!(ids(&status).expect("both are there").to_string(), "link 4 and program 9");
        assert!(ids(&serde_json::json!({ "interfaces": [{ "name": "edge0", "link_id": null }] })).is_err());
    }

    #[test]
    fn an_incident_arrives_once_with_its_own_times() {
        let began = OffsetDateTime::parse("2026-01-02T03:04:05.123456789Z", &Rfc3339).expect("a time");
        let there = |text: &str| serde_json::json!({ "started_at": text });
        assert_eq!(once_with_its_own_times(&[there("2026-01-02T03:04:05.123456Z")], began), Vec::<String>::new());
        for wrong in [vec![], vec![there("2026-01-02T03:04:07Z")], vec![there("2026-01-02T03:04:05.123456Z"); 2]] {
            assert_eq!(once_with_its_own_times(&wrong, began).len(), 1, "{wrong:?}");
        }
    }
}
