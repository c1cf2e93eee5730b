//! Scripts of inputs and the commands they must cause: the life of incidents, rules and orders.

use std::net::IpAddr;

use ftagent::engine::{Engine, Guard, Input, OperatorOrder, Origin, Rule, Settings, Verdict};
use ftagent_common::api::{
    AllowEntry, DetectionOverrides, ExecutionOutcome, FirewallRule, NodeCommand, NodeConfig, Order,
};
use ftagent_common::vocab::{AttackFamily as F, IncidentStatus, Mode, Severity};
use ftagent_lab::floods::{Dice, Maker, Spec, forged, real, real_ttl};
use ipnet::IpNet;
use uuid::Uuid;

use crate::floods::TARGET;
use crate::kernel::{Kernel, MS, SEC, at};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// Floods `target` for `ms`; what was passed of it.
pub(crate) fn flood(kernel: &mut Kernel, make: Maker, target: &str, pps: u64, ms: u64) -> u64 {
    let (start, before) = (kernel.now_ns, kernel.datapath.passed);
    let mut dice = Dice(start | 1);
    for i in 0..pps * ms / 1_000 {
        let frame = make(&mut dice, ip(target)).frame();
        kernel.frame(&frame, frame.len(), start + i * SEC / pps);
    }
    kernel.run_until(start + ms * MS);
    kernel.datapath.passed - before
}

/// 40-byte SYN from anywhere, without options.
pub(crate) const SYN: Maker = |d, t| {
    let mut s = Spec::new(forged(d, t), t, 6);
    (s.src_port, s.dst_port, s.tcp_flags) = (1_024 + d.below(60_000) as u16, 80, 2);
    s
};

/// UDP from three hosts.
pub(crate) const THREE: Maker = |d, t| {
    let mut s = Spec::new(real(d, t, 3), t, 17);
    (s.ttl, s.src_port, s.dst_port) = (real_ttl(s.src), d.roll() as u16, 9_999);
    s.payload = vec![d.roll() as u8; 100];
    s
};

pub(crate) fn only(kernel: &Kernel) -> &ftagent_common::api::IncidentReport {
    assert_eq!(kernel.reports.len(), 1, "{:?}", kernel.reports.values().map(|r| r.target).collect::<Vec<_>>());
    kernel.reports.values().next().expect("one")
}

