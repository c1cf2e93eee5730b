//! Own rules are read strictly, and what is compiled has an undo for all it does.

use super::*;

fn own(cmd: &str) -> Vec<CustomRule> {
    vec![CustomRule { cmd: cmd.to_owned(), title: "mine".to_owned() }]
}

fn check(suite: Suite, cmd: &str, expected: Result<&str, &str>) {
    let got = compile(suite, &[], &own(cmd), &Kept::default());
    match (got, expected) {
        (Ok(compiled), Ok(line)) => {
            let shown: Vec<_> = compiled.rules.iter().flat_map(|r| &r.lines).collect();
            assert_eq!(shown.last().map(|l| l.as_str()), Some(line), "{cmd}");
        }
        (Err(error), Err(part)) => {
            assert_eq!(error.field, "rules[0].cmd", "{cmd}");
            assert!(error.message.contains(part), "{cmd}: {error} lacks {part:?}");
        }
        (got, expected) => panic!("{cmd}: {got:?}, expected {expected:?}"),
    }
}

#[test]
fn own_rules_are_one_rule_each_and_nothing_else() {
    use Suite::{Firewalld, Iptables, Nftables, Ufw};
    check(Iptables, "iptables -A INPUT -p udp --dport 19 -j DROP", Ok("-p udp --dport 19 -j DROP"));
    check(Iptables, "iptables -A INPUT -s 10.1.2.3/8 -j ACCEPT", Ok("-s 10.0.0.0/8 -j RETURN"));
    check(
        Iptables,
        "ip6tables -I FORWARD -s 2001:db8::/32 -m limit --limit 10/sec -j DROP",
        Ok("-s 2001:db8::/32 -m limit --limit 10/sec -j DROP"),
    );
    check(
        Nftables,
        "nft add rule inet ftagent_profile input udp dport { 19, 123 } counter drop",
        Ok("udp dport { 19, 123 } counter drop"),
    );
    check(
        Nftables,
        "nft add rule inet ftagent_profile input ip saddr 198.51.100.0/24 limit rate over 10/second drop",
        Ok("ip saddr 198.51.100.0/24 limit rate over 10/second drop"),
    );
    check(Ufw, "ufw deny proto udp from any to any port 19", Ok("deny proto udp from any to any port 19"));
    check(Ufw, "ufw allow from 198.51.100.7 to any", Ok("allow from 198.51.100.7/32 to any"));
    check(
        Firewalld,
        "firewall-cmd --direct --add-rule ipv4 filter INPUT 0 -p tcp --dport 23 -j DROP",
        Ok("-p tcp --dport 23 -j DROP"),
    );

    for cmd in [
        "",
        "reboot",
        "iptables -F",
        "iptables -P INPUT DROP",
        "iptables -A OUTPUT -j DROP",
        "iptables -t nat -A INPUT -j DROP",
        "iptables -A INPUT -p udp",
        "iptables -A INPUT -j LOG",
        "iptables -A INPUT -j FTAGENT-PROFILE",
        "iptables -A INPUT -p udp -j DROP; reboot",
        "iptables -A INPUT -p udp -j DROP -j ACCEPT",
        "iptables -A INPUT -s $(id) -j DROP",
        "iptables -A INPUT --dport 0 -j DROP",
        "iptables -A INPUT -s ::1 -j DROP",
        "iptables -A INPUT -m comment --comment x -j DROP",
        "iptables -A INPUT\n-F -j DROP",
        "iptables -A INPUT -j",
        "iptables -A INPUT -s 0.0.0.0/0 -j DROP",
        "iptables -A INPUT -i -x -j DROP",
        "iptables-restore",
        "iptables -A INPUT -p tcp -j DROP\nCOMMIT",
        "iptables -A INPUT --syn\t-j DROP",
    ] {
        check(Iptables, cmd, Err(""));
        check(Firewalld, cmd, Err(""));
    }
    for cmd in [
        "nft flush ruleset",
        "nft add rule inet filter input drop",
        "nft add rule inet ftagent_profile input jump x drop",
        "nft add rule inet ftagent_profile input drop ; flush ruleset drop",
        "nft add rule inet ftagent_profile output drop",
        "nft add rule inet ftagent_profile input include \"/etc/passwd\" drop",
        "nft add rule inet ftagent_profile input udp dport 19",
        "nft add rule inet ftagent_profile input } drop\n",
        "nft add chain inet ftagent_profile input drop",
        "nft add rule inet ftagent_profile input policy drop",
        "nft add rule inet ftagent_profile input $x drop",
        "nft add rule inet ftagent_profile input udp dport {19;} drop",
    ] {
        check(Nftables, cmd, Err(""));
    }
    for cmd in [
        "ufw disable",
        "ufw reset",
        "ufw default deny incoming",
        "ufw deny from any",
        "ufw deny from any to any app x",
        "ufw deny proto icmp from any to any",
        "ufw deny in on eth0",
        "ufw --force reset",
        "ufw deny from x to any",
    ] {
        check(Ufw, cmd, Err(""));
    }
}

