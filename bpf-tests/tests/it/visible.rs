//! What the agent shows of its datapath is what the datapath did.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::clock::now;
use bpf_tests::generator::{Bounds, Generator, Pace, Vary};
use bpf_tests::packet::PacketBuilder;
use bpf_tests::skip_without_root;
use serde_json::Value;

use crate::agent::{Agent, flood, program};
use crate::lab::{EDGE_MAC, EDGE_V4, Lab, WAN_MAC};

const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9_477);

fn page(lab: &Lab) -> String {
    let fetch = || -> std::io::Result<String> {
        let mut tcp = TcpStream::connect(METRICS)?;
        tcp.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        tcp.read_to_string(&mut text)?;
        Ok(text)
    };
    lab.edge.run(fetch).expect("inside").expect("a page")
}

/// Sends UDP of sources out of `prefix` in turn.
fn send_from(lab: &Lab, prefix: &str, frames: u64) {
    let vary = Vary { sources: Some(prefix.parse().expect("a prefix")), ..Vary::default() };
    let frame = PacketBuilder::v4([198, 51, 100, 1], EDGE_V4).macs(WAN_MAC, EDGE_MAC).udp(1_000, 2_000).build();
    let device = lab.wan0.index;
    let work = move || {
        let mut generator = Generator::load(&frame, &vary, 7).expect("the generator loads");
        let bounds = Bounds { frames, time: Duration::from_secs(5), stop: None, began: None };
        generator.send(device, Pace::PerSecond(4_000), bounds).expect("sends").arrived()
    };
    assert_eq!(lab.wan.run(work).expect("inside"), frames);
}

