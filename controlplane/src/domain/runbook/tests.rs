use std::net::IpAddr;

use ftagent_common::api::Order;
use ftagent_common::vocab::{AttackFamily, IncidentStatus, Severity};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::domain::{AllowlistEntry, AllowlistScope};

const NOW: i64 = 1_778_596_200;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(NOW + secs)
}

fn step(kind: &str, config: Value) -> Step {
    serde_json::from_value(json!({ "action_type": kind, "action_config": config })).expect("a step")
}

fn log(message: &str) -> Step {
    step("log", json!({ "message": message }))
}

fn runbook(steps: Vec<Step>) -> NewRunbook {
    let trigger_conditions = TriggerConditions::default();
    NewRunbook { name: "udp".to_owned(), description: String::new(), trigger_conditions, steps, active: true }
}

fn attack() -> Attack {
    Attack { node: Some(Uuid::from_u128(1)), ..Attack::made_up(&TriggerConditions::default(), None) }
}

#[test]
fn every_bound_is_named_by_its_field() {
    let table = [
        ("wait", json!({ "seconds": 0 }), "seconds"),
        ("wait", json!({ "seconds": 3_601 }), "seconds"),
        ("iptables", json!({ "cmd": "rm -rf /" }), "cmd"),
        ("iptables", json!({ "cmd": "block_everything" }), "cmd"),
        ("iptables", json!({ "cmd": "enable_rule" }), "rule_id"),
        ("iptables", json!({ "cmd": "block_sources", "rule_id": 1 }), "rule_id"),
        ("iptables", json!({ "cmd": "block_sources", "ttl_secs": 0 }), "ttl_secs"),
        ("iptables", json!({ "cmd": "block_sources", "max_sources": 101 }), "max_sources"),
        ("notify_channel", json!({ "channel_id": 1, "message": "a\nb" }), "message"),
        ("webhook", json!({}), ""),
        ("webhook", json!({ "url": "https://a.example", "integration_id": 1 }), ""),
        ("webhook", json!({ "url": "http://127.0.0.1/" }), "url"),
        ("webhook", json!({ "url": "https://a.example", "timeout_secs": 31 }), "timeout_secs"),
        ("cloudflare_uam", json!({ "zone_id": "" }), "zone_id"),
        ("log", json!({ "message": "" }), "message"),
        ("condition", json!({}), ""),
        ("condition", json!({ "min_pps": 0 }), "min_pps"),
        ("mitigation_rule", json!({ "adapter_id": 1, "intent_type": "blackhole", "ttl": 0 }), "ttl"),
        ("update_incident", json!({}), ""),
        ("update_incident", json!({ "status": "active" }), "status"),
        ("add_note", json!({ "text": " " }), "text"),
    ];
    for (kind, config, field) in table {
        let Err(Problem::Invalid(fields)) = runbook(vec![log("a"), step(kind, config.clone())]).check(false) else {
            panic!("{kind} {config} was accepted")
        };
        let path = format!("steps[1].action_config.{field}");
        assert_eq!(fields[0].field, path.trim_end_matches('.'), "{kind} {config}");
    }
    for (changed, field) in [
        (NewRunbook { name: String::new(), ..runbook(vec![log("a")]) }, "name"),
        (NewRunbook { description: "x".repeat(1_025), ..runbook(vec![log("a")]) }, "description"),
        (runbook(vec![]), "steps"),
        (runbook(vec![log("a"); 51]), "steps"),
        (runbook(vec![step("wait", json!({ "seconds": 3_600 })); 25]), "steps"),
    ] {
        let Err(Problem::Invalid(fields)) = changed.check(false) else { panic!("{field} was accepted") };
        assert_eq!(fields[0].field, field);
    }
    for unknown in [json!({ "action_type": "reboot", "action_config": {} }), json!({ "action_type": "wait" })] {
        assert!(serde_json::from_value::<Step>(unknown).is_err());
    }
    let secret = json!({ "action_type": "log", "action_config": { "message": "a", "token": "sesame" } });
    assert!(serde_json::from_value::<Step>(secret).is_err(), "what is unknown is not ignored");
}

