//! The commands that previews show, run by the tools themselves: what they do shows in the tools' own dumps, and what
//! is undone leaves no trace there.

use std::io::Write as _;
use std::process::{Command, Stdio};

use bpf_tests::netns::Netns;
use bpf_tests::skip_without_root;
use ftagent_common::api::{Action, NodeMeans, PoliceMeans, PoliceWay, Preview, PreviewContext, police_trial, preview};

/// The dumps of every tool, by its name: what must be as before when all is undone.
const DUMPS: &[&[&str]] = &[
    &["iptables-save"],
    &["ip6tables-save"],
    &["ipset", "save"],
    &["nft", "list", "ruleset"],
    &["ip", "-4", "rule"],
    &["ip", "-6", "rule"],
    &["ip", "-4", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["tc", "qdisc", "show"],
    &["tc", "filter", "show", "dev", "lo", "ingress"],
    &["sysctl", "net.ipv4.tcp_syncookies"],
];

/// Standard output, or the tool's own words.
fn run(words: &[impl AsRef<str>]) -> Result<String, String> {
    feed(words, "")
}

/// The same of a tool that reads `input`.
fn feed(words: &[impl AsRef<str>], input: &str) -> Result<String, String> {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{}: {e}", words[0]))?;
    // Whoever reads nothing has closed it.
    drop(child.stdin.take().expect("a pipe").write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|e| format!("{}: {e}", words[0]))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("{words:?}: {}", text(&output.stderr))) }
}

fn dump() -> Vec<String> {
    let of = |words: &&[&str]| {
        let text = run(words).unwrap_or_default();
        // Times of the dump, and of elements' ends, are no rules.
        text.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>().join("\n")
    };
    DUMPS.iter().map(of).collect()
}

fn shown(json: &str, target: &str, node: NodeMeans) -> Preview {
    let action: Action = serde_json::from_str(json).expect(json);
    action.validate().expect(json);
    let context = PreviewContext {
        target: target.parse().expect("a prefix"),
        sources: vec!["198.51.100.7".parse().expect("an address"), "2001:db8::7".parse().expect("an address")],
        spoofed: false,
        spared: Vec::new(),
        node,
    };
    preview(&action, &context)
}

/// Runs the steps that are not there already; answers which have to be undone.
fn carry_out(shown: &Preview) -> Result<Vec<bool>, String> {
    let mut done = Vec::new();
    for (at, step) in shown.do_.iter().enumerate() {
        let there = shown.unless.get(at).is_some_and(|check| !check.is_empty() && run(check).is_ok());
        if !there {
            let input = shown.input.get(at);
            feed(step, input.map_or("", |input| &input.do_))?;
        }
        done.push(!there);
    }
    Ok(done)
}

fn undo(shown: &Preview, done: &[bool]) {
    for at in (0..shown.do_.len()).rev().filter(|at| done[*at]) {
        feed(&shown.undo[at], shown.input.get(at).map_or("", |input| &input.undo)).expect("undone");
    }
}

/// The words whose appearance in some dump shows that the action is in force.
fn check(json: &str, target: &str, expected: &[&str]) {
    check_at(json, target, expected, NodeMeans::default());
}

/// The same on a node that has or lacks this.
fn check_at(json: &str, target: &str, expected: &[&str], node: NodeMeans) {
    let shown = shown(json, target, node);
    let before = dump();
    let done = carry_out(&shown).unwrap_or_else(|e| panic!("{json}: {e}"));
    let during = dump().join("\n");
    for word in expected {
        assert!(during.contains(word), "{json}: {word:?} is not in force:\n{during}");
    }
    // A second time there is nothing to make, where the tool can tell.
    if !shown.unless.is_empty() {
        let again = carry_out(&shown).unwrap_or_else(|e| panic!("{json} again: {e}"));
        assert!(again.contains(&false), "{json}: made twice");
    }
    undo(&shown, &done);
    for ((now, then), words) in dump().iter().zip(&before).zip(DUMPS) {
        assert_eq!(now, then, "{json}: {words:?} after undoing");
    }
    println!("{json} for {target}: {} step(s) done and undone", shown.do_.len());
}

const V4: &str = "203.0.113.5/32";
const V6: &str = "2001:db8::5/128";

#[test]
fn what_is_shown_is_what_the_tools_do_and_undo() {
    if skip_without_root("what_is_shown_is_what_the_tools_do_and_undo") {
        return;
    }
    let netns = Netns::create("tools").expect("a namespace");
    netns
        .run(|| {
            // Whoever uses iptables first gets empty chains, which the tool never takes away again.
            for program in ["iptables", "ip6tables"] {
                run(&[program, "-P", "INPUT", "ACCEPT"]).expect("the tool");
            }
            iptables();
            check(
                r#"{"type":"ipset_ban","set":"banned"}"#,
                V4,
                &[
                    "create banned hash:net",
                    "add banned 198.51.100.7",
                    "add banned6 2001:db8::7",
                    "--match-set banned6 src",
                ],
            );
            check(
                r#"{"type":"null_route_source"}"#,
                V4,
                &["from 198.51.100.7 blackhole", "blackhole 198.51.100.7", "from 2001:db8::7 blackhole"],
            );
        })
        .expect("inside");
}

