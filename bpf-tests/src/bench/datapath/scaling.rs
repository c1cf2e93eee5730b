//! P7: two CPUs, each with a generator and a wire of its own, on the same maps.

use std::sync::Barrier;
use std::time::Duration;

use super::Goal;
use crate::bench::live::{Flood, cpus};
use crate::bench::under_test::{Floor, Load, UnderTest, Wires, net, rules};
use crate::bench::{Options, stats};
use crate::generator::Vary;
use crate::ladder::{ADDRESS, MAC, Stopwatch};
use crate::packet::PacketBuilder;
use ftagent::engine::{Matches, Verdict};

const WHAT: &str = "two CPUs: share of the bare drop's scaling";
const WANTED: &str = ">= 0.9";

pub(super) fn run(options: &Options) -> anyhow::Result<Goal> {
    let cpus = cpus()?;
    let &[first, second, ..] = cpus.as_slice() else {
        return Ok(Goal::missing("P7", WHAT, "x", WANTED, "this machine has one CPU"));
    };
    let stopwatch = Stopwatch::start()?;
    let floor = Floor::new(Wires::new(2)?)?;
    let held =
        Load { rules: rules([(Matches::target(net(&format!("{ADDRESS}/32"))), Verdict::Drop)]), ..Load::default() };
    let under_test = UnderTest::new(Wires::new(2)?, &held)?;
    let template = PacketBuilder::v4([32, 1, 2, 3], ADDRESS).macs([2, 0, 0, 0, 0, 2], MAC).udp(4_000, 4_242);
    let template = template.payload(&[0; 18]).build();
    let vary = Vary { sources: Some(net("32.0.0.0/4")), ..Vary::default() };
    let mut floods = [Flood::new(&template, &vary, first)?, Flood::new(&template, &vary, second)?];
    let time = Duration::from_millis(if options.quick { 60 } else { 150 });

    let (mut shares, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let trivial = scaling(&mut floods, &floor.wires, &stopwatch, time)?;
        let datapath = scaling(&mut floods, &under_test.wires, &stopwatch, time)?;
        shares.push(datapath / trivial);
        ours.push(datapath);
        theirs.push(trivial);
    }
    let median = stats::median(&shares);
    let of = |values: &[f64]| stats::median(values).unwrap_or(0.0);
    Ok(Goal {
        value: median,
        met: median.map(|share| share >= 0.9),
        minimum: stats::minimum(&shares),
        median,
        rounds: options.rounds,
        ..Goal::missing(
            "P7",
            WHAT,
            "x",
            WANTED,
            &format!("both CPUs drop {:.2} times as much as one, with a bare drop {:.2} times", of(&ours), of(&theirs)),
        )
    })
}

/// Frames a second of both CPUs at once over those of each by itself, the generators included.
fn scaling(floods: &mut [Flood; 2], wires: &Wires, stopwatch: &Stopwatch, time: Duration) -> anyhow::Result<f64> {
    let [one, other] = floods;
    let alone =
        1.0 / one.send(wires, 0, stopwatch, time)?.wall_ns + 1.0 / other.send(wires, 1, stopwatch, time)?.wall_ns;
    let barrier = Barrier::new(2);
    let both = std::thread::scope(|scope| -> anyhow::Result<f64> {
        let beside = scope.spawn(|| {
            barrier.wait();
            other.send(wires, 1, stopwatch, time)
        });
        barrier.wait();
        let here = one.send(wires, 0, stopwatch, time);
        let there = beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(1.0 / here?.wall_ns + 1.0 / there?.wall_ns)
    })?;
    Ok(both / (alone / 2.0))
}
