//! Every capture at hand is rewritten and checked frame by frame; some are sent and counted.

use std::net::IpAddr;
use std::time::Duration;

use bpf_tests::captures::Captures;
use bpf_tests::checksum::{Verdict, verify};
use bpf_tests::generator::{Bounds, Pace, Sent};
use bpf_tests::meter::{ATTACK_MAC, Counts, Then, XdpCounter};
use bpf_tests::replay::{Recording, ReplayError, Rewrite, Selection, Timing, send};
use bpf_tests::{generate, skip_without_root};
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Checks, Kind, Packet, parse_into};

use crate::lab::{EDGE_MAC, EDGE_V4, EDGE_V6, Lab};

fn captures(test: &str) -> Option<Captures> {
    let found = Captures::find().expect("readable labels");
    if found.is_none() {
        println!("skipped: {test} needs a folder of captures (FTAGENT_CAPTURES)");
    }
    found
}

fn unchanged() -> Rewrite {
    Rewrite { src_mac: ATTACK_MAC, dst_mac: EDGE_MAC, target_v4: None, target_v6: None, sources: Vec::new() }
}

fn to_edge() -> Rewrite {
    Rewrite {
        target_v4: Some(EDGE_V4.into()),
        target_v6: Some(EDGE_V6.into()),
        sources: vec!["198.18.0.0/15".parse().expect("a prefix"), "2001:db8:5::/48".parse().expect("a prefix")],
        ..unchanged()
    }
}

fn packet(frame: &[u8]) -> Packet {
    let mut packet = Packet::EMPTY;
    assert_eq!(parse_into(&Frame::new(frame), frame.len(), Checks::NONE, &mut packet), Kind::Ip);
    packet
}

/// A frame with its addresses, link addresses and checksums blanked: what must not change.
fn rest(frame: &[u8]) -> Vec<u8> {
    let p = packet(frame);
    let mut rest = frame.to_vec();
    let l3 = 14 + 4 * usize::from(p.vlan_tags);
    rest[..12].fill(0);
    if p.version == 4 {
        rest[l3 + 10..l3 + 20].fill(0);
    } else {
        rest[l3 + 8..l3 + 40].fill(0);
    }
    let l4 = usize::from(p.l4_offset);
    for (protocol, offset) in [(6, 16), (17, 6), (58, 2)] {
        if p.protocol == protocol && l4 + offset + 2 <= rest.len() {
            rest[l4 + offset..l4 + offset + 2].fill(0);
        }
    }
    rest
}

#[test]
fn rewriting_changes_addresses_and_keeps_checksums_in_every_capture() {
    let Some(captures) = captures("rewriting_changes_addresses_and_keeps_checksums_in_every_capture") else { return };
    let (mut files, mut frames, mut right, mut unusable) = (0, 0, 0, 0);
    for label in &captures.labels {
        let path = captures.path(label);
        let (before, after) = match (
            Recording::load(&path, &Selection::All, &unchanged()),
            Recording::load(&path, &Selection::All, &to_edge()),
        ) {
            (Ok(before), Ok(after)) => (before, after),
            // Hostile files may hold nothing usable; all others must.
            (Err(_), Err(_)) if label.class == "hostile" => {
                unusable += 1;
                continue;
            }
            (before, after) => panic!("{}: {:?} {:?}", label.file, before.err(), after.err()),
        };
        assert_eq!(before.left_out, after.left_out, "{}", label.file);
        files += 1;
        for (number, (before, after)) in before.frames.iter().zip(&after.frames).enumerate() {
            let place = || format!("{} frame {number}", label.file);
            assert_eq!(before.at, after.at, "{}", place());
            let p = packet(&after.bytes);
            let expected = if p.version == 4 { IpAddr::from(EDGE_V4) } else { IpAddr::from(EDGE_V6) };
            assert_eq!(IpAddr::from(p.dst), expected, "{}", place());
            assert_eq!(rest(&before.bytes), rest(&after.bytes), "{}", place());
            let verdict = verify(&after.bytes);
            assert_eq!(verify(&before.bytes), verdict, "{}", place());
            frames += 1;
            right += u64::from(verdict == Verdict::Right);
        }
    }
    println!(
        "{files} captures, {frames} frames, {right} with right checksums; {unusable} hostile files hold nothing usable"
    );
    assert!(right > frames / 2);
}

#[test]
fn every_attack_capture_has_packets_to_its_targets() {
    let Some(captures) = captures("every_attack_capture_has_packets_to_its_targets") else { return };
    for label in captures.class("attack") {
        let targets = label.targets();
        let selection = if targets.is_empty() { Selection::All } else { Selection::To(targets) };
        let recording = Recording::load(&captures.path(label), &selection, &to_edge());
        let recording = recording.unwrap_or_else(|error| panic!("{}: {error}", label.file));
        println!(
            "{}: {} of {} packets, {} padded, left out {:?}",
            label.file,
            recording.frames.len(),
            label.packets,
            recording.padded,
            recording.left_out
        );
        let counted = recording.left_out.not_ip + recording.left_out.not_chosen + recording.left_out.too_long;
        assert_eq!(recording.frames.len() as u64 + counted, label.packets, "{}", label.file);
    }
}

