use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use ftagent_common::api::{AckStatus, MetricsSample, ProfileState, ThresholdReport};
use ftagent_common::vocab::{AttackFamily, Severity};
use time::OffsetDateTime;

use super::*;

fn report(uuid: u128, revision: u32, status: IncidentStatus) -> Message {
    let at = OffsetDateTime::from_unix_timestamp(1_780_000_000 + i64::from(revision)).unwrap();
    Message::Incident(Box::new(IncidentReport {
        uuid: Uuid::from_u128(uuid),
        revision,
        status,
        target: "192.0.2.1/32".parse().unwrap(),
        family: AttackFamily::UdpFlood,
        subtype: None,
        vectors: Vec::new(),
        severity: Severity::High,
        confidence: 0.9,
        spoofed: false,
        carpet_bombing: false,
        started_at: at,
        updated_at: at,
        resolved_at: None,
        peak_pps: 1,
        peak_bps: 1,
        current_pps: 1,
        current_bps: 1,
        threshold: ThresholdReport {
            quantity: "pps".into(),
            value: 1,
            origin: "floor".into(),
            baseline: None,
            ratio: 1.0,
        },
        packets: 1,
        dropped_packets: 0,
        source_count: 1,
        distinct_sources: None,
        top_sources: Vec::new(),
        top_src_ports: Vec::new(),
        top_dst_ports: Vec::new(),
        protocols: Vec::new(),
        signature: None,
        explanation: Vec::new(),
        timeline: Vec::new(),
        executions: Vec::new(),
    }))
}

fn active(uuid: u128, revision: u32) -> Message {
    report(uuid, revision, IncidentStatus::Active)
}

fn metrics(second: i64, samples: usize) -> Message {
    let at = OffsetDateTime::from_unix_timestamp(1_780_000_000 + second).unwrap();
    let sample =
        MetricsSample { at, pps: 5, bps: 40, dropped_pps: 0, tcp_pps: 0, udp_pps: 0, icmp_pps: 0, other_pps: 0 };
    Message::Metrics(MetricsBatch { samples: vec![sample; samples] })
}

fn ack(n: u128) -> Message {
    Message::Ack(CommandAck {
        command_id: Uuid::from_u128(n),
        status: AckStatus::Applied,
        error: String::new(),
        output: String::new(),
    })
}

