//! Generated floods of every family, IPv4, IPv6 and VLAN, at sampling rates from every packet to one in a thousand.

use std::net::IpAddr;

use ftagent::engine::Settings;
use ftagent_common::vocab::AttackFamily as F;
use ftagent_lab::floods::{Dice, FLOODS, Maker};

use crate::kernel::{Kernel, SEC};

pub(crate) const TARGET: &str = "203.0.113.5";
pub(crate) const TARGET6: &str = "2001:db8:5::5";

/// Floods a fresh kernel and says what the engine made of it.
pub(crate) fn run(make: Maker, target: &str, vlan: Option<u16>, pps: u64, one_in: u32) -> Kernel {
    let target: IpAddr = target.parse().expect("an address");
    let mut kernel = Kernel::new(Settings::default());
    kernel.datapath.sampling = ftagent::replay::Sampling::OneIn(one_in);
    kernel.run_for(SEC + 17_000_000);
    let start = kernel.now_ns;
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for i in 0..pps * 45 / 100 {
        let mut spec = make(&mut dice, target);
        spec.vlan = vlan;
        let frame = spec.frame();
        kernel.frame(&frame, frame.len(), start + i * SEC / pps);
    }
    kernel.run_for(100_000_000);
    kernel
}

fn check(target: &str, vlan: Option<u16>, pps: u64, one_in: u32) {
    let mut wrong = Vec::new();
    for (i, (family, make)) in FLOODS.iter().enumerate() {
        if target.contains(':') && matches!(family, F::Ripv1Amplification) {
            continue;
        }
        let kernel = run(*make, target, vlan, pps, one_in);
        // The first report may rest on a few samples; what counts is what is known by now.
        let reports = kernel.engine.view().incidents;
        let [report] = reports.as_slice() else {
            wrong.push(format!("{i} {family}: {} incidents", reports.len()));
            continue;
        };
        let rule = kernel.first_rule_ns.map(|at| (at - 1_001_017_000_000) / 1_000_000);
        if report.family != *family || report.confidence < 0.5 || report.target.addr().to_string() != target {
            let why = report.explanation.join("\n    ");
            wrong.push(format!("{i} {family}: {} {:.2}\n    {why}", report.family, report.confidence));
        } else if rule.is_none_or(|ms| ms > 250 && one_in == 1) {
            wrong.push(format!("{i} {family}: rule after {rule:?} ms"));
        } else if one_in == 1 && kernel.datapath.dropped < kernel.datapath.passed * 2 {
            wrong.push(format!("{i} {family}: {} passed, {} dropped", kernel.datapath.passed, kernel.datapath.dropped));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), FLOODS.len(), wrong.join("\n"));
}

#[test]
fn floods_of_every_family_are_named_and_dropped() {
    check(TARGET, None, 60_000, 1);
}

#[test]
fn floods_over_ipv6_and_vlan_are_named() {
    check(TARGET6, Some(7), 60_000, 1);
}

#[test]
fn one_sample_in_a_hundred_is_enough() {
    check(TARGET, None, 60_000, 100);
}

#[test]
fn one_sample_in_a_thousand_is_enough() {
    check(TARGET, None, 120_000, 1_000);
}

#[test]
fn the_rule_follows_the_first_packet_within_a_quarter_second() {
    let mut delays = Vec::new();
    for (i, (_, make)) in FLOODS.iter().enumerate().take(20).step_by(2) {
        for phase in 0..5u64 {
            let target: IpAddr = TARGET.parse().expect("an address");
            let mut kernel = Kernel::new(Settings::default());
            kernel.run_for(SEC + (phase * 11 + i as u64) * 1_000_000);
            let start = kernel.now_ns;
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15 + phase);
            for n in 0..12_000 {
                let frame = make(&mut dice, target).frame();
                kernel.frame(&frame, frame.len(), start + n * SEC / 80_000);
            }
            kernel.run_for(100_000_000);
            delays.push((kernel.first_rule_ns.expect("a rule") - start) / 1_000_000);
        }
    }
    delays.sort_unstable();
    let (p50, p99) = (delays[delays.len() / 2], delays[delays.len() * 99 / 100]);
    println!("first packet to rule, {} runs: p50 {p50} ms, p99 {p99} ms", delays.len());
    assert!(p50 <= 120 && p99 <= 250, "{delays:?}");
}
