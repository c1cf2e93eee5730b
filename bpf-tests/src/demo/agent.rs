//! What the agent and the control plane say, asked as an operator would: by command line and by REST.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use ftagent_common::api::IncidentReport;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::http::get;
use crate::netns::Netns;

/// The agent's command line.
pub(super) struct Agent {
    pub(super) program: PathBuf,
    pub(super) config: PathBuf,
}

/// A rule in force, as `ftagent rules --json` shows it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RuleLine {
    pub(super) id: Value,
    pub(super) origin: Value,
    /// `CLOCK_MONOTONIC` time of the first frame that it dropped.
    #[serde(default)]
    pub(super) first_hit_mono_ns: Option<u64>,
}

impl RuleLine {
    /// Whether an incident made the rule.
    pub(super) fn belongs_to(&self, incident: Uuid) -> bool {
        let id = incident.to_string();
        self.origin.get("incident").and_then(Value::as_str) == Some(&id)
            || self.origin.as_str().is_some_and(|origin| origin.contains(&id))
    }
}

impl Agent {
    /// Incidents, active ones first.
    pub(super) fn incidents(&self) -> anyhow::Result<Vec<IncidentReport>> {
        #[derive(Deserialize)]
        struct Answer {
            incidents: Vec<IncidentReport>,
        }
        Ok(serde_json::from_value::<Answer>(self.ask(&["incidents", "--json"])?)?.incidents)
    }

    pub(super) fn rules(&self) -> anyhow::Result<Vec<RuleLine>> {
        #[derive(Deserialize)]
        struct Answer {
            rules: Vec<RuleLine>,
        }
        Ok(serde_json::from_value::<Answer>(self.ask(&["rules", "--json"])?)?.rules)
    }

    pub(super) fn status(&self) -> anyhow::Result<Value> {
        self.ask(&["status", "--json"])
    }

    /// Removes programs, links and pins.
    pub(super) fn detach(&self, inside: &mut Command) -> anyhow::Result<()> {
        let output = inside.arg("--config").arg(&self.config).arg("detach").stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("`ftagent detach` ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn ask(&self, args: &[&str]) -> anyhow::Result<Value> {
        let what = args.join(" ");
        let output = Command::new(&self.program)
            .arg("--config")
            .arg(&self.config)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `ftagent {what}`"))?;
        if !output.status.success() {
            bail!("`ftagent {what}` ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("`ftagent {what}` did not print JSON"))
    }
}

/// The control plane's REST interface, asked from inside its namespace.
pub(super) struct Plane {
    pub(super) address: SocketAddr,
    pub(super) token: String,
}

impl Plane {
    /// The incident as the control plane has it, or nothing if it does not know it (yet).
    pub(super) fn incident(&self, netns: &Netns, uuid: Uuid) -> anyhow::Result<Option<Value>> {
        let Some(answer) = self.ask(netns, &format!("/api/v1/incidents/{uuid}"))? else { return Ok(None) };
        answer.get("incident").cloned().map(Some).with_context(|| format!("the answer holds no incident: {answer}"))
    }

    /// All incidents that name `target`, of the newest hundred.
    pub(super) fn incidents_on(&self, netns: &Netns, target: IpAddr) -> anyhow::Result<Vec<Value>> {
        let answer = self.ask(netns, "/api/v1/incidents?limit=100")?.context("the list of incidents is not there")?;
        let all = answer.get("incidents").and_then(Value::as_array).context("the answer holds no incidents")?;
        let named = |incident: &&Value| incident.get("target").and_then(Value::as_str) == Some(&target.to_string());
        Ok(all.iter().filter(named).cloned().collect())
    }

    /// The answer, or nothing if there is no such thing.
    fn ask(&self, netns: &Netns, path: &str) -> anyhow::Result<Option<Value>> {
        let headers = [format!("Authorization: Bearer {}", self.token)];
        let response = netns.run(|| get(self.address, path, &headers, Duration::from_secs(5)))??;
        let body = || String::from_utf8_lossy(&response.body).into_owned();
        match response.status {
            404 => Ok(None),
            200 => serde_json::from_slice(&response.body).map(Some).with_context(body),
            status => bail!("the control plane answered {status}: {}", body()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_belongs_to_the_incident_in_its_origin() {
        let uuid = Uuid::from_u128(7);
        let rule = |origin: Value| -> RuleLine {
            serde_json::from_value(serde_json::json!({ "id": 3, "origin": origin })).expect("a rule")
        };
        assert!(rule(serde_json::json!({ "type": "response", "incident": uuid })).belongs_to(uuid));
        assert!(rule(serde_json::json!(format!("response {uuid}"))).belongs_to(uuid));
        assert!(!rule(serde_json::json!({ "type": "operator" })).belongs_to(uuid));
        assert!(!rule(serde_json::json!({ "type": "response", "incident": Uuid::from_u128(8) })).belongs_to(uuid));
    }
}
