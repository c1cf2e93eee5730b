//! Every action: its words, its undo, and that no parameter becomes another word than it should.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use crate::api::{Action, NodeMeans, PoliceMeans, PoliceWay, Preview, PreviewContext, preview};

const ZONE: &str = "0123456789abcdef0123456789abcdef";
const GROUP: &str = "0f9619ff-8b86-4011-b42d-00cf4fc964ff";

/// One of each, with the fewest parameters.
pub(super) fn all() -> Vec<String> {
    let mut all: Vec<String> = [
        r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#,
        r#"{"type":"iptables_drop_source"}"#,
        r#"{"type":"iptables_drop_port","protocol":"udp","port":53}"#,
        r#"{"type":"iptables_rate_limit_source","pps":100}"#,
        r#"{"type":"iptables_limit_connections","connections":50}"#,
        r#"{"type":"iptables_limit_syn","pps":1000}"#,
        r#"{"type":"iptables_reject_protocol","protocol":"icmp"}"#,
        r#"{"type":"ipset_ban","set":"banned"}"#,
        r#"{"type":"ufw_deny_protocol","protocol":"gre"}"#,
        r#"{"type":"ufw_deny_source"}"#,
        r#"{"type":"firewalld_drop_source"}"#,
        r#"{"type":"tc_police_interface","interface":"eth0","bps":1000000000}"#,
        r#"{"type":"null_route_source"}"#,
        r#"{"type":"fail2ban_ban","jail":"sshd"}"#,
        r#"{"type":"syn_cookies"}"#,
    ]
    .map(str::to_owned)
    .into();
    all.push(format!(r#"{{"type":"cloudflare_block","zone":"{ZONE}"}}"#));
    all.push(format!(r#"{{"type":"digitalocean_block","firewall_id":"{GROUP}"}}"#));
    all.push(format!(r#"{{"type":"vultr_block","group_id":"{GROUP}"}}"#));
    all
}

fn context(target: &str, sources: &[&str]) -> PreviewContext {
    PreviewContext {
        target: target.parse().expect("a prefix"),
        sources: sources.iter().map(|s| s.parse().expect("an address")).collect(),
        spoofed: false,
        spared: Vec::new(),
        node: NodeMeans::default(),
    }
}

fn action(json: &str) -> Result<Action, String> {
    let action: Action = serde_json::from_str(json).map_err(|e| e.to_string())?;
    action.validate().map_err(|e| e.to_string())?;
    Ok(action)
}

fn shown(json: &str, context: &PreviewContext) -> Preview {
    preview(&action(json).expect(json), context)
}

fn check(json: &str, expected: &[(&str, &str)]) {
    check_in(json, &context("203.0.113.5/32", &["198.51.100.7", "2001:db8::7"]), expected);
}

fn check_in(json: &str, context: &PreviewContext, expected: &[(&str, &str)]) {
    let shown = shown(json, context);
    // The names of chains are digests.
    let words = |argv: &[String]| {
        argv.iter().map(|w| if w.starts_with("ftagent-") { "CHAIN" } else { w }).collect::<Vec<_>>().join(" ")
    };
    let lines: Vec<_> = shown.do_.iter().zip(&shown.undo).map(|(d, u)| (words(d), words(u))).collect();
    let expected: Vec<_> = expected.iter().map(|(d, u)| ((*d).to_owned(), (*u).to_owned())).collect();
    assert_eq!(lines, expected, "{json}");
}

#[test]
fn the_commands_are_the_tools_own() {
    check(
        r#"{"type":"iptables_drop_source"}"#,
        &[
            (
                "iptables -w 5 -I INPUT -s 198.51.100.7/32 -m comment --comment ftagent -j DROP",
                "iptables -w 5 -D INPUT -s 198.51.100.7/32 -m comment --comment ftagent -j DROP",
            ),
            (
                "ip6tables -w 5 -I INPUT -s 2001:db8::7/128 -m comment --comment ftagent -j DROP",
                "ip6tables -w 5 -D INPUT -s 2001:db8::7/128 -m comment --comment ftagent -j DROP",
            ),
        ],
    );
    check(
        r#"{"type":"iptables_drop_port","protocol":"udp","port":53}"#,
        &[
            ("iptables -w 5 -N CHAIN", "iptables -w 5 -X CHAIN"),
            (
                "iptables -w 5 -I CHAIN -i lo -m comment --comment ftagent -j RETURN",
                "iptables -w 5 -D CHAIN -i lo -m comment --comment ftagent -j RETURN",
            ),
            (
                "iptables -w 5 -A CHAIN -p udp --dport 53 -m comment --comment ftagent -j DROP",
                "iptables -w 5 -D CHAIN -p udp --dport 53 -m comment --comment ftagent -j DROP",
            ),
            (
                "iptables -w 5 -I INPUT -p udp --dport 53 -m comment --comment ftagent -j CHAIN",
                "iptables -w 5 -D INPUT -p udp --dport 53 -m comment --comment ftagent -j CHAIN",
            ),
        ],
    );
    check(
        r#"{"type":"ufw_deny_source"}"#,
        &[
            (
                "iptables -w 5 -I ufw-user-input -s 198.51.100.7/32 -j DROP",
                "iptables -w 5 -D ufw-user-input -s 198.51.100.7/32 -j DROP",
            ),
            ("ufw prepend deny from 198.51.100.7 to any", "ufw delete deny from 198.51.100.7 to any"),
            (
                "ip6tables -w 5 -I ufw6-user-input -s 2001:db8::7/128 -j DROP",
                "ip6tables -w 5 -D ufw6-user-input -s 2001:db8::7/128 -j DROP",
            ),
            ("ufw prepend deny from 2001:db8::7 to any", "ufw delete deny from 2001:db8::7 to any"),
        ],
    );
    check(
        r#"{"type":"fail2ban_ban","jail":"sshd","sources":["192.0.2.1/32"]}"#,
        &[("fail2ban-client set sshd banip 192.0.2.1", "fail2ban-client set sshd unbanip 192.0.2.1")],
    );
    let call = "busctl --system --auto-start=no call org.fedoraproject.FirewallD1 /org/fedoraproject/FirewallD1 \
                org.fedoraproject.FirewallD1.zone";
    let (v4, v6) = ("198.51.100.7", "2001:db8::7");
    let rule = |family: &str, source: &str| format!("rule family=\"{family}\" source address=\"{source}\" drop");
    check(
        r#"{"type":"firewalld_drop_source","ttl_secs":60}"#,
        &[("ipv4", v4), ("ipv6", v6)]
            .map(|(family, source)| rule(family, source))
            .map(|rule| (format!("{call} addRichRule ssi  {rule} 60"), format!("{call} removeRichRule ss  {rule}")))
            .iter()
            .map(|(run, undo)| (run.as_str(), undo.as_str()))
            .collect::<Vec<_>>(),
    );
    check_in(
        r#"{"type":"firewalld_drop_source","sources":["192.0.2.0/24"],"ttl_secs":60}"#,
        &PreviewContext { node: NodeMeans { lacks_busctl: true, police: None }, ..context("203.0.113.5/32", &[]) },
        &[(
            "firewall-cmd --add-rich-rule=rule family=\"ipv4\" source address=\"192.0.2.0/24\" drop --timeout=60",
            "firewall-cmd --remove-rich-rule=rule family=\"ipv4\" source address=\"192.0.2.0/24\" drop",
        )],
    );
}

#[test]
fn every_action_has_its_name_its_tool_and_an_undo_for_each_step() {
    let context = context("203.0.113.5/32", &["198.51.100.7"]);
    let tools = "iptables ipset ufw firewalld tc null_route fail2ban cloudflare digitalocean vultr sysctl";
    for json in all() {
        let action = action(&json).expect(&json);
        assert!(json.contains(&format!("\"{}\"", action.kind())) && !action.is_native(), "{json}");
        assert!(tools.split(' ').any(|tool| tool == action.tool()), "{json}");
        assert_eq!(
            serde_json::from_str::<Action>(&serde_json::to_string(&action).expect("JSON")).expect("read"),
            action
        );
        let shown = preview(&action, &context);
        assert!(!shown.do_.is_empty() && shown.refused.is_none(), "{json}");
        assert_eq!((shown.do_.len(), shown.do_.len()), (shown.undo.len(), shown.objects.len()), "{json}");
        assert!(shown.unless.is_empty() || shown.unless.len() == shown.do_.len(), "{json}");
    }
    assert_eq!(all().len() + 9, 27, "with XDP and nftables");
}

#[test]
fn unknown_fields_and_values_out_of_bounds_are_refused_by_name() {
    for json in all() {
        let unknown = json.replacen("{\"type\"", "{\"colour\":1,\"type\"", 1);
        assert!(action(&unknown).is_err_and(|e| e.contains("colour")), "{unknown}");
    }
    for (json, part) in [
        (r#"{"type":"iptables_drop_port","protocol":"udp","port":0}"#, "port"),
        (r#"{"type":"iptables_drop_port","protocol":"icmp","port":1}"#, "icmp"),
        (r#"{"type":"iptables_rate_limit_source","pps":0}"#, "pps"),
        (r#"{"type":"iptables_rate_limit_source","pps":1000001}"#, "pps"),
        (r#"{"type":"iptables_limit_syn","pps":1,"burst":0}"#, "burst"),
        (r#"{"type":"iptables_limit_connections","connections":0}"#, "connections"),
        (r#"{"type":"iptables_drop_source","sources":["0.0.0.0/0"]}"#, "sources"),
        (r#"{"type":"ipset_ban","set":"-exist"}"#, "set"),
        (r#"{"type":"ipset_ban","set":"a b"}"#, "set"),
        (r#"{"type":"ipset_ban","set":"a","ttl_secs":86401}"#, "ttl_secs"),
        (r#"{"type":"ufw_deny_protocol","protocol":"icmp"}"#, "icmp"),
        (r#"{"type":"fail2ban_ban","jail":""}"#, "jail"),
        (r#"{"type":"fail2ban_ban","jail":"sshd","sources":["10.0.0.0/24"]}"#, "prefix"),
        (r#"{"type":"tc_police_interface","interface":"eth0;reboot","bps":9000}"#, "interface"),
        (r#"{"type":"tc_police_interface","interface":"abcdefghijklmnop","bps":9000}"#, "interface"),
        (r#"{"type":"tc_police_interface","interface":"eth0","bps":7999}"#, "bps"),
        (r#"{"type":"cloudflare_block"}"#, "zone"),
        (r#"{"type":"cloudflare_block","zone":"../../user"}"#, "zone"),
        (r#"{"type":"digitalocean_block","firewall_id":"x"}"#, "firewall_id"),
        (r#"{"type":"vultr_block","group_id":"0F9619FF-8B86-4011-B42D-00CF4FC964FF"}"#, "group_id"),
    ] {
        let refused = action(json);
        assert!(refused.clone().is_err_and(|e| e.contains(part)), "{json}: {refused:?} lacks {part:?}");
    }
}

#[test]
fn the_family_of_a_rule_is_that_of_the_target_or_of_the_protocol() {
    let (v4, v6) = (context("203.0.113.5/32", &[]), context("2001:db8::5/128", &[]));
    for (json, four, six) in [
        (r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#, "iptables", "ip6tables"),
        (r#"{"type":"iptables_drop_protocol","protocol":"icmp"}"#, "iptables", "iptables"),
        (r#"{"type":"iptables_drop_protocol","protocol":"icmpv6"}"#, "ip6tables", "ip6tables"),
        (r#"{"type":"iptables_limit_connections","connections":5}"#, "iptables", "ip6tables"),
    ] {
        assert_eq!(shown(json, &v4).do_[0][0], four, "{json}");
        assert_eq!(shown(json, &v6).do_[0][0], six, "{json}");
    }
}

#[test]
fn broad_rules_say_what_they_risk() {
    let here = context("203.0.113.5/32", &["198.51.100.7"]);
    for (json, part) in [
        (r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#, "all udp"),
        (r#"{"type":"iptables_drop_protocol","protocol":"tcp"}"#, "sessions of operators"),
        (r#"{"type":"iptables_drop_source","sources":["10.0.0.0/8"]}"#, "10.0.0.0/8 is a broad prefix"),
        (r#"{"type":"iptables_drop_port","protocol":"tcp","port":443}"#, "known only to the node"),
        (r#"{"type":"iptables_reject_protocol","protocol":"udp"}"#, "the node floods others"),
        (r#"{"type":"ufw_deny_protocol","protocol":"udp"}"#, "all udp"),
        (r#"{"type":"tc_police_interface","interface":"eth0","bps":8000}"#, "wanted traffic"),
        (r#"{"type":"null_route_source"}"#, "reverse-path"),
    ] {
        let warnings = shown(json, &here).warnings;
        assert!(warnings.iter().any(|w| w.contains(part)), "{json}: {warnings:?}");
    }
    let mut many = context("203.0.113.5/32", &[]);
    many.sources = (0..300_u32).map(|n| IpAddr::from((0xc633_6400 + n).to_be_bytes())).collect();
    let cut = shown(r#"{"type":"iptables_drop_source"}"#, &many);
    assert_eq!(cut.do_.len(), 256);
    assert!(cut.warnings.iter().any(|w| w.contains("the first 256")));
    many.spoofed = true;
    assert!(shown(r#"{"type":"ipset_ban","set":"a"}"#, &many).refused.is_some());
}

#[test]
fn what_sets_take_is_a_few_commands_that_read_it() {
    let mut here = context("203.0.113.5/32", &["198.51.100.7", "2001:db8::7"]);
    let few = shown(r#"{"type":"ipset_ban","set":"a","ttl_secs":60}"#, &here);
    assert_eq!(few.do_[2], ["ipset", "restore", "-exist"]);
    assert_eq!((&few.do_[2], few.do_.len()), (&few.undo[2], 6));
    assert_eq!(
        (few.input[2].do_.as_str(), few.input[5].undo.as_str()),
        ("add a 198.51.100.7 timeout 60\n", "del a6 2001:db8::7\n")
    );
    here.sources = (0..100_000_u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
    for (json, commands) in
        [(r#"{"type":"ipset_ban","set":"a","ttl_secs":60}"#, 15), (r#"{"type":"nft_drop_source"}"#, 1)]
    {
        let many = shown(json, &here);
        assert_eq!((many.do_.len(), many.objects.len(), many.input.len()), (commands, commands, commands), "{json}");
        assert_eq!(many.input.iter().map(|i| i.lines).sum::<usize>(), 100_000, "{json}");
        for input in many.input.iter().filter(|i| i.lines > 0) {
            // What is left out is said.
            assert_eq!((input.shown, input.do_.lines().count(), input.undo.lines().count()), (16, 16, 16), "{json}");
        }
        let text = serde_json::to_string(&many).expect("JSON");
        assert!(text.len() < 40_000, "{json}: {} bytes", text.len());
        // What is shown is the beginning of what is run.
        for (step, input) in many.steps().iter().zip(&many.input) {
            let Some(members) = &step.members else { continue };
            assert!(members.to_add(&members.prefixes).starts_with(&input.do_));
            assert!(members.to_delete(&members.prefixes).starts_with(&input.undo));
        }
    }
    assert!(!shown(r#"{"type":"xdp_drop_source","sources":["192.0.2.1/32"]}"#, &here).do_.is_empty());
}

#[test]
fn actions_on_everybody_leave_those_alone_who_are_spared() {
    let mut here = context("203.0.113.5/32", &[]);
    here.spared = ["192.0.2.0/24", "2001:db8:7::/48"].map(|s| s.parse().expect("a prefix")).to_vec();
    for (json, v4, v6) in [
        (r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#, 1, 0),
        (r#"{"type":"iptables_drop_protocol","protocol":"icmpv6"}"#, 0, 1),
        (r#"{"type":"iptables_drop_port","protocol":"tcp","port":22}"#, 1, 0),
        (r#"{"type":"iptables_rate_limit_source","pps":5}"#, 1, 0),
        (r#"{"type":"iptables_limit_connections","connections":5}"#, 1, 0),
        (r#"{"type":"iptables_limit_syn","pps":5}"#, 1, 0),
        (r#"{"type":"iptables_reject_protocol","protocol":"udp"}"#, 1, 0),
        (r#"{"type":"ufw_deny_protocol","protocol":"udp"}"#, 1, 1),
        (r#"{"type":"tc_police_interface","interface":"eth0","bps":8000}"#, 1, 1),
    ] {
        let shown = shown(json, &here);
        let named = |prefix: &str| shown.do_.iter().filter(|v| v.iter().any(|w| w == prefix)).count();
        assert_eq!((named("192.0.2.0/24"), named("2001:db8:7::/48")), (v4, v6), "{json}: {:#?}", shown.do_);
        let last = shown.do_.last().expect("a step").join(" ");
        // The rule is reached only when those who are spared stand before it; ufw puts the newest first.
        let spares = json.contains("ufw") == last.contains("allow");
        assert!(spares && !last.contains("RETURN") && !last.contains("flowid"), "{json}: {last}");
    }
    here.spared = (0..65_u32).map(|n| IpAddr::from((0xc633_6400 + n).to_be_bytes()).into()).collect();
    for json in all() {
        let shown = shown(&json, &here);
        let wide = ["limit", "_drop_p", "_protocol", "police"].iter().any(|part| json.contains(part));
        let refused = shown.refused.as_deref().is_some_and(|why| why.contains("spare"));
        assert_eq!((refused, refused && !shown.do_.is_empty()), (wide, false), "{json}: {shown:?}");
    }
}

/// Programs of the first word, options that the folder's files write out, and what else may stand in a vector.
fn is_plain(word: &str, sources: &[IpNet]) -> bool {
    let named = |s: &IpNet| word == s.to_string() || word == s.addr().to_string();
    let rich = word.strip_prefix("--add-rich-rule=").or(word.strip_prefix("--remove-rich-rule=")).unwrap_or(word);
    word == "hash:net"
        || sources.iter().any(named)
        || (rich.starts_with("rule family=\"ipv")
            && rich.bytes().all(|b| b.is_ascii_alphanumeric() || b" =\"./:".contains(&b)))
        || (!word.is_empty()
            && word.len() <= 64
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-/=".contains(&b)))
}

/// Names that are hostile, harmless, or something in between.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[A-Za-z][A-Za-z0-9_.-]{0,20}",
        "-{1,2}[a-z]{1,8}",
        "\\PC{0,40}",
        Just("x;reboot".to_owned()),
        Just("$(id)".to_owned()),
        Just("a\0b".to_owned()),
        Just("a\nb".to_owned()),
        Just("../../etc/passwd".to_owned()),
    ]
}

fn source() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<[u8; 4]>(), 1_u8..=32).prop_map(|(a, l)| IpNet::new(a.into(), l).expect("within bounds").trunc()),
        (any::<[u8; 16]>(), 1_u8..=128).prop_map(|(a, l)| IpNet::new(a.into(), l).expect("within bounds").trunc()),
    ]
}

proptest! {
    #[test]
    fn no_word_of_a_vector_holds_what_was_not_checked(
        name in name(), sources in prop::collection::vec(source(), 1..5), number in any::<u64>(), which in 0_usize..8,
    ) {
        let value = match which {
            0 => serde_json::json!({ "type": "ipset_ban", "set": name, "sources": sources }),
            1 => serde_json::json!({ "type": "fail2ban_ban", "jail": name, "sources": sources }),
            2 => serde_json::json!({ "type": "tc_police_interface", "interface": name, "bps": number }),
            3 => serde_json::json!({ "type": "iptables_drop_source", "sources": sources }),
            4 => serde_json::json!({ "type": "ufw_deny_source", "sources": sources }),
            5 => serde_json::json!({ "type": "firewalld_drop_source", "sources": sources }),
            6 => serde_json::json!({ "type": "null_route_source", "sources": sources }),
            _ => serde_json::json!({ "type": "iptables_rate_limit_source", "pps": number % 1_000_001, "burst": 7 }),
        };
        if let Ok(action) = action(&value.to_string()) {
            let target = "203.0.113.5/32".parse().expect("a prefix");
            let ways = PoliceWay::ALL[(number % 3) as usize..].to_vec();
            let police = (number % 4 > 0).then_some(PoliceMeans { ways, lacking: vec![] });
            let node = NodeMeans { lacks_busctl: number % 2 == 0, police };
            let context = PreviewContext { target, sources: vec![], spoofed: false, spared: vec![], node };
            let shown = preview(&action, &context);
            for vector in shown.do_.iter().chain(&shown.undo).chain(&shown.unless) {
                // The default zone of firewalld has no name.
                for word in vector.iter().filter(|word| vector[0] != "busctl" || !word.is_empty()) {
                    prop_assert!(is_plain(word, &sources), "{word:?} of {vector:?}");
                    // Words of our own begin so; the name is in the first three alone.
                    prop_assert!(which > 2 || *word != name || !name.starts_with('-'));
                }
            }
            let lines = shown.input.iter().flat_map(|input| input.do_.lines().chain(input.undo.lines()));
            for line in lines.clone() {
                prop_assert!(line.split(' ').all(|word| is_plain(word, &sources)), "{line:?}");
                prop_assert!(line.starts_with("add ") || line.starts_with("del "), "{line:?}");
            }
            // Undoing names the same thing: it differs in the verb, and in what only making takes.
            for (run, undo) in shown.do_.iter().zip(&shown.undo) {
                prop_assert_eq!(&run[0], &undo[0]);
                if run[0].ends_with("tables") {
                    let back = |w| match w {
                        "-I" | "-A" => "-D",
                        "-N" => "-X",
                        other => other,
                    };
                    let swapped: Vec<_> = run.iter().map(|w| back(w.as_str())).collect();
                    prop_assert_eq!(swapped, undo.iter().map(String::as_str).collect::<Vec<_>>());
                }
                for source in &sources {
                    let names = |v: &[String]| v.iter().any(|w| is_named(w, source));
                    prop_assert_eq!(names(run), names(undo), "{:?} {:?}", run, undo);
                }
            }
        }
    }
}

fn is_named(word: &str, source: &IpNet) -> bool {
    word == source.to_string() || word == source.addr().to_string() || word.contains(&format!("\"{source}\""))
}

#[test]
fn more_sources_than_a_tool_takes_are_refused_by_field_and_limit() {
    let native = [
        r#"{"type":"xdp_drop_source"}"#,
        r#"{"type":"xdp_rate_limit_source","pps":5}"#,
        r#"{"type":"nft_drop_source"}"#,
        r#"{"type":"nft_rate_limit_source","pps":5}"#,
    ];
    let mut seen = 0;
    for json in all().into_iter().chain(native.map(str::to_owned)) {
        let mut action = action(&json).expect(&json);
        let most = action.max_sources();
        let Some(sources) = action.sources_mut() else { continue };
        seen += 1;
        let address = |n: u32| IpNet::from(IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n)));
        sources.extend((0..most as u32).map(address));
        assert_eq!(action.validate(), Ok(()), "{json}");
        let has_sets = json.contains("ipset_ban") || json.contains("nft_drop_source");
        let many = if has_sets { 100_001 } else { 100_000 };
        action.sources_mut().expect("as before").extend((most as u32..many).map(address));
        let why = action.validate().expect_err(&json);
        assert_eq!(why.field, "sources", "{json}");
        assert_eq!(why.to_string(), format!("sources: at most {most} addresses, got {many}"), "{json}");
        // What has no sets has a rule for each; those of the agent's own cost less.
        assert_eq!(most == 100_000, has_sets, "{json}: {most}");
        assert!(has_sets || most <= if action.is_native() { 1_024 } else { 256 }, "{json}: {most}");
    }
    assert!(seen >= 11, "{seen}");
}
