//! Real captures: attacks are named and their targets found, ordinary traffic opens nothing that acts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ftagent::engine::Settings;
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Checks, Kind, Packet, parse_into};
use ftagent_common::vocab::AttackFamily;
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};

use crate::kernel::{Kernel, SEC};

/// A frame of a capture as Ethernet, its length on the wire and its time.
pub(crate) struct Recorded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) wire_len: usize,
    pub(crate) time_ns: u64,
    pub(crate) dst: IpAddr,
}

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("FTAGENT_CAPTURES")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures/dev"));
    folder.join("labels.json").exists().then_some(folder)
}

/// Reads a capture; what is not IP or cut off is left out.
pub(crate) fn read(path: &Path) -> Vec<Recorded> {
    let bytes = fs::read(path).expect("a readable capture");
    let mut frames: Vec<(DataLink, Vec<u8>, usize, u64)> = Vec::new();
    if let Ok(mut reader) = PcapReader::new(&bytes[..]) {
        let link = reader.header().datalink;
        while let Some(Ok(packet)) = reader.next_packet() {
            let time = u64::try_from(packet.timestamp.as_nanos()).unwrap_or(0);
            frames.push((link, packet.data.to_vec(), packet.orig_len as usize, time));
        }
    } else {
        let mut reader = PcapNgReader::new(&bytes[..]).expect("pcap or pcapng");
        let mut links = Vec::new();
        while let Some(Ok(block)) = reader.next_block() {
            match block {
                Block::InterfaceDescription(interface) => links.push(interface.linktype),
                Block::EnhancedPacket(p) => {
                    let link = links.get(p.interface_id as usize).copied().unwrap_or(DataLink::ETHERNET);
                    // The reader takes the resolution for nanoseconds; microseconds are the default of the format.
                    let time = u64::try_from(p.timestamp.as_nanos()).unwrap_or(0).saturating_mul(1_000);
                    frames.push((link, p.data.to_vec(), p.original_len as usize, time));
                }
                _ => {}
            }
        }
    }
    frames.into_iter().filter_map(|(link, data, len, time)| recorded(link, &data, len, time)).collect()
}

fn recorded(link: DataLink, data: &[u8], len: usize, time_ns: u64) -> Option<Recorded> {
    let cut = match link {
        DataLink::ETHERNET => 0,
        DataLink::LINUX_SLL => 16,
        DataLink::LINUX_SLL2 => 20,
        DataLink::NULL | DataLink::LOOP => 4,
        _ => 0,
    };
    let (bytes, wire_len) = if link == DataLink::ETHERNET {
        (data.to_vec(), len)
    } else {
        let ip = data.get(cut..)?;
        let ether_type: [u8; 2] = if ip.first()? >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
        let mut bytes = vec![0; 12];
        bytes.extend(ether_type);
        bytes.extend(ip);
        (bytes, 14 + len - cut)
    };
    let wire_len = wire_len.max(bytes.len());
    let mut packet = Packet::EMPTY;
    let Kind::Ip = parse_into(&Frame::new(&bytes), wire_len, Checks::NONE, &mut packet) else { return None };
    Some(Recorded { dst: packet.dst.into(), bytes, wire_len, time_ns })
}

/// What became of a replay.
struct Outcome {
    family: AttackFamily,
    confidence: f64,
    spoofed: bool,
    targets: BTreeSet<IpAddr>,
    rule_ms: Option<u64>,
    rules: String,
    passed: u64,
    dropped: u64,
    explanation: Vec<String>,
    highest: f64,
    acted: bool,
}

/// Replays `frames` at `pps` (0: at their own times) for `secs` or once, with one sample in `one_in`.
fn replay(frames: &[&Recorded], pps: u64, secs: u64, one_in: u32) -> Outcome {
    let mut kernel = Kernel::new(Settings::default());
    kernel.datapath.sampling = ftagent::replay::Sampling::OneIn(one_in);
    kernel.run_for(2 * SEC);
    let start = kernel.now_ns;
    let mut ns = start;
    if pps == 0 {
        let mut last = frames.first().map_or(0, |f| f.time_ns);
        for frame in frames {
            // Merged files have gaps of years and times that go back.
            ns += frame.time_ns.saturating_sub(last).min(SEC);
            last = frame.time_ns;
            kernel.frame(&frame.bytes, frame.wire_len, ns);
        }
    } else {
        for (i, frame) in frames.iter().cycle().take((pps * secs) as usize).enumerate() {
            ns = start + i as u64 * SEC / pps;
            kernel.frame(&frame.bytes, frame.wire_len, ns);
        }
    }
    kernel.run_until(ns + SEC / 10);
    let active = kernel.engine.view().incidents;
    let main = active.iter().max_by(|a, b| a.packets.cmp(&b.packets));
    let rules: Vec<String> = kernel
        .automatic()
        .iter()
        .map(|r| {
            let source = r.matches.source.map(|s| format!("from {s} ")).unwrap_or_default();
            format!("{source}{} {:?}", ftagent::engine::words::words(&r.matches), r.verdict)
        })
        .take(3)
        .collect();
    Outcome {
        family: main.map_or(AttackFamily::Unknown, |m| m.family),
        confidence: main.map_or(0.0, |m| m.confidence),
        spoofed: main.is_some_and(|m| m.spoofed),
        targets: active.iter().map(|r| r.target.addr()).collect(),
        rule_ms: kernel.first_rule_ns.map(|at| at.saturating_sub(start) / 1_000_000),
        rules: rules.join("; "),
        passed: kernel.datapath.passed,
        dropped: kernel.datapath.dropped,
        explanation: main.map_or_else(Vec::new, |m| m.explanation.clone()),
        highest: active.iter().map(|r| r.confidence).fold(0.0, f64::max),
        acted: kernel.first_rule_ns.is_some(),
    }
}

