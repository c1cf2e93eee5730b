//! `iptables_drop_port`.

use serde::{Deserialize, Serialize};

use super::xtables::{Family, wide_rule};
use super::{Ground, Parameters, within};
use crate::api::preview::Preview;
use crate::api::{ParameterError, PortProtocol};

/// Drops a destination port, in the address family of the incident's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IptablesDropPort {
    pub protocol: PortProtocol,
    /// 1 to 65,535.
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub port: u16,
}

impl Parameters for IptablesDropPort {
    fn kind(&self) -> &'static str {
        "iptables_drop_port"
    }

    fn tool(&self) -> &'static str {
        "iptables"
    }

    fn check(&self) -> Result<(), ParameterError> {
        within("port", self.port.into(), 1, 65_535)
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        let (protocol, port) = (self.protocol.protocol().as_str(), self.port.to_string());
        let matches = ["-p", protocol, "--dport", &port];
        wide_rule(shown, Family::of(&on.target), on.spared, &matches, &matches, &["-j", "DROP"]);
        shown.warnings.push(format!(
            "nobody reaches {protocol} port {port} of the node while the rule is in force; whether a program of the \
             node listens there is known only to the node"
        ));
    }
}
