//! `ufw_deny_protocol`.

use serde::{Deserialize, Serialize};

use super::xtables::warn_protocol;
use super::{Ground, Parameters, short};
use crate::api::Protocol;
use crate::api::preview::{Preview, argv};

/// The protocols that ufw has words for; ICMP it leaves to files of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum UfwProtocol {
    Tcp,
    Udp,
    Gre,
    Esp,
}

impl UfwProtocol {
    /// The same protocol among all.
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
            Self::Gre => Protocol::Gre,
            Self::Esp => Protocol::Esp,
        }
    }
}

/// The most prefixes that are spared: each is a run of ufw.
const MAX_SPARED: usize = 16;

/// Denies a protocol in IPv4 and IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UfwDenyProtocol {
    pub protocol: UfwProtocol,
}

impl Parameters for UfwDenyProtocol {
    fn kind(&self) -> &'static str {
        "ufw_deny_protocol"
    }

    fn tool(&self) -> &'static str {
        "ufw"
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        let protocol = self.protocol.protocol();
        if on.spared.len() > MAX_SPARED {
            shown.refused = Some(format!(
                "{} prefixes must not be blocked, more than the {MAX_SPARED} that are put before a rule of ufw: use XDP, \
                 which spares any number",
                on.spared.len()
            ));
            return;
        }
        // `prepend` comes first also where there is no rule yet, which `insert 1` refuses.
        let rule = ["deny", "proto", protocol.as_str(), "from", "any", "to", "any"];
        let run = [["ufw", "prepend"].as_slice(), &rule].concat();
        let undo = [["ufw", "delete"].as_slice(), &rule].concat();
        shown.step(argv(&run), argv(&undo), format!("ufw rule, before all others: {}", rule.join(" ")));
        // ufw has no word for "go on": who is spared is let in, before the rule that the step above put first.
        for prefix in on.spared.iter().map(short) {
            let rule = ["allow", "proto", protocol.as_str(), "from", &prefix, "to", "any"];
            let run = [["ufw", "prepend"].as_slice(), &rule].concat();
            let undo = [["ufw", "delete"].as_slice(), &rule].concat();
            shown.step(argv(&run), argv(&undo), format!("ufw rule, before all others: {}", rule.join(" ")));
        }
        warn_protocol(shown, protocol, "drops");
        shown.warnings.push(
            "the node lets in, before that, the protocol from every prefix that it never blocks, whatever ufw's other rules \
             say"
                .to_owned(),
        );
        shown.warnings.push(
            "ufw takes one rule at a time: new connections of those prefixes are denied until theirs are made, and the \
             action fails where ufw has one of them already"
                .to_owned(),
        );
        shown.warnings.push("ufw lets established connections pass before its rules".to_owned());
    }
}
