//! What a tick costs with many targets and samples: printed, since machines differ. What is asserted is the work done.
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use ftagent::engine::{CounterReading, Engine, Input, PacketSample, Payload, Settings};
use ftagent_common::abi::{Reason, TargetCounters};
use ftagent_common::frame::Frame;
use ftagent_common::packet::{Checks, Kind, Packet, parse_into};
use ftagent_lab::floods::{Dice, FLOODS};

use crate::kernel::{SEC, TICK, at};

#[test]
fn a_tick_of_a_thousand_targets_is_cheap() {
    let mut engine = Engine::new(Settings::default(), at(SEC));
    let mut dice = Dice(3);
    let targets: Vec<IpAddr> = (0..1_000u32).map(|i| Ipv4Addr::from(0xcb00_7100 + i * 3).into()).collect();
    let mut counters = vec![TargetCounters::default(); targets.len()];
    let mut samples = Vec::new();
    for i in 0..500 {
        let spec = FLOODS[9].1(&mut dice, targets[i % 10]);
        let frame = spec.frame();
        let mut packet = Packet::EMPTY;
        let kind = parse_into(&Frame::new(&frame), frame.len(), Checks::NONE, &mut packet);
        assert_eq!(kind, Kind::Ip);
        let payload = Payload::of(&frame[usize::from(packet.payload_offset)..]);
        let reason = Reason::Clean;
        samples.push(PacketSample { time_ns: 0, packet, wire_len: 600, one_in: 1, reason, payload });
    }
    // (name, packets per tick of the first target)
    for (name, attacked) in [("calm", 5), ("one target under attack", 20_000)] {
        let ticks = 100;
        let mut spent = std::time::Duration::ZERO;
        let mut worst = std::time::Duration::ZERO;
        for tick in 1..=ticks {
            let now = at(if attacked > 5 { 200 * SEC } else { SEC } + tick * TICK);
            for (i, c) in counters.iter_mut().enumerate() {
                let packets = if i == 0 { attacked } else { 2 };
                let flow = &mut c.classes[i % 8].passed;
                (flow.packets, flow.bytes) = (flow.packets + packets, flow.bytes + packets * 100);
            }
            let targets = targets.iter().copied().zip(counters.iter().copied()).collect();
            let reading = CounterReading { targets, ..CounterReading::default() };
            let mut batch = samples.clone();
            batch.iter_mut().for_each(|s| s.time_ns = now.mono_ns - 1_000_000);
            let begin = Instant::now();
            engine.on(Input::Samples(batch), now);
            engine.on(Input::Counters(reading), now);
            while engine.poll_command().is_some() {}
            let took = begin.elapsed();
            spent += took;
            worst = worst.max(took);
        }
        let mean = spent / ticks as u32;
        println!("1,000 targets, 500 samples, {name}: {mean:?} a tick, {worst:?} at worst");
        let attacked_targets: Vec<_> = engine.view().incidents.iter().map(|i| i.target.addr()).collect();
        let expected = if attacked > 5 { vec![targets[0]] } else { Vec::new() };
        assert_eq!(attacked_targets, expected, "{name}");
    }
    let state = engine.state();
    let json = serde_json::to_vec(&state).expect("JSON");
    println!("state of 1,000 targets: {} KiB", json.len() / 1_024);
    assert!(json.len() < 4 << 20, "the state file is bounded: {} bytes", json.len());
}
