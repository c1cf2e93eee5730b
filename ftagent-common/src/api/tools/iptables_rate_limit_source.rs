//! `iptables_rate_limit_source`.

use serde::{Deserialize, Serialize};

use super::xtables::{Family, wide_rule};
use super::{Ground, Parameters, within};
use crate::api::ParameterError;
use crate::api::preview::Preview;

/// Drops what each source sends above a rate, in the address family of the incident's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IptablesRateLimitSource {
    /// Packets per second and source, 1 to 1,000,000, which is the most that hashlimit counts.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000))]
    pub pps: u32,
    /// Packets that may come at once, 1 to 1,000,000; a tenth of a second's worth, and at least 5, by default.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000))]
    pub burst: Option<u32>,
}

impl Parameters for IptablesRateLimitSource {
    fn kind(&self) -> &'static str {
        "iptables_rate_limit_source"
    }

    fn tool(&self) -> &'static str {
        "iptables"
    }

    fn check(&self) -> Result<(), ParameterError> {
        within("pps", self.pps.into(), 1, 1_000_000)?;
        within("burst", self.burst.unwrap_or(1).into(), 1, 1_000_000)
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        hashlimit(shown, on, &[], "srcip", self.pps, self.burst);
    }
}

/// Drops what comes above a rate, counted apart for each address that `mode` names.
///
/// The kernel keeps one table for a name, with the first rule's numbers, so the name holds them: at most 15 bytes.
pub(super) fn hashlimit(
    shown: &mut Preview,
    on: &Ground<'_>,
    matches: &[&str],
    mode: &str,
    pps: u32,
    burst: Option<u32>,
) {
    let burst = burst.unwrap_or_else(|| pps.div_ceil(10).max(5));
    let name = format!("ft{}{pps:x}.{burst:x}", &mode[..1]);
    let (rate, burst) = (format!("{pps}/sec"), burst.to_string());
    let mut words = matches.to_vec();
    words.extend(["-m", "hashlimit", "--hashlimit-above", &rate, "--hashlimit-burst", &burst]);
    words.extend(["--hashlimit-mode", mode, "--hashlimit-name", &name]);
    wide_rule(shown, Family::of(&on.target), on.spared, matches, &words, &["-j", "DROP"]);
}
