//! The captures of a running agent: their marks are the counters' own, and tools of others read them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::skip_without_root;
use ftagent_common::abi::Reason;
use pcap_file::pcapng::PcapNgReader;
use pcap_file::pcapng::blocks::Block;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use serde_json::Value;

use crate::agent::{Agent, flood, program};
use crate::lab::Lab;

/// So high that every frame is sampled and nothing is left out.
const EVERY_FRAME: &str = "[detection]\nhold_down_ms = 1500\nfloor_pps = 1000\n\
     [datapath]\nsamples_per_sec = 100000\nsample_buffer_bytes = 16777216\n\
     [pcap]\nmax_packets = 1000000\n";

/// How many packets have each verdict, by reason; and the sum of the samples left out.
fn marks(path: &Path) -> (BTreeMap<String, u64>, u64) {
    let file = std::fs::File::open(path).expect("a capture");
    let mut reader = PcapNgReader::new(file).expect("a section");
    let (mut marks, mut missed) = (BTreeMap::new(), 0);
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.expect("whole blocks") else { continue };
        let mut verdict = None;
        for option in &packet.options {
            match option {
                EnhancedPacketOption::Comment(words) => {
                    assert!(words.ends_with(", 1 in 1"), "{words}");
                    let reason = words.split([' ', ',']).nth(1).expect("a reason").to_owned();
                    *marks.entry(reason).or_default() += 1;
                    verdict.get_or_insert(words.starts_with("drop"));
                }
                EnhancedPacketOption::DropCount(count) => missed += count,
                _ => {}
            }
        }
        assert!(verdict.is_some(), "every packet has its verdict");
    }
    (marks, missed)
}

