//! Actions of other tools in the running agent: real packets meet them, and nothing of them stays behind, however the
//! agent ends.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::skip_without_root;
use ftagent::status::Count;
use ftagent_common::api::{ExecutionOutcome, PoliceMeans, RuleExecution};
use ftagent_common::vocab::IncidentStatus;
use nix::sys::signal::Signal;

use crate::agent::{Agent, flood, program};
use crate::lab::Lab;

const RULES: &str = r#"
[response]
automatic = false
[[rule]]
name = "web"
trigger = { type = "any" }
action = { type = "iptables_drop_port", protocol = "tcp", port = 80 }
[[rule]]
name = "cookies"
trigger = { type = "any" }
action = { type = "syn_cookies" }
"#;

/// What XDP and nftables take, by the prefix and ports of the flood and not.
const NATIVE: &str = r#"
[response]
automatic = false
[[rule]]
name = "xdp source"
trigger = { type = "any" }
action = { type = "xdp_drop_source", sources = ["64.0.0.0/16"] }
[[rule]]
name = "xdp rate"
trigger = { type = "any" }
action = { type = "xdp_rate_limit_source", sources = ["65.0.0.0/16"], pps = 100 }
[[rule]]
name = "xdp port"
trigger = { type = "any" }
action = { type = "xdp_drop_port", protocol = "tcp", port = 80, side = "destination" }
[[rule]]
name = "nft source"
trigger = { type = "any" }
action = { type = "nft_drop_source", sources = ["66.0.0.0/16"] }
[[rule]]
name = "nft port"
trigger = { type = "any" }
action = { type = "nft_drop_port", protocol = "tcp", port = 81, side = "destination" }
"#;

struct Setup {
    // Ends first: it writes into its directory as long as it runs.
    agent: Agent,
    lab: Lab,
    dir: LabDir,
    before: String,
}

fn setup(name: &str) -> Option<Setup> {
    setup_with(name, RULES)
}

fn setup_with(name: &str, rules: &str) -> Option<Setup> {
    if skip_without_root(name) {
        return None;
    }
    let program = program("FTAGENT_BIN", "ftagent")?;
    let lab = Lab::new();
    let dir = LabDir::create("actions").expect("a directory");
    // Whoever uses iptables first gets empty chains, which the tool never takes away again.
    for words in ["iptables -P INPUT ACCEPT", "ip6tables -P INPUT ACCEPT", "sysctl -w net.ipv4.tcp_syncookies=0"] {
        tool(&lab, words);
    }
    let agent = Agent::new(program, dir.path(), &lab.edge, rules);
    let before = dump(&lab);
    Some(Setup { agent, lab, dir, before })
}