fn iptables() {
    for (json, target, expected) in [
        (
            r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#,
            V4,
            "-A INPUT -p udp -m comment --comment ftagent -j ftagent-",
        ),
        (r#"{"type":"iptables_drop_protocol","protocol":"gre"}"#, V6, "-A INPUT -p gre "),
        (r#"{"type":"iptables_drop_protocol","protocol":"esp"}"#, V4, "-A INPUT -p esp "),
        (r#"{"type":"iptables_drop_protocol","protocol":"icmp"}"#, V4, "-A INPUT -p icmp "),
        (r#"{"type":"iptables_drop_protocol","protocol":"icmpv6"}"#, V6, "-A INPUT -p ipv6-icmp "),
        (r#"{"type":"iptables_drop_source"}"#, V4, "-s 2001:db8::7/128 "),
        (r#"{"type":"iptables_drop_source","sources":["10.0.0.0/8"]}"#, V4, "-s 10.0.0.0/8 "),
        (r#"{"type":"iptables_drop_port","protocol":"udp","port":53}"#, V4, "--dport 53 "),
        (r#"{"type":"iptables_drop_port","protocol":"tcp","port":65535}"#, V6, "--dport 65535 "),
        (r#"{"type":"iptables_rate_limit_source","pps":100}"#, V4, "--hashlimit-above 100/sec"),
        (r#"{"type":"iptables_rate_limit_source","pps":1000000,"burst":1000000}"#, V6, "--hashlimit-mode srcip"),
        (r#"{"type":"iptables_rate_limit_source","pps":1}"#, V4, "--hashlimit-above 1/sec"),
        (r#"{"type":"iptables_limit_connections","connections":20}"#, V4, "--connlimit-above 20 --connlimit-mask 32"),
        (r#"{"type":"iptables_limit_connections","connections":100000}"#, V6, "--connlimit-mask 128"),
        (r#"{"type":"iptables_limit_syn","pps":1000}"#, V4, "--hashlimit-mode dstip"),
        (r#"{"type":"iptables_limit_syn","pps":7,"burst":9}"#, V6, "--hashlimit-above 7/sec"),
        (r#"{"type":"iptables_reject_protocol","protocol":"tcp"}"#, V4, "--reject-with tcp-reset"),
        (r#"{"type":"iptables_reject_protocol","protocol":"udp"}"#, V6, "--reject-with icmp6-port-unreachable"),
        (r#"{"type":"iptables_reject_protocol","protocol":"icmp"}"#, V4, "--reject-with icmp-port-unreachable"),
    ] {
        check(json, target, &[expected]);
    }
}

#[test]
fn the_words_of_tc_are_understood_by_it_in_each_way_that_the_kernel_has() {
    if skip_without_root("the_words_of_tc_are_understood_by_it_in_each_way_that_the_kernel_has") {
        return;
    }
    Netns::create("police").expect("a namespace").run(police).expect("the namespace is entered");
}

fn police() {
    // The agent's own command is no tool's.
    for (way, word) in [(PoliceWay::Police, "police"), (PoliceWay::Ifb, "tbf")] {
        let trial = police_trial(way);
        let made = trial.iter().map_while(|step| run(&step.run).map_err(|why| println!("{why}")).ok()).count();
        trial[..made].iter().rev().for_each(|step| drop(run(&step.undo).expect("undone")));
        if made < trial.len() {
            println!("skipped: the kernel has no {}", way.text());
            continue;
        }
        let police = PoliceMeans { ways: vec![way], lacking: Vec::new() };
        let node = NodeMeans { police: Some(police), ..NodeMeans::default() };
        let json = r#"{"type":"tc_police_interface","interface":"lo","bps":1000000000}"#;
        check_at(json, V4, &["clsact", word], node);
    }
}

#[test]
fn the_words_of_nftables_are_understood_by_it() {
    if skip_without_root("the_words_of_nftables_are_understood_by_it") {
        return;
    }
    let netns = Netns::create("nft").expect("a namespace");
    netns
        .run(|| {
            let table = "add table inet ftagent
                add chain inet ftagent network
                add chain inet ftagent transport
                add set inet ftagent blocked4_32 { type ipv4_addr; flags timeout; }
                add set inet ftagent blocked6_128 { type ipv6_addr; flags timeout; }";
            for line in table.lines() {
                run(&["nft", line]).expect("the table");
            }
            for (json, target) in [
                (r#"{"type":"nft_drop_protocol","protocol":"icmpv6"}"#, V6),
                (r#"{"type":"nft_drop_protocol","protocol":"udp"}"#, V4),
                (r#"{"type":"nft_drop_port","protocol":"tcp","port":80}"#, V4),
                (r#"{"type":"nft_drop_port","protocol":"udp","port":53,"side":"source"}"#, V6),
                (r#"{"type":"nft_drop_source"}"#, V4),
                (r#"{"type":"nft_rate_limit_source","pps":100}"#, V4),
            ] {
                let mut shown = shown(json, target, NodeMeans::default());
                let before = run(&["nft", "list", "ruleset"]).expect("the rules");
                for step in &shown.do_ {
                    run(step).unwrap_or_else(|e| panic!("{json}: {e}"));
                }
                assert_ne!(run(&["nft", "list", "ruleset"]).expect("the rules"), before, "{json}");
                let listed = run(&["nft", "-a", "list", "ruleset"]).expect("the rules");
                let handles: Vec<_> = listed
                    .lines()
                    .filter(|l| l.contains("counter"))
                    .filter_map(|l| l.rsplit_once("# handle ").map(|(_, handle)| handle.trim().to_owned()))
                    .collect();
                let mut handles = handles.into_iter();
                for undo in &mut shown.undo {
                    if let Some(last) = undo.last_mut().filter(|w| w.starts_with('<')) {
                        *last = handles.next().expect("a handle for each rule");
                    }
                    run(undo).unwrap_or_else(|e| panic!("{json}: {e}"));
                }
                assert_eq!(run(&["nft", "list", "ruleset"]).expect("the rules"), before, "{json}");
            }
        })
        .expect("inside");
}
