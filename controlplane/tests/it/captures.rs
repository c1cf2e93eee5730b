//! Recorded and hostile captures through the reader: compared with another reader and with tshark where it is installed,
//! then broken on purpose.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use controlplane::analysis::{Analysis, Budget, PacketPage, PacketRow, analyse, packets};
use controlplane::domain::Page;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::pcap_files::{Blocks, Order, as_the_agent_writes, pcap, tcp, udp};

const ALL: u64 = 20_000_000;

/// The recorded captures, none where a machine has none.
fn recorded(test: &str) -> Vec<PathBuf> {
    let named = std::env::var_os("FTAGENT_CAPTURES").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures/dev"));
    let mut files = Vec::new();
    for part in ["hostile", "benign", "attack"] {
        let Ok(entries) = fs::read_dir(folder.join(part)) else { continue };
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    if files.is_empty() {
        println!("skipped: {test}: no captures in {} (FTAGENT_CAPTURES names the folder)", folder.display());
    }
    files.sort();
    files
}

fn list(bytes: &[u8], limit: u32, offset: u64) -> PacketPage {
    packets(bytes, Page { limit, offset }, Budget::of(ALL)).unwrap()
}

fn whole(bytes: &[u8]) -> Analysis {
    analyse(bytes, Budget::of(ALL)).unwrap()
}

/// What holds for every answer, whatever the file.
fn check(name: &str, bytes: &[u8]) -> Analysis {
    let (page, analysis) = (list(bytes, 1_000, 0), whole(bytes));
    assert_eq!(page.total, analysis.packets_in_file, "{name}");
    assert_eq!((page.truncated, &page.errors), (analysis.truncated, &analysis.errors), "{name}");
    assert!(!page.truncated || !page.errors.is_empty(), "{name}: truncated without a word why");
    assert_eq!(page.packets.len() as u64, page.total.min(1_000), "{name}");
    assert!(page.packets.iter().zip(1..).all(|(row, number)| row.number == number), "{name}");
    assert!(analysis.captured_bytes <= bytes.len() as u64, "{name}: more bytes than the file has");
    assert!(page.total * 4 <= bytes.len() as u64, "{name}: more packets than the file has room for");
    let sum: u64 = analysis.packet_sizes.iter().fold(0, |sum, size| sum.saturating_add(size.packets));
    assert_eq!(sum, analysis.total_packets, "{name}");
    assert!(analysis.top_sources.len() <= 20 && analysis.protocols.len() <= 32 && page.errors.len() <= 9, "{name}");
    let shares = analysis.top_sources.iter().map(|s| s.share).chain(analysis.protocols.iter().map(|p| p.share));
    assert!(shares.chain(analysis.ttls.iter().map(|t| t.share)).all(|share| (0.0..=1.0).contains(&share)), "{name}");
    assert!(!analysis.summary.is_empty() && analysis.top_source_countries.is_none(), "{name}");
    serde_json::to_string(&analysis).unwrap();
    analysis
}

/// Packets and captured bytes as `pcap-file` has them, until it gives up.
fn others_count(path: &Path) -> (u64, u64) {
    let (mut count, mut bytes) = (0, 0);
    let mut magic = [0; 4];
    fs::File::open(path).unwrap().read_exact(&mut magic).unwrap();
    let file = fs::File::open(path).unwrap();
    if magic == [0x0a, 0x0d, 0x0d, 0x0a] {
        let mut reader = PcapNgReader::new(file).unwrap();
        while let Some(Ok(block)) = reader.next_block() {
            let len = match block {
                Block::EnhancedPacket(packet) => packet.data.len(),
                Block::Packet(packet) => packet.data.len(),
                Block::SimplePacket(packet) => packet.data.len().min(packet.original_len as usize),
                _ => continue,
            };
            count += 1;
            bytes += len as u64;
        }
    } else {
        let mut reader = PcapReader::new(file).unwrap();
        while let Some(Ok(packet)) = reader.next_raw_packet() {
            count += 1;
            bytes += packet.data.len() as u64;
        }
    }
    (count, bytes)
}

#[test]
fn recorded_captures_have_the_packets_that_another_reader_finds() {
    let (mut files, mut count) = (0, 0);
    for path in recorded("recorded_captures_have_the_packets_that_another_reader_finds") {
        let name = path.display().to_string();
        let bytes = fs::read(&path).unwrap();
        let analysis = check(&name, &bytes);
        let (others, others_bytes) = others_count(&path);
        // It stops where it cannot go on; this reader says why and may go on.
        if analysis.errors.is_empty() {
            assert_eq!((analysis.packets_in_file, analysis.captured_bytes), (others, others_bytes), "{name}");
        } else {
            assert!(analysis.packets_in_file >= others, "{name}: {} < {others}", analysis.packets_in_file);
            println!("{name}: {} packets, the other reader {others}: {:?}", analysis.packets_in_file, analysis.errors);
        }
        files += 1;
        count += analysis.packets_in_file;
    }
    println!("{files} files, {count} packets");
}

/// What tshark says of each packet: length, time, addresses, ports.
fn tshark(path: &Path) -> Option<Vec<Vec<String>>> {
    let fields = [
        "frame.len",
        "frame.time_epoch",
        "ip.src",
        "ip.dst",
        "ipv6.src",
        "ipv6.dst",
        "udp.srcport",
        "udp.dstport",
        "tcp.srcport",
        "tcp.dstport",
        "ip.ttl",
        "ip.proto",
    ];
    let mut command = Command::new("tshark");
    command.args(["-n", "-c", "1000", "-T", "fields", "-E", "separator=|", "-r"]).arg(path);
    // Addresses of fragments belong to the fragments, not to the frame that completes the datagram.
    command.args(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE", "-o", "tcp.desegment_tcp_streams:FALSE"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect())
}

/// Where a route is in the options, tshark shows its end instead of the header's address; and a length of 4 GB or a time
/// with more microseconds than a second has, it cuts in ways of its own.
const DIFFERENT: [&str; 5] = [
    "ALL-ethernet-hostile-mix.pcap:495",
    "ALL-ethernet-hostile-mix.pcap:496",
    "ntop--fuzz-2021-06-07-c6c72a0a56.pcap:1",
    "seladb--ipv4-options.pcap:6",
    "seladb--ipv4-options.pcap:7",
];

#[test]
fn packets_are_what_tshark_shows() {
    const NAME: &str = "packets_are_what_tshark_shows";
    if Command::new("tshark").arg("--version").output().is_err() {
        println!("skipped: {NAME}: tshark is not installed");
        return;
    }
    // Every fourth, unless all are asked for: a start of tshark takes a quarter of a second.
    let step = if std::env::var_os("FTAGENT_ALL_CAPTURES").is_some() { 1 } else { 4 };
    // Which packets, of those that both read alike: no tunnel, no cut header.
    let (mut compared, mut with_ports, mut differences) = (0, 0, Vec::new());
    for path in recorded(NAME).into_iter().step_by(step) {
        let page = list(&fs::read(&path).unwrap(), 1_000, 0);
        let Some(theirs) = tshark(&path) else { continue };
        let file = path.file_name().unwrap().to_string_lossy();
        for (row, fields) in page.packets.iter().zip(&theirs) {
            let name = format!("{file}:{}", row.number);
            if DIFFERENT.contains(&name.as_str()) {
                continue;
            }
            let mut differs = |what: &str, ours: String, theirs: &str| {
                differences.push(format!("{name} {what}: {ours} and {theirs}"));
            };
            // A file may say that a packet was shorter on the wire than in it; then this shows what is there.
            if row.bytes.to_string() != fields[0] && row.bytes != row.captured_bytes {
                differs("length", row.bytes.to_string(), &fields[0]);
            }
            if let Some(time) = &row.time
                && !same_time(time, &fields[1])
            {
                differs("time", time.clone(), &fields[1]);
            }
            // More than one address: something is inside something.
            let is_plain = !fields[2..4].concat().contains(',') && !fields[4..6].concat().contains(',');
            if row.problem.is_some()
                || row.tunnel.is_some()
                || !is_plain
                || (fields[2].is_empty() == fields[4].is_empty())
            {
                continue;
            }
            compared += 1;
            let of = |v4: usize, v6: usize| if fields[v4].is_empty() { &fields[v6] } else { &fields[v4] };
            for (what, ours, theirs) in [("source", row.src_ip, of(2, 4)), ("destination", row.dst_ip, of(3, 5))] {
                if let Some(ours) = ours
                    && ours.to_string() != *theirs
                {
                    differs(what, ours.to_string(), theirs);
                }
            }
            if let (Some(ttl), false) = (row.ttl, fields[10].is_empty())
                && ttl.to_string() != fields[10]
            {
                differs("ttl", ttl.to_string(), &fields[10]);
            }
            let (from, to) = (of(6, 8), of(7, 9));
            if let (Some(src), Some(dst), false) = (row.src_port, row.dst_port, from.is_empty() || from.contains(',')) {
                with_ports += 1;
                if (src.to_string(), dst.to_string()) != (from.clone(), to.clone()) {
                    differs("ports", format!("{src} {dst}"), &format!("{from} {to}"));
                }
            }
        }
    }
    println!("{compared} packets compared, {with_ports} with ports, {} differences", differences.len());
    assert!(differences.is_empty(), "{:#?}", &differences[..differences.len().min(40)]);
}

/// Whether RFC 3339 and seconds since 1970 are the same moment, to the nanosecond.
fn same_time(ours: &str, theirs: &str) -> bool {
    let parsed = time::OffsetDateTime::parse(ours, &time::format_description::well_known::Rfc3339).unwrap();
    let (secs, frac) = theirs.split_once('.').unwrap_or((theirs, "0"));
    let nanos: i128 = format!("{frac:0<9}").parse().unwrap_or(-1);
    // Times before 1970 and beyond its range tshark writes in ways of its own.
    secs.parse::<i128>().is_ok_and(|secs| parsed.unix_timestamp_nanos() == secs * 1_000_000_000 + nanos)
}

/// Files of every kind, always there.
fn made() -> BTreeMap<&'static str, Vec<u8>> {
    let frame = udp([192, 0, 2, 1], 1_234, [203, 0, 113, 5], 80, b"abc");
    let other = tcp([192, 0, 2, 2], 40_000, [203, 0, 113, 5], 443, 2, b"");
    let both = [(1_500_000_000_000_001_u64, &frame[..]), (1_500_000_000_500_000, &other[..])];
    let mut several = Blocks::new(Order::Little);
    several.interface(1, 9);
    several.interface(101, 6);
    several.packet(0, 1_700_000_000_000_000_007, frame.len(), &frame, &[(1, b"a comment")]);
    several.packet(1, 1_700_000_000_000_000, frame.len(), &frame[14..], &[]);
    several.section(Order::Big);
    several.interface(0, 0x80 | 10);
    several.packet(0, 1_700_000_000 << 10 | 512, 1_400, &[&[0, 0, 0, 2], &other[14..]].concat(), &[]);
    several.block(3, &[&30_u32.to_be_bytes()[..], &[0, 0, 0, 2], &frame[14..]].concat());
    several.block(0xbad, &[1; 40]);
    BTreeMap::from([
        ("micro, little endian", pcap(Order::Little, false, 1, &both)),
        ("micro, big endian", pcap(Order::Big, false, 1, &both)),
        ("nano, little endian", pcap(Order::Little, true, 1, &both)),
        ("nano, big endian", pcap(Order::Big, true, 1, &both)),
        ("802.11", pcap(Order::Little, false, 105, &both)),
        ("several sections", several.bytes),
        ("of the agent", as_the_agent_writes(40, 30)),
    ])
}

fn rows(name: &str) -> Vec<PacketRow> {
    list(&made()[name], 1_000, 0).packets
}

#[test]
fn both_byte_orders_and_resolutions_are_read() {
    for (name, time) in [
        ("micro, little endian", "2017-07-14T02:40:00.000001Z"),
        ("micro, big endian", "2017-07-14T02:40:00.000001Z"),
        ("nano, little endian", "1970-01-18T08:40:00.000000001Z"),
        ("nano, big endian", "1970-01-18T08:40:00.000000001Z"),
    ] {
        let rows = rows(name);
        let row = &rows[0];
        assert_eq!((row.time.as_deref(), rows.len()), (Some(time), 2), "{name}");
        assert_eq!((row.src_port, row.dst_port, row.payload_bytes), (Some(1_234), Some(80), Some(3)), "{name}");
        assert_eq!(rows[1].tcp_flags.as_deref(), Some(&["SYN"][..]), "{name}");
    }
}

#[test]
fn sections_have_their_own_byte_order_interfaces_and_resolution() {
    let rows = rows("several sections");
    let shown: Vec<_> = rows
        .iter()
        .map(|r| (r.interface, r.link_type.as_str(), r.time.as_deref(), r.src_ip.map(|ip| ip.to_string()), r.bytes))
        .collect();
    let (one, two) = (Some("192.0.2.1".to_owned()), Some("192.0.2.2".to_owned()));
    assert_eq!(
        shown,
        [
            (0, "ethernet", Some("2023-11-14T22:13:20.000000007Z"), one.clone(), 45),
            (1, "raw", Some("2023-11-14T22:13:20Z"), one.clone(), 45),
            (0, "null", Some("2023-11-14T22:13:20.5Z"), two, 1_400),
            (0, "null", None, one, 30),
        ]
    );
    assert_eq!(rows[0].comment.as_deref(), Some("a comment"));
}

#[test]
fn what_is_not_read_is_listed_and_no_error() {
    let file = &made()["802.11"];
    let page = list(file, 10, 0);
    assert_eq!((page.total, page.truncated, page.errors.len()), (2, false, 0));
    assert_eq!((page.packets[0].problem, &page.packets[0].src_ip), (Some("undecoded"), &None));
    let analysis = whole(file);
    assert_eq!((analysis.not_ip, analysis.link_types[0].decoded), (2, false));
    assert_eq!(analysis.link_types[0].name, "ieee802_11");
}

#[test]
fn a_page_is_a_part_of_the_whole() {
    let file = as_the_agent_writes(2_500, 0);
    let page = list(&file, 1_000, 2_400);
    assert_eq!((page.packets.len(), page.packets[0].number, page.total), (100, 2_401, 2_500));
    assert_eq!(list(&file, 1_000, u64::MAX).packets.len(), 0);
    let few = packets(&file[..], Page { limit: 10, offset: 0 }, Budget::of(100)).unwrap();
    assert_eq!((few.packets.len(), few.total, few.truncated), (10, 99, true), "the interface is a block as well");
}

#[test]
fn a_file_that_breaks_off_anywhere_is_read_up_to_there() {
    for (name, file) in made() {
        let all = list(&file, 1_000, 0);
        assert_eq!((all.truncated, all.errors.len()), (false, 0), "{name}: {:?}", all.errors);
        for end in 0..file.len() {
            let cut = check(name, &file[..end]);
            assert!(cut.packets_in_file <= all.total, "{name} at {end}");
            let kept = list(&file[..end], 1_000, 0).packets;
            assert_eq!(kept, all.packets[..kept.len()], "{name} at {end}");
        }
    }
}

#[test]
fn whatever_a_file_claims_little_is_held_and_the_truth_is_said() {
    let frame = udp([192, 0, 2, 1], 1_234, [203, 0, 113, 5], 80, b"abc");
    let mut huge = pcap(Order::Little, false, 1, &[(0, &frame)]);
    huge.extend([0; 8]);
    huge.extend([0xff; 8]);
    let mut long_block = Blocks::new(Order::Little);
    long_block.interface(1, 6);
    let mut interfaces = Blocks::new(Order::Little);
    (0..5_000).for_each(|_| interfaces.interface(1, 6));
    interfaces.packet(4_999, 1, frame.len(), &frame, &[]);
    interfaces.packet(9_999, 1, frame.len(), &frame, &[]);
    let mut wrong_len = Blocks::new(Order::Little);
    wrong_len.interface(1, 6);
    wrong_len.block(6, &[&[0_u8; 12][..], &1_000_u32.to_le_bytes(), &[0; 20]].concat());
    wrong_len.packet(0, 1, frame.len(), &frame, &[(1, &[0xff, 0xfe])]);
    wrong_len.block(6, &[0; 8]);
    long_block.bytes.extend([6, 0, 0, 0, 0xfc, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    for (name, file, packets, truncated, errors) in [
        ("a record of 4 GiB", huge, 1, true, 1),
        ("a block of 4 GiB", long_block.bytes, 0, true, 1),
        ("5,000 interfaces", interfaces.bytes, 2, false, 2),
        ("lengths that contradict each other", wrong_len.bytes, 1, false, 2),
        ("nothing", vec![], 0, true, 1),
        ("no capture", b"GIF89a, and more than twenty-four bytes".to_vec(), 0, true, 1),
    ] {
        let analysis = check(name, &file);
        assert_eq!(
            (analysis.packets_in_file, analysis.truncated, analysis.errors.len()),
            (packets, truncated, errors),
            "{name}: {:?}",
            analysis.errors
        );
    }
}

#[test]
fn more_sources_than_are_counted_are_estimated() {
    // 16 bytes of record and 28 of raw IP for each: 5.7 MB.
    let mut file = pcap(Order::Little, false, 101, &[]);
    for n in 0..130_000_u32 {
        // One of ten is the same.
        let source = if n.is_multiple_of(10) { 0xc633_6407 } else { 0x0a00_0000 | n };
        let mut packet = udp(source.to_be_bytes(), 53, [203, 0, 113, 5], 80, b"");
        let packet = packet.split_off(14);
        file.extend([[0; 4], n.to_le_bytes(), [28, 0, 0, 0], [28, 0, 0, 0]].concat());
        file.extend(packet);
    }
    let analysis = whole(&file);
    assert!(analysis.unique_sources_approximate);
    let off = analysis.unique_sources.abs_diff(117_001);
    assert!(off < 6_000, "{}", analysis.unique_sources);
    let top = &analysis.top_sources[0];
    assert_eq!(top.ip.to_string(), "198.51.100.7");
    assert!(top.packets <= 13_000 && top.packets + analysis.top_sources_short_by >= 13_000, "{top:?}");
}

/// Changes a file as a broken disk or somebody who means harm would.
fn mutate(file: &mut Vec<u8>, rng: &mut StdRng) {
    const WORDS: [u32; 8] = [0, 1, 12, 0x7fff_ffff, u32::MAX, 0xffff, 0x0a0d_0d0a, 262_144];
    for _ in 0..rng.random_range(1..6) {
        if file.is_empty() {
            return;
        }
        let at = rng.random_range(0..file.len());
        match rng.random_range(0..6) {
            0 => file[at] = rng.random(),
            1 => file[at] ^= 1 << rng.random_range(0..8),
            2 => file.truncate(at),
            3 => {
                let word = WORDS[rng.random_range(0..WORDS.len())];
                let word = if rng.random() { word.to_le_bytes() } else { word.to_be_bytes() };
                let at = at / 4 * 4;
                let end = file.len().min(at + 4);
                file[at..end].copy_from_slice(&word[..end - at]);
            }
            4 => {
                let end = file.len().min(at + rng.random_range(1..64));
                let piece = file[at..end].to_vec();
                file.splice(at..at, piece);
            }
            _ => {
                let end = file.len().min(at + rng.random_range(1..64));
                file.drain(at..end);
            }
        }
    }
}

#[test]
fn broken_captures_are_no_panic_and_the_answers_stay_sound() {
    let mut seeds: Vec<(String, Vec<u8>)> = made().into_iter().map(|(name, file)| (name.to_owned(), file)).collect();
    for path in recorded("broken_captures_are_no_panic_and_the_answers_stay_sound (recorded ones)") {
        let bytes = fs::read(&path).unwrap();
        seeds.push((path.display().to_string(), bytes[..bytes.len().min(16 << 10)].to_vec()));
    }
    let mut rng = StdRng::seed_from_u64(0x5eed);
    let mut tried = 0;
    for (name, file) in &seeds {
        for round in 0..20 {
            let mut broken = file.clone();
            mutate(&mut broken, &mut rng);
            check(&format!("{name}, round {round}"), &broken);
            tried += 1;
        }
    }
    println!("{tried} broken files of {} kinds", seeds.len());
}

#[test]
fn attacks_are_named_and_ordinary_traffic_is_not() {
    let (mut named, mut attacks, mut wrong, mut ordinary) = (0, 0, Vec::new(), 0);
    for path in recorded("attacks_are_named_and_ordinary_traffic_is_not") {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some((label, _)) = file.split_once("--") else { continue };
        let folder = path.parent().unwrap().file_name().unwrap();
        if folder == "hostile" {
            continue;
        }
        let family = whole(&fs::read(&path).unwrap()).attack_vector.as_str();
        let expected = match label {
            "synack_reflection" => "syn_ack_flood",
            "udp_reflection_other" => "isakmp_amplification",
            "dhcp_flood" => "udp_flood",
            "slowloris" => "http_flood",
            benign if benign.starts_with("benign") => "unknown",
            "port_scan" => "unknown",
            other => other,
        };
        if expected == "unknown" {
            assert_eq!(family, expected, "{file}");
            ordinary += 1;
        } else {
            attacks += 1;
            named += u32::from(family == expected);
            if family != expected {
                wrong.push(format!("{file}: {family}"));
            }
        }
    }
    println!("{named} of {attacks} attacks named, {ordinary} of ordinary traffic and scans not; not named: {wrong:?}");
    // One has two packets a second: its incident was found by what the web server logs.
    assert!(named + 1 >= attacks, "{wrong:?}");
}

/// Written by the agent's own `pcap::block`: what both have agreed on.
const OF_THE_AGENT: &[u8] = include_bytes!("fixtures/agent.pcapng");

#[test]
fn the_agents_marks_are_understood() {
    let page = list(OF_THE_AGENT, 10, 0);
    assert_eq!((page.truncated, &page.errors, page.total), (false, &vec![], 4));
    let shown: Vec<Value> = page.packets.iter().map(|row| serde_json::to_value(row).unwrap()).collect();
    let keys =
        ["time", "interface", "dst_ip", "dst_port", "problem", "verdict", "reason", "rule", "one_in", "left_out"];
    let of = |row: &Value| keys.map(|key| row[key].clone());
    let expected = [
        json!(["2023-11-14T22:13:20Z", 0, "10.99.0.1", 80, null, "dropped", "blocked_source", 7, 32, 0]),
        json!(["2023-11-14T22:13:20.250000001Z", 1, "10.99.0.2", 80, null, "passed", "clean", null, 4, 3]),
        json!(["2023-11-14T22:13:20.5Z", 0, "10.99.0.1", null, "truncated", "would_drop", "target_rule", null, 4, 0]),
        json!(["2023-11-14T22:13:21Z", 0, "10.99.0.1", 80, null, "answered", "syn_cookie", null, 4, 0]),
    ];
    for (row, expected) in shown.iter().zip(expected) {
        assert_eq!(Value::from(of(row).to_vec()), expected);
        assert_eq!(
            (&row["src_ip"], &row["bytes"], &row["comment"]),
            (&json!("198.51.100.7"), &json!(1_400), &Value::Null)
        );
    }
    let analysis = whole(OF_THE_AGENT);
    // 32, then one and three that were left out of 4 each, then 4 and 4.
    assert_eq!((analysis.total_packets, analysis.packets_in_file, analysis.scaled), (56, 4, true));
    assert_eq!((analysis.total_bytes, analysis.pps), (56 * 1_400, Some(56.0)));
    let verdicts = analysis.verdicts.unwrap();
    assert_eq!((verdicts.dropped, verdicts.passed, verdicts.would_drop, verdicts.unmarked), (36, 16, 4, 0));
    assert_eq!((verdicts.reasons[0].reason, verdicts.reasons[0].packets), ("blocked_source", 32));
    assert_eq!(analysis.attack_vector.as_str(), "unknown", "four packets are too few");
}
