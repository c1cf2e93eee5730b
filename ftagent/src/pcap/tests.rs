//! The writer with files of its own: limits, ends, what is left after a kill, what goes first.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ftagent_common::abi::Reason;
use pcap_file::pcapng::PcapNgReader;
use pcap_file::pcapng::blocks::Block;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use tempfile::TempDir;
use time::OffsetDateTime;

use super::file::{Bounds, Growing, Room, finished, growing, recover};
use super::record::tests::to;
use super::shelf::{Ended, Retention, Shelf, due};
use super::*;
use crate::clock;

const A: Uuid = Uuid::from_u128(0xa);
const B: Uuid = Uuid::from_u128(0xb);
const BOUNDS: Bounds = Bounds { max_packets: 1_000, max_bytes: 1_000_000, snap_bytes: 128 };

fn config() -> PcapConfig {
    PcapConfig {
        pre_secs: 5,
        memory_bytes: 1 << 20,
        bounds: BOUNDS,
        part_secs: 300,
        max_parts: 1,
        upload_bytes_per_sec: None,
        retention: Retention { days: 14, bytes: 10_000_000 },
    }
}

fn eth0() -> Interfaces {
    [(0, ("eth0".to_owned(), Hook::Xdp))].into()
}

fn name() -> (String, Hook) {
    ("eth0".to_owned(), Hook::Xdp)
}

/// Comments and drop counts of the packets in a file, as an independent reader finds them.
fn comments(path: &Path) -> Vec<(Duration, String, u64)> {
    let mut reader = PcapNgReader::new(fs::File::open(path).expect("a file")).expect("a section");
    let mut comments = Vec::new();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.expect("whole blocks") else { continue };
        let mut words = String::new();
        let mut missed = 0;
        for option in &packet.options {
            match option {
                EnhancedPacketOption::Comment(comment) => words = comment.to_string(),
                EnhancedPacketOption::DropCount(count) => missed = *count,
                _ => {}
            }
        }
        assert_eq!(packet.original_len, 1_400);
        comments.push((packet.timestamp, words, missed));
    }
    comments
}

