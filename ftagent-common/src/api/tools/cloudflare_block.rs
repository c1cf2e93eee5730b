//! `cloudflare_block`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::names::CloudId;
use super::{Ground, Parameters, is_v6, short};
use crate::api::ParameterError;
use crate::api::preview::{Preview, argv};

const API: &str = "https://api.cloudflare.com/client/v4";

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
        let (url, wrapped) = match (&self.zone, &self.account, &self.list) {
            (Some(zone), _, _) => (format!("{API}/zones/{zone}/firewall/access_rules/rules"), false),
            (None, Some(account), Some(list)) => (format!("{API}/accounts/{account}/rules/lists/{list}/items"), true),
            _ => return,
        };
        for source in on.sources {
            let value = short(source);
            let body = if wrapped {
                json!([{ "ip": value, "comment": "ftagent" }])
            } else {
                let target = match (source.prefix_len() < source.max_prefix_len(), is_v6(source)) {
                    (true, _) => "ip_range",
                    (false, false) => "ip",
                    (false, true) => "ip6",
                };
                json!({ "mode": "block", "configuration": { "target": target, "value": value }, "notes": "ftagent" })
            };
            let (undo, object) = if wrapped {
                let body = json!({ "items": [{ "id": "<id of the item>" }] }).to_string();
                (argv(&["DELETE", &url, &body]), format!("item {value} of the list"))
            } else {
                (argv(&["DELETE", &format!("{url}/<id of the rule>"), ""]), format!("access rule of the zone: {value}"))
            };
            shown.step(argv(&["POST", &url, &body.to_string()]), undo, object);
        }
        if wrapped {
            shown.warnings.push("a list blocks nothing by itself: a rule of the account must use it".to_owned());
        }
    }
}

/// What access rules take besides single addresses.
fn is_access_range(source: &IpNet) -> bool {
    match source {
        IpNet::V4(v4) => matches!(v4.prefix_len(), 16 | 24 | 32),
        IpNet::V6(v6) => matches!(v6.prefix_len(), 32 | 48 | 64 | 128),
    }
}
