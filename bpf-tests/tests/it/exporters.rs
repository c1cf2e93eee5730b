//! Routers that export to the agent's own binary: sockets, status, metrics, and an incident of traffic that never passes.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::netns::{Netns, NetnsError};
use bpf_tests::skip_without_root;
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::{AttackFamily, IncidentStatus};
use serde_json::Value;

use crate::agent::{Agent, program};
use crate::lab::{EDGE_V4, Lab, WAN_V4};

const PORT: u16 = 2_055;
/// Behind the router, and not behind this node.
const TARGET: [u8; 4] = [203, 0, 113, 5];

fn config() -> String {
    let [a, b, c, d] = EDGE_V4;
    let router = Ipv4Addr::from(WAN_V4);
    format!(
        "[[flow_exporter]]\nlisten = \"{a}.{b}.{c}.{d}:{PORT}\"\nexporters = [\"{router}\", \"192.0.2.77\"]\n\
         prefixes = [\"203.0.113.0/24\"]\nsilent_secs = 5\n[metrics]\nlisten = \"{a}.{b}.{c}.{d}:9273\"\n"
    )
}

/// NetFlow v5 of `count` flows of one forged SYN each, one packet in `sampling` looked at.
fn syns(sequence: u32, sampling: u16, count: u16) -> Vec<u8> {
    let mut datagram = vec![0, 5];
    datagram.extend(count.to_be_bytes());
    let unix = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs() as u32);
    for word in [500_000, unix, 0, sequence] {
        datagram.extend(u32::to_be_bytes(word));
    }
    datagram.extend([0, 0]);
    datagram.extend(sampling.to_be_bytes());
    for n in 0..u32::from(count) {
        let random = (sequence + n).wrapping_mul(2_654_435_761);
        datagram.extend((random % 0xdfff_ffff + 1).to_be_bytes());
        datagram.extend(TARGET);
        datagram.extend([0, 0, 0, 0, 0, 12, 0, 13]);
        for word in [1, 40, 499_990, 499_990] {
            datagram.extend(u32::to_be_bytes(word));
        }
        datagram.extend([(random >> 8) as u8 | 4, random as u8, 0, 80]);
        datagram.extend([0, 2, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    datagram
}

/// Sends `rounds` × 10 datagrams of 30 flows, 20 ms apart, from `netns`.
fn export(netns: &Netns, rounds: u32, from: u32, sampling: u16) -> JoinHandle<Result<(), NetnsError>> {
    let send = move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for n in 0..rounds * 10 {
            let sequence = (from + n) * 30;
            socket.send_to(&syns(sequence, sampling, 30), (Ipv4Addr::from(EDGE_V4), PORT)).expect("sent");
            if n % 10 == 9 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    };
    netns.spawn(send).expect("a thread in the namespace")
}

fn exporter(status: &Value, address: &str) -> Value {
    let exporters = status["flow_exporters"][0]["exporters"].as_array().cloned().unwrap_or_default();
    exporters.into_iter().find(|e| e["address"] == address).unwrap_or_default()
}

#[test]
fn a_router_that_exports_is_listened_to_by_the_real_agent() {
    if skip_without_root("a_router_that_exports_is_listened_to_by_the_real_agent") {
        return;
    }
    let Some(program) = program("FTAGENT_BIN", "ftagent") else { return };
    let lab = Lab::new();
    let dir = LabDir::create("exporters").expect("a directory");
    let mut agent = Agent::new(program, dir.path(), &lab.edge, &config());
    agent.start();
    let router = Ipv4Addr::from(WAN_V4).to_string();

    // Ordinary: 1,500 flows in a second and a half, of one packet each.
    export(&lab.wan, 5, 0, 0).join().expect("no panic").expect("sent");
    agent.wait("seen", Duration::from_secs(5), || {
        let status = agent.ask("status").expect("an answer");
        exporter(&status, &router)["counted"] == 1_500
    });
    assert!(agent.incidents().is_empty(), "nothing is wrong yet: {:?}", agent.incidents());

    // Three datagrams are missing, and then each flow stands for a hundred.
    let flood = export(&lab.wan, 400, 53, 100);
    agent.wait("an incident", Duration::from_secs(10), || {
        agent.incidents().first().is_some_and(|report| report.family == AttackFamily::SynFlood)
    });
    let report = agent.incidents().remove(0);
    assert_eq!((report.target.to_string(), report.dropped_packets), ("203.0.113.5/32".to_owned(), 0));
    let words = report.explanation.join("\n");
    println!("{words}");
    assert!(words.contains(&format!("seen by exporter {router} (netflow5)")), "{words}");
    assert!(words.contains("in by interface 12 (100 %)"), "{words}");
    assert_eq!(agent.rules(), 0, "no rule of this node concerns it");

    let status = agent.ask("status").expect("an answer");
    let shown = exporter(&status, &router);
    println!("{shown}");
    assert_eq!((&shown["lost_records"], &shown["malformed"]), (&Value::from(90), &Value::from(0)));
    assert_eq!(shown["sampling_rate"], 100);
    assert_eq!(status["engine"]["active_incidents"], 1);
    let text = String::from_utf8(agent.run(&["status"]).stdout).expect("text");
    assert!(text.lines().any(|line| line.starts_with("exporter") && line.contains(&router)), "{text}");

    let lost = format!("listen=\"10.99.0.1:{PORT}\",exporter=\"{router}\",unit=\"records\"}} 90");
    // What is scraped is two seconds old at most.
    agent.wait("in the metrics", Duration::from_secs(4), || {
        let metrics = lab.edge.run(scrape).expect("a thread in the namespace");
        metrics.contains(&lost) && metrics.contains("ftagent_incidents_active{family=\"syn_flood\"} 1")
    });

    // By hand, as any other incident; the daemon's status of exporters is a second old at most.
    let uuid = report.uuid.to_string();
    assert!(agent.run(&["incidents", &uuid, "--resolve"]).status.success());
    agent.wait("resolved", Duration::from_secs(5), || {
        let ended = |r: &IncidentReport| r.uuid == report.uuid && r.status == IncidentStatus::Resolved;
        agent.incidents().iter().any(ended)
    });
    flood.join().expect("no panic").expect("sent");
    agent.wait("told of the silence", Duration::from_secs(30), || {
        let status = agent.ask("status").expect("an answer");
        let warnings = status["warnings"].to_string();
        warnings.contains("192.0.2.77") && warnings.contains("never sent anything") && warnings.contains("silent for")
    });
}

fn scrape() -> String {
    use std::io::{Read as _, Write as _};
    let mut tcp = std::net::TcpStream::connect((Ipv4Addr::from(EDGE_V4), 9_273)).expect("connected");
    tcp.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("asked");
    let mut page = String::new();
    tcp.read_to_string(&mut page).expect("a page");
    page
}

#[test]
fn an_address_that_is_taken_keeps_the_agent_from_starting() {
    if skip_without_root("an_address_that_is_taken_keeps_the_agent_from_starting") {
        return;
    }
    let Some(program) = program("FTAGENT_BIN", "ftagent") else { return };
    let lab = Lab::new();
    let dir = LabDir::create("exporters").expect("a directory");
    let agent = Agent::new(program, dir.path(), &lab.edge, &config());
    let taken = lab.edge.run(|| UdpSocket::bind((Ipv4Addr::from(EDGE_V4), PORT)).expect("free"));
    let _taken = taken.expect("a thread in the namespace");
    let output = agent.run(&["run"]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && words.contains("flow_exporter: cannot listen on 10.99.0.1:2055"), "{words}");
}
