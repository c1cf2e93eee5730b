//! Limits that are in the kernel before the attack: how long until they drop.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ftagent::engine::{Matches, Verdict};
use ftagent::xdp::counters;
use ftagent_common::abi::RuleHits;

use super::super::stats::{quantile, sorted};
use super::super::under_test::{Load, UnderTest, Wires, net, rules};
use super::super::{Goal, Options};
use super::attack::{RATE, coarse_tick_ns};
use crate::clock::{Moment, now};
use crate::generator::{Bounds, Generator, Pace, Vary};
use crate::ladder::{ADDRESS, MAC};
use crate::meter::ATTACK_MAC;
use crate::packet::PacketBuilder;

/// Frames a second that the limit lets pass, and at once: what `ftagent rules add` makes of `1000pps`.
const PPS: u64 = 1_000;
const BURST: u64 = PPS / 10;
/// A flood that no limit has met by then is a failure.
const LONGEST: Duration = Duration::from_secs(1);
const RUNS: u32 = 200;
const QUICK_RUNS: u32 = 20;
/// Where the hits of the one rule lie: its number is 1.
const SLOT: u32 = 1;
const MOST_MS: f64 = 10.0;

/// Measures a limit of the target and one of the source.
///
/// # Errors
/// When the lab cannot be built or a limit does not drop at all.
pub(super) fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    let runs = if options.quick { QUICK_RUNS } else { RUNS };
    let limit = Verdict::LimitPps { pps: PPS, burst: BURST };
    let source = "198.51.100.9";
    let kinds = [
        ("target", Matches::target(net(&format!("{ADDRESS}/32")))),
        ("source", Matches::source(net(&format!("{source}/32")))),
    ];
    let template =
        PacketBuilder::v4([198, 51, 100, 9], ADDRESS).macs(ATTACK_MAC, MAC).udp(4_242, 4_242).payload(&[7; 64]);
    let mut all = Vec::new();
    let mut words = Vec::new();
    for (name, matches) in kinds {
        progress(&format!("latency: a limit of the {name}, {runs} floods"));
        let load = Load { rules: rules([(matches, limit)]), ..Load::default() };
        let under_test = UnderTest::new(Wires::new(1)?, &load)?;
        let times =
            sorted(floods(&under_test, &template.build(), runs).with_context(|| format!("limit of the {name}"))?);
        let at = |share| quantile(&times, share).unwrap_or_default();
        words.push(format!("{name}: p50 {:.2}, p99 {:.2}, longest {:.2} ms", at(0.5), at(0.99), at(1.0)));
        all.extend(times);
    }
    let all = sorted(all);
    let value = quantile(&all, 0.99);
    Ok(vec![Goal {
        value,
        met: value.map(|value| value <= MOST_MS),
        minimum: all.first().copied(),
        median: quantile(&all, 0.5),
        rounds: all.len() as u32,
        ..Goal::missing(
            "P9a",
            "first attack packet to drop by a limit in the kernel, p99",
            "ms",
            "<= 10 ms",
            &format!(
                "{RATE} frames a second into a limit of {PPS} with a burst of {BURST}, which is {:.1} ms of it; {}",
                BURST as f64 * 1e3 / (RATE - PPS) as f64,
                words.join("; "),
            ),
        )
    }])
}

/// Milliseconds to the first drop of each flood.
fn floods(under_test: &UnderTest, template: &[u8], runs: u32) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    let device = under_test.wires.pairs[0].1.index;
    under_test.wires.wan.run(|| -> anyhow::Result<()> {
        let mut generator = Generator::load(template, &Vary::default(), 1)?;
        generator.keep_ready()?;
        for run in 0..runs {
            let ms = flood(under_test, &mut generator, device).with_context(|| format!("flood {run} of {runs}"))?;
            times.push(ms);
            // Until the burst may be sent again.
            thread::sleep(Duration::from_millis(BURST * 1_000 / PPS + 20));
        }
        Ok(())
    })??;
    Ok(times)
}

/// Between two looks at the counters; without a pause the looking would take the sender's time.
const LOOK: Duration = Duration::from_micros(50);

/// Looks at the counters until something is dropped. A look that is kept waiting sees the drop late; the rule's own stamp lags by a tick
/// of the kernel at most. Neither is too early, so the earlier one counts.
fn flood(under_test: &UnderTest, generator: &mut Generator, device: u32) -> anyhow::Result<f64> {
    let (began, over) = (OnceLock::new(), AtomicBool::new(false));
    let before = under_test.dropped()?;
    let maps = under_test.maps();
    maps.rule_hits.insert(&SLOT, &RuleHits::default())?;
    let seen = thread::scope(|scope| -> anyhow::Result<Option<Moment>> {
        let watch = scope.spawn(|| {
            let deadline = now() + LONGEST;
            let seen = loop {
                match under_test.dropped() {
                    Ok(dropped) if dropped > before => break Ok(Some(Moment::now())),
                    Ok(_) if now() < deadline => thread::sleep(LOOK),
                    Ok(_) => break Ok(None),
                    Err(error) => break Err(error),
                }
            };
            over.store(true, Ordering::Relaxed);
            seen
        });
        let bounds = Bounds { stop: Some(&over), began: Some(&began), ..Bounds::new(u64::MAX, LONGEST) };
        let sent = generator.send(device, Pace::PerSecond(RATE), bounds);
        let seen = watch.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        sent?;
        Ok(seen)
    })?;
    let began = began.get().context("not one frame was sent")?;
    let Some(seen) = seen else { bail!("nothing was dropped within {LONGEST:?}") };
    let stamp = counters::rule_hits(maps, SLOT)?.first_ns;
    if stamp == 0 {
        bail!("what was dropped, was not dropped by the limit");
    }
    let earlier = seen.mono_ns.min(stamp + coarse_tick_ns());
    Ok(earlier.saturating_sub(began.mono_ns) as f64 / 1e6)
}