#[test]
fn an_attack_is_opened_dropped_resolved_and_undone() {
    let mut k = Kernel::new(Settings::default());
    k.run_for(SEC);
    let start = k.now_ns;
    flood(&mut k, THREE, TARGET, 50_000, 3_000);
    let report = only(&k).clone();
    assert_eq!((report.family, report.status), (F::UdpFlood, IncidentStatus::Active));
    assert!(!report.spoofed && report.severity == Severity::Critical, "{report:?}");
    assert!(k.first_rule_ns.expect("a rule") - start <= 150 * MS);
    assert_eq!(k.automatic().len(), 3);
    assert!(k.automatic().iter().all(|r| r.expires_at_ns.is_some() && r.verdict == Verdict::Drop));
    // Dropped traffic keeps it alive.
    flood(&mut k, THREE, TARGET, 12_000, 12_000);
    assert_eq!(only(&k).status, IncidentStatus::Active);
    k.run_for(9 * SEC);
    assert_eq!(only(&k).status, IncidentStatus::Active, "the hold-down is ten seconds");
    k.run_for(2 * SEC);
    let report = only(&k);
    assert_eq!(report.status, IncidentStatus::Resolved);
    assert!(k.automatic().is_empty());
    let outcomes: Vec<_> = report.executions.iter().map(|e| e.outcome).collect();
    assert_eq!(outcomes, [ExecutionOutcome::Applied, ExecutionOutcome::Undone], "{report:?}");
    assert!(report.dropped_packets > report.packets * 9 / 10);
    let kinds: Vec<&str> = report.timeline.iter().map(|t| t.kind.as_str()).collect();
    for kind in ["opened", "mitigated", "resolved", "undone"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
}

#[test]
fn the_state_reaches_the_disk_before_the_rules_do() {
    let mut k = Kernel::new(Settings::default());
    k.watch.log.clear();
    flood(&mut k, THREE, TARGET, 50_000, 1_000);
    let first_rules = k.watch.log.iter().position(|l| l == "enforce 3").expect("three rules");
    assert!(k.watch.log[..first_rules].contains(&"persist".to_owned()), "{:?}", k.watch.log);
}

#[test]
fn bursts_and_ordinary_rates_open_nothing() {
    let mut k = Kernel::new(Settings::default());
    for _ in 0..20 {
        flood(&mut k, SYN, TARGET, 375_000, 8);
        k.run_for(500 * MS);
    }
    flood(&mut k, THREE, TARGET, 9_000, 3_000);
    assert!(k.reports.is_empty() && k.engine.view().incidents.is_empty());
}

#[test]
fn forged_syns_are_dropped_and_clients_connect() {
    let mut k = Kernel::new(Settings::default());
    let start = k.now_ns;
    let (mut sent, mut lost) = (0, 0);
    let mut clients = Dice(77);
    // Ten connections a second of four packets each, before and during the flood.
    let mut connect = |k: &mut Kernel, ns: u64| {
        let source = ip(&format!("198.51.100.{}", 1 + clients.below(20)));
        let port = 30_000 + clients.below(20_000) as u16;
        for (flags, options, payload) in [(2, 20, 0), (16, 12, 0), (24, 12, 120), (17, 12, 0)] {
            let mut s = Spec::new(source, ip(TARGET), 6);
            (s.ttl, s.src_port, s.dst_port, s.tcp_flags, s.tcp_options) = (57, port, 80, flags, options);
            s.payload = vec![b'G'; payload];
            let frame = s.frame();
            sent += 1;
            lost += u32::from(!k.frame(&frame, frame.len(), ns));
        }
    };
    for i in 0..30 {
        connect(&mut k, start + i * 100 * MS);
    }
    let begin = start + 3 * SEC;
    let mut dice = Dice(5);
    for i in 0..200_000u64 {
        let ns = begin + i * 5_000;
        if i % 10_000 == 7 {
            connect(&mut k, ns);
        }
        let frame = SYN(&mut dice, ip(TARGET)).frame();
        k.frame(&frame, frame.len(), ns);
    }
    let report = only(&k);
    assert_eq!((report.family, report.spoofed), (F::SynFlood, true), "{:?}", report.explanation);
    let signature = report.signature.as_ref().expect("a signature");
    assert!(signature.coverage >= 0.95 && signature.collateral <= 0.01, "{signature:?}");
    assert_eq!(lost, 0, "of {sent} packets of clients; {:?}", k.automatic());
    assert!(k.datapath.dropped > 170_000, "{}", k.datapath.dropped);
    assert!(k.automatic().iter().all(|r| r.matches.source.is_none()), "forged sources are not blocked");
}

#[test]
fn without_earlier_traffic_syns_with_options_still_pass() {
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, SYN, TARGET, 200_000, 500);
    let mut client = Spec::new(ip("198.51.100.9"), ip(TARGET), 6);
    (client.src_port, client.dst_port, client.tcp_flags, client.tcp_options) = (40_000, 80, 2, 20);
    let frame = client.frame();
    let ns = k.now_ns;
    assert!(k.frame(&frame, frame.len(), ns), "{:?}", k.automatic());
}

#[test]
fn several_targets_are_several_incidents() {
    let mut k = Kernel::new(Settings::default());
    let start = k.now_ns;
    let mut dice = Dice(9);
    let targets = ["203.0.113.5", "192.0.2.9", "2001:db8::9"];
    for i in 0..90_000u64 {
        let frame = SYN(&mut dice, ip(targets[(i % 3) as usize])).frame();
        k.frame(&frame, frame.len(), start + i * 10_000);
    }
    let mut got: Vec<String> = k.reports.values().map(|r| r.target.addr().to_string()).collect();
    got.sort();
    let mut expected = targets.map(str::to_owned);
    expected.sort();
    assert_eq!(got, expected);
}

#[test]
fn many_addresses_of_one_prefix_are_one_incident() {
    let mut k = Kernel::new(Settings::default());
    k.run_for(SEC);
    let start = k.now_ns;
    let mut dice = Dice(9);
    // 256 addresses × 500 packets per second.
    for i in 0..256_000u64 {
        let target: IpAddr = std::net::Ipv4Addr::new(203, 0, 113, (i % 256) as u8).into();
        let frame = SYN(&mut dice, target).frame();
        k.frame(&frame, frame.len(), start + i * SEC / 128_000);
    }
    let report = only(&k);
    assert_eq!((report.target, report.carpet_bombing), (net("203.0.113.0/24"), true));
    assert_eq!(report.family, F::SynFlood);
    assert!(k.datapath.dropped > 220_000, "{} {:?}", k.datapath.dropped, k.automatic());
    println!("carpet bombing of 256 addresses: rule after {} ms", (k.first_rule_ns.expect("a rule") - start) / MS);
}

