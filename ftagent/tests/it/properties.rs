//! What must hold for every input.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ftagent::engine::{
    Change, Engine, Guard, Input, Matches, OperatorOrder, Origin, Point, Rule, RuleId, RuleSet, Settings, Verdict,
};
use ftagent_common::api::AllowEntry;
use ftagent_lab::floods::{Dice, FLOODS};
use ipnet::IpNet;
use proptest::prelude::*;

use crate::kernel::{Kernel, MS, SEC, at};

/// One thing that happens to a node.
#[derive(Clone, Debug)]
enum Event {
    Flood { kind: usize, target: u8, kpps: u64, ms: u64 },
    Quiet { ms: u64 },
    Allow { octets: [u8; 4], len: u8 },
    Disallow { octets: [u8; 4], len: u8 },
    Block { octets: [u8; 4], ttl: Option<u32> },
    Unblock { octets: [u8; 4] },
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    // Sources of the generated floods lie in these networks.
    let octets = prop_oneof![Just([91, 12]), Just([91, 210]), Just([185, 1]), Just([46, 105])]
        .prop_flat_map(|[a, b]| (any::<u8>(), any::<u8>()).prop_map(move |(c, d)| [a, b, c, d]));
    prop_oneof![
        4 => (0..FLOODS.len(), 1..4u8, 5..40u64, 50..600u64)
            .prop_map(|(kind, target, kpps, ms)| Event::Flood { kind, target, kpps, ms }),
        2 => (10..15_000u64).prop_map(|ms| Event::Quiet { ms }),
        2 => (octets.clone(), 8..=32u8).prop_map(|(octets, len)| Event::Allow { octets, len }),
        1 => (octets.clone(), 8..=32u8).prop_map(|(octets, len)| Event::Disallow { octets, len }),
        1 => (octets.clone(), prop::option::of(1..30u32)).prop_map(|(octets, ttl)| Event::Block { octets, ttl }),
        1 => octets.prop_map(|octets| Event::Unblock { octets }),
        1 => Just(Event::Restart),
    ]
}

fn prefix(octets: [u8; 4], len: u8) -> IpNet {
    IpNet::new(Ipv4Addr::from(octets).into(), len).expect("a length of IPv4").trunc()
}

fn settings() -> Settings {
    let guard = Guard { own: vec![prefix([203, 0, 113, 0], 24)], ..Guard::default() };
    let allow = vec![AllowEntry { prefix: prefix([91, 12, 128, 0], 17), label: String::new() }];
    Settings { guard, allow, ..Settings::default() }
}

fn happen(k: &mut Kernel, event: &Event) {
    match *event {
        Event::Flood { kind, target, kpps, ms } => {
            let (_, make) = FLOODS[kind];
            let (start, pps) = (k.now_ns, kpps * 1_000);
            let target: IpAddr = Ipv4Addr::new(203, 0, 113, target).into();
            let mut dice = Dice(start | 1);
            for i in 0..pps * ms / 1_000 {
                let frame = make(&mut dice, target).frame();
                k.frame(&frame, frame.len(), start + i * SEC / pps);
            }
        }
        Event::Quiet { ms } => k.run_for(ms * MS),
        Event::Allow { octets, len } => {
            let prefix = prefix(octets, len);
            k.tell(Input::Operator(OperatorOrder::Allow { prefix, label: String::new() }));
        }
        Event::Disallow { octets, len } => {
            k.tell(Input::Operator(OperatorOrder::Disallow { prefix: prefix(octets, len) }));
        }
        Event::Block { octets, ttl } => {
            let order = OperatorOrder::Block { source: prefix(octets, 32), ttl_secs: ttl, pps: None, bps: None };
            k.tell(Input::Operator(order));
        }
        Event::Unblock { octets } => {
            k.tell(Input::Operator(OperatorOrder::Unblock { source: prefix(octets, 32) }));
        }
        Event::Restart => {
            let json = serde_json::to_string(&k.engine.state()).expect("JSON");
            let before = k.engine.desired();
            k.engine = Engine::restore(settings(), serde_json::from_str(&json).expect("state"), at(k.now_ns), true);
            assert_eq!(k.engine.desired(), before, "a restart changes nothing that is wanted");
        }
    }
}

fn check(k: &Kernel) {
    let own = settings().guard.own;
    for rule in k.automatic() {
        if let Some(source) = rule.matches.source {
            let friends = k.datapath.rules.allow.iter().map(|e| e.prefix).chain(own.iter().copied());
            for friend in friends {
                assert!(!friend.contains(&source) && !source.contains(&friend), "{source} covers {friend}");
            }
        }
        assert!(rule.expires_at_ns.is_some_and(|end| end > k.now_ns), "{rule:?} has no end");
        let incident = rule.origin.incident().expect("automatic rules belong to incidents");
        let known = k.engine.view().incidents.iter().any(|i| i.uuid == incident && i.resolved_at.is_none());
        assert!(known, "{rule:?} has no active incident");
    }
    assert_eq!(k.datapath.rules, k.engine.desired(), "what was asked for is what is wanted");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nobody_on_a_list_is_blocked_and_every_rule_is_undone(events in prop::collection::vec(event(), 1..10)) {
        let mut k = Kernel::new(settings());
        for event in &events {
            happen(&mut k, event);
            check(&k);
        }
        // Long after the last packet nothing automatic is left.
        k.run_for(200 * SEC);
        prop_assert!(k.automatic().is_empty(), "{:?}", k.automatic());
        prop_assert!(k.engine.view().active_incidents == 0);
    }

    #[test]
    fn changes_lead_from_any_set_to_any_other(a in rules(), b in rules()) {
        let changes = a.changes_to(&b);
        let mut there = a.rules.clone();
        for change in &changes {
            match change {
                Change::Install(rule) | Change::Extend(rule) => { there.insert(rule.id, rule.clone()); }
                Change::Remove(rule) if b.rules.contains_key(&rule.id) => {}
                Change::Remove(rule) => { there.remove(&rule.id); }
            }
        }
        prop_assert_eq!(there, b.rules.clone());
        prop_assert!(b.changes_to(&b).is_empty());
        let extended = changes.iter().filter(|c| matches!(c, Change::Extend(_))).count();
        let same = b.rules.iter().filter(|(id, r)| {
            a.rules.get(id).is_some_and(|old| {
                old != *r && Rule { expires_at_ns: r.expires_at_ns, ..old.clone() } == **r
            })
        }).count();
        prop_assert_eq!(extended, same, "a new end alone is no new rule");
    }
}

fn rules() -> impl Strategy<Value = RuleSet> {
    let rule = (0..6u64, 0..3u8, any::<bool>(), prop::option::of(0..3u64));
    prop::collection::vec(rule, 0..6).prop_map(|all| {
        let rules: BTreeMap<RuleId, Rule> = all
            .into_iter()
            .map(|(id, octet, drop, end)| {
                let id = RuleId(id);
                let verdict = if drop { Verdict::Drop } else { Verdict::LimitPps { pps: 1, burst: 1 } };
                let matches = Matches::source(prefix([192, 0, 2, octet], 32));
                let (point, origin) = (Point::Datapath, Origin::Operator);
                (id, Rule { id, matches, verdict, point, origin, expires_at_ns: end, evaluate: false })
            })
            .collect();
        RuleSet { rules, ..RuleSet::default() }
    })
}
