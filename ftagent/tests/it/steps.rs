//! The way back of widened responses, step by step while the attack goes on.

use ftagent::engine::{Rule, Settings, Verdict};
use ftagent_common::vocab::IncidentStatus;
use ftagent_lab::floods::{Maker, Spec, real, real_ttl};

use crate::floods::TARGET;
use crate::kernel::{Kernel, SEC};
use crate::scripts::{THREE, flood, only};

/// Bots with real addresses, more than may be blocked, no common length and no common TTL.
const BOTS: Maker = |d, t| {
    let mut s = Spec::new(real(d, t, 50_000), t, 17);
    (s.ttl, s.src_port, s.dst_port) = (real_ttl(s.src), d.roll() as u16, d.roll() as u16);
    s.payload = (0..d.below(1_200)).map(|_| d.roll() as u8).collect();
    s
};

/// Three hosts that send most, and bots beside them.
const BOTH: Maker = |d, t| if d.below(5) == 0 { BOTS(d, t) } else { THREE(d, t) };

fn limits(k: &Kernel) -> usize {
    let is_limit = |rule: &&&Rule| matches!(rule.verdict, Verdict::LimitPps { .. });
    k.automatic().iter().filter(is_limit).count()
}

fn kinds<'a>(k: &'a Kernel, kind: &str) -> Vec<&'a str> {
    let found = only(k).timeline.iter().filter(|t| t.kind == kind);
    found.map(|t| t.text.as_str()).collect()
}

#[test]
fn wide_limits_go_while_the_narrow_rules_still_hold_the_rest() {
    let mut k = Kernel::new(Settings::default());
    // What three hosts send is blocked by their names; the bots that join need more.
    flood(&mut k, THREE, TARGET, 30_000, 2_000);
    let narrow = k.automatic().len();
    assert_eq!((narrow, limits(&k)), (3, 0), "{:?}", k.automatic());
    flood(&mut k, BOTH, TARGET, 90_000, 2_000);
    let wide = limits(&k);
    assert!(wide > 0, "{:?}", k.automatic());
    // The bots leave; the three go on.
    let mut most = 0;
    for _ in 0..60 {
        let before = limits(&k);
        flood(&mut k, THREE, TARGET, 12_000, 1_000);
        most = most.max(before.saturating_sub(limits(&k)));
    }
    assert_eq!(only(&k).status, IncidentStatus::Active);
    assert_eq!(limits(&k), 0, "{:?}", k.automatic());
    assert!(k.automatic().len() >= narrow);
    assert!(!kinds(&k, "narrowed").is_empty());
    println!("{wide} limits, at most {most} at once taken back: {:#?}", kinds(&k, "narrowed"));
    // What was too narrow after all is widened again.
    flood(&mut k, BOTH, TARGET, 90_000, 1_000);
    assert!(limits(&k) > 0, "{:?}", only(&k).timeline);
    let passed = flood(&mut k, BOTH, TARGET, 90_000, 1_000);
    assert!(passed < 12_000, "{passed}");
    k.run_for(30 * SEC);
    assert!(k.automatic().is_empty());
    let executions = &only(&k).executions;
    let of = |outcome| executions.iter().filter(|e| e.outcome == outcome).count();
    use ftagent_common::api::ExecutionOutcome::{Applied, Undone};
    assert_eq!(of(Applied), of(Undone), "{executions:#?}");
}

#[test]
fn a_steady_attack_keeps_the_limits_that_it_needs() {
    // The named sources are half of it: what the others send is too much without the limits.
    let half: Maker = |d, t| if d.below(2) == 0 { BOTS(d, t) } else { THREE(d, t) };
    let mut k = Kernel::new(Settings::default());
    flood(&mut k, THREE, TARGET, 30_000, 1_000);
    flood(&mut k, half, TARGET, 30_000, 2_000);
    assert!(limits(&k) > 0 && k.automatic().len() > limits(&k), "{:?}", k.automatic());
    flood(&mut k, half, TARGET, 30_000, 25_000);
    let passed = flood(&mut k, half, TARGET, 30_000, 1_000);
    assert!(passed < 5_000, "{passed}");
    // A limit on everything may go where one on the class holds.
    assert!(limits(&k) > 0 && kinds(&k, "narrowed").len() <= 1, "{:?}", only(&k).timeline);
    let widened = kinds(&k, "updated").iter().filter(|text| text.contains("widened")).count();
    assert_eq!(widened, 2, "at the beginning, and not again: {:#?}", only(&k).timeline);
}