#[test]
fn a_host_incident_joins_the_carpet_that_follows() {
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, SYN, "203.0.113.7", 60_000, 500);
    let start = k.now_ns;
    let mut dice = Dice(9);
    for i in 0..200_000u64 {
        let target: IpAddr = std::net::Ipv4Addr::new(203, 0, 113, (i % 64) as u8).into();
        let frame = THREE(&mut dice, target).frame();
        k.frame(&frame, frame.len(), start + i * 5_000);
    }
    let active: Vec<_> = k.reports.values().filter(|r| r.status == IncidentStatus::Active).collect();
    assert_eq!(active.len(), 1);
    assert!(active[0].carpet_bombing);
    let host = k.reports.values().find(|r| r.target == net("203.0.113.7/32")).expect("the first incident");
    assert!(host.timeline.iter().any(|t| t.text.contains("merged")), "{:?}", host.timeline);
}

#[test]
fn a_slow_ramp_is_seen() {
    let mut settings = Settings::default();
    settings.detection.floor_pps = 100;
    let mut k = Kernel::new(settings);
    for _ in 0..320 {
        flood(&mut k, THREE, TARGET, 60, 1_000);
    }
    let mut multiple = 1.0;
    for second in 0..1_800u64 {
        multiple = 1.0 + 9.0 * second as f64 / 1_800.0;
        flood(&mut k, THREE, TARGET, (60.0 * multiple) as u64, 1_000);
        if !k.engine.view().incidents.is_empty() {
            break;
        }
    }
    println!("a ramp to ten times in 30 min is seen at {multiple:.1} times");
    assert!(multiple < 4.5, "{multiple}");
}

#[test]
fn what_exceeds_is_widened_against_until_it_is_contained() {
    // Bots with real addresses, more than may be blocked, no common length and no common TTL.
    let bots: Maker = |d, t| {
        let mut s = Spec::new(real(d, t, 50_000), t, 17);
        (s.ttl, s.src_port, s.dst_port) = (real_ttl(s.src), d.roll() as u16, d.roll() as u16);
        s.payload = (0..d.below(1_200)).map(|_| d.roll() as u8).collect();
        s
    };
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, bots, TARGET, 60_000, 1_000);
    let passed = flood(&mut k, bots, TARGET, 60_000, 1_000);
    assert!(passed < 11_000, "{passed} of 60,000; {:?}", k.automatic());
    assert!(k.automatic().len() <= 4, "{:?}", k.automatic());
}

fn rule(json: &str) -> FirewallRule {
    serde_json::from_str(json).expect("a rule")
}

#[test]
fn firewall_rules_fire_once_and_cool_down() {
    let mut settings = Settings::default();
    settings.response.automatic = false;
    settings.rules = vec![
        rule(
            r#"{"id":1,"name":"udp out","trigger":{"type":"attack_family","family":"udp"},
                 "action":{"type":"xdp_drop_protocol","protocol":"udp"},"cooldown_minutes":5}"#,
        ),
        rule(
            r#"{"id":2,"name":"syn only","trigger":{"type":"attack_family","family":"syn_flood"},
                 "action":{"type":"xdp_drop_source"}}"#,
        ),
        rule(r#"{"id":3,"name":"ban","trigger":{"type":"any"},"action":{"type":"nft_drop_source"}}"#),
    ];
    let mut k = Kernel::new(settings);
    flood(&mut k, THREE, TARGET, 50_000, 1_000);
    let sources_of = |rule: &Rule| match &rule.origin {
        Origin::FirewallRule { name, .. } => (name.clone(), rule.matches.all_sources().count()),
        other => panic!("{other:?}"),
    };
    // nftables has one rule for all three.
    let fired: Vec<(String, usize)> = k.automatic().into_iter().map(sources_of).collect();
    assert_eq!(fired, [("udp out".to_owned(), 0), ("ban".to_owned(), 3)]);
    k.run_for(12 * SEC);
    assert!(k.automatic().is_empty());
    flood(&mut k, THREE, TARGET, 50_000, 1_000);
    assert!(k.automatic().is_empty(), "the cooldown is five minutes: {:?}", k.automatic());
    k.run_for(320 * SEC);
    flood(&mut k, THREE, TARGET, 50_000, 1_000);
    assert_eq!(k.automatic().len(), 2);
}

