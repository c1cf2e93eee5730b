//! `iptables_limit_connections`.

use serde::{Deserialize, Serialize};

use super::xtables::{Family, wide_rule};
use super::{Ground, Parameters, within};
use crate::api::ParameterError;
use crate::api::preview::Preview;

/// Drops new TCP connections of sources that have too many, in the address family of the incident's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IptablesLimitConnections {
    /// Connections of one source, 1 to 100,000.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 100_000))]
    pub connections: u32,
}

impl Parameters for IptablesLimitConnections {
    fn kind(&self) -> &'static str {
        "iptables_limit_connections"
    }

    fn tool(&self) -> &'static str {
        "iptables"
    }

    fn check(&self) -> Result<(), ParameterError> {
        within("connections", self.connections.into(), 1, 100_000)
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        let (family, most) = (Family::of(&on.target), self.connections.to_string());
        let connlimit =
            ["-m", "connlimit", "--connlimit-above", &most, "--connlimit-mask", family.whole(), "--connlimit-saddr"];
        let matches = [["-p", "tcp", "--syn"].as_slice(), &connlimit].concat();
        wide_rule(shown, family, on.spared, &["-p", "tcp", "--syn"], &matches, &["-j", "DROP"]);
        if self.connections < 10 {
            shown.warnings.push(format!(
                "browsers open up to 10 connections at once, and whole offices share an address: {most} is few"
            ));
        }
    }
}