#[test]
fn lists_distinct_sources_and_left_out_stages_are_shown_as_they_are() {
    if skip_without_root("lists_distinct_sources_and_left_out_stages_are_shown_as_they_are") {
        return;
    }
    let Some(program) = program("FTAGENT_BIN", "ftagent") else { return };
    let lab = Lab::new();
    let dir = LabDir::create("visible").expect("a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let (bad, watched) = (file("bad.txt", "198.51.100.0/24\nno prefix\n"), file("watched.txt", "203.0.113.0/24\n"));
    let extra = format!(
        "[datapath]\nwithout = [\"tunnels\"]\n[metrics]\nlisten = \"{METRICS}\"\n\
         [[lists]]\nname = \"bad\"\npath = {bad:?}\n\
         [[lists]]\nname = \"watched\"\npath = {watched:?}\naction = \"evaluate\"\n"
    );
    let mut agent = Agent::new(program, dir.path(), &lab.edge, &extra);
    agent.start();
    let list = |status: &Value, name: &str| {
        let lists = status["lists"].as_array().expect("lists");
        lists.iter().find(|list| list["name"] == name).expect(name).clone()
    };
    agent.wait("both lists loaded", Duration::from_secs(10), || {
        agent.ask("status").is_some_and(|s| ["bad", "watched"].iter().all(|name| list(&s, name)["loaded"] == true))
    });
    let status = agent.ask("status").expect("an answer");
    assert_eq!(status["datapath"]["left_out"], serde_json::json!(["tunnels"]));
    assert_eq!(
        (list(&status, "bad")["packets"].as_u64(), &list(&status, "bad")["last_match_secs"]),
        (Some(0), &Value::Null)
    );
    assert_eq!(list(&status, "bad")["skipped"], 1);
    assert!(list(&status, "bad")["loaded_at"].as_str().is_some_and(|at| at.starts_with("20")));
    let seen = |status: &Value| status["engine"]["targets"][0]["distinct_sources"].as_u64().unwrap_or(0);
    assert_eq!(seen(&status), 0);

    // The tables of both may still be on their way into the kernel.
    agent.wait("a listed source dropped", Duration::from_secs(10), || {
        send_from(&lab, "198.51.100.0/24", 10);
        agent.ask("status").is_some_and(|s| list(&s, "bad")["packets"].as_u64() > Some(0))
    });
    let packets =
        |name: &str| list(&agent.ask("status").expect("an answer"), name)["packets"].as_u64().expect("a number");
    let before = (packets("bad"), packets("watched"));
    let began = now();
    send_from(&lab, "198.51.100.0/24", 300);
    send_from(&lab, "203.0.113.0/24", 200);
    assert_eq!((packets("bad"), packets("watched")), (before.0 + 300, before.1 + 200), "every frame counts once");
    let status = agent.ask("status").expect("an answer");
    let since_secs = began.elapsed().as_secs();
    assert!(list(&status, "bad")["last_match_secs"].as_u64() <= Some(5 + since_secs), "{since_secs} s: {status}");
    // UDP without payload: 42 bytes.
    assert_eq!(list(&status, "bad")["bytes"].as_u64(), packets("bad").checked_mul(42));

    // Each address of a /21 twice in a second: the estimate's error is 10 %. It says what the last second or two showed,
    // and on a busy machine the question may come later.
    agent.wait("about 2,048 sources", Duration::from_secs(10), || {
        send_from(&lab, "198.18.0.0/21", 4_000);
        let seen = agent.ask("status").map_or(0, |s| seen(&s));
        (1_400..2_700).contains(&seen)
    });
    agent.wait("the metrics followed", Duration::from_secs(5), || {
        let page = page(&lab);
        page.contains(&format!("ftagent_list_packets_total{{list=\"bad\",action=\"block\"}} {}\n", packets("bad")))
            && page.contains("ftagent_target_sources{target=\"10.99.0.1\"} ")
            && page.contains("ftagent_interface_info{interface=\"edge0\",mode=\"native\",program=\"ftagent_xdp\"} 1\n")
    });

    let flood = flood(&lab, 50_000, Duration::from_secs(4));
    // All the flood's sources differ; a busy machine sends it more slowly.
    agent.wait("an incident of many sources", Duration::from_secs(6), || {
        agent.incidents().first().and_then(|i| i.distinct_sources).is_some_and(|sources| sources > 10_000)
    });
    let incident = agent.incidents().remove(0);
    let words = format!("about {} distinct sources", incident.distinct_sources.expect("there"));
    assert!(incident.explanation.iter().any(|line| line.starts_with(&words)), "{:?}", incident.explanation);
    flood.join().expect("no panic").expect("sent");
}

#[test]
fn an_interface_that_falls_silent_is_reported_until_frames_come_again() {
    if skip_without_root("an_interface_that_falls_silent_is_reported_until_frames_come_again") {
        return;
    }
    let Some(program) = program("FTAGENT_BIN", "ftagent") else { return };
    let lab = Lab::new();
    let dir = LabDir::create("silent").expect("a directory");
    let extra = format!("silent_secs = 5\n[metrics]\nlisten = \"{METRICS}\"\n");
    let mut agent = Agent::new(program, dir.path(), &lab.edge, &extra);
    agent.start();
    let warned = || {
        let warnings = agent.ask("status").map(|status| status["warnings"].to_string()).unwrap_or_default();
        warnings.contains("edge0: had traffic, and has seen no frame for ")
    };
    let metric = |value: u8| page(&lab).contains(&format!("ftagent_interface_silent{{interface=\"edge0\"}} {value}\n"));
    assert!(!warned(), "what never had traffic is not silent");
    send_from(&lab, "203.0.113.0/24", 50);
    agent.wait("frames counted", Duration::from_secs(3), || {
        let status = agent.ask("status");
        status.is_some_and(|s| s["engine"]["interfaces"][0]["idle_secs"].as_u64().is_some_and(|idle| idle <= 1))
    });
    assert!(!warned() && metric(0));
    // The two ends greet each other for a while: neighbours and groups of IPv6.
    agent.wait("silence", Duration::from_secs(40), warned);
    agent.wait("silence in the metrics", Duration::from_secs(3), || metric(1));
    send_from(&lab, "203.0.113.0/24", 50);
    agent.wait("frames again", Duration::from_secs(3), || !warned() && metric(0));
    // Of this target five minutes of calm are to be learnt, of which it had seconds.
    let baseline = agent.ask("status").expect("an answer")["engine"]["baseline"].clone();
    assert_eq!(
        (&baseline["learning"], baseline["learning_targets"].as_u64()),
        (&true.into(), baseline["targets"].as_u64())
    );
    assert!(baseline["targets"] == 0 || baseline["learning_left_secs"].as_u64().is_some_and(|left| left > 200));
}
