//! One run of schemathesis, as one kind of caller, and what it counted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::python::Python;
use crate::process;

/// What is required of every answer.
///
/// `positive_data_acceptance` is left out: what a body means (an address that can be blocked, a node that is there, two
/// times in order) is more than a schema says. `ignored_auth` and `missing_required_header` too: who may call what is a
/// test of its own, over every operation and caller, and a node's headers are put in by the hooks.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
    response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance,use_after_free,ensure_resource_availability";

const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Who calls which operations.
pub(super) struct Pass {
    pub(super) name: &'static str,
    /// Arguments that choose the operations.
    pub(super) operations: &'static [&'static str],
    pub(super) headers: Vec<String>,
    pub(super) as_nodes: bool,
    /// Whether every operation must have been done, and not only refused.
    pub(super) serves: bool,
}

/// How long and how: the same seed and number give the same calls.
pub(super) struct Depth {
    pub(super) examples: u32,
    pub(super) seed: u64,
    /// Of schemathesis; `coverage` goes through every bound of every schema.
    pub(super) phases: &'static str,
}

/// What a pass counted.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) operations: u64,
    pub(super) cases: u64,
    /// Kinds of failure, with how often and where.
    pub(super) failures: Vec<String>,
    pub(super) server_errors: u64,
    /// Operations that were never done.
    pub(super) never: Vec<String>,
    pub(super) accepted: u64,
}

impl Pass {
    /// Runs it against a server.
    ///
    /// # Errors
    /// Schemathesis does not run or says nothing that can be read.
    pub(super) fn run(&self, python: &Python, url: &str, world: &Path, depth: &Depth) -> Result<Figures> {
        let folder = world.parent().context("the world lies in a folder")?;
        let report = folder.join(format!("{}.json", self.name.replace(' ', "-")));
        fs::write(folder.join("hooks.py"), include_str!("hooks.py"))?;
        let mut command = python.program("schemathesis");
        command.arg("run").arg(format!("{url}/api/openapi.json")).args(self.operations);
        for header in &self.headers {
            command.args(["--header", header]);
        }
        command.args(["--phases", depth.phases, "--checks", CHECKS, "--continue-on-failure"]);
        command.args(["--max-examples", &depth.examples.to_string(), "--seed", &depth.seed.to_string()]);
        command.args(["--no-shrink", "--request-timeout", "20", "--report", "json", "--report-json-path"]).arg(&report);
        command.env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONPATH", folder).env("FTAGENT_API_WORLD", world);
        command.current_dir(folder);
        let (_, output) = process::observe(&format!("api: {}", self.name), &mut command, LIMIT)?;
        fs::write(report.with_extension("txt"), &output)?;
        let text = fs::read_to_string(&report)
            .with_context(|| format!("schemathesis wrote no report; its last words: {}", tail(&output)))?;
        let figures = self.read(&serde_json::from_str(&text)?)?;
        if !figures.failures.is_empty() {
            eprintln!("{output}");
        }
        Ok(figures)
    }

    fn read(&self, report: &Value) -> Result<Figures> {
        if report["complete"] != true {
            bail!("schemathesis did not get to its end: {}", report["stop_reason"]);
        }
        let mut figures = Figures {
            operations: report["operations"]["tested"].as_u64().unwrap_or(0),
            cases: report["test_cases"]["generated"].as_u64().unwrap_or(0),
            ..Figures::default()
        };
        ensure!(figures.operations > 0 && figures.cases > 0, "nothing was tested");
        for kind in ["failures", "errors"] {
            for failure in report[kind].as_array().into_iter().flatten() {
                let (count, title) = (failure["count"].as_u64().unwrap_or(1), failure["title"].as_str());
                if failure["type"] == "ServerError" {
                    figures.server_errors += count;
                }
                let operations = &failure["operations"];
                figures.failures.push(format!("{} x {}: {operations}", count, title.unwrap_or("an error")));
            }
        }
        for (operation, phases) in report["valid_rates"].as_object().into_iter().flatten() {
            let phases = phases.as_object().into_iter().flat_map(|phases| phases.values());
            let accepted: u64 = phases.filter_map(|phase| phase["accepted"].as_u64()).sum();
            figures.accepted += accepted;
            if accepted == 0 && self.serves {
                figures.never.push(operation.clone());
            }
        }
        Ok(figures)
    }
}

fn tail(output: &str) -> &str {
    let from = output.len().saturating_sub(600);
    &output[(from..output.len()).find(|at| output.is_char_boundary(*at)).unwrap_or(output.len())..]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pass() -> Pass {
        Pass { name: "p", operations: &[], headers: Vec::new(), as_nodes: false, serves: true }
    }

    #[test]
    fn a_report_is_counted_and_half_a_run_is_none() {
        let report = json!({
            "complete": true, "operations": { "tested": 2 }, "test_cases": { "generated": 9 }, "errors": [],
            "failures": [{ "type": "ServerError", "title": "Server error", "count": 3, "operations": ["GET /a"] }],
            "valid_rates": { "GET /a": { "coverage": { "accepted": 0 } }, "GET /b": { "coverage": { "accepted": 4 } } },
        });
        let figures = pass().read(&report).expect("a whole report");
        assert_eq!((figures.operations, figures.cases, figures.server_errors, figures.accepted), (2, 9, 3, 4));
        assert_eq!((figures.failures.len(), figures.never), (1, vec!["GET /a".to_owned()]));
        assert!(pass().read(&json!({ "complete": false })).is_err());
        assert!(pass().read(&json!({ "complete": true })).is_err(), "nothing was tested");
    }
}
