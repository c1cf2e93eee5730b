//! `iptables_reject_protocol`.

use serde::{Deserialize, Serialize};

use super::xtables::{Family, protocol_word, warn_protocol, wide_rule};
use super::{Ground, Parameters};
use crate::api::Protocol;
use crate::api::preview::Preview;

/// Rejects a protocol, in the address family of the incident's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IptablesRejectProtocol {
    pub protocol: Protocol,
}

impl Parameters for IptablesRejectProtocol {
    fn kind(&self) -> &'static str {
        "iptables_reject_protocol"
    }

    fn tool(&self) -> &'static str {
        "iptables"
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        let family = Family::of_protocol(self.protocol, &on.target);
        let answer = match (self.protocol, family) {
            (Protocol::Tcp, _) => "tcp-reset",
            (_, Family::V4) => "icmp-port-unreachable",
            (_, Family::V6) => "icmp6-port-unreachable",
        };
        let verdict = ["-j", "REJECT", "--reject-with", answer];
        let matches = ["-p", protocol_word(self.protocol)];
        wide_rule(shown, family, on.spared, &matches, &matches, &verdict);
        warn_protocol(shown, self.protocol, "rejects");
        shown.warnings.push(
            "every rejected packet is answered: of a flood with forged sources the node floods others".to_owned(),
        );
    }
}
