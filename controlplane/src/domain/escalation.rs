//! The escalation policy of a workspace: kept and shown. Nothing acts on it yet.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::country::is_country;
use super::mitigation::MAX_TTL_SECS;
use super::problem::Check;
use super::{Problem, Timestamp, threshold};

/// How the thresholds of tiers are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BaselineMode {
    /// As they are written.
    Static,
    /// Together with what is normal for the target.
    #[default]
    Dynamic,
}

/// What is done with countries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GeoAction {
    /// What comes from them is dropped.
    Block,
    /// What comes from anywhere else is dropped.
    AllowOnly,
}

/// A lockdown by country.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GeoLockdown {
    /// ISO 3166-1 alpha-2 codes; 1 to 249.
    #[schema(min_items = 1, max_items = 249)]
    pub countries: BTreeSet<String>,
    pub action: GeoAction,
}

/// A workspace's policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Escalation {
    /// `tier1_bps` to `tier9_bps` in bits/s and `tier1_pps` to `tier9_pps` in packets/s, growing from tier to tier.
    pub thresholds: BTreeMap<String, u64>,
    /// Seconds that rules of `tier1` to `tier9` last; 0: until they are withdrawn.
    pub ttl: BTreeMap<String, u32>,
    pub baseline_mode: BaselineMode,
    pub geo_lockdown: Option<GeoLockdown>,
    /// Whether actions are only logged.
    pub dry_run: bool,
    /// When it was last saved; null if never.
    #[serde(skip_deserializing)]
    pub updated_at: Option<Timestamp>,
}

impl Default for Escalation {
    /// No tiers, and nothing would be executed: the careful choice, until somebody decides otherwise.
    fn default() -> Self {
        Self {
            thresholds: BTreeMap::new(),
            ttl: BTreeMap::new(),
            baseline_mode: BaselineMode::default(),
            geo_lockdown: None,
            dry_run: true,
            updated_at: None,
        }
    }
}

/// What to change of a policy; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EscalationChange {
    pub thresholds: Option<BTreeMap<String, u64>>,
    pub ttl: Option<BTreeMap<String, u32>>,
    pub baseline_mode: Option<BaselineMode>,
    /// Some(None): without a lockdown from now on.
    pub geo_lockdown: Option<Option<GeoLockdown>>,
    pub dry_run: Option<bool>,
}

impl EscalationChange {
    /// The policy as it is afterwards.
    ///
    /// # Errors
    /// Unknown tiers, rates of 0 or beyond 10^12, tiers that do not grow, lifetimes beyond a year, what is no country.
    pub fn applied_to(self, policy: &Escalation) -> Result<Escalation, Problem> {
        let mut check = Check::default();
        if let Some(thresholds) = &self.thresholds {
            threshold::check_tiers(&mut check, thresholds);
        }
        for (tier, secs) in self.ttl.iter().flatten() {
            let known = matches!(tier.as_bytes(), [b't', b'i', b'e', b'r', b'1'..=b'9']);
            let field = if known { format!("ttl.{tier}") } else { "ttl".to_owned() };
            check.that(known, &field, || "keys are tier1 to tier9".to_owned());
            check.that(*secs <= MAX_TTL_SECS, &field, || format!("must be 0 to {MAX_TTL_SECS} s, got {secs}"));
        }
        let geo_lockdown = self.geo_lockdown.map(|geo| {
            geo.map(|mut geo| {
                geo.countries = geo.countries.iter().map(|code| code.to_ascii_uppercase()).collect();
                geo
            })
        });
        if let Some(Some(geo)) = &geo_lockdown {
            check.that(!geo.countries.is_empty(), "geo_lockdown.countries", || "must name at least one".to_owned());
            check.that(geo.countries.iter().all(|code| is_country(code)), "geo_lockdown.countries", || {
                "must be ISO 3166-1 alpha-2 codes, such as DE".to_owned()
            });
        }
        check.done()?;
        Ok(Escalation {
            thresholds: self.thresholds.unwrap_or_else(|| policy.thresholds.clone()),
            ttl: self.ttl.unwrap_or_else(|| policy.ttl.clone()),
            baseline_mode: self.baseline_mode.unwrap_or(policy.baseline_mode),
            geo_lockdown: geo_lockdown.unwrap_or_else(|| policy.geo_lockdown.clone()),
            dry_run: self.dry_run.unwrap_or(policy.dry_run),
            updated_at: policy.updated_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: EscalationChange, expected: Result<(), &str>) {
        let shown = format!("{change:?}");
        match (change.applied_to(&Escalation::default()), expected) {
            (Ok(_), Ok(())) => {}
            (Err(Problem::Invalid(fields)), Err(field)) => assert_eq!(fields[0].field, field, "{shown}"),
            (got, _) => panic!("{shown}: {got:?}"),
        }
    }

    fn tiers(pairs: &[(&str, u64)]) -> EscalationChange {
        let thresholds = pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        EscalationChange { thresholds: Some(thresholds), ..Default::default() }
    }

    fn geo(codes: &[&str]) -> EscalationChange {
        let countries = codes.iter().map(|c| (*c).to_owned()).collect();
        let geo = GeoLockdown { countries, action: GeoAction::Block };
        EscalationChange { geo_lockdown: Some(Some(geo)), ..Default::default() }
    }

    fn ttl(tier: &str, secs: u32) -> EscalationChange {
        EscalationChange { ttl: Some([(tier.to_owned(), secs)].into()), ..Default::default() }
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        check(EscalationChange::default(), Ok(()));
        check(tiers(&[("tier1_bps", 5), ("tier2_bps", 6), ("tier1_pps", 9), ("tier3_pps", 10)]), Ok(()));
        check(tiers(&[("tier1_bps", 6), ("tier2_bps", 6)]), Err("thresholds"));
        check(tiers(&[("tier1_bps", 7), ("tier3_bps", 6)]), Err("thresholds"));
        check(tiers(&[("tier1_bps", 0)]), Err("thresholds.tier1_bps"));
        check(tiers(&[("bps", 5)]), Err("thresholds"));
        check(ttl("tier1", 0), Ok(()));
        check(ttl("tier9", MAX_TTL_SECS), Ok(()));
        check(ttl("tier9", MAX_TTL_SECS + 1), Err("ttl.tier9"));
        check(ttl("tier0", 5), Err("ttl"));
        check(geo(&["DE", "fr"]), Ok(()));
        check(geo(&[]), Err("geo_lockdown.countries"));
        check(geo(&["DE", "UK"]), Err("geo_lockdown.countries"));
    }

    #[test]
    fn absent_fields_stay_and_null_removes_the_lockdown() {
        let first = geo(&["de"]).applied_to(&Escalation::default()).expect("fits");
        assert_eq!(first.geo_lockdown.as_ref().map(|g| g.countries.clone()), Some(["DE".to_owned()].into()));
        assert!(first.dry_run);
        let change = EscalationChange { dry_run: Some(false), ..Default::default() };
        let second = change.applied_to(&first).expect("fits");
        assert_eq!((second.dry_run, second.geo_lockdown.is_some()), (false, true));
        let change = EscalationChange { geo_lockdown: Some(None), ..Default::default() };
        assert_eq!(change.applied_to(&second).expect("fits").geo_lockdown, None);
    }
}