/// Every report that waits, oldest first, as (uuid, revision); acknowledgements are revision 0.
fn waiting(spool: &mut Spool) -> Vec<(u128, u32)> {
    let numbers: Vec<u64> = spool.entries.keys().copied().collect();
    let read = |n| match spool.read(n) {
        Some(Message::Incident(r)) => Some((r.uuid.as_u128(), r.revision)),
        Some(Message::Ack(a)) => Some((a.command_id.as_u128(), 0)),
        _ => None,
    };
    numbers.into_iter().filter_map(read).collect()
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn limits(messages: usize) -> Limits {
    Limits { messages, ..Limits::default() }
}

#[test]
fn a_report_of_a_profile_waits_like_an_acknowledgement() {
    let dir = dir();
    let mut spool = Spool::open(dir.path(), limits(2)).unwrap();
    let (application, state) = (Uuid::from_u128(9), ProfileState::RolledBack);
    let report = Message::Profile(ProfileReport { application, state, reason: "by hand".to_owned() });
    for message in [metrics(0, 5), report.clone(), metrics(5, 5), metrics(6, 5)] {
        spool.push(&message);
    }
    drop(spool);
    let mut spool = Spool::open(dir.path(), limits(2)).unwrap();
    assert_eq!(spool.next_report().map(|(_, message)| message), Some(report), "metrics make room for it");
}

#[test]
fn messages_come_out_in_order_also_after_a_restart() {
    let dir = dir();
    let mut spool = Spool::open(dir.path(), Limits::default()).unwrap();
    for message in [active(1, 1), metrics(0, 5), active(1, 2), ack(7), metrics(5, 5), active(2, 1)] {
        assert!(spool.push(&message));
    }
    let (number, first) = spool.next_report().unwrap();
    assert_eq!(first, active(1, 1));
    spool.acknowledge(number);
    drop(spool);

    let mut spool = Spool::open(dir.path(), Limits::default()).unwrap();
    assert_eq!(waiting(&mut spool), [(1, 2), (7, 0), (2, 1)]);
    let (numbers, batch) = spool.next_metrics(300).unwrap();
    assert_eq!((numbers.len(), batch.samples.len()), (2, 10));
    assert_eq!(spool.next_metrics(7).unwrap().1.samples.len(), 5, "whole batches alone");
    assert_eq!(spool.status().queued, 5);
    assert_eq!(spool.status().lost, Losses::default());
}

#[test]
fn an_acknowledged_message_stays_away_and_an_empty_queue_takes_no_disk() {
    let dir = dir();
    let mut spool = Spool::open(dir.path(), Limits::default()).unwrap();
    spool.push(&active(1, 1));
    spool.push(&active(2, 1));
    let (number, _) = spool.next_report().unwrap();
    spool.acknowledge(number);
    spool.acknowledge(number);
    assert_eq!(Spool::open(dir.path(), Limits::default()).unwrap().status().queued, 1);
    let (number, _) = spool.next_report().unwrap();
    spool.acknowledge(number);
    assert_eq!(std::fs::metadata(dir.path().join("spool.log")).unwrap().len(), 0);
    assert!(spool.next_report().is_none());
}

#[test]
fn the_least_valuable_message_makes_room() {
    let dir = dir();
    let mut spool = Spool::open(dir.path(), limits(6)).unwrap();
    for message in [active(1, 1), metrics(0, 5), active(1, 2), active(1, 3), ack(9), active(2, 1)] {
        spool.push(&message);
    }
    /// What comes, what waits then, what is lost so far.
    type Step = (Message, &'static [(u128, u32)], Losses);
    let steps: [Step; 6] = [
        // The metrics go first.
        (active(3, 1), &[(1, 1), (1, 2), (1, 3), (9, 0), (2, 1), (3, 1)], Losses { metrics: 1, ..Losses::default() }),
        // Metrics never push a report out.
        (metrics(9, 1), &[(1, 1), (1, 2), (1, 3), (9, 0), (2, 1), (3, 1)], Losses { metrics: 2, ..Losses::default() }),
        // Then the update that a later one supersedes, then the opening that one supersedes.
        (
            active(4, 1),
            &[(1, 1), (1, 3), (9, 0), (2, 1), (3, 1), (4, 1)],
            Losses { metrics: 2, superseded: 1, ..Losses::default() },
        ),
        (
            active(5, 1),
            &[(1, 3), (9, 0), (2, 1), (3, 1), (4, 1), (5, 1)],
            Losses { metrics: 2, superseded: 2, ..Losses::default() },
        ),
        // Then the latest update.
        (
            active(6, 1),
            &[(9, 0), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)],
            Losses { metrics: 2, superseded: 2, incidents: 1, ..Losses::default() },
        ),
        (
            report(2, 2, IncidentStatus::Resolved),
            &[(9, 0), (3, 1), (4, 1), (5, 1), (6, 1), (2, 2)],
            Losses { metrics: 2, superseded: 3, incidents: 1, ..Losses::default() },
        ),
    ];
    for (step, (message, expected, lost)) in steps.into_iter().enumerate() {
        spool.push(&message);
        assert_eq!(waiting(&mut spool), expected, "step {step}");
        assert_eq!(spool.status().lost, lost, "step {step}");
    }
    let kept = waiting(&mut spool);
    assert_eq!(waiting(&mut Spool::open(dir.path(), limits(6)).unwrap()), kept, "what was lost stays lost");
}

#[test]
fn the_file_is_rewritten_before_it_grows_beyond_its_bound() {
    let dir = dir();
    let bytes = 300 << 10;
    let mut spool = Spool::open(dir.path(), Limits { bytes, ..Limits::default() }).unwrap();
    for second in 0..4_000 {
        spool.push(&metrics(second, 5));
        let size = std::fs::metadata(dir.path().join("spool.log")).unwrap().len();
        assert!(size <= 2 * bytes + (300 << 10), "{size} bytes after {second}");
    }
    assert!(spool.status().bytes <= bytes);
    assert!(spool.status().lost.metrics > 0);
    let queued = spool.status().queued;
    let mut again = Spool::open(dir.path(), Limits::default()).unwrap();
    assert_eq!(again.status().queued, queued);
    assert_eq!(again.status().lost.damaged_bytes, 0);
    let (_, newest) = again.next_metrics(usize::MAX).unwrap();
    let Message::Metrics(last) = metrics(3_999, 1) else { unreachable!() };
    assert_eq!(newest.samples.last(), last.samples.last());
}

#[test]
fn lower_limits_than_those_it_was_written_with_cost_the_least_valuable_alone() {
    let dir = dir();
    let mut spool = Spool::open(dir.path(), Limits::default()).unwrap();
    for second in 0..200 {
        spool.push(&metrics(second, 5));
    }
    spool.push(&active(1, 1));
    drop(spool);
    let mut spool = Spool::open(dir.path(), Limits { bytes: 4 << 10, ..Limits::default() }).unwrap();
    assert_eq!(waiting(&mut spool), [(1, 1)]);
    assert!(spool.status().bytes <= 4 << 10);
    assert_eq!(spool.status().lost.damaged_bytes, 0);
}

#[test]
fn a_queue_that_cannot_be_rewritten_goes_on() {
    let dir = dir();
    let mut spool = Spool::open(dir.path(), limits(20)).unwrap();
    // A directory is in the rewrite's way.
    std::fs::create_dir(dir.path().join("spool.tmp")).unwrap();
    for n in 0..1_000 {
        assert!(spool.push(&active(n, 1)));
    }
    assert_eq!(spool.status().fault, None, "nothing waits in memory");
    let kept = waiting(&mut spool);
    assert_eq!(kept.len(), 20);
    assert_eq!(waiting(&mut Spool::open(dir.path(), limits(20)).unwrap()), kept);
    std::fs::remove_dir(dir.path().join("spool.tmp")).unwrap();
    for n in 1_000..1_800 {
        spool.push(&active(n, 1));
    }
    let size = std::fs::metadata(dir.path().join("spool.log")).unwrap().len();
    assert!(size < 700 << 10, "{size}");
}

#[test]
fn a_full_disk_moves_the_queue_to_memory_and_back() {
    crate::on_a_small_disk(64 << 10, |dir| {
        let mut spool = Spool::open(dir, Limits { memory_bytes: 20 << 10, ..Limits::default() }).unwrap();
        assert!(spool.push(&active(1, 1)));
        let ballast = dir.join("ballast");
        drop(std::fs::write(&ballast, vec![0; 1 << 20]));
        // The file's last page has room for a few more.
        let durable = (2..100).take_while(|&n| spool.push(&active(n, 1))).count();
        assert!(durable < 90, "the disk is full");
        let fault = spool.status().fault.unwrap();
        assert!(fault.contains("spool.log") && fault.contains("free some space"), "{fault}");
        for second in 0..200 {
            spool.push(&metrics(second, 5));
        }
        assert!(spool.memory_bytes <= 20 << 10, "memory is bounded");
        assert!(spool.status().lost.metrics > 0 && spool.status().lost.incidents == 0);
        let expected = waiting(&mut spool);
        assert!(expected.starts_with(&[(1, 1), (2, 1)]), "{expected:?}");

        std::fs::remove_file(&ballast).unwrap();
        spool.retry_disk();
        assert_eq!(spool.status().fault, None);
        drop(spool);
        assert_eq!(waiting(&mut Spool::open(dir, Limits::default()).unwrap()), expected);
    });
}

/// The child of the next test: adds and acknowledges until it is killed, and says what is durable.
#[test]
#[ignore = "run by a_killed_writer_loses_nothing_that_it_called_durable in a process of its own"]
fn writer_to_be_killed() {
    let Some(dir) = std::env::var_os("FTAGENT_TEST_SPOOL") else { return };
    let mut spool = Spool::open(Path::new(&dir), Limits::default()).unwrap();
    for n in u128::from(spool.next).. {
        spool.push(&active(n, 1));
        println!("durable {n}");
        if n % 3 == 0 {
            let (number, message) = spool.next_report().unwrap();
            let Message::Incident(report) = message else { unreachable!() };
            println!("gone {}", report.uuid.as_u128());
            spool.acknowledge(number);
        }
    }
}

#[test]
fn a_killed_writer_loses_nothing_that_it_called_durable() {
    let dir = dir();
    let mut durable: Vec<u128> = Vec::new();
    let mut gone: Vec<u128> = Vec::new();
    for lines in [1, 2, 3, 7, 40, 90] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sync::spool::tests::writer_to_be_killed", "--ignored", "--nocapture"])
            .env("FTAGENT_TEST_SPOOL", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map(|l| l.unwrap());
        let mut said: Vec<String> = out.by_ref().take(lines).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        said.extend(out);
        let numbers = |word: &str| -> Vec<u128> {
            said.iter().filter(|l| l.contains(word)).map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect()
        };
        durable.extend(numbers("durable "));
        gone.extend(numbers("gone "));
        let mut spool = Spool::open(dir.path(), Limits::default()).unwrap();
        let there: Vec<u128> = waiting(&mut spool).iter().map(|(uuid, _)| *uuid).collect();
        assert!(there.is_sorted(), "{there:?}");
        for n in durable.iter().filter(|n| !gone.contains(n)) {
            assert!(there.contains(n), "{n} was durable and is gone: {there:?}");
        }
        assert!(there.last() >= durable.last(), "the newest durable message is there");
        let back = there.iter().filter(|n| gone.contains(n)).count();
        assert!(back <= 1, "at most the acknowledgement under way is forgotten: {there:?}");
    }
}
