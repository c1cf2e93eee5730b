//! `iptables_limit_syn`.

use serde::{Deserialize, Serialize};

use super::iptables_rate_limit_source::hashlimit;
use super::{Ground, Parameters, within};
use crate::api::ParameterError;
use crate::api::preview::Preview;

/// Drops SYNs above a rate, counted for each address of the node, in the address family of the incident's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IptablesLimitSyn {
    /// SYNs per second and destination, 1 to 1,000,000.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000))]
    pub pps: u32,
    /// SYNs that may come at once, 1 to 1,000,000; a tenth of a second's worth, and at least 5, by default.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000))]
    pub burst: Option<u32>,
}

impl Parameters for IptablesLimitSyn {
    fn kind(&self) -> &'static str {
        "iptables_limit_syn"
    }

    fn tool(&self) -> &'static str {
        "iptables"
    }

    fn check(&self) -> Result<(), ParameterError> {
        within("pps", self.pps.into(), 1, 1_000_000)?;
        within("burst", self.burst.unwrap_or(1).into(), 1, 1_000_000)
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        hashlimit(shown, on, &["-p", "tcp", "--syn"], "dstip", self.pps, self.burst);
        shown.warnings.push("while forged SYNs use the rate up, real clients share their loss".to_owned());
    }
}