/// Whether `got` is a right answer to the collectors' word.
fn is_right(label: &str, acceptable: &[&str], got: AttackFamily) -> bool {
    let matches = |word: &str| match word {
        "synack_reflection" | "tcp_reflection" => got == AttackFamily::SynAckFlood,
        "udp_reflection_other" => got.is_amplification() || got == AttackFamily::MultiVector,
        "dhcp_flood" => got == AttackFamily::UdpFlood,
        "slowloris" => got == AttackFamily::HttpFlood,
        word => got.as_str() == word,
    };
    matches(label) || acceptable.iter().any(|word| matches(word))
}

struct Label {
    path: PathBuf,
    name: String,
    class: String,
    family: String,
    acceptable: Vec<String>,
    targets: Vec<IpAddr>,
}

fn labels(folder: &Path) -> Vec<Label> {
    let text = fs::read_to_string(folder.join("labels.json")).expect("labels");
    let json: serde_json::Value = serde_json::from_str(&text).expect("labels are JSON");
    let words = |v: &serde_json::Value| -> Vec<String> {
        v.as_array().into_iter().flatten().filter_map(|w| w.as_str().map(str::to_owned)).collect()
    };
    json["captures"]
        .as_array()
        .expect("a list of captures")
        .iter()
        .map(|c| Label {
            path: folder.join(c["file"].as_str().expect("a file")),
            name: c["file"].as_str().expect("a file").to_owned(),
            class: c["class"].as_str().unwrap_or("").to_owned(),
            family: c["family"].as_str().unwrap_or("").to_owned(),
            acceptable: words(&c["also_acceptable"]),
            targets: words(&c["expected_targets"]).iter().filter_map(|t| t.parse().ok()).collect(),
        })
        .collect()
}

/// The labelled targets, or the busiest destination where none is named.
fn targets(label: &Label, frames: &[Recorded]) -> Vec<IpAddr> {
    if !label.targets.is_empty() {
        return label.targets.clone();
    }
    let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for frame in frames {
        *counts.entry(frame.dst).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(ip, _)| ip).into_iter().collect()
}

#[test]
fn attacks_in_captures_are_named() {
    let Some(folder) = folder() else {
        println!("skipped: no captures; set FTAGENT_CAPTURES to their folder");
        return;
    };
    let verbose = std::env::var_os("FTAGENT_EXPLAIN").is_some();
    let (mut right, mut all, mut wrong_targets, mut loud_scans) = (0, 0, Vec::new(), Vec::new());
    for label in labels(&folder).iter().filter(|l| matches!(l.class.as_str(), "attack" | "scan")) {
        let frames = read(&label.path);
        let targets = targets(label, &frames);
        let towards: Vec<&Recorded> = frames.iter().filter(|f| targets.contains(&f.dst)).collect();
        for (pps, one_in) in [(50_000, 1), (50_000, 100), (200_000, 1_000)] {
            let got = replay(&towards, pps, 1, one_in);
            let acceptable: Vec<&str> = label.acceptable.iter().map(String::as_str).collect();
            let ok = is_right(&label.family, &acceptable, got.family);
            println!(
                "{} {:<60} {:>6} pps 1:{:<4} {:<24} {:.2} {:<8} rule {:>4} ms, {:>6} passed {:>6} dropped  {}",
                if ok { "ok   " } else { "WRONG" },
                label.name.trim_start_matches("attack/"),
                pps,
                one_in,
                got.family,
                got.confidence,
                if got.spoofed { "spoofed" } else { "" },
                got.rule_ms.map_or_else(|| "-".to_owned(), |ms| ms.to_string()),
                got.passed,
                got.dropped,
                got.rules
            );
            if verbose && (!ok || got.confidence < 0.5) {
                got.explanation.iter().for_each(|line| println!("        {line}"));
            }
            if label.class == "scan" {
                if got.highest >= 0.5 {
                    loud_scans.push(format!("{} {:.2}", label.name, got.highest));
                }
                continue;
            }
            all += 1;
            right += usize::from(ok);
            if got.targets != targets.iter().copied().collect() {
                wrong_targets.push(format!("{}: {:?}", label.name, got.targets));
            }
        }
    }
    println!("{right} of {all} attack replays named right");
    assert!(wrong_targets.is_empty(), "{wrong_targets:?}");
    assert!(loud_scans.is_empty(), "{loud_scans:?}");
    assert!(right * 100 >= all * 95, "{right} of {all}");
}

#[test]
fn ordinary_captures_open_nothing_that_acts() {
    let Some(folder) = folder() else {
        println!("skipped: no captures; set FTAGENT_CAPTURES to their folder");
        return;
    };
    let mut loud = Vec::new();
    for label in labels(&folder).iter().filter(|l| l.class == "benign") {
        let frames = read(&label.path);
        let all: Vec<&Recorded> = frames.iter().collect();
        for (pps, one_in) in [(0, 1), (50_000, 1)] {
            let got = replay(&all, pps, 1, one_in);
            println!(
                "{:<60} {:>6} pps: {:<16} highest confidence {:.2}{}",
                label.name,
                if pps == 0 { "own".to_owned() } else { pps.to_string() },
                got.family,
                got.highest,
                if got.acted { ", acted" } else { "" }
            );
            if got.highest >= 0.5 && std::env::var_os("FTAGENT_EXPLAIN").is_some() {
                got.explanation.iter().for_each(|line| println!("        {line}"));
            }
            if pps == 0 && (got.highest >= 0.5 || got.acted) {
                loud.push(label.name.clone());
            }
        }
    }
    assert!(loud.is_empty(), "{loud:?}");
}
