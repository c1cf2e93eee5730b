//! What was measured before, so that a regression shows: one line of JSON for each run.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Goal, stats};

/// What a figure may lose before it is told: as a ratio, and as a time that nothing of the same run stands beside.
const TOLERATED: f64 = 1.15;
const TOLERATED_TIME: f64 = 1.3;
/// How many entries it is compared with.
const LAST: usize = 5;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// RFC 3339.
    pub date: String,
    pub commit: String,
    pub kernel: String,
    pub cpu: String,
    pub goals: BTreeMap<String, Figure>,
}

/// One goal of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// In words: what was measured otherwise before is not compared. Absent in the oldest records.
    #[serde(default)]
    pub what: Option<String>,
    pub value: f64,
    pub unit: String,
    /// Absent where the figure has none.
    pub floor: Option<f64>,
    /// The best peer's figure in the same unit; absent where there is none.
    #[serde(default)]
    pub peer: Option<f64>,
    pub met: Option<bool>,
    /// Whether more is better.
    pub more_is_better: bool,
}

/// What makes a figure comparable with another run's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basis {
    Floor,
    Peer,
    Nothing,
}

impl Figure {
    /// What can be compared between runs: a cost over the floor as a multiple of the floor, a rate as a share of the
    /// floor's, anything else as a multiple of the peer's, or as it is.
    fn comparable(&self) -> (Basis, f64) {
        match (self.unit.as_str(), self.floor.filter(|f| *f > 0.0), self.peer.filter(|p| *p > 0.0)) {
            ("ns", Some(floor), _) => (Basis::Floor, (floor + self.value) / floor),
            ("Mpps", Some(floor), _) => (Basis::Floor, self.value / floor),
            (_, _, Some(peer)) => (Basis::Peer, self.value / peer),
            _ => (Basis::Nothing, self.value),
        }
    }
}

/// What of a run is remembered; goals without a figure are not.
pub fn figures(goals: &[Goal]) -> BTreeMap<String, Figure> {
    let figure = |goal: &Goal| {
        let value = goal.value?;
        let more_is_better = goal.goal.starts_with(">=");
        let (unit, floor, peer) = (goal.unit.to_owned(), goal.floor, goal.peer_value);
        let what = Some(goal.what.clone());
        let figure = Figure { what, value, unit, floor, peer, met: goal.met, more_is_better };
        Some((goal.id.to_owned(), figure))
    };
    goals.iter().filter_map(figure).collect()
}

/// Every run so far; lines of another form are left out. No file, no runs.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<Entry>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Adds a run.
///
/// # Errors
/// The file cannot be written.
pub fn append(path: &Path, entry: &Entry) -> io::Result<()> {
    let line = serde_json::to_string(entry).map_err(io::Error::other)?;
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{line}")
}

/// What got worse by more than 15 % against the median of the last five runs on the same CPU model, a line each; times
/// without a peer in the same run, which move with the machine's load, by more than 30 %.
pub fn worse(entry: &Entry, before: &[Entry]) -> Vec<String> {
    let same: Vec<&Entry> = before.iter().rev().filter(|e| e.cpu == entry.cpu).take(LAST).collect();
    let mut lines = Vec::new();
    for (id, figure) in &entry.goals {
        let (basis, new) = figure.comparable();
        let before = same.iter().filter_map(|e| e.goals.get(id)).filter(|f| f.what == figure.what);
        let before = before.map(Figure::comparable);
        let old: Vec<f64> = before.filter(|(b, _)| *b == basis).map(|(_, value)| value).collect();
        let Some(old_median) = stats::median(&old).filter(|v| *v > 0.0) else { continue };
        let is_time = basis == Basis::Nothing && matches!(figure.unit.as_str(), "ns" | "ms");
        let band = if is_time { TOLERATED_TIME } else { TOLERATED };
        let is_worse = if figure.more_is_better { new * band < old_median } else { new > old_median * band };
        if is_worse {
            let runs = old.len();
            lines.push(format!("{id} got worse: {new:.2}, was {old_median:.2} (median of {runs} runs)"));
        }
    }
    lines
}

/// The model name of the first CPU.
pub fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    model_of(&text).unwrap_or("unknown").to_owned()
}

