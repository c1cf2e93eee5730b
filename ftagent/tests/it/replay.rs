//! `ftagent replay`: captures written here, through the engine and through the command line.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ftagent::config::Config;
use ftagent::replay::{Options, Outcome, Sampling, run, text};
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::{AttackFamily as F, IncidentStatus};
use ftagent_lab::floods::{Dice, FLOODS};
use tempfile::TempDir;

use crate::floods::TARGET;
use crate::kernel::SEC;

/// Frames with their times in nanoseconds.
type Frames = Vec<(u64, Vec<u8>)>;

/// A flood of the family from `from_ns` on.
fn flood(family: F, pps: u64, ms: u64, from_ns: u64) -> Frames {
    let (_, make) = FLOODS.iter().find(|(f, _)| *f == family).expect("a flood of every family");
    let mut dice = Dice(7);
    let target = TARGET.parse().expect("an address");
    let frame = |i| (from_ns + i * SEC / pps, make(&mut dice, target).frame());
    (0..pps * ms / 1_000).map(frame).collect()
}

/// A pcap with nanoseconds; link type 101 holds the frames without their Ethernet headers.
fn pcap(frames: &Frames, link: u32) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_3c4d, 0x0004_0002, 0, 0, 65_535, link] {
        file.extend(u32::to_le_bytes(word));
    }
    for (ns, frame) in frames {
        let bytes = if link == 101 { &frame[14..] } else { frame };
        let len = bytes.len() as u32;
        // Far enough from the epoch to look like a time.
        for word in [1_700_000_000 + (ns / SEC) as u32, (ns % SEC) as u32, len, len] {
            file.extend(word.to_le_bytes());
        }
        file.extend(bytes);
    }
    file
}

/// A pcapng with one Ethernet interface and microseconds.
fn pcapng(frames: &Frames) -> Vec<u8> {
    let mut file = Vec::new();
    let mut block = |kind: u32, body: &[u8]| {
        let padding = body.len().next_multiple_of(4) - body.len();
        let len = (12 + body.len() + padding) as u32;
        file.extend(kind.to_le_bytes());
        file.extend(len.to_le_bytes());
        file.extend(body);
        file.extend(vec![0; padding]);
        file.extend(len.to_le_bytes());
    };
    let mut section = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
    section.extend([1, 0, 0, 0]);
    section.extend([0xff; 8]);
    block(0x0a0d_0d0a, &section);
    block(1, &[1, 0, 0, 0, 0, 0, 1, 0]);
    for (ns, frame) in frames {
        let ticks = 1_700_000_000_000_000 + ns / 1_000;
        let len = frame.len() as u32;
        let mut body = Vec::new();
        for word in [0, (ticks >> 32) as u32, ticks as u32, len, len] {
            body.extend(u32::to_le_bytes(word));
        }
        body.extend(frame);
        block(6, &body);
    }
    file
}

fn written(folder: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("capture");
    std::fs::write(&path, bytes).expect("a file");
    path
}

fn replayed(bytes: &[u8], change: impl FnOnce(&mut Options)) -> Outcome {
    let folder = TempDir::new().expect("a folder");
    let mut options = Options::new(&written(&folder, bytes), None);
    change(&mut options);
    run(&options).expect("a capture")
}

fn only(outcome: &Outcome) -> &IncidentReport {
    let [report] = outcome.incidents.as_slice() else { panic!("{} incidents", outcome.incidents.len()) };
    report
}

#[test]
fn a_flood_in_a_file_is_an_incident_from_its_opening_to_its_end() {
    let frames = flood(F::NtpAmplification, 60_000, 500, 0);
    for (name, file) in [("pcap", pcap(&frames, 1)), ("raw IP", pcap(&frames, 101)), ("pcapng", pcapng(&frames))] {
        let outcome = replayed(&file, |_| {});
        let report = only(&outcome);
        assert_eq!((report.family, report.status), (F::NtpAmplification, IncidentStatus::Resolved), "{name}");
        assert_eq!(report.target.addr().to_string(), TARGET, "{name}");
        assert_eq!(outcome.frames, 30_000, "{name}");
        let opened = (report.started_at - outcome.began).as_seconds_f64();
        assert!((0.05..0.25).contains(&opened), "{name}: {opened}");
        assert_eq!(report.started_at.unix_timestamp(), 1_700_000_000, "the file's own clock");
        assert!(outcome.dropped > outcome.passed, "{name}: {} {}", outcome.passed, outcome.dropped);
    }
}

#[test]
fn the_same_file_gives_the_same_answer() {
    let file = pcap(&flood(F::SynFlood, 80_000, 400, 0), 1);
    let again = || replayed(&file, |options| options.sampling = Sampling::OneIn(10)).incidents;
    assert_eq!(again(), again());
}

#[test]
fn a_rate_and_a_time_stand_for_those_of_the_file() {
    let file = pcap(&flood(F::UdpFlood, 100, 1_000, 0), 1);
    assert!(replayed(&file, |_| {}).incidents.is_empty(), "100 packets in a second are no attack");
    let fast = replayed(&file, |options| (options.rate_pps, options.seconds) = (Some(60_000), Some(1)));
    assert_eq!((fast.frames, only(&fast).family), (60_000, F::UdpFlood));
    assert_eq!(fast.backwards, 0, "a file that begins anew does not go back");
}

