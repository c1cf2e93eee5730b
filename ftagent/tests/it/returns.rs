//! Attacks that stop and come back: one incident, rules that stay, and the truth about both.

use std::collections::BTreeSet;

use ftagent::engine::{Engine, Input, OperatorOrder, Settings};
use ftagent_common::api::{ExecutionOutcome, FirewallRule, IncidentReport};
use ftagent_common::vocab::IncidentStatus;
use proptest::prelude::*;

use crate::floods::TARGET;
use crate::kernel::{Kernel, MS, SEC, at};
use crate::scripts::{SYN, THREE, flood, only};

/// How often an incident was opened again.
fn returns(report: &IncidentReport) -> usize {
    report.timeline.iter().filter(|t| t.kind == "reopened").count()
}

/// How often rules came into force where there were none.
fn deployments(k: &Kernel) -> usize {
    let sets: Vec<&str> = k.watch.log.iter().filter_map(|line| line.strip_prefix("enforce ")).collect();
    sets.windows(2).filter(|pair| pair[0] == "0" && pair[1] != "0").count()
}

#[test]
fn a_pulse_wave_is_one_incident_whose_rules_stay_from_the_second_pulse_on() {
    let mut k = Kernel::new(Settings::default());
    let mut sent = 0;
    for _ in 0..9 {
        flood(&mut k, THREE, TARGET, 12_000, 5_000);
        sent += 60_000;
        k.run_for(15 * SEC);
    }
    let report = only(&k);
    assert_eq!((returns(report), deployments(&k)), (1, 2), "{:?}", report.timeline);
    // The hold-down is 20 s from the second pulse on.
    assert_eq!(report.status, IncidentStatus::Active);
    let view = k.engine.view();
    let [report] = &view.incidents[..] else { panic!("{:?}", view.incidents) };
    assert!(report.packets > sent * 9 / 10 && report.dropped_packets > sent * 9 / 10, "{report:?}");
    assert!(report.peak_pps >= 12_000, "{}", report.peak_pps);
    k.run_for(30 * SEC);
    let report = only(&k);
    assert_eq!(report.status, IncidentStatus::Resolved);
    assert!(report.resolved_at.is_some_and(|end| (end - report.started_at).whole_seconds() >= 180));
    assert!(k.automatic().is_empty());
}

#[test]
fn a_return_is_told_at_once_and_everything_is_done_and_undone_anew() {
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, THREE, TARGET, 12_000, 5_000);
    k.run_for(12 * SEC);
    let first = only(&k).clone();
    assert_eq!(first.status, IncidentStatus::Resolved);
    flood(&mut k, THREE, TARGET, 12_000, 500);
    let back = only(&k).clone();
    assert_eq!((back.uuid, back.status, back.resolved_at), (first.uuid, IncidentStatus::Active, None));
    assert!(back.revision > first.revision && back.started_at == first.started_at);
    let view = k.engine.view();
    assert_eq!((view.incidents.len(), view.active_incidents), (1, 1), "it is listed once");
    flood(&mut k, THREE, TARGET, 12_000, 6_000);
    k.run_for(25 * SEC);
    let report = only(&k);
    let outcomes: Vec<ExecutionOutcome> = report.executions.iter().map(|e| e.outcome).collect();
    let (applied, undone) = (ExecutionOutcome::Applied, ExecutionOutcome::Undone);
    assert_eq!(outcomes, [applied, undone, applied, undone]);
    let ids: BTreeSet<_> = report.executions.iter().map(|e| e.uuid).collect();
    assert_eq!(ids.len(), 4, "each has a name of its own");
    let kept = first.executions.iter().all(|e| ids.contains(&e.uuid));
    assert!(kept, "and keeps it");
    assert!(report.executions.iter().all(|e| e.latency_us < 1_000_000), "counted from the return");
}

#[test]
fn the_hold_down_doubles_with_each_return_up_to_eightfold() {
    let mut k = Kernel::new(Settings::default());
    let mut last = 0;
    for expected in [10, 20, 40, 80, 80] {
        flood(&mut k, THREE, TARGET, 12_000, 2_000);
        let calm = k.now_ns;
        while only(&k).status == IncidentStatus::Active {
            k.run_for(SEC);
        }
        let held = (k.now_ns - calm) / SEC;
        assert!((expected..=expected + 2).contains(&held), "{held} s instead of {expected}");
        last = held;
        k.run_for(SEC);
    }
    assert!(last <= 82);
    assert_eq!(returns(only(&k)), 4);
    // After five minutes of peace it is a new attack.
    k.run_for(300 * SEC);
    flood(&mut k, THREE, TARGET, 12_000, 1_000);
    assert_eq!(k.reports.len(), 2);
}

#[test]
fn a_restarted_agent_still_knows_what_comes_back() {
    for pause in [11, 60] {
        let mut k = Kernel::new(Settings::default());
        flood(&mut k, THREE, TARGET, 12_000, 3_000);
        k.run_for(pause * SEC);
        let uuid = only(&k).uuid;
        let saved = serde_json::to_string(&k.engine.state()).expect("JSON");
        let state = || serde_json::from_str(&saved).expect("a state");
        k.engine = Engine::restore(Settings::default(), state(), at(k.now_ns), true);
        k.run_for(SEC);
        flood(&mut k, THREE, TARGET, 12_000, 2_000);
        assert_eq!((only(&k).uuid, returns(only(&k))), (uuid, 1), "after {pause} s");
        assert!(!k.automatic().is_empty());
        // After a reboot the clock is another one.
        let rebooted = Engine::restore(Settings::default(), state(), at(5 * SEC), false);
        assert!(rebooted.state().dormant.is_empty());
    }
}

