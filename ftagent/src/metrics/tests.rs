use std::collections::{BTreeMap, BTreeSet};

use ftagent_common::abi::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::lists::ListAction;
use crate::sync::spool::{Losses, SpoolStatus};

fn full() -> Snapshot {
    let mut counters = InterfaceCounters::default();
    counters.reasons[Reason::BlockedSource.index()] = Counter { packets: 7, bytes: 700 };
    counters.classes[TrafficClass::Udp.index()].dropped = Counter { packets: 7, bytes: 700 };
    let mut ticks = TickTimes::default();
    for us in [50, 100, 101, 3_000_000] {
        ticks.record(Duration::from_micros(us));
    }
    Snapshot {
        version: "0.1.0",
        mode: Some(Mode::Enforce),
        interfaces: vec![("eth0".into(), counters), ("ev\"il\\\n".into(), InterfaceCounters::default())],
        traffic: vec![traffic("eth0", Some(75)), traffic("eth1", None)],
        baseline: BaselineReport { targets: 9, learning_targets: 2, ..BaselineReport::default() },
        targets: 3,
        top_targets: (0..100).map(|n| (IpAddr::from([192, 0, 2, n]), Flow::default())).collect(),
        attached: vec![InterfaceReport {
            name: "eth0".into(),
            serves: vec!["eth0.7".into()],
            mode: ftagent_common::vocab::AttachMode::Native,
            program: "ftagent_xdp_frags".into(),
            reason: String::new(),
            link_id: Some(1),
            program_id: Some(2),
        }],
        target_sources: (0..100).map(|n| (IpAddr::from([192, 0, 2, n]), 1_000)).collect(),
        captures: Some(CapturesStatus {
            growing: 1,
            bytes: 5_000,
            samples_lost: 7,
            uploads: Some(crate::pcap::upload::UploadsStatus { waiting: 2, sent_bytes: 9, ..Default::default() }),
            ..Default::default()
        }),
        crowdsec: Some(CrowdsecStatus {
            in_force: [("ipv4_addresses".to_owned(), 3)].into(),
            not_enforced: [("not_ban".to_owned(), 1)].into(),
            failures: [("refused".to_owned(), 2)].into(),
            ..CrowdsecStatus::new("http://127.0.0.1:8080", ListAction::Block)
        }),
        lists: vec![list("drop"), list("watch")],
        access_logs: vec![access_log()],
        sites: vec![],
        incidents_active: vec![(AttackFamily::UdpFlood, 1)],
        incidents_opened: vec![(AttackFamily::UdpFlood, 4), (AttackFamily::SynFlood, 2)],
        rules: vec![("operator", 2), ("response", 9)],
        rules_failed: 1,
        tools: vec![ToolStatus { tool: "iptables".into(), actions: 2, applied: 3, undone: 1, ..ToolStatus::default() }],
        maps: vec![MapReport { name: "blocks".into(), entries: 5, max_entries: 10, bytes: 640 }],
        health: Health::ALL.iter().map(|h| (*h, 0)).collect(),
        link: Some(LinkStatus {
            connected: true,
            server: "cp.example:8443".into(),
            since: time::OffsetDateTime::UNIX_EPOCH,
            last_error: None,
            config_version: Some(12),
            spool: SpoolStatus { queued: 4, bytes: 400, lost: Losses { refused: 1, ..Losses::default() }, fault: None },
        }),
        ticks,
        flow_exporters: exporters(),
    }
}

fn traffic(name: &str, idle_secs: Option<u64>) -> InterfaceTraffic {
    InterfaceTraffic { name: name.to_owned(), idle_secs, silent: idle_secs.is_some() }
}

fn access_log() -> LogStatus {
    serde_json::from_value(serde_json::json!({
        "path": "/var/log/a.log", "format": "auto", "problem": null, "lines": 9, "too_long": 1, "skipped_bytes": 2,
        "rotations": 3, "malformed": 4, "unread": 5,
    }))
    .expect("the status of an access log")
}

fn exporters() -> Vec<ListenerStatus> {
    serde_json::from_value(serde_json::json!([{
        "listen": "192.0.2.9:6343", "protocol": "auto", "refused": 3, "exporters": [{
            "address": "192.0.2.1", "protocol": "sflow5", "last_seen_secs": 1, "silent": false, "datagrams": 9,
            "bytes": 900, "records": 90, "counted": 80, "lost_datagrams": 2, "lost_records": 0,
            "unknown_templates": 0, "malformed": 1, "other_interfaces": 5, "skipped": 0, "unplaced": 0, "restarts": 0,
            "sampling_rate": 512, "templates": 0, "clock_skew_secs": -7, "longest_flow_secs": 0, "pps": 5, "bps": 6,
            "active_incidents": 0,
        }],
    }]))
    .expect("the status of a listener")
}

