//! `iptables_drop_protocol`.

use serde::{Deserialize, Serialize};

use super::xtables::{Family, protocol_word, warn_protocol, wide_rule};
use super::{Ground, Parameters};
use crate::api::Protocol;
use crate::api::preview::Preview;

/// Drops a protocol, in the address family of the incident's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IptablesDropProtocol {
    pub protocol: Protocol,
}

impl Parameters for IptablesDropProtocol {
    fn kind(&self) -> &'static str {
        "iptables_drop_protocol"
    }

    fn tool(&self) -> &'static str {
        "iptables"
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        let family = Family::of_protocol(self.protocol, &on.target);
        let matches = ["-p", protocol_word(self.protocol)];
        wide_rule(shown, family, on.spared, &matches, &matches, &["-j", "DROP"]);
        warn_protocol(shown, self.protocol, "drops");
    }
}