#[test]
fn a_rule_on_forged_sources_is_refused_with_a_reason() {
    let ban = rule(r#"{"id":7,"name":"ban","trigger":{"type":"any"},"action":{"type":"xdp_drop_source"}}"#);
    let settings = Settings { rules: vec![ban], ..Settings::default() };
    let mut k = Kernel::new(settings);
    flood(&mut k, SYN, TARGET, 20_000, 6_000);
    let report = only(&k);
    let refused: Vec<_> = report.executions.iter().filter(|e| e.outcome == ExecutionOutcome::Refused).collect();
    assert_eq!(refused.len(), 1, "once, not every tick");
    assert!(refused[0].output.contains("spoofed") && refused[0].rule_id == 7, "{refused:?}");
}

#[test]
fn friends_among_the_sources_are_left_out() {
    let mut dice = Dice(1);
    let sources: Vec<IpAddr> = {
        let mut all: Vec<IpAddr> = (0..100).map(|_| real(&mut dice, ip(TARGET), 3)).collect();
        all.sort();
        all.dedup();
        all
    };
    assert_eq!(sources.len(), 3);
    let settings = Settings {
        allow: vec![AllowEntry { prefix: sources[0].into(), label: "probe".to_owned() }],
        guard: Guard { infrastructure: vec![(sources[1].into(), "resolver".to_owned())], ..Guard::default() },
        ..Settings::default()
    };
    let mut k = Kernel::new(settings);
    flood(&mut k, THREE, TARGET, 20_000, 7_000);
    let blocked: Vec<IpNet> = k.automatic().iter().filter_map(|r| r.matches.source).collect();
    assert_eq!(blocked, [IpNet::from(sources[2])]);
    let report = only(&k);
    let refused: Vec<&str> = report.timeline.iter().filter(|t| t.kind == "refused").map(|t| t.text.as_str()).collect();
    assert_eq!(refused.len(), 2, "each once: {refused:?}");
    assert!(refused.iter().any(|t| t.contains("probe")) && refused.iter().any(|t| t.contains("resolver")));
    // Allowed later: what contradicts leaves.
    k.tell(Input::Operator(OperatorOrder::Allow { prefix: sources[2].into(), label: "mine".to_owned() }));
    assert!(k.automatic().iter().all(|r| r.matches.source.is_none()), "{:?}", k.automatic());
    flood(&mut k, THREE, TARGET, 50_000, 2_000);
    assert!(k.automatic().iter().all(|r| r.matches.source.is_none()), "{:?}", k.automatic());
}

#[test]
fn an_unreadable_list_stops_everything_automated() {
    let mut settings = Settings::default();
    settings.guard.unreadable = Some("the allowlist cannot be read".to_owned());
    let mut k = Kernel::new(settings);
    flood(&mut k, THREE, TARGET, 20_000, 6_000);
    assert!(k.automatic().is_empty());
    assert!(only(&k).timeline.iter().any(|t| t.kind == "refused" && t.text.contains("cannot be read")));
}

#[test]
fn operators_are_answered() {
    let mut settings = Settings::default();
    settings.guard.own = vec![net("203.0.113.5/32")];
    let mut k = Kernel::new(settings);
    let source = net("198.51.100.7/32");
    let block = |source, ttl_secs| OperatorOrder::Block { source, ttl_secs, pps: None, bps: None };
    // (order, part of the answer, rules afterwards)
    let table = [
        (block(source, Some(60)), "Done", 1),
        (block(source, Some(90)), "Done", 1),
        (OperatorOrder::Block { source, ttl_secs: None, pps: Some(10), bps: None }, "limited", 2),
        (OperatorOrder::Unblock { source }, "2 rule(s)", 0),
        (OperatorOrder::Unblock { source }, "Refused", 0),
        (block(net("203.0.113.0/24"), None), "this node", 0),
        (block(net("0.0.0.0/0"), None), "everybody", 0),
        (OperatorOrder::Allow { prefix: source, label: "me".to_owned() }, "Done", 0),
        (block(source, None), "allowlist", 0),
        (OperatorOrder::Disallow { prefix: source }, "no longer", 0),
        (OperatorOrder::Disallow { prefix: source }, "Refused", 0),
        (OperatorOrder::Resolve { incident: Uuid::nil(), false_positive: false }, "no active incident", 0),
        (block(source, Some(1)), "Done", 1),
    ];
    for (order, answer, rules) in table {
        k.watch.log.clear();
        k.tell(Input::Operator(order.clone()));
        let said = k.watch.log.iter().filter(|l| l.starts_with("Done") || l.starts_with("Refused")).collect::<Vec<_>>();
        assert_eq!(said.len(), 1, "{order:?}");
        assert!(said[0].contains(answer), "{order:?}: {said:?}");
        assert_eq!(k.datapath.rules.rules.len(), rules, "{order:?}");
    }
    k.run_for(2 * SEC);
    assert!(k.datapath.rules.rules.is_empty(), "the block ended by itself");
}

#[test]
fn commands_of_the_control_plane_are_acknowledged_and_not_repeated() {
    let mut k = Kernel::new(Settings::default());
    let command = |id: u128, order| Input::Command(NodeCommand { command_id: Uuid::from_u128(id), order });
    let block = Order::Block { source: net("198.51.100.7/32"), ttl_secs: 60 };
    for _ in 0..2 {
        k.watch.log.clear();
        k.tell(command(1, block.clone()));
        assert!(k.watch.log.iter().any(|l| l.starts_with("ack Applied")), "{:?}", k.watch.log);
        assert_eq!(k.datapath.rules.rules.len(), 1);
    }
    k.watch.log.clear();
    k.tell(command(2, Order::Block { source: net("198.51.100.8/32"), ttl_secs: 0 }));
    assert!(k.watch.log.iter().any(|l| l.contains("ack Failed") && l.contains("ttl_secs")), "{:?}", k.watch.log);
    k.tell(command(3, Order::Unblock { source: net("198.51.100.7/32") }));
    assert!(k.datapath.rules.rules.is_empty());
}

#[test]
fn what_the_engine_does_not_carry_out_is_answered_as_failed() {
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, THREE, TARGET, 50_000, 3_000);
    k.watch.log.clear();
    let order = Order::RollBackProfile { application: only(&k).uuid };
    k.tell(Input::Command(NodeCommand { command_id: Uuid::from_u128(2), order }));
    assert!(k.watch.log.iter().any(|l| l.contains("ack Failed") && l.contains("unsupported")), "{:?}", k.watch.log);
}