/// What a tool says in the edge's namespace.
fn tool(lab: &Lab, words: &str) -> String {
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let said = lab.edge.run(move || {
        let output = Command::new(&words[0]).args(&words[1..]).output().expect("runs");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    said.expect("inside")
}

fn dump(lab: &Lab) -> String {
    let all = ["iptables-save", "ip6tables-save", "sysctl net.ipv4.tcp_syncookies"].map(|words| tool(lab, words));
    // Times and counters are no rules.
    let lines = all.iter().flat_map(|text| text.lines()).filter(|l| !l.starts_with('#'));
    lines.map(|l| l.split(" [").next().unwrap_or(l).to_owned() + "\n").collect()
}

fn in_force(agent: &Agent) -> usize {
    let status = agent.ask("status").expect("an answer");
    let actions = status["engine"]["actions"].as_array().expect("actions");
    actions.iter().filter(|a| a["state"] == "in_force").count()
}

/// Packets that our rule on the port dropped.
fn dropped(lab: &Lab) -> u64 {
    let listed = tool(lab, "iptables -w 5 -nvxL");
    let line = listed.lines().find(|l| l.contains("DROP") && l.contains("dpt:80"));
    line.and_then(|l| l.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn executions(agent: &Agent) -> Vec<RuleExecution> {
    agent.incidents().into_iter().flat_map(|i| i.executions).collect()
}

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn rules_of_other_tools_drop_real_packets_and_are_undone_when_the_attack_ends() {
    let Some(mut setup) = setup("rules_of_other_tools_drop_real_packets_and_are_undone_when_the_attack_ends") else {
        return;
    };
    let agent = &mut setup.agent;
    agent.start();
    let flood = flood(&setup.lab, 50_000, Duration::from_secs(3));
    agent.wait("two actions in force", PATIENCE, || in_force(agent) == 2);
    agent.wait("packets that they drop", PATIENCE, || dropped(&setup.lab) > 5_000);
    assert!(tool(&setup.lab, "sysctl -n net.ipv4.tcp_syncookies").trim() == "1");
    flood.join().expect("no panic").expect("sent");
    agent.wait("resolved", PATIENCE, || agent.incidents()[0].status == IncidentStatus::Resolved);
    agent.wait("undone", PATIENCE, || dump(&setup.lab) == setup.before);
    agent.wait("told", PATIENCE, || executions(agent).len() == 4);
    let executions = executions(agent);
    for outcome in [ExecutionOutcome::Applied, ExecutionOutcome::Undone] {
        let of: Vec<_> = executions.iter().filter(|e| e.outcome == outcome).collect();
        assert!(of.len() == 2 && of.iter().all(|e| e.output.contains("exit 0")), "{executions:#?}");
    }
    for e in executions.iter().filter(|e| e.outcome == ExecutionOutcome::Applied) {
        println!("{}: {} us after the opening, {} command(s)", e.action.kind(), e.latency_us, e.commands.len());
    }
}

#[test]
fn a_killed_agents_heir_keeps_or_undoes_what_other_tools_hold() {
    let Some(mut setup) = setup("a_killed_agents_heir_keeps_or_undoes_what_other_tools_hold") else { return };
    let config = std::fs::read_to_string(&setup.agent.config).expect("the configuration");
    let agent = &mut setup.agent;
    agent.start();
    let flood = flood(&setup.lab, 50_000, Duration::from_secs(8));
    agent.wait("two actions in force", PATIENCE, || in_force(agent) == 2);
    let during = dump(&setup.lab);
    assert_ne!(during, setup.before);
    agent.kill();
    agent.start();
    agent.wait("two actions in force again", PATIENCE, || in_force(agent) == 2);
    assert_eq!(dump(&setup.lab), during, "once each");
    agent.kill();
    // While nobody is there the rules are taken out of the configuration.
    let without = config.split("[[rule]]").next().expect("the beginning");
    std::fs::write(&agent.config, without).expect("written");
    agent.start();
    agent.wait("undone", PATIENCE, || dump(&setup.lab) == setup.before);
    flood.join().expect("no panic").expect("sent");
}

#[test]
fn an_agent_that_is_stopped_leaves_nothing_in_other_tools() {
    let Some(mut setup) = setup("an_agent_that_is_stopped_leaves_nothing_in_other_tools") else { return };
    let agent = &mut setup.agent;
    agent.start();
    let flood = flood(&setup.lab, 50_000, Duration::from_secs(4));
    agent.wait("two actions in force", PATIENCE, || in_force(agent) == 2);
    agent.signal(Signal::SIGTERM);
    agent.wait("undone by the one that is stopped", PATIENCE, || dump(&setup.lab) == setup.before);
    flood.join().expect("no panic").expect("sent");
}

#[test]
fn detaching_undoes_what_a_killed_agent_left_in_other_tools() {
    let Some(mut setup) = setup("detaching_undoes_what_a_killed_agent_left_in_other_tools") else { return };
    let agent = &mut setup.agent;
    agent.start();
    let flood = flood(&setup.lab, 50_000, Duration::from_secs(4));
    agent.wait("two actions in force", PATIENCE, || in_force(agent) == 2);
    agent.kill();
    assert_ne!(dump(&setup.lab), setup.before);
    let output = agent.run(&["detach"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(dump(&setup.lab), setup.before, "detached");
    assert!(setup.dir.path().exists());
    flood.join().expect("no panic").expect("sent");
}

/// The whole interface at a hundred frames a second.
const LIMITED: &str = r#"
[response]
automatic = false
[[rule]]
name = "slow"
trigger = { type = "any" }
action = { type = "tc_police_interface", interface = "edge0", bps = 80000, burst_bytes = 4096 }
"#;

/// Packets that came as far as IPv4 of the edge.
fn received(lab: &Lab) -> u64 {
    let snmp = tool(lab, "cat /proc/net/snmp");
    let mut lines = snmp.lines().filter(|l| l.starts_with("Ip: ")).map(|l| l.split(' ').collect::<Vec<_>>());
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let at = names.iter().position(|name| *name == "InReceives").expect("a column");
    values[at].parse().expect("a number")
}

#[test]
fn an_interface_is_limited_in_the_way_that_the_kernel_has_and_no_longer() {
    let name = "an_interface_is_limited_in_the_way_that_the_kernel_has_and_no_longer";
    let Some(mut setup) = setup_with(name, LIMITED) else { return };
    let agent = &mut setup.agent;
    agent.start();
    let means = || serde_json::from_value::<PoliceMeans>(agent.ask("status")?["means"]["police"].clone()).ok();
    agent.wait("what the kernel has", PATIENCE, || means().is_some());
    let means = means().expect("tried");
    println!("{}", means.text());
    let traffic_control = || {
        let words = ["tc qdisc show dev edge0", "tc filter show dev edge0 ingress", "ip -o link show type ifb"];
        words.map(|words| tool(&setup.lab, words)).concat()
    };
    let before = traffic_control();
    let flood = flood(&setup.lab, 50_000, Duration::from_secs(4));
    agent.wait("the limit in force", PATIENCE, || in_force(agent) == 1);
    assert_ne!(traffic_control(), before);
    let seen = |agent: &Agent| {
        let verdicts = agent.ask("status").expect("an answer")["verdicts"]["edge0"].clone();
        let reasons: BTreeMap<String, Count> = serde_json::from_value(verdicts).expect("counts");
        reasons.values().map(|count| count.packets).sum::<u64>()
    };
    let (passed_before, seen_before) = (received(&setup.lab), seen(agent));
    agent.wait("so many more", PATIENCE, || seen(agent) > seen_before + 30_000);
    let passed = received(&setup.lab) - passed_before;
    // 30,000 frames of 60 bytes and more in 600 ms: a hundred and the burst of seventy, if nothing holds the flood up.
    assert!(passed < 3_000, "{passed} packets of 30,000 came through");
    println!("{passed} packets of 30,000 came through");
    flood.join().expect("no panic").expect("sent");
    let told = executions(agent);
    assert!(told.iter().all(|e| e.outcome == ExecutionOutcome::Applied), "{told:#?}");
    agent.wait("undone with the attack", PATIENCE, || traffic_control() == before);
    agent.wait("told", PATIENCE, || executions(agent).len() == 2);
}

/// From the opening of an incident, by the engine's clock, until the rule stands in the kernel's maps or in nftables.
/// Figures are printed and not judged: the machine is shared.
#[test]
fn the_time_from_the_opening_to_rules_of_xdp_and_nftables_is_printed() {
    let name = "the_time_from_the_opening_to_rules_of_xdp_and_nftables_is_printed";
    let runs = std::env::var("FTAGENT_ACTION_RUNS").map_or(1, |n| n.parse::<usize>().expect("a number"));
    let mut all: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
    for _ in 0..runs {
        // An agent of its own: an attack that comes back opens its incident again instead of a new one.
        let Some(mut setup) = setup_with(name, NATIVE) else { return };
        let agent = &mut setup.agent;
        agent.start();
        let flood = flood(&setup.lab, 50_000, Duration::from_secs(2));
        agent.wait("five rules in force", PATIENCE, || executions(agent).len() == 5);
        for one in executions(agent) {
            assert_eq!(one.outcome, ExecutionOutcome::Applied, "{one:?}");
            all.entry(one.action.kind()).or_default().push(one.latency_us);
        }
        flood.join().expect("no panic").expect("sent");
    }
    println!(
        "{:<24} {:>5} {:>9} {:>9} {:>9}  milliseconds after the opening",
        "action", "runs", "p50", "p99", "longest"
    );
    for (kind, mut took) in all {
        took.sort_unstable();
        let ms = |share: usize| took[(took.len() * share).div_ceil(100).max(1) - 1] as f64 / 1e3;
        println!("{kind:<24} {:>5} {:>9.1} {:>9.1} {:>9.1}", took.len(), ms(50), ms(99), ms(100));
    }
}