fn list(name: &str) -> ListStatus {
    serde_json::from_value(serde_json::json!({
        "name": name, "path": "/x", "action": "block", "rule": 1, "loaded": true, "v4": 5, "v6": 2, "duplicates": 0,
        "covered": 0, "skipped": 3, "spared": 0, "age_secs": 60, "last_error": null, "packets": 17, "bytes": 1_700,
    }))
    .expect("the status of a list")
}

/// What `promtool check metrics` looks at: help and type for each family, names by kind, no series twice.
#[test]
fn every_family_has_help_type_and_a_fitting_name_and_no_series_comes_twice() {
    let page = page(&full());
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut series = BTreeSet::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(helped.insert(name) && !help.is_empty(), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(helped.contains(name) && kinds.insert(name, kind).is_none(), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(name.starts_with("ftagent_"), "{line}");
        } else {
            let (id, value) = line.rsplit_once(' ').unwrap();
            assert!(series.insert(id), "twice: {line}");
            value.parse::<f64>().unwrap();
            let name = id.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
            assert!(kinds.contains_key(name) || kinds.get(family) == Some(&"histogram"), "{line}");
        }
    }
    assert_eq!(series.iter().filter(|s| s.starts_with("ftagent_target_packets_total")).count(), 2 * TOP_TARGETS);
}

#[test]
fn values_and_labels_are_those_of_the_snapshot() {
    let page = page(&full());
    for line in [
        r#"ftagent_verdict_packets_total{interface="eth0",reason="blocked_source",verdict="drop"} 7"#,
        r#"ftagent_verdict_bytes_total{interface="eth0",reason="blocked_source",verdict="drop"} 700"#,
        r#"ftagent_verdict_packets_total{interface="ev\"il\\\n",reason="clean",verdict="pass"} 0"#,
        r#"ftagent_class_packets_total{interface="eth0",class="udp",fate="dropped"} 7"#,
        r#"ftagent_tick_duration_seconds_bucket{le="0.0001"} 2"#,
        r#"ftagent_tick_duration_seconds_bucket{le="0.00025"} 3"#,
        r#"ftagent_tick_duration_seconds_bucket{le="1"} 3"#,
        r#"ftagent_tick_duration_seconds_bucket{le="+Inf"} 4"#,
        "ftagent_tick_duration_seconds_sum 3.000251",
        "ftagent_tick_duration_seconds_count 4",
        r#"ftagent_incidents_opened_total{family="syn_flood"} 2"#,
        r#"ftagent_rules{origin="response"} 9"#,
        r#"ftagent_map_capacity_entries{map="blocks"} 10"#,
        r#"ftagent_interface_info{interface="eth0",mode="native",program="ftagent_xdp_frags"} 1"#,
        r#"ftagent_target_sources{target="192.0.2.0"} 1000"#,
        r#"ftagent_list_packets_total{list="drop",action="block"} 17"#,
        r#"ftagent_list_bytes_total{list="watch",action="block"} 1700"#,
        r#"ftagent_list_prefixes{list="drop",action="block",family="ipv6"} 2"#,
        r#"ftagent_list_age_seconds{list="drop",action="block"} 60"#,
        "ftagent_controlplane_connected 1",
        "ftagent_spool_messages 4",
        r#"ftagent_spool_lost_messages_total{why="refused"} 1"#,
        r#"ftagent_mode_info{mode="enforce"} 1"#,
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is missing in\n{page}");
    }
    assert!(!super::page(&Snapshot::default()).contains("controlplane"), "a node that works alone");
}

/// Prometheus' own lint, where it is installed.
#[test]
fn promtool_has_nothing_to_say() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let tool = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".into());
    let spawned = Command::new(tool).args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        println!("skipped: promtool is not installed (package prometheus; or name it in PROMTOOL)");
        return;
    };
    child.stdin.take().expect("a pipe").write_all(page(&full()).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn the_endpoint_answers_get_metrics_and_nothing_else() {
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = endpoint.address().unwrap();
    let taken = Endpoint::bind(address).await.unwrap_err().to_string();
    assert!(taken.contains(&address.to_string()) && taken.contains("choose another"), "{taken}");
    let (publish, snapshots) = watch::channel(full());
    let server = tokio::spawn(endpoint.serve(snapshots));
    for (request, expected) in [
        ("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 200 OK"),
        ("POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 405 "),
        ("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 404 "),
        ("\u{1}garbage\r\n\r\n", "HTTP/1.1 400 "),
    ] {
        let answer = ask(address, request).await;
        assert!(answer.starts_with(expected), "{request:?}: {answer:.200}");
    }
    let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let mut tcp = TcpStream::connect(address).await.unwrap();
    // The server may close before all of it is written.
    drop(tcp.write_all(long.as_bytes()).await);
    drop(tcp);
    publish.send_modify(|s| s.targets = 77);
    let answer = ask(address, "GET /metrics HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains("text/plain; version=0.0.4") && answer.contains("\nftagent_targets 77\n"), "{answer:.300}");
    server.abort();
}
