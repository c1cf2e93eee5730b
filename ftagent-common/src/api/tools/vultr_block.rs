//! `vultr_block`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::names::FirewallId;
use super::remainder::without;
use super::{Ground, Parameters, is_v6};
use crate::api::preview::{Preview, argv};

/// Excludes the sources from what a firewall group accepts, which has no rules that deny.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VultrBlock {
    /// The group's UUID.
    #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    pub group_id: FirewallId,
    /// Addresses or prefixes, at most 1; empty: the incident's first source.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
}

impl Parameters for VultrBlock {
    fn kind(&self) -> &'static str {
        "vultr_block"
    }

    fn tool(&self) -> &'static str {
        "vultr"
    }

    fn sources(&self) -> Option<&[IpNet]> {
        Some(&self.sources)
    }

    /// A group has 50 rules by default, and the rest of one address is 32 of them.
    fn max_sources(&self) -> usize {
        1
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        let url = format!("https://api.vultr.com/v2/firewalls/{}/rules", self.group_id);
        shown.step(argv(&["GET", &url, ""]), Vec::new(), "the rules are saved".to_owned());
        for v6 in [false, true] {
            if !on.sources.iter().any(|s| is_v6(s) == v6) {
                continue;
            }
            let (ip_type, all) = if v6 { ("v6", "::") } else { ("v4", "0.0.0.0") };
            let body = |subnet: &str, size: u8| {
                let rule = json!({
                    "ip_type": ip_type, "protocol": "<of the rule>", "port": "<of the rule>", "subnet": subnet,
                    "subnet_size": size, "notes": "ftagent",
                });
                rule.to_string()
            };
            for rest in without(on.sources, v6) {
                let (subnet, size) = (rest.addr().to_string(), rest.prefix_len());
                let undo = argv(&["DELETE", &format!("{url}/<id of the rule>"), ""]);
                shown.step(argv(&["POST", &url, &body(&subnet, size)]), undo, format!("accept rule of {rest}"));
            }
            let delete = argv(&["DELETE", &format!("{url}/<id of the rule that accepts all>"), ""]);
            let object = format!("the rule that accepts {all}/0 is gone");
            shown.step(delete, argv(&["POST", &url, &body(all, 0)]), object);
        }
        shown.warnings.push(
            "only rules that accept are documented: what the group accepts is narrowed, once for each rule that accepts \
             all addresses, and a group has 50 rules unless Vultr raises that"
                .to_owned(),
        );
    }
}
