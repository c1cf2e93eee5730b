//! R3: every frame is in exactly one verdict class, whatever CPU it came to. `FTAGENT_SUM_FRAMES` asks for more frames.

use std::fs;
use std::time::Duration;

use bpf_tests::clock::now;
use bpf_tests::generator::{Bounds, Generator, Pace, Vary};
use bpf_tests::meter::ATTACK_MAC;
use bpf_tests::packet::PacketBuilder;
use bpf_tests::skip_without_root;
use ftagent::engine::{Matches, Verdict};
use ftagent::xdp::counters;
use ftagent_common::abi::Reason;
use ftagent_common::packet::tcp_flag;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::datapath::{Datapath, net, rule, set};
use crate::endurance::asked_for;
use crate::lab::{EDGE_MAC, EDGE_V4, Lab};

const CPUS: usize = 2;

/// Frames that the other end's ring had no room for, of the device in the calling thread's namespace.
fn lost_in_the_ring(device: &str) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/dev").expect("the devices' counters");
    let line = text.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':')).expect("the device");
    // Eight numbers of what came, then bytes, packets, errors and drops of what left.
    line.split_whitespace().nth(11).expect("sixteen numbers").parse().expect("a number")
}

#[test]
fn the_verdicts_of_two_cpus_add_up_to_the_frames_sent() {
    if skip_without_root("the_verdicts_of_two_cpus_add_up_to_the_frames_sent") {
        return;
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < CPUS {
        println!("skipped: the_verdicts_of_two_cpus_add_up_to_the_frames_sent needs two CPUs");
        return;
    }
    let frames = asked_for("FTAGENT_SUM_FRAMES", 1_000_000) / CPUS as u64;
    // A queue for each CPU: a veth device takes a frame on the CPU that sent it.
    let mut datapath = Datapath::on(Lab::with_queues(CPUS as u32));
    // Seven of eight sources: a stack behind that answers would set the pace.
    let blocked = |id, prefix| rule(id, Matches::source(net(prefix)), Verdict::Drop);
    let limited = Matches { protocol: Some(17), ..Matches::target(net("10.99.0.1/32")) };
    datapath.apply(&set(vec![
        blocked(1, "64.0.0.0/4"),
        blocked(2, "80.0.0.0/5"),
        blocked(3, "88.0.0.0/6"),
        rule(4, limited, Verdict::LimitPps { pps: 1_000, burst: 100 }),
    ]));
    let builder = || PacketBuilder::v4([64, 0, 0, 1], EDGE_V4).macs(ATTACK_MAC, EDGE_MAC);
    let templates = [builder().udp(1024, 9).payload(&[0; 32]).build(), builder().tcp(1024, 80, tcp_flag::SYN).build()];
    let lab = &datapath.lab;
    let before = counters::interface(&datapath.maps, 0).expect("counters");
    let lost_before = lab.wan.run(|| lost_in_the_ring("wan0")).expect("inside");
    let began = now();
    std::thread::scope(|scope| {
        for (cpu, template) in templates.iter().enumerate() {
            scope.spawn(move || {
                let send = || {
                    let mut only = CpuSet::new();
                    only.set(cpu).expect("a CPU");
                    sched_setaffinity(Pid::from_raw(0), &only).expect("stays on one CPU");
                    let vary = Vary { sources: Some(net("64.0.0.0/3")), ..Vary::default() };
                    let mut generator = Generator::load(template, &vary, cpu as u64).expect("loads");
                    let bounds = Bounds::new(frames, Duration::from_secs(600));
                    generator.send(lab.wan0.index, Pace::Full, bounds).expect("sends").frames
                };
                assert_eq!(lab.wan.run(send).expect("inside"), frames);
            });
        }
    });
    let took = began.elapsed();
    std::thread::sleep(Duration::from_millis(300));
    let lost = lab.wan.run(|| lost_in_the_ring("wan0")).expect("inside") - lost_before;
    let per_cpu = datapath.maps.verdicts.lookup_all(&0).expect("counters").expect("the interface's");
    let of_cpu: Vec<u64> = per_cpu.iter().map(|c| c.reasons.iter().map(|r| r.packets).sum()).collect();
    let after = counters::interface(&datapath.maps, 0).expect("counters");
    let grown = |reason: Reason| after.reasons[reason.index()].packets - before.reasons[reason.index()].packets;
    let sum: u64 = Reason::ALL.iter().map(|r| grown(*r)).sum();
    let classes = |c: &ftagent_common::abi::InterfaceCounters| c.classes.iter().map(|f| f.total().packets).sum::<u64>();
    let sent = frames * CPUS as u64;
    println!(
        "{sent} frames sent on {CPUS} CPUs in {took:.1?}, {lost} lost in the ring: {} blocked, {} over the limit, {} clean, by CPU {of_cpu:?}",
        grown(Reason::BlockedPrefix),
        grown(Reason::TargetLimit),
        grown(Reason::Clean),
    );
    assert_eq!(sum + lost, sent, "frames by reason");
    assert_eq!(classes(&after) - classes(&before), sum, "frames by class");
    assert!(of_cpu.iter().filter(|frames| **frames > 10_000).count() >= CPUS, "one CPU had it all: {of_cpu:?}");
    assert!(grown(Reason::BlockedPrefix) > 0 && grown(Reason::TargetLimit) > 0, "blocks and the limit were met");
}
