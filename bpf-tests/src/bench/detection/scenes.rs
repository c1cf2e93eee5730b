//! Attacks as known tools and reflectors send them, and traffic of good days that is as much: named, and left alone.

use std::borrow::Cow;
use std::net::IpAddr;

use ftagent_lab::floods::{Dice, Scene, attacks, ordinary};

use super::super::Goal;
use super::attacks::in_parallel;
use super::judge::{Trial, percent};
use super::trial::{Play, play};

/// Packets per second, one sample in so many, and milliseconds. One in seven is about what the agent sets at that rate;
/// more samples than it takes a second would be cut at even distances, which meet the same fragment of each datagram.
const PLAYS: [(u64, u32, u64); 5] =
    [(13_000, 1, 1_500), (60_000, 7, 1_000), (60_000, 100, 1_000), (60_000, 1_000, 2_000), (200_000, 1_000, 1_000)];
const TARGETS: [&str; 2] = ["203.0.113.5", "2001:db8:5::5"];

/// Plays scenes over both versions of IP; a quick run plays each twice.
fn run(scenes: impl Iterator<Item = &'static Scene>, quick: bool) -> Vec<Trial> {
    let mut jobs = Vec::new();
    for (number, scene) in scenes.enumerate() {
        for target in TARGETS.into_iter().filter(|t| scene.over_ipv6 || !t.contains(':')) {
            for (i, (pps, one_in, lasts_ms)) in PLAYS.into_iter().enumerate() {
                let phase_ms = (number as u64 * 5 + i as u64) * 37 % 50;
                let is_chosen = !quick || !target.contains(':') && (1..3).contains(&i);
                jobs.extend(is_chosen.then_some((scene, target, Play { pps, one_in, lasts_ms, phase_ms })));
            }
        }
    }
    in_parallel(&jobs, |(scene, target, how)| {
        let target: IpAddr = target.parse().expect("an address of this file");
        let mut stream = (scene.begin)(Dice(0x9e37_79b9_7f4a_7c15), target);
        let found = play(*how, || {
            let frame = stream().frame();
            let len = frame.len();
            (Cow::Owned(frame), len)
        });
        let mut right = scene.right.iter().map(|family| family.as_str().to_owned());
        Trial {
            name: format!("{} to {target}", scene.name),
            label: right.next().unwrap_or_else(|| "ordinary".to_owned()),
            acceptable: right.collect(),
            targets: [target].into(),
            play: *how,
            found,
        }
    })
}

/// The attacks' trials.
pub(super) fn of_attacks(quick: bool) -> Vec<Trial> {
    run(attacks(), quick)
}

/// The trials of good days.
pub(super) fn of_good_days(quick: bool) -> Vec<Trial> {
    run(ordinary(), quick)
}

/// The figures of both.
pub(super) fn goals(attacks: &[Trial], good: &[Trial]) -> Vec<Goal> {
    let share = |id, what, wanted, least: f64, value: Option<f64>, detail: &str| Goal {
        value,
        met: value.map(|v| v >= least),
        ..Goal::missing(id, what, "%", wanted, detail)
    };
    let sure = percent(attacks, Trial::is_sure).unwrap_or(0.0);
    let detail = format!("{} trials; with confidence >= 0.5 {sure:.1} %", attacks.len());
    let named = percent(attacks, Trial::is_named_right);
    let on_target = percent(attacks, Trial::is_target_right);
    let loud: Vec<String> = good
        .iter()
        .filter(|t| t.found.surest >= 0.5)
        .map(|t| {
            format!(
                "{} at {} pps, 1 in {}: {} {:.2}",
                t.name, t.play.pps, t.play.one_in, t.found.family, t.found.surest
            )
        })
        .collect();
    let detail_of_good = format!("{} trials {}", good.len(), loud.join("; "));
    vec![
        share("D12a", "attacks of known tools: family right", ">= 95 %", 95.0, named, &detail),
        share("D12b", "attacks of known tools: target right", ">= 100 %", 100.0, on_target, ""),
        Goal {
            value: Some(loud.len() as f64),
            met: Some(loud.is_empty()),
            ..Goal::missing("D12c", "busy good days: trials with confidence >= 0.5", "", "= 0", &detail_of_good)
        },
    ]
}
