//! The agent where no program is attached, and where the maps have no room: other rungs carry the rules, on real packets.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::skip_without_root;

use crate::agent::{Agent, program};
use crate::lab::{EDGE_V4, Lab};

struct Setup {
    agent: Agent,
    lab: Lab,
    _dir: LabDir,
}

/// An agent with `attach` for the lab's interface, and `extra` in its file.
fn setup(name: &str, attach: &str, extra: &str) -> Option<Setup> {
    if skip_without_root(name) {
        return None;
    }
    let program = program("FTAGENT_BIN", "ftagent")?;
    let lab = Lab::new();
    let dir = LabDir::create("fallback").expect("a directory");
    let agent = Agent::new(program, dir.path(), &lab.edge, extra);
    let text = std::fs::read_to_string(&agent.config).expect("a configuration");
    let interface = format!("name = \"edge0\"\nattach = {attach:?}\n");
    std::fs::write(&agent.config, text.replace("name = \"edge0\"\n", &interface)).expect("room");
    Some(Setup { agent, lab, _dir: dir })
}

impl Setup {
    fn at(netns: &bpf_tests::netns::Netns, words: &[&str]) -> String {
        let inside = format!("--net={}", netns.path().display());
        let output = Command::new("nsenter").arg(inside).args(words).output().expect("runs");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn ruleset(&self) -> String {
        Self::at(&self.lab.edge, &["nft", "-s", "list", "ruleset"])
    }

    /// Whether datagrams of this address of the far end arrive.
    fn arrives(&self, from: [u8; 4]) -> bool {
        let socket = self.lab.edge.run(|| UdpSocket::bind((std::net::Ipv4Addr::from(EDGE_V4), 0)).expect("a socket"));
        let socket = socket.expect("inside");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let to = socket.local_addr().expect("an address");
        let sent = self.lab.wan.run(|| {
            let sender = UdpSocket::bind((std::net::Ipv4Addr::from(from), 0)).expect("a socket");
            (0..3).for_each(|_| _ = sender.send_to(b"hello", to).expect("sent"));
        });
        sent.expect("inside");
        socket.recv(&mut [0; 16]).is_ok()
    }

    fn do_run(&self, words: &[&str]) {
        let output = self.agent.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn fallback(&self) -> serde_json::Value {
        self.agent.ask("status").expect("an answer")["datapath"]["fallback"].clone()
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        self.agent.wait(what, Duration::from_secs(20), done);
    }
}

const FIRST: [u8; 4] = [198, 51, 100, 1];

#[test]
fn without_a_program_each_rung_blocks_and_nothing_stays() {
    for (order, rung, family) in
        [("[\"nftables_ingress\", \"nftables\"]", "nftables_ingress", "netdev"), ("[\"nftables\"]", "nftables", "inet")]
    {
        let extra = format!("[datapath]\nfallback = {order}\n");
        let name = "without_a_program_each_rung_blocks_and_nothing_stays";
        let Some(mut setup) = setup(name, "nftables", &extra) else { return };
        Setup::at(&setup.lab.wan, &["ip", "address", "add", "198.51.100.1/32", "dev", "wan0"]);
        Setup::at(&setup.lab.edge, &["nft", "add", "table", "netdev", "somebody"]);
        let before = setup.ruleset();
        setup.agent.start();
        assert!(setup.arrives(FIRST), "{rung}: nothing is blocked yet");
        let fallback = setup.fallback();
        assert_eq!(fallback["rung"], rung, "{fallback}");
        assert!(fallback["lost"].as_array().is_some_and(|lost| lost.len() > 2), "{fallback}");
        let shown = setup.agent.run(&["status"]).stdout;
        assert!(String::from_utf8_lossy(&shown).contains(&format!("fall-back  {rung} (edge0 without a program)")));

        setup.do_run(&["block", "198.51.100.0/24", "--ttl", "4s"]);
        setup.wait("blocked", || !setup.arrives(FIRST));
        assert!(setup.ruleset().contains(&format!("table {family} ftagent")), "{}", setup.ruleset());
        setup.do_run(&["allow", "198.51.100.1/32"]);
        setup.wait("allowed", || setup.arrives(FIRST));
        setup.do_run(&["allow", "198.51.100.1/32", "--remove"]);
        setup.wait("blocked", || !setup.arrives(FIRST));
        // Nobody is there, and the kernel ends it.
        setup.agent.kill();
        assert!(!setup.arrives(FIRST), "{rung}: a dead agent's block goes on");
        std::thread::sleep(Duration::from_secs(4));
        assert!(setup.arrives(FIRST), "{rung}: until its end");

        setup.agent.start();
        setup.do_run(&["block", "198.51.100.1", "--ttl", "1h"]);
        setup.wait("blocked", || !setup.arrives(FIRST));
        setup.do_run(&["unblock", "198.51.100.1"]);
        setup.wait("free", || setup.arrives(FIRST));
        assert_eq!(setup.ruleset(), before, "{rung}: as it was");
        setup.do_run(&["block", "198.51.100.1", "--ttl", "1h"]);
        setup.agent.kill();
        setup.do_run(&["detach"]);
        assert_eq!(setup.ruleset(), before, "{rung}: detached");
    }
}

#[test]
fn rules_that_the_maps_have_no_room_for_are_carried_at_ingress() {
    let name = "rules_that_the_maps_have_no_room_for_are_carried_at_ingress";
    let Some(mut setup) = setup(name, "auto", "[datapath]\nmax_blocks = 16\n") else { return };
    for n in 1..=20 {
        Setup::at(&setup.lab.wan, &["ip", "address", "add", &format!("198.51.100.{n}/32"), "dev", "wan0"]);
    }
    let before = setup.ruleset();
    setup.agent.start();
    for n in 1..=20 {
        // The last ones answer that they are not in the maps.
        setup.agent.run(&["block", &format!("198.51.100.{n}"), "--ttl", "1h"]);
    }
    let all = |blocked: bool| (1..=20).all(|n| setup.arrives([198, 51, 100, n]) != blocked);
    setup.wait("all blocked", || all(true));
    let (fallback, ruleset) = (setup.fallback(), setup.ruleset());
    assert_eq!(fallback["rung"], "nftables_ingress", "{fallback}");
    assert!(fallback["why"].as_str().is_some_and(|why| why.contains("not in the kernel's maps")), "{fallback}");
    let (in_maps, carried) = (setup.agent.ask("status").expect("an answer"), ruleset.matches("198.51.100.").count());
    assert!((1..=8).contains(&carried), "{carried} of 20 are carried beside the maps: {ruleset}");
    let blocks = in_maps["maps"].as_array().into_iter().flatten().find(|map| map["name"] == "BLOCK4").cloned();
    println!("{carried} of 20 blocks beside the maps; BLOCK4: {blocks:?}");
    // Room again: what was beside the maps goes into them.
    for n in 1..=10 {
        // New entries come before removals, so that the first of these is told that the map is still full.
        setup.agent.run(&["unblock", &format!("198.51.100.{n}")]);
    }
    setup.wait("all in the maps", || setup.ruleset() == before);
    assert!((11..=20).all(|n| !setup.arrives([198, 51, 100, n])) && setup.arrives([198, 51, 100, 3]));
    assert!(setup.fallback().is_null());
}

/// Tables of routing, rules, and filters at the ingress of the lab's interface.
fn routing_and_filters(setup: &Setup) -> String {
    let all: [&[&str]; 6] = [
        &["ip", "-4", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["tc", "qdisc", "show", "dev", "edge0"],
        &["tc", "filter", "show", "dev", "edge0", "ingress"],
    ];
    let setting = std::fs::read_to_string;
    let filter = setup.lab.edge.run(|| setting("/proc/sys/net/ipv4/conf/edge0/rp_filter")).expect("inside");
    all.map(|words| Setup::at(&setup.lab.edge, words)).concat() + &filter.expect("a setting")
}

#[test]
fn null_routes_drop_sources_but_for_the_allowlist_and_nothing_stays() {
    let name = "null_routes_drop_sources_but_for_the_allowlist_and_nothing_stays";
    let Some(mut setup) = setup(name, "nftables", "[datapath]\nfallback = [\"null_route\"]\n") else { return };
    for n in 1..=2 {
        Setup::at(&setup.lab.wan, &["ip", "address", "add", &format!("198.51.100.{n}/32"), "dev", "wan0"]);
    }
    let second = [198, 51, 100, 2];
    let before = routing_and_filters(&setup);
    setup.agent.start();
    assert!(setup.arrives(FIRST), "nothing is blocked yet");
    let fallback = setup.fallback();
    assert_eq!(fallback["rung"], "null_route", "{fallback}");
    assert_eq!(routing_and_filters(&setup), before, "nothing is needed yet");

    setup.do_run(&["block", "198.51.100.0/24", "--ttl", "1h"]);
    setup.wait("blocked", || !setup.arrives(FIRST) && !setup.arrives(second));
    setup.do_run(&["allow", "198.51.100.1/32"]);
    setup.wait("allowed", || setup.arrives(FIRST) && !setup.arrives(second));
    // A limit is none, and that is said.
    setup.do_run(&["block", "203.0.113.9", "--rate", "10pps", "--ttl", "1h"]);
    setup.wait("named", || setup.fallback()["not_in_force"].as_array().is_some_and(|rules| rules.len() == 1));
    let shown = setup.agent.run(&["status"]).stdout;
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(shown.contains("NOT IN FORCE: rule") && shown.contains("can neither limit"), "{shown}");
    // The kernel knows no end of a route: the agent does.
    setup.do_run(&["unblock", "198.51.100.0/24"]);
    setup.wait("free", || setup.arrives(second));
    assert_eq!(routing_and_filters(&setup), before, "as it was");
    setup.do_run(&["block", "198.51.100.2", "--ttl", "2s"]);
    setup.wait("blocked", || !setup.arrives(second));
    setup.wait("over", || setup.arrives(second));
    assert_eq!(routing_and_filters(&setup), before, "over");

    // A killed agent's routes stay until its next start, which has the rules still and then not.
    setup.do_run(&["block", "198.51.100.2", "--ttl", "1h"]);
    setup.wait("blocked", || !setup.arrives(second));
    setup.agent.kill();
    assert!(!setup.arrives(second));
    setup.agent.start();
    assert!(!setup.arrives(second), "taken over");
    setup.agent.kill();
    setup.do_run(&["detach"]);
    assert!(setup.arrives(second), "detached");
    assert_eq!(routing_and_filters(&setup), before, "detached");
}

#[test]
fn where_traffic_control_lacks_its_classifiers_null_routes_take_over() {
    let name = "where_traffic_control_lacks_its_classifiers_null_routes_take_over";
    let Some(mut setup) = setup(name, "nftables", "[datapath]\nfallback = [\"tc\", \"null_route\"]\n") else { return };
    Setup::at(&setup.lab.wan, &["ip", "address", "add", "198.51.100.1/32", "dev", "wan0"]);
    let before = routing_and_filters(&setup);
    setup.agent.start();
    assert_eq!(routing_and_filters(&setup), before, "what was tried is gone");
    let fallback = setup.fallback();
    if fallback["rung"] == "null_route" {
        let why = fallback["skipped"][0][1].as_str().unwrap_or_default();
        assert!(why.contains("cls_flower") && why.contains("cls_u32"), "{fallback}");
        println!("{why}");
    } else {
        assert_eq!(fallback["rung"], "tc", "{fallback}");
    }
    setup.do_run(&["block", "198.51.100.1", "--ttl", "1h"]);
    setup.wait("blocked", || !setup.arrives(FIRST));
    // An agent that is told to stop takes away what nobody else would end.
    setup.agent.signal(nix::sys::signal::Signal::SIGTERM);
    setup.wait("taken away", || routing_and_filters(&setup) == before);
    setup.agent.kill();
    assert!(setup.arrives(FIRST), "stopped");
    assert_eq!(routing_and_filters(&setup), before, "stopped");
}
