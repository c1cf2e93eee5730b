//! P5: the drop ladder, every way to drop on this machine beside the datapath.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::{Goal, Options, svg};
use crate::ladder::{self, Row, Sources};

/// Blocked sources.
const ENTRIES: u32 = 1_000;

/// Measures the ladder.
///
/// # Errors
/// The lab cannot be built.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    run_into(options, None, progress)
}

/// Measures the ladder and draws it into the folder `plots`.
///
/// # Errors
/// The lab cannot be built, or the plot cannot be written.
pub fn run_into(options: &Options, plots: Option<&Path>, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    let asked = ladder::Options {
        rounds: options.rounds.min(if options.quick { 3 } else { 11 }),
        time: Duration::from_millis(if options.quick { 40 } else { 100 }),
        entries: vec![ENTRIES],
        sources: vec![Sources::Random],
        more: ftagent::lab::peer::peers(),
        ..ladder::Options::default()
    };
    let rows = ladder::run(&asked, progress)?;
    if let Some(folder) = plots {
        let bars: Vec<(String, f64)> =
            rows.iter().filter(|r| r.rounds > 0).map(|r| (r.title.clone(), r.ns_median)).collect();
        let path = folder.join("ladder.svg");
        let plot = svg::bars("What a dropped packet costs its receiver, 1,000 blocked sources", "ns", &bars);
        fs::write(&path, plot).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(goals(&rows))
}

/// Ratios of two peers, each taken over the floor just before it.
fn goals(rows: &[Row]) -> Vec<Goal> {
    let wanted = [
        ("P5a", "drop rate over count-and-drop's", "xdp-count", 0.8, ">= 0.8 x"),
        ("P5b", "drop rate over nftables raw's", "nft-raw", 4.0, ">= 4 x"),
        ("P5c", "drop rate over nftables netdev's", "nft-netdev", 2.0, ">= 2 x"),
    ];
    let find = |name: &str| rows.iter().find(|row| row.peer == name && row.rounds > 0);
    let why = |name: &str| {
        let row = rows.iter().find(|row| row.peer == name);
        row.and_then(|row| row.error.clone()).unwrap_or_else(|| format!("{name} was not measured"))
    };
    let floor = find("xdp-drop").map(|row| row.ns_median);
    let judge = |(id, what, name, at_least, goal): (&'static str, &str, &str, f64, &str)| {
        let (Some(own), Some(peer)) = (find("ftagent"), find(name)) else {
            let missing = if find("ftagent").is_none() { "ftagent" } else { name };
            return Goal::missing(id, what, "x", goal, &why(missing));
        };
        let value = peer.ratio / own.ratio;
        let mut goal = Goal {
            value: Some(value),
            floor,
            peer: Some(format!("{} {:.0} ns", peer.title, peer.ns_median)),
            met: Some(value >= at_least && own.leaked == 0),
            minimum: Some(peer.ratio_min / own.ratio_max),
            median: Some(value),
            rounds: own.rounds.min(peer.rounds),
            ..Goal::missing(id, what, "x", goal, &detail(own, peer, value >= at_least))
        };
        if own.leaked > 0 {
            goal.detail = format!("{} of {} frames leaked", own.leaked, own.packets);
        }
        goal
    };
    wanted.into_iter().map(judge).collect()
}

/// Where the difference lies.
fn detail(own: &Row, peer: &Row, is_met: bool) -> String {
    let help = if is_met { "" } else { "; what of ours takes how long, and what would help, is told by P4b" };
    format!(
        "ftagent {:.0} ns a frame, {:.0} over the floor, {} {:.0} over it{help}",
        own.ns_median, own.over_floor_ns, peer.title, peer.over_floor_ns
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(peer: &str, ratio: f64) -> Row {
        Row {
            peer: peer.to_owned(),
            title: peer.to_owned(),
            entries: 1_000,
            sources: Sources::Random,
            is_defence: true,
            rounds: 5,
            packets: 1_000,
            leaked: 0,
            ns_min: ratio * 30.0,
            ns_median: ratio * 30.0,
            over_floor_ns: ratio * 30.0 - 30.0,
            ratio,
            ratio_min: ratio,
            ratio_max: ratio,
            mpps: 0.0,
            mpps_generated: 0.0,
            setup_ms: 0.0,
            error: None,
        }
    }

    #[test]
    fn a_peer_that_costs_more_than_the_goal_says_meets_it() {
        let goals = goals(&[row("ftagent", 2.0), row("xdp-count", 1.2), row("nft-raw", 11.0)]);
        let met: Vec<_> = goals.iter().map(|g| (g.id, g.met)).collect();
        assert_eq!(met, [("P5a", Some(false)), ("P5b", Some(true)), ("P5c", None)]);
        assert_eq!((goals[1].value, goals[2].detail.as_str()), (Some(5.5), "nft-netdev was not measured"));
    }

    #[test]
    fn whoever_leaks_meets_nothing() {
        let leaky = Row { leaked: 3, ..row("ftagent", 1.0) };
        let goals = goals(&[leaky, row("nft-raw", 11.0)]);
        assert_eq!((goals[1].met, goals[1].detail.as_str()), (Some(false), "3 of 1000 frames leaked"));
    }
}