#[test]
fn conditions_hold_for_what_they_name() {
    let attack = Attack {
        family: AttackFamily::UdpFlood,
        severity: Severity::High,
        peak_pps: 60_000,
        current_pps: 5_000,
        ..attack()
    };
    for (conditions, expected) in [
        (json!({}), true),
        (json!({ "family": "any", "severity": "any" }), true),
        (json!({ "family": "udp_flood", "severity": "medium", "min_pps": 60_000 }), true),
        (json!({ "family": "udp" }), true),
        (json!({ "family": "syn_flood" }), false),
        (json!({ "severity": "critical" }), false),
        (json!({ "min_pps": 60_001 }), false),
        (json!({ "nodes": [Uuid::from_u128(1)] }), true),
        (json!({ "nodes": [Uuid::from_u128(2)] }), false),
    ] {
        let read: TriggerConditions = serde_json::from_value(conditions.clone()).expect("conditions");
        assert_eq!(read.hold(&attack), expected, "{conditions}");
        let made_up = Attack::made_up(&read, None);
        assert!(read.hold(&made_up), "{conditions}: {made_up:?}");
    }
    for (condition, expected) in [
        (json!({ "min_pps": 5_000, "status": "active", "family": "udp", "severity": "high" }), true),
        (json!({ "min_pps": 5_001 }), false),
        (json!({ "status": "resolved" }), false),
        (json!({ "severity": "critical" }), false),
        (json!({ "family": "syn" }), false),
    ] {
        let read: Condition = serde_json::from_value(condition.clone()).expect("a condition");
        assert_eq!(read.unmet(&attack).is_none(), expected, "{condition}");
    }
}

#[test]
fn blocks_spare_the_allowlist_and_forged_sources() {
    let sources: Vec<IpAddr> = (1..=5).map(|n| IpAddr::from([198, 51, 100, n])).collect();
    let attack = Attack { sources, ..attack() };
    let allowed = [AllowlistEntry {
        id: 1,
        ip_address: "198.51.100.2/32".parse().expect("a prefix"),
        label: String::new(),
        scope: AllowlistScope::Workspace,
        node: None,
        created_at: at(0),
    }];
    let ordered = |config: Value, attack: &Attack| plan(&step("iptables", config), attack, Some(1), &allowed);
    let Deed::Orders { orders, .. } = ordered(json!({ "cmd": "block_udp_flood", "max_sources": 3 }), &attack) else {
        panic!("no orders")
    };
    let block = |text: &str| Order::Block { source: text.parse().expect("a prefix"), ttl_secs: 3_600 };
    assert_eq!(orders, [block("198.51.100.1/32"), block("198.51.100.3/32")]);
    let forged = Attack { spoofed: true, ..attack.clone() };
    let block = json!({ "cmd": "block_sources" });
    assert!(matches!(ordered(block.clone(), &forged), Deed::Over(StepOutcome::Failed(why)) if why.contains("forged")));
    let over = Attack { status: IncidentStatus::Resolved, ..attack.clone() };
    assert!(matches!(ordered(block.clone(), &over), Deed::Over(StepOutcome::Skipped(_))));
    let lift = json!({ "cmd": "unblock_sources" });
    assert!(matches!(ordered(lift, &over), Deed::Orders { orders, .. } if orders.len() == 5));
    let other = ordered(json!({ "cmd": "block_syn_flood" }), &attack);
    assert!(matches!(other, Deed::Over(StepOutcome::Skipped(_))), "{other:?}");
    let none = Attack { sources: vec!["198.51.100.2".parse().expect("an address")], ..attack.clone() };
    assert!(matches!(ordered(block.clone(), &none), Deed::Over(StepOutcome::Failed(_))));
    let made_up = plan(&step("iptables", block), &attack, None, &allowed);
    assert!(matches!(made_up, Deed::Over(StepOutcome::Simulated(_))), "{made_up:?}");
}

