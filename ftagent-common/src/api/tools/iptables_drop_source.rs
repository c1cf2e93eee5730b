//! `iptables_drop_source`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::xtables::{Family, rule};
use super::{Ground, Parameters};
use crate::api::preview::Preview;

/// Drops the sources, a rule each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IptablesDropSource {
    /// Addresses or prefixes, at most 256; empty: the incident's sources, refused while they are judged spoofed.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
}

impl Parameters for IptablesDropSource {
    fn kind(&self) -> &'static str {
        "iptables_drop_source"
    }

    fn tool(&self) -> &'static str {
        "iptables"
    }

    fn sources(&self) -> Option<&[IpNet]> {
        Some(&self.sources)
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        for source in on.sources {
            rule(shown, Family::of(source), &["-s", &source.to_string()], &["-j", "DROP"]);
        }
    }
}
