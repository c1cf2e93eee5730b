//! Actions of other tools in the engine: when they begin, whom they spare, when they end, and what is said of them.

use ftagent::engine::{
    Acted, CounterReading, Engine, Guard, Input, MANAGEMENT, OperatorOrder, Outcome, Settings, TaskState, Wanted,
};
use ftagent_common::api::{AllowEntry, ExecutionOutcome as E, FirewallRule, NodeCommand, NodeConfig, Order};
use ftagent_common::vocab::{IncidentStatus, Mode};
use ipnet::IpNet;
use uuid::Uuid;

use crate::floods::TARGET;
use crate::kernel::{Kernel, SEC, at};
use crate::scripts::{THREE, flood, only};

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn rule(id: i64, action: &str) -> FirewallRule {
    let json = format!(r#"{{"id":{id},"name":"r{id}","trigger":{{"type":"any"}},"action":{action}}}"#);
    serde_json::from_str(&json).expect("a rule")
}

fn settings(rules: &[FirewallRule]) -> Settings {
    let infrastructure = vec![(net("192.0.2.0/24"), MANAGEMENT.to_owned())];
    let mut settings =
        Settings { rules: rules.to_vec(), guard: Guard { infrastructure, ..Guard::default() }, ..Settings::default() };
    settings.response.automatic = false;
    settings
}

fn words(actions: &[Wanted]) -> String {
    let steps = actions.iter().flat_map(|w| &w.steps);
    steps.map(|s| s.run.join(" ") + "\n").collect()
}

const DROP: &str = r#"{"type":"iptables_drop_source"}"#;
const UDP: &str = r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#;

fn attacked(rules: &[FirewallRule]) -> Kernel {
    let mut k = Kernel::new(settings(rules));
    flood(&mut k, THREE, TARGET, 50_000, 2_000);
    k
}

#[test]
fn a_rule_of_another_tool_is_done_with_the_attack_and_undone_with_its_end() {
    let mut k = attacked(&[rule(7, DROP), rule(8, UDP)]);
    assert_eq!(k.actions.len(), 2, "{:?}", only(&k).timeline);
    let during = words(&k.actions);
    assert_eq!(during.matches(" -s ").count(), 3 + 1, "three sources, and who is spared: {during}");
    assert!(during.contains("-s 192.0.2.0/24 ") && during.contains("-j RETURN"), "{during}");
    let view = k.engine.view().actions;
    assert!(view.iter().all(|a| a.state == TaskState::InForce && a.tool == "iptables"), "{view:?}");
    assert!(view.iter().all(|a| a.until - a.since == time::Duration::days(1)), "none is without an end");
    k.run_for(30 * SEC);
    let report = only(&k);
    assert_eq!(report.status, IncidentStatus::Resolved);
    assert!(k.actions.is_empty() && k.engine.view().actions.is_empty());
    let mut outcomes: Vec<(i64, E)> = report.executions.iter().map(|e| (e.rule_id, e.outcome)).collect();
    outcomes.sort_by_key(|(id, outcome)| (*id, *outcome as u8));
    assert_eq!(outcomes, [(7, E::Applied), (7, E::Undone), (8, E::Applied), (8, E::Undone)], "{report:#?}");
    let applied = report.executions.iter().find(|e| e.outcome == E::Applied).expect("one");
    assert_eq!(applied.commands[0][0], "iptables");
}

#[test]
fn friends_are_left_out_and_what_is_left_of_nothing_is_refused() {
    let friend = "198.51.100.9/32";
    let sources = |list: &str| format!(r#"{{"type":"iptables_drop_source","sources":[{list}]}}"#);
    let mut settings = settings(&[
        rule(1, &sources(r#""198.51.100.9/32","203.0.113.99/32""#)),
        rule(2, &sources(r#""198.51.100.9/32""#)),
        rule(3, r#"{"type":"iptables_drop_protocol","protocol":"icmpv6"}"#),
    ]);
    settings.allow = vec![AllowEntry { prefix: net(friend), label: "office".to_owned() }];
    let mut k = Kernel::new(settings);
    flood(&mut k, THREE, TARGET, 50_000, 2_000);
    assert_eq!(words(&k.actions).lines().count(), 1);
    assert!(words(&k.actions).contains("203.0.113.99/32"));
    let refused: Vec<_> = only(&k).executions.iter().filter(|e| e.outcome == E::Refused).collect();
    assert_eq!(refused.iter().map(|e| e.rule_id).collect::<Vec<_>>(), [2, 3]);
    assert!(refused[0].output.contains("office") && refused[1].output.contains("neighbour"), "{refused:?}");
    assert_eq!(k.engine.view().refusals, 2);
}

#[test]
fn an_action_at_a_cloud_is_that_of_the_rule_but_for_friends_and_follows_the_lists() {
    for head in [
        r#""type":"cloudflare_block","zone":"0123456789abcdef0123456789abcdef""#,
        r#""type":"digitalocean_block","firewall_id":"0f9619ff-8b86-4011-b42d-00cf4fc964ff""#,
        r#""type":"vultr_block","group_id":"0f9619ff-8b86-4011-b42d-00cf4fc964ff""#,
    ] {
        let sources =
            if head.contains("vultr") { r#""203.0.113.99/32""# } else { r#""192.0.2.9/32","203.0.113.99/32""# };
        let mut k = attacked(&[rule(1, &format!("{{{head},\"sources\":[{sources}]}}"))]);
        let [wanted] = &k.actions[..] else { panic!("{:?}", only(&k).timeline) };
        let planned = wanted.cloud.as_ref().expect("an action");
        assert_eq!(planned.sources(), Some(&[net("203.0.113.99/32")][..]), "a management source is left out");
        assert_eq!((wanted.tool, wanted.steps.is_empty()), (planned.tool(), false));
        let saved = serde_json::to_string(&k.engine.state()).expect("JSON");
        let settings = settings(&[rule(1, &format!("{{{head},\"sources\":[{sources}]}}"))]);
        let again = Engine::restore(settings, serde_json::from_str(&saved).expect("a state"), at(k.now_ns), true);
        assert_eq!(again.desired_actions(), k.engine.desired_actions());
        k.tell(Input::Operator(OperatorOrder::Allow { prefix: net("203.0.113.99/32"), label: String::new() }));
        assert!(k.actions.is_empty(), "nobody is left of it");
    }
}

#[test]
fn what_the_lists_forbid_later_is_taken_back_at_once() {
    let sources = r#"{"type":"iptables_drop_source","sources":["198.51.100.9/32","203.0.113.99/32"]}"#;
    let mut k = attacked(&[rule(1, sources), rule(2, UDP)]);
    let allow = |prefix: &str| Input::Operator(OperatorOrder::Allow { prefix: net(prefix), label: String::new() });
    k.tell(allow("198.51.100.0/24"));
    let during = words(&k.actions);
    assert!(!during.contains("198.51.100.9/32") && during.contains("203.0.113.99/32"), "{during}");
    assert!(during.contains("-s 198.51.100.0/24 ") && during.contains("RETURN"), "{during}");
    k.tell(allow("203.0.113.99/32"));
    assert_eq!(k.actions.len(), 1, "nobody is left of the first");
    // An operator's word on a source counts too.
    let mut k = attacked(&[rule(1, sources)]);
    let unblock = |source: &str| Input::Operator(OperatorOrder::Unblock { source: net(source) });
    k.tell(unblock("198.51.100.9/32"));
    assert_eq!(words(&k.actions).matches(" -s ").count(), 1);
    k.tell(unblock("203.0.113.99/32"));
    assert!(k.actions.is_empty());
}

#[test]
fn a_rule_that_is_deleted_or_a_mode_that_does_nothing_undoes_at_once() {
    let mut k = attacked(&[rule(1, DROP), rule(2, UDP)]);
    k.tell(Input::Settings(Box::new(settings(&[rule(2, UDP)]))));
    assert_eq!(k.actions.len(), 1);
    let changed = r#"{"type":"iptables_drop_protocol","protocol":"gre"}"#;
    k.tell(Input::Settings(Box::new(settings(&[rule(2, changed)]))));
    assert!(k.actions.is_empty(), "another action is another rule");
    let mut k = attacked(&[rule(2, UDP)]);
    k.tell(Input::Settings(Box::new(Settings { mode: Mode::Evaluate, ..settings(&[rule(2, UDP)]) })));
    assert!(k.actions.is_empty());
    let mut k = Kernel::new(Settings { mode: Mode::Evaluate, ..settings(&[rule(2, UDP)]) });
    flood(&mut k, THREE, TARGET, 50_000, 2_000);
    assert!(k.actions.is_empty());
    assert!(only(&k).executions.iter().any(|e| e.outcome == E::Refused && e.output.contains("evaluate")));
}

#[test]
fn a_failure_is_told_in_the_tools_words_and_not_tried_again() {
    let mut k = attacked(&[rule(1, UDP)]);
    let view = k.engine.view().actions;
    let failed = Acted {
        task: view[0].id,
        outcome: Outcome::Failed("iptables: exit 4: Permission denied".to_owned()),
        commands: vec![vec!["iptables".to_owned()]],
        output: String::new(),
        at_mono_ns: k.now_ns,
    };
    k.tell(Input::Acted(vec![failed]));
    assert!(k.actions.is_empty());
    flood(&mut k, THREE, TARGET, 50_000, 2_000);
    assert!(k.actions.is_empty());
    let executions = &k.engine.view().incidents[0].executions;
    let failed = executions.iter().find(|e| e.outcome == E::Failed);
    assert!(failed.is_some_and(|e| e.output.contains("Permission denied")), "{executions:?}");
}

fn order(id: u128, action: &str, incident: Uuid, undo_at_resolve: bool, ttl_secs: u32) -> Input {
    let action = serde_json::from_str(action).expect("an action");
    let order = Order::Apply { action, incident, undo_at_resolve, ttl_secs };
    Input::Command(NodeCommand { command_id: Uuid::from_u128(id), order })
}

#[test]
fn an_approved_action_is_carried_out_acknowledged_and_ends_as_it_was_ordered() {
    let mut k = attacked(&[]);
    let incident = only(&k).uuid;
    let named = r#"{"type":"iptables_drop_source","sources":["203.0.113.99/32"]}"#;
    let other = r#"{"type":"iptables_drop_source","sources":["203.0.113.98/32"]}"#;
    let native = r#"{"type":"xdp_drop_source","sources":["203.0.113.97/32"]}"#;
    let acks = |k: &Kernel, what: &str| k.watch.log.iter().filter(|l| l.starts_with(&format!("ack {what}"))).count();
    for _ in 0..2 {
        k.tell(order(1, named, incident, true, 600));
        k.tell(order(2, other, incident, false, 60));
        k.tell(order(3, native, incident, true, 600));
    }
    assert_eq!((k.actions.len(), k.automatic().len()), (2, 1), "{:?}", k.watch.log);
    assert_eq!(acks(&k, "Applied"), 6, "a repeated order is only acknowledged");
    for (id, action, incident, ttl) in [
        (11, DROP, incident, 60),
        (12, named, Uuid::nil(), 60),
        (13, named, incident, 0),
        (14, r#"{"type":"iptables_drop_source","sources":["192.0.2.9/32"]}"#, incident, 60),
        (
            15,
            r#"{"type":"vultr_block","group_id":"0f9619ff-8b86-4011-b42d-00cf4fc964ff","sources":["192.0.2.9/32"]}"#,
            incident,
            60,
        ),
    ] {
        k.tell(order(id, action, incident, true, ttl));
    }
    assert_eq!((acks(&k, "Failed"), k.actions.len()), (5, 2), "{:?}", k.watch.log);
    k.run_for(30 * SEC);
    assert_eq!(only(&k).status, IncidentStatus::Resolved);
    assert_eq!((k.actions.len(), k.automatic().len()), (1, 0), "the other outlasts the incident");
    k.run_for(60 * SEC);
    assert!(k.actions.is_empty(), "and ends in its time");
}

#[test]
fn an_approved_action_that_does_not_fit_is_not_acknowledged_as_done() {
    let mut settings = settings(&[]);
    settings.response.max_rules = 2;
    let mut k = Kernel::new(settings);
    flood(&mut k, THREE, TARGET, 50_000, 2_000);
    let incident = only(&k).uuid;
    let drop = |sources: &str| format!(r#"{{"type":"xdp_drop_source","sources":[{sources}]}}"#);
    let three = drop(r#""203.0.113.97/32","203.0.113.98/32","203.0.113.99/32""#);
    k.tell(order(1, &three, incident, true, 600));
    k.tell(order(2, &drop(r#""203.0.113.96/32""#), incident, true, 600));
    k.tell(order(3, &drop(r#""203.0.113.97/32""#), incident, true, 600));
    assert_eq!(k.automatic().len(), 2);
    let acks: Vec<&str> = k.watch.log.iter().filter_map(|line| line.strip_prefix("ack ")).collect();
    let [some, none, same] = acks[..] else { panic!("{acks:?}") };
    assert!(some.starts_with("Applied 2 of 3 rule(s) for 600 s, not the others: ") && some.len() > 60, "{some}");
    assert!(none.starts_with("Failed none of 1 rule(s) was made: ") && none.len() > 45, "{none}");
    assert_eq!(same, "Applied 1 rule(s) for 600 s", "it is in force already");
}

#[test]
fn a_restarted_agent_wants_the_same_and_one_after_a_reboot_only_what_was_ordered_for_longer() {
    let mut k = attacked(&[rule(1, UDP)]);
    let incident = only(&k).uuid;
    let named = r#"{"type":"iptables_drop_source","sources":["203.0.113.99/32"]}"#;
    k.tell(order(2, named, incident, false, 3_600));
    let saved = serde_json::to_string(&k.engine.state()).expect("JSON");
    let state = || serde_json::from_str(&saved).expect("a state");
    let same = Engine::restore(settings(&[rule(1, UDP)]), state(), at(k.now_ns), true);
    assert_eq!(same.desired_actions(), k.engine.desired_actions());
    // While it was away its rule was deleted.
    let without = Engine::restore(settings(&[]), state(), at(k.now_ns), true).desired_actions();
    assert_eq!((without.wanted.len(), without.ending.len()), (1, 1));
    let rebooted = Engine::restore(settings(&[rule(1, UDP)]), state(), at(5 * SEC), false).desired_actions();
    assert_eq!((rebooted.wanted.len(), rebooted.ending.len()), (1, 0));
    assert!(words(&rebooted.wanted).contains("203.0.113.99"));
}

#[test]
fn an_attack_is_not_over_because_nobody_looked() {
    let k = attacked(&[rule(1, UDP)]);
    let saved = serde_json::to_string(&k.engine.state()).expect("JSON");
    // The agent was away for longer than the hold-down, and loading its programs takes as long again.
    let back = k.now_ns + 60 * SEC;
    let state = serde_json::from_str(&saved).expect("a state");
    let mut heir = Engine::restore(settings(&[rule(1, UDP)]), state, at(back), true);
    let status = |heir: &Engine| heir.view().incidents.first().expect("the incident").status;
    for secs in [0, 12, 24] {
        heir.on(Input::Enforced(Vec::new()), at(back + secs * SEC));
        assert_eq!((status(&heir), heir.desired_actions().wanted.len()), (IncidentStatus::Active, 1), "after {secs} s");
    }
    // From the first reading on it is calm.
    for (secs, status_then) in
        [(25, IncidentStatus::Active), (30, IncidentStatus::Active), (36, IncidentStatus::Resolved)]
    {
        heir.on(Input::Counters(CounterReading::default()), at(back + secs * SEC));
        assert_eq!(status(&heir), status_then, "after {secs} s");
    }
}

#[test]
fn quotas_hold_whatever_the_rules() {
    let rules: Vec<FirewallRule> = (1..=40_i64)
        .map(|n| rule(n, &format!(r#"{{"type":"iptables_drop_port","protocol":"udp","port":{n}}}"#)))
        .collect();
    let k = attacked(&rules);
    assert_eq!(k.actions.len(), 30, "in a minute");
    let refused = only(&k).executions.iter().filter(|e| e.output.contains("in a minute")).count();
    assert!(refused > 0);
}

#[test]
fn rules_of_the_control_plane_that_go_away_take_their_actions_with_them() {
    let mut k = Kernel::new(settings(&[]));
    let config = |version, rules: &[FirewallRule]| {
        let config = NodeConfig { version, tool_rules: rules.to_vec(), ..NodeConfig::default() };
        Input::Remote(Box::new(config))
    };
    k.tell(config(1, &[rule(5, UDP)]));
    flood(&mut k, THREE, TARGET, 50_000, 2_000);
    assert_eq!(k.actions.len(), 1);
    k.tell(config(2, &[]));
    assert!(k.actions.is_empty());
    assert!(
        only(&k).timeline.iter().any(|t| t.text.contains("disabled or deleted")) || k.engine.view().actions.is_empty()
    );
}