#[test]
fn a_false_positive_is_normal_from_then_on() {
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, THREE, TARGET, 20_000, 2_000);
    let incident = only(&k).uuid;
    assert!(!k.automatic().is_empty());
    k.tell(Input::Operator(OperatorOrder::Resolve { incident, false_positive: true }));
    assert!(k.automatic().is_empty());
    flood(&mut k, THREE, TARGET, 20_000, 3_000);
    assert_eq!(only(&k).status, IncidentStatus::FalsePositive);
}

#[test]
fn the_control_plane_overrides_and_its_absence_changes_nothing() {
    let mut k = Kernel::new(Settings::default());
    let config = NodeConfig {
        version: 3,
        allowlist: vec![AllowEntry { prefix: net("198.51.100.0/24"), label: String::new() }],
        detection: DetectionOverrides { mode: Some(Mode::Evaluate), floor_pps: Some(90_000), ..Default::default() },
        ..NodeConfig::default()
    };
    k.tell(Input::Remote(Box::new(config)));
    assert_eq!(k.datapath.rules.mode, Some(Mode::Evaluate));
    assert_eq!(k.datapath.rules.allow.len(), 1);
    flood(&mut k, THREE, TARGET, 40_000, 2_000);
    assert!(k.reports.is_empty(), "the floor is 90,000");
    // Restarted without a control plane: its configuration still holds.
    let restored = Engine::restore(Settings::default(), k.engine.state(), at(k.now_ns), true);
    assert_eq!(restored.desired().allow.len(), 1);
    assert_eq!(restored.view().config_version, 3);
}

#[test]
fn a_killed_agent_goes_on_and_still_undoes() {
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, THREE, TARGET, 50_000, 2_000);
    let before = k.datapath.rules.clone();
    let (uuid, sent) = (only(&k).uuid, only(&k).revision);
    let saved = serde_json::to_string(&k.watch.persisted.clone().expect("persisted")).expect("JSON");
    k.engine = Engine::restore(Settings::default(), serde_json::from_str(&saved).expect("state"), at(k.now_ns), true);
    k.run_for(200 * MS);
    assert_eq!(k.datapath.rules.rules.keys().collect::<Vec<_>>(), before.rules.keys().collect::<Vec<_>>());
    flood(&mut k, THREE, TARGET, 50_000, 3_000);
    assert_eq!(only(&k).uuid, uuid, "the same incident");
    k.run_for(12 * SEC);
    assert!(k.automatic().is_empty());
    assert_eq!(only(&k).status, IncidentStatus::Resolved);
    assert!(only(&k).revision > sent, "its reports outrank those from before the kill");
}

