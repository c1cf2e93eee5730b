//! From the outcomes of all attacks to the goals.

use std::fmt;
use std::time::Duration;

use ftagent_common::vocab::AttackFamily;

use super::super::Goal;
use super::super::report::figure;
use super::super::stats::{quantile, sorted};
use super::frames::FAMILIES;

/// An attack that no rule has dropped by then has failed, and counts as this long.
pub(super) const TIME_OUT: Duration = Duration::from_secs(2);

/// One attack and what came of it.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) family: AttackFamily,
    pub(super) outcome: Result<Dropped, Failure>,
}

/// An attack that was named right, and dropped by a rule of its incident.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    /// Milliseconds from the moment before the first frame to the first drop; never less than it took.
    pub(super) first_drop_ms: f64,
    /// When the incident opened, by the agent's own time line: what comes after is naming it and making its rule.
    pub(super) opened_ms: Option<f64>,
}

/// What went wrong with an attack.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Failure {
    /// No incident within the time.
    Undetected,
    /// An incident, and no rule of it that dropped a frame: how many it has, and whether anything was dropped.
    Undropped {
        rules: usize,
        seen: bool,
    },
    Family(AttackFamily),
    /// An incident on something that was not attacked.
    Target(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undetected => write!(f, "no incident within {TIME_OUT:?}"),
            Self::Undropped { rules, seen } => {
                let seen = if *seen { "something" } else { "nothing" };
                write!(
                    f,
                    "an incident, but no drop by one of its {rules} rules within {TIME_OUT:?}; {seen} was dropped"
                )
            }
            Self::Family(named) => write!(f, "called {named}"),
            Self::Target(named) => write!(f, "an incident on {named}, which was not attacked"),
        }
    }
}

/// The two goals of attacks where they cannot be measured.
pub(super) fn missing(why: &str) -> Vec<Goal> {
    GOALS.map(|(id, what, goal, ..)| Goal::missing(id, what, "ms", goal, why)).into()
}

/// (id, words, goal, share of the attacks, most milliseconds)
const GOALS: [(&str, &str, &str, f64, f64); 2] = [
    ("P9b", "first attack packet to drop by the incident's rule, p50", "<= 120 ms", 0.5, 120.0),
    ("P9c", "first attack packet to drop by the incident's rule, p99", "<= 250 ms", 0.99, 250.0),
];

/// P9b and P9c of `runs`, of which there should be `wanted` for each family.
pub(super) fn goals(runs: &[Run], wanted: u32) -> Vec<Goal> {
    let all = sorted(runs.iter().map(milliseconds).collect());
    let failed = runs.iter().filter(|run| run.outcome.is_err()).count();
    let whole = runs.len() == wanted as usize * FAMILIES.len();
    let families: Vec<String> = FAMILIES.into_iter().map(|family| of_family(runs, family)).collect();
    let opened = sorted(runs.iter().filter_map(|run| run.outcome.as_ref().ok()?.opened_ms).collect());
    let opened = |share| quantile(&opened, share).map_or_else(|| "-".to_owned(), figure);
    let tail = format!(
        "{} attacks, {failed} not dropped or named wrong (each counted as {} ms){}; longest {}; incidents opened at \
         p50 {}, p99 {}",
        runs.len(),
        TIME_OUT.as_millis(),
        if whole { "" } else { ", cut short by the time limit" },
        all.last().map_or_else(|| "-".to_owned(), |ms| figure(*ms)),
        opened(0.5),
        opened(0.99),
    );
    let details = [tail, format!("p50/p99/longest ms: {}", families.join(", "))];
    let goal = |((id, what, goal, share, most), detail): ((&'static str, &str, &str, f64, f64), String)| {
        let value = quantile(&all, share);
        Goal {
            value,
            met: value.map(|value| value <= most && failed == 0 && whole),
            minimum: all.first().copied(),
            median: quantile(&all, 0.5),
            rounds: runs.len() as u32,
            ..Goal::missing(id, what, "ms", goal, &detail)
        }
    };
    GOALS.into_iter().zip(details).map(goal).collect()
}

fn milliseconds(run: &Run) -> f64 {
    let time_out = TIME_OUT.as_secs_f64() * 1e3;
    run.outcome.as_ref().map_or(time_out, |dropped| dropped.first_drop_ms.min(time_out))
}

fn of_family(runs: &[Run], family: AttackFamily) -> String {
    let of_it = || runs.iter().filter(|run| run.family == family);
    let times = sorted(of_it().map(milliseconds).collect());
    let failed = of_it().filter(|run| run.outcome.is_err()).count();
    let at = |share| quantile(&times, share).map_or_else(|| "-".to_owned(), figure);
    let failed = if failed == 0 { String::new() } else { format!(" ({failed} failed)") };
    format!("{family} {}/{}/{}{failed}", at(0.5), at(0.99), at(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ms: f64, count: u32) -> Vec<Run> {
        let run = |family| Run { family, outcome: Ok(Dropped { first_drop_ms: ms, opened_ms: Some(ms - 9.0) }) };
        (0..count).flat_map(|_| FAMILIES.map(run)).collect()
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values = sorted((1..=200).map(f64::from).collect());
        assert_eq!([0.5, 0.99, 1.0].map(|q| quantile(&values, q)), [Some(100.0), Some(198.0), Some(200.0)]);
        assert_eq!((quantile(&[], 0.5), quantile(&[7.0], 0.0)), (None, Some(7.0)));
    }

    #[test]
    fn one_failure_is_a_value_and_leaves_no_goal_met() {
        let mut runs = all(90.0, 20);
        assert!(goals(&runs, 20).iter().all(|g| g.met == Some(true) && g.value == Some(90.0)));
        runs[7].outcome = Err(Failure::Undetected);
        let judged = goals(&runs, 20);
        assert_eq!((judged[0].value, judged[1].value), (Some(90.0), Some(90.0)));
        assert!(judged.iter().all(|g| g.met == Some(false)), "{judged:?}");
        assert!(judged[0].detail.contains("1 not dropped") && judged[0].detail.contains("longest 2000"), "{judged:?}");
        assert!(judged[0].detail.ends_with("opened at p50 81.0, p99 81.0"), "{judged:?}");
        assert!(judged[1].detail.contains("(1 failed)"), "{judged:?}");
        for run in &mut runs[..10] {
            run.outcome = Err(Failure::Family(AttackFamily::Unknown));
        }
        assert_eq!(goals(&runs, 20)[1].value, Some(2_000.0));
    }

    #[test]
    fn slow_drops_and_missing_attacks_do_not_meet_the_goals() {
        let met = |runs: &[Run], wanted| goals(runs, wanted).iter().map(|g| g.met).collect::<Vec<_>>();
        assert_eq!(met(&all(130.0, 3), 3), [Some(false), Some(true)]);
        assert_eq!(met(&all(300.0, 3), 3), [Some(false), Some(false)]);
        assert_eq!(met(&all(90.0, 3), 4), [Some(false), Some(false)]);
        assert_eq!(met(&[], 4), [None, None]);
    }
}
