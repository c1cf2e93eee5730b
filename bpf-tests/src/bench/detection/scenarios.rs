//! Attacks and growth over minutes, on the simulated clock.

use std::net::{IpAddr, Ipv4Addr};

use ftagent::engine::Settings;
use ftagent::replay::{Kernel, Sampling};
use ftagent_lab::floods::{Dice, Spec, forged, real, real_ttl};

use super::super::Goal;
use super::super::report::figure;
use super::clients::Clients;
use super::trial::{Diary, MS, SEC, node};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5));
const TICK_NS: u64 = 50 * MS;

/// UDP from some hundred hosts with addresses of their own.
fn bots(dice: &mut Dice, target: IpAddr) -> Spec {
    let mut s = Spec::new(real(dice, target, 400), target, 17);
    (s.ttl, s.src_port, s.dst_port) = (real_ttl(s.src), 1_024 + dice.below(60_000) as u16, 9_999);
    s.payload = vec![dice.roll() as u8; 200];
    s
}

fn syn(dice: &mut Dice, target: IpAddr) -> Spec {
    let mut s = Spec::new(forged(dice, target), target, 6);
    (s.src_port, s.dst_port, s.tcp_flags) = (1_024 + dice.below(60_000) as u16, 80, 2);
    s
}

/// Sends `pps` of what `make` makes until `end_ns`.
fn flood(kernel: &mut Kernel<Diary>, dice: &mut Dice, pps: u64, end_ns: u64, make: impl Fn(&mut Dice) -> Spec) {
    let start = kernel.now_ns;
    for i in 0..pps * (end_ns - start) / SEC {
        let frame = make(dice).frame();
        kernel.frame(&frame, frame.len(), start + i * SEC / pps);
    }
    kernel.run_until(end_ns);
}

/// Sends about `pps` packets of the clients until `end_ns`, spread over the ticks.
fn calm(kernel: &mut Kernel<Diary>, clients: &mut Clients, pps: u64, end_ns: u64) {
    while kernel.now_ns < end_ns {
        let tick = kernel.now_ns;
        let wanted = pps * TICK_NS / SEC;
        let mut sent = 0;
        while sent < wanted {
            let (spec, in_a_row) = clients.next();
            let frame = spec.frame();
            kernel.frames(&frame, frame.len(), in_a_row, tick + sent * TICK_NS / wanted.max(1));
            sent += in_a_row;
        }
        kernel.run_until(tick + TICK_NS);
    }
}

/// All scenarios but the day.
pub(super) fn run(quick: bool) -> Vec<Goal> {
    let mut goals = vec![carpet(), pulses()];
    if quick {
        let why = "not measured in a quick run";
        goals.extend([
            Goal::missing("D9", RAMP.0, "times", RAMP.1, why),
            Goal::missing("D10a", POISON.0, "times", POISON.1, why),
            Goal::missing("D10b", BELOW.0, "times", BELOW.1, why),
        ]);
    } else {
        goals.push(ramp());
        goals.extend(poison());
    }
    goals
}

const RAMP: (&str, &str) = ("slow ramp to 10 times over 30 min: seen at", "<= 4 times");
const POISON: (&str, &str) = ("threshold after a flood while learning", "= 1 times");
const BELOW: (&str, &str) = ("threshold after a flood just below it", "none");

/// 256 addresses, 500 packets per second each.
fn carpet() -> Goal {
    let mut kernel = node(Settings::default(), Sampling::Adaptive);
    kernel.run_for(2 * SEC + 17 * MS);
    let start = kernel.now_ns;
    let mut dice = Dice(9);
    for i in 0..3 * 128_000u64 {
        let target: IpAddr = Ipv4Addr::new(203, 0, 113, (i % 256) as u8).into();
        let frame = syn(&mut dice, target).frame();
        kernel.frame(&frame, frame.len(), start + i * SEC / 128_000);
    }
    kernel.run_for(SEC / 10);
    let began = kernel.at(start).wall;
    let reports: Vec<_> = kernel.watch.surest.values().collect();
    let first = reports.iter().map(|r| (r.started_at - began).as_seconds_f64() * 1e3).reduce(f64::min);
    let is_whole = |r: &&&ftagent_common::api::IncidentReport| r.carpet_bombing && r.target.prefix_len() == 24;
    let whole = reports.iter().filter(is_whole).count();
    let sent = kernel.datapath.passed + kernel.datapath.dropped;
    Goal {
        value: Some(reports.len() as f64),
        met: Some(reports.len() == 1 && whole == 1),
        ..Goal::missing(
            "D7",
            "carpet bombing of 256 addresses x 500 pps",
            "inc.",
            "= 1 on the /24",
            &format!(
                "{whole} on the prefix; opened after {} ms, first rule after {} ms; {:.1} % of the packets dropped in 3 s",
                first.map_or_else(|| "-".to_owned(), figure),
                kernel.first_rule_ns.map_or_else(|| "-".to_owned(), |ns| figure((ns - start) as f64 / 1e6)),
                kernel.datapath.dropped as f64 * 100.0 / sent as f64
            ),
        )
    }
}

