//! `vultr_block`.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::names::FirewallId;
use super::remainder::without;
use super::{Ground, Parameters, is_v6};
use crate::api::preview::{Preview, argv};

/// Where Vultr's API is.
pub const VULTR_API: &str = "https://api.vultr.com/v2";

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
        let url = format!("{VULTR_API}{}", group_rules(&self.group_id));
        for v6 in [false, true] {
            if !on.sources.iter().any(|s| is_v6(s) == v6) {
                continue;
            }
            let all: IpNet = if v6 { Ipv6Net::default().into() } else { Ipv4Net::default().into() };
            let body =
                |prefix: &IpNet, notes: &str| accept_rule("<of the rule>", "<of the rule>", prefix, notes).to_string();
            for rest in without(on.sources, v6) {
                let undo = argv(&["DELETE", &format!("{url}/<id of the rule>"), ""]);
                let piece = body(&rest, &piece_notes(&all.to_string(), "<notes of the rule>"));
                shown.step(argv(&["POST", &url, &piece]), undo, format!("accept rule of {rest}"));
            }
            let delete = argv(&["DELETE", &format!("{url}/<id of the rule that accepts all>"), ""]);
            let object = format!("the rule that accepts {all} is gone");
            shown.step(delete, argv(&["POST", &url, &body(&all, "<notes of the rule>")]), object);
        }
        shown.warnings.push(
            "only rules that accept are documented: what the group accepts is narrowed, once for each rule that accepts \
             the source, shown here for one that accepts all addresses; a group has 50 rules unless Vultr raises that"
                .to_owned(),
        );
    }
}

/// The path of a group's rules.
pub fn group_rules(group: &FirewallId) -> String {
    format!("/firewalls/{group}/rules")
}

/// A rule that accepts `prefix`; some protocols have no `port`.
pub fn accept_rule(protocol: &str, port: &str, prefix: &IpNet, notes: &str) -> Value {
    let mut rule = json!({
        "ip_type": if is_v6(prefix) { "v6" } else { "v4" }, "protocol": protocol, "subnet": prefix.network().to_string(),
        "subnet_size": prefix.prefix_len(), "notes": notes,
    });
    if !port.is_empty() {
        rule["port"] = port.into();
    }
    rule
}

/// What a rule says that is a piece of another one, so that whoever puts the pieces together again knows that one.
pub fn piece_notes(whole: &str, notes: &str) -> String {
    format!("ftagent of {whole}: {notes}")
}

/// The rule that a piece is of, and its notes.
pub fn piece_of(notes: &str) -> Option<(&str, &str)> {
    notes.strip_prefix("ftagent of ")?.split_once(": ").filter(|(whole, _)| whole.parse::<IpNet>().is_ok())
}