#[test]
fn after_a_reboot_incidents_are_closed_and_operators_blocks_come_back() {
    let mut k = Kernel::new(Settings::default());
    let order = OperatorOrder::Block { source: net("198.51.100.7/32"), ttl_secs: Some(600), pps: None, bps: None };
    k.tell(Input::Operator(order));
    flood(&mut k, THREE, TARGET, 50_000, 2_000);
    let state = k.engine.state();
    let mut engine = Engine::restore(Settings::default(), state, at(5 * SEC), false);
    let rules = engine.desired().rules;
    let [rule] = rules.values().collect::<Vec<_>>()[..] else { panic!("{rules:?}") };
    assert_eq!(rule.origin, Origin::Operator);
    assert_eq!(rule.expires_at_ns.map(|end| end / SEC), Some(603), "what was left of its time");
    let mut closed = 0;
    while let Some(command) = engine.poll_command() {
        if let ftagent::engine::Command::Report(report) = command {
            assert_eq!(report.status, IncidentStatus::Resolved);
            assert!(report.timeline.iter().any(|t| t.text.contains("restarted")));
            closed += 1;
        }
    }
    assert_eq!(closed, 1);
}

#[test]
fn rules_are_renewed_while_the_attack_lasts() {
    let mut settings = Settings::default();
    settings.response.ttl_secs = 4;
    let mut k = Kernel::new(settings);
    flood(&mut k, THREE, TARGET, 50_000, 1_000);
    let ids: Vec<_> = k.datapath.rules.rules.keys().copied().collect();
    flood(&mut k, THREE, TARGET, 12_000, 10_000);
    assert_eq!(k.datapath.rules.rules.keys().copied().collect::<Vec<_>>(), ids);
    assert!(k.automatic().iter().all(|r| r.expires_at_ns.is_some_and(|end| end > k.now_ns)));
}

#[test]
fn deadlines_alone_end_what_ends_and_never_spin() {
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, THREE, TARGET, 50_000, 1_000);
    k.run_for(SEC);
    let mut now = k.now_ns;
    let mut woken = 0;
    while let Some(due) = k.engine.next_deadline().filter(|due| *due < k.now_ns + 60 * SEC) {
        assert!(due > now, "a deadline lies in the future");
        now = due;
        k.engine.on_deadline(at(now));
        while k.engine.poll_command().is_some() {}
        woken += 1;
        assert!(woken < 100, "spinning");
    }
    assert!(k.engine.desired().rules.is_empty(), "resolved by deadline");
}

#[test]
fn evaluate_mode_plans_and_does_not_widen() {
    let settings = Settings { mode: Mode::Evaluate, ..Settings::default() };
    let mut k = Kernel::new(settings);
    k.tell(Input::Settings(Box::new(Settings { mode: Mode::Evaluate, ..Settings::default() })));
    flood(&mut k, SYN, TARGET, 50_000, 3_000);
    assert_eq!(k.datapath.rules.mode, Some(Mode::Evaluate));
    assert_eq!(k.automatic().len(), 1, "{:?}", k.automatic());
}

#[test]
fn one_network_of_ipv6_is_blocked_as_one() {
    let hopping: Maker = |d, t| {
        let source = std::net::Ipv6Addr::from(0x2a02_0db8_0000_0007u128 << 64 | u128::from(d.roll()));
        let mut s = Spec::new(source.into(), t, 17);
        (s.src_port, s.dst_port) = (d.roll() as u16, 9_999);
        s.payload = vec![d.roll() as u8; 100];
        s
    };
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, hopping, "2001:db8::9", 50_000, 1_000);
    let sources: Vec<_> = k.automatic().iter().filter_map(|r| r.matches.source).collect();
    assert_eq!(sources, [net("2a02:db8:0:7::/64")], "{:?}", only(&k).explanation);
}

#[test]
fn without_samples_an_attack_is_reported_and_not_acted_on() {
    let mut k = Kernel::new(Settings::default());
    k.datapath.sampling = ftagent::replay::Sampling::OneIn(u32::MAX);
    flood(&mut k, SYN, TARGET, 20_000, 2_000);
    let report = only(&k);
    assert_eq!((report.family, report.confidence), (F::SynFlood, 0.3), "{report:?}");
    assert!(k.automatic().is_empty());
}