fn wait(captures: &Captures, what: &str, is: impl Fn(&CapturesStatus) -> bool) -> CapturesStatus {
    for _ in 0..1_000 {
        let status = captures.status();
        if is(&status) {
            return status;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: {:?}", captures.status());
}

fn target(host: u8) -> IpNet {
    format!("10.99.0.{host}/32").parse().expect("a prefix")
}

#[test]
fn two_incidents_share_the_ring_and_have_a_file_each() {
    let dir = TempDir::new().expect("a directory");
    let mut captures = Captures::start(config(), dir.path().join("captures")).expect("a thread");
    let now = clock::mono_ns();
    let ms = 1_000_000;
    for i in 0..100 {
        captures.sample(to(1 + u8::from(i % 2 == 1), now - (200 - i) * ms, Reason::Clean));
    }
    captures.incident(A, target(1), true, eth0());
    captures.incident(B, target(2), true, eth0());
    for i in 0..50 {
        captures.sample(to(1, now + i * ms, Reason::BlockedSource));
    }
    captures.incident(A, target(1), false, eth0());
    let status = wait(&captures, "one ended", |s| s.captures.iter().any(|c| c.ended == Some(Ended::Resolved)));
    assert_eq!((status.captures.len(), status.growing), (2, 1));
    captures.stop();

    let path = finished(&dir.path().join("captures"), A);
    let packets = comments(&path);
    let dropped = packets.iter().filter(|(_, words, _)| words == "drop: blocked_source, 1 in 4").count();
    let clean = packets.iter().filter(|(_, words, _)| words == "pass: clean, 1 in 4").count();
    // 50 before to the target, and one of something else for each four.
    assert_eq!((dropped, clean), (50, 50 + 13), "{packets:?}");
    assert!(packets.is_sorted_by_key(|(at, ..)| *at));
    let wall = clock::wall().unix_timestamp_nanos();
    let newest = packets.last().expect("packets").0.as_nanos();
    assert!(wall.unsigned_abs().abs_diff(newest) < 10_000_000_000, "the wall clock of then");
    // Some times are no whole microseconds.
    assert!(packets.iter().any(|(at, ..)| at.subsec_nanos() % 1_000 != 0 || now.is_multiple_of(1_000)));

    let mut shelf = Shelf::at(dir.path().join("captures"));
    shelf.load(BOUNDS.max_bytes).expect("read again");
    let ends: Vec<_> = shelf.list().iter().map(|c| (c.incident, c.ended, c.complete)).collect();
    assert_eq!(ends, [(A, Some(Ended::Resolved), true), (B, Some(Ended::AgentStopped), false)]);
    assert_eq!(shelf.list()[0].dropped, Some(50));
}

#[test]
fn an_incident_has_one_capture_and_it_ends_at_its_bounds() {
    let dir = TempDir::new().expect("a directory");
    let mut config = config();
    config.bounds.max_packets = 100;
    let mut captures = Captures::start(config, dir.path().to_owned()).expect("a thread");
    captures.incident(A, target(1), true, eth0());
    let now = clock::mono_ns();
    // A second for each: nothing is thinned.
    for i in 0..2_000 {
        captures.sample(to(1, now + i * 3_000_000_000, Reason::Clean));
    }
    captures.hand_over();
    let status = wait(&captures, "the limit", |s| s.captures.iter().any(|c| c.ended == Some(Ended::PacketLimit)));
    assert_eq!((status.captures[0].packets, status.captures[0].complete), (100, true));
    captures.incident(A, target(1), true, eth0());
    captures.sample(to(1, now, Reason::Clean));
    captures.incident(A, target(1), false, eth0());
    captures.stop();
    assert_eq!(comments(&finished(dir.path(), A)).len(), 100);
}

#[test]
fn a_file_never_exceeds_its_bytes_and_counts_what_it_leaves_out() {
    let dir = TempDir::new().expect("a directory");
    let bounds = Bounds { max_packets: 1_000_000, max_bytes: 100_000, snap_bytes: 64 };
    let mut file = Growing::create(dir.path(), A, bounds, 0, "a", "Linux").expect("a file");
    let mut written = 0;
    loop {
        if written == 10 {
            file.miss(&to(1, 5, Reason::Clean));
            file.miss(&to(1, 5, Reason::Clean));
        }
        match file.push(&to(1, 1_000 + written, Reason::Clean), name).expect("room on disk") {
            Room::More => written += 1,
            room => break assert_eq!(room, Room::Bytes),
        }
    }
    let summary = file.finish("byte_limit", true).expect("finished");
    assert_eq!((summary.packets, summary.missed), (written, 2));
    let path = finished(dir.path(), A);
    let bytes = fs::metadata(&path).expect("there").len();
    assert!(bytes <= 100_000 && bytes == summary.bytes, "{bytes} {summary:?}");
    let missed: Vec<u64> = comments(&path).iter().map(|(.., missed)| *missed).collect();
    assert_eq!((missed[10], missed.iter().sum::<u64>()), (2, 2));
}

#[test]
fn a_file_cut_at_any_byte_is_finished_after_its_last_whole_block() {
    let dir = TempDir::new().expect("a directory");
    let mut file = Growing::create(dir.path(), A, BOUNDS, 0, "a", "Linux").expect("a file");
    let mut ends = Vec::new();
    for i in 0..6 {
        file.push(&to(1, 1_000 + i, Reason::Clean), name).expect("room");
        file.flush().expect("written");
        ends.push(file.summary().bytes);
    }
    let whole = fs::read(growing(dir.path(), A)).expect("there");
    drop(file);
    for cut in (0..=whole.len()).step_by(7) {
        fs::write(growing(dir.path(), A), &whole[..cut]).expect("written");
        let expected = ends.iter().filter(|end| **end <= cut as u64).count();
        let summary = recover(dir.path(), A, BOUNDS.max_bytes).expect("recovered");
        assert_eq!(summary.packets, expected as u64, "cut at {cut}");
        assert!(!growing(dir.path(), A).exists());
        assert_eq!(finished(dir.path(), A).exists(), expected > 0, "cut at {cut}");
        if expected > 0 {
            assert_eq!(comments(&finished(dir.path(), A)).len(), expected);
            fs::remove_file(finished(dir.path(), A)).expect("removed");
        }
    }
}

#[test]
fn garbage_is_no_capture() {
    let dir = TempDir::new().expect("a directory");
    for garbage in [vec![0xff; 5_000], vec![0; 5_000], b"\x0a\x0d\x0d\x0a\xff\xff\xff\xff".to_vec()] {
        fs::write(growing(dir.path(), A), &garbage).expect("written");
        assert_eq!(recover(dir.path(), A, BOUNDS.max_bytes).expect("read").packets, 0);
        assert!(!growing(dir.path(), A).exists());
    }
}

#[test]
fn at_start_what_was_left_is_finished_or_deleted_and_strange_names_are_left_alone() {
    let dir = TempDir::new().expect("a directory");
    let mut shelf = Shelf::at(dir.path().to_owned());
    assert!(!shelf.put(Capture::new(A, target(1), clock::wall())), "not before it was looked at");
    shelf.load(BOUNDS.max_bytes).expect("empty");
    assert!(shelf.put(Capture::new(A, target(1), clock::wall())));
    let mut file = Growing::create(dir.path(), A, BOUNDS, 0, "a", "Linux").expect("a file");
    for i in 0..3 {
        file.push(&to(1, 1_000 + i, Reason::Clean), name).expect("room");
    }
    file.flush().expect("written");
    drop(file);
    // B has no note, and a note has no capture.
    drop(Growing::create(dir.path(), B, BOUNDS, 0, "a", "Linux").expect("a file"));
    let lonely = Uuid::from_u128(0xc);
    fs::write(dir.path().join(format!("{lonely}.json")), "{}").expect("written");
    let strange = ["..pcapng", "x.pcapng.part", "{A}.pcapng", "$(reboot).pcapng.part", "%2e%2e.json", "0000.json"];
    for strange in strange {
        fs::write(dir.path().join(strange), "not ours").expect("written");
    }
    fs::create_dir(finished(dir.path(), Uuid::from_u128(0xd))).expect("a directory in a file's place");

    let mut shelf = Shelf::at(dir.path().to_owned());
    shelf.load(BOUNDS.max_bytes).expect("read");
    let known: Vec<_> = shelf.list().iter().map(|c| (c.incident, c.packets, c.ended, c.dropped)).collect();
    assert_eq!(known, [(A, 3, Some(Ended::Interrupted), None)]);
    assert_eq!(comments(&finished(dir.path(), A)).len(), 3);
    assert!(!growing(dir.path(), B).exists() && !dir.path().join(format!("{lonely}.json")).exists());
    for strange in strange {
        assert!(dir.path().join(strange).exists(), "{strange}");
    }
}

#[test]
fn the_oldest_go_first_and_those_that_grow_stay() {
    let at = |day: i64| OffsetDateTime::UNIX_EPOCH + time::Duration::days(day);
    let make = |n: u128, day: i64, bytes: u64, is_finished: bool| {
        let mut capture = Capture::new(Uuid::from_u128(n), target(1), at(day));
        capture.bytes = bytes;
        if is_finished {
            capture.end(Ended::Resolved);
        }
        capture
    };
    let captures = [make(1, 96, 400, true), make(2, 80, 300, true), make(3, 50, 300, false), make(4, 99, 100, true)];
    let ids = |retention: Retention, needed: u64| -> Vec<u128> {
        due(captures.iter(), retention, 500, needed, at(100)).iter().map(|id| id.incident.as_u128()).collect()
    };
    let keep = |days, bytes| Retention { days, bytes };
    assert_eq!(ids(keep(30, 10_000), 0), [0; 0]);
    assert_eq!(ids(keep(10, 10_000), 0), [2], "by age");
    // 500 for the one that grows, and 800 of the others.
    assert_eq!(ids(keep(30, 1_300), 0), [0; 0]);
    assert_eq!(ids(keep(30, 1_299), 0), [2], "by bytes");
    assert_eq!(ids(keep(30, 1_300), 500), [2, 1], "for one that begins");
    assert_eq!(ids(keep(30, 1), 0), [2, 1, 4]);
}

#[test]
fn a_full_disk_ends_the_capture_and_nothing_else() {
    // A small file system of its own, in a namespace of its own: this needs root.
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a_full_disk_ends_the_capture_and_nothing_else: needs root to mount a small tmpfs");
        return;
    }
    let inside = || {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).expect("private");
        let dir = TempDir::new().expect("a directory");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=256k")).expect("a small disk");
        let bounds = Bounds { max_packets: 1_000_000, max_bytes: 100_000_000, snap_bytes: 128 };
        let mut shelf = Shelf::at(dir.path().to_owned());
        shelf.load(bounds.max_bytes).expect("empty");
        shelf.put(Capture::new(A, target(1), clock::wall()));
        let offset = clock::wall().unix_timestamp_nanos();
        let mut file = Growing::create(dir.path(), A, bounds, offset, "a", "Linux").expect("a file");
        let mut pushed = 0_u64;
        let error = loop {
            match file.push(&to(1, pushed, Reason::Clean), name) {
                Ok(Room::More) => pushed += 1,
                Ok(room) => panic!("{room:?} before the disk was full"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        file.finish("disk_full", false).expect("finished where it is");
        let kept = comments(&finished(dir.path(), A)).len() as u64;
        assert!(kept > 500 && kept < pushed, "{kept} of {pushed}");

        let mut rest = fs::File::create(dir.path().join("rest")).expect("a file");
        while std::io::Write::write(&mut rest, &[0; 4_096]).is_ok_and(|written| written > 0) {}
        drop(rest);
        // The whole writer, on the same full disk: it says so and goes on.
        let mut captures = Captures::start(config(), dir.path().to_owned()).expect("a thread");
        captures.incident(B, target(1), true, eth0());
        captures.sample(to(1, clock::mono_ns(), Reason::Clean));
        captures.hand_over();
        let status = wait(&captures, "a fault", |s| s.fault.is_some());
        let known: Vec<_> = status.captures.iter().map(|c| (c.incident, c.packets, c.ended)).collect();
        assert_eq!((known, status.not_begun), (vec![(A, kept, Some(Ended::Interrupted))], 1));
        assert!(status.fault.is_some_and(|fault| fault.contains(&B.to_string())));
        captures.stop();
        nix::mount::umount(dir.path()).expect("unmounted");
    };
    std::thread::spawn(inside).join().expect("no panic");
}

#[test]
fn a_slow_disk_loses_samples_and_not_the_agents_time() {
    let (sender, _nobody_reads) = sync_channel(2);
    let (_status_in, status) = watch::channel(CapturesStatus::default());
    let mut captures =
        Captures { sender, thread: None, status, batch: Vec::new(), waiting: VecDeque::new(), samples_lost: 0 };
    for i in 0..10_000 {
        captures.sample(to(1, i, Reason::Clean));
    }
    captures.hand_over();
    assert_eq!(captures.status().samples_lost, 10_000 - 2 * BATCH as u64);
    for _ in 0..10_000 {
        captures.incident(A, target(1), true, eth0());
    }
    assert_eq!(captures.waiting.len(), MAX_WAITING);
}

#[test]
fn a_long_attack_has_parts_and_the_last_one_ends_them() {
    let dir = TempDir::new().expect("a directory");
    let mut config = config();
    config.bounds.max_packets = 100;
    config.max_parts = 3;
    let mut captures = Captures::start(config, dir.path().to_owned()).expect("a thread");
    let now = clock::mono_ns();
    captures.sample(to(1, now, Reason::Clean));
    captures.incident(A, target(1), true, eth0());
    // A second for each: nothing is thinned.
    for i in 0..1_000 {
        captures.sample(to(1, now + i * 3_000_000_000, Reason::Clean));
    }
    captures.hand_over();
    let status = wait(&captures, "three parts", |s| s.captures.len() == 3 && s.growing == 0);
    let parts: Vec<_> = status.captures.iter().map(|c| (c.id().to_string(), c.packets, c.ended)).collect();
    let full = |name: String| (name, 100, Some(Ended::PacketLimit));
    assert_eq!(parts, [full(A.to_string()), full(format!("{A}-2")), full(format!("{A}-3"))]);
    captures.incident(A, target(1), true, eth0());
    captures.sample(to(1, now, Reason::Clean));
    captures.stop();
    // Every sample is in one of the parts, in order, until the last was full.
    let mut all = Vec::new();
    for part in 1..=3 {
        all.extend(comments(&finished(dir.path(), CaptureId { incident: A, part })));
    }
    assert_eq!((all.len(), all.is_sorted_by_key(|(at, ..)| *at)), (300, true));
    // Each part reads the two clocks for itself, some microseconds apart.
    let steps = all.windows(2).skip(1).map(|w| (w[1].0 - w[0].0).as_secs_f64().round() as u64).collect::<Vec<_>>();
    assert!(steps.iter().all(|secs| *secs == 3), "{steps:?}");

    // A restart goes on with the parts that are left, and forgets what belongs to no capture.
    fs::write(dir.path().join(format!("{A}-2.upload")), "{}").expect("written");
    fs::write(dir.path().join(format!("{B}.upload")), "{}").expect("written");
    let mut shelf = Shelf::at(dir.path().to_owned());
    shelf.load(BOUNDS.max_bytes).expect("read");
    assert_eq!((shelf.parts_of(A), shelf.parts_of(B), shelf.list().len()), (3, 0, 3));
    assert!(!dir.path().join(format!("{B}.upload")).exists());
    shelf.delete(CaptureId { incident: A, part: 2 });
    let left = |name: &str| dir.path().join(name).exists();
    assert!(!left(&format!("{A}-2.pcapng")) && !left(&format!("{A}-2.json")) && !left(&format!("{A}-2.upload")));
    assert!(left(&format!("{A}.pcapng")) && left(&format!("{A}-3.pcapng")));
}

#[test]
fn a_part_ends_when_it_is_old() {
    let dir = TempDir::new().expect("a directory");
    let mut config = config();
    (config.part_secs, config.max_parts) = (1, 2);
    let mut captures = Captures::start(config, dir.path().to_owned()).expect("a thread");
    captures.incident(A, target(1), true, eth0());
    captures.sample(to(1, clock::mono_ns(), Reason::Clean));
    captures.hand_over();
    let ends = |s: &CapturesStatus| s.captures.iter().map(|c| (c.part, c.ended)).collect::<Vec<_>>();
    wait(&captures, "two parts", |s| ends(s) == [(1, Some(Ended::Continued)), (2, None)]);
    captures.sample(to(1, clock::mono_ns(), Reason::Clean));
    captures.hand_over();
    // The last one lasts, however old it is.
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(captures.status().growing, 1);
    captures.incident(A, target(1), false, eth0());
    let status = wait(&captures, "the end", |s| s.growing == 0);
    assert_eq!(ends(&status), [(1, Some(Ended::Continued)), (2, Some(Ended::Resolved))]);
    assert!(status.captures.iter().all(|c| c.complete && c.packets == 1));
    captures.stop();
}

#[test]
fn after_a_restart_an_incident_goes_on_in_the_next_part() {
    let dir = TempDir::new().expect("a directory");
    let mut config = config();
    config.max_parts = 2;
    for round in 0..3 {
        let mut captures = Captures::start(config, dir.path().to_owned()).expect("a thread");
        captures.incident(A, target(1), true, eth0());
        captures.sample(to(1, clock::mono_ns() + round, Reason::Clean));
        captures.stop();
    }
    let mut shelf = Shelf::at(dir.path().to_owned());
    shelf.load(BOUNDS.max_bytes).expect("read");
    let parts: Vec<_> = shelf.list().iter().map(|c| (c.part, c.packets, c.ended)).collect();
    assert_eq!(parts, [(1, 1, Some(Ended::AgentStopped)), (2, 1, Some(Ended::AgentStopped))]);
}

#[test]
fn an_attack_that_comes_back_has_a_part_for_each_return() {
    let dir = TempDir::new().expect("a directory");
    let mut config = config();
    config.max_parts = 3;
    let mut captures = Captures::start(config, dir.path().to_owned()).expect("a thread");
    let mut began = 0;
    for pulse in 1..=4 {
        captures.incident(A, target(1), true, eth0());
        captures.sample(to(1, clock::mono_ns(), Reason::Clean));
        captures.incident(A, target(1), false, eth0());
        began = pulse.min(3);
        let all = |s: &CapturesStatus| s.growing == 0 && s.captures.len() == began;
        wait(&captures, "the pulse's part", all);
    }
    let status = captures.status();
    assert!(status.captures.iter().all(|c| c.ended == Some(Ended::Resolved) && c.packets >= 1), "{status:?}");
    assert_eq!((status.captures.len(), began, status.not_begun), (3, 3, 0));
    captures.stop();
}
