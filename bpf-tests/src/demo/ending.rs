//! The end of an incident: everything undone, and the control plane tells the same as the agent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::bail;
use ftagent::xdp::compile::Tables;
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::IncidentStatus;
use uuid::Uuid;

use super::Story;
use super::report::ScenarioReport;
use super::stage::Stage;
use super::watch::{LOOK, millis};
use crate::clock::{Moment, now};
use crate::generator::Sent;

/// How long the report may take to the control plane, and the undoing beyond the hold-down.
const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until the incident is resolved and neither a rule of it nor a map entry is left.
pub(super) fn wait_until_undone(
    stage: &Stage,
    report: &mut ScenarioReport,
    uuid: Uuid,
    sent: Option<Sent>,
    tables: &Tables,
    story: &Story,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let last = sent.map_or_else(Moment::now, |sent| sent.last);
    let undone = until(stage.hold_down() + PATIENCE, stop, || {
        let rules = stage.agent.rules()?.into_iter().filter(|rule| rule.belongs_to(uuid)).count();
        let incidents = stage.agent.incidents()?;
        let active = incidents.iter().any(|i| i.uuid == uuid && i.status == IncidentStatus::Active);
        let clear = rules == 0 && !active && stage.maps.observe()? == *tables;
        Ok(clear.then(Moment::now))
    })?;
    if let Some(at) = undone {
        report.undo_ms = Some(millis(at - last));
        let seconds = (at - last).as_secs_f64();
        story.note(&format!("undone {seconds:.1} s after the last attack frame: no rule, no map entry left"));
    }
    Ok(())
}

/// Waits until the control plane tells the same of the incident as the agent.
pub(super) fn fetch_from_plane(
    stage: &Stage,
    report: &mut ScenarioReport,
    incident: &IncidentReport,
    story: &Story,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let uuid = incident.uuid;
    let mut at_plane = None;
    let complete = until(PATIENCE, stop, || {
        at_plane = stage.plane.incident(&stage.plane_netns, uuid)?;
        Ok(at_plane.as_ref().filter(|there| is_the_same(there, incident)).map(drop))
    })?;
    match (&at_plane, complete) {
        (Some(there), Some(())) => {
            report.incident_uuid = Some(uuid);
            let (family, status) = (word(there, "attack_family"), word(there, "status"));
            story.note(&format!("by REST: /api/v1/incidents/{uuid} is {family}, {status}"));
        }
        (None, _) => report.problems.push(format!("the control plane does not know incident {uuid}")),
        (Some(there), None) => report.problems.push(format!(
            "the control plane does not have incident {uuid} as the agent has it: {}, confidence {}, {}",
            word(there, "attack_family"),
            there.get("confidence").unwrap_or(&serde_json::Value::Null),
            word(there, "status")
        )),
    }
    Ok(())
}

/// A field of an incident of the REST interface.
fn word<'a>(incident: &'a serde_json::Value, key: &str) -> &'a str {
    incident.get(key).and_then(serde_json::Value::as_str).unwrap_or("?")
}

/// Whether the control plane tells the same of the incident as the agent.
fn is_the_same(there: &serde_json::Value, incident: &IncidentReport) -> bool {
    word(there, "attack_family") == incident.family.as_str()
        && word(there, "status") == incident.status.as_str()
        && there.get("confidence").and_then(serde_json::Value::as_f64) == Some(incident.confidence)
        && there.get("spoofed").and_then(serde_json::Value::as_bool) == Some(incident.spoofed)
        && there.get("revision").and_then(serde_json::Value::as_u64) == Some(incident.revision.into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_an_answer_with_patience_or_with_a_stop() {
        let stop = AtomicBool::new(false);
        assert_eq!(until(Duration::from_secs(9), &stop, || Ok(Some(1))).expect("an answer"), Some(1));
        assert_eq!(until(Duration::ZERO, &stop, || Ok(None::<u8>)).expect("no answer"), None);
        stop.store(true, Ordering::Relaxed);
        assert!(until(Duration::from_secs(9), &stop, || Ok(None::<u8>)).is_err());
    }
}
