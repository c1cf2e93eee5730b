//! `digitalocean_block`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::names::FirewallId;
use super::remainder::without;
use super::{Ground, Parameters};
use crate::api::preview::{Preview, argv};

/// Excludes the sources from the allow rules of a cloud firewall, which has no rules that deny.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DigitaloceanBlock {
    /// The firewall's UUID.
    #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub firewall_id: FirewallId,
    /// Addresses or prefixes, at most 16; empty: the incident's sources.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
}

impl Parameters for DigitaloceanBlock {
    fn kind(&self) -> &'static str {
        "digitalocean_block"
    }

    fn tool(&self) -> &'static str {
        "digitalocean"
    }

    fn sources(&self) -> Option<&[IpNet]> {
        Some(&self.sources)
    }

    /// Each costs up to 32 prefixes in every rule, and of IPv6 up to 128.
    fn max_sources(&self) -> usize {
        16
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        let url = format!("https://api.digitalocean.com/v2/firewalls/{}", self.firewall_id);
        let rest: Vec<_> =
            [false, true].iter().flat_map(|v6| without(on.sources, *v6)).map(|p| p.to_string()).collect();
        // Never without an action: a rule that has none allows.
        let rule = json!({
            "action": "allow", "protocol": "<of the rule>", "ports": "<of the rule>", "sources": { "addresses": rest },
        });
        let body = json!({ "name": "<as it is>", "inbound_rules": [rule], "outbound_rules": "<as they are>" });
        let saved =
            json!({ "name": "<as it is>", "inbound_rules": "<saved before>", "outbound_rules": "<as they are>" });
        shown.step(argv(&["GET", &url, ""]), Vec::new(), "the rules are saved".to_owned());
        shown.step(
            argv(&["PUT", &url, &body.to_string()]),
            argv(&["PUT", &url, &saved.to_string()]),
            "every inbound rule that allows all addresses allows all but the sources".to_owned(),
        );
        shown.warnings.push(
            "this firewall has no rules that deny: what it allows is narrowed, and what somebody else changes meanwhile \
             is lost when the saved rules come back"
                .to_owned(),
        );
    }
}
