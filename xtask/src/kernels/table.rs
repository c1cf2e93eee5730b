//! What the kernels told, as a table: features down, kernels across, and the reasons below.

use std::fmt::Write as _;

use serde_json::Value;

/// What the lines of a kernel's first process begin with; `bpf_tests::kernel::MARK`.
const MARK: &str = "@matrix ";

/// One kernel of the matrix.
pub(crate) struct Run {
    pub(crate) name: &'static str,
    /// What it told, or why it was not run.
    pub(crate) report: Result<Report, String>,
}

/// What one kernel told.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Report {
    release: String,
    /// Mounts and modules that failed.
    left_out: Vec<String>,
    rows: Vec<Row>,
    /// The output of `ftagent check` there.
    check: Vec<String>,
    /// Whether the last line came, and how long the whole took there.
    done: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    name: String,
    state: String,
    detail: String,
}

impl Report {
    /// Reads the lines of ours among those of the kernel.
    pub(crate) fn parse(console: &str) -> Self {
        let mut report = Self::default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        // The kernel writes to the same console, and does not wait for the end of our line.
        let lines = console.lines().filter_map(|line| line.split_once(MARK)).map(|(_, json)| json.trim());
        for line in lines.filter_map(|json| serde_json::from_str::<Value>(json).ok()) {
            if let Some(kernel) = line["kernel"].as_str() {
                report.release = kernel.to_owned();
                report.left_out = line["left_out"].as_array().into_iter().flatten().map(text).collect();
            } else if line["row"].is_string() {
                let [name, state, detail] = ["row", "state", "detail"].map(|key| text(&line[key]));
                report.rows.push(Row { name, state, detail });
            } else if let Some(check) = line["check"].as_str() {
                report.check.push(check.to_owned());
            } else if line["done"].is_boolean() {
                report.done = line["secs"].as_u64();
            }
        }
        report
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.done.is_some() && !self.rows.is_empty()
    }

    /// Whether everything that should work there does.
    pub(crate) fn is_well(&self) -> bool {
        self.rows.iter().all(|row| row.state != "failed")
    }

    pub(crate) fn summary(&self) -> String {
        let count = |state: &str| self.rows.iter().filter(|row| row.state == state).count();
        let states = ["ok", "degraded", "missing", "failed"].map(|state| format!("{} {state}", count(state)));
        format!("{}, {} s after its start", states.join(", "), self.done.unwrap_or(0))
    }

    fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }
}

/// The whole result.
pub(crate) fn text(runs: &[Run]) -> String {
    let mut out = String::new();
    let mut names: Vec<&str> = Vec::new();
    for row in runs.iter().filter_map(|run| run.report.as_ref().ok()).flat_map(|report| &report.rows) {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0).max("kernel".len());
    // Writing to a string cannot fail.
    _ = write!(out, "{:width$}", "kernel");
    runs.iter().for_each(|run| _ = write!(out, "  {:>9}", run.name));
    out.push('\n');
    for name in &names {
        _ = write!(out, "{name:width$}");
        for run in runs {
            let state = match &run.report {
                Ok(report) => report.row(name).map_or("-", |row| row.state.as_str()),
                Err(_) => "not run",
            };
            _ = write!(out, "  {:>9}", if state == "failed" { "FAILED" } else { state });
        }
        out.push('\n');
    }
    runs.iter().for_each(|run| notes(run, &mut out));
    out
}

/// The reasons of one kernel.
fn notes(run: &Run, out: &mut String) {
    let report = match &run.report {
        Ok(report) => report,
        Err(why) => {
            _ = writeln!(out, "\n{}: not run: {why}", run.name);
            return;
        }
    };
    _ = writeln!(out, "\n{} ({}): {}", run.name, report.release, report.summary());
    for what in &report.left_out {
        _ = writeln!(out, "  not prepared: {what}");
    }
    for row in report.rows.iter().filter(|row| row.state != "ok") {
        _ = writeln!(out, "  {}: {}: {}", row.name, row.state, row.detail);
    }
    // What the agent says of the kernel, and what keeps it from starting; the rest is the same everywhere.
    let is_of_kernel = |line: &&String| line.starts_with("FAIL") || line.contains(" kernel");
    for line in report.check.iter().filter(is_of_kernel) {
        _ = writeln!(out, "  check: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    1.0] Linux version\n\
        @matrix {\"kernel\":\"5.10.0-46\",\"left_out\":[]}\n\
        @matrix {\"row\":\"tc\",\"state\":\"degraded\",\"detail\":\"by netlink\"}\n\
        [    2.0] noise without end @matrix {\"row\":\"limits\",\"state\":\"ok\",\"detail\":\"exact\"}\r\n\
        @matrix {\"check\":\"ok kernel\"}\n@matrix {\"done\":true,\"secs\":12}\n";

    #[test]
    fn lines_of_ours_are_told_from_the_kernels() {
        let report = Report::parse(CONSOLE);
        assert!(report.is_complete() && report.is_well(), "{report:?}");
        assert_eq!(report.summary(), "1 ok, 1 degraded, 0 missing, 0 failed, 12 s after its start");
        let cut = CONSOLE.split("@matrix {\"done\"").next().expect("a start");
        assert!(!Report::parse(cut).is_complete());
        assert!(!Report::parse(&CONSOLE.replace("degraded", "failed")).is_well());
    }

    #[test]
    fn a_kernel_that_was_not_run_says_why() {
        let runs = [
            Run { name: "5.10", report: Ok(Report::parse(CONSOLE)) },
            Run { name: "6.1", report: Err("no such package".to_owned()) },
        ];
        let text = text(&runs);
        let expected = ["kernel       5.10        6.1", "tc       degraded    not run", "limits         ok    not run"];
        assert_eq!(text.lines().take(3).collect::<Vec<_>>(), expected);
        for words in ["6.1: not run: no such package", "tc: degraded: by netlink", "check: ok kernel"] {
            assert!(text.contains(words), "{text}");
        }
    }
}