#[test]
fn what_an_operator_ended_does_not_come_back() {
    let mut k = Kernel::new(Settings::default());
    let resolve = |incident| Input::Operator(OperatorOrder::Resolve { incident, false_positive: false });
    flood(&mut k, THREE, TARGET, 12_000, 3_000);
    let ended = only(&k).uuid;
    k.tell(resolve(ended));
    flood(&mut k, THREE, TARGET, 12_000, 1_000);
    assert_eq!((k.reports.len(), k.reports[&ended].status), (2, IncidentStatus::Resolved));
    // Neither does one that was over when the operator spoke.
    k.run_for(60 * SEC);
    let over = *k.reports.keys().find(|uuid| **uuid != ended).expect("the second");
    k.watch.log.clear();
    k.tell(resolve(over));
    assert!(k.watch.log.iter().any(|line| line.contains("what comes now is a new one")), "{:?}", k.watch.log);
    flood(&mut k, THREE, TARGET, 12_000, 1_000);
    assert_eq!(k.reports.len(), 3);
}

#[test]
fn a_rule_of_the_operator_fires_again_when_its_cooldown_is_over() {
    let mut settings = Settings::default();
    settings.response.automatic = false;
    let json = r#"{"id":1,"name":"udp out","trigger":{"type":"any"},"cooldown_minutes":1,
                   "action":{"type":"xdp_drop_protocol","protocol":"udp"}}"#;
    settings.rules = vec![serde_json::from_str::<FirewallRule>(json).expect("a rule")];
    let mut k = Kernel::new(settings);
    flood(&mut k, THREE, TARGET, 12_000, 1_000);
    assert_eq!(k.automatic().len(), 1);
    k.run_for(100 * SEC);
    assert!(k.automatic().is_empty());
    flood(&mut k, THREE, TARGET, 12_000, 1_000);
    assert_eq!((k.automatic().len(), returns(only(&k))), (1, 1));
}

#[test]
fn another_kind_of_flood_that_follows_is_named_anew() {
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, THREE, TARGET, 12_000, 3_000);
    k.run_for(20 * SEC);
    flood(&mut k, SYN, TARGET, 30_000, 8_000);
    let report = only(&k);
    assert_eq!((report.family, report.spoofed), (ftagent_common::vocab::AttackFamily::SynFlood, true));
    assert!(report.peak_pps >= 29_000 && report.threshold.ratio >= 2.9, "{report:?}");
}

/// Seconds on and off, and which of some targets.
fn pattern() -> impl Strategy<Value = Vec<(u64, u64, u8, bool)>> {
    prop::collection::vec((200..3_000u64, 500..120_000u64, 0..3u8, prop::bool::weighted(0.15)), 2..10)
}

/// What must hold whenever anybody looks.
fn check(k: &Kernel) {
    let view = k.engine.view();
    let active: Vec<_> = view.incidents.iter().filter(|i| i.status == IncidentStatus::Active).collect();
    let targets: BTreeSet<_> = active.iter().map(|i| i.target).collect();
    assert_eq!(targets.len(), active.len(), "two active incidents of one target");
    let listed: BTreeSet<_> = view.incidents.iter().map(|i| i.uuid).collect();
    assert_eq!(listed.len(), view.incidents.len(), "an incident is listed twice");
    for report in &view.incidents {
        assert_eq!(report.status == IncidentStatus::Active, report.resolved_at.is_none());
    }
    let rules = k.automatic();
    for rule in &rules {
        let incident = rule.origin.incident().expect("automatic rules belong to incidents");
        let report = active.iter().find(|i| i.uuid == incident).expect("a rule of an incident that is over");
        let stands = |e: &&ftagent_common::api::RuleExecution| e.outcome == ExecutionOutcome::Applied;
        let undone = report.executions.iter().filter(|e| e.outcome == ExecutionOutcome::Undone).count();
        assert!(report.executions.iter().filter(stands).count() > undone, "a rule that nothing reported is in force");
    }
    let state = k.engine.state();
    assert!(state.dormant.len() <= 64 && state.incidents.len() <= 64);
    for incident in state.incidents.iter().chain(&state.dormant) {
        assert!(incident.timeline.len() <= 100 && incident.deeds.len() <= 64 && incident.hold_down_ms <= 80_000);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    #[test]
    fn however_attacks_come_and_go_the_books_are_right(pattern in pattern()) {
        let mut k = Kernel::new(Settings::default());
        for (on_ms, off_ms, target, restart) in pattern {
            flood(&mut k, THREE, &format!("203.0.113.{target}"), 12_000, on_ms);
            check(&k);
            if restart {
                let json = serde_json::to_string(&k.engine.state()).expect("JSON");
                let state = serde_json::from_str(&json).expect("a state");
                k.engine = Engine::restore(Settings::default(), state, at(k.now_ns), true);
                check(&k);
            }
            let end = k.now_ns + off_ms * MS;
            while k.now_ns < end {
                let next = (k.now_ns + 3 * SEC).min(end);
                k.run_until(next);
                check(&k);
            }
        }
        k.run_for(400 * SEC);
        check(&k);
        prop_assert!(k.automatic().is_empty() && k.engine.view().active_incidents == 0);
        prop_assert!(k.engine.state().dormant.is_empty(), "forgotten");
    }
}