#[test]
fn a_made_up_attack_changes_nothing_and_what_is_not_built_never_succeeds() {
    for (kind, config) in [
        ("iptables", json!({ "cmd": "enable_rule", "rule_id": 1 })),
        ("mitigation_rule", json!({ "adapter_id": 1, "intent_type": "blackhole" })),
        ("update_incident", json!({ "status": "resolved" })),
        ("add_note", json!({ "text": "a" })),
    ] {
        let deed = plan(&step(kind, config), &attack(), None, &[]);
        assert!(matches!(deed, Deed::Over(StepOutcome::Simulated(_))), "{kind}: {deed:?}");
    }
    let told = plan(&step("notify_channel", json!({ "channel_id": 5 })), &attack(), None, &[]);
    assert!(matches!(told, Deed::Tell { destination: 5, .. }), "that is what a test is for");
    for incident in [None, Some(1)] {
        let deed = plan(&step("cloudflare_uam", json!({})), &attack(), incident, &[]);
        assert!(matches!(deed, Deed::Over(StepOutcome::NotConnected(_))), "{deed:?}");
    }
}

#[test]
fn an_execution_goes_on_after_a_failure_and_tells_it() {
    let run = Run::queued(&[log("a"), log("b"), log("c")], at(0));
    let run = run.after(StepOutcome::Succeeded("a".to_owned()), at(0));
    let run = run.after(StepOutcome::Failed("why".to_owned()), at(1));
    assert_eq!((run.status, run.position), (RunStatus::Running, 2));
    let run = run.after(StepOutcome::Succeeded("c".to_owned()), at(2));
    assert_eq!((run.status, run.next_at, run.ended_at), (RunStatus::Failed, None, Some(at(2))));
    let statuses: Vec<_> = run.steps.iter().map(|record| record.status).collect();
    assert_eq!(statuses, [StepStatus::Succeeded, StepStatus::Failed, StepStatus::Succeeded]);
}

#[test]
fn waits_end_tries_are_counted_and_conditions_end_it() {
    let run = Run::queued(&[log("a"), log("b"), log("c")], at(0));
    let run = run.after(StepOutcome::Wait(at(30)), at(0));
    assert_eq!((run.position, run.next_at, run.steps[0].status), (0, Some(at(30)), StepStatus::Running));
    let mut run = run.after(StepOutcome::Succeeded(String::new()), at(30));
    for (tries, wait) in [(1, 2), (2, 8)] {
        run = run.after(StepOutcome::Again("503".to_owned()), at(100));
        assert_eq!((run.position, run.tries, run.next_at), (1, tries, Some(at(100 + wait))));
    }
    let run = run.after(StepOutcome::Again("503".to_owned()), at(200));
    assert_eq!((run.position, run.tries, run.steps[1].status), (2, 0, StepStatus::Failed));

    let run = Run::queued(&[log("a"), log("b")], at(0)).after(StepOutcome::NotMet("weak".to_owned()), at(0));
    assert_eq!((run.status, run.steps[1].status), (RunStatus::Succeeded, StepStatus::Skipped));
}

#[test]
fn what_was_handed_over_is_no_success_before_it_is_confirmed() {
    let parcel = |n| HandedOver { kind: HandedOverKind::Command, uuid: Uuid::from_u128(n) };
    let outcome = StepOutcome::HandedOver("2 orders".to_owned(), vec![parcel(1), parcel(2)]);
    let run = Run::queued(&[log("a")], at(0)).after(outcome, at(0));
    assert_eq!((run.status, run.steps[0].status, run.next_at), (RunStatus::Running, StepStatus::Queued, Some(at(0))));
    assert_eq!(run.unconfirmed().count(), 2);
    let half = |one: &HandedOver| if *one == parcel(1) { Confirmation::Done } else { Confirmation::Pending };
    let run = run.confirmed(half, at(5));
    assert_eq!((run.status, run.next_at), (RunStatus::Running, Some(at(15))));
    let done = run.clone().confirmed(|_| Confirmation::Done, at(6));
    assert_eq!((done.status, done.steps[0].status), (RunStatus::Succeeded, StepStatus::Succeeded));
    let failed = run.clone().confirmed(|_| Confirmation::Failed("no".to_owned()), at(6));
    assert_eq!((failed.status, failed.steps[0].message.as_str()), (RunStatus::Failed, "no"));
    let late = run.confirmed(half, at(86_400));
    assert_eq!((late.status, late.steps[0].status), (RunStatus::Failed, StepStatus::Failed));
}
