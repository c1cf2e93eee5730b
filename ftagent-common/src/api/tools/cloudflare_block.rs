//! `cloudflare_block`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::names::CloudId;
use super::{Ground, Parameters, is_v6, short};
use crate::api::ParameterError;
use crate::api::preview::{Preview, argv};

/// Where Cloudflare's API is.
pub const CLOUDFLARE_API: &str = "https://api.cloudflare.com/client/v4";
/// What every object of ours at Cloudflare bears; the node's own mark stands where this says `<node>`.
pub const CLOUDFLARE_MARK: &str = "ftagent <node>";

/// Blocks the sources in a zone, by an access rule each, or in an account's list that a rule of its own blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CloudflareBlock {
    /// 32 hex digits; give `zone`, or `account` and `list`.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, pattern = "^[0-9a-f]{32}$"))]
    pub zone: Option<CloudId>,
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, pattern = "^[0-9a-f]{32}$"))]
    pub account: Option<CloudId>,
    /// A list of addresses of the account.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, pattern = "^[0-9a-f]{32}$"))]
    pub list: Option<CloudId>,
    /// Addresses or prefixes, at most 256; empty: the incident's sources.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
}

impl Parameters for CloudflareBlock {
    fn kind(&self) -> &'static str {
        "cloudflare_block"
    }

    fn tool(&self) -> &'static str {
        "cloudflare"
    }

    fn sources(&self) -> Option<&[IpNet]> {
        Some(&self.sources)
    }

    fn check(&self) -> Result<(), ParameterError> {
        match (&self.zone, &self.account, &self.list) {
            (Some(_), None, None) => match self.sources.iter().find(|s| !is_access_range(s)) {
                Some(other) => Err(ParameterError::new(
                    "sources",
                    format!("access rules take addresses, /16 and /24, and /32, /48 and /64 of IPv6, not {other}"),
                )),
                None => Ok(()),
            },
            (None, Some(_), Some(_)) => Ok(()),
            (None, Some(_), None) => Err(ParameterError::new("list", "is required with account")),
            (None, None, _) => Err(ParameterError::new("zone", "give zone, or account and list")),
            (Some(_), _, _) => Err(ParameterError::new("account", "give zone, or account and list, not both")),
        }
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        match (&self.zone, &self.account, &self.list) {
            (Some(zone), _, _) => {
                let url = format!("{CLOUDFLARE_API}{}", access_rules(zone));
                for source in on.sources {
                    let body = access_rule(source, CLOUDFLARE_MARK).to_string();
                    let undo = argv(&["DELETE", &format!("{url}/<id of the rule>"), ""]);
                    let object = format!("access rule of the zone: {}", short(source));
                    shown.step(argv(&["POST", &url, &body]), undo, object);
                }
            }
            (None, Some(account), Some(list)) => {
                let url = format!("{CLOUDFLARE_API}{}", list_items(account, list));
                let items: Vec<Value> = on.sources.iter().map(|source| list_item(source, CLOUDFLARE_MARK)).collect();
                let ids: Vec<Value> = on.sources.iter().map(|_| json!({ "id": "<id of the item>" })).collect();
                let values: Vec<String> = on.sources.iter().map(short).collect();
                shown.step(
                    argv(&["POST", &url, &Value::from(items).to_string()]),
                    argv(&["DELETE", &url, &json!({ "items": ids }).to_string()]),
                    format!("items of the list: {}", values.join(", ")),
                );
                shown.warnings.push("a list blocks nothing by itself: a rule of the account must use it".to_owned());
            }
            _ => return,
        }
        shown.warnings.push(
            "what is there already and is not of this node is left alone: it is neither sent nor deleted".to_owned(),
        );
    }
}

/// The path of a zone's access rules.
pub fn access_rules(zone: &CloudId) -> String {
    format!("/zones/{zone}/firewall/access_rules/rules")
}

/// The path of a list's items.
pub fn list_items(account: &CloudId, list: &CloudId) -> String {
    format!("/accounts/{account}/rules/lists/{list}/items")
}

/// The access rule that blocks `source`.
pub fn access_rule(source: &IpNet, notes: &str) -> Value {
    let target = match (source.prefix_len() < source.max_prefix_len(), is_v6(source)) {
        (true, _) => "ip_range",
        (false, false) => "ip",
        (false, true) => "ip6",
    };
    json!({ "mode": "block", "configuration": { "target": target, "value": short(source) }, "notes": notes })
}

/// The item of a list that names `source`.
pub fn list_item(source: &IpNet, comment: &str) -> Value {
    json!({ "ip": short(source), "comment": comment })
}

/// What access rules take besides single addresses.
fn is_access_range(source: &IpNet) -> bool {
    match source {
        IpNet::V4(v4) => matches!(v4.prefix_len(), 16 | 24 | 32),
        IpNet::V6(v6) => matches!(v6.prefix_len(), 32 | 48 | 64 | 128),
    }
}
