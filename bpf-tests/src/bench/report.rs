//! What is printed: a table for people, or a line of JSON for each goal.

use std::fmt::Write as _;

use super::Goal;

/// A line of JSON for each goal.
pub fn json(goals: &[Goal]) -> String {
    goals.iter().fold(String::new(), |mut text, goal| {
        let line = serde_json::to_string(goal).expect("a goal is a plain value");
        text.push_str(&line);
        text.push('\n');
        text
    })
}

/// The table, with what explains a figure below it. What is a cost over the floor has its own column; `value` is then the
/// whole cost.
pub fn table(goals: &[Goal]) -> String {
    let what = goals.iter().map(|g| g.what.chars().count()).max().unwrap_or(0).min(60);
    let wanted = goals.iter().map(|g| g.goal.chars().count()).max().unwrap_or(0).min(32);
    let mut text = String::new();
    let head = ("goal", "value", "floor", "over floor", "wanted", "met");
    let (goal, value, floor, over, wish, met) = head;
    writeln!(text, "{:5} {goal:what$} {value:>12} {floor:>8} {over:>10} {wish:wanted$} {met:4} peer", "")
        .expect("text");
    for goal in goals {
        let is_over = is_over_floor(goal);
        let whole = goal.value.map(|v| if is_over { v + goal.floor.unwrap_or(0.0) } else { v });
        let value = whole.map_or_else(|| "-".to_owned(), |v| format!("{} {}", figure(v), goal.unit));
        let over = goal.value.filter(|_| is_over).map_or_else(String::new, figure);
        let floor = goal.floor.map_or_else(String::new, figure);
        let met = match goal.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        let peer = goal.peer.as_deref().unwrap_or("");
        writeln!(
            text,
            "{:5} {:what$} {value:>12} {floor:>8} {over:>10} {:wanted$} {met:4} {peer}",
            goal.id, goal.what, goal.goal
        )
        .expect("text");
    }
    for goal in goals.iter().filter(|g| !g.detail.is_empty()) {
        writeln!(text, "{:5} {}", goal.id, goal.detail).expect("text");
    }
    let count = |met| goals.iter().filter(|g| g.met == met).count();
    writeln!(text, "{} met, {} not met, {} not judged", count(Some(true)), count(Some(false)), count(None))
        .expect("text");
    text
}

/// Whether the figure is what something costs more than the floor.
fn is_over_floor(goal: &Goal) -> bool {
    goal.unit == "ns" && goal.floor.is_some() && goal.goal.starts_with("<= floor")
}

/// Few digits: what lies behind them is noise.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goals() -> Vec<Goal> {
        let measured = Goal {
            value: Some(12.34),
            floor: Some(9.0),
            met: Some(false),
            peer: Some("xdp-filter 45 ns".to_owned()),
            ..Goal::missing("P1a", "a malformed frame", "ns", "<= floor + 10 ns", "")
        };
        vec![measured, Goal::missing("P9", "first drop", "ms", "<= 120 ms", "not measured in this build")]
    }

    #[test]
    fn every_goal_is_a_line_of_json_with_the_promised_fields() {
        let text = json(&goals());
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0]["value"].as_f64(), lines[0]["met"].as_bool()), (Some(12.34), Some(false)));
        for field in ["id", "value", "unit", "floor", "peer", "goal", "met"] {
            assert!(lines[1].get(field).is_some(), "{field}");
        }
        assert!(lines[1]["value"].is_null());
    }

    #[test]
    fn the_table_says_what_is_met_and_why_a_figure_is_missing() {
        let text = table(&goals());
        assert!(text.contains("21.3 ns     9.00       12.3 <= floor + 10 ns NO"), "{text}");
        assert!(text.contains("NO") && text.contains("xdp-filter 45 ns"), "{text}");
        assert!(text.contains("P9    not measured in this build"), "{text}");
        assert!(text.ends_with("0 met, 1 not met, 1 not judged\n"), "{text}");
    }
}
