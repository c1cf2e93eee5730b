//! Profiles that nobody would write: whatever they drop, sessions of operators and of the control plane live on.

use ftagent_common::api::{
    AckStatus, Kept, LimitBy, Order, ProfileMatch, ProfileRule, ProfileVerdict, Protocol, Suite, TcpFlags,
    TrackedState, TrafficPath,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use super::BOOT;
use super::agent::Agent;
use super::site::{Site, dump, inside, same};

/// Each in both suites.
const SETS: usize = 24;

fn verdict() -> impl Strategy<Value = ProfileVerdict> {
    prop_oneof![
        6 => Just(ProfileVerdict::Drop {}),
        1 => Just(ProfileVerdict::Accept {}),
        2 => (any::<bool>(), 1..3u32).prop_map(|(source, pps)| {
            let by = if source { LimitBy::Source } else { LimitBy::Target };
            ProfileVerdict::Limit { pps, burst: 1, by }
        }),
    ]
}

/// Wide ones mostly: those that cut.
fn rule() -> impl Strategy<Value = ProfileRule> {
    let protocol = prop_oneof![3 => Just(None), 4 => Just(Some(Protocol::Tcp)), 1 => Just(Some(Protocol::Udp))];
    let state =
        prop_oneof![3 => Just(None), 2 => Just(Some(TrackedState::New)), 1 => Just(Some(TrackedState::Invalid))];
    let flags = prop_oneof![3 => Just(None), 1 => Just(Some(TcpFlags::Syn)), 1 => Just(Some(TcpFlags::None))];
    let ports = prop_oneof![3 => Just(vec![]), 1 => Just(vec![(1, 65_535)]), 1 => Just(vec![(22, 22), (8_000, 9_000)])];
    let sources = prop_oneof![3 => Just(vec![]), 1 => Just(vec!["192.0.0.0/8".parse().expect("a prefix")])];
    let path = prop_oneof![4 => Just(TrafficPath::ToNode), 1 => Just(TrafficPath::Through)];
    (protocol, state, flags, ports, sources, path, verdict()).prop_map(
        |(protocol, state, flags, ports, sources, path, verdict)| {
            let is_tcp = protocol == Some(Protocol::Tcp);
            let matches = ProfileMatch {
                protocol,
                ports: if protocol.is_some() { ports } else { vec![] },
                source_ports: vec![],
                sources,
                flags: flags.filter(|_| is_tcp),
                state,
            };
            ProfileRule { title: "generated".to_owned(), reason: "to cut".to_owned(), path, matches, verdict }
        },
    )
}

#[test]
fn no_generated_profile_cuts_an_operator_or_the_control_plane_off() {
    let state = tempfile::tempdir().unwrap();
    inside(move || {
        let mut site = Site::new();
        let mut agent = Agent::start(state.path(), BOOT);
        let before = dump();
        let (mut application, mut closed) = (0, 0);
        // Nothing is made smaller when it fails: the rules are printed.
        let mut runner = TestRunner::default();
        let sets = prop::collection::vec(rule(), 1..12);
        for _ in 0..SETS {
            let rules = sets.new_tree(&mut runner).unwrap().current();
            for suite in [Suite::Iptables, Suite::Nftables] {
                application += 1;
                let order = Order::ApplyProfile {
                    application: Uuid::from_u128(application),
                    profile: String::new(),
                    suite,
                    rules: rules.clone(),
                    custom: vec![],
                    keep: Kept::default(),
                    confirm_secs: 600,
                };
                let ack = agent.order(order);
                assert_eq!(ack.status, AckStatus::Applied, "{ack:?}");
                site.check(&format!("under {suite:?} {rules:?}"));
                closed += usize::from(!site.is_open());
                agent.roll_back(application);
                same("generated", &dump(), &before);
            }
        }
        println!("{application} profiles, of which {closed} let no stranger in");
        assert!(closed >= 5, "they cut nobody: {closed} of {application}");
    });
}