fn replay(recording: &Recording, timing: Timing, frames: u64) -> Duration {
    let lab = Lab::new();
    let counter =
        lab.edge.run(|| XdpCounter::attach("edge0", Then::Drop)).expect("inside").expect("native XDP on veth");
    let bounds = Bounds::new(frames, Duration::from_secs(60));
    let sent = lab.wan.run(|| send("wan0", recording, timing, bounds)).expect("inside").expect("sends");
    assert_eq!(sent.frames, frames);
    assert_eq!(counter.counts().expect("readable"), Counts { attack: sent.arrived(), other: 0 });
    let took = sent.last - sent.first;
    println!("{frames} frames in {:.3} s, {} lost in the ring", took.as_secs_f64(), sent.ring_dropped);
    took
}

#[test]
fn replayed_frames_arrive_to_the_frame() {
    if skip_without_root("replayed_frames_arrive_to_the_frame") {
        return;
    }
    let Some(captures) = captures("replayed_frames_arrive_to_the_frame") else { return };
    let label = captures.class("attack").find(|l| l.family == "udp_flood").expect("a UDP flood");
    let recording =
        Recording::load(&captures.path(label), &Selection::To(label.targets()), &to_edge()).expect("usable");
    replay(&recording, Timing::Paced(Pace::Full), 100_000);
    let took = replay(&recording, Timing::Paced(Pace::PerSecond(20_000)), 10_000);
    assert!(took >= Duration::from_millis(499), "{took:?}");
    let span = recording.frames.last().expect("not empty").at;
    let took = replay(&recording, Timing::Recorded { speed: 0.5 }, recording.frames.len() as u64);
    assert!(took >= span * 2, "{took:?} for a capture of {span:?} at half speed");
}

#[test]
fn frames_that_the_ring_refuses_are_sent_again_and_counted_once() {
    if skip_without_root("frames_that_the_ring_refuses_are_sent_again_and_counted_once") {
        return;
    }
    let lab = Lab::new();
    // Passing costs the receiver more than sending costs the sender: the ring fills.
    let counter =
        lab.edge.run(|| XdpCounter::attach("edge0", Then::Pass)).expect("inside").expect("native XDP on veth");
    let attack = generate::all(EDGE_V4.into(), ATTACK_MAC, EDGE_MAC).remove(0);
    let recording = Recording::from_frames(attack.frames);
    let bounds = Bounds::new(60_000, Duration::from_secs(60));
    let one = || lab.wan.run(|| send("wan0", &recording, Timing::Paced(Pace::Full), bounds)).expect("inside");
    let sent: Vec<Sent> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
        senders.into_iter().map(|sender| sender.join().expect("no panic").expect("sends")).collect()
    });
    let frames: u64 = sent.iter().map(|sent| sent.frames).sum();
    let refused: u64 = sent.iter().map(|sent| sent.refused).sum();
    let dropped = bpf_tests::veth::stats(&lab.wan, &lab.wan0).expect("statistics").tx_dropped;
    let counted = counter.counts().expect("readable").attack;
    println!("{frames} frames sent, {counted} arrived; the device dropped {dropped} and refused {refused}");
    assert_eq!(counted + dropped.saturating_sub(refused), frames);
}

#[test]
fn generated_attacks_are_right_frames_and_can_be_sent() {
    if skip_without_root("generated_attacks_are_right_frames_and_can_be_sent") {
        return;
    }
    for attack in generate::all(EDGE_V4.into(), ATTACK_MAC, EDGE_MAC) {
        assert!(attack.frames.len() >= 256, "{}", attack.family);
        for frame in &attack.frames {
            assert_eq!(IpAddr::from(packet(frame).dst), IpAddr::from(EDGE_V4), "{}", attack.family);
            assert!(matches!(verify(frame), Verdict::Right | Verdict::NotChecked), "{}", attack.family);
        }
        replay(&Recording::from_frames(attack.frames), Timing::Paced(Pace::PerSecond(50_000)), 5_000);
    }
}

#[test]
fn an_empty_choice_is_an_error() {
    let Some(captures) = captures("an_empty_choice_is_an_error") else { return };
    let nobody = Selection::To(vec!["192.0.2.200".parse().expect("an address")]);
    let path = captures.path(&captures.labels[0]);
    assert!(matches!(Recording::load(&path, &nobody, &unchanged()), Err(ReplayError::Empty)));
}