/// 5 s on, 15 s off, for three minutes. The first pause outlasts the hold-down of 10 s, and nothing tells that it is one:
/// the rules leave then, and not again.
fn pulses() -> Goal {
    let mut kernel = node(Settings::default(), Sampling::Adaptive);
    kernel.run_for(2 * SEC);
    let mut dice = Dice(5);
    for _ in 0..9 {
        let end = kernel.now_ns + 5 * SEC;
        flood(&mut kernel, &mut dice, 30_000, end, |dice| bots(dice, HOST));
        kernel.run_for(15 * SEC);
    }
    let opened = kernel.watch.surest.len();
    let deployments = kernel.watch.deployments;
    let dropped = kernel.datapath.dropped as f64 * 100.0 / (kernel.datapath.passed + kernel.datapath.dropped) as f64;
    Goal {
        value: Some(opened as f64),
        met: Some(opened == 1 && deployments <= 2),
        ..Goal::missing(
            "D8",
            "pulse wave, 5 s on and 15 s off for 3 min",
            "inc.",
            "= 1, rules stay from pulse 2",
            &format!(
                "{opened} incidents; rules came into force {deployments} times for 9 pulses; {dropped:.1} % dropped"
            ),
        )
    }
}

/// Clients at 5,000 packets per second, then bots beside them until it is ten times as much.
fn ramp() -> Goal {
    const NORMAL: u64 = 5_000;
    let mut kernel = node(Settings::default(), Sampling::Adaptive);
    let mut clients = Clients::new(3, HOST, 443, 5_000, 400);
    let end = kernel.now_ns + 900 * SEC;
    calm(&mut kernel, &mut clients, NORMAL, end);
    let before = kernel.watch.surest.len();
    let (start, mut dice) = (kernel.now_ns, Dice(11));
    let (mut seen, mut sure) = (None, None);
    while kernel.now_ns < start + 1_800 * SEC && sure.is_none() {
        let multiple = 1.0 + 9.0 * (kernel.now_ns - start) as f64 / (1_800.0 * SEC as f64);
        let tick = kernel.now_ns;
        let extra = (NORMAL as f64 * (multiple - 1.0) * TICK_NS as f64 / SEC as f64) as u64;
        for _ in 0..extra.div_ceil(4) {
            let frame = bots(&mut dice, HOST).frame();
            kernel.frames(&frame, frame.len(), 4.min(extra), tick);
        }
        calm(&mut kernel, &mut clients, NORMAL, tick + TICK_NS);
        if kernel.watch.surest.len() > before {
            seen.get_or_insert(multiple);
        }
        if kernel.watch.sure().count() > 0 {
            sure.get_or_insert(multiple);
        }
    }
    let named =
        sure.map_or_else(|| "never with confidence 0.5".to_owned(), |m| format!("{} with confidence 0.5", figure(m)));
    Goal {
        value: seen,
        met: Some(seen.is_some_and(|m| m <= 4.0)),
        ..Goal::missing(
            "D9",
            RAMP.0,
            "times",
            RAMP.1,
            &format!(
                "normally 5,000 pps learnt over 15 min, {before} incidents by then; the rest UDP of 400 hosts; {named}"
            ),
        )
    }
}

/// The threshold in packets per second that follows from what the engine has learnt of the one host there is.
fn threshold(kernel: &Kernel<Diary>) -> f64 {
    let detection = Settings::default().detection;
    let normal = kernel.engine.view().baseline.pps as f64;
    (normal * detection.multiplier).max(detection.floor_pps as f64)
}

/// Floods while the engine learns: one above the floor, one just below it.
fn poison() -> Vec<Goal> {
    let after = |flood_pps: u64, minutes_later: u64| {
        let mut kernel = node(Settings::default(), Sampling::Adaptive);
        let mut clients = Clients::new(3, HOST, 443, 5_000, 200);
        let mut dice = Dice(13);
        let end = kernel.now_ns + 400 * SEC;
        while kernel.now_ns < end {
            let tick = kernel.now_ns;
            for _ in 0..(flood_pps * TICK_NS / SEC).div_ceil(5) {
                let frame = bots(&mut dice, HOST).frame();
                kernel.frames(&frame, frame.len(), 5, tick);
            }
            calm(&mut kernel, &mut clients, 500, tick + TICK_NS);
        }
        let later = kernel.now_ns + 20 * SEC + minutes_later * 60 * SEC;
        calm(&mut kernel, &mut clients, 500, later);
        let learnt = threshold(&kernel);
        let before = kernel.watch.sure().count();
        let attack = kernel.now_ns + 2 * SEC;
        flood(&mut kernel, &mut dice, 60_000, attack, |dice| bots(dice, HOST));
        (learnt, kernel.watch.sure().count() > before)
    };
    let clean = after(0, 0).0;
    let ratio = |got: f64| got / clean;
    let seen = |seen: bool| if seen { "opens an incident" } else { "opens no incident" };
    let (above, above_seen) = after(15_000, 0);
    let (below, below_seen) = after(9_000, 0);
    let (later, _) = after(9_000, 30);
    vec![
        Goal {
            value: Some(ratio(above)),
            met: Some((ratio(above) - 1.0).abs() < 0.01),
            ..Goal::missing(
                "D10a",
                POISON.0,
                "times",
                POISON.1,
                &format!(
                    "15,000 pps for 400 s over 500 pps of clients: threshold {} pps, {} without; then 60,000 pps {}",
                    figure(above),
                    figure(clean),
                    seen(above_seen)
                ),
            )
        },
        Goal {
            value: Some(ratio(below)),
            ..Goal::missing(
                "D10b",
                BELOW.0,
                "times",
                BELOW.1,
                &format!(
                    "9,000 pps for 400 s, below the floor of 10,000: threshold {} pps, half an hour later {}; then 60,000 \
                     pps {}",
                    figure(below),
                    figure(later),
                    seen(below_seen)
                ),
            )
        },
    ]
}
