//! No action ever meets a friend, whatever the rules, the sources and the lists: judged by a model of iptables that walks
//! the chains, and by the words of the other tools.

use ftagent::engine::{Guard, MANAGEMENT, Settings};
use ftagent_common::api::{AllowEntry, FirewallRule};
use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

use super::model::World;
use crate::floods::TARGET;
use crate::kernel::Kernel;
use crate::scripts::{THREE, flood};

/// Prefixes of a small space, so that they meet often.
fn prefix() -> impl Strategy<Value = IpNet> {
    (0..4_u8, any::<u8>(), prop_oneof![Just(24_u8), Just(28), Just(32)])
        .prop_map(|(c, d, len)| Ipv4Net::new([198, 51, 96 + c, d].into(), len).expect("within bounds").trunc().into())
}

fn action(which: usize, sources: &[IpNet]) -> String {
    let sources = serde_json::to_string(sources).expect("JSON");
    match which {
        0 => format!(r#"{{"type":"iptables_drop_source","sources":{sources}}}"#),
        1 => format!(r#"{{"type":"ipset_ban","set":"banned","sources":{sources}}}"#),
        2 => format!(r#"{{"type":"ufw_deny_source","sources":{sources}}}"#),
        3 => format!(r#"{{"type":"null_route_source","sources":{sources}}}"#),
        4 => r#"{"type":"iptables_drop_protocol","protocol":"tcp"}"#.to_owned(),
        5 => r#"{"type":"iptables_reject_protocol","protocol":"udp"}"#.to_owned(),
        6 => r#"{"type":"iptables_drop_port","protocol":"tcp","port":22}"#.to_owned(),
        7 => r#"{"type":"iptables_rate_limit_source","pps":1}"#.to_owned(),
        8 => r#"{"type":"iptables_limit_connections","connections":1}"#.to_owned(),
        _ => r#"{"type":"iptables_limit_syn","pps":1}"#.to_owned(),
    }
}

/// Whether a packet from `source`, which meets every rule that does not name sources, is dropped.
pub(super) fn is_dropped(world: &World, program: &str, chain: &str, source: IpNet) -> Option<bool> {
    for rule in world.chains.get(&format!("{program} {chain}")).expect("a chain") {
        let words: Vec<&str> = rule.split(' ').collect();
        let after = |word: &str| words.iter().position(|w| *w == word).map(|at| words[at + 1]);
        let named = after("-s").map(|s| s.parse::<IpNet>().expect("a prefix"));
        let set = after("--match-set").map(|set| &world.sets[set]);
        let is_member = |member: &String| {
            let net =
                member.parse().or_else(|_| member.parse::<std::net::IpAddr>().map(IpNet::from)).expect("a prefix");
            net.contains(&source)
        };
        if after("-i").is_some()
            || named.is_some_and(|n| !n.contains(&source))
            || set.is_some_and(|set| !set.iter().any(is_member))
        {
            continue;
        }
        match after("-j").expect("a verdict") {
            "DROP" | "REJECT" => return Some(true),
            "RETURN" => return None,
            chain => {
                if let Some(verdict) = is_dropped(world, program, chain, source) {
                    return Some(verdict);
                }
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn friends_pass_whatever_is_in_force(
        friends in prop::collection::vec(prefix(), 1..6),
        allowed in prop::collection::vec(prefix(), 0..4),
        later in prop::collection::vec(prefix(), 0..3),
        rules in prop::collection::vec((0..10_usize, prop::collection::vec(prefix(), 1..6)), 1..6),
    ) {
        let rule = |(id, (which, sources)): (usize, &(usize, Vec<IpNet>))| -> FirewallRule {
            let json = format!(
                r#"{{"id":{id},"name":"r","trigger":{{"type":"any"}},"action":{}}}"#, action(*which, sources),
            );
            serde_json::from_str(&json).expect("a rule")
        };
        let entry = |prefix: &IpNet| AllowEntry { prefix: *prefix, label: String::new() };
        let infrastructure = friends.iter().map(|f| (*f, MANAGEMENT.to_owned())).collect();
        let mut settings = Settings {
            rules: rules.iter().enumerate().map(rule).collect(),
            guard: Guard { infrastructure, ..Guard::default() },
            allow: allowed.iter().map(entry).collect(),
            ..Settings::default()
        };
        settings.response.automatic = false;
        let mut k = Kernel::new(settings.clone());
        flood(&mut k, THREE, TARGET, 20_000, 1_000);
        let mut all: Vec<IpNet> = friends.iter().chain(&allowed).copied().collect();
        for round in 0..2 {
            let mut world = World::new();
            for step in k.actions.iter().flat_map(|w| &w.steps).filter(|s| s.run[0] != "ufw") {
                // Steps that several actions have in common are run once.
                match &step.members {
                    Some(members) => drop(world.feed(&step.run, &members.to_add(&members.prefixes))),
                    None => drop(world.run(&step.run)),
                }
            }
            for friend in &all {
                prop_assert_ne!(is_dropped(&world, "iptables", "INPUT", *friend), Some(true), "{} {:#?}", friend, world);
                for step in k.actions.iter().flat_map(|w| &w.steps).filter(|s| ["ufw", "ip"].contains(&&*s.run[0])) {
                    let nets = step.run.iter().filter_map(|w| {
                        w.parse::<IpNet>().or_else(|_| w.parse::<std::net::IpAddr>().map(IpNet::from)).ok()
                    });
                    for net in nets {
                        prop_assert!(!net.contains(friend) && !friend.contains(&net), "{} {:?}", friend, step.run);
                    }
                }
            }
            let wide = rules.iter().any(|(which, _)| *which >= 4);
            let stranger: IpNet = "8.8.8.8/32".parse().expect("a prefix");
            prop_assert_eq!(is_dropped(&world, "iptables", "INPUT", stranger) == Some(true), wide, "{:#?}", world);
            if round == 0 {
                // Lists that grow while it is in force count at once.
                settings.allow.extend(later.iter().map(entry));
                all.extend(&later);
                k.tell(ftagent::engine::Input::Settings(Box::new(settings.clone())));
            }
        }
    }
}
