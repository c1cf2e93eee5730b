//! Attacks as known tools send them, and busy good days: told apart and named right, whatever rate and sampling.
//!
//! Prints the confusion table; `FTAGENT_EXPLAIN` adds the engine's words, `FTAGENT_SCENE` takes scenes by a part of
//! their name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Mutex;

use ftagent::engine::{Command, Engine, Settings};
use ftagent::replay::{Kernel, Limits, START_NS, Sampling, Watch};
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::{AttackFamily, IncidentStatus};
use ftagent_lab::floods::{Dice, Scene, attacks, ordinary};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::floods::{TARGET, TARGET6};
use crate::kernel::{MS, SEC};

/// Packets per second, one sample in so many, and milliseconds: just above the floor, six times the floor, and with
/// few samples. The first two are played always, the others with `FTAGENT_SCENES=all`.
const PLAYS: [(u64, u32, u64); 4] = [(13_000, 1, 700), (60_000, 1, 250), (60_000, 100, 700), (60_000, 1_000, 1_500)];

/// Every incident at its most certain.
#[derive(Default)]
struct Surest(BTreeMap<Uuid, IncidentReport>);

impl Watch for Surest {
    fn saw(&mut self, command: &Command, _: &Engine, _: u64) {
        if let Command::Report(report) = command
            && self.0.get(&report.uuid).is_none_or(|known| report.confidence > known.confidence)
        {
            self.0.insert(report.uuid, (**report).clone());
        }
    }
}

struct Outcome {
    name: &'static str,
    target: &'static str,
    play: (u64, u32, u64),
    family: AttackFamily,
    confidence: f64,
    surest: f64,
    is_right: bool,
    is_on_target: bool,
    rules: String,
    explanation: Vec<String>,
}

fn play(scene: &Scene, target: &'static str, (pps, one_in, ms): (u64, u32, u64)) -> Outcome {
    let began = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
    let mut kernel = Kernel::new(Settings::default(), Limits::default(), 50, began, Surest::default());
    kernel.datapath.sampling = Sampling::OneIn(one_in);
    kernel.run_until(START_NS + 2 * SEC + 17 * MS);
    let (start, to): (u64, IpAddr) = (kernel.now_ns, target.parse().expect("an address"));
    let mut stream = (scene.begin)(Dice(0x51ed_270b_9f0e_2d4b), to);
    for i in 0..pps * ms / 1_000 {
        let frame = stream().frame();
        kernel.frame(&frame, frame.len(), start + i * SEC / pps);
    }
    kernel.run_for(100 * MS);
    let mut reports = kernel.engine.view().incidents;
    reports.retain(|r| r.status == IncidentStatus::Active);
    let main = reports.iter().max_by_key(|r| r.packets);
    let targets: BTreeSet<IpAddr> = reports.iter().map(|r| r.target.addr()).collect();
    let said = kernel.watch.0.values().map(|r| r.confidence);
    let family = main.map_or(AttackFamily::Unknown, |r| r.family);
    let rules: Vec<String> = kernel
        .automatic()
        .iter()
        .take(4)
        .map(|r| format!("{} {:?}", ftagent::engine::words::words(&r.matches), r.verdict))
        .collect();
    Outcome {
        name: scene.name,
        target,
        play: (pps, one_in, ms),
        family,
        confidence: main.map_or(0.0, |r| r.confidence),
        surest: said.chain(reports.iter().map(|r| r.confidence)).fold(0.0, f64::max),
        is_right: scene.right.contains(&family),
        is_on_target: targets == BTreeSet::from([to]),
        rules: rules.join("; "),
        explanation: main.map_or_else(Vec::new, |r| r.explanation.clone()),
    }
}

/// Plays every scene in every way on two CPUs, in order.
fn play_all(scenes: Vec<&'static Scene>) -> Vec<Outcome> {
    let only = std::env::var("FTAGENT_SCENE").unwrap_or_default();
    let all = std::env::var_os("FTAGENT_SCENES").is_some_and(|value| value == "all");
    let plays = if all { &PLAYS[..] } else { &PLAYS[..2] };
    let mut jobs = Vec::new();
    for scene in scenes.into_iter().filter(|s| s.name.contains(&only)) {
        jobs.extend(plays.iter().map(|play| (scene, TARGET, *play)));
        if scene.over_ipv6 {
            jobs.push((scene, TARGET6, PLAYS[1]));
        }
    }
    let (next, done) = (Mutex::new(jobs.iter().enumerate()), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                loop {
                    let Some((n, (scene, target, how))) = next.lock().unwrap().next() else { return };
                    let outcome = play(scene, target, *how);
                    done.lock().unwrap().push((n, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

fn told(outcome: &Outcome) -> String {
    let (pps, one_in, _) = outcome.play;
    let mut text = format!(
        "{:<62} {} {pps:>6} 1:{one_in:<4} {:<24} {:.2} (most {:.2}){}",
        outcome.name,
        if outcome.target == TARGET { "IPv4" } else { "IPv6" },
        outcome.family,
        outcome.confidence,
        outcome.surest,
        if outcome.is_on_target { "" } else { "  OTHER TARGETS" }
    );
    if std::env::var_os("FTAGENT_EXPLAIN").is_some() {
        _ = write!(text, "\n        {}", outcome.rules);
        outcome.explanation.iter().for_each(|line| _ = write!(text, "\n        {line}"));
    }
    text
}

#[test]
fn attacks_of_known_tools_are_named() {
    let scenes: Vec<&Scene> = attacks().collect();
    let outcomes = play_all(scenes.clone());
    let mut table: BTreeMap<(String, &str, bool), usize> = BTreeMap::new();
    for o in &outcomes {
        let scene = scenes.iter().find(|s| s.name == o.name).unwrap();
        let label: Vec<&str> = scene.right.iter().map(|f| f.as_str()).collect();
        *table.entry((label.join("|"), o.family.as_str(), o.is_right)).or_default() += 1;
    }
    for ((label, name, right), count) in table {
        println!("{label:60} {name:26} {count:>4}{}", if right { "" } else { "  WRONG" });
    }
    let count = |is: &dyn Fn(&Outcome) -> bool| outcomes.iter().filter(|o| is(o)).count();
    let (right, sure) = (count(&|o| o.is_right), count(&|o| o.is_right && o.confidence >= 0.5));
    let on_target = count(&|o| o.is_on_target);
    for o in outcomes.iter().filter(|o| !o.is_right || o.confidence < 0.5 || !o.is_on_target) {
        println!("{} {}", if o.is_right { "unsure" } else { "WRONG " }, told(o));
    }
    println!("{right} of {} named right, {sure} of them sure, {on_target} on the right target", outcomes.len());
    assert!(right * 100 >= outcomes.len() * 98, "{right} of {} named right", outcomes.len());
    assert!(sure * 100 >= outcomes.len() * 95, "{sure} of {} sure", outcomes.len());
    assert_eq!(on_target, outcomes.len(), "targets");
}

#[test]
fn busy_good_days_are_no_attack() {
    let outcomes = play_all(ordinary().collect());
    let loud: Vec<&Outcome> = outcomes.iter().filter(|o| o.surest >= 0.5).collect();
    loud.iter().for_each(|o| println!("{}", told(o)));
    println!("{} of {} taken for attacks", loud.len(), outcomes.len());
    assert!(loud.is_empty());
}