/// What a tool prints of a capture; nothing, and a word, where it is not installed.
fn tool(program: &str, arguments: &[&str], path: &Path) -> Option<String> {
    match Command::new(program).args(arguments).arg(path).output() {
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{program}: {words}");
            // It warns there of files that are cut off or malformed.
            assert!(!words.contains("cut short") && !words.contains("malformed"), "{words}");
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: the part with {program}: it is not installed; `cargo xtask setup` installs it");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

fn counted(status: &Value) -> BTreeMap<String, u64> {
    let reasons = status["verdicts"]["edge0"].as_object().expect("verdicts");
    reasons.iter().map(|(reason, count)| (reason.clone(), count["packets"].as_u64().expect("a number"))).collect()
}

fn first(status: &Value) -> &Value {
    &status["captures"]["captures"][0]
}

fn setup(name: &str) -> Option<(Lab, LabDir, Agent)> {
    if skip_without_root(name) {
        return None;
    }
    let program = program("FTAGENT_BIN", "ftagent")?;
    let lab = Lab::new();
    let dir = LabDir::create("captures").expect("a directory");
    let agent = Agent::new(program, dir.path(), &lab.edge, "");
    // The harness writes a [detection] of its own.
    let text = std::fs::read_to_string(&agent.config).expect("a configuration");
    let text = text.replace("[detection]\nhold_down_ms = 1500\n", EVERY_FRAME);
    std::fs::write(&agent.config, text).expect("a configuration");
    Some((lab, dir, agent))
}

fn file(status: &Value, suffix: &str) -> PathBuf {
    let dir = status["captures"]["dir"].as_str().expect("a directory");
    let incident = first(status)["incident"].as_str().expect("an id");
    Path::new(dir).join(format!("{incident}.pcapng{suffix}"))
}

#[test]
fn the_marks_of_a_capture_are_what_the_kernel_counted() {
    let Some((lab, _dir, mut agent)) = setup("the_marks_of_a_capture_are_what_the_kernel_counted") else { return };
    agent.start();
    let before = counted(&agent.ask("status").expect("an answer"));
    let sent = flood(&lab, 4_000, Duration::from_secs(3)).join().expect("no panic").expect("sent");
    agent.wait("the capture ended", Duration::from_secs(20), || {
        agent.ask("status").is_some_and(|status| first(&status)["ended"] == "resolved")
    });
    let status = agent.ask("status").expect("an answer");
    let after = counted(&status);
    assert_eq!(status["health"]["samples_lost"], 0);
    assert_eq!(status["captures"]["samples_lost"], 0);
    let capture = first(&status);
    assert_eq!((capture["complete"].as_bool(), capture["target"].as_str()), (Some(true), Some("10.99.0.1/32")));

    let path = file(&status, "");
    let (marks, missed) = marks(&path);
    println!("sent {sent}; marks {marks:?}, {missed} left out; counted {after:?} after {before:?}");
    assert_eq!(missed, 0);
    let grown = |reason: &str| after.get(reason).copied().unwrap_or(0) - before.get(reason).copied().unwrap_or(0);
    let mut dropped = 0;
    // Besides the flood there may be neighbour discovery, of which a capture holds a share; that is passed.
    for reason in Reason::ALL.iter().filter(|reason| reason.is_drop()).map(|reason| reason.as_str()) {
        assert_eq!(marks.get(reason).copied().unwrap_or(0), grown(reason), "{reason}");
        dropped += grown(reason);
    }
    assert!(dropped > 5_000, "{marks:?}");
    assert_eq!(capture["dropped"].as_u64(), Some(dropped));
    assert!(marks.values().sum::<u64>() >= sent, "every frame of the flood, from its first one on");

    if let Some(words) = tool("capinfos", &["-M", "-c", "-s", "-l"], &path) {
        println!("{words}");
        assert!(words.contains("nanosecond") || words.contains(&capture["packets"].to_string()), "{words}");
    }
    let names = "-e frame.interface_name -e frame.verdict.ebpf_xdp -e frame.packet_flags_direction -e frame.comment";
    let fields: Vec<&str> = ["-T", "fields"].into_iter().chain(names.split(' ')).chain(["-Y", "tcp", "-r"]).collect();
    if let Some(words) = tool("tshark", &fields, &path) {
        let lines: Vec<&str> = words.lines().collect();
        // XDP_DROP is 1, and so is inbound.
        let is_drop = |line: &&&str| {
            let columns: Vec<&str> = line.split('\t').collect();
            columns.len() == 4
                && (columns[0], columns[1]) == ("edge0", "1")
                && columns[2].ends_with('1')
                && columns[3].starts_with("drop: ")
        };
        let drops = lines.iter().filter(is_drop).count() as u64;
        assert_eq!(drops, dropped, "tshark sees the same drops: {:?}", lines.last());
        println!("tshark: {} packets of TCP, {drops} of them dropped; such as {:?}", lines.len(), lines.last());
    }
    let listed = agent.run(&["captures"]);
    println!("{}", String::from_utf8_lossy(&listed.stdout));
    assert!(String::from_utf8_lossy(&listed.stdout).contains("resolved"));
}

#[test]
fn a_killed_agent_leaves_a_readable_capture_that_its_heir_finishes() {
    let name = "a_killed_agent_leaves_a_readable_capture_that_its_heir_finishes";
    let Some((lab, _dir, mut agent)) = setup(name) else { return };
    agent.start();
    let flood = flood(&lab, 4_000, Duration::from_secs(6));
    agent.wait("a capture that grows", Duration::from_secs(10), || {
        agent.ask("status").is_some_and(|status| first(&status)["packets"].as_u64() > Some(2_000))
    });
    let status = agent.ask("status").expect("an answer");
    agent.kill();
    let growing = file(&status, ".part");
    let (found, _) = marks(&growing);
    assert!(found.values().sum::<u64>() >= first(&status)["packets"].as_u64().expect("a number"));
    tool("tshark", &["-r"], &growing);

    agent.start();
    let status = agent.ask("captures").expect("an answer");
    let capture = &status["captures"]["captures"][0];
    assert_eq!((capture["ended"].as_str(), capture["complete"].as_bool()), (Some("interrupted"), Some(false)));
    assert_eq!(capture["packets"].as_u64(), Some(found.values().sum()));
    assert!(!growing.exists());
    assert_eq!(marks(&file(&status, "")).0, found);
    flood.join().expect("no panic").expect("sent");
}
