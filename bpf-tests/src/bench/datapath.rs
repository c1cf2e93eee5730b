//! P1 to P4, P6, P7 and P10: what the datapath itself costs.

mod lists;
mod loading;
mod peer;
mod scaling;
mod shares;
mod single;
mod translated;

use std::path::Path;

use super::{Goal, Options, plots as drawn, stats};

/// Measures all of it.
///
/// # Errors
/// The lab cannot be built, or the datapath does not load.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    run_only(options, None, None, progress)
}

/// Measures what a goal asked for needs, or everything; writes plots into `plots`.
///
/// # Errors
/// The lab cannot be built, the datapath does not load, or a plot cannot be written.
pub fn run_only(
    options: &Options,
    only: Option<&str>,
    plots: Option<&Path>,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Goal>> {
    let is_wanted =
        |number: &str| only.is_none_or(|id| id.trim_end_matches(|c: char| c.is_ascii_lowercase()) == number);
    let mut goals = Vec::new();
    if is_wanted("P1") || is_wanted("P2") {
        progress("P1, P2: one frame repeated");
        goals.extend(single::run(options, progress)?);
    }
    if is_wanted("P3") || is_wanted("P4") {
        progress("P3, P4: a new source with every frame, long lists");
        let measured = lists::run(options, progress)?;
        goals.extend(measured.goals);
        if let Some(folder) = plots {
            progress("P4: the peers' curves");
            let peers = drawn::entries(folder, options, measured.lines, progress)?;
            for (id, are_networks) in [("P4a", true), ("P4c", false)] {
                let goal = goals.iter_mut().find(|goal| goal.id == id);
                goal.into_iter().for_each(|goal| goal.peer = drawn::with_a_million(&peers, are_networks));
            }
        }
    }
    if is_wanted("P6") || is_wanted("P10") {
        progress("P6, P10: loading");
        goals.extend(loading::run(options)?);
    }
    if is_wanted("P7") {
        progress("P7: two CPUs");
        goals.push(scaling::run(options)?);
    }
    Ok(goals)
}

/// A goal about nanoseconds over the floor, from the differences to the floor of each round.
fn over_floor((id, what, at_most): (&'static str, &str, f64), over: &[f64], floor: &[f64], detail: String) -> Goal {
    let median = stats::median(over);
    Goal {
        value: median,
        floor: stats::median(floor),
        met: median.map(|value| value <= at_most),
        minimum: stats::minimum(over),
        median,
        rounds: over.len() as u32,
        ..Goal::missing(id, what, "ns", &format!("<= floor + {at_most:.0} ns"), &detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_judged_by_the_middle_of_its_differences() {
        let goal = over_floor(("P1a", "malformed", 10.0), &[9.0, 12.0, 8.0], &[20.0, 40.0, 21.0], String::new());
        assert_eq!((goal.value, goal.minimum, goal.floor, goal.met), (Some(9.0), Some(8.0), Some(21.0), Some(true)));
        assert_eq!((goal.goal.as_str(), goal.rounds), ("<= floor + 10 ns", 3));
        assert_eq!(over_floor(("P1a", "", 10.0), &[], &[], String::new()).met, None);
    }
}
