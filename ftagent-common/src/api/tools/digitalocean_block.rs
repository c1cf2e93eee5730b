//! `digitalocean_block`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::names::FirewallId;
use super::remainder::without;
use super::{Ground, Parameters};
use crate::api::preview::{Preview, argv};

/// Where DigitalOcean's API is.
pub const DIGITALOCEAN_API: &str = "https://api.digitalocean.com/v2";

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
        let url = format!("{DIGITALOCEAN_API}{}", firewall_path(&self.firewall_id));
        let rest: Vec<_> =
            [false, true].iter().flat_map(|v6| without(on.sources, *v6)).map(|p| p.to_string()).collect();
        // Never without an action: a rule that has none allows.
        let rule = json!({
            "action": "allow", "protocol": "<of the rule>", "ports": "<of the rule>", "sources": { "addresses": rest },
        });
        // What is not sent is reset: the firewall would lose its droplets and tags.
        let body = |rules: Value| {
            let as_it_is = "<as it is>";
            let body = json!({
                "name": as_it_is, "inbound_rules": rules, "outbound_rules": as_it_is, "droplet_ids": as_it_is,
                "tags": as_it_is,
            });
            body.to_string()
        };
        let restored = json!(["<each rule with what was taken out of it>"]);
        shown.step(argv(&["GET", &url, ""]), Vec::new(), "the rules are saved".to_owned());
        shown.step(
            argv(&["PUT", &url, &body(json!([rule, "<other rules in the same way>"]))]),
            argv(&["PUT", &url, &body(restored)]),
            "every inbound rule that allows the sources allows all that it did but them".to_owned(),
        );
        shown.warnings.push(
            "rules that deny cannot be relied on at DigitalOcean: what the firewall allows is narrowed, by prefixes around \
             the sources; what others change meanwhile is kept, but for a change between our reading and our writing, \
             which their API cannot prevent"
                .to_owned(),
        );
    }
}

/// The path of a firewall.
pub fn firewall_path(firewall: &FirewallId) -> String {
    format!("/firewalls/{firewall}")
}