fn model_of(cpuinfo: &str) -> Option<&str> {
    cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cpu: &str, rows: &[(&str, f64, Option<f64>, bool)]) -> Entry {
        let figure = |(id, value, floor, more): &(&str, f64, Option<f64>, bool)| {
            let unit = if floor.is_some() { "ns" } else { "ratio" };
            let figure = Figure {
                what: Some((*id).to_owned()),
                value: *value,
                unit: unit.into(),
                floor: *floor,
                peer: None,
                met: None,
                more_is_better: *more,
            };
            ((*id).to_owned(), figure)
        };
        Entry {
            date: "2026-01-01T00:00:00Z".into(),
            commit: "abc".into(),
            kernel: "6.18".into(),
            cpu: cpu.into(),
            goals: rows.iter().map(figure).collect(),
        }
    }

    #[test]
    fn a_slower_machine_is_no_regression_and_a_slower_program_is() {
        let before = [entry("a", &[("P1", 20.0, Some(10.0), false)])];
        // Everything takes twice as long.
        assert!(worse(&entry("a", &[("P1", 40.0, Some(20.0), false)]), &before).is_empty());
        let lines = worse(&entry("a", &[("P1", 30.0, Some(10.0), false)]), &before);
        assert_eq!(lines, ["P1 got worse: 4.00, was 3.00 (median of 1 runs)"]);
        assert!(worse(&entry("b", &[("P1", 30.0, Some(10.0), false)]), &before).is_empty(), "another CPU");
    }

    #[test]
    fn a_share_that_falls_is_worse_and_one_that_rises_is_not() {
        let before = [entry("a", &[("P5", 0.9, None, true)]), entry("a", &[("P5", 0.8, None, true)])];
        assert_eq!(worse(&entry("a", &[("P5", 0.6, None, true)]), &before).len(), 1);
        assert!(worse(&entry("a", &[("P5", 2.0, None, true)]), &before).is_empty());
        assert!(worse(&entry("a", &[("P6", 0.1, None, true)]), &before).is_empty(), "never measured before");
    }

    #[test]
    fn times_are_compared_with_a_peer_of_the_same_run_or_within_a_wider_band() {
        let with = |value: f64, peer: Option<f64>| {
            let mut entry = entry("a", &[("P11", value, None, false)]);
            let figure = entry.goals.get_mut("P11").expect("there");
            (figure.unit, figure.peer) = ("ms".to_owned(), peer);
            entry
        };
        assert!(worse(&with(125.0, None), &[with(100.0, None)]).is_empty());
        assert_eq!(worse(&with(135.0, None), &[with(100.0, None)]).len(), 1);
        assert!(worse(&with(200.0, Some(50.0)), &[with(100.0, Some(25.0))]).is_empty(), "the machine is slower");
        assert_eq!(worse(&with(120.0, Some(25.0)), &[with(100.0, Some(25.0))]).len(), 1);
        assert!(worse(&with(4.0, Some(1.0)), &[with(1.0, None)]).is_empty(), "a ratio is no time");
        let mut otherwise = with(100.0, None);
        otherwise.goals.get_mut("P11").expect("there").what = Some("another list".to_owned());
        assert!(worse(&with(900.0, None), &[otherwise]).is_empty(), "another thing was measured");
    }

    #[test]
    fn a_line_of_before_there_were_peers_is_read() {
        let line = r#"{"date":"d","commit":"c","kernel":"k","cpu":"a","goals":{"P1a":{"value":1.0,"unit":"ns","floor":2.0,"met":true,"more_is_better":false}}}"#;
        let entry: Entry = serde_json::from_str(line).expect("an entry");
        assert_eq!(entry.goals["P1a"].peer, None);
    }

    #[test]
    fn runs_are_appended_and_read_back_without_lines_of_another_form() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history.jsonl");
        assert!(read(&path).expect("no file is no error").is_empty());
        let first = entry("a", &[("P1", 20.0, Some(10.0), false)]);
        append(&path, &first).expect("written");
        let text = fs::read_to_string(&path).expect("there") + "half a li";
        fs::write(&path, text + "\n").expect("written");
        append(&path, &first).expect("written");
        assert_eq!(read(&path).expect("read"), [first.clone(), first]);
    }

    #[test]
    fn only_goals_with_a_figure_are_remembered() {
        let missing = Goal::missing("P9", "", "ms", "<= 120 ms", "");
        let measured = Goal { value: Some(1.0), ..Goal::missing("P5a", "", "ratio", ">= 0.8", "") };
        let figures = figures(&[missing, measured]);
        assert_eq!(figures.keys().collect::<Vec<_>>(), ["P5a"]);
        assert!(figures["P5a"].more_is_better);
    }

    #[test]
    fn the_model_is_what_the_kernel_calls_it() {
        assert_eq!(model_of("processor\t: 0\nmodel name\t: Some CPU @ 2GHz\n"), Some("Some CPU @ 2GHz"));
        assert_eq!(model_of("processor\t: 0\n"), None);
    }
}