#[test]
fn pauses_of_hours_cost_nothing_and_are_told_right() {
    let mut frames = flood(F::SynFlood, 60_000, 500, 0);
    frames.extend(flood(F::UdpFlood, 60_000, 500, 9 * 3_600 * SEC));
    let outcome = replayed(&pcap(&frames, 1), |_| {});
    let families: Vec<F> = outcome.incidents.iter().map(|report| report.family).collect();
    assert_eq!(families, [F::SynFlood, F::UdpFlood]);
    let second = (outcome.incidents[1].started_at - outcome.began).as_seconds_f64();
    assert!((32_400.0..32_400.3).contains(&second), "{second}");
}

#[test]
fn other_destinations_than_the_protected_are_not_looked_at() {
    let file = pcap(&flood(F::UdpFlood, 60_000, 500, 0), 1);
    let folder = TempDir::new().expect("a folder");
    let mut options = Options::new(&written(&folder, &file), None);
    options.limits.protect = vec!["198.51.100.0/24".parse().expect("a prefix")];
    let outcome = run(&options).expect("a capture");
    assert_eq!((outcome.elsewhere, outcome.incidents.len()), (30_000, 0));
    assert!(text(&outcome, &options, false).contains("nothing went to a protected destination"));
}

#[test]
fn the_configuration_decides_what_is_an_attack() {
    let file = pcap(&flood(F::UdpFlood, 60_000, 500, 0), 1);
    let folder = TempDir::new().expect("a folder");
    let path = written(&folder, &file);
    // (what the file says, incidents, whether rules are made)
    let table = [
        ("[protect]\nprefixes = [\"203.0.113.0/24\"]", 1, true),
        ("[protect]\nprefixes = [\"198.51.100.0/24\"]", 0, false),
        ("[detection]\nfloor_pps = 100000\nfloor_bps = 900000000", 0, false),
        ("[response]\nautomatic = false", 1, false),
        ("[agent]\nmode = \"evaluate\"", 1, true),
    ];
    for (part, incidents, rules) in table {
        let toml = format!("[[interface]]\nname = \"eth0\"\n{part}\n");
        let config = Config::parse(&toml, Path::new("test.toml")).expect(part);
        let outcome = run(&Options::new(&path, Some(&config))).expect("a capture");
        assert_eq!((outcome.incidents.len(), outcome.installed > 0), (incidents, rules), "{part}");
        assert!(outcome.dropped == 0 || !part.contains("evaluate"), "{part}");
    }
}

#[test]
fn what_breaks_off_gives_what_came_before() {
    let whole = pcap(&flood(F::UdpFlood, 60_000, 500, 0), 1);
    let cut = replayed(&whole[..whole.len() - 7], |_| {});
    assert_eq!((cut.frames, cut.cut, cut.incidents.len()), (29_999, true, 1));
    let ng = pcapng(&flood(F::UdpFlood, 60_000, 500, 0));
    assert!(replayed(&ng[..ng.len() - 7], |_| {}).cut);
}

#[test]
fn no_file_makes_it_fall() {
    let folder = TempDir::new().expect("a folder");
    let frames = flood(F::FragmentFlood, 60_000, 2, 0);
    let mut dice = Dice(3);
    let mut read = 0;
    for file in [pcap(&frames, 1), pcapng(&frames), pcap(&frames, 101)] {
        for _ in 0..120 {
            let mut broken = file.clone();
            for _ in 0..1 + dice.below(12) {
                // Often in the headers, where a byte says how long something is.
                let end = if dice.below(2) == 0 { broken.len() as u64 } else { 120 };
                let at = dice.below(end) as usize;
                broken[at] = dice.roll() as u8;
            }
            broken.truncate(broken.len() - dice.below(40) as usize);
            read += usize::from(run(&Options::new(&written(&folder, &broken), None)).is_ok());
        }
    }
    assert!(read > 30, "most are still captures: {read}");
}

fn ftagent(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ftagent"));
    command.env_remove("FTAGENT_CONFIG").arg("replay").args(arguments).output().expect("the agent's program")
}

#[test]
fn the_command_prints_an_incident_a_line_and_says_by_its_status_how_it_went() {
    let folder = TempDir::new().expect("a folder");
    let file = written(&folder, &pcap(&flood(F::DnsAmplification, 60_000, 500, 0), 1));
    let file = file.to_str().expect("a name in UTF-8");
    let config = folder.path().join("ftagent.toml");
    std::fs::write(&config, "[[interface]]\nname = \"eth0\"\n").expect("a file");
    let config = config.to_str().expect("a name in UTF-8");

    let json = ftagent(&[file, "--json", "--config", config, "--sample", "100"]);
    assert_eq!(json.status.code(), Some(0), "{json:?}");
    let lines = String::from_utf8(json.stdout).expect("UTF-8");
    let reports: Vec<IncidentReport> = lines.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(reports.iter().map(|r| r.family).collect::<Vec<_>>(), [F::DnsAmplification]);

    let explained = ftagent(&[file, "--explain", "--config", config, "--target", TARGET]);
    let text = String::from_utf8(explained.stdout).expect("UTF-8");
    for part in ["TIME LINE", "opened", "mitigated", "resolved", "the capture ends", "why:", "53 100.0 %", "fit "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let missing = folder.path().join("missing");
    let missing = missing.to_str().expect("a name in UTF-8");
    // (arguments, status)
    let table: [(&[&str], i32); 5] = [
        (&[missing, "--config", config], 1),
        (&[config, "--config", config], 1),
        (&[file, "--config", missing], 1),
        (&[file, "--config", config, "--rate", "0"], 2),
        (&[file, "--config", config, "--seconds", "3"], 2),
    ];
    for (arguments, status) in table {
        let got = ftagent(arguments);
        assert_eq!(got.status.code(), Some(status), "{arguments:?}: {got:?}");
        assert!(!got.stderr.is_empty() && got.stdout.is_empty(), "{arguments:?}: {got:?}");
    }
}