#[test]
fn braces_of_nftables_must_pair() {
    for cmd in ["udp dport { 19 drop", "udp dport 19 } drop", "udp dport } 19 { drop"] {
        check(Suite::Nftables, &format!("nft add rule inet ftagent_profile input {cmd}"), Err("brace"));
    }
}

#[test]
fn every_suite_keeps_management_first_and_can_be_undone() {
    let rules = [ProfileRule {
        title: "Everything new".to_owned(),
        reason: "for the test".to_owned(),
        path: TrafficPath::ToNode,
        matches: ProfileMatch { state: Some(TrackedState::New), ..ProfileMatch::default() },
        verdict: ProfileVerdict::Drop {},
    }];
    let kept = Kept { ports: vec![22, 2222], sources: vec!["198.51.100.7/32".parse().expect("a prefix")] };
    for suite in Suite::ALL {
        let compiled = compile(suite, &rules, &[], &kept).expect("compiled");
        assert!(compiled.warnings.iter().any(|w| w.contains("everything new")), "{compiled:?}");
        let text: String = compiled.steps.iter().map(|s| format!("{}\n{}\n", s.command.join(" "), s.input)).collect();
        let (management, trusted, all) = match suite {
            Suite::Nftables => ("tcp dport { 22, 2222 } accept", "198.51.100.7", "ct state new counter drop"),
            _ => ("--dports 22,2222 -j RETURN", "-s 198.51.100.7/32 -j RETURN", "--ctstate NEW -j DROP"),
        };
        let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{suite:?} lacks {part}:\n{text}"));
        assert!(place(management) < place(all) && place(trusted) < place(all), "{text}");
        for step in &compiled.steps {
            assert!(!step.file.is_empty() || !step.undo.is_empty(), "{step:?}");
        }
    }
}

#[test]
fn what_is_kept_may_overlap_and_be_long() {
    let sources = ["10.0.0.0/8", "10.1.2.3/32", "2001:db8::/32"].map(|s| s.parse().expect("a prefix")).to_vec();
    let kept = Kept { ports: (1..=40).chain([7]).collect(), sources };
    let compiled = compile(Suite::Iptables, &[], &[], &kept).expect("compiled");
    let management: Vec<_> = compiled.rules.iter().filter(|r| r.title == "Management").collect();
    assert_eq!(management.len(), 3, "15 ports in a rule");
    let text = format!("{compiled:?}");
    assert!(text.contains("10.0.0.0/8") && !text.contains("10.1.2.3"), "{text}");
}

#[test]
fn what_no_suite_can_express_is_refused_by_place() {
    let rule = |json: &str| {
        let text = format!(r#"{{"title":"t","reason":"r",{json}}}"#);
        serde_json::from_str::<ProfileRule>(&text).expect("a rule")
    };
    for json in [
        r#""match":{"ports":[[80,80]]},"verdict":{"type":"drop"}"#,
        r#""match":{"protocol":"udp","ports":[[0,80]]},"verdict":{"type":"drop"}"#,
        r#""match":{"protocol":"udp","ports":[[90,80]]},"verdict":{"type":"drop"}"#,
        r#""match":{"protocol":"udp","flags":"syn"},"verdict":{"type":"drop"}"#,
        r#""match":{"protocol":"udp"},"verdict":{"type":"connections","most":5}"#,
        r#""match":{"protocol":"udp"},"verdict":{"type":"limit","pps":0,"burst":5,"by":"source"}"#,
        r#""match":{"sources":["0.0.0.0/0"]},"verdict":{"type":"drop"}"#,
    ] {
        let refused = compile(Suite::Nftables, &[rule(json)], &[], &Kept::default());
        assert_eq!(refused.map_err(|e| e.field), Err("profile[0]".to_owned()), "{json}");
    }
}
