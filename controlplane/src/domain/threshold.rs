//! Thresholds of single hosts and prefixes.

use std::collections::BTreeMap;

use ftagent_common::api::HostThreshold;
use ipnet::IpNet;
use serde::Serialize;

use super::allowlist::{parse_prefix, serialize_prefix};
use super::problem::Check;
use super::{Problem, Timestamp};

/// 1 Tbit/s or as many packets: beyond what any node sees.
const MAX_RATE: u64 = 1_000_000_000_000;

/// A threshold to be saved.
///
/// The keys are `pps`, `bps` and `tier1_bps` to `tier9_bps` (also `tierN_pps`). Tiers are steps of escalation and must
/// grow; the lowest tier is where an attack begins, so a node's detection threshold is `pps` (or else the lowest
/// `tierN_pps`) and `bps` (or else the lowest `tierN_bps`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewThreshold {
    pub target: IpNet,
    pub label: String,
    pub thresholds: BTreeMap<String, u64>,
}

impl NewThreshold {
    /// # Errors
    /// What is no address or prefix, no threshold at all, unknown keys, rates of 0 or beyond 10^12, tiers that fall.
    pub fn parse(target: &str, label: &str, thresholds: BTreeMap<String, u64>) -> Result<Self, Problem> {
        let mut check = Check::default();
        let prefix = parse_prefix(target);
        check.that(prefix.is_some(), "target_ip", || "must be an IPv4 or IPv6 address, or a CIDR prefix".to_owned());
        check.line("label", label, 0, 128);
        check.that(!thresholds.is_empty(), "thresholds", || "must name at least one threshold".to_owned());
        for (key, rate) in &thresholds {
            // The key is the caller's: it is quoted only when it is one of ours.
            let known = is_key(key);
            let field = if known { format!("thresholds.{key}") } else { "thresholds".to_owned() };
            check.that(known, &field, || "keys are pps, bps, tier1_bps to tier9_bps and tierN_pps".to_owned());
            check.that((1..=MAX_RATE).contains(rate), &field, || format!("must be 1 to {MAX_RATE}, got {rate}"));
        }
        for unit in ["bps", "pps"] {
            let tiers = tiers(&thresholds, unit);
            check.that(tiers.windows(2).all(|w| w[0] < w[1]), "thresholds", || {
                format!("tiers in {unit} must grow from one to the next")
            });
        }
        check.done()?;
        let target = prefix.ok_or_else(|| Problem::field("target_ip", "must be an address"))?;
        Ok(Self { target, label: label.to_owned(), thresholds })
    }
}

fn is_key(key: &str) -> bool {
    let tier = |t: &[u8]| matches!(t, [b't', b'i', b'e', b'r', b'1'..=b'9', b'_', b'b' | b'p', b'p', b's']);
    matches!(key, "pps" | "bps") || tier(key.as_bytes())
}

/// Checks thresholds that are tiers alone.
pub(super) fn check_tiers(check: &mut Check, thresholds: &BTreeMap<String, u64>) {
    for (key, rate) in thresholds {
        let known = is_key(key) && key.starts_with("tier");
        let field = if known { format!("thresholds.{key}") } else { "thresholds".to_owned() };
        check.that(known, &field, || "keys are tier1_bps to tier9_bps and tier1_pps to tier9_pps".to_owned());
        check.that((1..=MAX_RATE).contains(rate), &field, || format!("must be 1 to {MAX_RATE}, got {rate}"));
    }
    for unit in ["bps", "pps"] {
        check.that(tiers(thresholds, unit).windows(2).all(|w| w[0] < w[1]), "thresholds", || {
            format!("tiers in {unit} must grow from one to the next")
        });
    }
}

/// The rates of the tiers in `unit`, tier 1 first.
fn tiers(thresholds: &BTreeMap<String, u64>, unit: &str) -> Vec<u64> {
    (1..=9).filter_map(|n| thresholds.get(&format!("tier{n}_{unit}"))).copied().collect()
}

/// A threshold as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Threshold {
    pub id: i64,
    /// Address, or prefix in CIDR notation.
    #[serde(serialize_with = "serialize_prefix")]
    #[schema(value_type = String)]
    pub target_ip: IpNet,
    pub label: String,
    pub thresholds: BTreeMap<String, u64>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Threshold {
    /// The threshold as a node needs it.
    pub fn to_wire(&self) -> HostThreshold {
        let of =
            |unit: &str| self.thresholds.get(unit).copied().or_else(|| tiers(&self.thresholds, unit).first().copied());
        HostThreshold { target: self.target_ip, pps: of("pps"), bps: of("bps") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pairs: &[(&str, u64)]) -> Result<NewThreshold, Problem> {
        NewThreshold::parse("203.0.113.5", "", pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect())
    }

    #[test]
    fn the_lowest_tier_is_where_an_attack_begins() {
        let table: [(&[(&str, u64)], _, _); 4] = [
            (&[("tier1_bps", 1_000_000), ("tier2_bps", 5_000_000)], None, Some(1_000_000)),
            (&[("pps", 5), ("bps", 7)], Some(5), Some(7)),
            (&[("bps", 7), ("tier1_bps", 9)], None, Some(7)),
            (&[("tier2_pps", 70), ("tier3_pps", 90)], Some(70), None),
        ];
        for (pairs, pps, bps) in table {
            let new = parsed(pairs).expect("within bounds");
            let now = Timestamp::from_secs(1);
            let kept = Threshold {
                id: 1,
                target_ip: new.target,
                label: new.label,
                thresholds: new.thresholds,
                created_at: now,
                updated_at: now,
            };
            assert_eq!((kept.to_wire().pps, kept.to_wire().bps), (pps, bps), "{pairs:?}");
        }
    }

    #[test]
    fn thresholds_out_of_bounds_are_refused() {
        let table: [&[(&str, u64)]; 6] = [
            &[],
            &[("pps", 0)],
            &[("pps", u64::MAX)],
            &[("tier0_bps", 5)],
            &[("tier10_bps", 5)],
            &[("tier1_bps", 5), ("tier2_bps", 5)],
        ];
        for pairs in table {
            assert!(matches!(parsed(pairs), Err(Problem::Invalid(_))), "{pairs:?}");
        }
    }
}
